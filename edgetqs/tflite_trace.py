"""A ``.tflite`` run once on unknowns: loops, lists and variables dissolve, what is left are its outputs' expressions.

Numbers stay numbers, so counters and shapes are known and a WHILE runs as
often as it would. Quantized values stand for the real numbers they mean;
rounding between operators is left out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias, cast

import numpy as np
from numpy.typing import NDArray

from edgetqs.errors import BadInput, Unsupported
from edgetqs.tflite_graph import Graphs, Operator, Subgraph, Tensor
from edgetqs.tflite_symbols import Symbols, Vector, cut, joined

#: Numbers in the constants and numeric results of one run, and vectors in one tensor.
MOST_VALUES = 1 << 25
MOST_VECTORS = 1 << 14
#: Steps of a window.
LONGEST = 1 << 13
#: Subgraphs in subgraphs.
DEEPEST = 16

_STORED = {
    "float32": "<f4", "float16": "<f2", "float64": "<f8", "int8": "i1", "uint8": "u1", "int16": "<i2", "int32": "<i4",
    "int64": "<i8", "bool": "?",
}  # fmt: skip

Numbers: TypeAlias = NDArray[Any]


@dataclass(slots=True, eq=False)
class Unknown:
    """A tensor of vectors: ``cells`` has the tensor's shape without the last axis, each vector ``size`` elements."""

    cells: Numbers
    size: int
    made: int = -1  # the run of an operator that made it, see ``Trace.runs``

    @property
    def shape(self) -> tuple[int, ...]:
        return (*self.cells.shape, self.size)

    def at(self, place: tuple[int, ...]) -> Vector:
        return cast(Vector, self.cells[place])


@dataclass(frozen=True, slots=True)
class Handle:
    """A variable."""

    name: str


@dataclass(frozen=True, slots=True)
class TensorList:
    items: tuple[Any, ...]


Value: TypeAlias = Numbers | Unknown | Handle | TensorList | None


@dataclass(frozen=True, slots=True)
class Run:
    """An operator at work on unknowns: ``place`` is (subgraph, operator), ``sources`` are the runs that made its
    operands, ``loop`` is the run of the outermost WHILE or IF around it."""

    name: str
    place: tuple[int, int]
    sources: frozenset[int]
    loop: int


def cells(vectors: Sequence[Vector], shape: Sequence[int]) -> Numbers:
    made = np.empty(len(vectors), object)
    made[:] = [None] * len(vectors)
    for k, vector in enumerate(vectors):
        made[k] = vector
    return made.reshape(shape)


