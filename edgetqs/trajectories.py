"""Trajectories made without data: synthetic inputs, a burn-in, then the model's own rollouts.

They are the starting states of the score, the source of value ranges and
second moments for the quantizer, and the golden vectors' inputs.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgetqs.errors import BadInput
from edgetqs.model import Forecaster
from edgetqs.rollout import Cell, State, Values, cells, closed_loop, listen, next_input, run, step, zero_state

FAMILIES = ("autoregressive noise", "sinusoids", "steps")
#: A trajectory whose outputs leave this multiple of the input range has diverged.
DIVERGED = 4.0
#: A trajectory whose outputs move less than this (normalised units) has collapsed.
COLLAPSED = 1e-3
#: Fewer rollouts than this do not make a score.
FEWEST = 4


@dataclass(frozen=True, slots=True)
class Trajectories:
    """Starting points for rollouts, in normalised units.

    ``burn_in`` (B, W, inputs) led to ``state``; ``x`` (B, inputs) and ``y``
    (B, outputs) are the last input and output; ``future`` (B, T, inputs)
    continues the inputs. ``reference`` (B, T, outputs) is the unperturbed
    rollout and ``spread`` (outputs,) its standard deviation.
    """

    stack: tuple[Cell, ...]
    burn_in: Values
    state: State
    x: Values
    y: Values
    future: Values
    reference: Values
    spread: Values
    collapsed: int
    diverged: int


def synthetic_inputs(features: int, count: int, length: int, input_range: float, rng: np.random.Generator) -> Values:
    """(count, length, features) normalised inputs, the three families in turn."""
    inputs: Values = np.empty((count, length, features))
    for index in range(count):
        family = index % len(FAMILIES)
        if family == 0:
            memory = float(rng.choice([0.7, 0.95, 0.99]))
            noise = rng.standard_normal((length, features))
            value = rng.standard_normal(features)
            for t in range(length):
                value = memory * value + np.sqrt(1 - memory**2) * noise[t]
                inputs[index, t] = value
        elif family == 1:
            period = np.exp(rng.uniform(np.log(6), np.log(200), features))
            phase = rng.uniform(0, 2 * np.pi, features)
            level, swing = rng.normal(0, 0.7, features), rng.uniform(0.3, 1.6, features)
            inputs[index] = level + swing * np.sin(2 * np.pi * np.arange(length)[:, None] / period + phase)
        else:
            jumps = np.asarray(rng.random((length, features)) < 1 / 16)
            jumps[0] = True
            levels = rng.standard_normal((length, features))
            held = np.maximum.accumulate(np.where(jumps, np.arange(length)[:, None], 0), axis=0)
            inputs[index] = np.take_along_axis(levels, held, axis=0)
    return np.clip(inputs, -input_range, input_range)


def synthesise(
    forecaster: Forecaster, horizon: int, *, count: int = 48, seed: int = 0, dtype: type = np.float64
) -> Trajectories:
    """Starting states from ``count`` synthetic histories.

    With feedback, the first half starts where the synthetic history ends, the
    second half after a further closed loop of ``horizon`` steps, so that both
    disturbed and settled states are met. Without feedback the trajectory is
    the recurrence over the window, from reset, or for a windowed model a few
    windows. Collapsed and diverged ones are dropped and counted. Raises
    ``BadInput`` when too few remain bounded.
    """
    rng = np.random.default_rng(seed)
    features = len(forecaster.inputs)
    closed = bool(forecaster.feedback.pairs)
    burn_in_length = max(forecaster.window, 16) if closed else forecaster.lead
    stack = cells(forecaster, dtype)
    settled = count // 2 if closed else 0
    length = burn_in_length + (2 if settled else 1) * horizon
    inputs: Values = synthetic_inputs(features, count, length, forecaster.input_range, rng).astype(dtype)
    state = zero_state(stack, (count,))
    burn_in, future = inputs[:, :burn_in_length], inputs[:, burn_in_length:]
    if not closed:
        state = listen(stack, state, burn_in)
        return keep_alive(forecaster, stack, burn_in, state, future[:, 0], future[:, 0], future)
    state = listen(stack, state, burn_in[:, :-1])
    y, state = step(stack, state, burn_in[:, -1])
    x, y, state, future = _settle(forecaster, stack, state, burn_in[:, -1], y, future, horizon, settled)
    return keep_alive(forecaster, stack, burn_in, state, x, y, future)


def _settle(
    forecaster: Forecaster,
    stack: tuple[Cell, ...],
    state: State,
    x: Values,
    y: Values,
    future: Values,
    horizon: int,
    settled: int,
) -> tuple[Values, Values, State, Values]:
    """Let the last ``settled`` trajectories run closed for ``horizon`` steps."""
    late = slice(len(x) - settled, None)
    own = tuple(tuple(values[late] for values in one) for one in state)
    own_x, own_y = x[late], y[late]
    for k in range(horizon):
        own_x = next_input(forecaster, own_x, own_y, future[late, k])
        own_y, own = step(stack, own, own_x)
    x, y = x.copy(), y.copy()
    x[late], y[late] = own_x, own_y
    merged = tuple(
        tuple(np.concatenate([a[: len(a) - settled], b]) for a, b in zip(before, after, strict=True))
        for before, after in zip(state, own, strict=True)
    )
    ahead = future[:, :horizon].copy()
    ahead[late] = future[late, horizon:]
    return x, y, merged, ahead


def keep_alive(
    forecaster: Forecaster, stack: tuple[Cell, ...], burn_in: Values, state: State, x: Values, y: Values, future: Values
) -> Trajectories:
    """Roll out from the starting points and leave out those that collapse or diverge."""
    if forecaster.feedback.pairs:
        reference, _ = closed_loop(forecaster, stack, state, x, y, future.shape[1], future)
    else:
        reference, _ = run(stack, state, future)
    alive, collapsed, diverged = select_alive(forecaster, reference)
    reference = reference[alive]
    return Trajectories(
        stack,
        burn_in[alive],
        tuple(tuple(value[alive] for value in one) for one in state),
        x[alive],
        y[alive],
        future[alive],
        reference,
        spread_of(reference),
        collapsed,
        diverged,
    )


def spread_of(reference: Values) -> Values:
    """Standard deviation of each output over all rollouts (B, T, outputs)."""
    return np.maximum(reference.std(axis=(0, 1)), COLLAPSED)


def select_alive(forecaster: Forecaster, reference: Values) -> tuple[NDArray[np.bool_], int, int]:
    """Which rollouts (B, T, outputs) to keep, and how many collapsed and diverged.

    Raises ``BadInput`` when too few remain bounded.
    """
    finite = np.asarray(np.isfinite(reference).all(axis=(1, 2)))
    values = np.where(finite[:, None, None], reference, 0)
    moving = values.std(axis=1).max(axis=-1) > COLLAPSED
    fed_back = [source for source, _ in forecaster.feedback.pairs]
    largest = np.abs(values[:, :, fed_back]).max(axis=(1, 2), initial=0)
    bounded = finite & (largest < DIVERGED * forecaster.input_range)
    alive = moving & bounded
    if alive.sum() < FEWEST:
        alive = bounded  # a forecaster that settles everywhere is scored where it settles
    if alive.sum() < FEWEST:
        raise BadInput(
            f"{int((~bounded).sum())} of {len(alive)} rollouts diverge",
            forecaster.name,
            "check the feedback map and the means and standard deviations in edgetqs.toml",
        )
    return np.asarray(alive), int((~moving & bounded).sum()), int((~bounded).sum())
