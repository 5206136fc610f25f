"""Scales, rounding and the integer model.

Ranges are proven where they can be: hidden states are within 1, a dense
output within sum|w| * range + |b|, the inputs within the declared range.
Pre-activations and the cell state saturate at ranges taken from synthetic
rollouts with a margin. No data is needed.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TypeAlias

import numpy as np

from edgetqs.curvature import Curvature, curvature
from edgetqs.distill import dequantized, distill
from edgetqs.errors import BadInput, Unsupported
from edgetqs.fixedpoint import INT16_MAX, UNIT_SCALE
from edgetqs.integer import (
    HARD_SLOPES,
    UNBOUNDED,
    ChannelCode,
    FeedbackCode,
    IntegerActivation,
    IntegerDense,
    IntegerLayer,
    IntegerModel,
    IntegerNormalization,
    IntegerRecurrent,
    Matrix,
    output_scale,
)
from edgetqs.lesson import Lesson
from edgetqs.matrices import Part, Style, matrices_along, nearest_matrices, read_only
from edgetqs.model import (
    RECURRENT,
    Activation,
    Channel,
    Dense,
    Forecaster,
    Gru,
    LayerNormalization,
    Lstm,
    Merge,
    Recurrent,
    SimpleRnn,
)
from edgetqs.normalization import quantize_normalization
from edgetqs.observe import Observation, observe
from edgetqs.rollout import cells, feedback_affine, side_by_side
from edgetqs.rounding import Floats
from edgetqs.units import Block, blocks

#: Pre-activation scales whose sigmoid and tanh are the same table in every engine: about +-10, 20, 41.
Z_SCALES = (5 * 2.0**-14, 5 * 2.0**-13, 5 * 2.0**-12)
#: What synthetic rollouts reach, times this, must fit.
Z_MARGIN = 1.5
CELL_MARGIN = 2.0
HIDDEN_MARGIN = 2.0
ROUNDINGS = ("nearest", "trajectory", "learned")
#: What ``trajectory`` rounding tries by rollout.
STYLES = tuple(Style(damping, clip) for damping in (0.003, 0.02, 0.1) for clip in (False, True))
#: Trajectories that the styles are tried on, others than those of the metrics.
LESSON, LESSON_SEED = 192, 7
#: Makes a layer's matrices of its parts.
Rounder: TypeAlias = Callable[..., list[Matrix]]
_HINT = "gates are computed with sigmoid or hard_sigmoid; retrain the layer with one of them"


def quantize(
    forecaster: Forecaster,
    widths: Mapping[Block, int],
    rounding: str = "trajectory",
    *,
    observations: tuple[Observation, ...] | None = None,
    metrics: tuple[Curvature, ...] | None = None,
    horizon: int | None = None,
) -> IntegerModel:
    """The integer model with ``widths`` (4 or 8) for every block of weights.

    ``horizon`` is how many steps of the closed loop rounding looks ahead (24).
    ``observations`` and ``metrics`` may be given to save time when many plans
    are tried. Raises ``Unsupported`` naming the layer for cells that have no
    exact integer form, ``BadInput`` for weights too large to be computed.
    """
    if rounding not in ROUNDINGS:
        raise BadInput(f"unknown rounding {rounding!r}", todo=f"one of: {', '.join(ROUNDINGS)}")
    missing = [block for block in blocks(forecaster) if widths.get(block) not in (4, 8)]
    if missing:
        raise BadInput(f"the plan gives no width of 4 or 8 to {missing[0]}", forecaster.name)
    check_supported(forecaster)
    if observations is None:
        observations = observe(forecaster)
    model = rounded(forecaster, widths, observations)
    if rounding == "nearest":
        return model
    if metrics is None:
        metrics = curvature(forecaster, horizon)
    model = replace(_follow(forecaster, widths, observations, metrics, model, horizon), rounding=rounding)
    return distill(forecaster, model, horizon) if rounding == "learned" else model


def rounded(
    forecaster: Forecaster,
    widths: Mapping[Block, int],
    observations: tuple[Observation, ...],
    metrics: tuple[Curvature, ...] | None = None,
    style: Style | None = None,
) -> IntegerModel:
    """Rounded to nearest, or in one style along the trajectories."""
    x_scale = power_of_two_scale(forecaster.input_range)
    scales, layers = [x_scale], []
    hidden = _hidden_bits(forecaster, observations)
    for index, (layer, seen) in enumerate(zip(forecaster.layers, observations, strict=True)):
        scale = scales[getattr(layer, "source", -1)]

        def matrices(*parts: Part, index: int = index) -> list[Matrix]:
            if style is None or metrics is None:
                return nearest_matrices(parts)
            return matrices_along(parts, metrics[index], style)

        made: IntegerLayer
        if isinstance(layer, Dense):
            made = _dense(layer, index, scale, widths, matrices)
        elif isinstance(layer, RECURRENT):
            made = _recurrent(layer, index, scale, widths, seen, matrices, hidden[index])
        elif isinstance(layer, Activation):
            made = _activation(layer, scale)
        elif isinstance(layer, LayerNormalization):
            made = _normalization(layer, scale)
        else:
            made = layer
        layers.append(made)
        scales.append(output_scale(made, scale))
    scale = scales[-1]
    return IntegerModel(
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
        "nearest",
        forecaster.sha256,
    )


def _follow(
    forecaster: Forecaster,
    widths: Mapping[Block, int],
    observations: tuple[Observation, ...],
    metrics: tuple[Curvature, ...],
    nearest: IntegerModel,
    horizon: int | None,
) -> IntegerModel:
    """The styles tried by rollout, nearest rounding among them: first for all layers, then a layer at a time.

    So the result is never worse than nearest rounding on the lesson.
    """
    lesson = Lesson.of(forecaster, Lesson.steps(forecaster, horizon), LESSON, LESSON_SEED, np.float32)
    models = [nearest]
    for style in STYLES:
        with contextlib.suppress(BadInput):  # a corrected bias that leaves its range: nearest rounding remains
            models.append(rounded(forecaster, widths, observations, metrics, style))
    students = [cells(dequantized(forecaster, model), np.float32) for model in models]
    errors = lesson.errors(forecaster, side_by_side(students))
    first = int(np.argmin(errors))
    chosen, error = [first] * len(nearest.layers), errors[first]
    for index, layer in enumerate(models[first].layers):
        others = [
            k for k, model in enumerate(models) if output_scale(model.layers[index], 1.0) == output_scale(layer, 1.0)
        ]
        trials = [[*chosen[:index], k, *chosen[index + 1 :]] for k in others]
        stacks = [tuple(students[k][at] for at, k in enumerate(trial)) for trial in trials]
        errors = lesson.errors(forecaster, side_by_side(stacks))
        if errors.min() < error:
            chosen, error = trials[int(np.argmin(errors))], errors.min()
    return replace(nearest, layers=tuple(models[k].layers[at] for at, k in enumerate(chosen)))


def check_supported(forecaster: Forecaster) -> None:
    """Raise ``Unsupported`` for the first layer that has no exact integer form."""
    for layer in forecaster.layers:
        if isinstance(layer, RECURRENT):
            gate = getattr(layer, "recurrent_activation", "sigmoid")
            if gate not in ("sigmoid", *HARD_SLOPES):
                raise Unsupported(f"recurrent_activation {gate!r} cannot be deployed", layer.name, _HINT)
            if layer.activation in UNBOUNDED and any(
                isinstance(m, Merge) and m.mode == "mul" for m in forecaster.layers
            ):
                todo = "train it with merge_mode='concat', or with tanh"
                raise Unsupported(f"merge_mode 'mul' of {layer.activation} cells cannot be deployed", layer.name, todo)


def _hidden_bits(forecaster: Forecaster, observations: Sequence[Observation]) -> list[int]:
    """By layer, k of the hidden states' scale 2^-k; layers that are merged have the same."""
    bits = []
    for layer, seen in zip(forecaster.layers, observations, strict=True):
        unbounded = isinstance(layer, RECURRENT) and layer.activation in UNBOUNDED
        bits.append(_bits(HIDDEN_MARGIN * seen.hidden_peak) if unbounded else 15)
        if isinstance(layer, Merge):
            bits[-3:-1] = [min(bits[-3:-1])] * 2
    return bits


