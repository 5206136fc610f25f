"""A ``.tflite`` under construction: operator codes, buffers, subgraphs and the operators that edgetqs writes.

Activations are int16 of shape (rows, width); which scales keep every engine
equal to the reference is told in DESIGN.md.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from edgetqs.fixedpoint import UNIT_SCALE
from edgetqs.flatbuffer import AlignedBuffer, SharedQuantization
from edgetqs.integer import Matrix
from edgetqs.model import Frames

#: Operator versions that carry the int16 kernels.
VERSIONS = {
    "ADD": 4, "SUB": 5, "MUL": 4, "LOGISTIC": 3, "TANH": 3, "QUANTIZE": 3, "SPLIT": 4, "CONCATENATION": 3,
    "GATHER": 4, "MAXIMUM": 4, "MINIMUM": 4, "SLICE": 4, "WHILE": 1, "LESS": 1, "RESHAPE": 1, "DYNAMIC_UPDATE_SLICE": 1,
    "RELU": 3, "AVERAGE_POOL_2D": 3,
}  # fmt: skip


def pack_int4(values: np.ndarray) -> bytes:
    """Row-major nibbles, the first in the low half of each byte."""
    flat = values.astype(np.int8).ravel().view(np.uint8) & 0xF
    flat = np.append(flat, np.zeros(flat.size % 2, np.uint8))
    return (flat[0::2] | flat[1::2] << 4).astype(np.uint8).tobytes()


class File:
    """The model under construction: operator codes and buffers are shared by all subgraphs."""

    def __init__(self) -> None:
        self.model = schema.ModelT()
        self.model.version = 3
        self.model.buffers = [schema.BufferT()]
        self.model.operatorCodes, self.model.subgraphs, self.model.signatureDefs = [], [], []
        self._codes: dict[tuple[str, int], int] = {}
        self._buffers: dict[bytes, int] = {}

    def code(self, name: str, version: int) -> int:
        if (name, version) not in self._codes:
            entry = schema.OperatorCodeT()
            entry.builtinCode = getattr(schema.BuiltinOperator, name)
            entry.deprecatedBuiltinCode = min(entry.builtinCode, 127)
            entry.version = version
            self._codes[name, version] = len(self.model.operatorCodes)
            self.model.operatorCodes.append(entry)
        return self._codes[name, version]

    def buffer(self, data: bytes) -> int:
        if data not in self._buffers:
            self._buffers[data] = len(self.model.buffers)
            self.model.buffers.append(AlignedBuffer(data))
        return self._buffers[data]

    def signature(self, key: str, subgraph: Graph, inputs: dict[str, int], outputs: dict[str, int]) -> None:
        entry = schema.SignatureDefT()
        entry.signatureKey, entry.subgraphIndex = key, subgraph.index
        entry.inputs, entry.outputs = ([_tensor_map(*item) for item in names.items()] for names in (inputs, outputs))
        self.model.signatureDefs.append(entry)


def _tensor_map(name: str, index: int) -> schema.TensorMapT:
    entry = schema.TensorMapT()
    entry.name, entry.tensorIndex = name, index
    return entry


@dataclass(slots=True)
class Graph:
    """One subgraph; methods append an operator and return its output tensor."""

    file: File
    graph: Any = field(init=False)
    index: int = field(init=False)
    scales: dict[int, float] = field(default_factory=dict)
    labels: dict[int, tuple[str, str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.graph = schema.SubGraphT()
        self.graph.tensors, self.graph.operators = [], []
        self.index = len(self.file.model.subgraphs)
        self.file.model.subgraphs.append(self.graph)

    def tensor(
        self, shape: Sequence[int], kind: str, scales: np.ndarray | None = None, data: bytes | None = None
    ) -> int:
        entry = schema.TensorT()
        entry.shape, entry.type = np.array(shape, np.int32), getattr(schema.TensorType, kind.upper())
        entry.hasRank = True
        entry.buffer = 0 if data is None else self.file.buffer(data)
        if scales is not None:
            entry.quantization = SharedQuantization(scales)
        self.graph.tensors.append(entry)
        return len(self.graph.tensors) - 1

    def activation(self, shape: Sequence[int], scale: float, data: bytes | None = None) -> int:
        index = self.tensor(shape, "int16", np.array([scale]), data)
        self.scales[index] = scale
        return index

    def integers(self, *values: int, scalar: bool = False) -> int:
        return self.tensor(() if scalar else (len(values),), "int32", data=np.array(values, np.int32).tobytes())

    def width(self, tensor: int) -> int:
        return int(self.graph.tensors[tensor].shape[-1])

    def rows(self, tensor: int) -> int:
        return int(self.graph.tensors[tensor].shape[0])

    def like(self, tensor: int, scale: float, width: int = 0) -> int:
        """An activation with as many rows as ``tensor``."""
        return self.activation((*self.graph.tensors[tensor].shape[:-1], width or self.width(tensor)), scale)

    def operator(
        self, name: str, inputs: Sequence[int], outputs: Sequence[int], options: Any = None, version: int = 0
    ) -> None:
        entry = schema.OperatorT()
        entry.opcodeIndex = self.file.code(name, version or VERSIONS[name])
        entry.inputs, entry.outputs = np.array(inputs, np.int32), np.array(outputs, np.int32)
        if options is not None:
            entry.builtinOptionsType = getattr(schema.BuiltinOptions, type(options).__name__.removesuffix("T"))
            entry.builtinOptions = options
        self.graph.operators.append(entry)

    def finish(self, inputs: Sequence[int], outputs: Sequence[int]) -> None:
        self.graph.inputs, self.graph.outputs = np.array(inputs, np.int32), np.array(outputs, np.int32)

    def named(self, tensor: int, layer: str, what: str) -> int:
        self.labels[tensor] = (layer, what)
        return tensor

    def fully_connected(self, x: int, matrix: Matrix, start: int, stop: int, width: int, relu: bool = False) -> int:
        rows = matrix.weights[start:stop]
        data = pack_int4(rows) if width == 4 else rows.astype(np.int8).tobytes()
        weights = self.tensor(rows.shape, f"int{width}", matrix.scales[start:stop], data)
        # Without an int64 bias engines round differently, so there is always one. LiteRT checks its scale
        # where the weights have one row; elsewhere the scale is left out, it costs bytes.
        bias_scale = matrix.scales[start:stop] * np.float32(matrix.input_scale) if stop - start == 1 else None
        bias = self.tensor((stop - start,), "int64", bias_scale, matrix.bias[start:stop].astype(np.int64).tobytes())
        y = self.like(x, matrix.output_scale, stop - start)
        options = schema.FullyConnectedOptionsT()
        options.fusedActivationFunction = int(relu)
        self.operator("FULLY_CONNECTED", [x, weights, bias], [y], options, 13 if width == 4 else 4)
        return y

    def binary(self, name: str, a: int, b: int, scale: float) -> int:
        y = self.like(a, scale)
        options = {"ADD": schema.AddOptionsT, "SUB": schema.SubOptionsT, "MUL": schema.MulOptionsT}[name]()
        if name != "MUL":
            options.potScaleInt16 = False
        self.operator(name, [a, b], [y], options)
        return y

    def table(self, name: str, x: int) -> int:
        y = self.like(x, UNIT_SCALE)
        self.operator(name, [x], [y])
        return y

    def quantize(self, x: int, scale: float) -> int:
        y = self.like(x, scale)
        self.operator("QUANTIZE", [x], [y], schema.QuantizeOptionsT())
        return y

    def split(self, x: int, parts: int) -> list[int]:
        if parts == 1:
            return [x]
        ys = [self.like(x, self.scales[x], self.width(x) // parts) for _ in range(parts)]
        options = schema.SplitOptionsT()
        options.numSplits = parts
        self.operator("SPLIT", [self.integers(1, scalar=True), x], ys, options)
        return ys

    def concatenate(self, parts: list[int]) -> int:
        if len(parts) == 1:
            return parts[0]
        y = self.like(parts[0], self.scales[parts[0]], sum(map(self.width, parts)))
        options = schema.ConcatenationOptionsT()
        options.axis = 1
        self.operator("CONCATENATION", parts, [y], options)
        return y

    def part(self, x: int, matrix: Matrix, first_gate: int = 0, stop_gate: int | None = None) -> int:
        """The named gates' rows times x: one FULLY_CONNECTED a run of equal widths."""
        low, high = first_gate * matrix.gate_rows, (stop_gate or len(matrix.widths)) * matrix.gate_rows
        runs = [(max(a, low), min(b, high), width) for a, b, width in matrix.groups()]
        return self.concatenate([self.fully_connected(x, matrix, *run) for run in runs if run[0] < run[1]])

    def relu(self, x: int) -> int:
        y = self.like(x, self.scales[x])
        self.operator("RELU", [x], [y])
        return y

    def maximum(self, a: int, b: int) -> int:
        y = self.like(a, self.scales[a])
        self.operator("MAXIMUM", [a, b], [y], schema.MaximumMinimumOptionsT())
        return y

    def mean(self, x: int, count: int, taps: int) -> int:
        """(count * taps, features) -> (count, features), halves away from zero."""
        features = self.width(x)
        image = self.reshape(x, 1, count, taps, features)
        y = self.activation((1, count, 1, features), self.scales[x])
        options = schema.Pool2DOptionsT()
        options.padding = schema.Padding.VALID
        options.filterHeight = options.strideH = 1
        options.filterWidth = options.strideW = taps
        self.operator("AVERAGE_POOL_2D", [image], [y], options)
        return self.reshape(y, count, features)

    def bounded(self, x: int, limit: int) -> int:
        """x within +-limit."""
        for name, bound in (("MINIMUM", limit), ("MAXIMUM", -limit)):
            end = self.activation((1, 1), self.scales[x], np.array([bound], np.int16).tobytes())
            y = self.like(x, self.scales[x])
            self.operator(name, [x, end], [y], schema.MaximumMinimumOptionsT())
            x = y
        return x

    def reshape(self, x: int, *shape: int) -> int:
        if tuple(self.graph.tensors[x].shape) == shape:
            return x
        y = self.activation(shape, self.scales[x])
        self.operator("RESHAPE", [x, self.integers(*shape)], [y], schema.ReshapeOptionsT())
        return y

    def gather(self, x: int, places: Sequence[int]) -> int:
        """The rows of x (rows, width) at ``places``."""
        y = self.activation((len(places), self.width(x)), self.scales[x])
        options = schema.GatherOptionsT()
        options.axis = 0
        self.operator("GATHER", [x, self.integers(*map(int, places))], [y], options)
        return y

    def stacked(self, parts: Sequence[int]) -> int:
        """One above the other: (rows, width) each."""
        rows = sum(int(self.graph.tensors[part].shape[0]) for part in parts)
        y = self.activation((rows, self.width(parts[0])), self.scales[parts[0]])
        options = schema.ConcatenationOptionsT()
        options.axis = 0
        self.operator("CONCATENATION", list(parts), [y], options)
        return y

    def frames(self, x: int, frames: Frames, features: int) -> int:
        """x (1, any number of frames * features) -> (count, taps * features), as ``Frames.gather``."""
        count = self.width(x) // features
        rows = self.reshape(x, count, features)
        places = frames.sources.ravel()
        if np.array_equal(places, np.arange(count)):
            return self.reshape(rows, frames.count, frames.taps * features)
        if (places < 0).any():
            zeros = self.activation((1, features), self.scales[x], bytes(2 * features))
            rows = self.stacked([rows, zeros])
            places = np.where(places < 0, count, places)
        return self.reshape(self.gather(rows, places.tolist()), frames.count, frames.taps * features)

    def tail(self, x: int, skipped: int) -> int:
        """x (1, width) without its first values."""
        y = self.like(x, self.scales[x], self.width(x) - skipped)
        begin, size = self.integers(0, skipped), self.integers(1, self.width(x) - skipped)
        self.operator("SLICE", [x, begin, size], [y], schema.SliceOptionsT())
        return y

    def loop(
        self,
        x: int,
        states: Sequence[int],
        step: Callable[[Graph, int, list[int]], tuple[int, list[int]]],
        collected: tuple[int, float] | None,
    ) -> tuple[list[int], int]:
        """A WHILE over x (1, count, columns): (last states, collected outputs (1, count, width) or -1).

        ``states`` hold the first states; ``step`` adds to the body's graph what
        makes (output, next states) of one sample (1, columns) and the states.
        ``collected`` is the outputs' width and scale where all are wanted.
        """
        _, count, columns = (int(axis) for axis in self.graph.tensors[x].shape)
        shapes = [(tuple(self.graph.tensors[s].shape), self.scales[s]) for s in states]
        if collected:
            shapes.append(((1, count, collected[0]), collected[1]))
        shapes.append(((1, count, columns), self.scales[x]))

        def variables(graph: Graph) -> list[int]:
            return [graph.tensor((), "int32"), *(graph.activation(*one) for one in shapes)]

        condition, body = Graph(self.file), Graph(self.file)
        before = [self.integers(0, scalar=True), *states]
        if collected:
            before.append(self.activation(*shapes[-2], bytes(2 * count * collected[0])))
        ends = variables(self)
        options = schema.WhileOptionsT()
        options.condSubgraphIndex, options.bodySubgraphIndex = condition.index, body.index
        self.operator("WHILE", [*before, x], ends, options)

        inputs = variables(condition)
        more = condition.tensor((), "bool")
        condition.operator("LESS", [inputs[0], condition.integers(count, scalar=True)], [more], schema.LessOptionsT())
        condition.finish(inputs, [more])

        counter, *own, series = inputs = variables(body)
        sample = body.activation((1, columns), self.scales[x])
        gather = schema.GatherOptionsT()
        gather.axis = 1
        body.operator("GATHER", [series, counter], [sample], gather)
        y, after = step(body, sample, own[: len(states)])
        following = body.tensor((), "int32")
        body.operator("ADD", [counter, body.integers(1, scalar=True)], [following], schema.AddOptionsT(), 1)
        written = [body.write_row(own[-1], y, counter)] if collected else []
        body.finish(inputs, [following, *after, *written, series])
        return ends[1 : 1 + len(states)], ends[-2] if collected else -1

    def write_row(self, rows: int, y: int, counter: int) -> int:
        """``rows`` [1, T, outputs] with ``y`` at step ``counter``."""
        row = self.reshape(y, 1, 1, self.width(y))
        zero = self.integers(0)
        place = self.tensor((1,), "int32")
        self.operator("RESHAPE", [counter, self.integers(1)], [place], schema.ReshapeOptionsT())
        start = self.tensor((3,), "int32")
        self.operator("CONCATENATION", [zero, place, zero], [start], schema.ConcatenationOptionsT(), 1)
        written = self.activation(tuple(self.graph.tensors[rows].shape), self.scales[rows])
        self.operator("DYNAMIC_UPDATE_SLICE", [rows, row, start], [written])
        return written
