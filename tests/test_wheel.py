"""The wheel, installed away from the checkout: everything that it needs is inside."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from files import save_keras
from models import random_forecaster

from edgetqs.target import list_targets

ROOT = Path(__file__).parents[1]
PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check"]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    command = [*PIP, "wheel", str(ROOT), "--no-deps", "--quiet", "--wheel-dir", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if "Could not find a version that satisfies the requirement hatchling" in done.stderr:
        pytest.skip("no network to fetch hatchling from")
    assert done.returncode == 0, done.stderr
    (made,) = folder.glob("*.whl")
    return made


@pytest.fixture(scope="module")
def installed(wheel) -> Path:
    """A folder for PYTHONPATH that holds what the wheel brings."""
    folder = wheel.parent / "installed"
    subprocess.run([*PIP, "install", "--no-deps", "--quiet", "--target", str(folder), str(wheel)], check=True)
    return folder


def interpreter(version: str) -> str:
    """A Python of that version, from the PATH or from pyenv."""
    versions = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    for python in (shutil.which(f"python{version}"), *sorted(versions.glob(f"{version}.*/bin/python"))):
        if python and subprocess.run([python, "-c", "import venv"], capture_output=True, check=False).returncode == 0:
            return str(python)
    pytest.skip(f"there is no Python {version}")


def run(installed: Path, *command: str, cwd: Path) -> str:
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_wheel_holds_the_package_and_nothing_else(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = {Path(name) for name in archive.namelist()}
    assert {path.parts[0].partition("-")[0] for path in names} == {"edgetqs"}
    for folder in ("edgetqs", "edgetqs/runtime", "edgetqs/sample", "templates", "targets", "hil"):
        inside = Path(folder) if folder.startswith("edgetqs") else Path("edgetqs", folder)
        here = {inside / path.name for path in (ROOT / folder).iterdir() if path.is_file()}
        assert here
        assert here <= names


def test_it_is_the_wheel_that_runs(installed, tmp_path):
    code = "import edgetqs.paths as p; print(p.__file__, *map(p.data_dir, ['runtime', 'templates', 'targets', 'hil']))"
    where = run(installed, sys.executable, "-c", code, cwd=tmp_path).split()
    assert len(where) == 5
    assert all(Path(path).is_relative_to(installed) for path in where)


def test_targets(installed, tmp_path):
    listed = json.loads(run(installed, sys.executable, "-m", "edgetqs", "targets", "--json", cwd=tmp_path))
    assert [target["name"] for target in listed["targets"]] == [target.name for target in list_targets()]


def test_the_sample(installed, tmp_path):
    program = str(installed / "bin" / "edgetqs")
    assert json.loads(run(installed, program, "inspect", "--json", cwd=tmp_path))["name"] == "weather"


def test_a_build(installed, tmp_path):
    program = str(installed / "bin" / "edgetqs")
    build(program, installed, tmp_path)
    assert "none failed" in run(installed, program, "hil", "build/small-x86", "--steps", "20", cwd=tmp_path)


@pytest.mark.parametrize("version", ["3.11", "3.12", "3.13", "3.14"])
def test_a_build_with_what_the_wheel_requires_alone(version, wheel, tmp_path):
    """No test tools, no TensorFlow, no checkout."""
    python, fresh = interpreter(version), tmp_path / "venv"
    run(Path(), python, "-m", "venv", str(fresh), cwd=tmp_path)
    run(Path(), str(fresh / "bin" / "pip"), "install", "--quiet", str(wheel), cwd=tmp_path)
    build(str(fresh / "bin" / "edgetqs"), Path(), tmp_path)


def build(program: str, installed: Path, tmp_path: Path) -> None:
    save_keras(random_forecaster("rnn", 4, 2, 1, layers=1, window=8), tmp_path / "small.keras")
    record = json.loads(run(installed, program, "build", "small.keras", "--target", "x86", "--json", cwd=tmp_path))
    assert set(record["chain"]["details"]) == {"litert", "host", "emulator", "application"}
    assert {record["chain"][engine] for engine in record["chain"]["details"]} == {"exact"}
