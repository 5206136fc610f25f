"""Widths within a budget: an exact optimisation over the scores.

    min sum_l,b x_lb G_l |Q_b(W_l) - W_l|^2   s.t. one width a unit, stored bytes within the budget

solved as a mixed-integer program by HiGHS. The plan is data: it is written to
JSON, may be edited by hand, and is read back.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from edgetqs.errors import BadInput, CheckFailed
from edgetqs.layout import BIAS_BYTES, MULTIPLIER_BYTES, layer_calls, packed_bytes, stored_width
from edgetqs.model import RECURRENT, Dense, Forecaster, Gru
from edgetqs.rounding import limit, nearest
from edgetqs.tqs import Score
from edgetqs.units import Block, Unit, units, weights

SCHEMA = 1
WIDTHS = (4, 8)


@dataclass(frozen=True, slots=True)
class PlannedUnit:
    """One unit's width; ``bytes`` as stored, ``tqs`` its score, ``error`` its share of the predicted error."""

    unit: str
    layer: str
    tensor: str
    gate: str
    width: int
    bytes: int
    tqs: float
    error: float


@dataclass(frozen=True, slots=True)
class Point:
    """One plan of the Pareto front: stored bytes against predicted relative deviation of the rollout."""

    weight_bytes: int
    predicted: float
    widths: str  # one digit a unit, in the order of the units


@dataclass(frozen=True, slots=True)
class Plan:
    """Widths of all units.

    ``predicted`` is the predicted relative deviation of the rollout (RMS) with
    nearest rounding, ``refined`` what refinement measured on its trajectories.
    """

    granularity: str
    kernels: str
    units: tuple[PlannedUnit, ...]
    blocks: tuple[tuple[Block, int], ...]
    weight_bytes: int
    int8_bytes: int
    int4_bytes: int
    budget_bytes: int | None
    predicted: float
    front: tuple[Point, ...] = ()
    refined: float | None = None

    def widths(self) -> dict[Block, int]:
        return dict(self.blocks)

    @property
    def hash(self) -> str:
        """Names the widths: 16 hexadecimal digits."""
        text = json.dumps([[unit.unit, unit.width] for unit in self.units])
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def to_json(self) -> dict[str, Any]:
        table = asdict(self)
        del table["blocks"]
        return {"schema": SCHEMA, "kind": "edgetqs plan", **table}


def plan(
    forecaster: Forecaster,
    scores: Score,
    budget_bytes: int | None = None,
    kernels: str = "portable",
    *,
    points: int = 0,
) -> Plan:
    """The best widths whose stored bytes fit ``budget_bytes`` (None: no limit).

    ``points`` asks for that many budgets' best plans besides, as the Pareto
    front. Raises ``CheckFailed`` with the smallest budget that would do.
    """
    table = Table.of(forecaster, scores, kernels)
    chosen = table.solve(budget_bytes)
    front = table.front(points) if points else ()
    return replace(table.planned(chosen), budget_bytes=budget_bytes, front=front)


def fixed(forecaster: Forecaster, scores: Score, widths: list[int], kernels: str) -> Plan:
    """A plan with these widths, one a unit of the scores."""
    return Table.of(forecaster, scores, kernels).planned(widths)


def read_plan(path: Path, forecaster: Forecaster, scores: Score, kernels: str) -> Plan:
    """A plan from JSON, perhaps edited: every unit of the scores' granularity with a width of 4 or 8.

    Bytes and predictions are computed anew. Raises ``BadInput`` naming every
    unit that is missing, unknown or has another width.
    """
    try:
        table = json.loads(Path(path).read_text(encoding="utf-8"))
        given = {str(entry["unit"]): entry["width"] for entry in table["units"]}
        granularity = table["granularity"]
    except (OSError, ValueError, RecursionError, KeyError, TypeError) as error:
        raise BadInput(f"not a plan: {error!r}", str(path), "write one with `edgetqs plan --out plan.json`") from error
    if table.get("schema") != SCHEMA:
        raise BadInput(f"plan schema {table.get('schema')!r}, this version reads {SCHEMA}", str(path))
    if granularity != scores.granularity:
        raise BadInput(
            f"the plan is per {granularity}, asked for is {scores.granularity}",
            str(path),
            f"--granularity {granularity}",
        )
    names = [entry.unit.name for entry in scores.units]
    mistakes = [f"{name}: missing" for name in names if name not in given]
    mistakes += [f"{name}: not a unit of this model" for name in given if name not in names]
    mistakes += [
        f"{name}: width {width!r}, must be 4 or 8"
        for name, width in given.items()
        if not (isinstance(width, int) and width in WIDTHS)
    ]
    if len(given) < len(table["units"]):
        mistakes.append(f"{len(table['units'])} entries name {len(given)} units: some are there twice")
    if mistakes:
        raise BadInput(f"{len(mistakes)} mistakes in the plan", str(path), "\n  ".join(mistakes))
    return fixed(forecaster, scores, [given[name] for name in names], kernels)


def granularity_of(path: Path) -> str:
    """The granularity a plan file was made at, "gate" if it does not tell."""
    try:
        return str(json.loads(Path(path).read_text(encoding="utf-8")).get("granularity", "gate"))
    except (OSError, ValueError, RecursionError, AttributeError):
        return "gate"


