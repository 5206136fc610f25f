"""The integer program in NumPy: the oracle that every other engine must equal.

Values are int64 arrays holding int16 numbers, with any leading batch axes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import TypeAlias

import numpy as np

from edgetqs import fixedpoint as fp
from edgetqs.errors import BadInput
from edgetqs.fixedpoint import Integers
from edgetqs.integer import (
    HARD_SLOPES,
    IntegerActivation,
    IntegerDense,
    IntegerLayer,
    IntegerModel,
    IntegerNormalization,
    IntegerRecurrent,
    Matrix,
)
from edgetqs.model import Merge, Pool, Window
from edgetqs.normalization import layer_normalize
from edgetqs.softmax import exp_multiplier, softmax

#: One tuple a layer, as in ``rollout.State``.
State: TypeAlias = tuple[tuple[Integers, ...], ...]


@dataclass(slots=True)
class Trace:
    """What steps computed on their way, for naming the first difference and for counting clipped values.

    ``values`` holds (layer, what, integers) in the order of computation, where
    what is "gate i" for a gate's pre-activation, "cell_state", "hidden_state"
    or "output". ``clipped`` counts, by (layer, what), the products and cell
    states that did not fit an int16.
    """

    values: list[tuple[str, str, Integers]] = field(default_factory=list)
    clipped: dict[tuple[str, str], int] = field(default_factory=dict)

    def add(self, layer: str, what: str, values: Integers) -> Integers:
        self.values.append((layer, what, values))
        return values

    def saturate(self, layer: str, what: str, values: Integers) -> Integers:
        kept = fp.saturate(values)
        count = int(np.count_nonzero(kept != values))
        if count:
            self.clipped[layer, what] = self.clipped.get((layer, what), 0) + count
        return kept


def zero_state(model: IntegerModel, batch: tuple[int, ...] = ()) -> State:
    """The state after a reset."""
    return tuple(
        tuple(np.zeros((*batch, _width(layer)), np.int64) for _ in names)
        for layer, names in zip(model.layers, model.states(), strict=True)
    )


def _width(layer: IntegerLayer) -> int:
    if isinstance(layer, Window):
        return layer.size * layer.features
    assert isinstance(layer, IntegerRecurrent)
    return layer.units


def product(matrix: Matrix, x: Integers, rows: slice = slice(None)) -> Integers:
    """Rows of the matrix times x (..., columns), requantized to the matrix's output scale, not saturated.

    The sums stay below 2^53, so the float64 product is exact.
    """
    sums = (x.astype(np.float64) @ matrix.weights[rows].T.astype(np.float64)).astype(np.int64) + matrix.bias[rows]
    return fp.requantize(sums, matrix.multiplier[rows], matrix.shift[rows])


def step(model: IntegerModel, state: State, x: Integers, trace: Trace | None = None) -> tuple[Integers, State]:
    """One step: x (..., inputs) int16 values -> (y (..., outputs), next state)."""
    trace = trace or Trace()
    values, after = [x], []
    for layer, own in zip(model.layers, state, strict=True):
        y, own = _layer(layer, own, values, trace)
        values.append(y)
        after.append(own)
    return values[-1], tuple(after)


def _layer(
    layer: IntegerLayer, state: tuple[Integers, ...], values: list[Integers], trace: Trace
) -> tuple[Integers, tuple[Integers, ...]]:
    """(output, next state) of a layer that reads one or two of the values so far."""
    if isinstance(layer, Merge):
        a, b = values[-2:]
        return fp.multiply(a, b, 14) if layer.mode == "mul" else layer.beside(a, b), ()
    x = values[getattr(layer, "source", -1)]
    if isinstance(layer, Window):
        after = np.concatenate([state[0][..., layer.features :], x], axis=-1)
        return after, (after,)
    if isinstance(layer, Pool):
        return _averaged(layer, x) if layer.mean else layer.pooled(x), ()
    if isinstance(layer, IntegerDense):
        return _dense(layer, x, trace), ()
    if isinstance(layer, IntegerNormalization):
        frames = x.reshape(*x.shape[:-1], layer.count, -1)
        y = trace.saturate(layer.name, "output", layer_normalize(frames, layer.layer, clip=False))
        return trace.add(layer.name, "output", y.reshape(x.shape)), ()
    if isinstance(layer, IntegerActivation):
        return trace.add(layer.name, "output", _activated(layer, x)), ()
    if layer.frames is None:
        state = _CELLS[layer.kind](layer, x, state, trace)
        return state[0], state
    return _over_frames(layer, layer.frames.gather(x, layer.kernel.columns // layer.frames.taps), trace), ()


def _averaged(layer: Pool, x: Integers) -> Integers:
    """The mean of each frame's taps, halves away from zero."""
    total, count = layer.taps(x).sum(axis=-2), layer.frames.taps
    mean: Integers = np.sign(total) * ((np.abs(total) + count // 2) // count)
    return mean.reshape(*x.shape[:-1], -1)


def _over_frames(layer: IntegerRecurrent, frames: Integers, trace: Trace) -> Integers:
    state = tuple(np.zeros((*frames.shape[:-2], layer.units), np.int64) for _ in layer.state_scales)
    outputs = {}
    for t in layer.order:
        state = _CELLS[layer.kind](layer, frames[..., t, :], state, trace)
        outputs[t] = state[0]
    if not layer.return_sequences:
        return state[0]
    return trace.add(layer.name, "output", np.concatenate([outputs[t] for t in sorted(outputs)], axis=-1))


def _dense(layer: IntegerDense, x: Integers, trace: Trace) -> Integers:
    if layer.frames is not None:
        x = layer.frames.gather(x, layer.kernel.columns // layer.frames.taps)
    y = trace.saturate(layer.name, "kernel", product(layer.kernel, x))
    y = apply(layer.activation, y, layer.kernel.output_scale)
    return trace.add(layer.name, "output", y if layer.frames is None else y.reshape(*y.shape[:-2], -1))


def apply(function: str, values: Integers, scale: float) -> Integers:
    """A function of values at ``scale``: relu and linear keep it, the others give 2^-15."""
    if function == "linear":
        return values
    if function == "relu":
        return np.maximum(values, 0)
    if function == "softmax":
        return softmax(values, *exp_multiplier(scale))
    if function in HARD_SLOPES:
        return fp.hard_sigmoid(values, round(math.log2(5 / scale)), HARD_SLOPES[function])
    return (fp.tanh if function == "tanh" else fp.logistic)(values, *fp.table_multiplier(scale))


def _activated(layer: IntegerActivation, x: Integers) -> Integers:
    if layer.function == "relu":
        return np.maximum(x, 0)
    z = fp.rescale(x, layer.z_bits - 2 - layer.input_bits)
    return apply(layer.function, z, 5 * 2.0**-layer.z_bits)


def _parts(layer: IntegerRecurrent, x: Integers, h: Integers, gates: slice, trace: Trace) -> tuple[Integers, Integers]:
    """The input and the recurrent part of the named gates' pre-activations, each saturated on its own."""
    rows = slice(gates.start * layer.units, gates.stop * layer.units)
    return (
        trace.saturate(layer.name, "kernel", product(layer.kernel, x, rows)),
        trace.saturate(layer.name, "recurrent_kernel", product(layer.recurrent, h, rows)),
    )


def _gates(layer: IntegerRecurrent, first: int, parts: tuple[Integers, Integers], trace: Trace) -> list[Integers]:
    """The pre-activations of the gates from ``first`` on: the saturated sum of the parts, split."""
    z = fp.saturate(parts[0] + parts[1])
    split = np.split(z, z.shape[-1] // layer.units, axis=-1)
    return [trace.add(layer.name, f"gate {layer.gates[first + k]}", gate) for k, gate in enumerate(split)]


def squash(layer: IntegerRecurrent, z: Integers) -> Integers:
    """A gate's value in [0, 1) from its pre-activation."""
    return apply(layer.gate, z, layer.z_scale)


def _lstm(layer: IntegerRecurrent, x: Integers, state: tuple[Integers, ...], trace: Trace) -> tuple[Integers, ...]:
    h, c = state
    zi, zf, zc, zo = _gates(layer, 0, _parts(layer, x, h, slice(0, 4), trace), trace)
    i, f, o = (squash(layer, z) for z in (zi, zf, zo))
    kept = fp.multiply(f, c, 14)
    candidate = apply(layer.activation, zc, layer.z_scale)
    if layer.bounded:
        new = fp.multiply(i, candidate, 29 - layer.cell_bits)
    else:
        new = fp.multiply_fifth(i, candidate, layer.z_bits + 12 - layer.cell_bits)
    c = trace.saturate(layer.name, "cell_state", kept + new)
    c = trace.add(layer.name, "cell_state", np.clip(c, -layer.cell_limit, layer.cell_limit))
    if layer.bounded:
        squashed = apply(layer.activation, fp.rescale(c, 11 - layer.cell_bits), fp.TANH_SCALE)
        return trace.add(layer.name, "hidden_state", fp.multiply(o, squashed, 14)), c
    product = fp.rounding_shift(
        (o * apply(layer.activation, c, 1.0) + 1) >> 1, 14 + layer.cell_bits - layer.hidden_bits
    )
    return trace.add(layer.name, "hidden_state", trace.saturate(layer.name, "hidden_state", product)), c


def _new(layer: IntegerRecurrent, z: Integers, trace: Trace) -> Integers:
    """The activation of a GRU's or SimpleRNN's pre-activation, at the hidden state's scale."""
    values = apply(layer.activation, z, layer.z_scale)
    if layer.bounded:
        return values
    return trace.saturate(layer.name, "hidden_state", fp.rescale_fifth(values, layer.hidden_bits - layer.z_bits + 3))


def _gru(layer: IntegerRecurrent, x: Integers, state: tuple[Integers, ...], trace: Trace) -> tuple[Integers, ...]:
    (h,) = state
    zz, zr = _gates(layer, 0, _parts(layer, x, h, slice(0, 2), trace), trace)
    z, r = squash(layer, zz), squash(layer, zr)
    if layer.kind == "gru_reset_after":
        input_part, recurrent_part = _parts(layer, x, h, slice(2, 3), trace)
        recurrent_part = fp.multiply(r, recurrent_part, 14)
    else:
        input_part, recurrent_part = _parts(layer, x, fp.multiply(r, h, 14), slice(2, 3), trace)
    (zh,) = _gates(layer, 2, (input_part, recurrent_part), trace)
    new = _new(layer, zh, trace)
    fresh = fp.saturate(new - fp.multiply(z, new, 14))
    return (trace.add(layer.name, "hidden_state", fp.saturate(fresh + fp.multiply(z, h, 14))),)


def _rnn(layer: IntegerRecurrent, x: Integers, state: tuple[Integers, ...], trace: Trace) -> tuple[Integers, ...]:
    (z,) = _gates(layer, 0, _parts(layer, x, state[0], slice(0, 1), trace), trace)
    return (trace.add(layer.name, "hidden_state", _new(layer, z, trace)),)


_CELLS = {"lstm": _lstm, "gru": _gru, "gru_reset_after": _gru, "rnn": _rnn}


def listen(model: IntegerModel, state: State, x: Integers) -> State:
    """The state after x (..., T, inputs); layers that only serve the output are not run."""
    part = max((k + 1 for k, names in enumerate(model.states()) if names), default=0)
    hearing = replace(model, layers=model.layers[:part])
    own = state[:part]
    for t in range(x.shape[-2]):
        _, own = step(hearing, own, x[..., t, :])
    return (*own, *state[part:])


def run(model: IntegerModel, state: State, x: Integers) -> tuple[Integers, State]:
    """Open loop: x (..., T, inputs) -> (y (..., T, outputs), state after the last step)."""
    outputs = []
    for t in range(x.shape[-2]):
        y, state = step(model, state, x[..., t, :])
        outputs.append(y)
    return np.stack(outputs, axis=-2), state


def next_input(model: IntegerModel, x: Integers, y: Integers, future: Integers | None) -> Integers:
    """The closed loop's next input, as ``rollout.next_input``, in integers."""
    following = np.array(np.broadcast_to(x, (*y.shape[:-1], x.shape[-1])))
    known = list(model.feedback.known)
    if known:
        if future is None:
            raise BadInput("inputs known ahead need their future values", model.name)
        following[..., known] = future[..., known]
    for code in model.loop:
        moved = (y[..., code.source] * code.multiplier + code.offset + (1 << (code.shift - 1))) >> code.shift
        following[..., code.target] = fp.saturate(moved)
    return following


def closed_loop(
    model: IntegerModel, state: State, x: Integers, y: Integers, horizon: int, future: Integers | None = None
) -> tuple[Integers, State]:
    """Forecast ``horizon`` steps, as ``rollout.closed_loop``, in integers."""
    outputs = [y]
    for k in range(1, horizon):
        x = next_input(model, x, y, None if future is None else future[..., k - 1, :])
        y, state = step(model, state, x)
        outputs.append(y)
    return np.stack(outputs, axis=-2), state


def encode(model: IntegerModel, x: np.ndarray) -> Integers:
    """Physical inputs (..., inputs) to int16, in the float32 arithmetic of the generated C."""
    value = np.asarray(x, np.float32)
    if not np.isfinite(value).all():
        raise BadInput("a sample is not a finite number", model.name, "leave such samples out, as the firmware does")
    mean = np.array([c.mean for c in model.inputs], np.float32)
    gain = np.array([c.gain for c in model.inputs], np.float32)
    with np.errstate(over="ignore"):
        scaled = np.clip((value - mean) * gain, np.float32(-32768), np.float32(32767))
    return np.where(scaled < 0, -np.floor(np.float32(0.5) - scaled), np.floor(scaled + np.float32(0.5))).astype(
        np.int64
    )


def decode(model: IntegerModel, y: Integers) -> np.ndarray:
    """int16 outputs (..., outputs) to physical float32, in the arithmetic of the generated C."""
    gain = np.array([c.gain for c in model.outputs], np.float32)
    return np.asarray(y).astype(np.float32) * gain + np.array([c.mean for c in model.outputs], np.float32)
