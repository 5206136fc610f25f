"""The forecaster: frozen dataclasses that every stage reads.

Weights are stored by gate, one row an output: ``kernel[g]`` has shape
(units, inputs), so a unit of the plan is always ``kernel[g]`` or
``recurrent_kernel[g]``. Gate order is i, f, c, o (LSTM), z, r, h (GRU).
Layers see normalised values; ``Channel`` holds the way from physical units.

A forecaster is a step: one sample in, one output out. Models that look at a
whole window at once (bidirectional, convolutions ahead of pooling, encoder
and decoder) are steps too: a ``Window`` remembers the samples, and the layers
behind it run over ``Frames``, from a zero state in every step.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from typing import ClassVar, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

Array: TypeAlias = NDArray[np.float32]

#: Elementwise functions. ``hard_sigmoid`` changed its slope with Keras 3.
#: ``softmax``, of dense layers only, is over all units of a frame.
ACTIVATIONS = ("linear", "tanh", "sigmoid", "relu", "hard_sigmoid_keras2", "hard_sigmoid_keras3", "softmax")


def frozen(values: object, dtype: type = np.float32) -> NDArray:
    """A contiguous, read-only copy of ``values``."""
    array: NDArray = np.array(values, dtype=dtype, order="C")
    array.setflags(write=False)
    return array


@dataclass(frozen=True, slots=True)
class Frames:
    """The time axis that a layer runs over within one step.

    Frame t is made of the input's frames ``sources[t]`` (taps,), side by
    side; -1 stands for a frame of zeros.
    """

    sources: NDArray[np.int64]  # (frames, taps)

    @staticmethod
    def of(sources: object) -> Frames:
        array = frozen(sources, np.int64)
        return Frames(array.reshape(len(array), -1))

    @property
    def count(self) -> int:
        return len(self.sources)

    @property
    def taps(self) -> int:
        return self.sources.shape[1]

    def order(self, backwards: bool) -> range:
        """The frames, in the order in which a recurrent layer goes over them."""
        return range(self.count)[::-1] if backwards else range(self.count)

    def gather(self, x: NDArray, features: int) -> NDArray:
        """x (..., any number of frames * features) -> (..., count, taps * features)."""
        value = x.reshape(*x.shape[:-1], -1, features)
        value = np.concatenate([value, np.zeros_like(value[..., :1, :])], axis=-2)  # what -1 takes
        return value[..., self.sources, :].reshape(*x.shape[:-1], self.count, self.taps * features)


@dataclass(frozen=True, slots=True)
class Lstm:
    name: str
    kernel: Array  # (4, units, inputs)
    recurrent_kernel: Array  # (4, units, units)
    bias: Array  # (4, units)
    activation: str = "tanh"
    recurrent_activation: str = "sigmoid"
    return_sequences: bool = False
    go_backwards: bool = False  # from the last frame to the first; outputs stay with their frames
    stateful: bool = False
    cell_clip: float = 0.0  # |c| <= cell_clip after each step, as TFLite's fused LSTM has it; 0 for none
    frames: Frames | None = None
    source: int = -1  # which value it reads: -1 the layer before gives it, -2 the one before that

    gates: ClassVar[tuple[str, ...]] = ("i", "f", "c", "o")
    tensors: ClassVar[tuple[str, ...]] = ("kernel", "recurrent_kernel")


@dataclass(frozen=True, slots=True)
class Gru:
    name: str
    kernel: Array  # (3, units, inputs)
    recurrent_kernel: Array  # (3, units, units)
    bias: Array  # (3, units), added to the input part
    recurrent_bias: Array  # (3, units), added to the recurrent part (zeros unless reset_after)
    reset_after: bool = True
    activation: str = "tanh"
    recurrent_activation: str = "sigmoid"
    return_sequences: bool = False
    go_backwards: bool = False  # from the last frame to the first; outputs stay with their frames
    stateful: bool = False
    frames: Frames | None = None
    source: int = -1  # which value it reads: -1 the layer before gives it, -2 the one before that

    gates: ClassVar[tuple[str, ...]] = ("z", "r", "h")
    tensors: ClassVar[tuple[str, ...]] = ("kernel", "recurrent_kernel")


@dataclass(frozen=True, slots=True)
class SimpleRnn:
    name: str
    kernel: Array  # (1, units, inputs)
    recurrent_kernel: Array  # (1, units, units)
    bias: Array  # (1, units)
    activation: str = "tanh"
    return_sequences: bool = False
    go_backwards: bool = False  # from the last frame to the first; outputs stay with their frames
    stateful: bool = False
    frames: Frames | None = None
    source: int = -1  # which value it reads: -1 the layer before gives it, -2 the one before that

    gates: ClassVar[tuple[str, ...]] = ("h",)
    tensors: ClassVar[tuple[str, ...]] = ("kernel", "recurrent_kernel")


@dataclass(frozen=True, slots=True)
class Dense:
    """A dense layer, over ``frames`` applied to each; a convolution is one whose frames have several taps."""

    name: str
    kernel: Array  # (1, units, inputs)
    bias: Array  # (1, units)
    activation: str = "linear"
    frames: Frames | None = None

    gates: ClassVar[tuple[str, ...]] = ("",)
    tensors: ClassVar[tuple[str, ...]] = ("kernel",)


@dataclass(frozen=True, slots=True)
class LayerNormalization:
    """gamma * (x - mean) / sqrt(variance + epsilon) + beta over the features of each of ``count`` frames."""

    name: str
    gamma: Array  # (features,)
    beta: Array  # (features,)
    epsilon: float
    count: int = 1

    tensors: ClassVar[tuple[str, ...]] = ()


@dataclass(frozen=True, slots=True)
class Activation:
    """An elementwise function that could not be joined to the layer before."""

    name: str
    function: str

    tensors: ClassVar[tuple[str, ...]] = ()


@dataclass(frozen=True, slots=True)
class Window:
    """The last ``size`` inputs of ``features`` values, this step's behind them; zeros after a reset."""

    name: str
    size: int
    features: int

    tensors: ClassVar[tuple[str, ...]] = ()