@dataclass(frozen=True, slots=True)
class Table:
    """Bytes and predicted squared error of each unit (rows) at each width (columns)."""

    granularity: str
    kernels: str
    units: tuple[Unit, ...]
    tqs: tuple[float, ...]
    bytes: np.ndarray
    errors: np.ndarray
    fixed_bytes: int

    @staticmethod
    def of(forecaster: Forecaster, scores: Score, kernels: str) -> Table:
        every = units(forecaster, scores.granularity)
        packed = [stored_width(width, _calls(forecaster), kernels) for width in WIDTHS]
        stored = [
            [sum(_block_bytes(forecaster, b, width, kernels) for b in u.blocks) for width in packed] for u in every
        ]
        errors = [
            [entry.sensitivity * sum(_block_error(forecaster, b, width) for b in entry.unit.blocks) for width in WIDTHS]
            for entry in scores.units
        ]
        return Table(
            scores.granularity,
            kernels,
            every,
            tuple(entry.tqs for entry in scores.units),
            np.array(stored),
            np.array(errors),
            _bias_bytes(forecaster),
        )

    def total(self, widths: list[int] | tuple[int, ...]) -> int:
        return self.fixed_bytes + int(sum(self.bytes[k, WIDTHS.index(w)] for k, w in enumerate(widths)))

    def predicted(self, widths: list[int] | tuple[int, ...]) -> float:
        return float(np.sqrt(sum(self.errors[k, WIDTHS.index(w)] for k, w in enumerate(widths))))

    def solve(self, budget_bytes: int | None) -> list[int]:
        from scipy.optimize import Bounds, LinearConstraint, milp

        count = len(self.units)
        smallest = self.total([4] * count)
        if budget_bytes is None or budget_bytes >= self.total([8] * count):
            return [8] * count
        if budget_bytes < smallest:
            raise CheckFailed(
                f"the weights need {smallest} bytes even at int4, {smallest - budget_bytes} more than the "
                f"{max(budget_bytes, 0)} bytes left for them",
                "plan",
                "take a larger device or budget, or train a smaller model",
            )
        # x[k] = 1 picks the wider width for unit k; scaled so that the solver's tolerances do not matter.
        gain = self.errors[:, 0] - self.errors[:, 1]
        extra = (self.bytes[:, 1] - self.bytes[:, 0]).astype(float)
        room = budget_bytes - smallest
        # The second term keeps units that gain nothing narrow.
        result = milp(
            -1e6 * gain / max(gain.max(), 1e-300) + 1e-6 * extra / extra.max(),
            constraints=[LinearConstraint(extra[None], -np.inf, room)],
            integrality=np.ones(count),
            bounds=Bounds(0, 1),
            options={"mip_rel_gap": 0.0},
        )
        if result.x is None:
            raise CheckFailed(f"the solver gave up: {result.message}", "plan", "try another granularity")
        return [8 if value > 0.5 else 4 for value in result.x]

    def front(self, points: int) -> tuple[Point, ...]:
        """The best plans of that many budgets between all int4 and all int8."""
        low, high = self.total([4] * len(self.units)), self.total([8] * len(self.units))
        budgets = {int(budget) for budget in np.linspace(low, high, points)}
        solved = {tuple(self.solve(budget)) for budget in sorted(budgets)}
        return tuple(
            sorted(
                (Point(self.total(w), self.predicted(w), "".join(map(str, w))) for w in solved),
                key=lambda point: (point.weight_bytes, point.predicted),
            )
        )

    def planned(self, widths: list[int]) -> Plan:
        count = len(self.units)
        rows = tuple(
            PlannedUnit(
                unit.name,
                unit.layer,
                unit.tensor,
                unit.gate,
                width,
                int(self.bytes[k, WIDTHS.index(width)]),
                self.tqs[k],
                float(self.errors[k, WIDTHS.index(width)]),
            )
            for k, (unit, width) in enumerate(zip(self.units, widths, strict=True))
        )
        return Plan(
            self.granularity,
            self.kernels,
            rows,
            tuple((block, width) for unit, width in zip(self.units, widths, strict=True) for block in unit.blocks),
            self.total(widths),
            self.total([8] * count),
            self.total([4] * count),
            None,
            self.predicted(widths),
        )


def _block_bytes(forecaster: Forecaster, block: Block, width: int, kernels: str) -> int:
    rows, columns = weights(forecaster, block).shape
    return packed_bytes(rows, columns, width, kernels) + MULTIPLIER_BYTES * rows


def _calls(forecaster: Forecaster) -> list[tuple[int, int, int]]:
    """As ``layout.stored_width`` asks for them."""
    found = []
    for layer in forecaster.layers:
        if isinstance(layer, (Dense, *RECURRENT)):
            times = layer.frames.count if layer.frames else 1
            gates, many, columns = layer.kernel.shape
            found += layer_calls(gates, many, columns, recurrent=not isinstance(layer, Dense), times=times)
    return found


def _block_error(forecaster: Forecaster, block: Block, width: int) -> float:
    return rounding_error(weights(forecaster, block).astype(np.float64), width)


def rounding_error(matrix: np.ndarray, width: int) -> float:
    """|Q(W) - W|^2 of a matrix (rows, columns) with one scale a row and nearest rounding."""
    limits = np.full(len(matrix), float(limit(width)))
    scales = np.maximum(np.abs(matrix).max(axis=1) / limits, 1e-30)
    return float(np.sum((nearest(matrix, scales, limits) * scales[:, None] - matrix) ** 2))


def _bias_bytes(forecaster: Forecaster) -> int:
    total = 0
    for layer in forecaster.layers:
        total += layer.bias.size * BIAS_BYTES if hasattr(layer, "bias") else 0
        if isinstance(layer, Gru) and layer.reset_after:
            total += layer.recurrent_bias.shape[1] * BIAS_BYTES
    return total
