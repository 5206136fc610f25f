"""A saved Keras model -> Forecaster, without Keras or TensorFlow.

``.keras`` (Keras 2.12 and later) and ``.h5`` (Keras 1, 2 and 3), Sequential or
Functional with one path from input to output. Layers without effect at
inference vanish; normalisation goes into the channels at both ends and into
the neighbouring weights in between.
"""

from __future__ import annotations

import hashlib
import math
import os
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from edgetqs import keras_affine, keras_graph, keras_layers
from edgetqs.errors import BadInput, Unsupported
from edgetqs.keras_affine import Affine, WithKernel
from edgetqs.keras_files import KerasFile, Tensor, parse, read_bytes
from edgetqs.keras_layers import MAX_AXIS, Node, Shape
from edgetqs.model import RECURRENT, Activation, Channel, Dense, Forecaster, frozen
from edgetqs.names import layer_name, module_name
from edgetqs.stepwise import (
    Bidirectional,
    Convolution,
    RepeatVector,
    Reshape,
    Trained,
    frames_behind,
    output_channels,
    stepwise,
)

#: Models may leave the window's length open (None in Keras); this many samples then.
DEFAULT_WINDOW = 32

#: A scaling that goes into no neighbour is a square matrix; none is larger.
MOST_DIAGONAL = 1024

#: Without effect at inference.
VANISHING = (
    "ActivityRegularization",
    "AlphaDropout",
    "Dropout",
    "GaussianDropout",
    "GaussianNoise",
    "Identity",
    "InputLayer",
    "SpatialDropout1D",
)

#: What TimeDistributed may hold: layers that treat every step alike.
OVER_TIME = (*VANISHING, "Activation", "BatchNormalization", "Dense", "ReLU")

#: Classes with weights, as groups of a .keras file are named.
SNAKE_CASE = {
    "BatchNormalization": "batch_normalization",
    "Bidirectional": "bidirectional",
    "Conv1D": "conv1d",
    "Dense": "dense",
    "GRU": "gru",
    "LayerNormalization": "layer_normalization",
    "LSTM": "lstm",
    "Normalization": "normalization",
    "RNN": "rnn",
    "SimpleRNN": "simple_rnn",
    "TimeDistributed": "time_distributed",
}


def read_keras(path: str | os.PathLike[str], *, logits: bool = False) -> Forecaster:
    """The forecaster in a ``.keras`` or ``.h5`` file.

    Inputs are named x0, x1, ..., outputs y0, y1, ..., the model after the file.
    A window of open length becomes 32 samples. ``logits`` takes what a softmax
    at the end is applied to as the output.

    Raises BadInput for a file that is damaged, hostile or contradicts itself,
    and Unsupported for a sound model that edgetqs cannot deploy; both name the
    layer. Nothing in the file is executed.
    """
    path = Path(path)
    data = read_bytes(path)
    file = parse(data, str(path))
    nodes, shape = keras_graph.chain(file.config, str(path), file.keras_major)
    assembly = _Assembly(shape, str(path))
    for node, tensors in zip(_without_softmax(nodes) if logits else nodes, _weights(file, nodes), strict=True):
        assembly.add(node, tensors)
    return assembly.forecaster(module_name(path.stem), hashlib.sha256(data).hexdigest())


def _without_softmax(nodes: Sequence[Node]) -> list[Node]:
    """The layers with a softmax at their end made linear."""
    changed = list(nodes)
    last = max((k for k, node in enumerate(nodes) if node.kind not in VANISHING), default=None)
    if last is not None and nodes[last].kind == "Softmax":
        changed[last] = replace(nodes[last], kind="Identity")
    elif last is not None and nodes[last].config.get("activation") == "softmax":
        changed[last] = replace(nodes[last], config=nodes[last].config | {"activation": "linear"})
    return changed


def _weights(file: KerasFile, nodes: Sequence[Node]) -> list[tuple[Tensor, ...]]:
    """Each layer's stored tensors, in order."""
    if file.by_name:
        return [file.groups.get(node.name, ()) for node in nodes]
    found = []
    counters: dict[str, int] = {}
    for node in nodes:
        snake = SNAKE_CASE.get(node.kind, "")
        count = counters.get(snake, 0)
        if file.sparse:
            pattern = re.compile(rf"{snake}(_(\d{{1,9}}))?")
            stored = [(int(match[2] or 0), name) for name in file.groups if (match := pattern.fullmatch(name))]
            group = sorted(stored)[count][1] if count < len(stored) else ""
            if node.config.get("mean") is None:  # a Normalization with given values stores nothing
                counters[snake] = count + 1
        else:
            group = f"{snake}_{count}" if count else snake
            counters[snake] = count + 1
        found.append(file.groups.get(group, ()))
    return found


