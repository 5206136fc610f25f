"""Operators of a ``.tflite`` that run subgraphs and keep values: loops, branches, variables, lists of tensors."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from edgetqs.tflite_graph import Operator
from edgetqs.tflite_moves import axis_of, indexed, shape_of, together
from edgetqs.tflite_trace import Handle, TensorList, Trace, Value

Values = list[Value]

#: Rounds of all loops together.
MOST_ROUNDS = 1 << 13


def _while(trace: Trace, operator: Operator, values: Values) -> Sequence[Value]:
    (condition, _), (body, _) = operator.calls
    while True:
        trace.rounds += 1
        if trace.rounds > MOST_ROUNDS:
            raise trace.refuse(operator, "runs longer than a window", "loop over a fixed window")
        (more,) = trace.run(condition, values)
        if not isinstance(more, np.ndarray) or more.size != 1:
            raise trace.refuse(operator, "runs until its values say so", "loop over a fixed window")
        if not more.ravel()[0]:
            return values
        values = trace.run(body, values)


def _if(trace: Trace, operator: Operator, values: Values) -> Sequence[Value]:
    if not isinstance(values[0], np.ndarray) or values[0].size != 1:
        raise trace.refuse(operator, "branches by its values", "export the model without branches")
    return trace.run(operator.calls[0 if values[0].ravel()[0] else 1][0], values[1:])


def _call_once(trace: Trace, operator: Operator, values: Values) -> Sequence[Value]:
    trace.run(operator.option("CallOnceOptions", "InitSubgraphIndex"), [])
    return []


def _variable(trace: Trace, operator: Operator, values: Values) -> Sequence[Value]:
    names = [operator.option("VarHandleOptions", field) or b"" for field in ("Container", "SharedName")]
    return [Handle("/".join(name.decode("utf-8", "replace") for name in names))]


def _handle(value: Value) -> str:
    if not isinstance(value, Handle):
        raise ValueError("an operand that must be a variable is not")
    return value.name


def _read_variable(trace: Trace, operator: Operator, values: Values) -> Sequence[Value]:
    name = _handle(values[0])
    if name not in trace.variables:
        raise trace.refuse(
            operator,
            f"the file holds no value of the variable {name[-60:]!r}",
            "convert the model with its variables frozen, as TFLiteConverter.from_keras_model does",
        )
    return [trace.variables[name]]


def _assign_variable(trace: Trace, operator: Operator, values: Values) -> Sequence[Value]:
    trace.variables[_handle(values[0])] = values[1]
    return []


def _list(value: Value) -> TensorList:
    if not isinstance(value, TensorList):
        raise ValueError("an operand that must be a list is not")
    return value


def _list_reserve(trace: Trace, operator: Operator, values: Values) -> Sequence[Value]:
    (count,) = trace.integers(values[1])
    trace.vectors(count)
    return [TensorList((None,) * count)]


def _list_set(trace: Trace, operator: Operator, values: Values) -> Sequence[Value]:
    items, (place,) = list(_list(values[0]).items), trace.integers(values[1])
    trace.graphs.count(len(items))
    items[axis_of(place, len(items))] = values[2]
    return [TensorList(tuple(items))]


def _list_get(trace: Trace, operator: Operator, values: Values) -> Sequence[Value]:
    items, (place,) = _list(values[0]).items, trace.integers(values[1])
    return [items[axis_of(place, len(items))]]


def _list_stack(trace: Trace, operator: Operator, values: Values) -> Sequence[Value]:
    return [together(trace, list(_list(values[0]).items), 0, np.stack)]


def _list_from(trace: Trace, operator: Operator, values: Values) -> Sequence[Value]:
    shape = shape_of(values[0])
    trace.vectors(shape[0])
    return [
        TensorList(tuple(indexed(trace, values[0], (k, *(slice(None) for _ in shape[1:]))) for k in range(shape[0])))
    ]


CONTROL: dict[str, Callable[[Trace, Operator, list[Value]], Sequence[Value]]] = {
    "WHILE": _while, "IF": _if, "CALL_ONCE": _call_once, "VAR_HANDLE": _variable, "READ_VARIABLE": _read_variable,
    "ASSIGN_VARIABLE": _assign_variable,
    "TensorListReserve": _list_reserve, "TensorListSetItem": _list_set, "TensorListGetItem": _list_get,
    "TensorListStack": _list_stack, "TensorListFromTensor": _list_from,
}  # fmt: skip
