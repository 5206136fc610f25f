"""The integer program in NumPy: the oracle that every other engine must equal.

Values are int64 arrays holding int16 numbers, with any leading batch axes.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np

from edgetqs import fixedpoint as fp
from edgetqs.errors import BadInput
from edgetqs.fixedpoint import Integers
from edgetqs.integer import HARD_SLOPES, IntegerDense, IntegerModel, IntegerRecurrent, Matrix

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
    """Rows of the matrix times x (..., columns), requantized to the matrix's output scale, not saturated.

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
    y = trace.saturate(layer.name, "kernel", product(layer.kernel, x))
    if layer.activation == "relu":
        y = np.maximum(y, 0)
    elif layer.activation != "linear":
        function = fp.tanh if layer.activation == "tanh" else fp.logistic
        y = function(y, *fp.table_multiplier(layer.kernel.output_scale))
    return trace.add(layer.name, "output", y)


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
    if layer.gate == "sigmoid":
        return fp.logistic(z, *fp.table_multiplier(layer.z_scale))
    return fp.hard_sigmoid(z, layer.z_bits, HARD_SLOPES[layer.gate])


def _lstm(layer: IntegerRecurrent, x: Integers, state: tuple[Integers, ...], trace: Trace) -> tuple[Integers, ...]:
    h, c = state
    zi, zf, zc, zo = _gates(layer, 0, _parts(layer, x, h, slice(0, 4), trace), trace)
    i, f, o = (squash(layer, z) for z in (zi, zf, zo))
    kept = fp.multiply(f, c, 14)
    new = fp.multiply(i, fp.tanh(zc, *fp.table_multiplier(layer.z_scale)), 29 - layer.cell_bits)
    c = trace.add(layer.name, "cell_state", trace.saturate(layer.name, "cell_state", kept + new))
    squashed = fp.tanh(fp.rescale(c, 11 - layer.cell_bits), *fp.table_multiplier(fp.TANH_SCALE))
    h = trace.add(layer.name, "hidden_state", fp.multiply(o, squashed, 14))
    return h, c


def _gru(layer: IntegerRecurrent, x: Integers, h: Integers, trace: Trace) -> Integers:
    zz, zr = _gates(layer, 0, _parts(layer, x, h, slice(0, 2), trace), trace)
    z, r = squash(layer, zz), squash(layer, zr)
    if layer.kind == "gru_reset_after":
        input_part, recurrent_part = _parts(layer, x, h, slice(2, 3), trace)
        recurrent_part = fp.multiply(r, recurrent_part, 14)
    else:
        input_part, recurrent_part = _parts(layer, x, fp.multiply(r, h, 14), slice(2, 3), trace)
    (zh,) = _gates(layer, 2, (input_part, recurrent_part), trace)
    new = fp.tanh(zh, *fp.table_multiplier(layer.z_scale))
    fresh = fp.saturate(new - fp.multiply(z, new, 14))
    return trace.add(layer.name, "hidden_state", fp.saturate(fresh + fp.multiply(z, h, 14)))


def _rnn(layer: IntegerRecurrent, x: Integers, h: Integers, trace: Trace) -> Integers:
    (z,) = _gates(layer, 0, _parts(layer, x, h, slice(0, 1), trace), trace)
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
