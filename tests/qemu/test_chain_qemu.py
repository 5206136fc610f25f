"""The chain on every device: exact to the last bit, nothing that the core cannot execute, counts that repeat."""

from __future__ import annotations

import json
import re
import shutil
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from models import random_forecaster

from edgetqs import emulate, firmware
from edgetqs.errors import ToolMissing
from edgetqs.model import Forecaster
from edgetqs.pipeline import Options, build, plan_image
from edgetqs.project import Project
from edgetqs.target import list_targets, load_target

pytestmark = pytest.mark.qemu

DEVICES = [target.name for target in list_targets() if target.kind != "host"]
BARE = [target.name for target in list_targets() if target.kind == "bare"]
INPUTS, KNOWN = 4, 1  # two are fed back, one is held
Built = tuple[dict[str, Any], Path]


def forecaster(kind: str) -> Forecaster:
    """Rows and columns that fill neither blocks of four nor words."""
    return random_forecaster(kind, 9, INPUTS, 2, layers=2, window=6, gain=2.0, scaled=True)


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Callable[..., Built]:
    """Builds with every other gate at int4, each made when it is first asked for."""
    known: dict[tuple[str, str], Built] = {}

    def get(name: str, kind: str = "lstm") -> Built:
        if (name, kind) not in known:
            target = load_target(name)
            try:
                firmware.toolchain(target)
            except ToolMissing as error:
                pytest.skip(error.what)
            if shutil.which(target.qemu.program) is None:
                pytest.skip(f"{target.qemu.program} is not installed")
            folder = tmp_path_factory.mktemp(f"{name}-{kind}")
            project = Project(forecaster(kind), 6)
            options = Options(plan_file=mixed_plan(project, folder / "plan.json"), rounding="nearest")
            known[name, kind] = build(project, name, folder / "out", options, str), folder / "out"
        return known[name, kind]

    return get


def mixed_plan(project: Project, path: Path) -> Path:
    plan = plan_image(project, "x86", Options(), str).to_json()
    for index, unit in enumerate(plan["units"]):
        unit["width"] = (4, 8)[index % 2]
    path.write_text(json.dumps(plan))
    return path


def commands(data: bytes) -> str:
    """The letters of a harness.in, of which each is followed by what it says in runtime/harness.c."""
    letters, place = "", 0
    while place < len(data):
        letter = chr(data[place])
        known = 4 * KNOWN * struct.unpack_from("<I", data, place + 1)[0] if letter == "F" else 0
        place += 1 + {"R": 0, "K": 0, "S": 2 * INPUTS, "A": 2 * KNOWN, "P": 4 * INPUTS, "F": 4 + known}[letter]
        letters += letter
    return letters


# --- exact ---------------------------------------------------------------------------


def check(record: dict[str, Any], folder: Path) -> None:
    links = record["chain"]
    assert links["details"]["emulator"] == f"{links['steps']} steps"
    assert {engine: links[engine] for engine in links["details"]} == dict.fromkeys(
        ("litert", "host", "emulator", "application"), "exact"
    )
    assert {unit["width"] for unit in record["plan"]["units"]} == {4, 8}
    sent = commands((folder / "golden" / "harness.in").read_bytes())
    assert sent.count("A") >= 1000
    assert sent.count("A") + sent.count("S") == links["steps"]
    assert "F" in sent
    assert record["cost"]["how"] == "tcg plugin"
    assert record["cost"]["instructions_per_step"] > 2000  # a multiplication a weight, at two an instruction


@pytest.mark.parametrize("name", DEVICES)
def test_exact_on_every_device(built, name):
    check(*built(name))


@pytest.mark.parametrize("name", ["cortex-m0plus", "cortex-m4"])
@pytest.mark.parametrize("kind", ["gru", "gru_reset_before", "rnn"])
def test_exact_for_every_cell_with_either_layout(built, name, kind):
    check(*built(name, kind))


