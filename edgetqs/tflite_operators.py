"""What each operator does to numbers and unknowns: the table ``OPERATORS`` of the trace.

To teach the reader an operator, add a row: its name (of a CUSTOM operator its
own, without "Flex") and a function of the trace, the operator and its
operands' values that gives its outputs' values.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from edgetqs.tflite_control import CONTROL
from edgetqs.tflite_fused import FUSED
from edgetqs.tflite_graph import Operator
from edgetqs.tflite_moves import MOVES, together
from edgetqs.tflite_symbols import COMPUTED, Vector, as_affine, cut, softmax
from edgetqs.tflite_trace import Numbers, Trace, Unknown, Value

#: ActivationFunctionType of the schema.
FUSED_ACTIVATIONS = {1: "relu", 3: "relu6", 4: "tanh"}

Values = list[Value]


def _function(kind: str, numeric: Callable[[Numbers], Numbers]) -> Callable[..., Sequence[Value]]:
    """An elementwise function: a leaf of ``kind`` over unknowns."""

    def run(trace: Trace, operator: Operator, values: Values) -> Sequence[Value]:
        (value,) = values
        if isinstance(value, Unknown):
            return [Unknown(trace.each(lambda one: trace.symbols.function(kind, one), value.cells), value.size)]
        return [numeric(trace.numbers(value))]

    return run


def _numeric(function: Callable[..., Any]) -> Callable[..., Sequence[Value]]:
    """An operator that is known for numbers only: counters, shapes and conditions."""

    def run(trace: Trace, operator: Operator, values: Values) -> Sequence[Value]:
        if any(not isinstance(value, np.ndarray) for value in values):
            masks = "; Masking layers are made of it, feed windows without gaps" if operator.name == "NOT_EQUAL" else ""
            raise trace.refuse(operator, "computes with the model's inputs", f"export the model without it{masks}")
        numbers = [trace.numbers(value) for value in values]
        trace.spend(np.broadcast_shapes(*(number.shape for number in numbers)))
        return [np.asarray(function(*numbers))]

    return run


def _activated(trace: Trace, operator: Operator, value: Value, code: int) -> Value:
    if code == 0:
        return value
    kind = FUSED_ACTIVATIONS.get(code, "")
    if not kind:
        raise trace.refuse(operator, f"has the fused activation {code}", "train the layer with relu or tanh")
    return _function(kind, lambda x: COMPUTED[kind](None, x))(trace, operator, [value])[0]


# --- arithmetic ------------------------------------------------------------------


def _arithmetic(name: str) -> Callable[..., Sequence[Value]]:
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
            return [_activated(trace, operator, numeric(first, second), code)]
        return [_activated(trace, operator, _mixed(trace, operator, name, first, second), code)]

    return run


def _mixed(trace: Trace, operator: Operator, name: str, first: Value, second: Value) -> Unknown:
    """Arithmetic where at least one side is unknown."""
    symbols = trace.symbols
    if isinstance(first, Unknown) and isinstance(second, Unknown):
        if first.size != second.size:
            raise trace.refuse(operator, "spreads one value over several", "export the model without it")
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
    if shape[-1] != unknown.size:
        raise trace.refuse(operator, "spreads one value over several", "export the model without it")
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


def _scaled(trace: Trace, vector: Vector, factor: float) -> Vector:
    length = sum(part.size for part in vector)
    return trace.symbols.scaled(vector, np.full(length, factor), np.zeros(length))


def _negative(trace: Trace, operator: Operator, values: Values) -> Sequence[Value]:
    (value,) = values
    if isinstance(value, Unknown):
        return [Unknown(trace.each(lambda one: _scaled(trace, one, -1.0), value.cells), value.size)]
    return [-trace.numbers(value)]


def _bounded(low: bool) -> Callable[..., Sequence[Value]]:
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


def _relu(trace: Trace, operator: Operator, values: Values) -> Sequence[Value]:
    """With a MINIMUM of 1 before it, the other side of a hard sigmoid."""
    (value,) = values
    if isinstance(value, Unknown):
        return [Unknown(trace.each(lambda one: _within(trace, operator, one, True, 0.0), value.cells), value.size)]
    return [np.maximum(trace.numbers(value), 0)]


def _argument(stretch: Any) -> Vector:
    return cut(stretch.leaf.args[0], stretch.start, stretch.start + stretch.size)


# --- products ----------------------------------------------------------------------


def _fully_connected(trace: Trace, operator: Operator, values: Values) -> Sequence[Value]:
    value, weights, bias = (*values, None, None)[:3]
    if operator.option("FullyConnectedOptions", "WeightsFormat") != 0:
        raise trace.refuse(operator, "has shuffled weights", "convert the model again")
    matrix = trace.numbers(weights)
    if matrix.ndim != 2 or not matrix.size:
        raise ValueError(f"weights of shape {matrix.shape}")
    code = operator.option("FullyConnectedOptions", "FusedActivationFunction")
    keep = operator.option("FullyConnectedOptions", "KeepNumDims")
    made = _product(trace, value, matrix.astype(np.float64), keep)
    if bias is not None:
        made = _mixed(trace, operator, "Add", made, _bias(trace, operator, trace.numbers(bias)))
    return [_activated(trace, operator, made, code)]


def _bias(trace: Trace, operator: Operator, numbers: Numbers) -> Numbers:
    """A bias of an integer product counts in the scales of its factors, where the file leaves its own out."""
    tensors = trace.here.tensors
    x, w, b = (tensors[k] for k in operator.inputs[:3])
    if b.kind != "int32" or len(b.scale) or not len(w.scale):
        return numbers
    if len(x.scale) != 1 or len(w.scale) not in (1, numbers.size):
        raise ValueError("a bias without a scale")
    return numbers * x.scale[0] * w.scale


def _product(trace: Trace, value: Value, matrix: Numbers, keep: bool) -> Unknown:
    """matrix (outputs, inputs) times every vector of the value."""
    unknown = trace.unknown(value)
    if unknown.size != matrix.shape[1] or not keep:
        unknown = trace.reshaped(unknown, (-1, matrix.shape[1]))  # type: ignore[assignment]
    return Unknown(trace.each(lambda one: trace.symbols.matmul(one, matrix), unknown.cells), len(matrix))


def _batch_matmul(trace: Trace, operator: Operator, values: Values) -> Sequence[Value]:
    first, second = values
    if operator.option("BatchMatMulOptions", "AdjX") or isinstance(second, Unknown):
        raise trace.refuse(operator, "multiplies inputs with each other", "attention is no recurrence")
    matrix = trace.numbers(second)
    matrix = matrix.reshape(matrix.shape[-2:]) if matrix.size == np.prod(matrix.shape[-2:]) else matrix
    if matrix.ndim != 2 or not matrix.size:
        raise ValueError(f"weights of shape {matrix.shape}")
    if not operator.option("BatchMatMulOptions", "AdjY"):
        matrix = matrix.T
    unknown = trace.unknown(first)
    if unknown.size != matrix.shape[1]:
        raise ValueError(f"{unknown.shape} times {matrix.shape}")
    return [_product(trace, unknown, matrix.astype(np.float64), True)]


def _concatenation(trace: Trace, operator: Operator, values: Values) -> Sequence[Value]:
    axis = operator.option("ConcatenationOptions", "Axis")
    code = operator.option("ConcatenationOptions", "FusedActivationFunction")
    return [_activated(trace, operator, together(trace, values, axis, np.concatenate), code)]


def _same(trace: Trace, operator: Operator, values: Values) -> Sequence[Value]:
    return values[:1]


def _cast(trace: Trace, operator: Operator, values: Values) -> Sequence[Value]:
    if isinstance(values[0], Unknown):
        return values
    wanted = trace.here.tensors[operator.outputs[0]].kind
    numbers = trace.numbers(values[0])
    return [numbers.astype(np.float64 if wanted.startswith("float") else bool if wanted == "bool" else np.int64)]


OPERATORS: dict[str, Callable[[Trace, Operator, list[Value]], Sequence[Value]]] = {
    "FULLY_CONNECTED": _fully_connected, "BATCH_MATMUL": _batch_matmul,
    "ADD": _arithmetic("Add"), "SUB": _arithmetic("Sub"), "MUL": _arithmetic("Mul"), "DIV": _arithmetic("Div"),
    "NEG": _negative, "MAXIMUM": _bounded(True), "MINIMUM": _bounded(False),
    "LOGISTIC": _function("sigmoid", lambda x: COMPUTED["sigmoid"](None, x)), "TANH": _function("tanh", np.tanh),
    "RELU": _relu, "RELU6": _function("relu6", lambda x: np.clip(x, 0, 6)),
    "RELU_0_TO_1": _function("unit", lambda x: np.clip(x, 0, 1)),
    "SOFTMAX": _function("softmax", softmax),
    "CONCATENATION": _concatenation, "CAST": _cast, "QUANTIZE": _same, "DEQUANTIZE": _same, "Identity": _same,
    "LESS": _numeric(np.less), "LESS_EQUAL": _numeric(np.less_equal), "GREATER": _numeric(np.greater),
    "GREATER_EQUAL": _numeric(np.greater_equal), "EQUAL": _numeric(np.equal), "NOT_EQUAL": _numeric(np.not_equal),
    "LOGICAL_AND": _numeric(np.logical_and), "LOGICAL_OR": _numeric(np.logical_or),
    "LOGICAL_NOT": _numeric(np.logical_not), "SELECT": _numeric(np.where), "SELECT_V2": _numeric(np.where),
    "ZEROS_LIKE": _numeric(np.zeros_like), "RSQRT": _numeric(lambda x: 1 / np.sqrt(x)), "SQRT": _numeric(np.sqrt),
    **MOVES,
    **CONTROL,
    **FUSED,
}  # fmt: skip
