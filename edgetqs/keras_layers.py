"""One Keras layer's configuration and weights -> one of our layers.

Option names, weight order and defaults of Keras 1, 2 and 3. A configuration is
data from a stranger: every value is checked for its type before it is used.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias, TypeVar, cast, get_args

import numpy as np
from numpy.typing import NDArray

from edgetqs.errors import BadInput, Unsupported
from edgetqs.keras_files import SAVE_AGAIN, Tensor
from edgetqs.keras_hints import HINTS
from edgetqs.model import Array, Dense, Gru, LayerNormalization, Lstm, Recurrent, SimpleRnn, frozen
from edgetqs.stepwise import Bidirectional, Convolution, MergeMode, Pooling

Shape: TypeAlias = tuple[int | None, ...]
_T = TypeVar("_T")

#: What Keras names them; hard_sigmoid depends on the version besides.
FUNCTIONS = ("linear", "tanh", "sigmoid", "relu", "hard_sigmoid")

POOLING = ("MaxPooling1D", "GlobalMaxPooling1D", "AveragePooling1D", "GlobalAveragePooling1D")
RECURRENT_KINDS = ("LSTM", "GRU", "SimpleRNN")

#: No axis of a model for a microcontroller is longer.
MAX_AXIS = 1 << 16

#: Beyond it scales and offsets leave float32 when they are joined.
MAX_NUMBER = 1e30

READABLE = (
    "edgetqs reads LSTM, GRU, SimpleRNN, Bidirectional, Dense, TimeDistributed(Dense), Conv1D, MaxPooling1D, "
    "AveragePooling1D, Normalization, Rescaling, BatchNormalization, LayerNormalization, Activation, Softmax, Flatten, "
    "Reshape and RepeatVector."
)


@dataclass(frozen=True, slots=True)
class Node:
    """A layer as the file states it."""

    kind: str
    name: str
    config: dict[str, Any]
    file: str
    keras_major: int

    @property
    def where(self) -> str:
        return f"{self.file}: layer {short(self.name)} ({short(self.kind)[1:-1]})"

    def option(self, kind: type[_T], *names: str, default: _T | None = None) -> _T:
        """The option under the first of ``names`` that is there: later Keras first, then older spellings."""
        for name in names:
            value = self.config.get(name)
            if value is None:
                continue
            if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
                raise BadInput(f"{name} is not {kind.__name__} but {short(value)}", self.where, SAVE_AGAIN)
            return value
        if default is None:
            raise BadInput(f"the option {names[0]} is missing", self.where, SAVE_AGAIN)
        return default

    def size(self, *names: str) -> int:
        value = self.option(int, *names)
        if not 1 <= value <= MAX_AXIS:
            raise BadInput(f"{names[0]}={short(value)} is not between 1 and {MAX_AXIS}", self.where)
        return value

    def function(self, *names: str, softmax: bool = False) -> str:
        """An activation's name as ``model.ACTIVATIONS`` has it; ``softmax`` where that may be one."""
        if any(isinstance(self.config.get(name), dict) for name in names):
            raise Unsupported(f"{names[0]} is an object of its own", self.where, f"Use one of {', '.join(FUNCTIONS)}.")
        name = self.option(str, *names)
        if name not in FUNCTIONS and not (softmax and name == "softmax"):
            raise Unsupported(f"{names[0]}={short(name)}", self.where, f"Use one of {', '.join(FUNCTIONS)}.")
        if name == "hard_sigmoid":
            return "hard_sigmoid_keras3" if self.keras_major >= 3 else "hard_sigmoid_keras2"
        return name

    def refuse(self, option: str, todo: str) -> None:
        """Raises Unsupported if ``option`` is set."""
        if self.option(bool, option, default=False):
            raise Unsupported(f"{option}=True", self.where, todo)

    def child(self, option: str) -> Node:
        """The layer that a wrapper holds."""
        return node(self.option(dict, option), self.file, self.keras_major, self.name)