@dataclass(frozen=True, slots=True)
class Pool:
    """The largest of each frame's taps, or their mean, feature by feature."""

    name: str
    frames: Frames
    features: int
    mean: bool = False

    tensors: ClassVar[tuple[str, ...]] = ()

    def taps(self, x: NDArray) -> NDArray:
        """x (..., any number of frames * features) -> (..., frames.count, frames.taps, features)."""
        frames = self.frames.gather(x, self.features)
        return frames.reshape(*frames.shape[:-1], self.frames.taps, self.features)

    def pooled(self, x: NDArray) -> NDArray:
        """x (..., any number of frames * features) -> (..., frames.count * features); a mean of real numbers."""
        taps = self.taps(x)
        return (taps.mean(axis=-2) if self.mean else taps.max(axis=-2)).reshape(*x.shape[:-1], -1)


@dataclass(frozen=True, slots=True)
class Merge:
    """The last two values side by side, frame by frame, or their product: what a bidirectional layer gives."""

    name: str
    count: int  # frames
    features: tuple[int, int]  # of the one and of the other
    mode: Literal["concat", "mul"] = "concat"

    tensors: ClassVar[tuple[str, ...]] = ()

    def beside(self, a: NDArray, b: NDArray) -> NDArray:
        """Two values (..., count * features each), frame by frame side by side."""
        lead = np.broadcast_shapes(a.shape[:-1], b.shape[:-1])
        parts = [np.broadcast_to(v, (*lead, v.shape[-1])).reshape(*lead, self.count, -1) for v in (a, b)]
        return np.concatenate(parts, axis=-1).reshape(*lead, -1)


Recurrent: TypeAlias = Lstm | Gru | SimpleRnn
Layer: TypeAlias = Lstm | Gru | SimpleRnn | Dense | Activation | LayerNormalization | Window | Pool | Merge
RECURRENT = (Lstm, Gru, SimpleRnn)


@dataclass(frozen=True, slots=True)
class Channel:
    """One input or output: normalised = (physical - mean) / std."""

    name: str
    unit: str = ""
    mean: float = 0.0
    std: float = 1.0


@dataclass(frozen=True, slots=True)
class Feedback:
    """How a closed loop finds its next input.

    ``pairs`` holds (output index, input index); inputs in ``known`` are given
    ahead for the horizon, all others are held at their last value. Without
    pairs the model is a direct forecaster and there is no closed loop.
    """

    pairs: tuple[tuple[int, int], ...] = ()
    known: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Forecaster:
    """A trained recurrent forecaster.

    ``window`` is the number of past samples it was trained on;
    ``input_range`` bounds the normalised inputs: |x| <= input_range.
    """

    name: str
    layers: tuple[Layer, ...]
    inputs: tuple[Channel, ...]
    outputs: tuple[Channel, ...]
    window: int
    feedback: Feedback = Feedback()
    input_range: float = 8.0
    sha256: str = ""
    output_frames: int = 0  # the outputs are those of so many frames, one after the other; 0 for no time axis

    @property
    def windowed(self) -> bool:
        """Whether every step looks at the window anew, so that nothing but samples is remembered."""
        remembers = any(isinstance(layer, RECURRENT) and layer.frames is None for layer in self.layers)
        return not remembers and any(isinstance(layer, Window) for layer in self.layers)

    @property
    def sequence_output(self) -> bool:
        """Whether the trained model gives an output a sample instead of one at the window's end."""
        return not self.windowed and all(
            layer.return_sequences for layer in self.layers if isinstance(layer, RECURRENT) and layer.frames is None
        )

    @property
    def trajectory(self) -> int:
        """Steps of a direct forecaster's trajectory: the recurrence over its window.

        A few at its end where each step runs over frames of its own.
        """
        framed = any(frames is not None and frames.count > 1 for frames in self._frames())
        return min(self.window, 4) if framed or self.windowed else self.window

    @property
    def lead(self) -> int:
        """Samples that a direct forecaster hears before its trajectory begins."""
        return self.window - 1 if self.windowed else self.window - self.trajectory

    def _frames(self) -> Iterator[Frames | None]:
        return (getattr(layer, "frames", None) for layer in self.layers)

    @property
    def parameters(self) -> int:
        """Number of trained parameters, as Keras counts them."""
        return sum(array.size for layer in self.layers for array in _arrays(layer))

    def replace_tensor(self, index: int, tensor: str, values: Array) -> Forecaster:
        """The same forecaster with one weight tensor exchanged."""
        layers = list(self.layers)
        layers[index] = replace(layers[index], **{tensor: frozen(values)})  # type: ignore[arg-type]
        return replace(self, layers=tuple(layers))


def _arrays(layer: Layer) -> Iterator[Array]:
    for field in fields(layer):
        value = getattr(layer, field.name)
        if isinstance(value, np.ndarray) and not (
            isinstance(layer, Gru) and field.name == "recurrent_bias" and not layer.reset_after
        ):
            yield value
