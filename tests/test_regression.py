"""Every bug that was fixed, from its folder in tests/regression: see the README there."""

from __future__ import annotations

import re
import shutil
import tomllib
from pathlib import Path

import pytest
from files import save_keras
from models import random_forecaster

from edgetqs.cli import main

FOLDERS = sorted(path.parent for path in (Path(__file__).parent / "regression").glob("*/case.toml"))


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_fixed_bug(folder, tmp_path, monkeypatch, capsys):
    case = tomllib.loads((folder / "case.toml").read_text())
    assert set(case) <= {"bug", "model", "step"}
    assert case["bug"]
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    model = case.get("model", {})
    if model:
        save_keras(random_forecaster(**{key: model[key] for key in model if key != "file"}), Path(model["file"]))
    for step in case["step"]:
        assert set(step) <= {"command", "exit", "stdout", "stderr", "never", "files"}
        code = main(step["command"])
        printed = capsys.readouterr()
        assert code == step.get("exit", 0), printed.err
        texts = {"stdout": (printed.out, step.get("stdout", [])), "stderr": (printed.err, step.get("stderr", []))}
        texts |= {name: (Path(name).read_text(), patterns) for name, patterns in step.get("files", {}).items()}
        for name, (text, patterns) in texts.items():
            for pattern in patterns:
                assert re.search(pattern, text, re.MULTILINE), f"{name} lacks {pattern}:\n{text}"
        for pattern in step.get("never", []):
            assert not re.search(pattern, printed.out + printed.err)


def test_there_are_cases():
    assert FOLDERS
