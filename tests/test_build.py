"""Builds: the record, the same bytes, what is overwritten and left behind, budgets, plans, missing tools."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from files import save_keras
from models import random_forecaster

from edgetqs import pipeline
from edgetqs.cli import main
from edgetqs.errors import BadInput, CheckFailed, ToolMissing, Unsupported
from edgetqs.model import Channel, Feedback, Forecaster
from edgetqs.paths import data_dir
from edgetqs.pipeline import Options, build, plan_image, plan_weights, run_firmware
from edgetqs.project import Project, load_project
from edgetqs.prove import Proof
from edgetqs.target import load_target

HORIZON = 5
VERDICTS = {"exact", "differs", "not run"}


def forecaster(**changes: Any) -> Forecaster:
    """Two inputs, one fed back and one known ahead; small enough for a build in two seconds."""
    return random_forecaster("gru", 5, 2, 1, layers=1, window=8, **changes)


def quiet(message: str) -> None:
    pass


def made(where: Path, project: Project, target: str = "x86", **options: Any) -> dict[str, Any]:
    return build(project, target, where, Options(**options), quiet)


NO_COST = {"instructions_per_step": None, "instructions_per_window": None, "how": ""}
UNPROVEN = Proof(0, {}, NO_COST, None)


@pytest.fixture
def unproven(monkeypatch) -> None:
    """Builds leave out the proof, which takes most of their time."""
    monkeypatch.setattr(pipeline, "prove", lambda subject, file: UNPROVEN)


def needs(program: str) -> None:
    if shutil.which(program) is None:
        pytest.skip(f"{program} is not installed")


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture(scope="module")
def series(tmp_path_factory) -> Path:
    """Observations with a column that no model reads."""
    path = tmp_path_factory.mktemp("data") / "observations.csv"
    t = np.arange(60)
    rows = np.stack([np.sin(t / 5), t % 3, np.cos(t / 7)], axis=1)
    path.write_text("x1,other,x0\n" + "\n".join(",".join(f"{v:.9g}" for v in row) for row in rows) + "\n")
    return path


@pytest.fixture(scope="module")
def model_file(tmp_path_factory) -> Path:
    return save_keras(forecaster(), tmp_path_factory.mktemp("model") / "small.keras")


@pytest.fixture(scope="module")
def builds(tmp_path_factory, series, model_file) -> Callable[[str], tuple[dict[str, Any], Path]]:
    """Builds by name, each made when it is first asked for."""
    known: dict[str, tuple[dict[str, Any], Path]] = {}
    projects = {
        "plain": lambda: Project(forecaster(), HORIZON),
        "data": lambda: Project(forecaster(scaled=True), HORIZON, data=series),
        "direct": lambda: Project(replace(forecaster(), feedback=Feedback()), HORIZON),
        "m4": lambda: load_project(model_file, None),
    }

    def get(name: str) -> tuple[dict[str, Any], Path]:
        if name not in known:
            if name == "m4":
                needs("arm-none-eabi-gcc")
                needs("qemu-system-arm")
            folder = tmp_path_factory.mktemp(name) / "out"
            known[name] = made(folder, projects[name](), "cortex-m4" if name == "m4" else "x86"), folder
        return known[name]

    return get


# --- the record ----------------------------------------------------------------

#: What the design promises, by path: a type, or a list's type of entries.
SCHEMA = {
    "schema": int,
    "tool_version": str,
    "model.name": str,
    "model.sha256": str,
    "model.layers": [str],
    "model.parameters": int,
    "target": str,
    "plan.granularity": str,
    "plan.rounding": str,
    "plan.units": [dict],
    "plan.weight_bytes": int,
    "plan.int8_bytes": int,
    "plan.int4_bytes": int,
    "firmware.elf": str,
    "firmware.flash_bytes": int,
    "firmware.ram_bytes": int,
    "firmware.stack_bytes": int,
    "firmware.code_bytes": int,
    "firmware.flash_budget_bytes": int,
    "firmware.ram_budget_bytes": int,
    "firmware.fits": bool,
    "chain.steps": int,
    "chain.litert": str,
    "chain.host": str,
    "chain.emulator": str,
    "cost.instructions_per_step": int,
    "cost.instructions_per_window": int,
    "cost.how": str,
    "rollout.horizon": int,
    "rollout.deviation": [float],
    "rollout.deviation_int8": [float],
    "rollout.deviation_int4": [float],
    "tflite.path": str,
    "tflite.bytes": int,
    "tflite.signatures": [str],
}
UNIT = {"unit": str, "layer": str, "tensor": str, "gate": str, "width": int, "bytes": int, "tqs": float}
WITH_DATA = {f"rollout.rmse{suffix}": [float] for suffix in ("", "_float", "_int8", "_int4")}


def mistakes(record: dict[str, Any], schema: dict[str, Any]) -> list[str]:
    found = []
    for path, kind in schema.items():
        value: Any = record
        for key in path.split("."):
            value = value.get(key) if isinstance(value, dict) else None
        entries, one = (value, kind[0]) if isinstance(kind, list) else ([value], kind)
        if not isinstance(entries, list) or not entries or not all(type(entry) is one for entry in entries):
            found.append(f"{path}: {value!r}")
    return found


@pytest.mark.parametrize("name", ["plain", "data", "direct", "m4"])
def test_build_json_holds_what_was_promised(builds, name):
    record, folder = builds(name)
    assert json.loads((folder / "build.json").read_text()) == record
    assert mistakes(record, SCHEMA | (WITH_DATA if name == "data" else {})) == []
    assert [bad for unit in record["plan"]["units"] for bad in mistakes(unit, UNIT)] == []
    rollout = record["rollout"]
    lengths = {
        len(values) for key, values in rollout.items() if re.match(r"(data_)?(deviation|rmse)(_int|_float|$)", key)
    }
    assert lengths == {rollout["horizon"]}
    assert ("rmse" in rollout) == (name == "data")
    assert {record["chain"][engine] for engine in ("litert", "host", "emulator", "application")} == {"exact"}
    assert record["chain"]["steps"] > 1000


@pytest.mark.parametrize("name", ["plain", "data", "direct", "m4"])
def test_the_record_tells_of_the_files_beside_it(builds, name):
    record, folder = builds(name)
    assert (folder / record["tflite"]["path"]).stat().st_size == record["tflite"]["bytes"]
    assert (folder / record["firmware"]["elf"]).is_file()
    widths = {unit["unit"]: unit["width"] for unit in json.loads((folder / "plan.json").read_text())["units"]}
    assert widths == {unit["unit"]: unit["width"] for unit in record["plan"]["units"]}
    assert set(widths.values()) == {8}  # no budget is in the way
    assert record["plan"]["weight_bytes"] == record["plan"]["int8_bytes"]
    text = (folder / "src" / f"{record['model']['name']}.h").read_text()
    assert record["plan"]["hash"] in text
    assert (record["model"]["sha256"] or "unnamed")[:16] in text
    assert record["cost"]["instructions_per_step"] * 8 == pytest.approx(
        record["cost"]["instructions_per_window"], abs=8
    )


def test_flash_and_ram_are_those_of_binutils(builds):
    record, folder = builds("m4")
    said = subprocess.run(["arm-none-eabi-size", folder / "firmware.elf"], capture_output=True, text=True, check=True)
    text, data, bss = map(int, said.stdout.splitlines()[1].split()[:3])
    firmware = record["firmware"]
    assert (firmware["flash_bytes"], firmware["ram_bytes"]) == (text + data, data + bss)
    assert firmware["flash_bytes"] == sum(s["bytes"] for s in firmware["sections"] if s["in_flash"])
    assert firmware["flash_budget_bytes"] == load_target("cortex-m4").flash_budget_bytes
    assert 0 < firmware["stack_measured_bytes"] <= firmware["stack_bytes"] <= firmware["stack_budget_bytes"]
    assert firmware["fits"]


def test_with_data_the_firmware_replays_its_end(builds, series):
    record, folder = builds("data")
    glue = (folder / "src" / "model_glue.h").read_text()
    assert "Samples 47 to 54 of observations.csv." in glue  # a window of 8 and a horizon of 5 end the 60
    columns = np.loadtxt(series, delimiter=",", skiprows=1)
    last = ", ".join(f"{np.float32(columns[54, k]):.9g}f" for k in (2, 0))
    assert f"{{ {last} }}" in glue
    assert record["rollout"]["cases"] == 48  # every window
    assert record["rollout"]["rmse_unit"] == "unit"


def test_without_data_that_is_said(builds):
    assert "Synthetic samples: no data was given." in (builds("plain")[1] / "src" / "model_glue.h").read_text()


def test_a_direct_forecaster_has_no_loop(builds):
    record, folder = builds("direct")
    assert "gru5_forecast" not in (folder / "src" / "gru5.h").read_text()
    assert record["rollout"]["horizon"] == 8
    assert record["chain"]["details"]["application"] == "1 rows printed"


def test_the_firmware_prints_very_large_and_very_small_values(tmp_path):
    channels = (Channel("large", std=1e11), Channel("small", std=1e-6))
    one = replace(random_forecaster("rnn", 3, 2, 2, layers=1, window=4, known=False), inputs=channels, outputs=channels)
    record = made(tmp_path / "out", Project(one, 3))
    assert record["chain"]["application"] == "exact"
    rows = [line.split("\t")[1:] for line in (tmp_path / "out" / "output.txt").read_text().splitlines()[4:7]]
    assert all(1e8 < abs(float(large)) < 1e12 for large, _ in rows)
    assert all(1e-9 < abs(float(small)) < 1e-5 for _, small in rows)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("x0,x1\n" + "1,2\n" * 12, "has 12 samples, a window and a forecast need 13"),
        ("x0\n" + "1\n" * 40, "no column x1"),
        ("x0,x1\n" + "1,2\n" * 40 + "1,nan\n", "sample 40 of 'x1' is not a finite number"),
        ("x0,x1\n1,b\n", "could not convert"),
    ],
)
def test_data_that_cannot_be_used(tmp_path, text, complaint):
    (tmp_path / "data.csv").write_text(text)
    with pytest.raises(BadInput, match=complaint):
        made(tmp_path / "out", Project(forecaster(), HORIZON, data=tmp_path / "data.csv"))
    assert [path.name for path in tmp_path.iterdir()] == ["data.csv"]


# --- the same bytes --------------------------------------------------------------


def test_same_input_same_bytes(tmp_path, builds, model_file):
    """Another folder, another process with other hashes, another umask: nothing of it shows."""
    first = contents(builds("m4")[1])
    environment = {**os.environ, "PYTHONHASHSEED": "77", "TZ": "Asia/Tokyo"}
    options = ["-q", "--target", "cortex-m4", "--out", "b/other"]
    command = [sys.executable, "-m", "edgetqs", "build", str(model_file), *options]
    subprocess.run(command, env=environment, cwd=tmp_path, check=True, umask=0o77, stdout=subprocess.DEVNULL)
    again = contents(tmp_path / "b" / "other")
    assert first.keys() == again.keys()
    assert {"firmware.elf", "plan.json", "build.json", "src/model_glue.h", "golden/harness.in"} <= first.keys()
    assert [path for path in first if first[path] != again[path]] == []
    for text in (data for path, data in first.items() if path.startswith("src/")):
        assert not re.search(rb"/tmp|20\d\d-\d\d", text)


# --- what is overwritten, and what is left behind ----------------------------------


@pytest.fixture
def finished(tmp_path, builds) -> Path:
    """A copy of a finished build."""
    return Path(shutil.copytree(builds("plain")[1], tmp_path / "out"))


def test_nothing_is_overwritten_without_force(finished):
    before = contents(finished)
    with pytest.raises(BadInput, match="the folder exists"):
        made(finished, Project(forecaster(), HORIZON))
    assert contents(finished) == before


def test_force_replaces_a_build_whole(finished, unproven):
    (finished / "stale.txt").write_text("of the last build")
    made(finished, Project(forecaster(), HORIZON), force=True, rounding="nearest")
    assert not (finished / "stale.txt").exists()
    assert json.loads((finished / "build.json").read_text())["plan"]["rounding"] == "nearest"
    assert os.listdir(finished.parent) == ["out"]
    assert finished.stat().st_mode & 0o777 == 0o755


def test_force_does_not_replace_what_is_not_a_build(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("years of work")
    with pytest.raises(BadInput, match="something other than a build"):
        made(tmp_path / "out", Project(forecaster(), HORIZON), force=True)
    assert (tmp_path / "out" / "thesis.tex").read_text() == "years of work"


def test_a_build_survives_one_that_fails(finished):
    before = contents(finished)
    with pytest.raises(CheckFailed):
        made(finished, Project(forecaster(), HORIZON), force=True, flash_budget=10)
    assert contents(finished) == before
    assert os.listdir(finished.parent) == ["out"]


@pytest.mark.parametrize("stage", ["scoring", "planning", "proving"])
def test_an_interrupted_build_leaves_nothing(tmp_path, stage):
    def interrupt(message: str) -> None:
        if message.startswith(stage):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build(Project(forecaster(), HORIZON), "x86", tmp_path / "out", Options(), interrupt)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda f: replace(f, name="int"), "'int' cannot be the name of a C module"),
        (
            lambda f: replace(f, layers=(replace(f.layers[0], recurrent_activation="relu"), f.layers[1])),
            "'relu' cannot be deployed",
        ),
    ],
)
def test_what_cannot_be_built_is_refused_before_any_work(tmp_path, change, complaint):
    told: list[str] = []
    with pytest.raises(BadInput, match=complaint):
        build(Project(change(forecaster()), HORIZON), "x86", tmp_path / "a" / "out", Options(), told.append)
    assert told == []
    assert list(tmp_path.iterdir()) == []


def test_names_of_any_characters(tmp_path):
    text = 'a */ b /* c "d" \\ e\n\t%s ??/ °'
    one = forecaster()
    layers = (replace(one.layers[0], name=text), one.layers[1])
    inputs, outputs = (Channel(text, text), one.inputs[1]), (Channel(f"y {text}", text),)
    named = replace(one, name=f"m {text}", layers=layers, inputs=inputs, outputs=outputs)
    assert made(tmp_path / "out", Project(named, HORIZON))["chain"]["application"] == "exact"


# --- budgets -----------------------------------------------------------------------


def smallest_budget(error: CheckFailed) -> int:
    return int(re.search(r"--flash-budget (\d+) would do", str(error))[1])


def test_an_infeasible_budget_names_the_smallest_that_would_do(tmp_path, unproven):
    needs("arm-none-eabi-gcc")
    project = Project(random_forecaster("lstm", 12, 3, 2, layers=1, window=8), HORIZON)
    with pytest.raises(CheckFailed, match=r"needs \d+ bytes of flash even with every weight at int4") as caught:
        plan_image(project, "cortex-m0plus", Options(flash_budget=100), quiet)
    smallest = smallest_budget(caught.value)
    with pytest.raises(CheckFailed, match=", 1 more than the budget") as caught:
        made(tmp_path / "out", project, "cortex-m0plus", flash_budget=smallest - 1)
    assert smallest_budget(caught.value) == smallest
    assert list(tmp_path.iterdir()) == []
    record = made(tmp_path / "out", project, "cortex-m0plus", flash_budget=smallest)
    assert {unit["width"] for unit in record["plan"]["units"]} == {4}
    assert smallest - 4 < record["firmware"]["flash_bytes"] <= record["firmware"]["flash_budget_bytes"] == smallest
    assert record["firmware"]["fits"]


@pytest.fixture(scope="module")
def squeezed(tmp_path_factory) -> dict[str, Any]:
    """The record of a build whose budget is a little short of what int8 everywhere takes."""
    needs("arm-none-eabi-gcc")
    project = Project(random_forecaster("lstm", 24, 3, 2, layers=1, window=8), HORIZON)
    folder = tmp_path_factory.mktemp("squeezed")
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(pipeline, "prove", lambda subject, file: UNPROVEN)
        wide = made(folder / "wide", project, "cortex-m4")["firmware"]["flash_bytes"]
        return made(folder / "out", project, "cortex-m4", flash_budget=wide - 100)


def test_a_budget_in_between_is_used_and_kept(squeezed):
    assert {unit["width"] for unit in squeezed["plan"]["units"]} == {4, 8}
    firmware = squeezed["firmware"]
    assert firmware["flash_budget_bytes"] - 500 < firmware["flash_bytes"] <= firmware["flash_budget_bytes"]


def test_what_a_budget_leaves_would_not_hold_one_more_unit_at_int8(squeezed):
    left = squeezed["firmware"]["flash_budget_bytes"] - squeezed["firmware"]["flash_bytes"]
    extra = {unit["bytes"] - 3 * 24 for unit in squeezed["plan"]["units"] if unit["width"] == 4}  # as much again
    assert left < min(extra)


def test_int8_everywhere_is_taken_where_it_fits_without_the_int4_kernels(tmp_path, unproven):
    needs("arm-none-eabi-gcc")
    project = Project(random_forecaster("lstm", 24, 3, 2, layers=1, window=8), HORIZON)
    size = made(tmp_path / "wide", project, "cortex-m4")["firmware"]["flash_bytes"]
    again = made(tmp_path / "tight", project, "cortex-m4", flash_budget=size)
    assert {unit["width"] for unit in again["plan"]["units"]} == {8}


def test_the_project_s_budget_is_used_unless_another_is_given(tmp_path):
    project = Project(forecaster(), HORIZON, flash_budget=10)
    with pytest.raises(CheckFailed, match="more than the budget of 10\n"):
        plan_image(project, "x86", Options(), quiet)
    assert plan_image(project, "x86", Options(flash_budget=10_000), quiet).budget_bytes == 10_000


def test_a_budget_on_linux_counts_the_models_constants(tmp_path, unproven):
    """The program is static: the C library's bytes are nobody's budget."""
    project = Project(forecaster(), HORIZON)
    with pytest.raises(CheckFailed) as caught:
        plan_image(project, "x86", Options(flash_budget=1), quiet)
    record = made(tmp_path / "out", project, flash_budget=smallest_budget(caught.value))
    widths = {unit["unit"]: unit["width"] for unit in record["plan"]["units"]}
    assert widths.pop("dense/kernel") == 8  # one row, which takes a byte a weight at either width
    assert set(widths.values()) == {4}
    firmware = record["firmware"]
    assert firmware["fits"]
    assert not 0 < firmware["flash_budget_bytes"] < firmware["flash_bytes"]  # or the report contradicts itself


def edited_target(folder: Path, *edits: tuple[str, str], name: str = "cortex-m4") -> str:
    text = (data_dir("targets") / f"{name}.toml").read_text()
    for old, new in edits:
        assert old in text
        text = text.replace(old, new)
    path = folder / f"{name}.toml"
    path.write_text(text)
    return str(path)


def test_too_little_ram(tmp_path):
    needs("arm-none-eabi-gcc")
    project = Project(forecaster(), HORIZON)
    usable = 131_072 - 8_192

    def left(ram_bytes: int) -> str:
        return edited_target(tmp_path, ("ram_reserve_bytes = 8_192", f"ram_reserve_bytes = {usable - ram_bytes}"))

    with pytest.raises(CheckFailed) as caught:
        made(tmp_path / "out", project, left(16))
    needed, over = map(int, re.search(r"needs (\d+) bytes of RAM, (\d+) more", str(caught.value)).groups())
    assert needed - over == 16
    assert "a device with more RAM" in caught.value.todo
    assert [path.name for path in tmp_path.iterdir()] == ["cortex-m4.toml"]
    with pytest.raises(CheckFailed, match=", 1 more"):
        plan_image(project, left(needed - 1), Options(), quiet)
    assert plan_image(project, left(needed), Options(), quiet).units


def test_too_little_stack_fails_the_check_but_keeps_the_build(tmp_path, capsys, unproven):
    needs("arm-none-eabi-gcc")
    model = save_keras(forecaster(), tmp_path / "small.keras")
    target = edited_target(tmp_path, ("\nstack_bytes = 8_192 ", "\nstack_bytes = 128 "))
    out = tmp_path / "out"
    assert main(["build", str(model), "--target", target, "--out", str(out), "-q"]) == 1
    firmware = json.loads((out / "build.json").read_text())["firmware"]
    assert not firmware["fits"]
    assert f"stack {firmware['stack_bytes'] - 128} bytes over" in capsys.readouterr().err


# --- plans -------------------------------------------------------------------------


def written_plan(path: Path, folder: Path, widths: dict[str, int], **top: Any) -> Path:
    """The build's plan with the widths of some units edited."""
    plan = json.loads((folder / "plan.json").read_text()) | top
    for unit in plan["units"]:
        unit["width"] = widths.get(unit["unit"], unit["width"])
    path.write_text(json.dumps(plan))
    return path


