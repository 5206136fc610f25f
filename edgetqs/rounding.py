"""Rounding a matrix to integers on a given grid of row scales.

``nearest`` rounds each weight on its own. ``trajectory`` minimises the error
of the products along the model's own rollouts: columns are rounded one after
the other and each column's error is made up for by those still to come, in
the metric of the inputs' second moments (the scheme of optimal brain
surgeon, as GPTQ applies it). The bias is the last column and stays exact, so
it takes what mean error remains.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from edgetqs.fixedpoint import Integers

Floats = NDArray[np.float64]

#: Share of the mean second moment added to the diagonal, so that inputs never seen cost something.
DAMPING = 0.01
#: Row scales tried by ``clip_scales``, relative to the one that fits the largest weight.
CLIPS = np.linspace(1.0, 0.5, 26)


def limit(width: int) -> int:
    """The largest integer of a symmetric width: 127 or 7."""
    return 2 ** (width - 1) - 1


def nearest(weights: Floats, scales: Floats, limits: Floats) -> Integers:
    """(rows, columns) integers, ties to even; scales and limits (rows,)."""
    bound = limits[:, None]
    return np.clip(np.rint(weights / scales[:, None]), -bound, bound).astype(np.int64)


def damped(moments: Floats) -> Floats:
    """Second moments (columns + 1, columns + 1), constant last, with the diagonal raised."""
    columns = len(moments) - 1
    raised = moments.copy()
    floor = DAMPING * max(np.trace(moments[:columns, :columns]) / max(columns, 1), 1e-12)
    raised[np.arange(columns), np.arange(columns)] += floor
    raised[-1, -1] += 1e-9
    return raised


def clip_scales(weights: Floats, scales: Floats, limits: Floats, moments: Floats) -> Floats:
    """Per row the scale, at most ``scales``, whose nearest rounding errs least on the moments."""
    columns = weights.shape[1]
    metric = damped(moments)
    # With the bias free to take the mean error, what counts is the covariance.
    mean = metric[:columns, -1]
    metric = metric[:columns, :columns] - np.outer(mean, mean) / metric[-1, -1]
    best, best_cost = scales.copy(), np.full(len(scales), np.inf)
    for clip in CLIPS:
        error = nearest(weights, scales * clip, limits) * (scales * clip)[:, None] - weights
        cost = np.einsum("rk,kl,rl->r", error, metric, error, optimize=True)
        better = cost < best_cost
        best[better], best_cost[better] = (scales * clip)[better], cost[better]
    return best


def trajectory(
    weights: Floats, bias: Floats, scales: Floats, limits: Floats, moments: Floats
) -> tuple[Integers, Floats]:
    """(integers (rows, columns), corrected bias (rows,)).

    ``moments`` (columns + 1, columns + 1) are E[v v^T] of v = (inputs, 1).
    """
    columns = weights.shape[1]
    metric = damped(moments)
    order = np.concatenate([np.argsort(-np.diag(metric)[:columns], kind="stable"), [columns]])
    inverse = np.linalg.inv(metric[np.ix_(order, order)])
    factor = np.linalg.cholesky((inverse + inverse.T) / 2).T  # upper: inverse = factor.T @ factor
    pending = np.concatenate([weights, bias[:, None]], axis=1)[:, order]
    result = np.zeros(weights.shape, np.int64)
    for position in range(columns):
        column = pending[:, position]
        integers = np.clip(np.rint(column / scales), -limits, limits)
        result[:, order[position]] = integers
        error = (column - integers * scales) / factor[position, position]
        pending[:, position + 1 :] -= np.outer(error, factor[position, position + 1 :])
    return result, pending[:, columns]
