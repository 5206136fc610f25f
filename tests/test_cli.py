"""The command line as processes: exit codes, what goes to which stream, every command on a small model."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from files import save_keras
from models import random_forecaster

from edgetqs.target import list_targets

PROGRAM = Path(sys.executable).with_name("edgetqs")
COMMAND = (
    [str(PROGRAM)] if PROGRAM.exists() else [sys.executable, "-c", "import sys, edgetqs.cli as c; sys.exit(c.main())"]
)


def run(*arguments: Any, cwd: Path, code: int = 0, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [*COMMAND, *map(str, arguments)]
    done = subprocess.run(
        command, cwd=cwd, env={**os.environ, **environment}, capture_output=True, encoding="utf-8", check=False
    )
    assert done.returncode == code, done.stderr
    return done


@pytest.fixture
def here(tmp_path) -> Path:
    """A folder with a small model."""
    save_keras(random_forecaster("gru", 4, 2, 1, layers=1, window=8), tmp_path / "small.keras")
    return tmp_path


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """A folder in which a model was built for this computer, and what that printed."""
    folder = tmp_path_factory.mktemp("built")
    save_keras(random_forecaster("gru", 4, 2, 1, layers=1, window=8), folder / "small.keras")
    return folder, run("build", "small.keras", "--target", "x86", "--json", cwd=folder)


# --- the streams -------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments",
    [
        ["targets"],
        ["inspect", "small.keras"],
        ["score", "small.keras", "--horizon", 3],
        ["plan", "small.keras", "--weight-budget", 220, "--target", "x86"],
        ["init", "small.keras"],
    ],
    ids=lambda arguments: arguments[0],
)
def test_json_is_one_object_and_nothing_else(here, arguments):
    table = json.loads(run(*arguments, "--json", cwd=here).stdout)
    assert isinstance(table, dict)
    assert table


def test_json_of_a_build_and_of_its_emulation(built):
    folder, done = built
    assert json.loads(done.stdout) == json.loads((folder / "build" / "small-x86" / "build.json").read_text())
    ran = json.loads(run("emulate", "build/small-x86", "--json", cwd=folder).stdout)
    assert ran["exit_code"] == 0
    assert ran["output"].startswith("edgetqs ")


def test_targets_lists_every_device(tmp_path):
    text = run("targets", cwd=tmp_path).stdout
    assert all(re.search(rf"^  {target.name} ", text, re.MULTILINE) for target in list_targets())


def test_tables_are_plain_lines_of_any_length_where_there_is_no_terminal(tmp_path):
    text = run("targets", cwd=tmp_path).stdout
    assert run("targets", cwd=tmp_path, COLUMNS="20", TERM="dumb").stdout == text
    assert text.isascii()
    assert "\x1b" not in text


def on_a_terminal(cwd: Path, *arguments: str) -> str:
    """What a terminal of 80 columns shows."""
    if shutil.which("script") is None:
        pytest.skip("script is not installed")
    command = ["script", "-qec", shlex.join([*COMMAND, *arguments]), "/dev/null"]
    environment = {**os.environ, "COLUMNS": "80", "TERM": "xterm"}
    shown = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=True).stdout
    assert "\x1b[" in shown
    return re.sub(r"\x1b\[[0-9;?]*\w", "", shown)


def test_a_terminal_shows_names_in_one_piece(tmp_path):
    shown = on_a_terminal(tmp_path, "targets")
    assert all(re.search(rf"^ {target.name} ", shown, re.MULTILINE) for target in list_targets())
    assert max(map(len, shown.splitlines())) <= 80


def test_brackets_are_no_markup(here):
    run("init", "small.keras", cwd=here)
    config = here / "edgetqs.toml"
    config.write_text(config.read_text().replace('unit = ""', 'unit = "[m/s]"').replace('"x1"', '"wind [/]"'))
    shown = on_a_terminal(here, "inspect")
    assert "wind [/]" in shown
    assert shown.count("[m/s]") == 3


def test_quiet_silences_notes(here):
    assert "note: assumed" in run("inspect", "small.keras", cwd=here).stderr
    assert run("inspect", "small.keras", "-q", cwd=here).stderr == ""
    assert run("--quiet", "inspect", "small.keras", cwd=here).stderr == ""


@pytest.mark.parametrize("order", [["--json", "inspect", "small.keras"], ["inspect", "--json", "small.keras", "-q"]])
def test_global_flags_stand_anywhere(here, order):
    assert json.loads(run(*order, cwd=here).stdout)["parameters"] == 101


def test_what_follows_two_dashes_is_no_flag(here):
    assert "error: --json: no such file" in run("inspect", "--", "--json", cwd=here, code=2).stderr


def test_a_terminal_without_the_characters_of_a_curve(here):
    done = run("score", "small.keras", "--horizon", 3, cwd=here, PYTHONIOENCODING="ascii")
    assert re.search(r"dense/kernel +[\d.]+ .*\?", done.stdout)


@pytest.mark.parametrize("arguments", [["targets"], ["targets", "--json"], ["inspect", "small.keras"], ["--help"]])
def test_a_reader_that_goes_away_is_no_error(here, arguments):
    """As `edgetqs targets | head -1` does."""
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run([*COMMAND, *arguments, "-q"], cwd=here, stdout=writer, stderr=subprocess.PIPE, check=False)
    os.close(writer)
    assert (done.returncode, done.stderr) == (0, b"")


def test_a_reader_that_goes_away_changes_no_verdict(built):
    """A build that differs fails all the same."""
    code = """