def test_an_edited_plan_is_used(tmp_path, builds, unproven):
    record, folder = builds("plain")
    narrow = {"gru_0/kernel/r": 4, "dense/kernel": 4}
    edited = written_plan(tmp_path / "plan.json", folder, narrow)
    again = made(tmp_path / "out", Project(forecaster(), HORIZON), plan_file=edited)
    assert {unit["unit"]: unit["width"] for unit in again["plan"]["units"] if unit["width"] == 4} == narrow
    assert again["plan"]["hash"] != record["plan"]["hash"]
    source = (tmp_path / "out" / "src" / "gru5.c").read_text()
    assert re.findall(r"/\* (\S+): \d+ x \d+, int4,", source) == ["gru_0_kernel_r", "dense_kernel"]
    assert again["plan"]["weight_bytes"] < record["plan"]["weight_bytes"]


def test_an_edited_plan_that_is_too_large_names_one_that_fits(tmp_path, builds, unproven):
    record, folder = builds("plain")
    edited = written_plan(tmp_path / "plan.json", folder, {"dense/kernel": 4})
    project = Project(forecaster(), HORIZON)
    budget = record["plan"]["int4_bytes"] + 20
    with pytest.raises(CheckFailed, match=f"more than the budget of {budget}") as caught:
        made(tmp_path / "out", project, plan_file=edited, flash_budget=budget)
    assert str(edited) in str(caught.value)
    wide = re.search(r"a plan with these units at int8 would fit: (.+)", str(caught.value))[1].split(", ")
    assert 0 < len(wide) < 7
    widths = {unit["unit"]: 8 if unit["unit"] in wide else 4 for unit in record["plan"]["units"]}
    fitting = written_plan(tmp_path / "plan.json", folder, widths)
    again = made(tmp_path / "out", project, plan_file=fitting, flash_budget=budget)
    assert again["plan"]["weight_bytes"] <= budget


