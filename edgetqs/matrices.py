"""From float rows to integer matrices: row scales on the engines' grid, rounding, biases.

The matrices of one layer are rounded together: a row's input weights,
recurrent weights and bias make one pre-activation, so what one of them errs
another can make up for, whatever their widths.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from edgetqs import rounding as rnd
from edgetqs.curvature import Curvature
from edgetqs.errors import BadInput
from edgetqs.integer import ACCUMULATOR_LIMIT, Matrix
from edgetqs.rounding import Floats

#: Weights this near to multiples of a scale, in steps, are taken for such.
ON_GRID = 2**-7


@dataclass(frozen=True, slots=True)
class Part:
    """One matrix to be quantized: its float rows by gate and what multiplies them."""

    where: str
    weights: Floats  # (gates, units, columns)
    bias: Floats  # (gates, units)
    widths: tuple[int, ...]
    input_scale: float
    output_scale: float

    @property
    def limits(self) -> Floats:
        """(gates, units) the largest integers."""
        return np.broadcast_to(np.array([[float(rnd.limit(width))] for width in self.widths]), self.bias.shape)


@dataclass(frozen=True, slots=True)
class Style:
    """One way to round along the trajectories: ``damping`` of the metric, and whether scales may clip."""

    damping: float
    clip: bool


def nearest_matrices(parts: Sequence[Part]) -> list[Matrix]:
    """Each weight rounded on its own."""
    made = []
    for part in parts:
        multiplier, shift, scales = _grid(_fitting(part), part)
        integers = rnd.nearest(_flat(part.weights), scales, part.limits.reshape(-1))
        made.append(_matrix(part, integers, multiplier, shift, scales, part.bias))
    return made


def matrices_along(parts: Sequence[Part], metrics: Curvature, style: Style) -> list[Matrix]:
    """The parts (input, recurrent) rounded together so that the rollout feels it least.

    The first part's bias takes the mean error; the second's too where the
    metrics have a column for it.
    """
    columns = np.cumsum([0, *(part.weights.shape[-1] for part in parts)])
    fitting = [_fitting(part).reshape(part.bias.shape) for part in parts]
    integers = [np.zeros(part.weights.shape, np.int64) for part in parts]
    biases = [part.bias.copy() for part in parts]
    damped = [
        rnd.damped(metric.astype(np.float64), metric.shape[-1] - columns[-1], style.damping) for metric in metrics.gates
    ]
    if style.clip:
        for gate, metric in enumerate(damped):
            free = metric.shape[-1] - columns[-1]
            for k, part in enumerate(parts):
                own = rnd.without_free(metric, slice(columns[k], columns[k + 1]), free)
                scales = np.maximum(fitting[k][gate], 1e-30)
                fitting[k][gate] = rnd.clip_scales(part.weights[gate], scales, part.limits[gate], own)
    grids = [_grid(np.maximum(fits.reshape(-1), _floor(part)), part) for fits, part in zip(fitting, parts, strict=True)]
    for gate, metric in enumerate(damped):
        free = metric.shape[-1] - columns[-1]
        spread = [(part, grid[2].reshape(part.bias.shape)[gate]) for part, grid in zip(parts, grids, strict=True)]
        rounded, corrected = rnd.along(
            np.concatenate([part.weights[gate] for part in parts], axis=1),
            np.stack([bias[gate] for bias in biases[:free]], axis=1),
            np.concatenate([np.repeat(scales[:, None], part.weights.shape[-1], axis=1) for part, scales in spread], 1),
            np.concatenate(
                [np.repeat(part.limits[gate][:, None], part.weights.shape[-1], axis=1) for part in parts], 1
            ),
            metric,
        )
        for k, made in enumerate(integers):
            made[gate] = rounded[:, columns[k] : columns[k + 1]]
        for k in range(free):
            biases[k][gate] = corrected[:, k]
    return [
        _matrix(part, _flat(made), *grid, bias)
        for part, made, grid, bias in zip(parts, integers, grids, biases, strict=True)
    ]


def _flat(weights: np.ndarray) -> np.ndarray:
    """(gates, units, columns) -> (rows, columns)."""
    return weights.reshape(-1, weights.shape[-1])


def _fitting(part: Part) -> Floats:
    """(rows,) scales that fit each row's largest weight, or the scale that the weights were quantized with before."""
    rows = np.abs(part.weights).max(axis=2)
    scales = rows / part.limits
    for largest in (rows.max(axis=1, keepdims=True), rows.max(keepdims=True)):  # one scale a gate, one for all
        shared = np.broadcast_to(largest / part.limits, scales.shape)
        scales = np.where(~_on_grid(part, scales) & _on_grid(part, shared), shared, scales)
    return np.maximum(scales.reshape(-1), _floor(part))


def _on_grid(part: Part, scales: Floats) -> np.ndarray:
    """(gates, units) whether a row's weights are whole multiples of its scale, so that it costs nothing to keep it."""
    steps = part.weights / np.maximum(scales, 1e-30)[..., None]
    return np.abs(steps - np.rint(steps)).max(axis=2) <= ON_GRID


def _floor(part: Part) -> Floats:
    """The bias is stored in steps of input_scale * scale and must leave room in an int32."""
    return np.abs(part.bias).reshape(-1) / (part.input_scale * 2.0**29)


def _grid(scales: Floats, part: Part) -> tuple[np.ndarray, np.ndarray, Floats]:
    """Row scales rounded up so that input_scale * scale / output_scale is m * 2^-n, m odd and below 2^15.

    Then every engine requantizes alike; n is at most 32, so that the
    firmware's factor is whole at 2^-32. Rows of zeros take a scale that leaves their bias 16 fractional bits.
    """
    ratio = part.input_scale / part.output_scale
    wanted = np.maximum(scales * ratio, 2.0**-31)
    wanted[scales < 1e-30] = 2.0**-16
    shift = np.minimum(15 - np.frexp(wanted)[1].astype(np.int64), 32)
    multiplier = np.minimum(np.ceil(np.ldexp(wanted, shift)).astype(np.int64) | 1, 2**15 - 1)
    if (shift < 1).any():
        raise BadInput("weights are too large for 16-bit activations", part.where, "check the trained model's scaling")
    return multiplier, shift, multiplier * 2.0 ** -shift.astype(np.float64) / ratio


def _matrix(
    part: Part, integers: np.ndarray, multiplier: np.ndarray, shift: np.ndarray, scales: Floats, bias: Floats
) -> Matrix:
    steps = np.rint(bias.reshape(-1) / (part.input_scale * scales)).astype(np.int64)
    matrix = Matrix(
        read_only(integers, np.int8),
        part.widths,
        read_only(scales, np.float32),
        read_only(multiplier, np.int64),
        read_only(shift, np.int64),
        read_only(steps, np.int64),
        part.input_scale,
        part.output_scale,
    )
    if not computable(matrix):
        raise BadInput("weights or biases are too large for 32-bit sums", part.where, "check the trained model")
    return matrix


def computable(matrix: Matrix) -> bool:
    """Whether every bias fits an int32, and every row's value before saturation, for any int16 input."""
    return bool((np.abs(matrix.bias) <= ACCUMULATOR_LIMIT).all()) and matrix.reach() < 2**31


def read_only(values: np.ndarray, dtype: type) -> np.ndarray:
    """A read-only copy."""
    copy: np.ndarray = values.astype(dtype)
    copy.setflags(write=False)
    return copy
