"""The integer program in NumPy: the oracle that every other engine must equal.

Values are int64 arrays holding int16 numbers, with any leading batch axes.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np

from edgetqs import fixedpoint as fp
from edgetqs.fixedpoint import Integers
from edgetqs.integer import IntegerDense, IntegerModel, IntegerRecurrent, Matrix

#: One tuple a layer, as in ``rollout.State``.
State: TypeAlias = tuple[tuple[Integers, ...], ...]


@dataclass(slots=True)
class Trace:
    """What a step computed on its way, for naming the first difference.

    ``values`` holds (layer name, what, int array) in the order of computation;
    ``saturated`` counts values at the int16 limits by (layer name, what).
    """

    values: list[tuple[str, str, Integers]] = field(default_factory=list)
    saturated: dict[tuple[str, str], int] = field(default_factory=dict)

    def add(self, layer: str, what: str, values: Integers) -> Integers:
        self.values.append((layer, what, values))
        at_limit = int(np.count_nonzero((values >= fp.INT16_MAX) | (values <= -fp.INT16_MAX - 1)))
        if at_limit:
            self.saturated[layer, what] = self.saturated.get((layer, what), 0) + at_limit
        return values


def zero_state(model: IntegerModel, batch: tuple[int, ...] = ()) -> State:
    """The state after a reset."""

    def zeros(layer: IntegerRecurrent) -> Integers:
        return np.zeros((*batch, layer.units), np.int64)

    return tuple(
        ()
        if isinstance(layer, IntegerDense)
        else (zeros(layer), zeros(layer))
        if layer.kind == "lstm"
        else (zeros(layer),)
        for layer in model.layers
    )


def product(matrix: Matrix, x: Integers, rows: slice = slice(None)) -> Integers:
    """Rows of the matrix times x (..., columns), requantized to the matrix's output scale.

    The sums stay below 2^53, so the float64 product is exact.
    """
    sums = (x.astype(np.float64) @ matrix.weights[rows].T.astype(np.float64)).astype(np.int64) + matrix.bias[rows]
    return fp.requantize(sums, matrix.multiplier[rows], matrix.shift[rows])


def step(model: IntegerModel, state: State, x: Integers, trace: Trace | None = None) -> tuple[Integers, State]:
    """One step: x (..., inputs) int16 values -> (y (..., outputs), next state)."""
    trace = trace or Trace()
    after: list[tuple[Integers, ...]] = []
    for layer, own in zip(model.layers, state, strict=True):
        if isinstance(layer, IntegerDense):
            x, own = _dense(layer, x, trace), ()
        elif layer.kind == "lstm":
            own = _lstm(layer, x, own, trace)
            x = own[0]
        elif layer.kind == "rnn":
            x = _rnn(layer, x, own[0], trace)
            own = (x,)
        else:
            x = _gru(layer, x, own[0], trace)
            own = (x,)
        after.append(own)
    return x, tuple(after)


def _dense(layer: IntegerDense, x: Integers, trace: Trace) -> Integers:
    y = product(layer.kernel, x)
    if layer.activation == "relu":
        y = np.maximum(y, 0)
    elif layer.activation != "linear":
        trace.add(layer.name, "z", y)
        function = fp.tanh if layer.activation == "tanh" else fp.logistic
        y = function(y, *fp.table_multiplier(layer.kernel.output_scale))
    return trace.add(layer.name, "y", y)


def _parts(layer: IntegerRecurrent, x: Integers, h: Integers, gates: slice, trace: Trace) -> tuple[Integers, Integers]:
    """The input and the recurrent part of the named gates' rows."""
    rows = slice(gates.start * layer.units, gates.stop * layer.units)
    input_part, recurrent_part = product(layer.kernel, x, rows), product(layer.recurrent, h, rows)
    for number in range(gates.start, gates.stop):
        own = slice((number - gates.start) * layer.units, (number - gates.start + 1) * layer.units)
        trace.add(layer.name, f"kernel {layer.gates[number]}", input_part[..., own])
        trace.add(layer.name, f"recurrent_kernel {layer.gates[number]}", recurrent_part[..., own])
    return input_part, recurrent_part


def _lstm(layer: IntegerRecurrent, x: Integers, state: tuple[Integers, ...], trace: Trace) -> tuple[Integers, ...]:
    h, c = state
    z = fp.saturate(np.add(*_parts(layer, x, h, slice(0, 4), trace)))
    table = fp.table_multiplier(layer.z_scale)
    zi, zf, zc, zo = np.split(z, 4, axis=-1)
    i, f, o = (trace.add(layer.name, f"gate {g}", fp.logistic(v, *table)) for g, v in (("i", zi), ("f", zf), ("o", zo)))
    g = trace.add(layer.name, "gate c", fp.tanh(zc, *table))
    kept = fp.multiply(f, c, 14)
    new = fp.multiply(i, g, 29 - layer.cell_bits)
    c = trace.add(layer.name, "cell_state", fp.saturate(kept + new))
    squashed = fp.tanh(fp.rescale(c, 11 - layer.cell_bits), *fp.table_multiplier(fp.TANH_SCALE))
    h = trace.add(layer.name, "hidden_state", fp.multiply(o, squashed, 14))
    return h, c


def _gru(layer: IntegerRecurrent, x: Integers, h: Integers, trace: Trace) -> Integers:
    units, table = layer.units, fp.table_multiplier(layer.z_scale)
    input_part, recurrent_part = _parts(layer, x, h, slice(0, 2), trace)
    gates = fp.logistic(fp.saturate(input_part + recurrent_part), *table)
    z, r = gates[..., :units], gates[..., units:]
    trace.add(layer.name, "gate z", z)
    trace.add(layer.name, "gate r", r)
    if layer.kind == "gru_reset_after":
        input_part, recurrent_part = _parts(layer, x, h, slice(2, 3), trace)
        recurrent_part = fp.multiply(r, recurrent_part, 14)
    else:
        input_part, recurrent_part = _parts(layer, x, fp.multiply(r, h, 14), slice(2, 3), trace)
    new = trace.add(layer.name, "gate h", fp.tanh(fp.saturate(input_part + recurrent_part), *table))
    fresh = fp.saturate(new - fp.multiply(z, new, 14))
    return trace.add(layer.name, "hidden_state", fp.saturate(fresh + fp.multiply(z, h, 14)))


def _rnn(layer: IntegerRecurrent, x: Integers, h: Integers, trace: Trace) -> Integers:
    z = fp.saturate(np.add(*_parts(layer, x, h, slice(0, 1), trace)))
    return trace.add(layer.name, "hidden_state", fp.tanh(z, *fp.table_multiplier(layer.z_scale)))


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
    if known and future is not None:
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


def encode(model: IntegerModel, x: Integers) -> Integers:
    """Physical inputs (..., inputs) to int16, in the float32 arithmetic of the generated C."""
    value = np.asarray(x, np.float32)
    scaled = (value - np.array([c.mean for c in model.inputs], np.float32)) * np.array(
        [c.gain for c in model.inputs], np.float32
    )
    scaled = np.clip(scaled, np.float32(-32768), np.float32(32767))
    return np.where(scaled < 0, -np.floor(np.float32(0.5) - scaled), np.floor(scaled + np.float32(0.5))).astype(
        np.int64
    )


def decode(model: IntegerModel, y: Integers) -> np.ndarray:
    """int16 outputs (..., outputs) to physical float32, in the arithmetic of the generated C."""
    gain = np.array([c.gain for c in model.outputs], np.float32)
    return np.asarray(y).astype(np.float32) * gain + np.array([c.mean for c in model.outputs], np.float32)