def test_a_plan_brings_its_granularity(tmp_path, builds):
    per_layer = plan_image(Project(forecaster(), HORIZON), "x86", Options(granularity="layer"), quiet)
    (tmp_path / "plan.json").write_text(json.dumps(per_layer.to_json()))
    options = Options(plan_file=tmp_path / "plan.json")
    assert plan_image(Project(forecaster(), HORIZON), "x86", options, quiet).granularity == "layer"
    with pytest.raises(BadInput, match="the plan is per layer, asked for is tensor"):
        plan_image(Project(forecaster(), HORIZON), "x86", replace(options, granularity="tensor"), quiet)


@pytest.mark.parametrize(
    ("edit", "complaint"),
    [
        (lambda plan: plan["units"].pop(), "dense/kernel: missing"),
        (lambda plan: plan["units"][0].update(unit="gru_9/kernel/z"), "gru_9/kernel/z: not a unit of this model"),
        (lambda plan: plan["units"][1].update(width=6), "gru_0/kernel/r: width 6, must be 4 or 8"),
        (lambda plan: plan["units"][1].update(width="8"), "gru_0/kernel/r: width '8', must be 4 or 8"),
        (lambda plan: plan["units"].append(plan["units"][0] | {"width": 4}), "8 entries name 7 units"),
        (lambda plan: plan.update(schema=2), "plan schema 2, this version reads 1"),
        (lambda plan: plan.pop("units"), "not a plan"),
        (lambda plan: plan.update(units=[1, 2]), "not a plan"),
    ],
)
def test_a_spoilt_plan_is_refused(tmp_path, builds, edit, complaint):
    plan = json.loads((builds("plain")[1] / "plan.json").read_text())
    edit(plan)
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    with pytest.raises(BadInput, match=re.escape(complaint)):
        plan_image(Project(forecaster(), HORIZON), "x86", Options(plan_file=tmp_path / "plan.json"), quiet)


