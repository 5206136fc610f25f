"""Audit of the data-free score: rank agreement with the score on trajectories that start from data."""

from __future__ import annotations

import numpy as np

from edgetqs.evaluate import data_cases
from edgetqs.model import Forecaster
from edgetqs.rollout import cells, normalise, run, zero_state
from edgetqs.tqs import Score, score
from edgetqs.trajectories import Trajectories, keep_alive


def audit(forecaster: Forecaster, scores: Score, data: np.ndarray) -> float:
    """Spearman's rank correlation over the units, in [-1, 1]; data (samples, inputs) in physical units."""
    from scipy.stats import spearmanr

    again = score(forecaster, scores.horizon, scores.granularity, start=from_data(forecaster, data, scores.horizon + 1))
    return float(spearmanr([u.sensitivity for u in scores.units], [u.sensitivity for u in again.units])[0])


def from_data(forecaster: Forecaster, data: np.ndarray, horizon: int) -> Trajectories:
    """Starting states after windows of the data."""
    cases = data_cases(forecaster, data, horizon)
    stack = cells(forecaster, np.float32)
    history = normalise(forecaster, cases.history).astype(np.float32)
    state = zero_state(stack, (len(history),))
    if not forecaster.feedback.pairs:
        return keep_alive(forecaster, stack, history[:, :0], state, history[:, 0], history[:, 0], history)
    outputs, state = run(stack, state, history)
    future = normalise(forecaster, cases.future).astype(np.float32)
    return keep_alive(forecaster, stack, history, state, history[:, -1], outputs[:, -1], future)
