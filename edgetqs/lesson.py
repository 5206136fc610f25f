"""A lesson: trajectories of the float model that a quantized one should follow.

The teacher runs synthetic histories from reset and continues them in closed
loop, as the device does. Rounding and refinement judge their candidates by
how far these leave the teacher's outputs. No data is needed.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from edgetqs.bptt import Parameters, Tape
from edgetqs.fixedpoint import Integers
from edgetqs.model import Forecaster
from edgetqs.rollout import Cell, Values, cells, closed_loop, run, zero_state
from edgetqs.trajectories import synthesise

#: No history longer than this is run.
MOST_HISTORY = 48


@dataclass(frozen=True, slots=True)
class Lesson:
    """Histories (B, W, inputs), inputs that follow (B, T, inputs), the teacher's outputs (B, T, outputs)."""

    history: Values
    future: Values
    answers: Values
    spread: Values  # (outputs,) standard deviation of the teacher's rollouts

    @property
    def count(self) -> int:
        return len(self.history)

    @staticmethod
    def of(teacher: Forecaster, horizon: int, count: int, seed: int, dtype: type = np.float64) -> Lesson:
        """``count`` trajectories of ``horizon`` steps, fewer where the teacher collapses or diverges."""
        start = synthesise(teacher, horizon, count=count, seed=seed)
        if not teacher.feedback.pairs:
            return Lesson(
                *(v.astype(dtype) for v in (start.future, start.future[:, :0], start.reference, start.spread))
            )
        history = start.burn_in[:, -MOST_HISTORY:]
        answers = forecast(teacher, cells(teacher), history, start.future)
        return Lesson(*(v.astype(dtype) for v in (history, start.future, answers, start.spread)))

    @staticmethod
    def default_horizon(teacher: Forecaster) -> int:
        """Steps of a lesson where nothing else is asked for."""
        return 24 if teacher.feedback.pairs else teacher.window

    def error(self, student: Forecaster) -> float:
        """Mean squared deviation in units of the spread."""
        return float(self.errors(student, cells(student)))

    def errors(self, student: Forecaster, stack: tuple[Cell, ...]) -> Values:
        """The same for each model of a stack whose weights carry leading axes."""
        with np.errstate(over="ignore", invalid="ignore"):
            answers = forecast(student, stack, self.history, self.future)
            squared: Values = np.mean(((answers - self.answers) / self.spread) ** 2, axis=(-3, -2, -1))
        return np.where(np.isfinite(squared), squared, np.inf)

    def gradients(self, student: Forecaster, chosen: Integers) -> Parameters:
        """Of the mean squared deviation, by (layer index, field), shaped as the field."""
        tape = Tape(student, cells(student))
        outputs = tape.forecast(self.history[chosen], self.future[chosen])
        deviation = (outputs - self.answers[chosen]) / self.spread
        return tape.backward(2 * deviation / self.spread / deviation.size)


def forecast(forecaster: Forecaster, stack: tuple[Cell, ...], history: Values, future: Values) -> Values:
    """Histories from reset, then the closed loop; without feedback the outputs along the history."""
    y, state = run(stack, zero_state(stack, (len(history),)), history)
    if forecaster.feedback.pairs:
        y, _ = closed_loop(forecaster, stack, state, history[:, -1], y[..., -1, :], future.shape[1], future)
    return y
