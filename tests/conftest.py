"""Makes ``from models import ...`` and the modules in bench/ and tools/ work from every folder of tests."""

import os
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
sys.path += [str(Path(__file__).parents[1] / folder) for folder in ("bench", "tools")]


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    """In CI every emulator and TensorFlow is there: a skip of what needs them is a failure."""
    outcome = yield
    report = outcome.get_result()
    marked = [name for name in ("qemu", "tensorflow") if item.get_closest_marker(name)]
    if report.skipped and marked and os.environ.get("EDGETQS_CI") and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        report.longrepr = f"skipped, although CI requires {marked[0]}: {report.longrepr}"
