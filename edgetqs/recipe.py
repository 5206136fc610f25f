"""Widths of a black box as a recipe of ai-edge-quantizer, and the file that it makes of them.

Each weight that ai-edge-quantizer can store as int4 or int8 with one scale a
channel, weight-only, is a unit of the plan; the operator computes in float on
dequantized weights, which is what the score measured. All other weights stay
as they are, count with their bytes, and are named with the reason.
"""

from __future__ import annotations

import contextlib
import io
import re
import warnings
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from edgetqs.blackbox import deviation, units
from edgetqs.errors import BadInput, CheckFailed, ToolMissing
from edgetqs.litert import quiet
from edgetqs.planner import Plan, Table, rounding_error
from edgetqs.tflite_forecaster import BlackBox
from edgetqs.tflite_weights import Constant, read_contents, values
from edgetqs.tqs import Score

#: Operators whose weights ai-edge-quantizer 0.10 stores as integers (weight-only), its name for them, and the widths.
QUANTIZED = {
    "FULLY_CONNECTED": ("FULLY_CONNECTED", (4, 8)),
    "CONV_2D": ("CONV_2D", (4, 8)),
    "BATCH_MATMUL": ("BATCH_MATMUL", (4, 8)),
    "EMBEDDING_LOOKUP": ("EMBEDDING_LOOKUP", (4, 8)),
    "DEPTHWISE_CONV_2D": ("DEPTHWISE_CONV_2D", (8,)),
    "TRANSPOSE_CONV": ("CONV_2D_TRANSPOSE", (8,)),
}
#: Bytes of a channel's float32 scale and of the int64 zero point that is always written beside it.
CHANNEL_BYTES = 12
#: ai-edge-quantizer looks at this much of the names of an operator's outputs.
LONGEST_SCOPE = 10000


@dataclass(frozen=True, slots=True)
class Kept:
    """A weight that stays as it is stored, and why."""

    unit: str
    kind: str
    bytes: int
    reason: str


@dataclass(frozen=True, slots=True)
class Applied:
    """The quantized file, how far its rollout is from the original's by step, and weights not at the planned width."""

    content: bytes
    original_bytes: int
    deviation: tuple[float, ...]
    missed: tuple[str, ...]

    @property
    def overall(self) -> float:
        return float(np.sqrt(np.mean(np.square(self.deviation))))


@dataclass(frozen=True, slots=True)
class Recipe:
    """The plan, what it leaves alone, and ``rules`` as ai-edge-quantizer reads them from JSON."""

    plan: Plan
    kept: tuple[Kept, ...]
    rules: tuple[dict[str, Any], ...]

    applied: Applied | None = None

    @property
    def content(self) -> bytes:
        """The quantized file; only of a recipe that was applied."""
        assert self.applied is not None
        return self.applied.content

    def to_json(self) -> dict[str, Any]:
        table = self.plan.to_json() | {"kept": [asdict(one) for one in self.kept], "rules": list(self.rules)}
        done = self.applied
        if done is None:
            return table
        applied = {
            "bytes": len(done.content),
            "original_bytes": done.original_bytes,
            "deviation": done.deviation,
            "missed": done.missed,
        }
        return table | {"applied": applied}

    def lines(self, path: str) -> list[str]:
        """What is left alone and, where it was applied, what came of it; ``path`` is where that was written."""
        found = [f"kept as {one.kind}: {one.unit} ({one.bytes} B): {one.reason}" for one in self.kept]
        if self.applied is not None:
            done, horizon = self.applied, len(self.applied.deviation)
            found.append(
                f"wrote {path}: {len(done.content)} B (was {done.original_bytes} B), measured deviation "
                f"{done.overall:.2%} of the rollout's spread, {done.deviation[-1]:.2%} at step {horizon}"
            )
            found += [f"not as planned: {one}" for one in done.missed]
        return found


