"""Float simulation of a forecaster: one step, a whole window, a closed loop.

Everything here works on normalised values; ``window`` alone takes and returns
physical units, as the trained model does. Arrays may carry any leading axes
before the batch, and so may the weights of a ``Cell``: that is how a stack of
perturbed models is rolled out in one call.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from edgetqs.errors import BadInput
from edgetqs.model import (
    RECURRENT,
    Activation,
    Dense,
    Forecaster,
    Gru,
    Layer,
    LayerNormalization,
    Lstm,
    Merge,
    Pool,
    Window,
)

Values: TypeAlias = NDArray[np.floating[Any]]
#: One tuple a layer: (h, c) for an LSTM, (h,) for a GRU or SimpleRNN, the samples for a Window, () otherwise;
#: () too for recurrent layers over frames, which remember nothing from one step to the next.
State: TypeAlias = tuple[tuple[Values, ...], ...]


def sigmoid(x: Values) -> Values:
    return 0.5 * np.tanh(0.5 * x) + 0.5


def softmax(x: Values) -> Values:
    weights = np.exp(x - x.max(axis=-1, keepdims=True))
    return weights / weights.sum(axis=-1, keepdims=True)


FUNCTIONS: dict[str, Callable[[Values], Values]] = {
    "linear": lambda x: x,
    "tanh": np.tanh,
    "sigmoid": sigmoid,
    "relu": lambda x: np.maximum(x, 0),
    "hard_sigmoid_keras2": lambda x: np.clip(0.2 * x + 0.5, 0, 1),
    "hard_sigmoid_keras3": lambda x: np.clip(x / 6 + 0.5, 0, 1),
    "softmax": softmax,
}


@dataclass(frozen=True, slots=True)
class Cell:
    """One layer ready to multiply: matrices (..., inputs, gates * units)."""

    layer: Layer
    kernel: Values
    bias: Values
    recurrent_kernel: Values
    recurrent_bias: Values


def cell(layer: Layer, dtype: type = np.float64) -> Cell:
    """``layer`` with its gates side by side, transposed for ``x @ W``."""

    def columns(name: str) -> Values:
        blocks = getattr(layer, name, None)
        if blocks is None:
            return np.zeros(0, dtype)
        return np.concatenate(list(blocks)).T.astype(dtype)  # (gates, units[, inputs]) -> ([inputs,] gates * units)

    return Cell(layer, columns("kernel"), columns("bias"), columns("recurrent_kernel"), columns("recurrent_bias"))


def cells(forecaster: Forecaster, dtype: type = np.float64) -> tuple[Cell, ...]:
    return tuple(cell(layer, dtype) for layer in forecaster.layers)


def side_by_side(stacks: Sequence[tuple[Cell, ...]]) -> tuple[Cell, ...]:
    """Models of the same layers as one stack whose weights have a leading axis (models)."""

    def together(own: Sequence[Cell]) -> Cell:
        def stack(name: str) -> Values:
            return np.stack([getattr(one, name) for one in own])

        # Biases are (models, 1, gates * units), against (models, batch, gates * units).
        bias, recurrent_bias = stack("bias")[:, None], stack("recurrent_bias")[:, None]
        return Cell(own[0].layer, stack("kernel"), bias, stack("recurrent_kernel"), recurrent_bias)

    return tuple(together(own) for own in zip(*stacks, strict=True))


def zero_state(stack: tuple[Cell, ...], batch: tuple[int, ...]) -> State:
    """The state after a reset; ``batch`` holds the leading axes."""
    return tuple(zero_cell_state(one, batch) for one in stack)


def zero_cell_state(one: Cell, batch: tuple[int, ...]) -> tuple[Values, ...]:
    layer = one.layer
    if isinstance(layer, Window):
        return (np.zeros((*batch, layer.size * layer.features), one.kernel.dtype),)
    if isinstance(layer, RECURRENT) and layer.frames is None:
        return zero_cell(one, batch)
    return ()


def zero_cell(one: Cell, batch: tuple[int, ...]) -> tuple[Values, ...]:
    """What a recurrent layer starts from."""
    zeros = np.zeros((*batch, one.recurrent_kernel.shape[-2]), one.kernel.dtype)
    return (zeros, zeros) if isinstance(one.layer, Lstm) else (zeros,)


def step_cell(one: Cell, state: tuple[Values, ...], x: Values) -> tuple[Values, tuple[Values, ...]]:
    """One step of one layer: (output, next state)."""
    layer = one.layer
    if isinstance(layer, Window):
        lead = np.broadcast_shapes(x.shape[:-1], state[0].shape[:-1])
        parts = [np.broadcast_to(part, (*lead, part.shape[-1])) for part in (state[0][..., layer.features :], x)]
        after = np.concatenate(parts, axis=-1)
        return after, (after,)
    if isinstance(layer, Merge):
        return x, ()
    if isinstance(layer, LayerNormalization):
        return normalised(layer, x), ()
    if isinstance(layer, Activation):
        return FUNCTIONS[layer.function](x), ()
    if isinstance(layer, Pool):
        return layer.pooled(x), ()
    if layer.frames is None:
        return step_frame(one, state, x)
    frames = layer.frames.gather(x, one.kernel.shape[-2] // layer.frames.taps)
    if isinstance(layer, Dense):
        flat = frames.reshape(*x.shape[:-2], -1, frames.shape[-1])  # frames beside each other in the batch
        y = step_frame(one, (), flat)[0]
        return y.reshape(*y.shape[:-2], x.shape[-2], -1), ()
    return over_frames(one, frames), ()


def normalised(layer: LayerNormalization, x: Values) -> Values:
    frames = x.reshape(*x.shape[:-1], layer.count, -1)
    centred = frames - frames.mean(axis=-1, keepdims=True)
    scaled = centred / np.sqrt(np.mean(centred**2, axis=-1, keepdims=True) + layer.epsilon)
    return (scaled * layer.gamma + layer.beta).astype(x.dtype).reshape(x.shape)


def over_frames(one: Cell, frames: Values) -> Values:
    """A recurrent layer over (..., T, columns) from a zero state: its last output, or all of them side by side."""
    layer = one.layer
    assert isinstance(layer, RECURRENT)
    assert layer.frames is not None
    state = zero_cell(one, frames.shape[:-2])
    outputs = {}
    for t in layer.frames.order(layer.go_backwards):
        outputs[t], state = step_frame(one, state, frames[..., t, :])
    return np.concatenate([outputs[t] for t in sorted(outputs)], axis=-1) if layer.return_sequences else state[0]


def step_frame(one: Cell, state: tuple[Values, ...], x: Values) -> tuple[Values, tuple[Values, ...]]:
    """A Dense or recurrent layer on one frame: (output, next state)."""
    layer = one.layer
    if isinstance(layer, Dense):
        return FUNCTIONS[layer.activation](x @ one.kernel + one.bias), ()
    assert isinstance(layer, RECURRENT)
    inputs = x @ one.kernel + one.bias
    h = state[0]
    units = h.shape[-1]
    activation = FUNCTIONS[layer.activation]
    z: Values
    if isinstance(layer, Lstm):
        z = inputs + h @ one.recurrent_kernel
        gate = FUNCTIONS[layer.recurrent_activation]
        i, f, o = gate(z[..., :units]), gate(z[..., units : 2 * units]), gate(z[..., 3 * units :])
        c = f * state[1] + i * activation(z[..., 2 * units : 3 * units])
        if layer.cell_clip:
            c = np.clip(c, -layer.cell_clip, layer.cell_clip)
        h = o * activation(c)
        return h, (h, c)
    if isinstance(layer, Gru):
        zr = slice(0, 2 * units)
        new = slice(2 * units, 3 * units)
        gates = FUNCTIONS[layer.recurrent_activation](
            inputs[..., zr] + h @ one.recurrent_kernel[..., zr] + one.recurrent_bias[..., zr]
        )
        z, r = gates[..., :units], gates[..., units:]
        candidate: Values
        if layer.reset_after:
            candidate = r * (h @ one.recurrent_kernel[..., new] + one.recurrent_bias[..., new])
        else:
            candidate = (r * h) @ one.recurrent_kernel[..., new]
        h = z * h + (1 - z) * activation(inputs[..., new] + candidate)
        return h, (h,)
    h = activation(inputs + h @ one.recurrent_kernel)
    return h, (h,)


def step(stack: tuple[Cell, ...], state: State, x: Values) -> tuple[Values, State]:
    """One step of a streaming model: x (..., inputs) -> (y (..., outputs), next state)."""
    values, after = [x], []
    for one, own in zip(stack, state, strict=True):
        y, own = step_cell(one, own, taken(one.layer, values))
        values.append(y)
        after.append(own)
    return values[-1], tuple(after)


def taken(layer: Layer, values: Sequence[Values]) -> Values:
    """What a layer reads of the values so far."""
    if isinstance(layer, Merge):
        return values[-2] * values[-1] if layer.mode == "mul" else layer.beside(values[-2], values[-1])
    return values[getattr(layer, "source", -1)]


def remembering(stack: tuple[Cell, ...]) -> int:
    """How many layers there are up to the last one that remembers anything from one step to the next."""
    return max((k + 1 for k, one in enumerate(stack) if zero_cell_state(one, ())), default=0)


def listen(stack: tuple[Cell, ...], state: State, x: Values) -> State:
    """The state after x (..., T, inputs); layers that only serve the output are not run."""
    part = remembering(stack)
    own = state[:part]
    for t in range(x.shape[-2]):
        _, own = step(stack[:part], own, x[..., t, :])
    return (*own, *state[part:])


def run(stack: tuple[Cell, ...], state: State, x: Values) -> tuple[Values, State]:
    """Open loop: x (..., T, inputs) -> (y (..., T, outputs), state after the last step)."""
    outputs = []
    for t in range(x.shape[-2]):
        y, state = step(stack, state, x[..., t, :])
        outputs.append(y)
    return np.stack(outputs, axis=-2), state


def next_input(forecaster: Forecaster, x: Values, y: Values, future: Values | None) -> Values:
    """The closed loop's next input from the last input, the last output and the known values.

    ``future`` has all inputs' columns; those in ``feedback.known`` are read.
    Held inputs keep their value from ``x``.
    """
    shape = np.broadcast_shapes(x.shape[:-1], y.shape[:-1])
    following = np.broadcast_to(x, (*shape, x.shape[-1])).copy()
    known = list(forecaster.feedback.known)
    if known:
        if future is None:
            raise BadInput("inputs known ahead need their future values", forecaster.name)
        following[..., known] = future[..., known]
    for source, target in forecaster.feedback.pairs:
        gain, offset = feedback_affine(forecaster, source, target)
        following[..., target] = y[..., source] * gain + offset
    return following


def feedback_affine(forecaster: Forecaster, source: int, target: int) -> tuple[float, float]:
    """(gain, offset) that take a normalised output to a normalised input."""
    out, into = forecaster.outputs[source], forecaster.inputs[target]
    return out.std / into.std, (out.mean - into.mean) / into.std


def closed_loop(
    forecaster: Forecaster,
    stack: tuple[Cell, ...],
    state: State,
    x: Values,
    y: Values,
    horizon: int,
    future: Values | None = None,
) -> tuple[Values, State]:
    """Forecast ``horizon`` steps: (forecast (..., horizon, outputs), last state).

    ``x`` and ``y`` are the last input and output, so the first forecast is
    ``y`` itself. Row k of ``future`` (..., horizon, inputs) holds the inputs at
    the time of forecast k; the last row is not needed.
    """
    outputs = [y]
    for k in range(1, horizon):
        x = next_input(forecaster, x, y, None if future is None else future[..., k - 1, :])
        y, state = step(stack, state, x)
        outputs.append(y)
    shape = np.broadcast_shapes(*(value.shape for value in (outputs[0], outputs[-1])))
    return np.stack([np.broadcast_to(value, shape) for value in outputs], axis=-2), state


def normalise(forecaster: Forecaster, x: Values) -> Values:
    """Physical inputs (..., inputs) to what the layers see."""
    return (x - np.array([c.mean for c in forecaster.inputs])) / np.array([c.std for c in forecaster.inputs])


def physical(forecaster: Forecaster, y: Values) -> Values:
    """Normalised outputs (..., outputs) to physical units."""
    return y * np.array([c.std for c in forecaster.outputs]) + np.array([c.mean for c in forecaster.outputs])


def window(forecaster: Forecaster, x: Values) -> Values:
    """What the trained model gives for whole windows.

    x (batch, T, inputs) in physical units -> (batch, outputs), (batch, T,
    outputs) where it gives an output a sample, or (batch, frames, features).
    """
    value = normalise(forecaster, np.asarray(x, np.float64))
    stack = cells(forecaster)
    state = zero_state(stack, (len(value),))
    if not forecaster.sequence_output:
        state, value = listen(stack, state, value[:, :-1]), value[:, -1:]
    outputs = physical(forecaster, run(stack, state, value)[0])
    if forecaster.sequence_output:
        return outputs
    return outputs[:, -1].reshape(len(x), forecaster.output_frames, -1) if forecaster.output_frames else outputs[:, -1]
