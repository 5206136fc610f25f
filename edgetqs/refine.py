"""Refinement: what isotropic scores cannot see.

The a priori plan knows how much each unit matters, not in which direction its
rounding errs, nor how the errors of two units meet. Refinement rolls out the
really quantized candidates on the model's own trajectories and improves the
plan by swaps, within the same bytes. No data is needed; the number of
rollouts depends on the model's size alone, so the same input gives the same plan.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from edgetqs.curvature import Curvature
from edgetqs.distill import dequantized
from edgetqs.errors import BadInput
from edgetqs.lesson import Lesson
from edgetqs.matrices import Style
from edgetqs.model import RECURRENT, Forecaster
from edgetqs.observe import Observation
from edgetqs.planner import WIDTHS, Plan, Table
from edgetqs.quantizer import quantize, rounded
from edgetqs.rollout import Cell, cells
from edgetqs.tqs import Score
from edgetqs.units import Block, blocks

#: Trajectories that candidates are rolled out on, and others for the last choice between the best.
SEARCHED, JUDGED, SEED = 96, 256, 11
FINALISTS = 12
#: So many of them are quantized as the build would, the a priori plan among them.
BUILT = 3
#: The a priori plan stays unless another one's squared error is below this part of its own: less may be chance.
MARGIN = 0.9
#: Multiplications that the search may spend, and the most and fewest rollouts that gives.
WORK, MOST, FEWEST = 1e11, 400, 150
#: How candidates are rounded along the trajectories during the search; the last word has ``quantize``.
STYLE = Style(0.02, False)
#: Plans in one batch, and the values of one layer's gates in it.
BATCH, BATCH_VALUES = 32, 2**19

Widths = tuple[int, ...]


def refine(
    forecaster: Forecaster,
    scores: Score,
    plan: Plan,
    rounding: str = "trajectory",
    *,
    observations: tuple[Observation, ...],
    metrics: tuple[Curvature, ...] | None = None,
) -> Plan:
    """The plan improved within ``plan.budget_bytes`` (its own bytes where there is no budget).

    ``metrics`` are needed for every rounding but ``nearest``. Never worse than
    the plan it starts from on the trajectories it is judged on; for ``learned``
    rounding that is said of the model before it learns.
    """
    table = Table.of(forecaster, scores, plan.kernels)
    budget = plan.weight_bytes if plan.budget_bytes is None else plan.budget_bytes
    bench = Bench.of(forecaster, table, scores.horizon, rounding, observations, metrics)
    start = tuple(unit.width for unit in plan.units)
    pool = Search(bench, table, min(budget, plan.int8_bytes)).run(start)
    finalists = list(dict.fromkeys([start, *pool]))
    errors = bench.errors(finalists, judged=True)
    if rounding == "nearest":
        best = int(np.argmin(errors))
        best = best if errors[best] < MARGIN * errors[0] else 0
    else:
        others = 1 + np.argsort(errors[1:], kind="stable")[: BUILT - 1]
        finalists = [finalists[k] for k in (0, *others)]
        errors = [bench.built(finalist, scores.horizon, observations, metrics) for finalist in finalists]
        best = int(np.argmin(errors))
    return replace(
        table.planned(list(finalists[best])),
        budget_bytes=plan.budget_bytes,
        front=plan.front,
        refined=float(np.sqrt(errors[best])),
    )


@dataclass(frozen=True, slots=True)
class Bench:
    """Rolls out quantized candidates.

    A gate's rows are rounded on their own, knowing only their own two widths,
    so every plan is put together from four models: ``variants`` by (width of
    the kernels, width of the recurrent kernels).
    """

    forecaster: Forecaster
    variants: dict[tuple[int, int], tuple[Cell, ...]]
    units: tuple[tuple[Block, ...], ...]
    lesson: Lesson
    judged: Lesson

    @staticmethod
    def of(
        forecaster: Forecaster,
        table: Table,
        horizon: int,
        rounding: str,
        observations: tuple[Observation, ...],
        metrics: tuple[Curvature, ...] | None,
    ) -> Bench:
        style = None if rounding == "nearest" else STYLE
        if style and metrics is None:
            raise BadInput(f"refining for {rounding} rounding needs the metrics", forecaster.name)
        variants = {}
        for pair in itertools.product(WIDTHS, WIDTHS):
            widths = {b: pair[b.tensor == "recurrent_kernel"] for b in blocks(forecaster)}
            model = rounded(forecaster, widths, observations, metrics, style)
            variants[pair] = cells(dequantized(forecaster, model), np.float32)
        return Bench(
            forecaster,
            variants,
            tuple(unit.blocks for unit in table.units),
            Lesson.of(forecaster, horizon, SEARCHED, SEED, np.float32),
            Lesson.of(forecaster, horizon, JUDGED, SEED + 1, np.float32),
        )

    def errors(self, plans: Sequence[Widths], *, judged: bool = False) -> list[float]:
        """Mean squared deviation of each plan's rollout from the float model's, in units of the spread."""
        lesson = self.judged if judged else self.lesson
        widest = max(one.kernel.shape[-1] for one in self.variants[4, 4])
        size = max(1, min(BATCH, BATCH_VALUES // (lesson.count * widest)))
        found: list[float] = []
        for first in range(0, len(plans), size):
            stack = self.stack(plans[first : first + size])
            found += [float(value) for value in lesson.errors(self.forecaster, stack)]
        return found

    def built(
        self,
        plan: Widths,
        horizon: int,
        observations: tuple[Observation, ...],
        metrics: tuple[Curvature, ...] | None,
    ) -> float:
        """The judged error of a plan with every layer in the style of rounding that suits it."""
        widths = {block: width for own, width in zip(self.units, plan, strict=True) for block in own}
        model = quantize(self.forecaster, widths, observations=observations, metrics=metrics, horizon=horizon)
        return self.judged.error(dequantized(self.forecaster, model))

    def stack(self, plans: Sequence[Widths]) -> tuple[Cell, ...]:
        """The plans' weights side by side on a leading axis."""
        chosen = [{b: w for own, w in zip(self.units, plan, strict=True) for b in own} for plan in plans]
        return tuple(self._cell(index, chosen) for index in range(len(self.forecaster.layers)))

    def _cell(self, index: int, chosen: list[dict[Block, int]]) -> Cell:
        plain = self.variants[4, 4][index]
        if not plain.layer.tensors:
            return plain
        gates = len(plain.layer.kernel)  # type: ignore[union-attr]
        recurrent = isinstance(plain.layer, RECURRENT)
        fields = ("kernel", "bias", *(("recurrent_kernel", "recurrent_bias") if recurrent else ()))
        made: dict[str, Any] = {name: np.repeat(getattr(plain, name)[None], len(chosen), axis=0) for name in fields}
        for k, widths in enumerate(chosen):
            for gate in range(gates):
                kernel = widths[Block(index, "kernel", gate)]
                source = self.variants[kernel, widths.get(Block(index, "recurrent_kernel", gate), kernel)][index]
                for name, values in made.items():
                    if values.shape[-1]:
                        size = values.shape[-1] // gates
                        rows = slice(gate * size, (gate + 1) * size)
                        values[k][..., rows] = getattr(source, name)[..., rows]
        for name in ("bias", "recurrent_bias"):
            if name in made:
                made[name] = made[name][:, None]  # against (plans, trajectories, gates * units)
        return replace(plain, **made)