class _Assembly:
    """The forecaster so far: layers, the shape they produce, and an affine not yet folded.

    Shapes are without the batch axis; an open window is None.
    """

    def __init__(self, shape: Shape, file: str) -> None:
        self.file = file
        self.input_shape = shape
        self.shape = shape
        self.window = 0
        self.inputs: tuple[Channel, ...] = ()
        self.layers: list[Trained] = []
        self.affine: Affine | None = None

    # --- one Keras layer -----------------------------------------------------

    def add(self, node: Node, tensors: Sequence[Tensor]) -> None:
        kind = node.kind
        if kind in VANISHING:
            return
        if kind == "TimeDistributed":
            inner = node.child("layer")
            if inner.kind not in OVER_TIME or len(self.shape) < 2:
                raise keras_layers.unsupported(replace(node, kind=f"TimeDistributed({inner.kind})"))
            if inner.kind in VANISHING:
                return
            # These layers are applied to every step anyway.
            node, kind = replace(inner, name=node.name), inner.kind
        if kind in (*keras_layers.RECURRENT_KINDS, "RNN", "Bidirectional"):
            self._recurrent(node, tensors)
        elif kind in ("Dense", "TimeDistributedDense"):
            dense = keras_layers.dense(node, tensors, self._features(node))
            self._append(self._folded(dense, node.where), (*self.shape[:-1], dense.bias.size))
        elif kind in ("Conv1D", "Convolution1D"):
            self._convolution(node, tensors)
        elif kind in keras_layers.POOLING:
            self._pooling(node)
        elif kind in ("Normalization", "Rescaling", "BatchNormalization"):
            self._normalisation(node, tensors)
        elif kind == "LayerNormalization":
            self._settle(node.where)
            if self.affine is not None:
                self._materialise(node)
            layer = keras_layers.layer_normalization(node, tensors, self.shape, self._features(node))
            self._append(layer, self.shape)
        elif kind in ("Activation", "ReLU", "Softmax"):
            self._activation(node)
        elif kind in ("Flatten", "Reshape"):
            self._reshape(node)
        elif kind == "RepeatVector":
            if len(self.shape) != 1:
                raise BadInput(f"RepeatVector after the shape {self.shape}", node.where)
            times = node.size("n")
            self._settle(node.where)
            self._append(RepeatVector(node.name, times), (times, self.shape[0]))
        else:
            raise keras_layers.unsupported(node)

    def _recurrent(self, node: Node, tensors: Sequence[Tensor]) -> None:
        if len(self.shape) != 2:
            raise BadInput(f"a recurrent layer after the shape {self.shape}, not (time, features)", node.where)
        build = keras_layers.bidirectional if node.kind == "Bidirectional" else keras_layers.recurrent
        layer = build(node, tensors, self._features(node))
        one = layer.forward if isinstance(layer, Bidirectional) else layer
        units = one.kernel.shape[1]
        if isinstance(layer, Bidirectional) and layer.merge_mode == "concat":
            units += layer.backward.kernel.shape[1]
        self._append(self._folded(layer, node.where), (self.shape[0], units) if one.return_sequences else (units,))

    def _convolution(self, node: Node, tensors: Sequence[Tensor]) -> None:
        frames, features = self._over_time(node)
        layer = keras_layers.convolution(node, tensors, features)
        self._settle(node.where)
        if layer.padding != "valid" and self.affine is not None and (self.affine.shift != 0).any():
            self._materialise(node)  # its zeros come behind the normalisation
        count = _behind(node, frames, layer.reach, layer.stride, layer.padding)
        self._append(self._folded(layer, node.where), (count, layer.dense.bias.size))

    def _pooling(self, node: Node) -> None:
        frames, features = self._over_time(node)
        layer = keras_layers.pooling(node)
        self._settle(node.where)
        if self.affine is not None and not (self.affine.scale > 0).all():
            self._materialise(node)  # the largest of negated values is the smallest
        if not layer.size:
            self._append(layer, (features,))
            return
        self._append(layer, (_behind(node, frames, layer.size, layer.stride, layer.padding), features))

    def _over_time(self, node: Node) -> tuple[int | None, int]:
        if len(self.shape) != 2:
            raise BadInput(f"a layer over time after the shape {self.shape}, not (time, features)", node.where)
        return self.shape[0], self._features(node)

    def _materialise(self, node: Node) -> None:
        """What is not yet folded ahead of ``node``, if anything, as a dense layer of its own."""
        features = self._features(node)
        if features > MOST_DIAGONAL:
            what = f"a scaling of {features} features ahead of it has no weights to go into"
            raise Unsupported(what, node.where, "Put a Dense layer between the two.")
        affine, self.affine = self.affine or Affine(node, np.ones(features), np.zeros(features)), None
        kernel, bias = frozen(np.diag(affine.scale)[None]), frozen(affine.shift[None])
        self._append(Dense(affine.layer.name, kernel, bias), self.shape)

    def _normalisation(self, node: Node, tensors: Sequence[Tensor]) -> None:
        features = self._features(node)
        if node.kind == "Rescaling":
            affine = keras_affine.rescaling(node, features)
        elif node.kind == "Normalization":
            affine = keras_affine.normalization(node, tensors, self.shape, features)
        else:
            affine = keras_affine.batch_normalization(node, tensors, self.shape, features)
        self.affine = affine.after(self.affine)

    def _activation(self, node: Node) -> None:
        if node.kind == "Softmax":
            if node.config.get("axis", -1) not in (-1, len(self.shape)):
                raise Unsupported(f"axis={keras_layers.short(node.config['axis'])}", node.where, "Use axis=-1.")
            function = "softmax"
        else:
            function = "relu" if node.kind == "ReLU" else node.function("activation", softmax=True)
        for option in ("max_value", "negative_slope", "threshold") if node.kind == "ReLU" else ():
            if node.config.get(option):
                raise Unsupported(f"{option}={keras_layers.short(node.config[option])}", node.where, "Use ReLU().")
        if function == "linear":
            return
        self._settle(node.where)
        last = self.layers[-1] if self.layers else None
        inner = last.dense if isinstance(last, Convolution) else last
        if isinstance(inner, Dense) and inner.activation == "linear":
            # Dense, BatchNormalization, Activation is one Dense layer.
            inner = inner if self.affine is None else self.affine.behind(inner)
            inner = replace(inner, activation=function)
            self.layers[-1] = replace(last, dense=inner) if isinstance(last, Convolution) else inner
            self.affine = None
            return
        if self.affine is not None or function == "softmax":
            self._materialise(node)
            self._activation(node)
        else:
            self._append(Activation(node.name, function), self.shape)

    def _reshape(self, node: Node) -> None:
        if None in self.shape:
            todo = "Train with a fixed window length, as in Input((32, features))."
            raise Unsupported(f"{node.kind} of a window of open length", node.where, todo)
        target = _target(node, math.prod(axis or 1 for axis in self.shape))
        if target == self.shape:
            return
        if self.layers or len(self.input_shape) == 2:
            self._settle(node.where)
            self._append(Reshape(node.name, target), target)
        # Otherwise the reshape says what the window is: Input((12,)), Reshape((3, 4)).
        self.affine = _reshaped(self.affine, self.shape, target, node)
        self.shape = target

    # --- the state -----------------------------------------------------------

    def _features(self, node: Node) -> int:
        features = self.shape[-1]
        if features is None:
            raise BadInput("the number of its input features is open", node.where, "Give the model's Input a shape.")
        return features

    def _settle(self, where: str) -> None:
        """Ahead of the first layer: what has come so far is the window and its normalisation."""
        if self.inputs:
            return
        if len(self.shape) != 2 or self.shape[1] is None:
            todo = "Give the model Input((window, features)), or a Reshape to that first."
            raise Unsupported(f"the input {self.input_shape} is not (window, features)", where, todo)
        self.window = self.shape[0] or DEFAULT_WINDOW
        features = self.shape[1]
        if self.affine is None:
            self.inputs = tuple(Channel(f"x{i}") for i in range(features))
            return
        # A std must be positive: signs and zeros stay behind, for the first layer's weights.
        scale, shift = self.affine.scale, self.affine.shift
        used = scale != 0
        std = 1 / np.abs(np.where(used, scale, 1))
        mean = np.where(used, -shift * std * np.sign(scale), 0) + 0.0  # not -0.0
        self.inputs = tuple(Channel(f"x{i}", mean=float(mean[i]), std=float(std[i])) for i in range(features))
        rest = Affine(self.affine.layer, np.sign(scale), np.where(used, 0, shift))
        self.affine = None if (scale > 0).all() else rest

    def _folded(self, layer: WithKernel, where: str) -> WithKernel:
        self._settle(where)
        affine, self.affine = self.affine, None
        return layer if affine is None else affine.ahead_of(layer)

    def _append(self, layer: Trained, shape: Shape) -> None:
        name = layer_name(layer.name)
        while any(name == other.name for other in self.layers):
            name += "_"
        if isinstance(layer, Bidirectional):
            forward = replace(layer.forward, name=f"{name}_forward")
            layer = replace(layer, forward=forward, backward=replace(layer.backward, name=f"{name}_backward"))
        if isinstance(layer, Convolution):
            layer = replace(layer, dense=replace(layer.dense, name=name))
        self.layers.append(replace(layer, name=name))
        self.shape = shape

    def forecaster(self, name: str, sha256: str) -> Forecaster:
        if not any(isinstance(layer, (*RECURRENT, Bidirectional)) for layer in self.layers):
            todo = "edgetqs is for forecasters with an LSTM, GRU or SimpleRNN; for others use LiteRT."
            raise Unsupported("the model has no recurrent layer", self.file, todo)
        features = self.shape[-1] or 0
        scale, shift = np.ones(features), np.zeros(features)
        if self.affine is not None:
            scale, shift = self._behind(self.affine)
        made = stepwise(self.layers, self.window, len(self.inputs))
        outputs = output_channels(made.shape, scale, shift)
        return Forecaster(
            name, made.layers, self.inputs, outputs, self.window, sha256=sha256, output_frames=made.frames
        )

    def _behind(self, affine: Affine) -> tuple[np.ndarray, np.ndarray]:
        """The scaling at the end as the channels take it: a std is positive, signs and zeros go into the weights."""
        if (affine.scale > 0).all():
            return affine.scale, affine.shift
        last = self.layers[-1]
        if not isinstance(last, Dense) or last.activation != "linear":
            self._materialise(affine.layer)
            return np.ones(len(affine.scale)), np.zeros(len(affine.scale))
        self.layers[-1] = replace(affine, scale=np.sign(affine.scale), shift=0 * affine.shift).behind(last)
        return np.abs(np.where(affine.scale != 0, affine.scale, 1)), affine.shift


