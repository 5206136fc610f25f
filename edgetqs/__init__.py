"""edgetqs: trained recurrent forecasters on microcontrollers.

    import edgetqs
    forecaster = edgetqs.load("weather.keras")
    scores = edgetqs.score(forecaster)
    plan = edgetqs.plan(forecaster, scores, budget_bytes=10_000, kernels="dsp")
    model = edgetqs.quantize(forecaster, plan.widths())

Names are imported when they are first used, so that ``import edgetqs`` is quick.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edgetqs.pipeline import build as build
    from edgetqs.planner import plan as plan
    from edgetqs.project import load as load
    from edgetqs.quantizer import quantize as quantize
    from edgetqs.tqs import score as score

__version__ = "0.1.0"

_HOMES = {
    "load": "edgetqs.project",
    "score": "edgetqs.tqs",
    "plan": "edgetqs.planner",
    "quantize": "edgetqs.quantizer",
    "build": "edgetqs.pipeline",
}
__all__ = ["__version__", "build", "load", "plan", "quantize", "score"]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'edgetqs' has no attribute {name!r}")
