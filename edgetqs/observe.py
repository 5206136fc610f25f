"""What a layer sees along the model's own rollouts: ranges and second moments of its inputs."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from edgetqs.model import RECURRENT, Forecaster, Gru, Lstm
from edgetqs.rollout import FUNCTIONS, Cell, Values, next_input, step_cell, zero_state
from edgetqs.rounding import Floats
from edgetqs.trajectories import Trajectories, synthesise


@dataclass(frozen=True, slots=True)
class Observation:
    """One layer along the rollouts.

    ``input_moments`` is E[v v^T] of v = (inputs, 1), ``hidden_moments`` the
    same of what each gate's recurrent rows are multiplied with; ``part_peak``
    is the largest |input part| or |recurrent part| of a pre-activation,
    ``cell_peak`` the largest |c|.
    """

    input_moments: Floats
    hidden_moments: tuple[Floats, ...] = ()
    part_peak: float = 0.0
    cell_peak: float = 0.0


def observe(forecaster: Forecaster, start: Trajectories | None = None, *, seed: int = 1) -> tuple[Observation, ...]:
    """One observation a layer, over synthetic histories from reset and closed loops after them."""
    horizon = max(forecaster.window, 24)
    if start is None:
        start = synthesise(forecaster, horizon, seed=seed)
    stack = start.stack
    inputs: list[list[Values]] = [[] for _ in stack]
    hidden: list[list[tuple[Values, ...]]] = [[] for _ in stack]

    def advance(state, x):
        after = []
        for index, (one, own) in enumerate(zip(stack, state, strict=True)):
            inputs[index].append(x)
            hidden[index].append(own)
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
    return tuple(
        _observation(one, np.concatenate(x), tuple(np.concatenate(part) for part in zip(*own, strict=True)))
        for one, x, own in zip(stack, inputs, hidden, strict=True)
    )


def _observation(one: Cell, x: Values, own: tuple[Values, ...]) -> Observation:
    layer = one.layer
    if not isinstance(layer, RECURRENT):
        return Observation(_moments(x))
    h = own[0]
    seen = [h] * len(layer.gates)
    if isinstance(layer, Gru) and not layer.reset_after:
        rows = slice(len(h[0]), 2 * len(h[0]))
        reset = FUNCTIONS[layer.recurrent_activation](
            x @ one.kernel[:, rows] + one.bias[rows] + h @ one.recurrent_kernel[:, rows] + one.recurrent_bias[rows]
        )
        seen[2] = reset * h
    input_part = x @ one.kernel + one.bias
    recurrent_part = h @ one.recurrent_kernel
    return Observation(
        _moments(x),
        tuple(_moments(value) for value in seen),
        float(max(np.abs(input_part).max(), np.abs(recurrent_part).max())),
        float(np.abs(own[1]).max()) if isinstance(layer, Lstm) else 0.0,
    )


def _moments(x: Values) -> Floats:
    extended = np.concatenate([x, np.ones((len(x), 1))], axis=1).astype(np.float64)
    return extended.T @ extended / len(extended)
