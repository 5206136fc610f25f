"""A lesson: trajectories of the float model that a quantized one should follow.

The teacher runs a history from reset and continues it in closed loop, as the
device does. Histories are synthetic ones, and stretches of the teacher's own
closed loop, which look more like the data it was trained on.
Rounding and refinement judge their candidates by how far these leave the
teacher's outputs. No data is needed.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from edgetqs.bptt import Parameters, Tape
from edgetqs.errors import BadInput
from edgetqs.fixedpoint import Integers
from edgetqs.model import Forecaster
from edgetqs.rollout import Cell, Values, cells, closed_loop, listen, next_input, run, step, zero_state
from edgetqs.trajectories import COLLAPSED, synthesise

#: No history longer than this is run.
MOST_HISTORY = 48
#: Rounding rolls out no farther: back-propagation keeps all steps in memory.
MOST_STEPS = 96


@dataclass(frozen=True, slots=True)
class Lesson:
    """Histories (B, W, inputs), inputs that follow (B, T, inputs), the teacher's outputs (B, T, outputs).

    ``kinds`` holds (first, last + 1) of the histories of each kind, ``spread``
    (B, 1, outputs) the standard deviation of the teacher's rollouts of a kind.
    """

    history: Values
    future: Values
    answers: Values
    spread: Values
    kinds: tuple[tuple[int, int], ...]

    @property
    def count(self) -> int:
        return len(self.history)

    @staticmethod
    def of(teacher: Forecaster, horizon: int, count: int, seed: int, dtype: type = np.float64) -> Lesson:
        """``count`` trajectories of ``horizon`` steps, fewer where the teacher collapses or diverges."""
        if not teacher.feedback.pairs:
            start = synthesise(teacher, horizon, count=count, seed=seed)
            history = np.concatenate([start.burn_in, start.future], axis=1)
            return Lesson.join([(history, start.future[:, :0], start.reference)], dtype)
        third = count // 3
        start = synthesise(teacher, horizon, count=count - 2 * third, seed=seed)
        parts = [(start.burn_in[:, -_most_history(teacher) :], start.future)]
        for age in (1, 2):
            with contextlib.suppress(BadInput):  # a loop that does not last as long has no stretches to offer
                parts.append(_own(teacher, horizon, third, seed + 1000 * age, age))
        stack = cells(teacher)
        return Lesson.join([(*part, forecast(teacher, stack, *part)) for part in parts], dtype)

    @staticmethod
    def join(parts: Sequence[tuple[Values, Values, Values]], dtype: type = np.float64) -> Lesson:
        """One kind from each (history, future, answers)."""
        ends = np.cumsum([0, *(len(part[0]) for part in parts)])
        spread = [np.broadcast_to(_spread(answers), (len(answers), 1, answers.shape[2])) for _, _, answers in parts]
        columns = (*zip(*parts, strict=True), spread)
        arrays: list[Values] = [np.concatenate(values).astype(dtype) for values in columns]
        return Lesson(
            arrays[0], arrays[1], arrays[2], arrays[3], tuple((int(a), int(b)) for a, b in itertools.pairwise(ends))
        )

    @staticmethod
    def steps(teacher: Forecaster, horizon: int | None) -> int:
        """Steps of a lesson that rounding learns from: the horizon, or 24, at most ``MOST_STEPS``.

        A direct forecaster's are its trajectory.
        """
        return min(horizon or 24, MOST_STEPS) if teacher.feedback.pairs else teacher.trajectory

    def error(self, student: Forecaster) -> float:
        """Mean squared deviation in units of the spread: the geometric mean over the kinds of histories."""
        return float(self.errors(student, cells(student, self.history.dtype.type)))

    def errors(self, student: Forecaster, stack: tuple[Cell, ...]) -> Values:
        """The same for each model of a stack whose weights carry leading axes."""
        with np.errstate(over="ignore", invalid="ignore"):
            answers = forecast(student, stack, self.history, self.future)
            squared = np.mean(((answers - self.answers) / self.spread) ** 2, axis=(-2, -1))
        kinds = [np.maximum(squared[..., first:last].mean(axis=-1), 1e-30) for first, last in self.kinds]
        error: Values = np.exp(np.mean(np.log(kinds), axis=0))
        return np.where(np.isfinite(error), error, np.inf)

    def gradients(self, student: Forecaster, chosen: Integers) -> Parameters:
        """Of the mean squared deviation, by (layer index, field), shaped as the field."""
        tape = Tape(student, cells(student))
        outputs = tape.forecast(self.history[chosen], self.future[chosen])
        deviation = (outputs - self.answers[chosen]) / self.spread[chosen]
        return tape.backward(2 * deviation / self.spread[chosen] / deviation.size)


def _own(teacher: Forecaster, horizon: int, count: int, seed: int, age: int) -> tuple[Values, Values]:
    """Histories that the teacher's closed loop made in its ``age``-th stretch of a window, and what follows them."""
    length = min(max(teacher.window, 16), _most_history(teacher))
    start = synthesise(teacher, age * length + horizon, count=count, seed=seed)
    x, y, state, inputs = start.x, start.y, start.state, []
    for k in range(age * length):
        x = next_input(teacher, x, y, start.future[:, k])
        inputs.append(x)
        y, state = step(start.stack, state, x)
    return np.stack(inputs[-length:], axis=1), start.future[:, age * length :]


def _most_history(teacher: Forecaster) -> int:
    return max(MOST_HISTORY, teacher.window) if teacher.windowed else MOST_HISTORY


def _spread(answers: Values) -> Values:
    return np.maximum(answers.std(axis=(0, 1)), COLLAPSED)


def forecast(forecaster: Forecaster, stack: tuple[Cell, ...], history: Values, future: Values) -> Values:
    """Histories from reset, then the closed loop; without feedback the outputs along the history, after its lead."""
    state = zero_state(stack, (len(history),))
    if not forecaster.feedback.pairs:
        state = listen(stack, state, history[:, : forecaster.lead])
        return run(stack, state, history[:, forecaster.lead :])[0]
    state = listen(stack, state, history[:, :-1])
    y, state = step(stack, state, history[:, -1])
    return closed_loop(forecaster, stack, state, history[:, -1], y, future.shape[1], future)[0]
