"""Rollout error by horizon: integer models against the float model, and both against data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from edgetqs import reference, rollout
from edgetqs.errors import BadInput
from edgetqs.integer import IntegerModel
from edgetqs.lesson import forecast
from edgetqs.model import Forecaster
from edgetqs.rollout import Values
from edgetqs.trajectories import synthesise

#: Starting points taken from a data file, at most.
MOST_STARTS = 128


@dataclass(frozen=True, slots=True)
class Cases:
    """Histories and what followed, in physical units.

    ``history`` (B, W, inputs), ``future`` (B, T, inputs) with the inputs at
    the time of each forecast, ``truth`` (B, T, outputs) where known.
    """

    history: Values
    future: Values
    truth: Values | None


def synthetic_cases(forecaster: Forecaster, horizon: int, *, count: int = 48, seed: int = 99) -> Cases:
    """Cases from synthetic histories that neither the score nor the quantizer has seen."""
    start = synthesise(forecaster, horizon, count=count, seed=seed)
    if not forecaster.feedback.pairs:
        history = np.concatenate([start.burn_in, start.future], axis=1)
        return Cases(denormalise(forecaster, history), denormalise(forecaster, history[:, :0]), None)
    return Cases(denormalise(forecaster, start.burn_in), denormalise(forecaster, start.future), None)


def data_cases(forecaster: Forecaster, data: Values, horizon: int) -> Cases:
    """Windows over a time series (samples, inputs), evenly spread. Truth is known where outputs are fed back."""
    closed = bool(forecaster.feedback.pairs)
    window = forecaster.window if closed else forecaster.lead + forecaster.trajectory
    ahead = horizon if closed else 0
    last = len(data) - window - ahead
    if last < 0:
        raise BadInput(
            f"the data has {len(data)} samples, a window and a forecast need {window + ahead}",
            forecaster.name,
            "give a longer series or a shorter horizon",
        )
    starts = np.unique(np.linspace(0, last, MOST_STARTS).astype(int))
    history = np.stack([data[s : s + window] for s in starts])
    if not closed:
        return Cases(history, history[:, :0], None)
    future = np.stack([data[s + window : s + window + horizon] for s in starts])
    targets = dict(forecaster.feedback.pairs)
    if len(targets) < len(forecaster.outputs):
        return Cases(history, future, None)
    return Cases(history, future, future[..., [targets[k] for k in range(len(forecaster.outputs))]])


def denormalise(forecaster: Forecaster, x: Values) -> Values:
    return x * np.array([c.std for c in forecaster.inputs]) + np.array([c.mean for c in forecaster.inputs])


def forecast_float(forecaster: Forecaster, cases: Cases, horizon: int) -> Values:
    """(B, T, outputs) physical: the float model's rollouts; without feedback its outputs along the trajectory."""
    history, future = (rollout.normalise(forecaster, values) for values in (cases.history, cases.future))
    return rollout.physical(forecaster, forecast(forecaster, rollout.cells(forecaster), history, future[:, :horizon]))


def forecast_integer(model: IntegerModel, cases: Cases, horizon: int) -> Values:
    """The same by the integer reference; ``horizon`` is the trajectory's without feedback."""
    history = reference.encode(model, cases.history)
    steps = 1 if model.feedback.pairs else horizon
    state = reference.listen(model, reference.zero_state(model, (len(history),)), history[:, :-steps])
    y, state = reference.run(model, state, history[:, -steps:])
    if model.feedback.pairs:
        future = reference.encode(model, cases.future)
        y, _ = reference.closed_loop(model, state, history[:, -1], y[:, -1], horizon, future)
    return reference.decode(model, y).astype(np.float64)


def rms_by_step(error: Values) -> list[float]:
    """Root mean square over cases and outputs, a figure a step."""
    return [float(value) for value in np.sqrt(np.mean(error**2, axis=(0, 2)))]


def evaluate(
    forecaster: Forecaster, models: dict[str, IntegerModel], horizon: int, data: Values | None = None
) -> dict[str, Any]:
    """Figures for ``build.json``'s ``rollout``, arrays over the horizon.

    ``models`` by suffix: "" the plan, "_int8" and "_int4" the uniform ones.
    ``deviation`` is the distance to the float rollout in units of its spread,
    on synthetic histories; ``rmse`` the error against data, physical with one
    output, otherwise in units of each output's ``std``.
    """
    horizon = horizon if forecaster.feedback.pairs else forecaster.trajectory
    cases = synthetic_cases(forecaster, horizon)
    figures: dict[str, Any] = {"horizon": horizon}
    truth = forecast_float(forecaster, cases, horizon)
    spread = np.maximum(truth.std(axis=(0, 1)), 1e-12)
    for suffix, model in models.items():
        figures["deviation" + suffix] = rms_by_step((forecast_integer(model, cases, horizon) - truth) / spread)
    if data is None:
        return figures
    cases = data_cases(forecaster, data, horizon)
    forecasts = {"_float": forecast_float(forecaster, cases, horizon)}
    forecasts |= {suffix: forecast_integer(model, cases, horizon) for suffix, model in models.items()}
    figures["cases"] = len(cases.history)
    for suffix, values in forecasts.items():
        if suffix != "_float":
            figures["data_deviation" + suffix] = rms_by_step((values - forecasts["_float"]) / _scale(forecaster))
    if cases.truth is None:
        return figures
    scale = _scale(forecaster) if len(forecaster.outputs) > 1 else np.ones(1)
    figures["rmse_unit"] = forecaster.outputs[0].unit if len(forecaster.outputs) == 1 else "standard deviations"
    figures["by_output"] = [
        {
            "name": channel.name,
            "unit": channel.unit,
            **{f"rmse{suffix}": rms_by_step((v - cases.truth)[..., [k]]) for suffix, v in forecasts.items()},
        }
        for k, channel in enumerate(forecaster.outputs)
    ]
    for suffix, values in forecasts.items():
        figures["rmse" + suffix] = rms_by_step((values - cases.truth) / scale)
    return figures


def _scale(forecaster: Forecaster) -> Values:
    return np.array([channel.std for channel in forecaster.outputs])
