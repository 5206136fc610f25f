"""How the forecaster's own dynamics stretch small differences: finite-time Lyapunov exponents.

Two systems are measured. The *closed loop* is the model running on its own
forecasts, the system that TQS perturbs. The *step map* is the recurrence
alone, driven by a given series of inputs, as it runs while it listens. For
either, tangent vectors are carried along and made orthogonal again at every
step (Benettin's method); the growth of each gives an exponent, in natural
units a step. Above zero small errors grow by themselves, below they are
forgotten.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from edgetqs.model import Forecaster
from edgetqs.rollout import State, Values, next_input, step
from edgetqs.trajectories import Trajectories, synthesise

#: Tangent vectors carried, and the size of the difference that stands for one.
EXPONENTS, TANGENT = 3, 1e-6
TRAJECTORIES = 24
#: Steps before counting begins: most of a random difference is forgotten at once, and the path settles.
WARM_UP = 24
#: A closed loop whose small differences grow e-fold this often over its steps is chaotic.
CHAOTIC = 1.0


@dataclass(frozen=True, slots=True)
class Exponents:
    """Largest exponents, a step: mean over trajectories, and the spread of the first one over them."""

    mean: tuple[float, ...]
    deviation: float
    steps: int


@dataclass(frozen=True, slots=True)
class Dynamics:
    """``closed_loop`` is None for a direct forecaster, ``step_map`` for a windowed one, which recalls samples only."""

    closed_loop: Exponents | None
    step_map: Exponents | None

    @property
    def chaotic(self) -> bool:
        """Whether the closed loop amplifies any difference so much that TQS is only a lower bound."""
        return self.closed_loop is not None and self.closed_loop.mean[0] * self.closed_loop.steps > CHAOTIC


def dynamics(forecaster: Forecaster, horizon: int = 24, *, seed: int = 0) -> Dynamics:
    """Finite-time Lyapunov exponents over ``horizon`` steps (the window for a direct forecaster)."""
    closed = bool(forecaster.feedback.pairs)
    if forecaster.windowed and not closed:
        return Dynamics(None, None)
    steps = horizon if closed else forecaster.window
    start = synthesise(forecaster, WARM_UP + steps + 1, count=TRAJECTORIES, seed=seed)
    driven = None if forecaster.windowed else _exponents(forecaster, start, steps, False, seed)
    return Dynamics(_exponents(forecaster, start, steps, True, seed) if closed else None, driven)


def _exponents(forecaster: Forecaster, start: Trajectories, steps: int, closed: bool, seed: int) -> Exponents:
    fed = len(forecaster.feedback.pairs) if closed else 0
    sizes = [part.shape[-1] for own in start.state for part in own]
    dimensions = sum(sizes) + fed
    count = min(EXPONENTS, dimensions)
    rng = np.random.default_rng(seed)
    point = _flat(start.state)
    if closed:
        point = np.concatenate([point, start.y[:, [source for source, _ in forecaster.feedback.pairs]]], axis=1)
    tangents = np.linalg.qr(rng.standard_normal((len(point), dimensions, count)))[0]
    x, logs = start.x, np.zeros((len(point), count))
    for k in range(WARM_UP + steps):
        known = start.future[:, k]
        # The point and the points beside it, (trajectories, 1 + count, dimensions), in one step.
        beside = np.concatenate([point[:, None], point[:, None] + TANGENT * tangents.swapaxes(1, 2)], axis=1)
        after, inputs = _advance(forecaster, start, beside, x[:, None], known[:, None], closed)
        point, x = after[:, 0], inputs[:, 0]
        tangents, stretched = np.linalg.qr((after[:, 1:] - after[:, :1]).swapaxes(1, 2) / TANGENT)
        if k < WARM_UP:
            continue
        logs += np.log(np.maximum(np.abs(np.einsum("bii->bi", stretched)), 1e-300))
    rates = logs / steps
    return Exponents(tuple(float(value) for value in rates.mean(axis=0)), float(rates[:, 0].std()), steps)


def _advance(
    forecaster: Forecaster, start: Trajectories, points: Values, x: Values, known: Values, closed: bool
) -> tuple[Values, Values]:
    """One step of every point: (points after it, inputs that it took)."""
    state = _state(start.state, points)
    if closed:
        sources = [source for source, _ in forecaster.feedback.pairs]
        y = np.zeros((*points.shape[:-1], len(forecaster.outputs)))
        y[..., sources] = points[..., -len(sources) :]
        x = next_input(forecaster, x, y, known)
    else:
        x = np.broadcast_to(known, (*points.shape[:-1], known.shape[-1]))
    y, state = step(start.stack, state, x)
    after = _flat(state)
    return (np.concatenate([after, y[..., sources]], axis=-1) if closed else after), x


def _flat(state: State) -> Values:
    return np.concatenate([part for own in state for part in own], axis=-1)


def _state(like: State, flat: Values) -> State:
    parts, at = [], 0
    for own in like:
        taken = []
        for part in own:
            taken.append(flat[..., at : at + part.shape[-1]])
            at += part.shape[-1]
        parts.append(tuple(taken))
    return tuple(parts)
