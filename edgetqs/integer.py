"""The integer model: what every engine computes, as frozen dataclasses.

A ``Matrix`` is one part of a layer (input rows or recurrent rows): integer
weights, one scale a row, and the exact requantization multiplier * 2^-shift
to the layer's pre-activation scale. All activations are int16.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np

from edgetqs.fixedpoint import INT16_MAX, UNIT_SCALE, Integers, requantize
from edgetqs.model import Array, Feedback, Frames, Merge, Pool, Window
from edgetqs.normalization import Normalization

#: Activations of cells whose values may be of any size.
UNBOUNDED = ("linear", "relu")
#: Slopes of the hard sigmoids, by the names of ``model.ACTIVATIONS``.
HARD_SLOPES = {"hard_sigmoid_keras2": "0.2", "hard_sigmoid_keras3": "1/6"}

#: Largest magnitude an int32 accumulator may reach.
ACCUMULATOR_LIMIT = 2**31 - 1


@dataclass(frozen=True, slots=True)
class Matrix:
    """``y = requantize(weights @ x + bias, multiplier, shift)``.

    weights (rows, columns) int8 within [-127, 127] or, for gates of width 4,
    [-7, 7]; bias (rows,) int64; multiplier odd and below 2^15. ``widths``
    holds one width a gate; each gate has rows / len(widths) rows.
    """

    weights: Integers
    widths: tuple[int, ...]
    scales: Array
    multiplier: Integers
    shift: Integers
    bias: Integers
    input_scale: float
    output_scale: float

    @property
    def gate_rows(self) -> int:
        return len(self.weights) // len(self.widths)

    @property
    def columns(self) -> int:
        return self.weights.shape[1]

    def groups(self) -> list[tuple[int, int, int]]:
        """(first row, last row + 1, width) of each run of gates of one width."""
        runs: list[tuple[int, int, int]] = []
        for gate, width in enumerate(self.widths):
            start, stop = gate * self.gate_rows, (gate + 1) * self.gate_rows
            if runs and runs[-1][2] == width:
                start = runs.pop()[0]
            runs.append((start, stop, width))
        return runs

    def dequantized(self) -> Array:
        """The float weights the integers stand for."""
        return (self.weights * self.scales[:, None]).astype(np.float32)

    def accumulator_bound(self) -> Integers:
        """(rows,) the largest |weights @ x + bias| any int16 input can cause."""
        return np.abs(self.weights.astype(np.int64)).sum(axis=1) * (INT16_MAX + 1) + np.abs(self.bias)

    def reach(self) -> int:
        """The largest value any int16 input can give, before saturation."""
        return int(requantize(self.accumulator_bound(), self.multiplier, self.shift).max())


@dataclass(frozen=True, slots=True)
class IntegerRecurrent:
    """An LSTM, GRU or SimpleRNN; pre-activations at ``z_scale``, hidden states at 2^-hidden_bits.

    That is 2^-15, except where ``activation`` has no bounds: there hidden
    states saturate, as the cell state does. ``frames`` and what belongs to
    them are told in ``model``.
    """

    name: str
    kind: Literal["lstm", "gru", "gru_reset_after", "rnn"]
    units: int
    gates: tuple[str, ...]
    kernel: Matrix
    recurrent: Matrix
    z_scale: float
    gate: str = "sigmoid"  # what the gates are squashed with: as model.ACTIVATIONS
    cell_bits: int = 11  # the cell state's scale is 2^-cell_bits (lstm only)
    cell_limit: int = INT16_MAX + 1  # |c| <= cell_limit, as TFLite's fused LSTM has it
    activation: str = "tanh"
    hidden_bits: int = 15
    frames: Frames | None = None
    source: int = -1
    return_sequences: bool = False
    go_backwards: bool = False

    @property
    def z_bits(self) -> int:
        """z_scale is 5 * 2^-z_bits."""
        return round(math.log2(5 / self.z_scale))

    @property
    def limited(self) -> bool:
        """Whether the cell state is clipped to less than an int16 holds."""
        return self.cell_limit <= INT16_MAX

    @property
    def bounded(self) -> bool:
        """Whether the activation's values are within 1."""
        return self.activation not in UNBOUNDED

    @property
    def order(self) -> range:
        """The frames, in the order in which they are computed."""
        return self.frames.order(self.go_backwards) if self.frames else range(0)

    @property
    def state_scales(self) -> tuple[float, ...]:
        """Of the hidden state and, for an LSTM, the cell state."""
        hidden = 2.0**-self.hidden_bits
        return (hidden, 2.0**-self.cell_bits) if self.kind == "lstm" else (hidden,)