import json, sys
from edgetqs import pipeline
from edgetqs.cli import main
figures = json.load(open("build/small-x86/build.json"))
figures["chain"].update(host="differs", details={"host": "step 7"})
pipeline.build = lambda *arguments: figures
sys.exit(main(["build", "small.keras", "--target", "x86"]))
"""
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=built[0], stdout=writer, stderr=subprocess.PIPE, check=False
    )
    os.close(writer)
    assert done.returncode == 1
    assert b"host differs from the integer reference: step 7" in done.stderr


def test_a_full_disk(here):
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [*COMMAND, "targets"], cwd=here, stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )
    assert done.returncode == 2
    assert "error: output: No space left on device" in done.stderr


# --- exit codes and messages ---------------------------------------------------------


FAILURES = [
    (2, ["inspect", "none.keras"], ["none.keras: no such file", "give the path of a trained model"]),
    (2, ["inspect", "small.txt"], ["small.txt", "cannot read a .txt file", "save the model as .keras"]),
    (2, ["inspect", "cut.keras"], ["cut.keras", "save the model again"]),
    (2, ["inspect", "small.keras", "--config", "none.toml"], ["none.toml: cannot be read", "`edgetqs init MODEL`"]),
    (2, ["inspect", "small.keras", "--config", "bad.toml"], ["2 mistakes", "bad.toml", "horizon", "inputs: unknown"]),
    (2, ["build", "small.keras", "--target", "cortex_m4"], ["no target 'cortex_m4'", "Did you mean cortex-m4?", "x86"]),
    (2, ["build", "small.keras", "--target", "none.toml"], ["none.toml: cannot read the target"]),
    (2, ["build", "small.keras", "--target", "x86", "--plan", "none.json"], ["none.json: not a plan", "edgetqs plan"]),
    (2, ["build", "small.keras", "--target", "x86", "--out", "small.keras/b"], ["small.keras"]),
    (2, ["build", "small.keras", "--target", "x86", "--out", "small.keras", "--force"], ["small.keras", "--out"]),
    (
        2,
        ["build", "small.keras", "--target", "x86", "--flash-budget", "0"],
        ["--flash-budget", "0 is not in the range"],
    ),
    (
        1,
        ["build", "small.keras", "--target", "x86", "--flash-budget", "10"],
        ["more than the budget of 10", "would do"],
    ),
    (1, ["plan", "small.keras", "--target", "x86", "--weight-budget", "10"], ["even at int4", "take a larger device"]),
    (2, ["plan", "small.keras", "--weight-budget", "9", "--flash-budget", "9"], ["exclude each other", "give one"]),
    (2, ["plan", "small.keras", "--target", "x86", "--out", "no/plan.json"], ["no/plan.json", "No such file"]),
    (2, ["plan", "small.keras"], ["no target", "--target"]),
    (2, ["plan", "small.keras", "--out", "bad.toml"], ["bad.toml: the file exists", "--force"]),
    (2, ["init", "small.keras", "--out", "no/such.toml"], ["no/such.toml", "No such file"]),
    (2, ["init", "small.keras", "--out", "bad.toml"], ["bad.toml: the file exists", "--force"]),
    (2, ["emulate", "none"], ["none: not a build", "make one with `edgetqs build`"]),
    (2, ["emulate", "."], [".: not a build"]),
    (2, ["frobnicate"], ["No such command 'frobnicate'"]),
    (2, ["score", "small.keras", "--granularity", "weight"], ["'weight' is not one of"]),
    (2, ["score", "small.keras", "--horizon", "0"], ["--horizon"]),
    (2, [], ["Usage: edgetqs"]),
]


@pytest.fixture(scope="module")
def failing(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("failing")
    model = save_keras(random_forecaster("gru", 4, 2, 1, layers=1, window=8), folder / "small.keras")
    (folder / "small.txt").write_text("not a model")
    (folder / "cut.keras").write_bytes(model.read_bytes()[:3000])
    (folder / "bad.toml").write_text("inputs = 3\n[rollout]\nhorizon = 0\n")
    return folder


@pytest.mark.parametrize(("code", "arguments", "words"), FAILURES, ids=[" ".join(case[1]) for case in FAILURES])
def test_failures_tell_what_where_and_what_to_do(failing, code, arguments, words):
    before = sorted(failing.iterdir())
    done = run(*arguments, cwd=failing, code=code)
    assert done.stdout == ""
    message = " ".join(done.stderr.split())
    assert [word for word in words if word.lower() not in message.lower()] == []
    assert "Traceback" not in done.stderr
    assert "defect" not in done.stderr
    assert [path for path in sorted(failing.iterdir()) if path not in before and path.name != "build"] == []


def test_debug_shows_the_traceback(failing):
    done = run("inspect", "none.keras", "--debug", cwd=failing, code=2)
    assert "Traceback (most recent call last)" in done.stderr
    assert "error: none.keras: no such file" in done.stderr


def test_a_missing_tool_is_3(here):
    (here / "bin").mkdir()
    done = run("build", "small.keras", "--target", "cortex-m4", cwd=here, code=3, PATH=str(here / "bin"))
    assert "arm-none-eabi-gcc is not installed" in done.stderr
    assert "apt install gcc-arm-none-eabi" in done.stderr
    assert not (here / "build").exists()


def test_ctrl_c(here):
    with subprocess.Popen(
        [*COMMAND, "build", "small.keras", "--target", "x86", "--out", "out"],
        cwd=here,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        deadline = time.monotonic() + 30
        while not any(here.glob(".out-*/src")) and time.monotonic() < deadline:
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        output, errors = process.communicate(timeout=30)
    assert (process.returncode, output) == (130, "")
    assert errors.endswith("interrupted\n")
    assert "Traceback" not in errors
    assert [path.name for path in here.iterdir()] == ["small.keras"]


# --- working with it -------------------------------------------------------------------


def test_without_a_model_the_sample_is_used_and_that_is_said(tmp_path):
    done = run("inspect", "--json", cwd=tmp_path)
    assert json.loads(done.stdout)["name"] == "weather"
    assert "note: no model given: this is the bundled sample" in done.stderr


def test_init_edit_inspect(here):
    run("init", "small.keras", cwd=here)
    path = here / "edgetqs.toml"
    text = path.read_text()
    run("init", "small.keras", cwd=here, code=2)
    assert path.read_text() == text
    for old, new in (
        ('name = "x1"\nunit = ""', 'name = "sun"\nunit = "W/m2"'),
        ('role = "held"', 'role = "known"'),
        ("mean = 0.0\nstd = 1.0\nrole", "mean = 3.5\nstd = 2.0\nrole"),
        ("horizon = 24", "horizon = 7"),
    ):
        assert old in text
        text = text.replace(old, new)
    path.write_text(text)
    for arguments in (["inspect"], ["inspect", "small.keras"]):  # found in this folder, and beside the model
        done = run(*arguments, "--json", cwd=here)
        table = json.loads(done.stdout)
        assert table["inputs"][1] == {"name": "sun", "unit": "W/m2", "mean": 3.5, "std": 2.0}
        assert table["feedback"] == {"pairs": [[0, 0]], "known": [1]}
        assert table["horizon"] == 7
        assert done.stderr == ""
    run("init", "small.keras", "--force", cwd=here)
    assert 'role = "held"' in path.read_text()


def test_a_plan_made_edited_and_built(here):
    done = run("plan", "small.keras", "--target", "x86", "--weight-budget", 220, "--out", "plan.json", cwd=here)
    assert "Pareto front" in done.stdout
    plan = json.loads((here / "plan.json").read_text())
    assert plan["weight_bytes"] <= 220
    assert {unit["width"] for unit in plan["units"]} == {4, 8}
    wide = {unit["unit"]: 12 - unit["width"] for unit in plan["units"]}
    for unit in plan["units"]:
        unit["width"] = wide[unit["unit"]]
    (here / "plan.json").write_text(json.dumps(plan))
    options = ["--target", "x86", "--plan", "plan.json", "--out", "out", "--rounding", "nearest", "-q"]
    done = run("build", "small.keras", *options, cwd=here)
    assert [line for line in done.stderr.splitlines() if not line.startswith("INFO: ")] == []  # LiteRT's own
    assert dict(re.findall(r"^  (\S+/\S+) +int(\d)", done.stdout, re.MULTILINE)) == {
        name: str(width) for name, width in wide.items()
    }
    for line in ("C on this computer", "small.tflite", "what the firmware prints"):
        assert re.search(rf"{line}.* exact ", done.stdout)
    assert "nearest rounding" in done.stdout
    assert "all int4" in done.stdout
    assert "built out: link.elf, firmware.elf, small.tflite, src/, build.json" in done.stdout


def test_emulate_prints_what_the_firmware_prints(built):
    folder, _ = built
    text = run("emulate", "build/small-x86", cwd=folder).stdout
    assert text == (folder / "build" / "small-x86" / "output.txt").read_text()
    rows = [line for line in text.splitlines() if re.fullmatch(r"\d+\t-?\d+\.\d{3}", line)]
    assert len(rows) == 24


def test_version(tmp_path):
    import edgetqs

    assert run("--version", cwd=tmp_path).stdout == f"edgetqs, version {edgetqs.__version__}\n"
