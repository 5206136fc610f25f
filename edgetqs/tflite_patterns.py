"""What a step of a recurrent layer looks like among the expressions of a ``.tflite``: the table ``CELLS``.

A pattern is a name, which binds a vector, or a tuple:

=====================  =====================================================================
("product", p, q)      elementwise product, either way round
("sum", p, q)          sum of two states, either way round
("act", p)             tanh or relu of p; binds ``activation``
("gate", name)         sigmoid or hard_sigmoid of the vector ``name``; binds ``gate function``
("clip", p)            p within limits, or p; binds ``clip``
("as", name, p)        p, with the whole bound to ``name``
("rest", name)         one minus the vector bound to ``name``
("minus", name)        the vector bound to ``name``, negative
("less", one, name)    the difference of two vectors
=====================  =====================================================================

A further arrangement of a known cell is a further row.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgetqs.tflite_symbols import Affine, Stretch, Vector, as_affine, cut, only

Pattern = Any
Found = dict[str, Any]

_Z = ("as", "Z", ("gate", "z"))
_ONE_MINUS_Z = ("rest", "Z")


@dataclass(frozen=True, slots=True)
class Cell:
    """``gates`` are the vectors in the order of ``kind``'s gates; ``first`` is the step from a zero state that a
    converter has computed ahead."""

    kind: str
    gates: tuple[str, ...]
    step: Pattern
    first: Pattern = None
    recurrent: str = ""  # of a GRU with reset_after: the vector that the reset gate multiplies


CELLS = (
    Cell(
        "LSTM",
        ("i", "f", "g", "o"),
        ("product", ("gate", "o"), ("act", ("clip", ("sum", ("product", ("gate", "f"), "c'"),
                                                      ("product", ("gate", "i"), ("act", "g")))))),
        ("product", ("gate", "o"), ("act", ("clip", ("product", ("gate", "i"), ("act", "g"))))),
    ),
    Cell(
        "GRU",
        ("z", "r", "n"),
        ("sum", ("product", _Z, "h'"),
         ("product", _ONE_MINUS_Z, ("act", ("sum", "n", ("product", ("gate", "r"), "m"))))),
        None,
        "m",
    ),
    Cell(
        "GRU",
        ("z", "r", "n"),
        ("sum", ("product", _Z, "h'"), ("product", _ONE_MINUS_Z, ("act", "n"))),
        ("product", _ONE_MINUS_Z, ("act", "n")),
    ),
    Cell(  # n + z * (h' - n), with the reset gate after the product and before
        "GRU",
        ("z", "r", "n"),
        ("sum", ("as", "N", ("act", ("sum", "n", ("product", ("gate", "r"), "m")))),
         ("product", _Z, ("less", "h'", "N"))),
        None,
        "m",
    ),
    Cell(
        "GRU",
        ("z", "r", "n"),
        ("sum", ("as", "N", ("act", "n")), ("product", _Z, ("less", "h'", "N"))),
        ("sum", ("as", "N", ("act", "n")), ("product", _Z, ("minus", "N"))),
    ),
)  # fmt: skip
#: What a cell may squash with.
ACTS = ("tanh", "relu")


def matches(pattern: Pattern, vector: Vector, found: Found) -> Iterator[Found]:
    """Every way in which the vector is the pattern, as bindings that extend ``found``."""
    if isinstance(pattern, str):
        if pattern not in found or same(found[pattern], vector):
            yield {**found, pattern: vector}
        return
    kind, *rest = pattern
    if kind == "as":
        for more in matches(rest[1], vector, found):
            yield {**more, rest[0]: vector}
    elif kind == "rest":
        if rest[0] not in found:
            opposite = _one_minus(vector)
            if opposite is not None:
                yield from matches(_Z, opposite, found)
        elif _adds_to_one(found[rest[0]], vector):
            yield found
    elif kind == "less":
        affine = as_affine(vector)
        if len(affine.factors) == 2 and not affine.matrices and not affine.bias.any():
            keys = sorted(affine.factors, key=lambda key: -float(affine.factors[key][0]))
            if (affine.factors[keys[0]] == 1).all() and (affine.factors[keys[1]] == -1).all():
                for more in matches(rest[0], (keys[0],), found):
                    yield from matches(rest[1], (keys[1],), more)
        yield from matches(("sum", rest[0], ("minus", rest[1])), vector, found)
    elif kind == "minus":
        affine = as_affine(vector)
        negative = [key for key, factor in affine.factors.items() if (factor == -1).all()]
        if len(negative) == 1 == len(affine.factors) and not affine.matrices and not affine.bias.any():
            yield from matches(rest[0], (negative[0],), found)
    elif kind == "gate":
        inner = gate(vector)
        if inner is not None and found.get("gate function", inner[0]) == inner[0]:
            yield {**found, "gate function": inner[0], rest[0]: inner[1]}
    elif kind == "clip":
        stretch = only(vector)
        if stretch is not None and stretch.leaf.kind == "clip":
            yield from matches(rest[0], arguments(stretch)[0], {**found, "clip": stretch.leaf.data})
        else:
            yield from matches(rest[0], vector, found)
    elif kind == "act":
        stretch = only(vector)
        if stretch is not None and stretch.leaf.kind in ACTS:
            function = stretch.leaf.kind
            if found.get("activation", function) == function:
                yield from matches(rest[0], arguments(stretch)[0], {**found, "activation": function})
    else:
        stretch = only(vector)
        if stretch is None or stretch.leaf.kind != kind:
            return
        first, second = arguments(stretch)
        for one, other in ((first, second), (second, first)):
            for more in matches(rest[0], one, found):
                yield from matches(rest[1], other, more)


def arguments(stretch: Stretch) -> list[Vector]:
    """The same elements of an elementwise leaf's arguments."""
    stop = stretch.start + stretch.size
    return [cut(arg, stretch.start, stop) for arg in stretch.leaf.args]


