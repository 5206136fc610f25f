"""The pytest plugin ``edgetqs``: fixtures that talk to a device which runs a build's link image.

    pytest --edgetqs-build build/weather-cortex-m4 --edgetqs-device qemu

``build``, ``dut`` and ``cable`` serve the suite in ``hil/`` and tests of one's own. Without a build, tests that ask for
them are skipped.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import edgetqs


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("edgetqs", "hardware in the loop")
    group.addoption("--edgetqs-build", metavar="FOLDER", help="A build of edgetqs, whose link image is on the device.")
    group.addoption(
        "--edgetqs-device", metavar="SPEC", default="qemu", help="qemu, serial:PATH:BAUD or tcp:HOST:PORT. [qemu]"
    )
    group.addoption("--edgetqs-board-id", metavar="NAME", help="What reports call the board. [its target and SPEC]")
    group.addoption("--edgetqs-steps", metavar="N", type=int, default=10000, help="Streaming steps. [10000]")
    group.addoption("--edgetqs-report", metavar="FILE", help="Write figures and outcomes as JSON.")


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_FIGURES] = {}
    config.stash[_OUTCOMES] = []


_FIGURES: pytest.StashKey[dict[str, Any]] = pytest.StashKey()
_OUTCOMES: pytest.StashKey[list[dict[str, Any]]] = pytest.StashKey()


@pytest.fixture(scope="session")
def build(request: pytest.FixtureRequest) -> Any:
    """The build of --edgetqs-build: ``record``, ``target``, ``model`` (the integer reference)."""
    from edgetqs.built import open_build

    folder = request.config.getoption("--edgetqs-build")
    if folder is None:
        pytest.skip("no build: give one with --edgetqs-build FOLDER")
    return open_build(Path(folder))


@pytest.fixture(scope="session")
def figures(request: pytest.FixtureRequest) -> dict[str, Any]:
    """Where tests put what they measured, for the report."""
    return request.config.stash[_FIGURES]


@pytest.fixture(scope="session")
def _transport(
    request: pytest.FixtureRequest,
    build: Any,
    figures: dict[str, Any],
    record_testsuite_property: Callable[[str, object], None],
) -> Iterator[Any]:
    from edgetqs.dut import Dut
    from edgetqs.transport import connect

    transport = connect(request.config.getoption("--edgetqs-device"), build.target, build.link_image)
    figures.update(identity(build, request.config))
    for key in ("board_id", "firmware_sha256", "tool_version"):
        record_testsuite_property(key, figures[key])
    figures["hello"] = _plain(Dut(transport).hello)
    yield transport
    transport.close()


@pytest.fixture
def dut(_transport: Any) -> Any:
    """The device, greeted, its stream reset."""
    from edgetqs.dut import Dut

    device = Dut(_transport)
    device.reset()
    return device


@pytest.fixture
def cable(_transport: Any, dut: Any) -> Callable[..., Any]:
    """``cable(rates, seed)``: the device over a bad cable (``edgetqs.faults``), greeted, its stream reset."""
    from edgetqs.dut import Dut
    from edgetqs.faults import Faulty

    def over(rates: Any, seed: int) -> Any:
        device = Dut(Faulty(_transport, rates, seed), patience_s=60)
        device.reset()
        return device

    return over


def identity(build: Any, config: pytest.Config) -> dict[str, Any]:
    """What a report is about."""
    device = config.getoption("--edgetqs-device")
    return {
        "board_id": config.getoption("--edgetqs-board-id") or f"{build.target.name}@{device}",
        "device": device,
        "target": build.target.name,
        "firmware_sha256": hashlib.sha256(build.link_image.read_bytes()).hexdigest(),
        "tool_version": edgetqs.__version__,
    }


def _plain(value: Any) -> dict[str, Any]:
    from dataclasses import asdict

    return asdict(value)


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    outcome = yield
    report = outcome.get_result()  # type: ignore[attr-defined]
    if report.when == "call" or report.outcome != "passed":
        entry = {"test": item.nodeid, "outcome": report.outcome, "seconds": round(report.duration, 3)}
        if report.outcome == "skipped" and isinstance(report.longrepr, tuple):
            entry["why"] = report.longrepr[2]
        elif report.failed:
            entry["why"] = str(report.longrepr)[-2000:]
        item.config.stash[_OUTCOMES].append(entry)


def pytest_sessionfinish(session: pytest.Session) -> None:
    path = session.config.getoption("--edgetqs-report")
    if path is not None:
        figures: dict[str, Any] = session.config.stash[_FIGURES]
        report = {"schema": 1, **figures, "tests": session.config.stash[_OUTCOMES]}
        Path(path).write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
