"""Rounding rows to integers on a given grid of scales.

``nearest`` rounds each weight on its own. ``along`` minimises what the errors
do to the rollout: columns are rounded one after the other and each column's
error is made up for by those still to come, in the metric of ``curvature.py``
(the scheme of optimal brain surgeon, as GPTQ applies it). The free columns,
biases, come last and stay exact, so they take what remains.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from edgetqs.fixedpoint import Integers

Floats = NDArray[np.float64]

#: Row scales tried by ``clip_scales``, relative to the one that fits the largest weight.
CLIPS = np.linspace(1.0, 0.5, 26)


def limit(width: int) -> int:
    """The largest integer of a symmetric width: 127 or 7."""
    return 2 ** (width - 1) - 1


def nearest(weights: Floats, scales: Floats, limits: Floats) -> Integers:
    """(rows, columns) integers, ties to even; scales and limits (rows,)."""
    bound = limits[:, None]
    return np.clip(np.rint(weights / scales[:, None]), -bound, bound).astype(np.int64)


def damped(metric: Floats, free: int, damping: float) -> Floats:
    """Metrics (rows, N, N) with the diagonal raised by ``damping`` times its mean over the weights' columns.

    Directions that no rollout has shown cost something then. The ``free``
    last columns are raised by next to nothing.
    """
    raised = metric.copy()
    columns = metric.shape[-1] - free
    diagonal = np.einsum("rii->ri", metric)
    mean = np.maximum(diagonal[:, :columns].mean(axis=1, keepdims=True), 1e-12)
    at = np.arange(metric.shape[-1])
    raised[:, at[:columns], at[:columns]] += damping * mean
    raised[:, at[columns:], at[columns:]] += 1e-6 * diagonal[:, columns:] + 1e-9 * mean
    return raised


def clip_scales(weights: Floats, scales: Floats, limits: Floats, metric: Floats) -> Floats:
    """Per row the scale, at most ``scales``, whose nearest rounding errs least in ``metric``."""
    best, best_cost = scales.copy(), np.full(len(scales), np.inf)
    for clip in CLIPS:
        error = nearest(weights, scales * clip, limits) * (scales * clip)[:, None] - weights
        cost = np.sum((error[:, None, :] @ metric)[:, 0] * error, axis=1)
        better = cost < best_cost
        best[better], best_cost[better] = (scales * clip)[better], cost[better]
    return best


def without_free(metric: Floats, columns: slice, free: int) -> Floats:
    """The metric of some columns where the ``free`` last ones take what they can: the Schur complement."""
    first = metric.shape[-1] - free
    cross = metric[:, columns, first:]
    inverse = np.linalg.inv(metric[:, first:, first:])
    return metric[:, columns, columns] - cross @ inverse @ cross.swapaxes(1, 2)


def along(weights: Floats, free: Floats, scales: Floats, limits: Floats, metric: Floats) -> tuple[Integers, Floats]:
    """(integers (rows, columns), corrected free columns (rows, free)).

    weights, scales and limits (rows, columns); metric (rows, N, N) or (1, N,
    N), already damped, N = columns + free. Columns go in the order of their
    curvature.
    """
    rows, columns = weights.shape
    diagonal = np.einsum("rii->i", metric)[:columns]
    order = np.concatenate([np.argsort(-diagonal, kind="stable"), np.arange(columns, metric.shape[-1])])
    # metric = V V^T with V upper triangular, so that the cost |V^T e|^2 is a sum of one square a column,
    # each made zero in turn by an error of its own column that makes up for those before it.
    backwards = order[::-1]
    factor = np.linalg.cholesky(metric[:, backwards[:, None], backwards])[:, ::-1, ::-1]
    factor = np.ascontiguousarray(factor.swapaxes(1, 2))  # V^T: what a column needs lies side by side
    values = np.concatenate([weights, free], axis=1)
    errors = np.zeros((rows, len(order)))
    result, corrected = np.zeros((rows, columns), np.int64), np.zeros_like(free)
    for position, column in enumerate(order):
        before = np.sum(errors[:, :position] * factor[:, position, :position], axis=1)
        wanted = values[:, column] - before / factor[:, position, position]
        if column >= columns:
            corrected[:, column - columns] = wanted
        else:
            scale, bound = scales[:, column], limits[:, column]
            result[:, column] = np.clip(np.rint(wanted / scale), -bound, bound)
            wanted = result[:, column] * scale
        errors[:, position] = wanted - values[:, column]
    return result, corrected