def gate(vector: Vector) -> tuple[str, Affine] | None:
    """(function, pre-activation) of a sigmoid or hard_sigmoid.

    A hard sigmoid is written as a clipped ramp; its slope has gone into the
    matrices, from where it is taken back.
    """
    stretch = only(vector)
    if stretch is not None and stretch.leaf.kind == "sigmoid":
        return "sigmoid", as_affine(arguments(stretch)[0])
    if stretch is not None and stretch.leaf.kind == "unit":
        return "hard_sigmoid_keras2", _ramp(as_affine(arguments(stretch)[0]), 5.0, 0.5)
    affine = as_affine(vector)
    if len(affine.factors) == 1 and not affine.matrices and not affine.bias.any():
        ((key, factor),) = affine.factors.items()
        if key.leaf.kind == "relu6" and np.allclose(factor, 1 / 6, rtol=1e-5):
            return "hard_sigmoid_keras3", _ramp(as_affine(arguments(key)[0]), 1.0, 3.0)
    return None


def _ramp(affine: Affine, slope: float, middle: float) -> Affine:
    return Affine(
        (affine.bias - middle) * slope,
        {key: matrix * slope for key, matrix in affine.matrices.items()},
        {key: factor * slope for key, factor in affine.factors.items()},
    )


def pre_activation(value: Vector) -> tuple[str, Affine] | None:
    """(function, what it is applied to) of a dense layer's or a convolution's output."""
    stretch = only(value)
    if stretch is not None and stretch.leaf.kind == "kept":
        return "linear", as_affine(arguments(stretch)[0])
    if stretch is not None and stretch.leaf.kind in ("tanh", "relu"):
        inner = arguments(stretch)[0]
        below = only(inner)
        if below is not None and below.leaf.kind != "kept":
            return None
        return stretch.leaf.kind, _opened(as_affine(inner))
    clipped = gate(value)
    if clipped is not None:
        return clipped[0], _opened(clipped[1])
    if all(isinstance(part, Stretch) for part in value):
        return None
    return "linear", _opened(as_affine(value))


def _opened(affine: Affine) -> Affine:
    """A scaling of what the trace has kept apart, joined to it."""
    if affine.matrices or len(affine.factors) != 1:
        return affine
    ((key, factor),) = affine.factors.items()
    if key.leaf.kind != "kept":
        return affine
    within = as_affine(arguments(key)[0])
    return Affine(
        factor * within.bias + affine.bias,
        {frame: matrix * factor[:, None] for frame, matrix in within.matrices.items()},
        {frame: own * factor for frame, own in within.factors.items()},
    )


def same(one: Any, other: Any) -> bool:
    """Whether two vectors are known to be equal."""
    if one is other:
        return True
    if isinstance(one, Affine) or isinstance(other, Affine):
        return False
    first, second = only(one), only(other)
    if first is not None and second is not None:
        if first.leaf.kind == "zero" == second.leaf.kind:
            return first.size == second.size
        return first == second
    return len(one) == len(other) > 1 and all(same((a,), (b,)) for a, b in zip(one, other, strict=True))


def _one_minus(vector: Vector) -> Vector | None:
    """The v of 1 - v, if that is what the vector is."""
    affine = as_affine(vector)
    if affine.matrices or len(affine.factors) != 1 or not np.allclose(affine.bias, 1, atol=1e-5):
        return None
    ((key, factor),) = affine.factors.items()
    if (factor == -1).all():
        return (key,)
    return (Affine(np.zeros(key.size), {}, {key: -factor}),)


def _adds_to_one(one: Vector, other: Vector) -> bool:
    opposite = _one_minus(other)
    if opposite is None:
        return False
    first, second = as_affine(one).factors, as_affine(opposite).factors
    return first.keys() == second.keys() and all(np.array_equal(first[key], second[key]) for key in first)