def plan_recipe(box: BlackBox, scores: Score, budget_bytes: int | None = None, *, points: int = 12) -> Recipe:
    """The best widths whose weights, scales and zero points fit ``budget_bytes``; biases and the file's
    structure are not counted.

    Raises ``CheckFailed`` with the smallest budget that would do.
    """
    reasons = [why_kept(constant) for constant in box.weights]
    kept = tuple(
        Kept(constant.name, constant.kind, constant.stored_bytes, reason)
        for constant, reason in zip(box.weights, reasons, strict=True)
        if reason
    )
    chosen = [k for k, reason in enumerate(reasons) if not reason]
    if not chosen:
        lines = "\n  ".join(f"{one.unit}: {one.reason}" for one in kept)
        raise BadInput("ai-edge-quantizer can store none of the weights as integers", box.forecaster.name, lines)
    constants = [box.weights[k] for k in chosen]
    stored, errors = [], []
    for constant, k in zip(constants, chosen, strict=True):
        channels = _channels(box, constant)
        allowed = widths(constant)
        as_stored = [4 if 4 in allowed else 8, 8]
        stored.append([(constant.size * width + 7) // 8 + CHANNEL_BYTES * len(channels) for width in as_stored])
        errors.append([scores.units[k].sensitivity * rounding_error(channels, width) for width in as_stored])
    every = units(box)
    table = Table(
        "tensor",
        "litert",
        tuple(every[k] for k in chosen),
        tuple(scores.units[k].tqs for k in chosen),
        np.array(stored),
        np.array(errors),
        sum(one.bytes for one in kept),
    )
    narrow = [4 in widths(constant) for constant in constants]
    picked = [width if can else 8 for width, can in zip(table.solve(budget_bytes), narrow, strict=True)]
    plan = replace(table.planned(picked), budget_bytes=budget_bytes, front=table.front(points))
    rules = [_rule(constant, width) for constant, width in zip(constants, picked, strict=True)]
    return Recipe(plan, kept, tuple(rule for own in rules for rule in own))


def widths(constant: Constant) -> tuple[int, ...]:
    """The widths that every operator reading the weight can be given."""
    sets = [set(QUANTIZED[use.operator][1]) if use.operator in QUANTIZED else set() for use in constant.uses]
    return tuple(sorted(set.intersection(*sets)))


def why_kept(constant: Constant) -> str:
    """Why ai-edge-quantizer leaves a weight as it is; "" if it does not."""
    if constant.kind != "float32":
        return f"is {constant.kind} already"
    if not widths(constant):
        readers = sorted({use.operator for use in constant.uses if use.operator not in QUANTIZED})
        return f"{', '.join(readers)} cannot be given integer weights"
    if not all(use.direct for use in constant.uses):
        return "does not reach its operator directly"
    if len({use.axis for use in constant.uses}) > 1:
        return "its operators want scales along different axes"
    if not all(_scope(use.outputs) for use in constant.uses):
        return "its operator's output has no name to find it by"
    return ""


def _channels(box: BlackBox, constant: Constant) -> np.ndarray:
    """(channels, weights of each), as the scales go."""
    weights = values(box.content, constant)
    axis = constant.uses[0].axis
    return np.moveaxis(weights, axis, 0).reshape(weights.shape[axis], -1)


def _scope(outputs: tuple[str, ...]) -> str:
    return "".join(f"{name};" for name in outputs if name)[:LONGEST_SCOPE]


def _rule(constant: Constant, width: int) -> list[dict[str, Any]]:
    """One rule for each kind of operator that reads the weight."""
    scopes: dict[str, list[str]] = {}
    for use in constant.uses:
        scopes.setdefault(QUANTIZED[use.operator][0], []).append(re.escape(_scope(use.outputs)))
    return [
        {
            "regex": f"^(?:{'|'.join(dict.fromkeys(found))})$",
            "operation": operation,
            "algorithm_key": "min_max_uniform_quantize",
            "op_config": {
                "weight_tensor_config": {
                    "num_bits": width,
                    "symmetric": True,
                    "granularity": "CHANNELWISE",
                    "dtype": "INT",
                },
                "compute_precision": "FLOAT",
                "explicit_dequantize": True,
                "skip_checks": False,
                "min_weight_elements": 0,
            },
        }
        for operation, found in scopes.items()
    ]


def apply(box: BlackBox, recipe: Recipe, horizon: int) -> Recipe:
    """The recipe with the file that ai-edge-quantizer makes by it, rolled out beside the original.

    Raises ``ToolMissing`` where it is not installed, ``CheckFailed`` with its
    own words where it refuses.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from ai_edge_quantizer import quantizer
    except ImportError as error:
        todo = "pip install 'edgetqs[recipe]'"
        raise ToolMissing(f"ai-edge-quantizer cannot be imported ({error})", "--apply", todo) from error
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), quiet():
        warnings.simplefilter("ignore")
        try:
            made = quantizer.Quantizer(bytearray(box.content), list(recipe.rules))
            content = bytes(made.quantize(enable_progress_report=False).quantized_model or b"")
        except Exception as error:  # whatever it raises is its verdict on the model
            raise CheckFailed(
                f"ai-edge-quantizer refuses the model: {type(error).__name__}: {error}", box.forecaster.name
            ) from error
    found = {constant.tensors[0]: constant.kind for constant in read_contents(content, "the quantized file").weights}
    tensors = {constant.name: constant.tensors[0] for constant in box.weights}
    missed = [
        f"{unit.unit}: planned int{unit.width}, stored as {found.get(tensors[unit.unit], 'something else')}"
        for unit in recipe.plan.units
        if found.get(tensors[unit.unit]) != f"int{unit.width}"
    ]
    applied = Applied(content, len(box.content), deviation(box, content, horizon), tuple(missed))
    return replace(recipe, applied=applied)
