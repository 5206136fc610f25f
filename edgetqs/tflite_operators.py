"""What each operator does to numbers and unknowns: the table ``OPERATORS`` of the trace.

To teach the reader an operator, add a row: its name (of a CUSTOM operator its
own, without "Flex") and a function of the trace, the operator and its
operands' values that gives its outputs' values.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from edgetqs.tflite_arithmetic import activated, arithmetic, bounded, function, mixed, negative, relu
from edgetqs.tflite_control import CONTROL
from edgetqs.tflite_frames import FRAMES, bias_of
from edgetqs.tflite_fused import FUSED
from edgetqs.tflite_graph import Operator
from edgetqs.tflite_moves import MOVES, together
from edgetqs.tflite_symbols import COMPUTED, softmax
from edgetqs.tflite_trace import Numbers, Trace, Unknown, Value

Values = list[Value]


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
        made = mixed(trace, operator, "Add", made, bias_of(trace, operator, trace.numbers(bias)))
    return [activated(trace, operator, made, code)]


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
    return [activated(trace, operator, together(trace, values, axis, np.concatenate), code)]


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
    "ADD": arithmetic("Add"), "SUB": arithmetic("Sub"), "MUL": arithmetic("Mul"), "DIV": arithmetic("Div"),
    "NEG": negative, "MAXIMUM": bounded(True), "MINIMUM": bounded(False),
    "LOGISTIC": function("sigmoid", lambda x: COMPUTED["sigmoid"](None, x)), "TANH": function("tanh", np.tanh),
    "RELU": relu, "RELU6": function("relu6", lambda x: np.clip(x, 0, 6)),
    "RELU_0_TO_1": function("unit", lambda x: np.clip(x, 0, 1)),
    "SOFTMAX": function("softmax", softmax),
    "CONCATENATION": _concatenation, "CAST": _cast, "QUANTIZE": _same, "DEQUANTIZE": _same, "Identity": _same,
    "LESS": _numeric(np.less), "LESS_EQUAL": _numeric(np.less_equal), "GREATER": _numeric(np.greater),
    "GREATER_EQUAL": _numeric(np.greater_equal), "EQUAL": _numeric(np.equal), "NOT_EQUAL": _numeric(np.not_equal),
    "LOGICAL_AND": _numeric(np.logical_and), "LOGICAL_OR": _numeric(np.logical_or),
    "LOGICAL_NOT": _numeric(np.logical_not), "SELECT": _numeric(np.where), "SELECT_V2": _numeric(np.where),
    "ZEROS_LIKE": _numeric(np.zeros_like), "SQRT": _numeric(np.sqrt),
    "RSQRT": function("rsqrt", lambda x: 1 / np.sqrt(x)),
    **MOVES,
    **CONTROL,
    **FRAMES,
    **FUSED,
}  # fmt: skip
