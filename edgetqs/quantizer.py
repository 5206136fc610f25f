"""Scales, rounding and the integer model.

Ranges are proven where they can be: hidden states are within 1, a dense
output within sum|w| * range + |b|, the inputs within the declared range.
Pre-activations and the cell state saturate at ranges taken from synthetic
rollouts with a margin. No data is needed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from edgetqs import rounding as rnd
from edgetqs.distill import distill
from edgetqs.errors import BadInput, Unsupported
from edgetqs.fixedpoint import INT16_MAX, UNIT_SCALE
from edgetqs.integer import (
    ACCUMULATOR_LIMIT,
    HARD_SLOPES,
    ChannelCode,
    FeedbackCode,
    IntegerDense,
    IntegerLayer,
    IntegerModel,
    IntegerRecurrent,
    Matrix,
)
from edgetqs.model import RECURRENT, Channel, Dense, Forecaster, Gru, Lstm, Recurrent, SimpleRnn
from edgetqs.observe import Observation, observe
from edgetqs.rollout import feedback_affine
from edgetqs.rounding import Floats
from edgetqs.units import Block, blocks

#: Pre-activation scales whose sigmoid and tanh are the same table in every engine: about +-10, 20, 41.
Z_SCALES = (5 * 2.0**-14, 5 * 2.0**-13, 5 * 2.0**-12)
#: What synthetic rollouts reach, times this, must fit.
Z_MARGIN = 1.5
CELL_MARGIN = 2.0
ROUNDINGS = ("nearest", "trajectory", "learned")
_HINT = "edgetqs computes tanh cells with sigmoid or hard_sigmoid gates exactly; retrain the layer with them"


def quantize(
    forecaster: Forecaster,
    widths: Mapping[Block, int],
    rounding: str = "trajectory",
    *,
    observations: tuple[Observation, ...] | None = None,
) -> IntegerModel:
    """The integer model with ``widths`` (4 or 8) for every block of weights.

    ``observations`` may be given to save time when many plans are tried.
    Raises ``Unsupported`` naming the layer for cells that have no exact
    integer form, ``BadInput`` for weights too large to be computed.
    """
    if rounding not in ROUNDINGS:
        raise BadInput(f"unknown rounding {rounding!r}", todo=f"one of: {', '.join(ROUNDINGS)}")
    missing = [block for block in blocks(forecaster) if widths.get(block) not in (4, 8)]
    if missing:
        raise BadInput(f"the plan gives no width of 4 or 8 to {missing[0]}", forecaster.name)
    check_supported(forecaster)
    if observations is None:
        observations = observe(forecaster)
    x_scale = power_of_two_scale(forecaster.input_range)
    scale, layers = x_scale, []
    for index, (layer, seen) in enumerate(zip(forecaster.layers, observations, strict=True)):
        made: IntegerLayer
        if isinstance(layer, Dense):
            made = _dense(layer, scale, _widths(widths, index, "kernel", layer), seen, rounding)
            scale = made.output_scale
        else:
            assert isinstance(layer, RECURRENT)
            made = _recurrent(layer, index, scale, widths, seen, rounding)
            scale = UNIT_SCALE
        layers.append(made)
    model = IntegerModel(
        forecaster.name,
        tuple(layers),
        tuple(_input_code(channel, x_scale) for channel in forecaster.inputs),
        tuple(_output_code(channel, scale) for channel in forecaster.outputs),
        x_scale,
        scale,
        forecaster.window,
        forecaster.feedback,
        tuple(_feedback_code(forecaster, pair, scale, x_scale) for pair in forecaster.feedback.pairs),
        forecaster.sequence_output,
        rounding,
        forecaster.sha256,
    )
    return distill(forecaster, model) if rounding == "learned" else model


def check_supported(forecaster: Forecaster) -> None:
    """Raise ``Unsupported`` for the first layer that has no exact integer form."""
    for layer in forecaster.layers:
        if isinstance(layer, Dense):
            if layer.activation not in ("linear", "relu", "tanh", "sigmoid"):
                raise Unsupported(f"activation {layer.activation!r} cannot be deployed yet", layer.name, _HINT)
        elif isinstance(layer, RECURRENT):
            if layer.go_backwards:
                raise Unsupported("go_backwards cannot run sample by sample", layer.name, "train it forwards")
            if layer.activation != "tanh":
                raise Unsupported(f"activation {layer.activation!r} cannot be deployed yet", layer.name, _HINT)
            gate = getattr(layer, "recurrent_activation", "sigmoid")
            if gate not in ("sigmoid", *HARD_SLOPES):
                raise Unsupported(f"recurrent_activation {gate!r} cannot be deployed yet", layer.name, _HINT)
        else:
            raise Unsupported(
                f"a {type(layer).__name__} layer cannot run sample by sample",
                layer.name,
                "deploy a model of LSTM, GRU, SimpleRNN and Dense layers; `edgetqs inspect` shows each layer",
            )


def power_of_two_scale(bound: float) -> float:
    """The int16 scale 2^-k that holds +-bound."""
    return 2.0 ** (math.ceil(math.log2(max(bound, 2.0**-14))) - 15)


def _widths(widths: Mapping[Block, int], index: int, tensor: str, layer: Recurrent | Dense) -> tuple[int, ...]:
    return tuple(widths[Block(index, tensor, gate)] for gate in range(len(layer.gates)))


@dataclass(frozen=True, slots=True)
class _Part:
    """One matrix to be quantized: its float rows by gate and what multiplies them."""

    where: str
    weights: Floats  # (gates, units, columns)
    bias: Floats  # (gates, units)
    widths: tuple[int, ...]
    moments: tuple[Floats, ...]  # one a gate
    input_scale: float
    output_scale: float


@dataclass(frozen=True, slots=True)
class _Rounded:
    integers: np.ndarray  # (rows, columns)
    multiplier: np.ndarray  # (rows,)
    shift: np.ndarray  # (rows,)
    scales: Floats  # (rows,)
    bias: Floats  # (gates, units), corrected for the mean rounding error


def _recurrent(
    layer: Recurrent, index: int, scale: float, widths: Mapping[Block, int], seen: Observation, rounding: str
) -> IntegerRecurrent:
    weights, recurrent_weights = (w.astype(np.float64) for w in (layer.kernel, layer.recurrent_kernel))
    bias = layer.bias.astype(np.float64)
    recurrent_bias = np.zeros_like(bias)
    kind = {Lstm: "lstm", Gru: "gru", SimpleRnn: "rnn"}[type(layer)]
    if isinstance(layer, Gru) and layer.reset_after:
        kind = "gru_reset_after"
        recurrent_bias[2] = layer.recurrent_bias[2]
        bias[:2] += layer.recurrent_bias[:2]
    bound = max(_bound(weights, bias, scale), _bound(recurrent_weights, recurrent_bias, UNIT_SCALE))
    needed = min(bound, Z_MARGIN * seen.part_peak)
    z_scale = next((s for s in Z_SCALES if needed <= INT16_MAX * s), Z_SCALES[-1])
    cell_bits = 11
    while CELL_MARGIN * seen.cell_peak > 2.0 ** (15 - cell_bits) and cell_bits > 3:
        cell_bits -= 1

    recurrent_part = _Part(
        f"{layer.name}/recurrent_kernel",
        recurrent_weights,
        recurrent_bias,
        _widths(widths, index, "recurrent_kernel", layer),
        seen.hidden_moments,
        UNIT_SCALE,
        z_scale,
    )
    recurrent = _round(recurrent_part, rounding)
    correction = recurrent.bias - recurrent_bias
    stays = np.zeros_like(correction)
    if kind == "gru_reset_after":
        stays[2] = correction[2]  # the candidate's recurrent part is multiplied by the reset gate before the sum
    input_part = _Part(
        f"{layer.name}/kernel",
        weights,
        bias + correction - stays,
        _widths(widths, index, "kernel", layer),
        (seen.input_moments,) * len(layer.gates),
        scale,
        z_scale,
    )
    kernel = _round(input_part, rounding)
    return IntegerRecurrent(
        layer.name,
        kind,  # type: ignore[arg-type]
        layer.kernel.shape[1],
        layer.gates,
        _matrix(input_part, kernel, kernel.bias),
        _matrix(recurrent_part, recurrent, recurrent_bias + stays),
        z_scale,
        getattr(layer, "recurrent_activation", "sigmoid"),
        cell_bits,
    )


def _dense(layer: Dense, scale: float, widths: tuple[int, ...], seen: Observation, rounding: str) -> IntegerDense:
    weights, bias = layer.kernel.astype(np.float64), layer.bias.astype(np.float64)
    bound = _bound(weights, bias, scale)
    if layer.activation in ("tanh", "sigmoid"):
        product_scale = next((s for s in Z_SCALES if bound <= INT16_MAX * s), Z_SCALES[-1])
        output_scale = UNIT_SCALE
    else:
        product_scale = output_scale = power_of_two_scale(bound * 1.02)
    part = _Part(f"{layer.name}/kernel", weights, bias, widths, (seen.input_moments,), scale, product_scale)
    rounded = _round(part, rounding)
    matrix = _matrix(part, rounded, rounded.bias)
    while layer.activation in ("linear", "relu") and matrix.reach() > INT16_MAX:  # rounding went past the float bound
        output_scale *= 2
        matrix = replace(matrix, shift=_read_only(matrix.shift + 1, np.int64), output_scale=output_scale)
    return IntegerDense(layer.name, matrix, layer.activation, output_scale)  # type: ignore[arg-type]


def _bound(weights: Floats, bias: Floats, input_scale: float) -> float:
    """The largest |W x + b| for any int16 x."""
    return float((np.abs(weights).sum(axis=-1) * (INT16_MAX + 1) * input_scale + np.abs(bias)).max())


def _round(part: _Part, rounding: str) -> _Rounded:
    _, units, columns = part.weights.shape
    weights = part.weights.reshape(-1, columns)
    limits = np.repeat([float(rnd.limit(width)) for width in part.widths], units)
    scales = np.abs(weights).max(axis=1) / limits
    # The bias is stored in steps of input_scale * scale and must leave room in an int32.
    floor = np.abs(part.bias).reshape(-1) / (part.input_scale * 2.0**29)
    if rounding == "nearest":
        multiplier, shift, scales = _grid(np.maximum(scales, floor), part)
        return _Rounded(rnd.nearest(weights, scales, limits), multiplier, shift, scales, part.bias)
    integers, bias = np.zeros(weights.shape, np.int64), np.zeros_like(part.bias)
    for gate, moments in enumerate(part.moments):
        rows = slice(gate * units, (gate + 1) * units)
        scales[rows] = rnd.clip_scales(weights[rows], np.maximum(scales[rows], 1e-30), limits[rows], moments)
    multiplier, shift, scales = _grid(np.maximum(scales, floor), part)
    for gate, moments in enumerate(part.moments):
        rows = slice(gate * units, (gate + 1) * units)
        integers[rows], bias[gate] = rnd.trajectory(weights[rows], part.bias[gate], scales[rows], limits[rows], moments)
    return _Rounded(integers, multiplier, shift, scales, bias)


def _grid(scales: Floats, part: _Part) -> tuple[np.ndarray, np.ndarray, Floats]:
    """Row scales rounded up so that input_scale * scale / output_scale is m * 2^-n, m odd and below 2^15.

    Then every engine requantizes alike. Rows of zeros take a scale that
    leaves their bias 16 fractional bits.
    """
    ratio = part.input_scale / part.output_scale
    wanted = np.maximum(scales * ratio, 2.0**-31)
    wanted[scales < 1e-30] = 2.0**-16
    mantissa, exponent = np.frexp(wanted)
    multiplier = np.minimum(np.ceil(mantissa * 2**15).astype(np.int64) | 1, 2**15 - 1)
    shift = 15 - exponent.astype(np.int64)
    if (shift < 1).any():
        raise BadInput("weights are too large for 16-bit activations", part.where, "check the trained model's scaling")
    return multiplier, shift, multiplier * 2.0 ** -shift.astype(np.float64) / ratio


def _matrix(part: _Part, rounded: _Rounded, bias: Floats) -> Matrix:
    steps = np.rint(bias.reshape(-1) / (part.input_scale * rounded.scales)).astype(np.int64)
    matrix = Matrix(
        _read_only(rounded.integers, np.int8),
        part.widths,
        _read_only(rounded.scales, np.float32),
        _read_only(rounded.multiplier, np.int64),
        _read_only(rounded.shift, np.int64),
        _read_only(steps, np.int64),
        part.input_scale,
        part.output_scale,
    )
    if not computable(matrix):
        raise BadInput("weights or biases are too large for 32-bit sums", part.where, "check the trained model")
    return matrix


def computable(matrix: Matrix) -> bool:
    """Whether every bias fits an int32, and every row's value before saturation, for any int16 input."""
    return bool((np.abs(matrix.bias) <= ACCUMULATOR_LIMIT).all()) and matrix.reach() < 2**31


