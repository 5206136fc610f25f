"""Layers as a model was trained with, over a whole window -> layers of one step.

As long as layers look back only, one sample at a time will do: they are the
same, and a causal convolution remembers its last inputs. What follows the last
output of a recurrent layer, a decoder say, runs anew in every step, over
``Frames``. Where a layer looks ahead before the time axis has ended, the step is
the whole model over a ``Window`` of samples, from a zero state as it was trained.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from edgetqs.errors import Unsupported
from edgetqs.model import (
    RECURRENT,
    Activation,
    Channel,
    Dense,
    Frames,
    Layer,
    LayerNormalization,
    Merge,
    Pool,
    Recurrent,
    Window,
    frozen,
)

Shape: TypeAlias = tuple[int, ...]
#: A step over frames takes no more: 2 MiB of int16 are beyond any device that this is for.
MOST_VALUES = 1 << 20
MergeMode: TypeAlias = Literal["concat", "sum", "mul", "ave"]


@dataclass(frozen=True, slots=True)
class Bidirectional:
    """Two recurrent layers over a whole window; ``backward`` has go_backwards set."""

    name: str
    forward: Recurrent
    backward: Recurrent
    merge_mode: MergeMode = "concat"


@dataclass(frozen=True, slots=True)
class Convolution:
    """Along time: what ``dense``, of (1, filters, taps * features), does to ``taps`` frames ``dilation`` apart."""

    name: str
    dense: Dense
    taps: int
    stride: int = 1
    dilation: int = 1
    padding: Literal["valid", "same", "causal"] = "valid"

    @property
    def reach(self) -> int:
        """Frames from the first tap to the last, both included."""
        return (self.taps - 1) * self.dilation + 1


@dataclass(frozen=True, slots=True)
class Pooling:
    """The largest, or the mean, of ``size`` frames, every ``stride``; 0 for all frames and no time axis behind it."""

    name: str
    size: int
    stride: int = 1
    padding: Literal["valid", "same"] = "valid"
    mean: bool = False


@dataclass(frozen=True, slots=True)
class Reshape:
    """(any shape) -> ``shape`` (without the batch axis); Flatten is one with one axis."""

    name: str
    shape: Shape


@dataclass(frozen=True, slots=True)
class RepeatVector:
    """(features,) -> (times, features)."""

    name: str
    times: int


Trained: TypeAlias = (
    Recurrent | Dense | Activation | LayerNormalization | Bidirectional | Convolution | Pooling | Reshape | RepeatVector
)


@dataclass(frozen=True, slots=True)
class Stepwise:
    """The layers, and the shape of what a step gives: (frames, features), or (features,) without a time axis."""

    layers: tuple[Layer, ...]
    shape: Shape

    @property
    def frames(self) -> int:
        return self.shape[0] if len(self.shape) == 2 else 0


def stepwise(layers: Sequence[Trained], window: int, features: int) -> Stepwise:
    """Layers that do in one step a sample, or a window, what ``layers`` do over (window, features)."""
    made: list[Layer] = []
    width, rest = features, list(layers)
    while rest and looks_back(rest[0]):
        layer = rest.pop(0)
        if isinstance(layer, Convolution):
            made += _causal(layer, width)
            width = layer.dense.bias.size
            continue
        assert isinstance(layer, (*RECURRENT, Dense, Activation, LayerNormalization))
        made.append(layer)
        width = layer.bias.shape[1] if isinstance(layer, (*RECURRENT, Dense)) else width
        if isinstance(layer, RECURRENT) and not layer.return_sequences:
            return _course(rest, _Course(made, (width,)))
    if not rest:
        return Stepwise(tuple(made), (width,))
    course = _Course([], (window, features))
    course.append(Window("window", window, features), (window, features))
    return _course(layers, course)


def _course(layers: Sequence[Trained], course: _Course) -> Stepwise:
    for layer in layers:
        course.add(layer)
    course.in_order(layers[-1].name if layers else "")
    return Stepwise(tuple(course.layers), course.shape)


def output_channels(shape: Shape, scale: NDArray, shift: NDArray) -> tuple[Channel, ...]:
    """y0, y1, ... for the values of one step, or y0_0, ... by frame; ``scale`` and ``shift`` (features,)."""
    frames = [f"{t}_" for t in range(shape[0])] if len(shape) == 2 else [""]
    if shape[-1] == 1 and len(shape) == 2:
        return tuple(Channel(f"y{t}", mean=float(shift[0]), std=float(scale[0])) for t in range(shape[0]))
    return tuple(
        Channel(f"y{frame}{i}", mean=float(mean), std=float(std))
        for frame in frames
        for i, (std, mean) in enumerate(zip(scale, shift, strict=True))
    )


def looks_back(layer: Trained) -> bool:
    """Whether the layer can go on sample by sample."""
    if isinstance(layer, Convolution):
        return layer.stride == 1 and (layer.padding == "causal" or layer.taps == 1)
    if isinstance(layer, RECURRENT):
        return not layer.go_backwards
    return isinstance(layer, (Dense, Activation, LayerNormalization))


def _causal(layer: Convolution, features: int) -> list[Layer]:
    if layer.taps == 1:
        return [layer.dense]
    frames = None
    if layer.dilation > 1:
        frames = Frames.of([range(0, layer.reach, layer.dilation)])
    return [Window(f"{layer.name}_window", layer.reach, features), replace(layer.dense, frames=frames)]


class _Course:
    """The layers so far of a step, behind a window or a layer that has given its last output.

    A value is a vector; with ``shape`` (frames, features) its frames lie one
    after the other, and ``axis`` tells which of them each frame of the shape is.
    """

    def __init__(self, layers: list[Layer], shape: Shape) -> None:
        self.layers = layers
        self.shape = shape
        self.axis: NDArray[np.int64] = np.arange(shape[0] if len(shape) == 2 else 0)

    def add(self, layer: Trained) -> None:
        if isinstance(layer, RECURRENT):
            self._recurrent(layer)
        elif isinstance(layer, Bidirectional):
            self._bidirectional(layer)
        elif isinstance(layer, Dense):
            frames = Frames.of(self.axis) if len(self.shape) == 2 else None
            self.append(replace(layer, frames=frames), (*self.shape[:-1], layer.bias.size))
        elif isinstance(layer, Activation):
            self.layers.append(layer)
        elif isinstance(layer, LayerNormalization):
            self.in_order(layer.name)
            self.layers.append(replace(layer, count=self.shape[0] if len(self.shape) == 2 else 1))
        elif isinstance(layer, Convolution):
            behind = frames_behind(self.shape[0], layer.reach, layer.stride, layer.padding)
            self._check(layer.name, behind * layer.dense.kernel.shape[2])
            at = positions(self.shape[0], layer.reach, layer.stride, layer.padding, layer.dilation)
            self.append(replace(layer.dense, frames=self._at(at)), (len(at), layer.dense.bias.size))
        elif isinstance(layer, Pooling):
            self._pool(layer)
        elif isinstance(layer, RepeatVector):
            self._check(layer.name, layer.times * self.shape[0])
            self.shape = (layer.times, self.shape[0])
            self.axis = np.zeros(layer.times, np.int64)
        else:
            self.in_order(layer.name)
            self.shape = layer.shape
            self.axis = np.arange(layer.shape[0] if len(layer.shape) == 2 else 0)

    def _check(self, name: str, values: int) -> None:
        if values > MOST_VALUES:
            todo = "shorten the window, or take fewer units"
            raise Unsupported(f"takes {values} values in every step, more than {MOST_VALUES}", name, todo)

    def append(self, layer: Layer, shape: Shape) -> None:
        self._check(layer.name, math.prod(shape))
        self.layers.append(layer)
        self.shape = shape
        self.axis = np.arange(shape[0] if len(shape) == 2 else 0)

    def _at(self, positions: NDArray[np.int64]) -> Frames:
        """Frames made of those at ``positions`` (frames, taps) of the time axis; -1 for zeros."""
        return Frames.of(np.append(self.axis, -1)[positions])

    def in_order(self, name: str) -> None:
        """Frames that are repeated or reversed, put one after the other."""
        if len(self.shape) == 2 and not np.array_equal(self.axis, np.arange(self.shape[0])):
            self.append(Pool(f"{name}_order", Frames.of(self.axis), self.shape[1]), self.shape)

    def _recurrent(self, layer: Recurrent) -> None:
        units = layer.bias.shape[1]
        shape = (len(self.axis), units) if layer.return_sequences else (units,)
        self.append(replace(layer, frames=Frames.of(self.axis)), shape)
        if layer.go_backwards and layer.return_sequences:
            self.axis = self.axis[::-1]  # as trained: in the order of computation

    def _bidirectional(self, layer: Bidirectional) -> None:
        frames = Frames.of(self.axis)
        first, second = layer.forward.bias.shape[1], layer.backward.bias.shape[1]
        count = len(self.axis) if layer.forward.return_sequences else 1
        self.layers += [
            replace(layer.forward, frames=frames),
            replace(layer.backward, frames=frames, source=-2),
        ]
        shape = (count, first + second) if layer.forward.return_sequences else (first + second,)
        if layer.merge_mode == "mul":
            shape = (*shape[:-1], first)
        mode: Literal["concat", "mul"] = "mul" if layer.merge_mode == "mul" else "concat"
        self.append(Merge(layer.name, count, (first, second), mode), shape)
        if layer.merge_mode in ("sum", "ave"):
            weight = np.eye(first) * (0.5 if layer.merge_mode == "ave" else 1.0)
            kernel = frozen(np.concatenate([weight, weight], axis=1)[None])
            self.add(Dense(f"{layer.name}_{layer.merge_mode}", kernel, frozen(np.zeros((1, first)))))

    def _pool(self, layer: Pooling) -> None:
        count, features = self.shape
        size, stride = layer.size or count, layer.stride if layer.size else count
        self._check(layer.name, frames_behind(count, size, stride, layer.padding) * size)
        at = positions(count, size, stride, layer.padding)
        if layer.mean and (at < 0).any():
            raise Unsupported("takes the mean of fewer frames at the window's ends", layer.name, 'use padding="valid"')
        at = np.where(at < 0, at.max(axis=1, keepdims=True), at)  # what lies outside does not count
        pool = Pool(layer.name, self._at(at), features, layer.mean)
        self.append(pool, (len(at), features) if layer.size else (features,))


def frames_behind(count: int, reach: int, stride: int, padding: str) -> int:
    """How many frames a layer over ``reach`` of ``count`` frames gives; less than 1 where none fits."""
    return -(-(count - reach + 1 if padding == "valid" else count) // stride)


def positions(count: int, reach: int, stride: int, padding: str, dilation: int = 1) -> NDArray[np.int64]:
    """(frames, taps) where each output frame's taps lie on an axis of ``count`` frames; -1 outside of it."""
    frames = frames_behind(count, reach, stride, padding)
    before = {"valid": 0, "causal": reach - 1, "same": max((frames - 1) * stride + reach - count, 0) // 2}[padding]
    at = np.arange(frames)[:, None] * stride - before + np.arange(0, reach, dilation)
    return np.where((at >= 0) & (at < count), at, -1)
