"""Hardware in the loop: the suite in ``hil/`` against a device, its report, and the baseline."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgetqs.baseline import Difference, baseline_of, compare, read_baseline, with_tolerance
from edgetqs.built import open_build
from edgetqs.dut import open_dut
from edgetqs.errors import BadInput, CheckFailed, ToolMissing
from edgetqs.output import write_file
from edgetqs.paths import data_dir


@dataclass(frozen=True, slots=True)
class Wishes:
    """What the command line may ask for."""

    board_id: str | None = None
    steps: int | None = None
    select: str | None = None  # pytest's -k
    junit: Path | None = None
    report: Path | None = None
    baseline: Path | None = None
    update_baseline: bool = False


@dataclass(frozen=True, slots=True)
class Outcome:
    """The suite's report, and how it compares with the baseline (None: was not asked for)."""

    report: dict[str, Any]
    differences: tuple[Difference, ...] | None


def run(folder: Path, device: str, wishes: Wishes = Wishes()) -> Outcome:
    """Run the suite. Raises ``CheckFailed`` where a test fails or a figure is worse, ``ToolMissing`` without a device.

    What pytest prints goes to standard error.
    """
    try:
        import pytest
    except ImportError as error:
        raise ToolMissing("pytest is not installed", todo="pip install 'edgetqs[hil]'") from error
    if wishes.update_baseline and wishes.baseline is None:
        raise BadInput("--update-baseline needs --baseline FILE")
    if wishes.baseline and wishes.select:
        raise BadInput("a baseline needs the whole suite", "--baseline", "leave out -k")
    before = None
    if wishes.baseline and (wishes.baseline.exists() or not wishes.update_baseline):
        before = read_baseline(wishes.baseline)
    build = open_build(folder)
    open_dut(device, build.target, build.link_image).close()  # whatever is missing is told without pytest
    with tempfile.TemporaryDirectory() as scratch:
        path = wishes.report or Path(scratch) / "report.json"
        with _stdout_to_stderr(), _plugins_named():
            code = pytest.main(_arguments(folder, device, wishes, path))
        if not path.is_file():
            raise CheckFailed(f"pytest ended with exit code {int(code)}", str(data_dir("hil")))
        report = json.loads(path.read_text(encoding="utf-8"))
    failed = [entry["test"] for entry in report["tests"] if entry["outcome"] == "failed"]
    if failed or code != 0:
        raise CheckFailed(
            f"{len(failed)} of {len(report['tests'])} tests failed: {', '.join(failed)}" if failed else "no test ran",
            str(folder),
            "what failed stands above; --report FILE keeps it",
        )
    return Outcome(report, _judge(build.record, report, wishes, before))


def _judge(
    record: dict[str, Any], report: dict[str, Any], wishes: Wishes, before: dict[str, Any] | None
) -> tuple[Difference, ...] | None:
    if wishes.baseline is None:
        return None
    now = baseline_of(record, report)
    differences = tuple(compare(before, now)) if before is not None else ()
    if wishes.update_baseline:
        wishes.baseline.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps(with_tolerance(now, before), indent=1) + "\n"
        write_file(wishes.baseline, text.encode())
    elif any(difference.worse for difference in differences):
        raise CheckFailed(
            "worse than the baseline:\n  " + "\n  ".join(map(str, differences)),
            str(wishes.baseline),
            "--update-baseline takes these figures as the new ones",
        )
    return differences


def _arguments(folder: Path, device: str, wishes: Wishes, report: Path) -> list[str]:
    suite = data_dir("hil")
    made = [str(suite), "-c", str(suite / "pytest.ini"), "--rootdir", str(suite), "-p", "no:cacheprovider"]
    made += ["-p", "edgetqs.pytest_plugin", "--edgetqs-build", str(folder.resolve()), "--edgetqs-device", device]
    made += ["--edgetqs-report", str(report.resolve())]
    options = {"--edgetqs-board-id": wishes.board_id, "--edgetqs-steps": wishes.steps, "-k": wishes.select}
    made += [word for name, value in options.items() if value is not None for word in (name, str(value))]
    return [*made, *(["--junit-xml", str(wishes.junit.resolve())] if wishes.junit else [])]


@contextlib.contextmanager
def _plugins_named() -> Any:
    """No plugins but those that are named: what else is installed is nothing to the suite."""
    name = "PYTEST_DISABLE_PLUGIN_AUTOLOAD"
    kept = os.environ.get(name)
    os.environ[name] = "1"
    try:
        yield
    finally:
        if kept is None:
            del os.environ[name]
        else:
            os.environ[name] = kept


@contextlib.contextmanager
def _stdout_to_stderr() -> Any:
    with contextlib.redirect_stdout(sys.stderr):
        yield
