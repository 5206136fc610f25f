"""What each operator does to numbers and unknowns: the table ``OPERATORS`` of the trace.

To teach the reader an operator, add a row: its name (of a CUSTOM operator its
own, without "Flex") and a function of the trace, the operator and its
operands' values that gives its outputs' values.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from edgetqs.tflite_fused import FUSED
from edgetqs.tflite_graph import Operator
from edgetqs.tflite_symbols import Vector, as_affine, cut, joined
from edgetqs.tflite_trace import Handle, Numbers, TensorList, Trace, Unknown, Value, cells, each, scaled_by

#: ActivationFunctionType of the schema.
FUSED_ACTIVATIONS = {1: "relu", 2: "unit_both", 3: "relu6", 4: "tanh"}

Values = list[Value]


def _function(kind: str, numeric: Callable[[Numbers], Numbers]) -> Callable[..., Sequence[Value]]:
    """An elementwise function: a leaf of ``kind`` over unknowns."""

    def run(trace: Trace, operator: Operator, values: Values) -> Sequence[Value]:
        (value,) = values
        if isinstance(value, Unknown):
            return [Unknown(each(lambda one: trace.symbols.function(kind, one), value.cells), value.size)]
        return [numeric(trace.numbers(value))]

    return run


def _numeric(function: Callable[..., Any]) -> Callable[..., Sequence[Value]]:
    """An operator that is known for numbers only: counters, shapes and conditions."""

    def run(trace: Trace, operator: Operator, values: Values) -> Sequence[Value]:
        if any(not isinstance(value, np.ndarray) for value in values):
            raise trace.refuse(operator, "computes with the model's inputs", "export the model without it")
        numbers = [trace.numbers(value) for value in values]
        trace.spend(np.broadcast_shapes(*(number.shape for number in numbers)))
        return [np.asarray(function(*numbers))]

    return run


def _activated(trace: Trace, operator: Operator, value: Value, code: int) -> Value:
    if code == 0:
        return value
    kind = FUSED_ACTIVATIONS.get(code, "")
    if kind not in ("relu", "relu6", "tanh"):
        raise trace.refuse(operator, f"has the fused activation {code}", "train the layer with relu or tanh")
    numeric = {"relu": lambda x: np.maximum(x, 0), "relu6": lambda x: np.clip(x, 0, 6), "tanh": np.tanh}[kind]
    return _function(kind, numeric)(trace, operator, [value])[0]


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
        return Unknown(each(both, first.cells, second.cells), first.size)
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
            return Unknown(each(symbols.product, unknown.cells, zeros.cells), unknown.size)
    numbers = np.broadcast_to(numbers, shape).astype(np.float64)
    if name == "Div" and (swapped or not numbers.all()):
        raise trace.refuse(operator, "divides by an unknown", "export the model without it")
    sources = np.broadcast_to(unknown.cells, shape[:-1])
    made = np.empty(shape[:-1], object)
    ones = np.ones(unknown.size)
    for place in np.ndindex(made.shape):
        row, one = numbers[place], sources[place]
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
        return [Unknown(each(lambda one: _scaled(trace, one, -1.0), value.cells), value.size)]
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

        def one(vector: Vector) -> Vector:
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

        return [Unknown(each(one, unknown[0].cells), unknown[0].size)]

    return run


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
    return Unknown(each(lambda one: trace.symbols.matmul(one, matrix), unknown.cells), len(matrix))


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


# --- moving elements ------------------------------------------------------------------


def _shape(value: Value) -> tuple[int, ...]:
    if not isinstance(value, (np.ndarray, Unknown)):
        raise ValueError("an operand without a shape")
    return tuple(value.shape)


def _axis(axis: int, rank: int) -> int:
    if not -rank <= axis < rank:
        raise ValueError(f"axis {axis} of {rank}")
    return axis % rank


def _transpose(trace: Trace, operator: Operator, values: Values) -> Sequence[Value]:
    order = trace.integers(values[1])
    rank = len(_shape(values[0]))
    if sorted(order) != list(range(rank)):
        raise ValueError(f"transposed by {order}")
    inside = order[-1] != rank - 1
    return [trace.moved(values[0], lambda a: a.transpose(order if a.ndim == rank else order[:-1]), inside)]


def _reshape(trace: Trace, operator: Operator, values: Values) -> Sequence[Value]:
    if len(values) > 1 and values[1] is not None:
        return [trace.reshaped(values[0], trace.integers(values[1]))]
    return [trace.reshaped(values[0], trace.here.tensors[operator.outputs[0]].shape)]


def _expand(trace: Trace, operator: Operator, values: Values) -> Sequence[Value]:
    shape = list(_shape(values[0]))
    (axis,) = trace.integers(values[1])
    shape.insert(_axis(axis, len(shape) + 1), 1)
    return [trace.reshaped(values[0], shape)]


def _squeeze(trace: Trace, operator: Operator, values: Values) -> Sequence[Value]:
    shape = _shape(values[0])
    given = operator.option("SqueezeOptions", "SqueezeDimsAsNumpy") if operator.table.BuiltinOptionsType() else 0
    axes = [_axis(int(axis), len(shape)) for axis in np.atleast_1d(given)] if not isinstance(given, int) else []
    drop = axes or [k for k, axis in enumerate(shape) if axis == 1]
    return [trace.reshaped(values[0], [axis for k, axis in enumerate(shape) if k not in drop])]


def _indexed(trace: Trace, value: Value, places: tuple[Any, ...]) -> Value:
    """value[places]; one place for each axis, a stretch of the last axis is cut."""
    if not isinstance(value, Unknown):
        return trace.moved(value, lambda a: a[places], False)
    last = places[-1]
    outer = value.cells[places[:-1]]
    if not isinstance(outer, np.ndarray) or outer.dtype != object:
        outer = cells([outer], ())
    if isinstance(last, slice):
        start, stop, step = last.indices(value.size)
        if step == 1 and start < stop:
            if (start, stop) == (0, value.size):
                return Unknown(outer, value.size)
            return Unknown(each(lambda one: cut(one, start, stop), outer), stop - start)
    return trace.gathered(trace.elements(Unknown(outer, value.size))[(..., last)])


def _strided_slice(trace: Trace, operator: Operator, values: Values) -> Sequence[Value]:
    kind = "StridedSliceOptions"
    masks = {
        name: int(operator.option(kind, f"{name}Mask"))
        for name in ("Begin", "End", "Ellipsis", "NewAxis", "ShrinkAxis")
    }
    if masks["Ellipsis"] or masks["NewAxis"] or operator.option(kind, "Offset"):
        raise trace.refuse(operator, "slices with an ellipsis or a new axis", "export the model without it")
    begin, end, stride = (trace.integers(value) for value in values[1:])
    shape = _shape(values[0])
    if not len(begin) == len(end) == len(stride) <= len(shape) or 0 in stride:
        raise ValueError("a slice of other axes")
    places: list[Any] = []
    for k, (low, high, by) in enumerate(zip(begin, end, stride, strict=True)):
        if masks["ShrinkAxis"] >> k & 1:
            places.append(_axis(low, shape[k]))
            continue
        places.append(slice(None if masks["Begin"] >> k & 1 else low, None if masks["End"] >> k & 1 else high, by))
    places += [slice(None)] * (len(shape) - len(places))
    return [_indexed(trace, values[0], tuple(places))]


def _slice(trace: Trace, operator: Operator, values: Values) -> Sequence[Value]:
    begin, sizes = trace.integers(values[1]), trace.integers(values[2])
    shape = _shape(values[0])
    if not len(begin) == len(sizes) == len(shape) or min(begin, default=0) < 0:
        raise ValueError("a slice of other axes")
    places = tuple(slice(low, None if n == -1 else low + n) for low, n in zip(begin, sizes, strict=True))
    return [_indexed(trace, values[0], places)]


def _split_at(trace: Trace, value: Value, axis: int, edges: Sequence[int]) -> Sequence[Value]:
    rank = len(_shape(value))
    made, low = [], 0
    for high in edges:
        place = tuple(slice(low, high) if k == axis else slice(None) for k in range(rank))
        made.append(_indexed(trace, value, place))
        low = high
    return made


def _split(trace: Trace, operator: Operator, values: Values) -> Sequence[Value]:
    (axis,) = trace.integers(values[0])
    shape, parts = _shape(values[1]), len(operator.outputs)
    axis = _axis(axis, len(shape))
    if not parts or shape[axis] % parts:
        raise ValueError(f"{shape[axis]} split into {parts}")
    step = shape[axis] // parts
    return _split_at(trace, values[1], axis, range(step, shape[axis] + 1, step))


def _split_v(trace: Trace, operator: Operator, values: Values) -> Sequence[Value]:
    sizes, (axis,) = trace.integers(values[1]), trace.integers(values[2])
    shape = _shape(values[0])
    axis = _axis(axis, len(shape))
    if sizes.count(-1) == 1:
        sizes[sizes.index(-1)] = shape[axis] - sum(sizes) - 1
    if sum(sizes) != shape[axis] or min(sizes) < 0:
        raise ValueError(f"{shape[axis]} split into {sizes}")
    return _split_at(trace, values[0], axis, np.cumsum(sizes).tolist())


def _unpack(trace: Trace, operator: Operator, values: Values) -> Sequence[Value]:
    shape = _shape(values[0])
    axis = _axis(operator.option("UnpackOptions", "Axis"), len(shape))
    places = [tuple(k if other == axis else slice(None) for other in range(len(shape))) for k in range(shape[axis])]
    return [_indexed(trace, values[0], place) for place in places]


def _together(trace: Trace, values: Values, axis: int, join: Callable[..., Numbers]) -> Value:
    """Concatenated or stacked; at the last axis vectors are put end to end."""
    if not values:
        raise ValueError("nothing to join")
    new = join is np.stack
    rank = len(_shape(values[0])) + new
    axis = _axis(axis, rank)
    trace.spend(sum(int(np.prod(_shape(value))) for value in values))
    if not any(isinstance(value, Unknown) for value in values):
        return join([trace.numbers(value) for value in values], axis=axis)
    unknown = [trace.unknown(value) for value in values]
    if axis < rank - 1:
        if len({one.size for one in unknown}) != 1:
            raise ValueError("vectors of different sizes joined")
        made = join([one.cells for one in unknown], axis=axis)
        trace.vectors(made.size)
        return Unknown(made, unknown[0].size)
    if new:
        return trace.gathered(np.stack([trace.elements(one) for one in unknown], axis=axis))
    if len({one.cells.shape for one in unknown}) != 1:
        raise ValueError("tensors of different shapes joined")
    return Unknown(each(lambda *all: joined(all), *(one.cells for one in unknown)), sum(one.size for one in unknown))


def _concatenation(trace: Trace, operator: Operator, values: Values) -> Sequence[Value]:
    axis = operator.option("ConcatenationOptions", "Axis")
    code = operator.option("ConcatenationOptions", "FusedActivationFunction")
    return [_activated(trace, operator, _together(trace, values, axis, np.concatenate), code)]


def _pack(trace: Trace, operator: Operator, values: Values) -> Sequence[Value]:
    return [_together(trace, values, operator.option("PackOptions", "Axis"), np.stack)]


def _gather(trace: Trace, operator: Operator, values: Values) -> Sequence[Value]:
    if operator.option("GatherOptions", "BatchDims"):
        raise trace.refuse(operator, "gathers by batch", "export the model without it")
    shape, places = _shape(values[0]), trace.numbers(values[1])
    axis = _axis(operator.option("GatherOptions", "Axis"), len(shape))
    if places.dtype.kind not in "iu" or places.size > shape[axis] or ((places < 0) | (places >= shape[axis])).any():
        raise ValueError("gathers beyond the end")
    return [trace.moved(values[0], lambda a: _object(a.take(places, axis=axis)), axis == len(shape) - 1)]


def _object(value: Any) -> Numbers:
    return value if isinstance(value, np.ndarray) else cells([value], ())


def _update(trace: Trace, operator: Operator, values: Values) -> Sequence[Value]:
    """DYNAMIC_UPDATE_SLICE: how a loop writes its outputs."""
    start = trace.integers(values[2])
    base, piece = trace.unknown(values[0]), trace.unknown(values[1])
    if piece.size != base.size or len(start) != len(base.shape) or len(piece.shape) != len(base.shape):
        raise trace.refuse(operator, "writes a part of a vector", "export the model without it")
    made = base.cells.copy()
    trace.vectors(made.size)
    limits = zip(start, base.cells.shape, piece.cells.shape, strict=False)
    lows = [min(max(low, 0), whole - part) for low, whole, part in limits]
    made[tuple(slice(low, low + part) for low, part in zip(lows, piece.cells.shape, strict=True))] = piece.cells
    return [Unknown(made, base.size)]


def _reverse(trace: Trace, operator: Operator, values: Values) -> Sequence[Value]:
    rank = len(_shape(values[0]))
    axes = [_axis(axis, rank) for axis in trace.integers(values[1])]
    return [trace.moved(values[0], lambda a: np.flip(a, axes), rank - 1 in axes)]


def _broadcast_to(trace: Trace, operator: Operator, values: Values) -> Sequence[Value]:
    shape = trace.integers(values[1])
    trace.spend(shape)
    have = _shape(values[0])
    if np.broadcast_shapes(tuple(shape), have) != tuple(shape):
        raise ValueError("broadcast to a smaller shape")
    if not isinstance(values[0], Unknown):
        return [np.broadcast_to(trace.numbers(values[0]), shape)]
    if shape[-1] != have[-1]:
        raise trace.refuse(operator, "spreads one value over several", "export the model without it")
    return [trace.moved(values[0], lambda a: np.broadcast_to(a, shape[:-1]), False)]


def _tile(trace: Trace, operator: Operator, values: Values) -> Sequence[Value]:
    times = trace.integers(values[1])
    shape = _shape(values[0])
    if len(times) != len(shape) or min(times, default=1) < 1:
        raise ValueError(f"tiled by {times}")
    trace.spend([a * b for a, b in zip(times, shape, strict=True)])
    return [trace.moved(values[0], lambda a: np.tile(a, times[: a.ndim]), times[-1] != 1)]


def _fill(trace: Trace, operator: Operator, values: Values) -> Sequence[Value]:
    shape = trace.integers(values[0])
    trace.spend(shape)
    return [np.full(shape, trace.numbers(values[1]))]


def _range(trace: Trace, operator: Operator, values: Values) -> Sequence[Value]:
    (low,), (high,), (step,) = (trace.integers(value) for value in values)
    trace.spend(len(range(low, high, step)))
    return [np.arange(low, high, step)]


# --- control, variables and lists ---------------------------------------------------------


def _while(trace: Trace, operator: Operator, values: Values) -> Sequence[Value]:
    (condition, _), (body, _) = operator.calls
    while True:
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
    items[_axis(place, len(items))] = values[2]
    return [TensorList(tuple(items))]


def _list_get(trace: Trace, operator: Operator, values: Values) -> Sequence[Value]:
    items, (place,) = _list(values[0]).items, trace.integers(values[1])
    return [items[_axis(place, len(items))]]


def _list_stack(trace: Trace, operator: Operator, values: Values) -> Sequence[Value]:
    return [_together(trace, list(_list(values[0]).items), 0, np.stack)]


def _list_from(trace: Trace, operator: Operator, values: Values) -> Sequence[Value]:
    shape = _shape(values[0])
    trace.vectors(shape[0])
    return [
        TensorList(
            tuple(
                _indexed(trace, values[0], (k, *(slice(None) for _ in shape[1:])))
                for k in range(shape[0])
            )
        )
    ]


def _shape_of(trace: Trace, operator: Operator, values: Values) -> Sequence[Value]:
    return [np.array(_shape(values[0]), np.int64)]


def _same(trace: Trace, operator: Operator, values: Values) -> Sequence[Value]:
    return values[:1]


def _cast(trace: Trace, operator: Operator, values: Values) -> Sequence[Value]:
    if isinstance(values[0], Unknown):
        return values
    wanted = trace.here.tensors[operator.outputs[0]].kind
    numbers = trace.numbers(values[0])
    return [numbers.astype(np.float64 if wanted.startswith("float") else bool if wanted == "bool" else np.int64)]


def _dequantize(trace: Trace, operator: Operator, values: Values) -> Sequence[Value]:
    """The same real values; a constant that states its scale only here gets it."""
    return values[:1]


def _sigmoid(x: Numbers) -> Numbers:
    return 0.5 * np.tanh(0.5 * x) + 0.5


OPERATORS: dict[str, Callable[[Trace, Operator, list[Value]], Sequence[Value]]] = {
    "FULLY_CONNECTED": _fully_connected, "BATCH_MATMUL": _batch_matmul,
    "ADD": _arithmetic("Add"), "SUB": _arithmetic("Sub"), "MUL": _arithmetic("Mul"), "DIV": _arithmetic("Div"),
    "NEG": _negative, "MAXIMUM": _bounded(True), "MINIMUM": _bounded(False),
    "LOGISTIC": _function("sigmoid", _sigmoid), "TANH": _function("tanh", np.tanh),
    "RELU": _function("relu", lambda x: np.maximum(x, 0)), "RELU6": _function("relu6", lambda x: np.clip(x, 0, 6)),
    "RELU_0_TO_1": _function("unit", lambda x: np.clip(x, 0, 1)),
    "SOFTMAX": _function("softmax", lambda x: x),
    "TRANSPOSE": _transpose, "RESHAPE": _reshape, "EXPAND_DIMS": _expand, "SQUEEZE": _squeeze,
    "STRIDED_SLICE": _strided_slice, "SLICE": _slice, "SPLIT": _split, "SPLIT_V": _split_v, "UNPACK": _unpack,
    "CONCATENATION": _concatenation, "PACK": _pack, "GATHER": _gather, "DYNAMIC_UPDATE_SLICE": _update,
    "REVERSE_V2": _reverse, "BROADCAST_TO": _broadcast_to, "TILE": _tile, "FILL": _fill, "RANGE": _range,
    "SHAPE": _shape_of, "CAST": _cast, "QUANTIZE": _same, "DEQUANTIZE": _dequantize, "Identity": _same,
    "WHILE": _while, "IF": _if, "CALL_ONCE": _call_once, "VAR_HANDLE": _variable, "READ_VARIABLE": _read_variable,
    "ASSIGN_VARIABLE": _assign_variable,
    "TensorListReserve": _list_reserve, "TensorListSetItem": _list_set, "TensorListGetItem": _list_get,
    "TensorListStack": _list_stack, "TensorListFromTensor": _list_from,
    "LESS": _numeric(np.less), "LESS_EQUAL": _numeric(np.less_equal), "GREATER": _numeric(np.greater),
    "GREATER_EQUAL": _numeric(np.greater_equal), "EQUAL": _numeric(np.equal), "NOT_EQUAL": _numeric(np.not_equal),
    "LOGICAL_AND": _numeric(np.logical_and), "LOGICAL_OR": _numeric(np.logical_or),
    "LOGICAL_NOT": _numeric(np.logical_not), "SELECT": _numeric(np.where), "SELECT_V2": _numeric(np.where),
    "ZEROS_LIKE": _numeric(np.zeros_like), "RSQRT": _numeric(lambda x: 1 / np.sqrt(x)), "SQRT": _numeric(np.sqrt),
    **FUSED,
}  # fmt: skip
