"""Learned rounding: the rollout's own error, back-propagated to the integers.

The float model is the teacher on trajectories it makes itself, the model on
its integer grid is the student. Both run the history and then the closed
loop, as the device does; the student's deviation, in units of the teacher's
spread, goes back through all steps. Integers stand for latent values that are
rounded in the forward pass and moved as if they were not (the straight-through
estimator), by Adam. Biases move too; row scales stay. No data is needed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from edgetqs.bptt import Parameters
from edgetqs.fixedpoint import INT16_MAX
from edgetqs.integer import IntegerDense, IntegerLayer, IntegerModel, IntegerRecurrent, Matrix
from edgetqs.lesson import Lesson
from edgetqs.model import Forecaster, Gru, Layer, frozen
from edgetqs.rollout import Values
from edgetqs.rounding import limit

STEPS = 150
BATCH = 24
#: Trajectories to learn from, and others to choose the best step by.
TRAINING, HELD_OUT = 96, 32
#: Largest step of the latent values, in steps of the grid; it falls to zero along a cosine.
RATE = 0.01
#: Steps over which the rate rises to it.
WARM_UP = 20
#: Step of a bias, in row scales, where that of a weight's latent value is one.
BIAS_RATE = 0.02
#: Every so many steps the student is tried on the held-out trajectories.
CHECK = 5


@dataclass(frozen=True, slots=True)
class Grid:
    """Row scales and largest integers (gates, units) of one weight tensor."""

    scales: Values
    limits: Values


def learn(
    teacher: Forecaster,
    student: Forecaster,
    grids: Mapping[tuple[int, str], Grid],
    horizon: int | None = None,
    *,
    seed: int = 3,
) -> Forecaster:
    """The student with integers and biases that follow the teacher's rollouts best.

    ``student`` holds weights on the grids, by (layer index, tensor name). The
    result is never worse than it on the held-out trajectories.
    """
    steps = Lesson.steps(teacher, horizon)
    lesson = Lesson.of(teacher, steps, TRAINING, seed)
    held_out = Lesson.of(teacher, steps, HELD_OUT, seed + 1)
    rng = np.random.default_rng(seed)

    latent: Parameters = {}
    for (index, tensor), grid in grids.items():
        target = getattr(teacher.layers[index], tensor) / grid.scales[..., None]
        start = getattr(student.layers[index], tensor) / grid.scales[..., None]
        latent[index, tensor] = start + np.clip(target - start, -0.45, 0.45)
    biases = _biases(student)
    units = {key: BIAS_RATE * grids[key[0], "kernel"].scales for key in biases}
    optimiser = _Adam()
    best, best_error = student, held_out.error(student)
    for number in range(STEPS):
        current = _on_grid(student, grids, latent, biases)
        if number % CHECK == 0 and number:
            error = held_out.error(current)
            if error < best_error:
                best, best_error = current, error
        gradients = lesson.gradients(current, rng.permutation(lesson.count)[:BATCH])
        rate = RATE * min(1.0, (number + 1) / WARM_UP) * 0.5 * (1 + np.cos(np.pi * number / STEPS))
        for key, grid in grids.items():
            scaled = gradients[key] * grid.scales[..., None]
            latent[key] = latent[key] - rate * optimiser.direction(key, scaled, number)
        for key in biases:
            if key[1] == "recurrent_bias":
                gradients[key][:2] = 0  # one bias is enough where two are added
        for key, unit in units.items():
            biases[key] = biases[key] - rate * unit * optimiser.direction(key, gradients[key] * unit, number)
    current = _on_grid(student, grids, latent, biases)
    return current if held_out.error(current) < best_error else best


def distill(teacher: Forecaster, model: IntegerModel, horizon: int | None = None, *, seed: int = 3) -> IntegerModel:
    """``model`` with integers and biases learned on its own grid; scales and widths stay.

    A matrix whose learned values could leave the ranges that were proven for
    it keeps the ones it had.
    """
    grids = {}
    for index, tensor, matrix in model.matrices():
        gates = len(matrix.widths)
        limits = np.repeat([float(limit(width)) for width in matrix.widths], matrix.gate_rows)
        grids[index, tensor] = Grid(matrix.scales.astype(np.float64).reshape(gates, -1), limits.reshape(gates, -1))
    student = dequantized(teacher, model)
    learned = learn(teacher, student, grids, horizon, seed=seed)
    layers: list[IntegerLayer] = []
    for made, before, after in zip(model.layers, student.layers, learned.layers, strict=True):
        if isinstance(made, IntegerDense):
            kernel = _requantized(made.kernel, before, after, "kernel", "bias")
            proven = made.activation in ("tanh", "sigmoid") or kernel.reach() <= INT16_MAX
            layers.append(replace(made, kernel=kernel) if proven else made)
        elif not isinstance(made, IntegerRecurrent):
            layers.append(made)
        else:
            bias = "recurrent_bias" if made.kind == "gru_reset_after" else None
            kernel = _requantized(made.kernel, before, after, "kernel", "bias")
            recurrent = _requantized(made.recurrent, before, after, "recurrent_kernel", bias)
            layers.append(replace(made, kernel=kernel, recurrent=recurrent))
    return replace(model, layers=tuple(layers))


def dequantized(forecaster: Forecaster, model: IntegerModel) -> Forecaster:
    """The float forecaster that the integers stand for."""
    layers = []
    for layer, made in zip(forecaster.layers, model.layers, strict=True):
        if not isinstance(made, (IntegerDense, IntegerRecurrent)):
            layers.append(layer)
            continue
        values = {"kernel": _weights(made.kernel), "bias": _bias(made.kernel)}
        if isinstance(made, IntegerRecurrent):
            values["recurrent_kernel"] = _weights(made.recurrent)
            if isinstance(layer, Gru):
                values["recurrent_bias"] = _bias(made.recurrent)
        layers.append(replace(layer, **{name: frozen(value, np.float64) for name, value in values.items()}))  # type: ignore[arg-type]
    return replace(forecaster, layers=tuple(layers))


def _weights(matrix: Matrix) -> Values:
    values: Values = matrix.weights.astype(np.float64) * matrix.scales[:, None]
    return values.reshape(len(matrix.widths), matrix.gate_rows, matrix.columns)


def _bias(matrix: Matrix) -> Values:
    return (matrix.bias * matrix.scales.astype(np.float64) * matrix.input_scale).reshape(len(matrix.widths), -1)


def _requantized(matrix: Matrix, before: Layer, after: Layer, tensor: str, bias: str | None) -> Matrix:
    """``matrix`` with the integers of ``after``; unchanged where nothing was learned."""
    scales = matrix.scales.astype(np.float64)
    weights = np.rint(getattr(after, tensor).reshape(len(scales), -1) / scales[:, None]).astype(np.int8)
    steps = matrix.bias
    if bias is not None:
        moved = (getattr(after, bias) - getattr(before, bias)).reshape(-1)
        steps = matrix.bias + np.rint(moved / (matrix.input_scale * scales)).astype(np.int64)
    weights.setflags(write=False)
    steps.setflags(write=False)
    return replace(matrix, weights=weights, bias=steps)


def _biases(student: Forecaster) -> Parameters:
    found: Parameters = {}
    for index, layer in enumerate(student.layers):
        if not layer.tensors:
            continue
        found[index, "bias"] = np.asarray(layer.bias, np.float64)  # type: ignore[union-attr]
        if isinstance(layer, Gru) and layer.reset_after:
            found[index, "recurrent_bias"] = np.asarray(layer.recurrent_bias, np.float64)
    return found


def _on_grid(
    student: Forecaster, grids: Mapping[tuple[int, str], Grid], latent: Parameters, biases: Parameters
) -> Forecaster:
    layers = list(student.layers)
    for (index, tensor), grid in grids.items():
        limits = grid.limits[..., None]
        integers = np.clip(np.rint(latent[index, tensor]), -limits, limits)
        layers[index] = replace(layers[index], **{tensor: frozen(integers * grid.scales[..., None], np.float64)})  # type: ignore[arg-type]
    for (index, name), values in biases.items():
        layers[index] = replace(layers[index], **{name: frozen(values, np.float64)})  # type: ignore[arg-type]
    return replace(student, layers=tuple(layers))


class _Adam:
    """Adam with a floor of three times the tensor's mean gradient: small gradients make small steps.

    Without the floor every latent value moves alike at the start, and the
    errors that trajectory rounding balanced against each other come apart.
    """

    def __init__(self) -> None:
        self.first: Parameters = {}
        self.second: Parameters = {}

    def direction(self, key: tuple[int, str], gradient: Values, number: int) -> Values:
        self.first[key] = 0.9 * self.first.get(key, np.zeros_like(gradient)) + 0.1 * gradient
        self.second[key] = 0.99 * self.second.get(key, np.zeros_like(gradient)) + 0.01 * gradient**2
        mean = self.first[key] / (1 - 0.9 ** (number + 1))
        spread = self.second[key] / (1 - 0.99 ** (number + 1))
        return mean / (np.sqrt(spread) + 3 * np.sqrt(spread.mean()) + 1e-12)