@pytest.mark.parametrize("name", DEVICES)
def test_the_printed_forecast(built, name):
    record, folder = built(name)
    lines = (folder / "output.txt").read_text().splitlines()
    assert lines[0] == f"edgetqs {record['tool_version']}"
    assert record["plan"]["hash"] in lines[1]
    assert "6 samples read" in lines
    assert lines[3] == "step\ty0 unit\ty1 unit"
    assert [re.fullmatch(r"(\d+)(\t-?\d+\.\d{3}){2}", line)[1] for line in lines[4:10]] == list("123456")


def test_all_devices_print_the_same(built):
    texts = {name: (built(name)[1] / "output.txt").read_text().splitlines() for name in DEVICES}
    assert len({"\n".join(lines[:-1]) for lines in texts.values()}) == 1  # the last line tells of the stack


@pytest.mark.parametrize("name", BARE)
def test_measured_stack_is_within_the_bound(built, name):
    memory = built(name)[0]["firmware"]
    assert 100 < memory["stack_measured_bytes"] <= memory["stack_bytes"] <= memory["stack_budget_bytes"]
    assert memory["stack_unknown"] == []
    assert memory["fits"]


# --- instruction sets: QEMU executes more than a core has ----------------------------

#: DSP extension of Armv7E-M (DDI 0403, A4.4.3 and the parallel additions and subtractions).
DSP = re.compile(
    r"(s|u|q|sh|uh|uq)(add|sub)(8|16)|(s|u|q|sh|uh|uq)(asx|sax)|qd?(add|sub)|[su]xta?b16|[su]xta[bh]|pkh(bt|tb)|sel"
    r"|usada?8|[su]sat16|sml[as]l?dx?|smu[as]dx?|sml(a|al)[bt][bt]|smlaw[bt]|smul[bt][bt]|smulw[bt]|smm(la|ls|ul)r?|umaal"
)
#: All 32-bit instructions of Armv6-M (DDI 0419, A5.3); 16-bit ones that it has not.
V6M_LONG = {"bl", "mrs", "msr", "dmb", "dsb", "isb", "udf"}
V7M_SHORT = re.compile(r"cbn?z|it[te]{0,3}")

Instruction = tuple[str, str, bool]  # mnemonic without condition and width, the whole line, whether it has 32 bits


def instructions(image: Path, name: str) -> list[Instruction]:
    command = [firmware.toolchain(load_target(name)).objdump, "--disassemble", str(image)]
    listing = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = []
    for match in re.finditer(r"^ *[0-9a-f]+:\t([0-9a-f ]+?) *\t(\S+).*$", listing, re.MULTILINE):
        if not match[2].startswith("."):  # data between the code
            found.append((re.sub(r"\.[nw]$", "", match[2]), match[0].strip(), len(match[1].split()) == 2))
    assert len(found) > 500
    return found


def with_condition(pattern: re.Pattern[str], mnemonic: str) -> bool:
    return pattern.fullmatch(mnemonic) is not None or pattern.fullmatch(mnemonic[:-2]) is not None


def foreign_to_v6m(one: Instruction) -> bool:
    return one[0] not in V6M_LONG if one[2] else V7M_SHORT.fullmatch(one[0]) is not None


def foreign_to_m3(one: Instruction) -> bool:
    return one[0].startswith("v") or with_condition(DSP, one[0])


def double_precision(one: Instruction) -> bool:
    return ".f64" in one[0]


FOREIGN = {
    "cortex-m0plus": foreign_to_v6m,
    "cortex-m3": foreign_to_m3,
    "cortex-m4": double_precision,
    "cortex-m33": double_precision,
    "stm32f405": double_precision,
}
IMAGES = ("firmware.elf", "emulated.elf", "harness.elf")


@pytest.mark.parametrize(
    ("name", "kind"), [*((name, "lstm") for name in FOREIGN), ("cortex-m0plus", "gru"), ("cortex-m4", "gru")]
)
def test_no_instruction_that_the_core_lacks(built, name, kind):
    folder = built(name, kind)[1]
    for image in IMAGES:
        assert [one[1] for one in instructions(folder / image, name) if FOREIGN[name](one)] == []


