"""Trajectory-based Quantization Sensitivity: how a weight error grows over a rollout.

For a unit l with weights W, Gaussian directions d with |d| = eps |W|, both
signs, run through the same histories from reset and T steps on from there,

    G(T) = E[ 1/T sum_t mean_o (y_t(W +- d) - y_t(W))_o^2 / s_o^2 ] / |d|^2

with s the spread of the unperturbed rollouts. Forward passes only; no
bit-width, no quantizer, no data. The local score is the same for one
perturbed step from the reference's own states; G(T) over the local score is
the amplification by the dynamics.

The method follows the abstract of arXiv 2606.13300; DESIGN.md tells what is
reconstruction.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from edgetqs.model import Forecaster, Merge
from edgetqs.rollout import (
    Cell,
    State,
    Values,
    next_input,
    remembering,
    step,
    step_cell,
    taken,
    zero_cell_state,
    zero_state,
)
from edgetqs.trajectories import Trajectories, synthesise
from edgetqs.units import Unit, norm, units, weights

#: G(eps) and G(eps/2) must agree within this for a score to stand on a plateau.
PLATEAU = 0.10
#: Deviation, in units of the trajectory's spread, from which on it no longer grows linearly.
SATURATED = 0.3
#: Relative deviations below this are within float32 noise of a rollout.
NOISE = 2e-5
EPSILONS = (1e-2, 2.5e-3, 4e-2)


@dataclass(frozen=True, slots=True)
class UnitScore:
    """One unit's sensitivity; ``growth`` is G by step, ``flag`` says why to doubt it."""

    unit: Unit
    sensitivity: float
    local: float
    growth: tuple[float, ...]
    epsilon: float
    flag: str = ""
    saturates: int = 0  # steps before the deviation at this eps reaches ``SATURATED`` of the spread

    @property
    def tqs(self) -> float:
        """The figure shown to users: relative deviation of the rollout for a unit weight error."""
        return float(np.sqrt(self.sensitivity))

    @property
    def amplification(self) -> float:
        """G(T) over the local score: what the dynamics add."""
        return self.sensitivity / self.local if self.local > 0 else 0.0


@dataclass(frozen=True, slots=True)
class Score:
    """TQS of every unit, over ``horizon`` steps; ``scored`` of them before saturation.

    A forward pass is one step of one model, those of the histories included.
    """

    granularity: str
    horizon: int
    scored: int
    units: tuple[UnitScore, ...]
    spread: tuple[float, ...]
    trajectories: int
    collapsed: int
    diverged: int
    forward_passes: int

    @property
    def flagged(self) -> tuple[UnitScore, ...]:
        return tuple(unit for unit in self.units if unit.flag)


@dataclass(frozen=True, slots=True)
class Measured:
    """What was measured of one unit: G by step, the local score, and the eps and norm that it was measured with."""

    unit: Unit
    growth: Values
    local: float
    epsilon: float
    flag: str
    size: float