def node(item: object, file: str, keras_major: int, parent: str = "") -> Node:
    """A layer's JSON object as a Node. Raises Unsupported for custom classes."""
    where = f"{file}: layer {parent!r}" if parent else file
    if not isinstance(item, dict):
        raise BadInput(f"a layer's configuration is {short(item)}", where, SAVE_AGAIN)
    kind, config = item.get("class_name"), item.get("config")
    if not isinstance(kind, str) or not isinstance(config, dict):
        raise BadInput(f"a layer has no class_name or no config: {short(item)}", where, SAVE_AGAIN)
    name = config.get("name", item.get("name", parent or None))
    if not isinstance(name, str):
        raise BadInput(f"a layer's name is {short(name)}", where, SAVE_AGAIN)
    package = str(item.get("module") or "keras").partition(".")[0]
    if package not in ("keras", "tf_keras") or item.get("registered_name") not in (None, kind) or ">" in kind:
        raise Unsupported(
            f"the custom class {short(kind)}", f"{file}: layer {name!r}", f"Its code is never run. {READABLE}"
        )
    return Node(kind, name, config, file, keras_major)


def unsupported(layer: Node) -> Unsupported:
    return Unsupported(f"layers of class {short(layer.kind)} are not supported", layer.where, hint(layer.kind))


def hint(kind: str) -> str:
    return HINTS.get(kind, READABLE)


def short(value: object) -> str:
    """``value`` for a message: at most one line of it."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


# --- weights ---------------------------------------------------------------


def weight(layer: Node, tensor: Tensor, shape: tuple[int, ...]) -> NDArray[np.float64]:
    """The tensor's values. Raises BadInput unless they are finite numbers of this shape."""
    values = tensor.values
    if values.shape != shape:
        raise BadInput(f"{tensor.name!r} has shape {values.shape}, expected {shape}", layer.where, SAVE_AGAIN)
    if values.dtype.kind != "f":
        raise Unsupported(
            f"{tensor.name!r} is stored as {values.dtype}, not as float",
            layer.where,
            "Save the float32 model: edgetqs does the quantizing.",
        )
    with np.errstate(over="ignore"):
        if not np.isfinite(values.astype(np.float32)).all():
            raise BadInput(f"{tensor.name!r} holds NaN or Inf", layer.where, "Train again: the weights are lost.")
    return values.astype(np.float64)


def expect(layer: Node, tensors: Sequence[Tensor], count: int) -> None:
    if len(tensors) != count:
        what = f"expected {count} weight tensors, the file holds {len(tensors)}"
        raise BadInput(what, layer.where, SAVE_AGAIN)