# --- missing tools -----------------------------------------------------------------


def hide(folder: Path, monkeypatch, *prefixes: str) -> None:
    """A PATH on which programs that start with these are not installed."""
    folder.mkdir()
    for place in ("/usr/bin", "/bin", "/usr/local/bin"):
        for entry in os.listdir(place):
            if not entry.startswith(prefixes) and not (folder / entry).exists():
                (folder / entry).symlink_to(Path(place, entry))
    monkeypatch.setenv("PATH", str(folder))


def test_without_the_compiler(tmp_path, monkeypatch, capsys, model_file):
    hide(tmp_path / "bin", monkeypatch, "arm-none-eabi-")
    assert main(["build", str(model_file), "--target", "cortex-m4", "--out", str(tmp_path / "out")]) == 3
    assert "apt install gcc-arm-none-eabi" in capsys.readouterr().err
    assert os.listdir(tmp_path) == ["bin"]


def test_without_qemu_the_build_says_so(tmp_path, monkeypatch, capsys, model_file):
    needs("arm-none-eabi-gcc")
    hide(tmp_path / "bin", monkeypatch, "qemu-")
    out = tmp_path / "out"
    assert main(["build", str(model_file), "--target", "cortex-m4", "--out", str(out), "--json"]) == 0
    printed = capsys.readouterr()
    record = json.loads(printed.out)
    links = record["chain"]
    assert (links["litert"], links["host"]) == ("exact", "exact")
    for engine in ("emulator", "application"):
        assert links[engine] == "not run"
        assert "qemu-system-arm is not installed" in links["details"][engine]
        assert f"note: {engine} was not run" in printed.err
    assert "apt install qemu-system-arm" in links["details"]["emulator"]
    assert record["cost"]["instructions_per_step"] is None
    assert record["cost"]["how"].startswith("not run")
    assert record["firmware"]["stack_measured_bytes"] is None
    assert (out / "firmware.elf").is_file()
    assert main(["emulate", str(out)]) == 3


