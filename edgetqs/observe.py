"""What a layer sees along the model's own rollouts: the ranges its values take."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from edgetqs.model import RECURRENT, Forecaster, Lstm
from edgetqs.rollout import (
    Cell,
    State,
    Values,
    listen,
    next_input,
    step_cell,
    step_frame,
    taken,
    zero_cell,
    zero_state,
)
from edgetqs.trajectories import Trajectories, synthesise


@dataclass(frozen=True, slots=True)
class Observation:
    """One layer along the rollouts.

    ``part_peak`` is the largest |input part| or |recurrent part| of a
    pre-activation, ``cell_peak`` the largest |c|, ``hidden_peak`` the largest
    |h| of a cell whose activation has no bounds.
    """

    part_peak: float = 0.0
    cell_peak: float = 0.0
    hidden_peak: float = 0.0


def observe(forecaster: Forecaster, start: Trajectories | None = None, *, seed: int = 1) -> tuple[Observation, ...]:
    """One observation a layer, over synthetic histories from reset and closed loops after them."""
    closed = bool(forecaster.feedback.pairs)
    if start is None:
        horizon = max(forecaster.window, 24)
        if forecaster.windowed:
            horizon = 24 if closed else forecaster.trajectory
        start = synthesise(forecaster, horizon, seed=seed)
    stack = start.stack
    found = [Observation() for _ in stack]

    def advance(state: State, x: Values) -> tuple[Values, State]:
        values, after = [x], []
        for index, (one, own) in enumerate(zip(stack, state, strict=True)):
            x = taken(one.layer, values)
            found[index] = _wider(found[index], one, x, own)
            y, own = step_cell(one, own, x)
            values.append(y)
            after.append(own)
        return values[-1], tuple(after)

    if closed:
        heard = start.burn_in.shape[1] - 1 if forecaster.windowed else 0
        state = listen(stack, zero_state(stack, (len(start.x),)), start.burn_in[:, :heard])
        history = start.burn_in[:, heard:]
    else:
        state, history = start.state, start.future
    for t in range(history.shape[1]):
        _, state = advance(state, history[:, t])
    if closed:
        state, x, y = start.state, start.x, start.y
        for k in range(start.future.shape[1]):
            x = next_input(forecaster, x, y, start.future[:, k])
            y, state = advance(state, x)
    return tuple(found)


def _wider(seen: Observation, one: Cell, x: Values, own: tuple[Values, ...]) -> Observation:
    layer = one.layer
    if not isinstance(layer, RECURRENT):
        return seen
    if layer.frames is None:
        return _wider_frame(seen, one, x, own)
    frames = layer.frames.gather(x, one.kernel.shape[0] // layer.frames.taps)
    state = zero_cell(one, (len(x),))
    for t in layer.frames.order(layer.go_backwards):
        seen = _wider_frame(seen, one, frames[:, t], state)
        _, state = step_frame(one, state, frames[:, t])
    return seen


def _wider_frame(seen: Observation, one: Cell, x: Values, own: tuple[Values, ...]) -> Observation:
    parts = (x @ one.kernel + one.bias, own[0] @ one.recurrent_kernel)
    return Observation(
        max(seen.part_peak, *(float(np.abs(part).max()) for part in parts)),
        max(seen.cell_peak, float(np.abs(own[1]).max())) if isinstance(one.layer, Lstm) else 0.0,
        max(seen.hidden_peak, float(np.abs(own[0]).max())),
    )