def _behind(node: Node, frames: int | None, reach: int, stride: int, padding: str) -> int | None:
    """How many frames there are behind a layer over ``reach`` of them; None in an open window."""
    if frames is None:
        return None
    count = frames_behind(frames, reach, stride, padding)
    if count < 1:
        raise BadInput(f"it reaches over {reach} frames, but there are {frames}", node.where)
    return count


def _target(node: Node, size: int) -> tuple[int, ...]:
    """The shape that a Flatten or Reshape of ``size`` values gives."""
    if node.kind == "Flatten":
        return (size,)
    stated = node.option(list, "target_shape")
    axes = [axis for axis in stated if isinstance(axis, int) and not isinstance(axis, bool)]
    known = math.prod(axis for axis in axes if axis != -1)
    if len(axes) == len(stated) and axes.count(-1) == 1 and known > 0:
        axes[axes.index(-1)] = size // known
    if not axes or len(axes) != len(stated) or min(axes) < 1 or math.prod(axes) != size:
        raise BadInput(f"target_shape {keras_layers.short(stated)} does not hold {size} values", node.where)
    return tuple(axes)


def _reshaped(affine: Affine | None, shape: Shape, target: tuple[int, ...], node: Node) -> Affine | None:
    """The affine along the last axis of ``target`` that equals ``affine`` along that of ``shape``."""
    if affine is None:
        return None
    if math.prod(target) > MAX_AXIS:
        raise BadInput(f"{target} is too large a shape for {affine.layer.name!r} ahead of it", node.where)
    rows = [
        np.broadcast_to(values, [axis or 1 for axis in shape]).reshape(-1, target[-1])
        for values in (affine.scale, affine.shift)
    ]
    if any((values != values[0]).any() for values in rows):
        todo = "Reshape first, then normalise."
        raise Unsupported(
            f"{affine.layer.name!r} ahead of it scales the same feature in several ways", node.where, todo
        )
    return Affine(affine.layer, rows[0][0], rows[1][0])
