"""What a device measured, against what it measured before: figures that may not get worse."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgetqs.errors import BadInput

SCHEMA = 1
#: Parts by which a figure may grow before it counts as worse.
TOLERANCE = {"error": 0.02, "flash_bytes": 0.02, "ram_bytes": 0.02, "stack_bytes": 0.05, "ticks_per_step": 0.05}


@dataclass(frozen=True, slots=True)
class Difference:
    """One figure that is not what the baseline holds."""

    figure: str
    before: Any
    now: Any
    worse: bool

    def __str__(self) -> str:
        change = ""
        if isinstance(self.before, int | float) and isinstance(self.now, int | float) and self.before:
            change = f" ({100 * (self.now / self.before - 1):+.1f}%)"
        return f"{self.figure}: {self.before} -> {self.now}{change}{' WORSE' if self.worse else ''}"


def baseline_of(record: dict[str, Any], report: dict[str, Any]) -> dict[str, Any]:
    """The figures of one run: ``record`` is the build's, ``report`` the suite's. Raises ``BadInput`` if any is missing.

    "error" holds the rollout error by horizon: against data where there was any, else the deviation from float.
    """
    rollout = record["rollout"]
    try:
        return {
            "schema": SCHEMA,
            "target": record["target"],
            "model_sha256": record["model"]["sha256"],
            "clock": report["hello"]["clock"],
            "error": [float(f"{value:.6g}") for value in rollout.get("rmse") or rollout["deviation"]],
            "flash_bytes": record["link"]["flash_bytes"],
            "ram_bytes": record["link"]["ram_bytes"],
            "stack_bytes": report["stack_peak_bytes"],
            "ticks_per_step": report["ticks_per_step"],
            "golden_sha256": report["golden_sha256"],
        }
    except KeyError as error:
        raise BadInput(
            f"the run did not measure {error}", "baseline", "run the whole suite; see what failed in it"
        ) from error


def read_baseline(path: Path) -> dict[str, Any]:
    """A baseline file. Raises ``BadInput`` for one that is none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise BadInput(
            f"cannot read the baseline: {error.strerror}", str(path), "make it with --update-baseline"
        ) from error
    except (ValueError, RecursionError) as error:
        raise BadInput(f"not JSON: {error}", str(path), "make it anew with --update-baseline") from error
    if not isinstance(content, dict) or content.get("schema") != SCHEMA:
        raise BadInput("not a baseline of this version", str(path), "make it anew with --update-baseline")
    return content


def with_tolerance(figures: dict[str, Any], before: dict[str, Any] | None) -> dict[str, Any]:
    """What is written: the figures, and the tolerances of the file before, which are for people to set."""
    return {**figures, "tolerance": {**TOLERANCE, **(before or {}).get("tolerance", {})}}


def compare(before: dict[str, Any], now: dict[str, Any]) -> list[Difference]:
    """All that differs; better figures are no fault."""
    tolerance = {**TOLERANCE, **before.get("tolerance", {})}
    found = [
        Difference(name, before.get(name), now[name], True)
        for name in ("target", "model_sha256", "clock", "golden_sha256")
        if before.get(name) != now[name]
    ]
    for name in ("flash_bytes", "ram_bytes", "stack_bytes", "ticks_per_step"):
        found += _figure(name, before.get(name), now[name], tolerance[name])
    errors = before.get("error", [])
    if len(errors) != len(now["error"]):
        return [*found, Difference("horizon", len(errors), len(now["error"]), True)]
    for step, (old, new) in enumerate(zip(errors, now["error"], strict=True), 1):
        found += _figure(f"error at step {step}", old, new, tolerance["error"])
    return found


def _figure(name: str, before: Any, now: Any, tolerance: float) -> list[Difference]:
    if before == now:
        return []
    worse = not isinstance(before, int | float) or now > before * (1 + tolerance)
    return [Difference(name, before, now, worse)]
