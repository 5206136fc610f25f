"""The suite's forecasters and their held-out data, as lessons that plans are measured on."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from edgetqs.evaluate import data_cases
from edgetqs.lesson import Lesson, forecast
from edgetqs.model import Forecaster
from edgetqs.project import load_project, read_data
from edgetqs.rollout import Values, cells, normalise

MODELS = Path(__file__).resolve().parent / "models"


@dataclass(frozen=True, slots=True)
class Held:
    """Held-out windows: the float model's rollouts as a lesson, and what really followed.

    ``truth`` is normalised as the outputs are: (B, T, outputs) for a closed
    loop, (B, outputs) after the last step for a direct forecaster.
    """

    lesson: Lesson
    truth: Values

    def halves(self) -> tuple[Lesson, Lesson]:
        """The earlier and the later windows."""
        whole, middle = self.lesson, self.lesson.count // 2

        def part(own: slice) -> Lesson:
            arrays = {name: getattr(whole, name)[own] for name in ("history", "future", "answers", "spread")}
            return replace(whole, **arrays, kinds=((0, len(arrays["history"])),))

        return part(slice(None, middle)), part(slice(middle, None))

    def rmse(self, forecaster: Forecaster) -> float:
        """Against the truth, in units of each output's ``std``."""
        outputs = forecast(forecaster, cells(forecaster), self.lesson.history, self.lesson.future)
        if not forecaster.feedback.pairs:
            outputs = outputs[:, -1]
        return float(np.sqrt(np.mean((outputs - self.truth) ** 2)))


@dataclass(frozen=True, slots=True)
class Member:
    """One trained forecaster of the suite."""

    name: str
    forecaster: Forecaster
    horizon: int
    held: Held
    about: dict


def records() -> dict[str, dict]:
    """What training noted of each model, by name, "system-seed"."""
    return {entry["model"]: entry for entry in json.loads((MODELS / "suite.json").read_text(encoding="utf-8"))}


def member(name: str) -> Member:
    """A model with its data."""
    system = name.rpartition("-")[0]
    about = records()[name]
    project = load_project(MODELS / f"{name}.keras", MODELS / f"{system}.toml")
    assert project.data is not None
    data = read_data(project.data, project.forecaster)
    return Member(name, project.forecaster, project.horizon, held_out(project.forecaster, data, project.horizon), about)


def held_out(forecaster: Forecaster, data: Values, horizon: int) -> Held:
    """Windows of a series in physical units."""
    if forecaster.feedback.pairs:
        cases = data_cases(forecaster, data, horizon)
        history, future, truth = cases.history, normalise(forecaster, cases.future), cases.truth
        assert truth is not None
    else:  # the outputs are the next values of the first input
        ahead, window = len(forecaster.outputs), forecaster.window
        starts = np.unique(np.linspace(0, len(data) - window - ahead, 128).astype(int))
        history = np.stack([data[s : s + window] for s in starts])
        truth = np.stack([data[s + window : s + window + ahead, 0] for s in starts])
        future = history[:, :0]
    history = normalise(forecaster, history)
    answers = forecast(forecaster, cells(forecaster), history, future)
    mean, std = (np.array([getattr(c, name) for c in forecaster.outputs]) for name in ("mean", "std"))
    return Held(Lesson.join([(history, future, answers)], np.float32), (truth - mean) / std)
