"""The forecaster: frozen dataclasses that every stage reads.

Weights are stored by gate, one row an output: ``kernel[g]`` has shape
(units, inputs), so a unit of the plan is always ``kernel[g]`` or
``recurrent_kernel[g]``. Gate order is i, f, c, o (LSTM), z, r, h (GRU).
Layers see normalised values; ``Channel`` holds the way from physical units.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from typing import ClassVar, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

Array: TypeAlias = NDArray[np.float32]

#: Elementwise functions. ``hard_sigmoid`` changed its slope with Keras 3.
ACTIVATIONS = ("linear", "tanh", "sigmoid", "relu", "hard_sigmoid_keras2", "hard_sigmoid_keras3")


def frozen(values: object, dtype: type = np.float32) -> NDArray:
    """A contiguous, read-only copy of ``values``."""
    array: NDArray = np.array(values, dtype=dtype, order="C")
    array.setflags(write=False)
    return array


@dataclass(frozen=True, slots=True)
class Lstm:
    name: str
    kernel: Array  # (4, units, inputs)
    recurrent_kernel: Array  # (4, units, units)
    bias: Array  # (4, units)
    activation: str = "tanh"
    recurrent_activation: str = "sigmoid"
    return_sequences: bool = False
    go_backwards: bool = False
    stateful: bool = False
    cell_clip: float = 0.0  # |c| <= cell_clip after each step, as TFLite's fused LSTM has it; 0 for none

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
    go_backwards: bool = False
    stateful: bool = False

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
    go_backwards: bool = False
    stateful: bool = False

    gates: ClassVar[tuple[str, ...]] = ("h",)
    tensors: ClassVar[tuple[str, ...]] = ("kernel", "recurrent_kernel")


@dataclass(frozen=True, slots=True)
class Dense:
    """A dense layer; on a sequence it is applied to every step."""

    name: str
    kernel: Array  # (1, units, inputs)
    bias: Array  # (1, units)
    activation: str = "linear"

    gates: ClassVar[tuple[str, ...]] = ("",)
    tensors: ClassVar[tuple[str, ...]] = ("kernel",)


@dataclass(frozen=True, slots=True)
class Activation:
    """An elementwise function that could not be joined to the layer before."""

    name: str
    function: str

    tensors: ClassVar[tuple[str, ...]] = ()


@dataclass(frozen=True, slots=True)
class Bidirectional:
    """Two recurrent layers over a whole window; ``backward`` has go_backwards set."""

    name: str
    forward: Lstm | Gru | SimpleRnn
    backward: Lstm | Gru | SimpleRnn
    merge_mode: Literal["concat", "sum", "mul", "ave"] = "concat"

    tensors: ClassVar[tuple[str, ...]] = ()


@dataclass(frozen=True, slots=True)
class Reshape:
    """(any shape) -> ``shape`` (without the batch axis); Flatten is one with one axis."""

    name: str
    shape: tuple[int, ...]

    tensors: ClassVar[tuple[str, ...]] = ()


@dataclass(frozen=True, slots=True)
class RepeatVector:
    """(features,) -> (times, features)."""

    name: str
    times: int

    tensors: ClassVar[tuple[str, ...]] = ()


Recurrent: TypeAlias = Lstm | Gru | SimpleRnn
Layer: TypeAlias = Lstm | Gru | SimpleRnn | Dense | Activation | Bidirectional | Reshape | RepeatVector
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

    @property
    def streaming(self) -> bool:
        """Whether the model can run sample by sample (each layer looks back only)."""
        return all(
            isinstance(layer, (Dense, Activation)) or (isinstance(layer, RECURRENT) and not layer.go_backwards)
            for layer in self.layers
        )

    @property
    def sequence_output(self) -> bool:
        """Whether a window gives one output a step instead of one at its end (streaming models)."""
        return all(layer.return_sequences for layer in self.layers if isinstance(layer, RECURRENT))

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
    if isinstance(layer, Bidirectional):
        yield from _arrays(layer.forward)
        yield from _arrays(layer.backward)
        return
    for field in fields(layer):
        value = getattr(layer, field.name)
        if isinstance(value, np.ndarray) and not (
            isinstance(layer, Gru) and field.name == "recurrent_bias" and not layer.reset_after
        ):
            yield value
