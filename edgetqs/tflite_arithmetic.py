"""Elementwise operators of a ``.tflite``: arithmetic, functions and bounds, of numbers and of unknowns."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from edgetqs.tflite_graph import Operator
from edgetqs.tflite_symbols import COMPUTED, Vector, as_affine, cut
from edgetqs.tflite_trace import Numbers, Trace, Unknown, Value

#: ActivationFunctionType of the schema.
FUSED_ACTIVATIONS = {1: "relu", 3: "relu6", 4: "tanh"}

Values = list[Value]


def function(kind: str, numeric: Callable[[Numbers], Numbers]) -> Callable[..., Sequence[Value]]:
    """An elementwise function: a leaf of ``kind`` over unknowns."""

    def run(trace: Trace, operator: Operator, values: Values) -> Sequence[Value]:
        (value,) = values
        if isinstance(value, Unknown):
            return [Unknown(trace.each(lambda one: trace.symbols.function(kind, one), value.cells), value.size)]
        return [numeric(trace.numbers(value))]

    return run


def activated(trace: Trace, operator: Operator, value: Value, code: int) -> Value:
    if code == 0:
        return value
    kind = FUSED_ACTIVATIONS.get(code, "")
    if not kind:
        raise trace.refuse(operator, f"has the fused activation {code}", "train the layer with relu or tanh")
    return function(kind, lambda x: COMPUTED[kind](None, x))(trace, operator, [value])[0]


def arithmetic(name: str) -> Callable[..., Sequence[Value]]:
    numeric = {"Add": np.add, "Sub": np.subtract, "Mul": np.multiply, "Div": np.divide}[name]

    def run(trace: Trace, operator: Operator, values: Values) -> Sequence[Value]:
        first, second = values
        code = operator.option(f"{name}Options", "FusedActivationFunction")
        if not isinstance(first, Unknown) and not isinstance(second, Unknown):
            first, second = trace.numbers(first), trace.numbers(second)
            trace.spend(np.broadcast_shapes(first.shape, second.shape))
            if name == "Div" and not np.all(second):
                raise ValueError("a division by zero")
            if name == "Div" and first.dtype.kind in "iu":
                return [first // second]
            return [activated(trace, operator, numeric(first, second), code)]
        return [activated(trace, operator, mixed(trace, operator, name, first, second), code)]

    return run


def mixed(trace: Trace, operator: Operator, name: str, first: Value, second: Value) -> Unknown:
    """Arithmetic where at least one side is unknown."""
    symbols = trace.symbols
    if isinstance(first, Unknown) and isinstance(second, Unknown):
        first, second = _spread(trace, operator, first, second.size), _spread(trace, operator, second, first.size)
        if name == "Div":
            raise trace.refuse(operator, "divides unknowns", "export the model without it")

        def both(a: Vector, b: Vector) -> Vector:
            if name == "Mul":
                return symbols.product(a, b)
            return symbols.add(a, _scaled(trace, b, -1.0) if name == "Sub" else b)

        trace.vectors(max(first.cells.size, second.cells.size))
        return Unknown(trace.each(both, first.cells, second.cells), first.size)
    swapped = not isinstance(first, Unknown)
    unknown, numbers = (second, trace.numbers(first)) if swapped else (first, trace.numbers(second))
    assert isinstance(unknown, Unknown)
    shape = np.broadcast_shapes(unknown.shape, numbers.shape)
    unknown = _spread(trace, operator, unknown, shape[-1])
    trace.spend(shape)
    trace.vectors(int(np.prod(shape[:-1])))
    if name == "Mul" and numbers.ndim > 1 and not numbers.any():
        # The state after a reset: its product is kept, for the cell to be seen in the first step too.
        zeros = trace.unknown(numbers)
        if zeros.size == unknown.size:
            return Unknown(trace.each(symbols.product, unknown.cells, zeros.cells), unknown.size)
    numbers = np.broadcast_to(numbers, shape).astype(np.float64)
    if name == "Div" and (swapped or not numbers.all()):
        raise trace.refuse(operator, "divides by an unknown", "export the model without it")
    sources = Unknown(np.broadcast_to(unknown.cells, shape[:-1]), unknown.size)
    made = np.empty(shape[:-1], object)
    ones = np.ones(unknown.size)
    for place in np.ndindex(made.shape):
        row, one = numbers[place], sources.at(place)
        if name == "Mul":
            made[place] = symbols.scaled(one, row, 0 * ones)
        elif name == "Div":
            made[place] = symbols.scaled(one, 1 / row, 0 * ones)
        elif name == "Add":
            made[place] = symbols.scaled(one, ones, row)
        else:
            made[place] = symbols.scaled(one, -ones, row) if swapped else symbols.scaled(one, ones, -row)
    return Unknown(made, unknown.size)


def _spread(trace: Trace, operator: Operator, value: Unknown, length: int) -> Unknown:
    """A single element for each of ``length``."""
    if value.size == length or length == 1:
        return value
    if value.size != 1:
        raise ValueError(f"vectors of {value.size} and {length} elements")
    ones = np.ones((length, 1))
    return Unknown(trace.each(lambda one: trace.symbols.matmul(one, ones), value.cells), length)


def _scaled(trace: Trace, vector: Vector, factor: float) -> Vector:
    length = sum(part.size for part in vector)
    return trace.symbols.scaled(vector, np.full(length, factor), np.zeros(length))


def negative(trace: Trace, operator: Operator, values: Values) -> Sequence[Value]:
    (value,) = values
    if isinstance(value, Unknown):
        return [Unknown(trace.each(lambda one: _scaled(trace, one, -1.0), value.cells), value.size)]
    return [-trace.numbers(value)]


def bounded(low: bool) -> Callable[..., Sequence[Value]]:
    """MAXIMUM (low) and MINIMUM with a constant: relu, and both sides of a hard sigmoid."""
    numeric = np.maximum if low else np.minimum

    def run(trace: Trace, operator: Operator, values: Values) -> Sequence[Value]:
        unknown = [value for value in values if isinstance(value, Unknown)]
        numbers = [trace.numbers(value) for value in values if not isinstance(value, Unknown)]
        if not unknown:
            trace.spend(np.broadcast_shapes(*(number.shape for number in numbers)))
            return [numeric(*numbers)]
        limits = set(numbers[0].ravel().tolist()) if numbers and numbers[0].size else set()
        if limits not in ({0.0}, {1.0}, {6.0}):
            raise trace.refuse(operator, "bounds its values otherwise than relu or hard_sigmoid", "use one of these")
        limit = limits.pop()
        return [
            Unknown(
                trace.each(lambda one: _within(trace, operator, one, low, limit), unknown[0].cells), unknown[0].size
            )
        ]

    return run


def _within(trace: Trace, operator: Operator, vector: Vector, low: bool, limit: float) -> Vector:
    """The vector bounded from below (low) or above."""
    inner = as_affine(vector)
    within = [*inner.factors]
    plain = len(within) == 1 and not inner.matrices and (inner.factors[within[0]] == 1).all()
    kind = within[0].leaf.kind if plain and not inner.bias.any() else ""
    if low and limit == 0 and kind == "below1":
        return trace.symbols.function("unit", _argument(within[0]))
    if not low and limit in (1.0, 6.0) and kind == "relu":
        return trace.symbols.function("unit" if limit == 1 else "relu6", _argument(within[0]))
    if low and limit == 0:
        return trace.symbols.function("relu", vector)
    if not low and limit == 1:
        return trace.symbols.function("below1", vector)
    raise trace.refuse(operator, "bounds its values otherwise than relu or hard_sigmoid", "use one of these")


def relu(trace: Trace, operator: Operator, values: Values) -> Sequence[Value]:
    """With a MINIMUM of 1 before it, the other side of a hard sigmoid."""
    (value,) = values
    if isinstance(value, Unknown):
        return [Unknown(trace.each(lambda one: _within(trace, operator, one, True, 0.0), value.cells), value.size)]
    return [np.maximum(trace.numbers(value), 0)]


def _argument(stretch: Any) -> Vector:
    return cut(stretch.leaf.args[0], stretch.start, stretch.start + stretch.size)
