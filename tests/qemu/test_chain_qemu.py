"""The chain on every device: exact to the last bit, counts that repeat."""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from installed import ready
from models import random_forecaster

from edgetqs import emulate
from edgetqs.errors import ToolMissing
from edgetqs.model import Forecaster
from edgetqs.pipeline import Options, build, plan_image
from edgetqs.project import Project
from edgetqs.target import list_targets, load_target

pytestmark = pytest.mark.qemu

DEVICES = [target.name for target in list_targets() if target.kind != "host" and target.qemu]
BARE = [target.name for target in list_targets() if target.kind == "bare" and target.qemu]
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
            ready(name)
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
    # A multiplication a weight: no core here does eight in one instruction and its loads.
    assert record["cost"]["instructions_per_step"] > record["model"]["parameters"] / 4


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