def _products(one: Cell, lesson: Lesson) -> int:
    """Products of weights that one trajectory takes: layers over frames run only where an output is wanted."""
    frames = getattr(one.layer, "frames", None)
    steps = lesson.history.shape[1] + lesson.future.shape[1]
    return (one.kernel.size + one.recurrent_kernel.size) * (lesson.answers.shape[1] * frames.count if frames else steps)


class Search:
    """Starting plans from measured sensitivities, then swaps, remembering every rollout."""

    def __init__(self, bench: Bench, table: Table, budget: int) -> None:
        self.bench, self.table, self.budget = bench, table, budget
        self.count = len(table.units)
        self.known: dict[Widths, float] = {}
        lesson = bench.lesson
        products = sum(_products(one, lesson) for one in bench.variants[4, 4])
        self.most = int(np.clip(WORK / (products * lesson.count), FEWEST, MOST))

    def run(self, start: Widths) -> list[Widths]:
        """The best plans found, best first."""
        for plan in self._starts(start):
            self.measure([plan])
        seeds = sorted((p for p in self.known if self.fits(p)), key=self.known.__getitem__)[:2]
        for seed in seeds:
            self._climb(seed)
        return sorted((p for p in self.known if self.fits(p)), key=self.known.__getitem__)[:FINALISTS]

    def fits(self, plan: Widths) -> bool:
        return self.table.total(plan) <= self.budget

    def measure(self, plans: Iterable[Widths]) -> list[float]:
        """Errors of the plans; those beyond the most rollouts are infinite."""
        wanted = list(dict.fromkeys(plans))
        new = [plan for plan in wanted if plan not in self.known][: max(self.most - len(self.known), 0)]
        self.known |= dict(zip(new, self.bench.errors(new), strict=True))
        return [self.known.get(plan, np.inf) for plan in wanted]

    def _starts(self, start: Widths) -> list[Widths]:
        """The a priori plan, and exact plans from errors measured one unit at a time."""
        plans = [start]
        for base, other in ((8, 4), (4, 8)):
            uniform = (base,) * self.count
            single = [(*uniform[:k], other, *uniform[k + 1 :]) for k in range(self.count)]
            (whole,), apart = self.measure([uniform]), np.array(self.measure(single))
            if np.isfinite([whole, *apart]).all():
                gain = np.maximum(apart - whole if base == 8 else whole - apart, 0)
                errors = np.stack([gain, np.zeros(self.count)], axis=1)
                plans.append(tuple(replace(self.table, errors=errors).solve(self.budget)))
        if 2**self.count <= 256:
            plans += [p for p in itertools.product(WIDTHS, repeat=self.count) if self.fits(p)]
        return plans

    def _climb(self, plan: Widths) -> None:
        """The best neighbour, again and again until none is better; farther ones where no near one is."""
        while True:
            for neighbours in (self._near, self._far):
                found = [p for p in dict.fromkeys(neighbours(plan)) if self.fits(p)]
                errors = self.measure(found)
                if found and min(errors) < self.known[plan]:
                    plan = found[int(np.argmin(errors))]
                    break
            else:
                return

    @staticmethod
    def _near(plan: Widths) -> list[Widths]:
        """One unit widened or narrowed, or one of each.

        More bits do not always help: what one unit errs may make up for another.
        """
        narrow, wide = ([k for k, width in enumerate(plan) if width == own] for own in WIDTHS)
        single = [_set(plan, (k, 12 - width)) for k, width in enumerate(plan)]
        return single + [_set(plan, (j, 4), (k, 8)) for j in wide for k in narrow]

    @staticmethod
    def _far(plan: Widths) -> list[Widths]:
        """One unit narrowed for two widened, or two for one."""
        narrow, wide = ([k for k, width in enumerate(plan) if width == own] for own in WIDTHS)
        two = [_set(plan, (j, 4), (a, 8), (b, 8)) for j in wide for a, b in itertools.combinations(narrow, 2)]
        return two + [_set(plan, (k, 8), (a, 4), (b, 4)) for k in narrow for a, b in itertools.combinations(wide, 2)]


def _set(plan: Widths, *changes: tuple[int, int]) -> Widths:
    widths = list(plan)
    for unit, width in changes:
        widths[unit] = width
    return tuple(widths)