def _read_only(values: np.ndarray, dtype: type) -> np.ndarray:
    copy: np.ndarray = values.astype(dtype)
    copy.setflags(write=False)
    return copy


def _input_code(channel: Channel, scale: float) -> ChannelCode:
    return _code(channel, 1 / max(channel.std * scale, 1e-300))


def _output_code(channel: Channel, scale: float) -> ChannelCode:
    return _code(channel, channel.std * scale)


def _code(channel: Channel, gain: float) -> ChannelCode:
    with np.errstate(over="ignore"):
        mean, gain = float(np.float32(channel.mean)), float(np.float32(gain))
    if not (math.isfinite(mean) and np.finfo(np.float32).tiny <= gain < math.inf):
        raise BadInput("mean or standard deviation is beyond float32", channel.name, "use a unit of another size")
    return ChannelCode(channel.name, channel.unit, mean, gain)


def _feedback_code(forecaster: Forecaster, pair: tuple[int, int], y_scale: float, x_scale: float) -> FeedbackCode:
    gain, offset = feedback_affine(forecaster, *pair)
    mantissa, exponent = math.frexp(gain * y_scale / x_scale)
    shift = 15 - exponent
    if not 1 <= shift <= 40 or abs(offset) > 2.0**15 or abs(offset / x_scale) * 2.0**shift >= 2.0**62:
        raise BadInput(
            f"output {forecaster.outputs[pair[0]].name} and input {forecaster.inputs[pair[1]].name} "
            f"are scaled too differently to be fed back",
            forecaster.name,
            "give both the same mean and std in edgetqs.toml",
        )
    multiplier = min(round(mantissa * 2**15), 2**15 - 1) if mantissa != 0.5 else 2**14
    return FeedbackCode(*pair, multiplier, round(offset / x_scale * 2.0**shift), shift)