def test_the_instruction_check_sees_what_larger_cores_have(built):
    """Or it would pass whatever the images hold."""
    m3 = instructions(built("cortex-m3")[1] / "firmware.elf", "cortex-m3")
    m4 = instructions(built("cortex-m4")[1] / "firmware.elf", "cortex-m4")
    assert {"cbz", "it", "udiv"} & {one[0] for one in m3 if foreign_to_v6m(one)}
    assert {"smlad", "sxtb16", "vmul.f32"} <= {one[0] for one in m4 if foreign_to_m3(one)}


@pytest.mark.parametrize("name", BARE)
def test_cores_with_smlad_use_it(built, name):
    mnemonics = {one[0] for one in instructions(built(name)[1] / "firmware.elf", name)}
    assert ({"smlad", "sxtb16"} <= mnemonics) == (name not in ("cortex-m0plus", "cortex-m3"))


# --- instruction counts --------------------------------------------------------------


def counted(name: str, folder: Path, scratch: Path) -> emulate.Run:
    """Six steps between the marks of the harness."""
    rng = np.random.default_rng(1)
    steps = rng.integers(-20_000, 20_000, (6, INPUTS)).astype("<i2")
    (scratch / "harness.in").write_bytes(b"R" + b"".join(b"C" + x.tobytes() for x in steps))
    return emulate.run(load_target(name), folder / "harness.elf", scratch, timeout_s=60, count=True)


@pytest.mark.parametrize("name", DEVICES)
def test_counts_repeat(built, tmp_path, name):
    record, folder = built(name)
    first, again = (counted(name, folder, tmp_path) for _ in range(2))
    assert (first.how, len(first.counts)) == ("tcg plugin", 6)
    assert first.counts == again.counts
    assert record["cost"]["instructions_per_step"] == pytest.approx(np.mean(first.counts), rel=0.05)
    assert record["cost"]["instructions_per_window"] == pytest.approx(
        6 * record["cost"]["instructions_per_step"], abs=6
    )


@pytest.mark.parametrize("name", BARE)
def test_icount_agrees_with_the_plugin(built, tmp_path, monkeypatch, name):
    def no_compiler(qemu: str) -> Path:
        raise ToolMissing("no compiler")

    folder = built(name)[1]
    exact = counted(name, folder, tmp_path).counts
    monkeypatch.setattr(emulate, "_build_plugin", no_compiler)
    assert counted(name, folder, tmp_path).how == "icount"
    ticks = np.frombuffer((tmp_path / "harness.out").read_bytes(), "<u4")
    estimates = [emulate.instructions_of_ticks(load_target(name), int(value)) for value in ticks]
    assert estimates == pytest.approx(exact, rel=0.05)


def test_a_build_without_the_plugin_counts_by_icount(built, tmp_path, monkeypatch):
    def no_compiler(qemu: str) -> Path:
        raise ToolMissing("no compiler")

    record, _ = built("cortex-m3")
    monkeypatch.setattr(emulate, "_build_plugin", no_compiler)
    project = Project(forecaster("lstm"), 6)
    options = Options(plan_file=mixed_plan(project, tmp_path / "plan.json"), rounding="nearest")
    cost = build(project, "cortex-m3", tmp_path / "out", options, str)["cost"]
    assert cost["how"] == "icount"
    for key in ("instructions_per_step", "instructions_per_window"):
        assert cost[key] == pytest.approx(record["cost"][key], rel=0.05)


@pytest.mark.parametrize("fast", ["cortex-m4", "cortex-m7", "cortex-m33"])
def test_the_dsp_kernels_save_instructions(built, fast):
    steps = {name: built(name)[0]["cost"]["instructions_per_step"] for name in ("cortex-m3", fast)}
    assert steps[fast] < steps["cortex-m3"]