@dataclass(slots=True)
class Trace:
    """One run. ``operators`` is the table of what is known about operators: name -> function(trace, operator, values)
    to the outputs' values; ``window`` stands for axes of open length."""

    graphs: Graphs
    operators: dict[str, Callable[[Trace, Operator, list[Value]], Sequence[Value]]]
    window: int
    symbols: Symbols = field(init=False)
    variables: dict[str, Value] = field(default_factory=dict)
    constants: dict[tuple[int, int], Numbers] = field(default_factory=dict)
    values: int = 0
    depth: int = 0
    rounds: int = 0
    runs: list[Run] = field(default_factory=list)
    loop: int = -1
    here: Subgraph = field(init=False)
    operator: Operator = field(init=False)

    def __post_init__(self) -> None:
        self.symbols = Symbols(self.graphs.where)

    # --- bounds and errors -----------------------------------------------------

    def spend(self, shape: Sequence[int] | int) -> None:
        self.values += shape if isinstance(shape, int) else math.prod(int(axis) for axis in shape)
        if self.values > MOST_VALUES:
            raise BadInput("computes more numbers than a forecaster has", self.graphs.where, "check the file")

    def at(self, operator: Operator) -> str:
        """Where an operator stands, for messages."""
        result = self.here.tensors[operator.outputs[0]].name if operator.outputs and operator.outputs[0] >= 0 else ""
        name = operator.custom or operator.name
        return f"{self.graphs.where}: {name}" + (f" that makes {result[-60:]!r}" if result else "")

    def refuse(self, operator: Operator, what: str, todo: str) -> Unsupported:
        return Unsupported(what, self.at(operator), todo)

    # --- running -----------------------------------------------------------------

    def main(self) -> list[Value]:
        """The outputs of the first subgraph over unknown inputs."""
        graph = self.graphs.subgraph(0)
        self.here = graph
        if len(set(graph.inputs)) != len(graph.inputs):
            raise ValueError("an input twice")
        given: list[Value] = [self.port(k, graph.tensors[tensor]) for k, tensor in enumerate(graph.inputs)]
        return self.run(0, given)

    def port(self, number: int, tensor: Tensor) -> Unknown:
        """An input: one leaf a step, where a tensor has steps."""
        where = f"{self.graphs.where}: input {tensor.name[-60:]!r}"
        shape = [self.window if s < 0 else d for d, s in zip(tensor.shape, tensor.signature, strict=True)]
        if tensor.kind not in ("float32", "float16", "int8", "uint8", "int16") or len(shape) not in (2, 3):
            todo = "export the model with inputs (1, window, features), without text, images or masks"
            raise Unsupported(f"is {tensor.kind} {list(tensor.signature)}", where, todo)
        if tensor.signature[0] < 0:
            shape[0] = 1
        if shape[0] != 1 or min(shape) < 1 or shape[-1] > 1 << 12 or tensor.signature[-1] < 0:
            raise Unsupported(f"has shape {list(tensor.signature)}", where, "export it for a batch of one window")
        steps = shape[1] if len(shape) == 3 else 1
        if steps > LONGEST:
            raise Unsupported(f"has a window of {steps} steps", where, f"{LONGEST} is the longest; shorten it")
        self.graphs.count(steps)
        vectors = [self.symbols.leaf("input", shape[-1], data=(number, t)) for t in range(steps)]
        return Unknown(cells(vectors, shape[:-1]), shape[-1])

    def run(self, index: int, given: Sequence[Value]) -> list[Value]:
        graph, outer = self.graphs.subgraph(index), getattr(self, "here", None)
        if self.depth >= DEEPEST or len(given) != len(graph.inputs):
            raise ValueError("subgraphs nested too deep" if self.depth >= DEEPEST else "operands of a subgraph")
        self.depth += 1
        known: dict[int, Value] = dict(zip(graph.inputs, given, strict=True))
        for place, operator in enumerate(graph.operators):
            self.here, self.operator = graph, operator
            self.graphs.count(1 + len(operator.inputs))
            values = [None if k < 0 else known[k] if k in known else self.constant(index, k) for k in operator.inputs]
            function = self.operators.get(operator.custom.removeprefix("Flex") or operator.name)
            if function is None:
                raise Unsupported("is no operator of a recurrent forecaster that edgetqs knows", self.at(operator))
            number = self._begin(operator, (index, place), values)
            results = function(self, operator, values)
            if not operator.calls:
                results = [Unknown(v.cells, v.size, number) if isinstance(v, Unknown) else v for v in results]
            elif self.loop == number:
                self.loop = -1
            if len(results) != len(operator.outputs):
                raise ValueError(f"{operator.name} with {len(operator.outputs)} outputs")
            for k, value in zip(operator.outputs, results, strict=True):
                known[k] = np.asarray(value) if isinstance(value, np.generic) else value
        self.here = graph if outer is None else outer
        self.depth -= 1
        return [known[k] if k in known else self.constant(index, k) for k in graph.outputs]

    def _begin(self, operator: Operator, place: tuple[int, int], values: Sequence[Value]) -> int:
        """The number of this run. Where subgraphs run, what is in them made the results."""
        sources: set[int] = set()
        for value in values:
            items = value.items if isinstance(value, TensorList) else (value,)
            self.graphs.count(len(items) - 1)
            sources |= {item.made for item in items if isinstance(item, Unknown)}
        self.runs.append(Run(operator.custom or operator.name, place, frozenset(sources - {-1}), self.loop))
        self.symbols.run = len(self.runs) - 1
        if operator.calls and self.loop < 0:
            self.loop = self.symbols.run
        return len(self.runs) - 1

    def constant(self, index: int, k: int) -> Numbers | None:
        """A constant's real values; None for a tensor that nothing has written (a state after reset)."""
        if (index, k) not in self.constants:
            tensor = self.graphs.subgraph(index).tensors[k]
            if not tensor.data[1] and np.prod(tensor.shape, dtype=float):
                return None
            self.constants[index, k] = self.dequantized(tensor)
        return self.constants[index, k]

    def dequantized(self, tensor: Tensor) -> Numbers:
        where = f"{self.graphs.where}: {tensor.name[-60:]!r}"
        if tensor.sparse:
            raise Unsupported("is stored sparse", where, "convert the model without sparsity")
        self.spend(tensor.shape)
        start, length = tensor.data
        raw = self.graphs.content[start : start + length]
        count = int(np.prod(tensor.shape))
        if tensor.kind == "int4":
            if length != (count + 1) // 2:
                raise ValueError(f"{length} bytes for {count} int4 values")
            pairs = np.frombuffer(raw, np.uint8)
            nibbles = np.stack([pairs & 15, pairs >> 4], 1).ravel()[:count].astype(np.int64)
            stored = (nibbles - 16 * (nibbles > 7)).reshape(tensor.shape)
        elif tensor.kind in _STORED:
            if count * np.dtype(_STORED[tensor.kind]).itemsize != length:
                raise ValueError(f"{length} bytes for {list(tensor.shape)} {tensor.kind}")
            stored = np.frombuffer(raw, _STORED[tensor.kind]).reshape(tensor.shape)
        else:
            raise Unsupported(f"is of type {tensor.kind}", where, "export the model without it")
        if stored.dtype.kind == "f":
            if not np.isfinite(stored).all():
                raise BadInput("holds numbers that are not finite", where, "train the model again")
            return stored.astype(np.float64)
        if stored.dtype.kind == "b" or not len(tensor.scale):
            return stored if stored.dtype.kind == "b" else stored.astype(np.int64)
        return np.asarray(scaled_by(stored.astype(np.float64), tensor, where))

    # --- values -------------------------------------------------------------------

    def unknown(self, value: Value) -> Unknown:
        """Numbers as vectors of constants, where they meet unknowns."""
        if isinstance(value, Unknown):
            return value
        numbers = self.numbers(value)
        if not numbers.ndim:
            raise ValueError("a number where a vector belongs")
        rows = numbers.reshape(-1, numbers.shape[-1]).astype(np.float64)
        self.vectors(len(rows))
        return Unknown(cells([self.symbols.constant(row) for row in rows], numbers.shape[:-1]), numbers.shape[-1])

    def numbers(self, value: Value) -> Numbers:
        if isinstance(value, Unknown):
            raise self.refuse(self.operator, "takes values that depend on the inputs where edgetqs knows constants", "")
        if not isinstance(value, np.ndarray):
            raise ValueError("an operand that must be constant is not")
        return value

    def integers(self, value: Value) -> list[int]:
        found = self.numbers(value)
        if found.dtype.kind not in "iu" or found.size > 64:
            raise ValueError("an operand that must be a few integers is not")
        return [int(number) for number in found.ravel()]

    def vectors(self, count: int) -> None:
        """Count the vectors of a tensor that is made."""
        if count > MOST_VECTORS:
            raise BadInput("holds a tensor of more rows than a forecaster has", self.graphs.where, "check the file")
        self.spend(count)

    def each(self, function: Callable[..., Vector], *arrays: Numbers) -> Numbers:
        """``function`` of every vector, or of the vectors at the same place."""
        shape = np.broadcast_shapes(*(array.shape for array in arrays))
        self.vectors(math.prod(shape))
        self.graphs.count(math.prod(shape))
        arrays = tuple(np.broadcast_to(array, shape) for array in arrays)
        made = np.empty(shape, object)
        for place in np.ndindex(shape):
            made[place] = function(*(array[place] for array in arrays))
        return made

    def elements(self, value: Unknown) -> Numbers:
        """All single elements, as an array of the tensor's shape."""
        self.vectors(int(np.prod(value.shape)))
        self.graphs.count(int(np.prod(value.shape)))
        made = np.empty(value.shape, object)
        for place in np.ndindex(value.cells.shape):
            for k in range(value.size):
                made[(*place, k)] = cut(value.at(place), k, k + 1)
        return made

    def gathered(self, elements: Numbers) -> Unknown:
        """The inverse of ``elements``; a single element is a vector of one."""
        if not elements.ndim:
            return Unknown(elements, 1)
        made = np.empty(elements.shape[:-1], object)
        for place in np.ndindex(made.shape):
            made[place] = joined(list(elements[place]))
        return Unknown(made, elements.shape[-1])

    def moved(self, value: Value, function: Callable[[Numbers], Numbers], inside: bool) -> Value:
        """``function``, which only moves elements, applied; ``inside`` where it touches the last axis."""
        if isinstance(value, Unknown):
            if inside:
                return self.gathered(function(self.elements(value)))
            made = function(value.cells)
            self.vectors(made.size)
            return Unknown(made, value.size)
        made = function(self.numbers(value))
        self.spend(made.shape)
        return made

    def reshaped(self, value: Value, shape: Sequence[int]) -> Value:
        total = int(np.prod(value.shape)) if isinstance(value, (np.ndarray, Unknown)) else 0
        wanted = [int(axis) for axis in shape]
        rest = int(np.prod([axis for axis in wanted if axis != -1]))
        if wanted.count(-1) == 1 and rest > 0:
            wanted[wanted.index(-1)] = total // rest
        if min(wanted, default=1) < 0 or int(np.prod([float(axis) for axis in wanted])) != total or not total:
            raise ValueError(f"{total} values in the shape {wanted}")
        if not isinstance(value, Unknown):
            return self.numbers(value).reshape(wanted)
        wanted = wanted or [1]
        if wanted[-1] == value.size:
            return Unknown(value.cells.reshape(wanted[:-1]), value.size)
        self.vectors(total // wanted[-1])
        self.graphs.count(total // wanted[-1])
        stream, rows = list(value.cells.ravel()), []
        for start in range(0, total, wanted[-1]):
            first, last = start // value.size, (start + wanted[-1] - 1) // value.size
            whole = joined(stream[first : last + 1])
            rows.append(cut(whole, start - first * value.size, start - first * value.size + wanted[-1]))
        return Unknown(cells(rows, wanted[:-1]), wanted[-1])


def scaled_by(stored: Numbers, tensor: Tensor, where: str) -> Numbers:
    """Integers times scale, less the zero point; one of each, or one an index of the quantized axis."""
    scale, zero = tensor.scale, tensor.zero if len(tensor.zero) else np.zeros(1)
    allowed = {1, tensor.shape[tensor.axis]} if 0 <= tensor.axis < len(tensor.shape) else {1}
    if not {len(scale), len(zero)} <= allowed or not (np.isfinite(scale) & (scale > 0)).all():
        raise BadInput("has scales that do not fit its shape", where, "convert the model again")
    shape = [1] * stored.ndim
    if max(len(scale), len(zero)) > 1:
        shape[tensor.axis] = -1
        return (stored - zero.reshape(shape if len(zero) > 1 else [1] * stored.ndim)) * scale.reshape(
            shape if len(scale) > 1 else [1] * stored.ndim
        )
    return (stored - zero[0]) * scale[0]
