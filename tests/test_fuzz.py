"""What the fuzzer has found worth keeping, replayed: no crash, no hang, no memory beyond bounds, only our errors."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import fuzz
import pytest

from edgetqs.errors import BadInput

NAMES = sorted(folder.name for folder in fuzz.CORPUS.iterdir())


@pytest.fixture
def readers(tmp_path: Path) -> fuzz.Readers:
    return fuzz.Readers(tmp_path)


@pytest.mark.parametrize("name", NAMES)
def test_corpus(name: str) -> None:
    """In a process of its own, so that its memory can be measured."""
    command = [sys.executable, fuzz.__file__, "--replay", name, str(fuzz.CORPUS / name)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_reader_has_a_corpus_that_it_can_read(readers: fuzz.Readers) -> None:
    assert sorted(readers.table) == NAMES
    for name, read in readers.table.items():
        whole = 0
        for path in (fuzz.CORPUS / name).iterdir():
            try:
                read(path.read_bytes())
                whole += 1
            except Exception:
                continue
        assert whole, name


def test_the_corpus_is_small() -> None:
    assert sum(path.stat().st_size for path in fuzz.CORPUS.rglob("*") if path.is_file()) < 400_000


def failing(data: bytes) -> None:
    raise TypeError(f"not {data!r}")


def endless(data: bytes) -> None:
    end = time.process_time() + 0.3
    while time.process_time() < end:
        pass


def babbling(data: bytes) -> None:
    raise BadInput("x" * (fuzz.LONGEST_MESSAGE + 1))


@pytest.mark.parametrize(
    ("reader", "failure"), [(failing, "TypeError at "), (endless, "takes: 0."), (babbling, "an error of 20 thousand")]
)
def test_failures_are_seen(
    readers: fuzz.Readers, monkeypatch: pytest.MonkeyPatch, reader: Callable[[bytes], None], failure: str
) -> None:
    monkeypatch.setattr(fuzz, "LONGEST_S", 0.1)
    assert readers.failure("plan", b"{}") == ""  # an error of ours
    readers.table["plan"] = reader
    assert readers.failure("plan", b"{}").startswith(failure)


def test_a_replay_fails_by_its_exit_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "one").write_bytes(b"a,b\n")
    monkeypatch.setattr(fuzz, "MOST_MB", 1 << 20)  # whatever the tests before have taken
    assert fuzz.replay("csv", tmp_path) == 0
    monkeypatch.setattr(fuzz, "MOST_MB", 1)
    assert fuzz.replay("csv", tmp_path) == 1
    assert " MB\ncsv: 1 files, 1 failures" in capsys.readouterr().out


def test_changed_json_keeps_what_is_behind_it() -> None:
    data = (fuzz.CORPUS / "keras" / "lstm").read_bytes()
    changed = {fuzz.changed_json(data, random.Random(seed)) for seed in range(20)}
    assert len(changed) > 10
    assert all(one.partition(fuzz.SEAM)[2] == data.partition(fuzz.SEAM)[2] for one in changed)
    assert fuzz.changed_json(b"no JSON", random.Random(0)) == b"no JSON"


def test_messages_are_fit_for_a_terminal() -> None:
    assert str(BadInput("a\x1b[2Jb", "c\0", "d\ne")) == "c?: a?[2Jb\n  d\ne"
