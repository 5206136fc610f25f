"""Softmax and LayerNormalization as operators of a ``.tflite``.

LayerNormalization has no operator. Its integers are computed by int32 and
int64 arithmetic, which LiteRT leaves as it is; the upper word of an int64,
for which there is no shift, is taken by BITCAST and GATHER.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from edgetqs.fixedpoint import UNIT_SCALE, Integers
from edgetqs.normalization import PAIRS, RSQRT_TABLE, Normalization, power_steps


class Graph(Protocol):
    """What is needed of a subgraph under construction."""

    def tensor(
        self, shape: Sequence[int], kind: str, scales: np.ndarray | None = None, data: bytes | None = None
    ) -> int: ...

    def activation(self, shape: Sequence[int], scale: float, data: bytes | None = None) -> int: ...

    def width(self, tensor: int) -> int: ...

    def rows(self, tensor: int) -> int: ...

    def operator(
        self, name: str, inputs: Sequence[int], outputs: Sequence[int], options: Any = None, version: int = 0
    ) -> None: ...


def write_softmax(graph: Graph, x: int) -> int:
    """Append SOFTMAX of [rows, n] logits at a scale that ``exp_multiplier`` accepts; the result is at UNIT_SCALE."""
    y = graph.activation((graph.rows(x), graph.width(x)), UNIT_SCALE)
    options = schema.SoftmaxOptionsT()
    options.beta = 1.0
    graph.operator("SOFTMAX", [x], [y], options, 3)
    return y


def write_layer_normalization(graph: Graph, x: int, layer: Normalization) -> int:
    """Append the operators of ``layer_normalize`` on [rows, n] int16; the result is at its output_scale."""
    n, append = layer.features, _Operators(graph, graph.rows(x))
    wide = append("CAST", [x], "int64", n)
    total = append.total(wide, "int64")
    scaled = append("MUL", [wide, append.constant("int64", n * layer.factor)], "int64", n)
    centred = append(
        "SUB", [scaled, append("MUL", [total, append.constant("int64", layer.factor)], "int64")], "int64", n
    )
    squares = append("MUL", [centred, centred], "int64", n)
    power = append("ADD", [append.total(squares, "int64"), append.constant("int64", layer.epsilon)], "int64")

    reached = append("GREATER_EQUAL", [power, append.constant("int64", *power_steps())], "bool", PAIRS)
    steps = append.total(append("CAST", [reached], "int32", PAIRS), "int32")
    gain = append.look_up("int64", 1 << np.arange(PAIRS, -1, -1, dtype=np.int64), steps)
    mantissa = append.upper(append("MUL", [append("MUL", [power, gain], "int64"), gain], "int64"), 1)
    root = append("CAST", [_reciprocal_root(append, mantissa)], "int64")

    spread = append("MUL", [centred, gain], "int64", n)
    normalized = append("CAST", [append.upper(append("MUL", [spread, root], "int64", n), n)], "int64", n)
    weighted = append("MUL", [normalized, append.constant("int64", *layer.gamma)], "int64", n)
    offset = append.constant("int64", *((layer.beta << 16) + (1 << 31)))
    rounded = append.upper(append("ADD", [weighted, offset], "int64", n), n)
    low = append("MAXIMUM", [rounded, append.constant("int32", -32768)], "int32", n)
    clipped = append("MINIMUM", [low, append.constant("int32", 32767)], "int32", n)
    y = graph.activation((graph.rows(x), n), layer.output_scale)
    graph.operator("CAST", [clipped], [y], schema.CastOptionsT(), 1)
    return y


def _reciprocal_root(append: _Operators, mantissa: int) -> int:
    """``normalization.reciprocal_root``."""
    short = append("FLOOR_DIV", [mantissa, append.constant("int32", 32)], "int32")
    step = append.constant("int32", 1 << 15)
    entry = append("FLOOR_DIV", [short, step], "int32")
    fraction = append("SUB", [short, append("MUL", [entry, step], "int32")], "int32")
    place = append("SUB", [entry, append.constant("int32", 64)], "int32")
    start = append.look_up("int32", RSQRT_TABLE[:-1] << 15, place)
    fall = append.look_up("int32", -np.diff(RSQRT_TABLE), place)
    return append("SUB", [start, append("MUL", [fall, fraction], "int32")], "int32")


class _Operators:
    """Appends operators on tensors [rows, width] without scales, all of version 1."""

    def __init__(self, graph: Graph, rows: int) -> None:
        self.graph, self.rows = graph, rows

    def __call__(self, name: str, inputs: Sequence[int], kind: str, width: int = 1) -> int:
        y = self.graph.tensor((self.rows, width), kind)
        self.graph.operator(name, inputs, [y], _OPTIONS[name](), 1)
        return y

    def constant(self, kind: str, *values: int) -> int:
        return self.graph.tensor((1, len(values)), kind, data=np.array(values, kind).tobytes())

    def total(self, x: int, kind: str) -> int:
        y = self.graph.tensor((self.rows, 1), kind)
        options = schema.ReducerOptionsT()
        options.keepDims = True
        axis = self.graph.tensor((1,), "int32", data=np.array([1], np.int32).tobytes())
        self.graph.operator("SUM", [x, axis], [y], options, 1)
        return y

    def look_up(self, kind: str, table: Integers, index: int) -> int:
        values = self.graph.tensor((len(table),), kind, data=table.astype(kind).tobytes())
        y = self.graph.tensor((self.rows, 1), kind)
        self.graph.operator("GATHER", [values, index], [y], schema.GatherOptionsT(), 1)
        return y

    def upper(self, x: int, width: int) -> int:
        """The upper words of int64 values, int32."""
        words = self.graph.tensor((self.rows, width, 2), "int32")
        self.graph.operator("BITCAST", [x], [words], schema.BitcastOptionsT(), 1)
        y = self.graph.tensor((self.rows, width), "int32")
        options = schema.GatherOptionsT()
        options.axis = 2
        one = self.graph.tensor((), "int32", data=np.array(1, np.int32).tobytes())
        self.graph.operator("GATHER", [words, one], [y], options, 1)
        return y


_OPTIONS = {
    "CAST": schema.CastOptionsT,
    "ADD": schema.AddOptionsT,
    "SUB": schema.SubOptionsT,
    "MUL": schema.MulOptionsT,
    "FLOOR_DIV": schema.FloorDivOptionsT,
    "GREATER_EQUAL": schema.GreaterEqualOptionsT,
    "MAXIMUM": schema.MaximumMinimumOptionsT,
    "MINIMUM": schema.MaximumMinimumOptionsT,
}