def score(
    forecaster: Forecaster,
    horizon: int = 24,
    granularity: str = "gate",
    *,
    directions: int = 4,
    trajectories: int = 48,
    seed: int = 0,
    start: Trajectories | None = None,
    perturb_burn_in: bool = True,
) -> Score:
    """The sensitivity of each unit.

    Without feedback ``horizon`` is ignored: see ``Forecaster.trajectory``.
    ``start`` replaces the synthetic starting states, for an audit with data.
    The perturbed weights run the histories too, as a deployed model does;
    without ``perturb_burn_in``, the ablation, they take over at the starting
    state. Raises ``BadInput`` where too few rollouts stay bounded.
    """
    if not forecaster.feedback.pairs:
        horizon = forecaster.trajectory
    if start is None:
        ahead = horizon + bool(forecaster.feedback.pairs)  # a closed loop's first output is already there
        start = synthesise(forecaster, ahead, count=trajectories, seed=seed, dtype=np.float32)
    history = None
    if perturb_burn_in and start.burn_in.shape[1] and (forecaster.feedback.pairs or not forecaster.windowed):
        history = History.of(start.stack, start.burn_in)
        start = replace(start, state=history.state, x=start.burn_in[:, -1], y=history.output)
    rng = np.random.default_rng(seed)
    reference, states, inputs = _reference(forecaster, start)
    states = tuple(tuple(value.reshape(-1, value.shape[-1]) for value in one) for one in states)
    one_step = step(start.stack, states, inputs.reshape(-1, inputs.shape[-1]))[0]

    measured: list[Measured] = []
    rollout = reference.shape[0] * reference.shape[1] + (history.steps * len(start.x) if history else 0)
    passes = rollout
    for unit in units(forecaster, granularity):
        size = norm(forecaster, unit)
        if size == 0:
            measured.append(Measured(unit, np.zeros(len(reference)), 0.0, EPSILONS[0], "all weights are zero", 0.0))
            continue
        deltas = _directions(forecaster, unit, directions, rng)

        def growth_at(scale: float, unit: Unit = unit, deltas: list[Values] = deltas) -> Values:
            stack = _perturbed(start.stack, unit, deltas, scale)
            after = None if history is None else history.again(stack, unit)
            return _growth(forecaster, start, reference, stack, scale, after)

        growth, epsilon, flag, evaluations = plateau(growth_at, size)
        tilted = _perturbed(start.stack, unit, deltas, epsilon * size)
        off = step(tilted, states, inputs.reshape(-1, inputs.shape[-1]))[0] - one_step
        local = float(np.mean((off / start.spread) ** 2)) / (epsilon * size) ** 2
        measured.append(Measured(unit, growth, local, epsilon, flag, size))
        passes += len(deltas[0]) * (evaluations * rollout + len(one_step))
    counts = (len(start.reference), start.collapsed, start.diverged, passes)
    return summarise(granularity, horizon, measured, start.spread, counts)


def summarise(
    granularity: str, horizon: int, measured: Sequence[Measured], spread: Values, counts: tuple[int, int, int, int]
) -> Score:
    """The score up to saturation; ``counts`` are trajectories, collapsed, diverged and forward passes."""
    saturates = [saturation(entry.growth, entry.epsilon * entry.size) for entry in measured]
    scored = max(1, min(saturates, default=horizon))
    return Score(
        granularity,
        horizon,
        scored,
        tuple(
            UnitScore(
                entry.unit,
                float(entry.growth[:scored].mean()),
                entry.local,
                tuple(map(float, entry.growth)),
                entry.epsilon,
                entry.flag,
                steps,
            )
            for entry, steps in zip(measured, saturates, strict=True)
        ),
        tuple(float(value) for value in spread),
        *counts,
    )


def _reference(forecaster: Forecaster, start: Trajectories) -> tuple[Values, State, Values]:
    """The unperturbed rollout: outputs (T, B, o) and the states and inputs each step began with."""
    state = start.state
    outputs: list[Values] = []
    before, inputs = [], []
    for x in _drive(forecaster, start, outputs, start.y):
        before.append(state)
        inputs.append(x)
        y, state = step(start.stack, state, x)
        outputs.append(y)
    states = tuple(
        tuple(np.stack([at[layer][part] for at in before]) for part in range(len(before[0][layer])))
        for layer in range(len(before[0]))
    )
    return np.stack(outputs), states, np.stack(inputs)


@dataclass(frozen=True, slots=True)
class History:
    """The unperturbed run through the histories, from reset.

    ``seen`` has what each layer takes at each step (W, B, columns); ``output``
    (B, outputs) and ``state`` are the last.
    """

    seen: tuple[Values, ...]
    output: Values
    state: State

    @property
    def steps(self) -> int:
        return len(self.seen[0])

    @staticmethod
    def of(stack: tuple[Cell, ...], inputs: Values) -> History:
        """From normalised inputs (B, W, inputs). Layers that only serve the output take the last step alone."""
        values, seen, ends = [np.moveaxis(inputs, 1, 0)], [], []
        last = remembering(stack)
        for index, one in enumerate(stack):
            if index == last:
                values = [value[-1:] for value in values]
            x = taken(one.layer, values)
            state, outputs = zero_cell_state(one, (inputs.shape[0],)), []
            for sample in x:
                y, state = step_cell(one, state, sample)
                outputs.append(y)
            seen.append(x)
            values.append(np.stack(outputs))
            ends.append(state)
        return History(tuple(seen), values[-1][-1], tuple(ends))

    def again(self, stack: tuple[Cell, ...], unit: Unit) -> tuple[Values, State]:
        """(last output, state) of a stack in which only the unit's weights differ.

        Layers below the unit see and do what they did, so they are not run
        again; nor are earlier steps where no layer from the unit on remembers
        them.
        """
        first = min(block.layer for block in unit.blocks)
        while isinstance(stack[first].layer, Merge) or getattr(stack[first].layer, "source", -1) < -1:
            first -= 1  # it reads beside the layer before it
        own = stack[first:]
        state = zero_state(own, self.seen[first].shape[1:2])
        for x in self.seen[first] if remembering(own) else self.seen[first][-1:]:
            y, state = step(own, state, x)
        return y, (*self.state[:first], *state)


