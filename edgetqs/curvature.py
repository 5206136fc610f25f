"""How the rollout bends with each row of weights: the metric that rounding errors are measured in.

A row is everything that makes one pre-activation: its weights for the inputs,
its recurrent weights, its bias. Let J be the derivatives of all outputs of a
rollout, in units of their spread, with respect to one row. The squared
deviation that an error e in the row causes is e^T E[J^T J] e to second order.
E[J^T J] is estimated without forming J: the gradient g of the outputs weighted
with random signs has E[g g^T] = J^T J (Hutchinson), and one backward pass gives
it for every row of every layer. Unlike the second moments of a layer's inputs,
which GPTQ rounds with, it knows when a gate is saturated, what later steps
forget, and which errors of one row the rollout feels together.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from edgetqs.bptt import Parameters, Tape
from edgetqs.lesson import Lesson
from edgetqs.model import RECURRENT, Forecaster, Gru, Layer
from edgetqs.rollout import Values, cells

TRAJECTORIES, PROBES = 96, 8
#: Layers whose metrics would take more bytes share one a gate.
MOST_BYTES = 2**29


@dataclass(frozen=True, slots=True)
class Curvature:
    """One layer's metrics: a gate's (rows, N, N), or (1, N, N) where rows share one.

    The N columns are the inputs, then the hidden states (recurrent layers),
    then the free ones: the bias and, for the candidate of a reset_after GRU,
    the recurrent bias.
    """

    gates: tuple[Values, ...]


def curvature(forecaster: Forecaster, horizon: int | None = None, *, seed: int = 5) -> tuple[Curvature, ...]:
    """One a layer, from the model's own rollouts of ``Lesson.steps``."""
    lesson = Lesson.of(forecaster, Lesson.steps(forecaster, horizon), TRAJECTORIES, seed)
    rng = np.random.default_rng(seed)
    stack = cells(forecaster)
    tape = Tape(forecaster, stack)
    outputs = tape.forecast(lesson.history, lesson.future)
    sums: list[list[Values]] = [[] for _ in forecaster.layers]
    for _ in range(PROBES):
        signs = rng.choice([-1.0, 1.0], outputs.shape) / lesson.spread / np.sqrt(outputs[0].size)
        gradients = tape.backward(signs, apart=True)
        for index, layer in enumerate(forecaster.layers):
            for gate in range(len(layer.kernel) if layer.tensors else 0):  # type: ignore[union-attr]
                squares = _squares(_rows(gradients, index, layer, gate)) / (PROBES * lesson.count)
                if len(sums[index]) <= gate:
                    sums[index].append(squares)
                else:
                    sums[index][gate] += squares
    return tuple(Curvature(tuple(gates)) for gates in sums)


def _rows(gradients: Parameters, index: int, layer: Layer, gate: int) -> Values:
    """(B, rows, N) gradients of one gate's rows."""
    parts = [gradients[index, "kernel"][:, gate]]
    if isinstance(layer, RECURRENT):
        parts.append(gradients[index, "recurrent_kernel"][:, gate])
    parts.append(gradients[index, "bias"][:, gate, :, None])
    if isinstance(layer, Gru) and layer.reset_after and gate == 2:
        parts.append(gradients[index, "recurrent_bias"][:, gate, :, None])
    return np.concatenate(parts, axis=-1)


def _squares(rows: Values) -> Values:
    """(B, rows, N) -> sum over B of the rows' outer products (rows, N, N); one for all rows if that is too large."""
    _, count, columns = rows.shape
    if 4 * count * columns**2 * 8 > MOST_BYTES:
        flat = rows.reshape(-1, columns)
        return (flat.T @ flat)[None] / count
    return rows.transpose(1, 2, 0) @ rows.transpose(1, 0, 2)
