"""TQS of any ``.tflite`` forecaster, from outside: weights are perturbed in the file, rollouts run in LiteRT.

The forecaster is a function of a window of inputs. A closed loop slides the
window: the next input is made of the last output as everywhere else, the
window moves on by one sample. There is no state to carry, so a perturbed
model sees its whole history with perturbed weights. Direction, eps, plateau,
noise and saturation are those of ``tqs.py``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from edgetqs.errors import BadInput
from edgetqs.project import Project
from edgetqs.rollout import Values, next_input, normalise
from edgetqs.tflite_forecaster import BlackBox, Engine, Floats32, load
from edgetqs.tflite_weights import Constant, exchanged, values
from edgetqs.tqs import EPSILONS, Measured, Score, plateau, summarise
from edgetqs.trajectories import select_alive, spread_of, synthetic_inputs
from edgetqs.units import Unit

#: Perturbations of integer weights: below these, most of them round away.
INTEGER_EPSILONS = (4e-2, 8e-2)
#: The most windows that are taken from data.
MOST_CASES = 48


def scored(
    model: Path | None,
    config: Path | None,
    granularity: str | None = None,
    horizon: int | None = None,
    say: Callable[[str], None] = lambda message: None,
) -> tuple[Project, BlackBox, Score]:
    """What the command line starts with: the project, its horizon replaced if one is given, the box, its score."""
    if granularity not in (None, "tensor"):
        raise BadInput("a black box has tensors, no gates and no layers", todo="leave out --granularity")
    project, box = load(model, config)
    project = project if horizon is None else replace(project, horizon=horizon)
    say("scoring")
    return project, box, score(box, project.horizon)


@dataclass(frozen=True, slots=True)
class Starts:
    """Windows (B, W, inputs) to roll out from, inputs to come (B, .., inputs), and the unperturbed rollout.

    ``reference`` is (B, T, outputs), ``seen`` the T windows that led to it.
    """

    windows: Floats32
    future: Floats32
    reference: Floats32
    seen: tuple[Floats32, ...]
    spread: Values
    collapsed: int
    diverged: int


def _roll(engine: Engine, windows: Floats32, future: Floats32, horizon: int) -> tuple[Floats32, tuple[Floats32, ...]]:
    """(outputs (B, horizon, outputs), the window before each step and, as far as ``future`` goes, the one after)."""
    forecaster = engine.box.forecaster
    outputs, seen = [], [windows]
    for t in range(horizon):
        y = engine(windows)
        outputs.append(y)
        if t < future.shape[1]:
            x = future[:, t]
            if forecaster.feedback.pairs:
                x = next_input(forecaster, windows[:, -1], y, x).astype(np.float32)
            windows = np.concatenate([windows[:, 1:], x[:, None]], axis=1)
            seen.append(windows)
    return np.stack(outputs, axis=1), tuple(seen)


def synthetic_starts(box: BlackBox, horizon: int, count: int, seed: int) -> Starts:
    """Windows of synthetic inputs; with feedback, the second half after a closed loop of ``horizon`` steps."""
    forecaster = box.forecaster
    closed = bool(forecaster.feedback.pairs)
    rng = np.random.default_rng(seed)
    length = forecaster.window + (2 * horizon if closed else horizon - 1)
    inputs = synthetic_inputs(len(forecaster.inputs), count, length, forecaster.input_range, rng).astype(np.float32)
    windows, future = inputs[:, : forecaster.window], inputs[:, forecaster.window :]
    if closed:
        late = slice(count - count // 2, None)
        _, seen = _roll(Engine(box, box.content), windows[late], future[late, :horizon], horizon)
        windows, ahead = windows.copy(), future[:, :horizon].copy()
        windows[late], ahead[late] = seen[-1], future[late, horizon:]
        future = ahead
    return _starts(box, windows, future, horizon)


def data_starts(box: BlackBox, data: Values, horizon: int) -> Starts:
    """Windows evenly spread over a time series (samples, inputs) in physical units."""
    window = box.forecaster.window
    last = len(data) - window - horizon
    if last < 0:
        fact = f"the data has {len(data)} samples, a window and a forecast need {window + horizon}"
        raise BadInput(fact, box.forecaster.name, "give a longer series or a shorter horizon")
    first = np.unique(np.linspace(0, last, MOST_CASES).astype(int))
    cases = normalise(box.forecaster, np.stack([data[k : k + window + horizon] for k in first])).astype(np.float32)
    return _starts(box, cases[:, :window], cases[:, window:], horizon)


def _starts(box: BlackBox, windows: Floats32, future: Floats32, horizon: int) -> Starts:
    future = future[:, : horizon - 1]
    with np.errstate(over="ignore", invalid="ignore"):
        reference, seen = _roll(Engine(box, box.content), windows, future, horizon)
        alive, collapsed, diverged = select_alive(box.forecaster, reference)
    kept = reference[alive]
    seen = tuple(one[alive] for one in seen)
    return Starts(windows[alive], future[alive], kept, seen, spread_of(kept), collapsed, diverged)


def score(
    box: BlackBox,
    horizon: int = 24,
    *,
    directions: int = 4,
    trajectories: int = 48,
    seed: int = 0,
    start: Starts | None = None,
) -> Score:
    """The sensitivity of each weight of the file, over ``horizon`` steps of the sliding window.

    Without feedback the windows slide over the inputs, so G is flat and equals
    the local score. ``start`` replaces the synthetic windows, for an audit.
    """
    if start is None:
        start = synthetic_starts(box, horizon, trajectories, seed)
    rng = np.random.default_rng(seed)
    meter = _Meter(box, start, horizon)
    measured = []
    for constant, unit in zip(box.weights, units(box), strict=True):
        weights = values(box.content, constant)
        size = float(np.linalg.norm(weights))
        drawn = rng.standard_normal((directions, *constant.shape))
        drawn /= np.linalg.norm(drawn.reshape(directions, -1), axis=1).reshape(-1, *[1] * weights.ndim)
        deltas = np.concatenate([drawn, -drawn])
        if size == 0:
            measured.append(Measured(unit, np.zeros(horizon), 0.0, EPSILONS[0], "all weights are zero", 0.0))
            continue
        with np.errstate(over="ignore", invalid="ignore"):
            epsilons = INTEGER_EPSILONS if constant.kind.startswith("int") else EPSILONS
            growth, epsilon, flag, _ = plateau(
                lambda scale: meter.growth(constant, weights, scale * deltas),  # noqa: B023
                size,
                epsilons,
            )
            local = float(meter.local(constant, weights, epsilon * size * deltas, growth))
        if not meter.moves(constant, weights, epsilon * size * deltas):
            flag = f"the perturbation rounds away: it is less than half a step of its {constant.kind} grid"
        measured.append(Measured(unit, growth, local, epsilon, flag, size))
    counts = (len(start.reference), start.collapsed, start.diverged, meter.passes)
    return summarise("tensor", horizon, measured, start.spread, counts)


def units(box: BlackBox) -> tuple[Unit, ...]:
    """The file's weights as units of a plan, in the same order."""
    names = [constant.name.rpartition("/") for constant in box.weights]
    return tuple(Unit(c.name, layer, tensor, "", ()) for c, (layer, _, tensor) in zip(box.weights, names, strict=True))


