"""Measured series that ship inside Python packages (pyproject's extra ``suite``).

Packages are imported where they are read, so that one system can be trained without the
packages of the others.
"""

from __future__ import annotations

import csv
import importlib.util
from datetime import datetime
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from series import Stretches, cut, cycle


def package_file(package: str, *parts: str) -> Path:
    """A file inside an installed package, without importing the package."""
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise SystemExit(f"the package {package} is missing: pip install -e '.[suite]'")
    return Path(spec.origin).parent.joinpath(*parts)


def airports(first: str, validation: slice, test: slice) -> Stretches:
    """Hourly weather of three airports (columns as in tools/train_sample.py), cut at the same hours.

    Validation and test are those of the airport ``first``. Hour 0 is 2013-01-01 06:00 UTC.
    """
    from train_sample import AIRPORTS, observations

    names = [first, *(name for name in AIRPORTS if name != first)]
    return cut(np.stack([observations(name).to_numpy() for name in names]), validation, test)


def newark() -> Stretches:
    """Test: January and February, Newark (EWR). Validation: March."""
    return airports("EWR", slice(1416, 2160), slice(0, 1416))


def la_guardia() -> Stretches:
    """Test: July and August, La Guardia (LGA). Validation: June."""
    return airports("LGA", slice(3624, 4344), slice(4344, 5832))


def electricity() -> Stretches:
    """Demand in MW and the time of day and of week, half-hourly from Monday 5 June 2000 on, 12 weeks.

    Test: the last two weeks. Validation: the ten days before.
    """
    from pmdarima.datasets import load_taylor

    demand = np.asarray(load_taylor(), float)
    time = np.arange(len(demand))
    rows = np.column_stack([demand, cycle(time / 48), cycle(time / 336)])
    return cut(rows[None], slice(-1152, -672), slice(-672, None))


def sea_surface() -> Stretches:
    """Monthly temperature in degC of the Nino 1+2 region 1950-2010, and the time of year.

    Test: 2001 to 2010. Validation: 1993 to 2000.
    """
    from statsmodels.datasets import elnino

    table = np.asarray(elnino.load().data, float)
    temperature = table[:, 1:].ravel()  # a row is a year, its first column the year itself
    rows = np.column_stack([temperature, cycle(np.arange(len(temperature)) / 12)])
    return cut(rows[None], slice(-216, -120), slice(-120, None))


def typical_year(name: str, columns: list[str]) -> NDArray:
    """Columns (8760, ...) of a typical meteorological year (TMY2 or TMY3) in pvlib, and the hour of the day."""
    from pvlib.iotools import read_tmy2, read_tmy3

    path = package_file("pvlib", "data", name)
    table, _ = read_tmy2(path) if path.suffix == ".tm2" else read_tmy3(path, map_variables=True)
    values = table[columns].to_numpy(float)
    return np.column_stack([values, cycle(np.arange(len(values)) / 24)])


def greensboro() -> Stretches:
    """Irradiance W/m2, temperature degC, time of day, extraterrestrial irradiance kW/m2. Test: September, October."""
    ghi, temperature, extra, sin, cos = typical_year("723170TYA.CSV", ["ghi", "temp_air", "ghi_extra"]).T
    rows = np.column_stack([ghi, temperature, sin, cos, extra / 1000])
    return cut(rows[None], slice(4344, 5088), slice(5832, 7296))


def miami() -> Stretches:
    """Temperature and dew point degC, time of day. Test: September and October. Validation: July."""
    rows = typical_year("12839.tm2", ["DryBulb", "DewPoint"])
    rows[:, :2] /= 10  # the file has tenths
    return cut(rows[None], slice(4344, 5088), slice(5832, 7296))


def water_flow() -> Stretches:
    """Hourly flow in l/s of a pipeline, 57 days, with the time of day and of week.

    Missing hours and readings more than 8 l/s off the median (losses, maintenance, a pump) are
    interpolated. Test: the last 13 days. Validation: the 8 days before.
    """
    with package_file("river", "datasets", "water-flow.csv").open(encoding="utf-8") as lines:
        readings = [(datetime.fromisoformat(time), float(flow)) for time, flow in list(csv.reader(lines))[1:]]
    start = readings[0][0]
    hours = np.array([(time - start).total_seconds() / 3600 for time, _ in readings])
    flow = np.array([value for _, value in readings])
    good = np.abs(flow - np.median(flow)) < 8
    time = np.arange(hours[-1] + 1)
    clock = time + start.hour + 24 * start.weekday()
    rows = np.column_stack([np.interp(time, hours[good], flow[good]), cycle(clock / 24), cycle(clock / 168)])
    return cut(rows[None], slice(-504, -312), slice(-312, None))
