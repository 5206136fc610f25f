"""What a layer sees along the model's own rollouts: the ranges its values take."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from edgetqs.model import RECURRENT, Forecaster, Lstm
from edgetqs.rollout import Cell, Values, next_input, step_cell, zero_state
from edgetqs.trajectories import Trajectories, synthesise


@dataclass(frozen=True, slots=True)
class Observation:
    """One layer along the rollouts.

    ``part_peak`` is the largest |input part| or |recurrent part| of a
    pre-activation, ``cell_peak`` the largest |c|.
    """

    part_peak: float = 0.0
    cell_peak: float = 0.0


def observe(forecaster: Forecaster, start: Trajectories | None = None, *, seed: int = 1) -> tuple[Observation, ...]:
    """One observation a layer, over synthetic histories from reset and closed loops after them."""
    horizon = max(forecaster.window, 24)
    if start is None:
        start = synthesise(forecaster, horizon, seed=seed)
    stack = start.stack
    found = [Observation() for _ in stack]

    def advance(state, x):
        after = []
        for index, (one, own) in enumerate(zip(stack, state, strict=True)):
            found[index] = _wider(found[index], one, x, own)
            x, own = step_cell(one, own, x)
            after.append(own)
        return x, tuple(after)

    history = start.burn_in if forecaster.feedback.pairs else start.future
    state = zero_state(stack, (len(history),))
    for t in range(history.shape[1]):
        _, state = advance(state, history[:, t])
    if forecaster.feedback.pairs:
        state, x, y = start.state, start.x, start.y
        for k in range(start.future.shape[1]):
            x = next_input(forecaster, x, y, start.future[:, k])
            y, state = advance(state, x)
    return tuple(found)


def _wider(seen: Observation, one: Cell, x: Values, own: tuple[Values, ...]) -> Observation:
    if not isinstance(one.layer, RECURRENT):
        return seen
    parts = (x @ one.kernel + one.bias, own[0] @ one.recurrent_kernel)
    return Observation(
        max(seen.part_peak, *(float(np.abs(part).max()) for part in parts)),
        max(seen.cell_peak, float(np.abs(own[1]).max())) if isinstance(one.layer, Lstm) else 0.0,
    )