def test_a_chain_that_differs_is_kept_and_fails_the_command(tmp_path, monkeypatch, capsys, model_file):
    """One weight of the emitted C flipped: the folder is there to look at, the exit code is 1."""

    def flip(*arguments: Any, **options: Any) -> dict[str, str]:
        texts = emit(*arguments, **options)
        changed = re.sub(r"(recurrent_zr_stored\[\d+\] = \{\s*0x0*)\w", r"\g<1>7", texts["small.c"])
        return texts | {"small.c": changed}

    emit = pipeline.emit_c
    monkeypatch.setattr(pipeline, "emit_c", flip)
    out = tmp_path / "out"
    assert main(["build", str(model_file), "--target", "x86", "--out", str(out)]) == 1
    printed = capsys.readouterr()
    detail = r"step 1: layer gru_0, gate z, unit 0: -?\d+ instead of -?\d+"
    assert re.search(rf"error: {re.escape(str(out))}: host differs from the integer reference: {detail}", printed.err)
    record = json.loads((out / "build.json").read_text())["chain"]
    assert (record["litert"], record["host"], record["emulator"]) == ("exact", "differs", "differs")
    assert record["application"] == "differs"
    assert re.fullmatch(detail, record["details"]["host"])
    assert "differs" in printed.out


def test_a_damaged_build_is_not_emulated(tmp_path, builds):
    folder = Path(shutil.copytree(builds("plain")[1], tmp_path / "out"))
    (folder / "firmware.elf").unlink()
    with pytest.raises(ToolMissing, match="no image for the emulator"):
        run_firmware(folder, 60)


def test_a_weight_budget_plans_what_cannot_be_deployed_without_refinement():
    plain = forecaster()
    gates = {"recurrent_activation": "relu"}
    layers = tuple(replace(x, **gates) if hasattr(x, "recurrent_activation") else x for x in plain.layers)
    project = Project(replace(plain, layers=layers), HORIZON)
    whole = plan_weights(project, load_target("x86"), 10**6, Options(), quiet)
    budget = (whole.int4_bytes + whole.int8_bytes) // 2
    with pytest.raises(Unsupported, match="relu") as caught:
        plan_weights(project, load_target("x86"), budget, Options(), quiet)
    assert "--no-refine" in caught.value.todo
    assert plan_weights(project, load_target("x86"), budget, Options(refine=False), quiet).weight_bytes <= budget