def blocks(matrix: NDArray[np.float64], gates: int) -> Array:
    """Keras' (inputs, gates * units) or (gates * units,) -> ours: (gates, units, inputs) or (gates, units)."""
    rows = matrix.T
    return frozen(rows.reshape(gates, len(rows) // gates, *rows.shape[1:]))


# --- layers ----------------------------------------------------------------


def dense(layer: Node, tensors: Sequence[Tensor], inputs: int) -> Dense:
    units = layer.size("units", "output_dim")
    use_bias = layer.option(bool, "use_bias", "bias", default=True)
    expect(layer, tensors, 1 + use_bias)
    kernel = weight(layer, tensors[0], (inputs, units))
    bias = weight(layer, tensors[1], (units,)) if use_bias else np.zeros(units)
    return Dense(layer.name, blocks(kernel, 1), blocks(bias, 1), layer.function("activation", softmax=True))


def recurrent(layer: Node, tensors: Sequence[Tensor], inputs: int) -> Recurrent:
    """LSTM, GRU, SimpleRNN, or an RNN around one of their cells."""
    if layer.kind == "RNN":
        layer = _unwrapped(layer)
    layer.refuse("time_major", "Feed (batch, time, features) and train with time_major=False.")
    layer.refuse("return_state", "Save the model without the state among its outputs.")
    units = layer.size("units", "output_dim")
    use_bias = layer.option(bool, "use_bias", default=True)
    gates = {"LSTM": 4, "GRU": 3, "SimpleRNN": 1}[layer.kind]
    wide = gates * units
    tensors = _joined(tensors, layer.kind)
    expect(layer, tensors, 2 + use_bias)
    options: dict[str, Any] = {
        "name": layer.name,
        "kernel": blocks(weight(layer, tensors[0], (inputs, wide)), gates),
        "recurrent_kernel": blocks(weight(layer, tensors[1], (units, wide)), gates),
        "activation": layer.function("activation"),
        "return_sequences": layer.option(bool, "return_sequences", default=False),
        "go_backwards": layer.option(bool, "go_backwards", default=False),
        "stateful": layer.option(bool, "stateful", default=False),
    }
    if layer.kind != "SimpleRNN":
        options["recurrent_activation"] = layer.function("recurrent_activation", "inner_activation")
    reset_after = False
    if layer.kind == "GRU":
        # Keras before 2.1.3 knew only reset_after=False, and did not say so.
        stored = use_bias and tensors[2].values.ndim == 2
        reset_after = layer.option(bool, "reset_after", default=stored)
    shape = (2, wide) if reset_after else (wide,)
    bias = weight(layer, tensors[2], shape) if use_bias else np.zeros(shape)
    if layer.kind == "GRU":
        rows = bias if reset_after else np.stack([bias, np.zeros(wide)])
        return Gru(
            bias=blocks(rows[0], gates), recurrent_bias=blocks(rows[1], gates), reset_after=reset_after, **options
        )
    return (Lstm if layer.kind == "LSTM" else SimpleRnn)(bias=blocks(bias, gates), **options)


def _unwrapped(layer: Node) -> Node:
    """RNN(LSTMCell(...)) as the LSTM that it is."""
    if not isinstance(layer.config.get("cell"), dict):
        raise Unsupported("several cells", layer.where, HINTS["StackedRNNCells"])
    cell = layer.child("cell")
    kind = cell.kind.removesuffix("Cell")
    if kind not in RECURRENT_KINDS or kind == cell.kind:
        raise unsupported(cell)
    return replace(layer, kind=kind, config={**cell.config, **layer.config})


def _joined(tensors: Sequence[Tensor], kind: str) -> Sequence[Tensor]:
    """Keras 1's W, U, b of each gate as one kernel, recurrent kernel and bias."""
    order = {"LSTM": (0, 2, 1, 3), "GRU": (0, 1, 2)}.get(kind, (0,))  # Keras 1 stores an LSTM as i, c, f, o
    if len(tensors) != 3 * len(order) or any(tensor.values.ndim == 0 for tensor in tensors):
        return tensors
    joined = []
    for role in range(3):
        parts = [tensors[3 * gate + role] for gate in order]
        if len({(part.values.shape, part.values.dtype) for part in parts}) != 1:
            return tensors
        joined.append(Tensor(parts[0].name, np.concatenate([part.values for part in parts], axis=-1)))
    return joined


def bidirectional(layer: Node, tensors: Sequence[Tensor], inputs: int) -> Bidirectional:
    merge_mode = layer.config.get("merge_mode")
    if merge_mode not in get_args(MergeMode):
        raise Unsupported(f"merge_mode={short(merge_mode)}", layer.where, f"Use one of {get_args(MergeMode)}.")
    inner = layer.child("layer")
    own = layer.config.get("backward_layer") is not None
    outer = layer.child("backward_layer") if own else inner
    for child in (inner, outer):
        if child.kind not in RECURRENT_KINDS:
            raise unsupported(replace(layer, kind=f"Bidirectional({child.kind})"))
    half = len(tensors) // 2
    forward = recurrent(inner, tensors[:half], inputs)
    backward = recurrent(outer, tensors[half:], inputs)
    if not own:
        backward = replace(backward, name=f"backward_{inner.name}", go_backwards=not inner.config.get("go_backwards"))
    if forward.go_backwards or not backward.go_backwards:
        raise Unsupported("the forward layer goes backwards", layer.where, "Set go_backwards=False inside it.")
    if forward.return_sequences != backward.return_sequences:
        raise BadInput("forward and backward layer differ in return_sequences", layer.where, SAVE_AGAIN)
    if merge_mode != "concat" and forward.kernel.shape[1] != backward.kernel.shape[1]:
        raise BadInput(f"merge_mode={merge_mode} of different numbers of units", layer.where, SAVE_AGAIN)
    return Bidirectional(layer.name, forward, backward, cast(MergeMode, merge_mode))


def convolution(layer: Node, tensors: Sequence[Tensor], inputs: int) -> Convolution:
    filters = layer.size("filters", "nb_filter")
    taps, stride = _one_axis(layer, "kernel_size", "filter_length"), _one_axis(layer, "strides", "subsample_length")
    dilation = _one_axis(layer, "dilation_rate")
    if layer.option(int, "groups", default=1) != 1:
        raise Unsupported("groups other than 1", layer.where, "Use groups=1.")
    if layer.option(str, "data_format", default="channels_last") != "channels_last":
        raise Unsupported("data_format='channels_first'", layer.where, "Use data_format='channels_last'.")
    padding = layer.option(str, "padding", "border_mode", default="valid")
    if padding not in ("valid", "same", "causal"):
        raise Unsupported(f"padding={short(padding)}", layer.where, "Use 'valid', 'same' or 'causal'.")
    use_bias = layer.option(bool, "use_bias", "bias", default=True)
    expect(layer, tensors, 1 + use_bias)
    shape = (taps, inputs, filters) if tensors[0].values.ndim == 3 else (taps, 1, inputs, filters)  # Keras 1
    kernel = weight(layer, tensors[0], shape).reshape(taps * inputs, filters)
    bias = weight(layer, tensors[1], (filters,)) if use_bias else np.zeros(filters)
    dense = Dense(layer.name, blocks(kernel, 1), blocks(bias, 1), layer.function("activation"))
    return Convolution(layer.name, dense, taps, stride, dilation, cast(Literal["valid", "same", "causal"], padding))


def pooling(layer: Node) -> Pooling:
    mean = "Average" in layer.kind
    if layer.kind.startswith("Global"):
        if layer.option(bool, "keepdims", default=False):
            raise Unsupported("keepdims=True", layer.where, "Use keepdims=False and a Reshape.")
        return Pooling(layer.name, 0, mean=mean)
    if layer.option(str, "data_format", default="channels_last") != "channels_last":
        raise Unsupported("data_format='channels_first'", layer.where, "Use data_format='channels_last'.")
    size = _one_axis(layer, "pool_size", "pool_length")
    stride = _one_axis(layer, "strides", "stride", default=size)
    padding = layer.option(str, "padding", "border_mode", default="valid")
    if padding not in ("valid", "same"):
        raise Unsupported(f"padding={short(padding)}", layer.where, "Use 'valid' or 'same'.")
    return Pooling(layer.name, size, stride, cast(Literal["valid", "same"], padding), mean)


def _one_axis(layer: Node, *names: str, default: int = 1) -> int:
    """A size along time, which Keras writes as a number or as a list of one."""
    value = next((layer.config[name] for name in names if layer.config.get(name) is not None), default)
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= MAX_AXIS:
        raise BadInput(f"{names[0]}={short(value)} is not one number from 1 to {MAX_AXIS}", layer.where)
    return value


def layer_normalization(layer: Node, tensors: Sequence[Tensor], shape: Shape, features: int) -> LayerNormalization:
    last_axis(layer, shape)
    layer.refuse("rms_scaling", "Use rms_scaling=False.")
    scale, center = (layer.option(bool, option, default=True) for option in ("scale", "center"))
    expect(layer, tensors, scale + center)
    values = [weight(layer, tensor, (features,)) for tensor in tensors]
    gamma = values.pop(0) if scale else np.ones(features)
    beta = values.pop(0) if center else np.zeros(features)
    epsilon = layer.option(float, "epsilon", default=1e-3)
    if not 0 < epsilon < MAX_NUMBER:
        raise BadInput(f"epsilon={short(epsilon)} is not a small positive number", layer.where, SAVE_AGAIN)
    return LayerNormalization(layer.name, frozen(gamma), frozen(beta), epsilon)


def last_axis(layer: Node, shape: Shape) -> int | None:
    """The axis that the statistics belong to; None where all values share them."""
    axis = layer.config.get("axis", -1)
    axes = axis if isinstance(axis, list) else [] if axis is None else [axis]
    if not axes:
        return None
    if len(axes) > 1 or isinstance(axes[0], bool) or axes[0] not in (-1, len(shape)):
        raise Unsupported(f"axis={short(axis)}", layer.where, "Normalise along the last axis: axis=-1.")
    return len(shape)
