"""Vectors of unknowns: what the operators of a ``.tflite`` compute, as expressions instead of numbers.

A vector is a row of parts. A part is a stretch of a leaf (an input, a zero
state, or the result of a function, product or sum of vectors) or an affine
combination of such stretches. Linear operators are joined at once: however a
converter arranged, split, transposed or concatenated its products, what is
left are one matrix an input and a bias. The same expressions are evaluated on
numbers, so that what is recognised in them can be checked.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from edgetqs.errors import BadInput
from edgetqs.rollout import FUNCTIONS
from edgetqs.tflite_graph import Floats

#: Numbers in all matrices that are made on the way, and in those that are read.
MOST_NUMBERS, MOST_READ = 1 << 24, 1 << 28
MOST_LEAVES = 1 << 16


@dataclass(slots=True, eq=False)
class Leaf:
    """``kind``: "input", "zero", "product", "sum", "scaled" (data: factor, offset), "clip" (data: limit),
    "kept" (an affine that is not to be joined to what follows), or the name of a function."""

    index: int
    kind: str
    size: int
    args: tuple[Vector, ...] = field(default=(), repr=False)  # shared: all of it would have no end
    data: Any = None
    steps: tuple[int, int] = (0, 0)  # the first and the last step of the window that it depends on
    made: int = -1  # the run of an operator that made it, see ``Trace.runs``


@dataclass(frozen=True, slots=True)
class Stretch:
    """Elements ``start`` to ``start + size`` of a leaf."""

    leaf: Leaf
    start: int
    size: int

    @property
    def whole(self) -> bool:
        return self.size == self.leaf.size

    def cut(self, start: int, stop: int) -> Stretch:
        return Stretch(self.leaf, self.start + start, stop - start)


@dataclass(frozen=True, slots=True, eq=False)
class Affine:
    """bias + sum of matrix @ stretch + sum of factor * stretch."""

    bias: Floats
    matrices: Mapping[Stretch, Floats]
    factors: Mapping[Stretch, Floats]

    @property
    def size(self) -> int:
        return len(self.bias)

    def cut(self, start: int, stop: int) -> Affine:
        rows = slice(start, stop)
        return Affine(
            self.bias[rows],
            {key: matrix[rows] for key, matrix in self.matrices.items()},
            {key.cut(start, stop): factor[rows] for key, factor in self.factors.items()},
        )


Part: TypeAlias = Stretch | Affine
Vector: TypeAlias = tuple[Part, ...]
#: Values of an input by (port, step): (batch, size).
Feeds: TypeAlias = Mapping[tuple[int, int], Floats]


def size(vector: Vector) -> int:
    return sum(part.size for part in vector)


def only(vector: Vector) -> Stretch | None:
    """The stretch that the vector is, None if it is anything else."""
    return vector[0] if len(vector) == 1 and isinstance(vector[0], Stretch) else None


def source(leaf: Leaf) -> Leaf:
    """The input itself below its normalisation."""
    below = only(leaf.args[0]) if leaf.kind == "scaled" else None
    return leaf if below is None else below.leaf


def cut(vector: Vector, start: int, stop: int) -> Vector:
    found: list[Part] = []
    for part in vector:
        low, high = max(start, 0), min(stop, part.size)
        if low < high:
            found.append(part if (low, high) == (0, part.size) else part.cut(low, high))
        start, stop = start - part.size, stop - part.size
    return tuple(found)


def joined(vectors: Sequence[Vector]) -> Vector:
    """End to end; stretches that follow each other in one leaf become one again."""
    parts: list[Part] = []
    for part in (part for vector in vectors for part in vector):
        last = parts[-1] if parts else None
        if isinstance(part, Stretch) and isinstance(last, Stretch) and _continues(last, part):
            parts[-1] = Stretch(last.leaf, last.start, last.size + part.size)
        else:
            parts.append(part)
    return tuple(parts)


def _continues(first: Stretch, second: Stretch) -> bool:
    follows = first.leaf is second.leaf and second.start == first.start + first.size
    return follows and first.leaf.kind != "zero"


def _diagonal(factor: Floats, part: Stretch) -> Affine:
    return Affine(np.zeros(part.size), {}, {part: factor})


def is_product(vector: Vector) -> bool:
    """Whether a product of unknowns is a summand of it: such sums are states, and stay together."""
    kinds = ("product", "sum", "clip")
    return any(
        part.leaf.kind in kinds if isinstance(part, Stretch) else any(key.leaf.kind in kinds for key in part.factors)
        for part in vector
    )


@dataclass(slots=True)
class Symbols:
    """All leaves of a file, in an order in which they can be evaluated."""

    where: str
    leaves: list[Leaf] = field(default_factory=list)
    numbers: int = 0
    read: int = 0
    zeros: dict[int, Leaf] = field(default_factory=dict)
    run: int = -1

    def spend(self, count: int) -> None:
        self.numbers += count
        if self.numbers > MOST_NUMBERS or self.read > MOST_READ:
            raise BadInput("takes more numbers to follow than a forecaster has", self.where, "check the file")

    def leaf(self, kind: str, length: int, args: Sequence[Vector] = (), data: Any = None) -> Vector:
        if len(self.leaves) >= MOST_LEAVES:
            raise BadInput("takes more steps to follow than a forecaster has", self.where, "check the file")
        steps = [leaf.steps for arg in args for leaf in _leaves(arg) if leaf.kind != "zero"]
        reach = (data[1],) * 2 if kind == "input" else (0, 0)
        if steps:
            reach = (min(low for low, _ in steps), max(high for _, high in steps))
        self.leaves.append(Leaf(len(self.leaves), kind, length, tuple(args), data, reach, self.run))
        return (Stretch(self.leaves[-1], 0, length),)

    def zero(self, length: int) -> Vector:
        if length not in self.zeros:
            self.leaf("zero", length)
            self.zeros[length] = self.leaves[-1]
        return (Stretch(self.zeros[length], 0, length),)

    def constant(self, values: Floats) -> Vector:
        """A row of numbers; zeros are the state after a reset, and stay visible as such."""
        if not values.any():
            return self.zero(len(values))
        return (Affine(values.astype(np.float64), {}, {}),)

    def function(self, kind: str, vector: Vector, data: Any = None) -> Vector:
        return self.leaf(kind, size(vector), (vector,), data)

    def product(self, first: Vector, second: Vector) -> Vector:
        return self.leaf("product", size(first), (first, second))

    def matmul(self, vector: Vector, matrix: Floats) -> Vector:
        """matrix (outputs, inputs) @ vector."""
        self.read += matrix.size
        self.spend(0)
        bias = np.zeros(len(matrix))
        matrices: dict[Stretch, Floats] = {}

        def put(key: Stretch, values: Floats) -> None:
            self.spend(values.size if key in matrices else 0)
            matrices[key] = matrices[key] + values if key in matrices else values

        column = 0
        for part in vector:
            block = matrix[:, column : column + part.size]
            column += part.size
            if isinstance(part, Stretch):
                put(part, block)
                continue
            bias = bias + block @ part.bias
            for key, inner in part.matrices.items():
                self.spend(len(matrix) * key.size)
                put(key, block @ inner)
            for key, factor in part.factors.items():
                self.spend(block.size)
                put(key, block * factor)
        return (Affine(bias, matrices, {}),)

    def scaled(self, vector: Vector, factor: Floats, offset: Floats) -> Vector:
        """factor * vector + offset, element by element."""
        if (factor == 1).all() and not offset.any():
            return vector
        stretch = only(vector)
        if stretch and stretch.leaf.kind == "scaled" and stretch.whole:
            first, shift = stretch.leaf.data
            factor, offset = factor * first, factor * shift + offset
            vector, stretch = stretch.leaf.args[0], only(stretch.leaf.args[0])
        if stretch and stretch.leaf.kind == "input" and (factor > 0).all():
            return self.function("scaled", vector, (factor, offset))  # normalisation, for the channels
        parts: list[Part] = []
        at = 0
        for part in vector:
            f, o = factor[at : at + part.size], offset[at : at + part.size]
            at += part.size
            if isinstance(part, Stretch):
                part = _diagonal(np.ones(part.size), part)
            self.spend(sum(matrix.size for matrix in part.matrices.values()) if (f != 1).any() else part.size)
            parts.append(
                Affine(
                    part.bias * f + o,
                    {k: m * f[:, None] if (f != 1).any() else m for k, m in part.matrices.items()},
                    {k: d * f for k, d in part.factors.items()},
                )
            )
        return tuple(parts)

    def add(self, first: Vector, second: Vector) -> Vector:
        for one, other in ((first, second), (second, first)):
            stretch = only(one)
            if stretch and stretch.leaf.kind == "zero":
                return other
        if is_product(first) or is_product(second):
            return self.leaf("sum", size(first), (first, second))
        edges = sorted(set(_edges(first)) | set(_edges(second)))
        parts: list[Part] = []
        for low, high in zip([0, *edges], edges, strict=False):
            pair = [_affine(cut(vector, low, high)[0]) for vector in (first, second)]
            found: list[dict[Stretch, Floats]] = [dict(pair[0].matrices), dict(pair[0].factors)]
            for mine, others in zip(found, (pair[1].matrices, pair[1].factors), strict=True):
                for key, values in others.items():
                    self.spend(values.size if key in mine else 0)
                    mine[key] = mine[key] + values if key in mine else values
            parts.append(Affine(pair[0].bias + pair[1].bias, *found))
        return tuple(parts)

    def evaluate(self, feeds: Feeds, batch: int) -> list[Floats]:
        """The value of every leaf (batch, size)."""
        values: list[Floats] = []
        for leaf in self.leaves:
            args = [value_of(arg, values, batch) for arg in leaf.args]
            if leaf.kind == "input":
                values.append(feeds[leaf.data])
            elif leaf.kind == "zero":
                values.append(np.zeros((batch, leaf.size)))
            else:
                values.append(COMPUTED[leaf.kind](leaf, *args))
        return values


def value_of(vector: Vector, values: Sequence[Floats] | Mapping[int, Floats], batch: int) -> Floats:
    """The numbers that a vector stands for."""
    found: list[Floats] = []
    for part in vector:
        if isinstance(part, Stretch):
            found.append(_stretch(part, values))
            continue
        made = np.broadcast_to(part.bias, (batch, part.size))
        for key, matrix in part.matrices.items():
            made = made + _stretch(key, values) @ matrix.T
        for key, factor in part.factors.items():
            made = made + _stretch(key, values) * factor
        found.append(made)
    return np.concatenate(found, axis=-1)


def _stretch(stretch: Stretch, values: Sequence[Floats] | Mapping[int, Floats]) -> Floats:
    return values[stretch.leaf.index][:, stretch.start : stretch.start + stretch.size]


def softmax(values: NDArray[np.float64]) -> NDArray[np.float64]:
    raised = np.exp(values - values.max(axis=-1, keepdims=True))
    return raised / raised.sum(axis=-1, keepdims=True)


#: How a leaf's value comes from its arguments'.
COMPUTED: dict[str, Callable[..., Floats]] = {
    "product": lambda leaf, a, b: a * b,
    "sum": lambda leaf, a, b: a + b,
    "scaled": lambda leaf, a: a * leaf.data[0] + leaf.data[1],
    "clip": lambda leaf, a: np.clip(a, -leaf.data, leaf.data),
    "relu6": lambda leaf, a: np.clip(a, 0, 6),
    "unit": lambda leaf, a: np.clip(a, 0, 1),
    "below1": lambda leaf, a: np.minimum(a, 1),
    "softmax": lambda leaf, a: softmax(a),
    "kept": lambda leaf, a: a,
    "max": lambda leaf, *all: np.maximum.reduce(all),
    "average": lambda leaf, *all: np.mean(all, axis=0),
    "mean": lambda leaf, a: a.mean(axis=-1, keepdims=True),
    "squared difference": lambda leaf, a, b: (a - b) ** 2,
    "rsqrt": lambda leaf, a: 1 / np.sqrt(a),
    **{name: (lambda leaf, a, f=function: f(a)) for name, function in FUNCTIONS.items()},
}


def _leaves(vector: Vector) -> Iterator[Leaf]:
    for part in vector:
        for key in (part,) if isinstance(part, Stretch) else (*part.matrices, *part.factors):
            yield key.leaf


def _edges(vector: Vector) -> Iterator[int]:
    at = 0
    for part in vector:
        at += part.size
        yield at


def _affine(part: Part) -> Affine:
    return _diagonal(np.ones(part.size), part) if isinstance(part, Stretch) else part


def as_affine(vector: Vector) -> Affine:
    """The whole vector as one affine combination; factors of several parts become matrices."""
    if len(vector) == 1:
        return _affine(vector[0])
    length, row = size(vector), 0
    bias = np.zeros(length)
    matrices: dict[Stretch, Floats] = {}
    for part in map(_affine, vector):
        rows = slice(row, row + part.size)
        bias[rows] = part.bias
        for key, matrix in (*part.matrices.items(), *((k, np.diag(d)) for k, d in part.factors.items())):
            matrices.setdefault(key, np.zeros((length, key.size)))[rows] += matrix
        row += part.size
    return Affine(bias, matrices, {})