@dataclass(frozen=True, slots=True)
class IntegerDense:
    """A dense layer; tanh and sigmoid read the product at ``kernel.output_scale`` and give 2^-15."""

    name: str
    kernel: Matrix
    activation: str
    output_scale: float
    frames: Frames | None = None


@dataclass(frozen=True, slots=True)
class IntegerActivation:
    """relu, or a function by table, of values at 2^-input_bits; tables read them at 5 * 2^-z_bits and give 2^-15."""

    name: str
    function: str
    input_bits: int
    z_bits: int

    @property
    def output_scale(self) -> float:
        return 2.0**-self.input_bits if self.function == "relu" else UNIT_SCALE


@dataclass(frozen=True, slots=True)
class IntegerNormalization:
    """LayerNormalization of each of ``count`` frames."""

    name: str
    layer: Normalization
    count: int

    @property
    def output_scale(self) -> float:
        return self.layer.output_scale


#: What has no weights is the same in integers.
IntegerLayer: TypeAlias = (
    IntegerRecurrent | IntegerDense | IntegerActivation | IntegerNormalization | Window | Pool | Merge
)


def output_scale(layer: IntegerLayer, scale: float) -> float:
    """The scale of what a layer gives to the next, from that of what it reads."""
    if isinstance(layer, IntegerRecurrent):
        return layer.state_scales[0]
    return layer.output_scale if isinstance(layer, (IntegerDense, IntegerActivation, IntegerNormalization)) else scale


@dataclass(frozen=True, slots=True)
class ChannelCode:
    """Conversion of one channel between physical float32 and int16.

    Inputs: q = round((value - mean) * gain); outputs: value = q * gain + mean.
    ``mean`` and ``gain`` are float32 values.
    """

    name: str
    unit: str
    mean: float
    gain: float


@dataclass(frozen=True, slots=True)
class FeedbackCode:
    """x[target] = saturate((y[source] * multiplier + offset + 2^(shift-1)) >> shift)."""

    source: int
    target: int
    multiplier: int
    offset: int
    shift: int


@dataclass(frozen=True, slots=True)
class IntegerModel:
    """The whole forecaster in integers."""

    name: str
    layers: tuple[IntegerLayer, ...]
    inputs: tuple[ChannelCode, ...]
    outputs: tuple[ChannelCode, ...]
    input_scale: float
    output_scale: float
    window: int
    feedback: Feedback
    loop: tuple[FeedbackCode, ...]
    sequence_output: bool
    rounding: str
    model_sha256: str

    def states(self) -> list[tuple[str, ...]]:
        """Names of each layer's states: h0, c0, h1, ... of recurrent layers, w0, ... of windows."""
        found: list[tuple[str, ...]] = []
        recurrent = windows = 0
        for layer in self.layers:
            if isinstance(layer, IntegerRecurrent) and layer.frames is None:
                found.append((f"h{recurrent}", f"c{recurrent}") if layer.kind == "lstm" else (f"h{recurrent}",))
                recurrent += 1
            elif isinstance(layer, Window):
                found.append((f"w{windows}",))
                windows += 1
            else:
                found.append(())
        return found

    def matrices(self) -> list[tuple[int, str, Matrix]]:
        """(layer index, tensor name, matrix) of every matrix, in the order of storage."""
        found: list[tuple[int, str, Matrix]] = []
        for index, layer in enumerate(self.layers):
            if isinstance(layer, (IntegerDense, IntegerRecurrent)):
                found.append((index, "kernel", layer.kernel))
            if isinstance(layer, IntegerRecurrent):
                found.append((index, "recurrent_kernel", layer.recurrent))
        return found
