"""What a system of the suite is made of: inputs, a series cut into stretches, a model's shape."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

Role: TypeAlias = Literal["feedback", "held", "known"]


@dataclass(frozen=True, slots=True)
class Input:
    """One column of a series. Without ``scale`` (mean, std) it is scaled by the training data's moments."""

    name: str
    unit: str
    role: Role
    scale: tuple[float, float] | None = None


#: Scale of inputs that are of order one as they are.
AS_IS = (0.0, 1.0)


@dataclass(frozen=True, slots=True)
class Stretches:
    """A series cut in time, physical units.

    ``training`` holds pieces (places, samples, inputs), ``validation`` and ``test`` are
    (samples, inputs) of the forecast place. They share no sample, at any place.
    """

    training: tuple[NDArray[np.float32], ...]
    validation: NDArray[np.float32]
    test: NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class System:
    """A series and the model that forecasts it.

    Inputs come in the order feedback, held, known; output i feeds input i. A ``direct``
    model has no feedback, its inputs are all called held: it gives the next ``horizon``
    samples of input 0 at once.
    ``updates`` are those of one step ahead and those in closed loop (for a direct model
    their sum counts); ``shift`` is the standard deviation, in physical units, of an offset
    that a forecast input gets in each training window.
    """

    name: str
    about: str
    series: Callable[[], Stretches]
    inputs: tuple[Input, ...]
    cell: Literal["LSTM", "GRU", "SimpleRNN"]
    units: tuple[int, ...]
    window: int
    horizon: int
    updates: tuple[int, int] = (1000, 1000)
    shift: tuple[float, ...] = ()
    direct: bool = False

    @property
    def held(self) -> int:
        """Number of inputs that keep their last value in the closed loop."""
        return sum(channel.role == "held" for channel in self.inputs)

    @property
    def fed(self) -> int:
        """Number of inputs that are forecast: fed back, or the one of a direct model."""
        return 1 if self.direct else sum(channel.role == "feedback" for channel in self.inputs)


def cut(series: NDArray, validation: slice, test: slice, place: int = 0) -> Stretches:
    """``series`` (places, samples, inputs) cut in time; what neither slice covers is for training."""
    free = np.ones(series.shape[1], bool)
    free[validation] = free[test] = False
    edges = np.flatnonzero(np.diff(np.concatenate([[False], free, [False]])))
    series = series.astype(np.float32)
    pieces = tuple(series[:, start:end] for start, end in zip(edges[::2], edges[1::2], strict=True))
    return Stretches(pieces, series[place, validation], series[place, test])


def cycle(phase: NDArray) -> NDArray:
    """sin and cos of 2 pi ``phase`` (samples,), shape (samples, 2)."""
    return np.stack([np.sin(2 * np.pi * phase), np.cos(2 * np.pi * phase)], axis=1)
