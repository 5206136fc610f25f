"""`edgetqs hil`: the suite on a build of this computer, over pipes, TCP and a serial line; baselines."""

import contextlib
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import tty
import xml.etree.ElementTree as xml
from pathlib import Path

import numpy as np
import pytest
from models import random_forecaster

from edgetqs import reference
from edgetqs.baseline import TOLERANCE, compare, with_tolerance
from edgetqs.built import open_build
from edgetqs.errors import BadInput, ToolMissing
from edgetqs.integer_file import load
from edgetqs.pipeline import Options, build
from edgetqs.project import Project

ROOT = Path(__file__).parents[1]
QUICK = ["--steps", "50"]

if shutil.which("gcc") is None:
    pytest.skip("gcc is not installed", allow_module_level=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("hil") / "out"
    forecaster = random_forecaster("gru", 6, 3, 1, layers=1, window=5, scaled=True)
    build(Project(forecaster, 4), "x86", out, Options(rounding="nearest", refine=False), str)
    return out


def hil(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "edgetqs", "hil", *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False, timeout=900)


@contextlib.contextmanager
def program(folder: Path):
    """The link image as (read, write) of bytes: what a board's UART would be."""
    with subprocess.Popen([folder / "link.elf"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0) as process:
        assert process.stdin is not None and process.stdout is not None
        try:
            yield process.stdout.fileno(), process.stdin.fileno()
        finally:
            process.kill()


def pump(source: int, target: int) -> None:
    """Carry bytes until one side closes."""

    def run() -> None:
        with contextlib.suppress(OSError):
            while data := os.read(source, 4096):
                while data:
                    data = data[os.write(target, data) :]

    threading.Thread(target=run, daemon=True).start()


@contextlib.contextmanager
def served(folder: Path):
    """The link image behind a TCP port, which takes one connection after the other."""
    with program(folder) as (out, into), socket.create_server(("127.0.0.1", 0)) as server:
        held: list[socket.socket] = []

        def back() -> None:
            with contextlib.suppress(OSError):
                while data := os.read(out, 4096):
                    with contextlib.suppress(OSError, IndexError):
                        held[-1].sendall(data)

        def accept() -> None:
            with contextlib.suppress(OSError):
                while True:
                    connection, _ = server.accept()
                    held.append(connection)
                    pump(connection.fileno(), into)

        threading.Thread(target=back, daemon=True).start()
        threading.Thread(target=accept, daemon=True).start()
        yield f"tcp:127.0.0.1:{server.getsockname()[1]}"


@contextlib.contextmanager
def wired(folder: Path):
    """The link image behind a pseudo terminal."""
    with program(folder) as (out, into):
        master, slave = os.openpty()
        tty.setraw(slave)
        pump(out, master)
        pump(master, into)
        yield f"serial:{os.ttyname(slave)}:115200"
        os.close(slave)


# --- the suite ------------------------------------------------------------------------


def test_the_whole_suite_and_its_reports(folder, tmp_path):
    done = hil(folder, *QUICK, "--report", tmp_path / "r.json", "--junit", tmp_path / "j.xml", "--board-id", "desk 3")
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "r.json").read_text())
    skipped = sum(entry["outcome"] == "skipped" for entry in report["tests"])
    assert re.fullmatch(rf"desk 3: \d+ tests, none failed, {skipped} skipped\n", done.stdout) and skipped
    outcomes = {entry["test"].split("::")[1].partition("[")[0]: entry["outcome"] for entry in report["tests"]}
    assert outcomes.pop("test_the_stack_stays_within_its_bound") == "skipped"  # Linux has no bound
    assert outcomes.pop("test_a_cut_cable") == "skipped"  # a pipe cannot be plugged in again
    assert set(outcomes.values()) == {"passed"} and len(outcomes) >= 18
    assert all(entry["why"] for entry in report["tests"] if entry["outcome"] == "skipped")
    assert (report["board_id"], report["target"], report["streaming_steps"]) == ("desk 3", "x86", 50)
    properties = {p.get("name"): p.get("value") for p in xml.parse(tmp_path / "j.xml").iter("property")}
    assert properties == {name: report[name] for name in ("board_id", "firmware_sha256", "tool_version")}