def _bits(bound: float) -> int:
    """k of the int16 scale 2^-k that holds +-bound, from 2^-15 to 2^-3."""
    return max(3, min(15, 15 - math.ceil(math.log2(max(bound, 2.0**-14)))))


def power_of_two_scale(bound: float) -> float:
    """The int16 scale 2^-k that holds +-bound."""
    return 2.0 ** (math.ceil(math.log2(max(bound, 2.0**-14))) - 15)


def _widths(widths: Mapping[Block, int], index: int, tensor: str, layer: Recurrent | Dense) -> tuple[int, ...]:
    return tuple(widths[Block(index, tensor, gate)] for gate in range(len(layer.gates)))


def _recurrent(
    layer: Recurrent,
    index: int,
    scale: float,
    widths: Mapping[Block, int],
    seen: Observation,
    matrices: Rounder,
    hidden_bits: int,
) -> IntegerRecurrent:
    weights, recurrent_weights = (w.astype(np.float64) for w in (layer.kernel, layer.recurrent_kernel))
    bias = layer.bias.astype(np.float64)
    recurrent_bias = np.zeros_like(bias)
    kind = {Lstm: "lstm", Gru: "gru", SimpleRnn: "rnn"}[type(layer)]
    if isinstance(layer, Gru) and layer.reset_after:
        kind = "gru_reset_after"
        recurrent_bias[2] = layer.recurrent_bias[2]
        bias[:2] += layer.recurrent_bias[:2]
    h_scale = 2.0**-hidden_bits
    bound = max(_bound(weights, bias, scale), _bound(recurrent_weights, recurrent_bias, h_scale))
    needed = min(bound, Z_MARGIN * seen.part_peak)
    z_scale = next((s for s in Z_SCALES if needed <= INT16_MAX * s), Z_SCALES[-1])
    clip = getattr(layer, "cell_clip", 0.0) or math.inf
    cell_bits = min(11, _bits(min(CELL_MARGIN * seen.cell_peak, clip)))
    limit = round(min(clip * 2.0**cell_bits, INT16_MAX + 1)) if CELL_MARGIN * seen.cell_peak > clip else INT16_MAX + 1

    kernel, recurrent = matrices(
        Part(f"{layer.name}/kernel", weights, bias, _widths(widths, index, "kernel", layer), scale, z_scale),
        Part(
            f"{layer.name}/recurrent_kernel",
            recurrent_weights,
            recurrent_bias,
            _widths(widths, index, "recurrent_kernel", layer),
            h_scale,
            z_scale,
        ),
    )
    return IntegerRecurrent(
        layer.name,
        kind,  # type: ignore[arg-type]
        layer.kernel.shape[1],
        layer.gates,
        kernel,
        recurrent,
        z_scale,
        getattr(layer, "recurrent_activation", "sigmoid"),
        cell_bits,
        limit,
        layer.activation,
        hidden_bits,
        layer.frames,
        layer.source,
        layer.return_sequences,
        layer.go_backwards,
    )