@dataclass(slots=True)
class _Meter:
    """Measures how perturbed files deviate from the reference rollout; counts the windows it runs."""

    box: BlackBox
    start: Starts
    horizon: int
    passes: int = 0

    def __post_init__(self) -> None:
        self.passes = self.start.reference.shape[0] * self.horizon

    def growth(self, constant: Constant, weights: Any, deltas: Any) -> Values:
        """G by step (T,): mean over the directions that the file's number format does not round away."""
        found = []
        for engine, moved in self._perturbed(constant, weights, deltas):
            outputs, _ = _roll(engine, self.start.windows, self.start.future, self.horizon)
            found.append(self._squares(outputs).mean(axis=(0, 2)) / moved**2)
        self.passes += len(found) * self.start.reference.shape[0] * self.horizon
        return np.mean(found, axis=0) if found else np.zeros(self.horizon)

    def local(self, constant: Constant, weights: Any, deltas: Any, growth: Values) -> float:
        """The same for one step from each of the reference's own windows."""
        if not self.box.forecaster.feedback.pairs:
            return float(growth.mean())  # the windows are the reference's anyway
        found = []
        for engine, moved in self._perturbed(constant, weights, deltas):
            outputs = np.stack([engine(windows) for windows in self.start.seen], axis=1)
            found.append(self._squares(outputs).mean() / moved**2)
        self.passes += len(found) * self.start.reference.shape[0] * self.horizon
        return float(np.mean(found)) if found else 0.0

    def moves(self, constant: Constant, weights: Any, deltas: Any) -> bool:
        """Whether any perturbation is left once it is stored."""
        if constant.kind == "float32":
            return True
        return any(np.any(exchanged(self.box.content, constant, weights + d)[1] != weights) for d in deltas)

    def _squares(self, outputs: Floats32) -> Values:
        return ((outputs - self.start.reference) / self.start.spread).astype(np.float64) ** 2

    def _perturbed(self, constant: Constant, weights: Any, deltas: Any) -> Any:
        """(engine, norm of the perturbation as stored); LiteRT packs weights, so each file gets a fresh one."""
        for delta in deltas:
            content, actual = exchanged(self.box.content, constant, weights + delta)
            moved = float(np.linalg.norm(actual - weights))
            if moved > 0:
                yield Engine(self.box, content), moved


def audit(box: BlackBox, scores: Score, data: Values) -> float:
    """Rank correlation with the score from windows of the data, (samples, inputs) in physical units."""
    from scipy.stats import spearmanr

    again = score(box, scores.horizon, start=data_starts(box, data, scores.horizon))
    return float(spearmanr([u.sensitivity for u in scores.units], [u.sensitivity for u in again.units])[0])


def deviation(
    box: BlackBox, content: bytes, horizon: int, *, trajectories: int = 48, seed: int = 7
) -> tuple[float, ...]:
    """How far another file's rollout is from the box's, by step: RMS in units of the rollout's spread."""
    start = synthetic_starts(box, horizon, trajectories, seed)
    outputs, _ = _roll(Engine(box, content), start.windows, start.future, horizon)
    squares = ((outputs - start.reference) / start.spread).astype(np.float64) ** 2
    return tuple(float(value) for value in np.sqrt(squares.mean(axis=(0, 2))))