@pytest.mark.parametrize("line", [served, wired])
def test_over_tcp_and_a_serial_line(folder, line):
    with line(folder) as device:
        done = hil(folder, "--device", device, *QUICK, "-k", "not power_cycle and not restart")
    assert done.returncode == 0, done.stderr


def test_json_is_one_object(folder):
    done = hil("--json", folder, "-k", "test_speed")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert [entry["outcome"] for entry in report["tests"]] == ["passed"] and report["differences"] is None


def test_a_device_with_another_build_fails(folder, tmp_path):
    other = tmp_path / "other"
    forecaster = random_forecaster("gru", 6, 3, 1, layers=1, window=5, scaled=True, seed=1)
    build(Project(forecaster, 4), "x86", other, Options(rounding="nearest", refine=False), str)
    shutil.copy(other / "link.elf", tmp_path / "kept.elf")
    shutil.copy(folder / "link.elf", other / "link.elf")
    done = hil(other, *QUICK, "-k", "handshake or golden")
    assert done.returncode == 1
    assert "test_golden_vectors_bit_for_bit" in done.stderr and "instead of" in done.stderr


def test_a_damaged_program_fails(folder, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    content = bytearray((copy / "link.elf").read_bytes())
    content[content.index(b"edgetqs 0")] ^= 1
    (copy / "link.elf").write_bytes(content)
    done = hil(copy, *QUICK)
    assert done.returncode == 1 and "IMAGE_DAMAGED" in done.stderr


@pytest.mark.parametrize(
    "arguments, code, says",
    [
        (["--device", "tcp:127.0.0.1:9"], 3, "cannot connect"),
        (["--device", "serial:/dev/no-such-port:115200"], 3, "cannot open the serial port"),
        (["--device", "carrier-pigeon"], 2, "unknown device"),
        (["--update-baseline"], 2, "needs --baseline"),
        (["--baseline", "no-such.json"], 2, "cannot read the baseline"),
        (["--baseline", "no-such.json", "--update-baseline", "-k", "x"], 2, "whole suite"),
        (["-k", "no_such_test"], 1, "no test ran"),
    ],
)
def test_what_cannot_be_run_says_why(folder, tmp_path, arguments, code, says):
    done = hil(folder, *arguments)
    assert done.returncode == code and says in done.stderr and "Traceback" not in done.stderr


def test_a_folder_that_is_no_build(tmp_path):
    done = hil(tmp_path)
    assert done.returncode == 2 and "not a build" in done.stderr


def test_a_build_without_a_link_image(folder, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    (copy / "link.elf").unlink()
    with pytest.raises(ToolMissing, match="no image that answers"):
        _ = open_build(copy).link_image


def test_tests_of_ones_own_get_the_fixtures(folder, tmp_path):
    (tmp_path / "test_own.py").write_text(
        "def test_own(dut, build):\n"
        "    assert len(dut.step([0] * dut.hello.inputs)) == len(build.model.outputs)\n"
        "def test_not_asked_for(): pass\n"
    )
    command = [sys.executable, "-m", "pytest", "-p", "edgetqs.pytest_plugin", "-p", "no:cacheprovider", "-rs"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}

    def run(*more: object) -> str:
        done = subprocess.run(
            [*command, *map(str, more)], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
        )
        return done.stdout

    assert "2 passed" in run("--edgetqs-build", folder)
    assert "1 passed, 1 skipped" in run() and "no build: give one with --edgetqs-build" in run()


# --- baselines ------------------------------------------------------------------------


def test_a_baseline_is_kept_until_it_is_updated(folder, tmp_path):
    path = tmp_path / "baselines" / "x86.json"
    assert hil(folder, *QUICK, "--baseline", path, "--update-baseline").returncode == 0
    first = json.loads(path.read_text())
    first["tolerance"]["ticks_per_step"] = 50  # nanoseconds on a busy computer
    path.write_text(json.dumps(first))
    assert hil(folder, *QUICK, "--baseline", path).returncode == 0
    path.write_text(json.dumps({**first, "flash_bytes": first["flash_bytes"] * 0.9, "golden_sha256": "0" * 64}))
    done = hil(folder, *QUICK, "--baseline", path)
    assert done.returncode == 1
    assert re.search(r"flash_bytes: [\d.]+ -> \d+ \(\+11\.1%\) WORSE", done.stderr)
    assert "golden_sha256: 000" in done.stderr and "--update-baseline" in done.stderr
    done = hil(folder, *QUICK, "--baseline", path, "--update-baseline")
    assert done.returncode == 0 and "flash_bytes" in done.stdout
    again = json.loads(path.read_text())
    assert {**again, "ticks_per_step": 0} == {**first, "ticks_per_step": 0}


FIGURES = {
    "schema": 1,
    "target": "cortex-m4",
    "model_sha256": "m",
    "clock": "SysTick",
    "error": [0.1, 0.2],
    "flash_bytes": 1000,
    "ram_bytes": 500,
    "stack_bytes": 200,
    "ticks_per_step": 4000,
    "golden_sha256": "g",
}


@pytest.mark.parametrize(
    "change, worse",
    [
        ({}, []),
        ({"flash_bytes": 1020}, []),
        ({"flash_bytes": 1021}, ["flash_bytes"]),
        ({"flash_bytes": 900}, []),
        ({"ram_bytes": 511}, ["ram_bytes"]),
        ({"stack_bytes": 211}, ["stack_bytes"]),
        ({"ticks_per_step": 4201}, ["ticks_per_step"]),
        ({"error": [0.1, 0.205]}, ["error at step 2"]),
        ({"error": [0.05, 0.203]}, []),
        ({"error": [0.1]}, ["horizon"]),
        ({"golden_sha256": "h"}, ["golden_sha256"]),
        ({"clock": "DWT cycles"}, ["clock"]),
        ({"target": "cortex-m3"}, ["target"]),
    ],
)
def test_worse_is_worse_than_the_tolerance(change, worse):
    differences = compare(with_tolerance(FIGURES, None), {**FIGURES, **change})
    assert [difference.figure for difference in differences if difference.worse] == worse
    assert len(differences) == sum(FIGURES[name] != value for name, value in change.items()) + (
        1 if change.get("error", [0])[0] == 0.05 else 0
    )


def test_tolerances_are_the_files_own():
    before = {**FIGURES, "tolerance": {"flash_bytes": 0.5}}
    assert not any(difference.worse for difference in compare(before, {**FIGURES, "flash_bytes": 1500}))
    assert with_tolerance(FIGURES, before)["tolerance"] == {**TOLERANCE, "flash_bytes": 0.5}


def test_a_figure_that_the_baseline_lacks_is_worse():
    before = {name: value for name, value in FIGURES.items() if name != "ram_bytes"}
    assert [difference.figure for difference in compare(before, FIGURES)] == ["ram_bytes"]


# --- the model in the folder ----------------------------------------------------------


def test_the_model_is_read_back_as_it_was(folder):
    model = load(folder / "golden" / "model.npz")
    record = json.loads((folder / "build.json").read_text())
    assert model.model_sha256 == record["model"]["sha256"]
    x = np.arange(30).reshape(10, 3) * 500 - 7000
    outputs, _ = reference.run(model, reference.zero_state(model), x)
    assert outputs.any() and not any(matrix.weights.flags.writeable for _, _, matrix in model.matrices())


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"no file", None])
def test_a_file_that_holds_no_model(tmp_path, content):
    path = tmp_path / "model.npz"
    if content is None:
        np.savez(path, tree=np.array('{"kind": "Feedback", "fields": {"pairs": [], "known": []}}'))
    else:
        path.write_bytes(content)
    with pytest.raises(BadInput, match="not an integer model"):
        load(path)