def _drive(forecaster: Forecaster, start: Trajectories, outputs: list[Values], first: Values):
    """The input of each step; in a closed loop it reads the outputs appended meanwhile.

    ``first`` is the last output of the history.
    """
    if not forecaster.feedback.pairs:
        yield from np.moveaxis(start.future, -2, 0)
        return
    x, y = start.x, first
    for k in range(start.future.shape[-2] - 1):
        x = next_input(forecaster, x, y, start.future[..., k, :])
        yield x
        y = outputs[-1]


def _directions(forecaster: Forecaster, unit: Unit, count: int, rng: np.random.Generator) -> list[Values]:
    """One array a block, (2 * count, inputs, units): unit-norm directions over the whole unit, both signs."""
    drawn = [rng.standard_normal((count, *weights(forecaster, block).T.shape)) for block in unit.blocks]
    size = np.sqrt(sum(np.sum(d**2, axis=(1, 2), keepdims=True) for d in drawn))
    return [np.concatenate([d / size, -d / size]) for d in drawn]


def _perturbed(stack: tuple[Cell, ...], unit: Unit, deltas: Sequence[Values], size: float) -> tuple[Cell, ...]:
    """The stack with the unit's weights moved by ``size`` along each direction (a leading axis)."""
    changed = list(stack)
    for block, delta in zip(unit.blocks, deltas, strict=True):
        own = changed[block.layer]
        matrix = getattr(own, block.tensor)
        if matrix.ndim == 2:
            matrix = np.repeat(matrix[None], len(delta), axis=0)
        width = delta.shape[-1]
        matrix[..., block.gate * width : (block.gate + 1) * width] += (size * delta).astype(matrix.dtype)
        changed[block.layer] = replace(own, **{block.tensor: matrix})
    return tuple(changed)


def _growth(
    forecaster: Forecaster,
    start: Trajectories,
    reference: Values,
    stack: tuple[Cell, ...],
    size: float,
    history: tuple[Values, State] | None,
) -> Values:
    """G by step (T,) of one perturbed stack, from its own (output, state) after ``history``, else the reference's."""
    outputs: list[Values] = []
    first, state = history or (start.y, start.state)
    growth = []
    for t, x in enumerate(_drive(forecaster, start, outputs, first)):
        y, state = step(stack, state, x)
        outputs.append(y)
        growth.append(np.mean(((y - reference[t]) / start.spread) ** 2))
    return np.array(growth, np.float64) / size**2


def plateau(
    growth_at: Callable[[float], Values], size: float, epsilons: Sequence[float] | None = None
) -> tuple[Values, float, str, int]:
    """(growth, eps, flag, evaluations) at the first eps where G(eps) and G(eps/2) agree.

    ``growth_at`` gives G by step for perturbations of a norm; ``size`` is the unit's,
    ``epsilons`` replace ``EPSILONS``.
    """
    evaluations, best = 0, None
    for epsilon in epsilons or EPSILONS:
        full, half = growth_at(epsilon * size), growth_at(epsilon * size / 2)
        evaluations += 2
        whole = full.mean()
        if np.sqrt(whole) * epsilon * size < NOISE:
            best = best or (full, epsilon, "below float noise: the unit hardly reaches the output")
            continue
        disagreement = abs(half.mean() / whole - 1)
        if disagreement <= PLATEAU:
            return full, epsilon, "", evaluations
        if best is None or epsilon < best[1]:
            best = (full, epsilon, f"no plateau: G changes by {disagreement:.0%} when eps is halved")
    assert best is not None
    return *best, evaluations


def saturation(growth: Values, perturbation: float) -> int:
    """How many steps pass before the deviation by a perturbation of this norm reaches ``SATURATED`` of the spread."""
    deviation = np.sqrt(growth) * perturbation
    beyond = np.flatnonzero(deviation > SATURATED)
    return int(beyond[0]) if len(beyond) else len(growth)