def _dense(layer: Dense, index: int, scale: float, widths: Mapping[Block, int], matrices: Rounder) -> IntegerDense:
    weights, bias = layer.kernel.astype(np.float64), layer.bias.astype(np.float64)
    bound = _bound(weights, bias, scale)
    if layer.activation == "softmax":
        product_scale = min(max(power_of_two_scale(bound * 1.02), 2.0**-13), 2.0)
        output_scale = UNIT_SCALE
    elif layer.activation not in UNBOUNDED:
        product_scale = next((s for s in Z_SCALES if bound <= INT16_MAX * s), Z_SCALES[-1])
        output_scale = UNIT_SCALE
    else:
        product_scale = output_scale = power_of_two_scale(bound * 1.02)
    own = _widths(widths, index, "kernel", layer)
    (matrix,) = matrices(Part(f"{layer.name}/kernel", weights, bias, own, scale, product_scale))
    while layer.activation in UNBOUNDED and matrix.reach() > INT16_MAX:  # rounding went past the float bound
        output_scale *= 2
        matrix = replace(matrix, shift=read_only(matrix.shift + 1, np.int64), output_scale=output_scale)
    return IntegerDense(layer.name, matrix, layer.activation, output_scale, layer.frames)


def _normalization(layer: LayerNormalization, scale: float) -> IntegerNormalization:
    """At the scale that holds anything: n values of unit variance are within sqrt(n - 1)."""
    gamma, beta = layer.gamma.astype(np.float64), layer.beta.astype(np.float64)
    bound = float((np.abs(gamma) * math.sqrt(len(gamma)) + np.abs(beta)).max())
    try:
        made = quantize_normalization(gamma, beta, layer.epsilon, scale, power_of_two_scale(bound * 1.001))
    except ValueError as error:
        raise Unsupported(str(error), layer.name, "normalise over fewer features, or scale its input up") from error
    return IntegerNormalization(layer.name, made, layer.count)


def _activation(layer: Activation, scale: float) -> IntegerActivation:
    """Tables read the finest scale that holds all of the input's."""
    bits = round(-math.log2(scale))
    z_bits = next((k for k in (14, 13) if 5 * 2.0**-k >= scale), 12)
    if layer.function != "relu" and z_bits - 2 - bits > 15:  # the way to the table would leave 31 bits
        todo = "put a normalisation ahead of it, or check the trained model's scaling"
        raise Unsupported(f"its input may be as large as {scale * (INT16_MAX + 1):g}", layer.name, todo)
    return IntegerActivation(layer.name, layer.function, bits, z_bits)


def _bound(weights: Floats, bias: Floats, input_scale: float) -> float:
    """The largest |W x + b| for any int16 x."""
    return float((np.abs(weights).sum(axis=-1) * (INT16_MAX + 1) * input_scale + np.abs(bias)).max())


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
