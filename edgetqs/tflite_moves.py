"""Operators of a ``.tflite`` that only move elements: slices, joins, transposes, what loops read and write with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from edgetqs.tflite_graph import Operator
from edgetqs.tflite_symbols import cut, joined
from edgetqs.tflite_trace import Numbers, Trace, Unknown, Value, cells

Values = list[Value]


def shape_of(value: Value) -> tuple[int, ...]:
    if not isinstance(value, (np.ndarray, Unknown)):
        raise ValueError("an operand without a shape")
    return tuple(value.shape)


def axis_of(axis: int, rank: int) -> int:
    if not -rank <= axis < rank:
        raise ValueError(f"axis {axis} of {rank}")
    return axis % rank


def _transpose(trace: Trace, operator: Operator, values: Values) -> Sequence[Value]:
    order = trace.integers(values[1])
    rank = len(shape_of(values[0]))
    if sorted(order) != list(range(rank)):
        raise ValueError(f"transposed by {order}")
    inside = order[-1] != rank - 1
    return [trace.moved(values[0], lambda a: a.transpose(order if a.ndim == rank else order[:-1]), inside)]


def _reshape(trace: Trace, operator: Operator, values: Values) -> Sequence[Value]:
    if len(values) > 1 and values[1] is not None:
        return [trace.reshaped(values[0], trace.integers(values[1]))]
    return [trace.reshaped(values[0], trace.here.tensors[operator.outputs[0]].shape)]


def _expand(trace: Trace, operator: Operator, values: Values) -> Sequence[Value]:
    shape = list(shape_of(values[0]))
    (axis,) = trace.integers(values[1])
    shape.insert(axis_of(axis, len(shape) + 1), 1)
    return [trace.reshaped(values[0], shape)]


def _squeeze(trace: Trace, operator: Operator, values: Values) -> Sequence[Value]:
    shape = shape_of(values[0])
    given = operator.option("SqueezeOptions", "SqueezeDimsAsNumpy") if operator.table.BuiltinOptionsType() else 0
    axes = [axis_of(int(axis), len(shape)) for axis in np.atleast_1d(given)] if not isinstance(given, int) else []
    drop = axes or [k for k, axis in enumerate(shape) if axis == 1]
    return [trace.reshaped(values[0], [axis for k, axis in enumerate(shape) if k not in drop])]


def indexed(trace: Trace, value: Value, places: tuple[Any, ...]) -> Value:
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
            return Unknown(trace.each(lambda one: cut(one, start, stop), outer), stop - start)
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
    shape = shape_of(values[0])
    if not len(begin) == len(end) == len(stride) <= len(shape) or 0 in stride:
        raise ValueError("a slice of other axes")
    places: list[Any] = []
    for k, (low, high, by) in enumerate(zip(begin, end, stride, strict=True)):
        if masks["ShrinkAxis"] >> k & 1:
            places.append(axis_of(low, shape[k]))
            continue
        places.append(slice(None if masks["Begin"] >> k & 1 else low, None if masks["End"] >> k & 1 else high, by))
    places += [slice(None)] * (len(shape) - len(places))
    return [indexed(trace, values[0], tuple(places))]


def _slice(trace: Trace, operator: Operator, values: Values) -> Sequence[Value]:
    begin, sizes = trace.integers(values[1]), trace.integers(values[2])
    shape = shape_of(values[0])
    if not len(begin) == len(sizes) == len(shape) or min(begin, default=0) < 0:
        raise ValueError("a slice of other axes")
    places = tuple(slice(low, None if n == -1 else low + n) for low, n in zip(begin, sizes, strict=True))
    return [indexed(trace, values[0], places)]


def _split_at(trace: Trace, value: Value, axis: int, edges: Sequence[int]) -> Sequence[Value]:
    rank = len(shape_of(value))
    made, low = [], 0
    for high in edges:
        place = tuple(slice(low, high) if k == axis else slice(None) for k in range(rank))
        made.append(indexed(trace, value, place))
        low = high
    return made


def _split(trace: Trace, operator: Operator, values: Values) -> Sequence[Value]:
    (axis,) = trace.integers(values[0])
    shape, parts = shape_of(values[1]), len(operator.outputs)
    axis = axis_of(axis, len(shape))
    if not parts or shape[axis] % parts:
        raise ValueError(f"{shape[axis]} split into {parts}")
    step = shape[axis] // parts
    return _split_at(trace, values[1], axis, range(step, shape[axis] + 1, step))


def _split_v(trace: Trace, operator: Operator, values: Values) -> Sequence[Value]:
    sizes, (axis,) = trace.integers(values[1]), trace.integers(values[2])
    shape = shape_of(values[0])
    axis = axis_of(axis, len(shape))
    if sizes.count(-1) == 1:
        sizes[sizes.index(-1)] = shape[axis] - sum(sizes) - 1
    if sum(sizes) != shape[axis] or min(sizes) < 0:
        raise ValueError(f"{shape[axis]} split into {sizes}")
    return _split_at(trace, values[0], axis, np.cumsum(sizes).tolist())


def _unpack(trace: Trace, operator: Operator, values: Values) -> Sequence[Value]:
    shape = shape_of(values[0])
    axis = axis_of(operator.option("UnpackOptions", "Axis"), len(shape))
    places = [tuple(k if other == axis else slice(None) for other in range(len(shape))) for k in range(shape[axis])]
    return [indexed(trace, values[0], place) for place in places]


def together(trace: Trace, values: Values, axis: int, join: Callable[..., Numbers]) -> Value:
    """Concatenated or stacked; at the last axis vectors are put end to end."""
    if not values:
        raise ValueError("nothing to join")
    new = join is np.stack
    rank = len(shape_of(values[0])) + new
    axis = axis_of(axis, rank)
    trace.spend(sum(int(np.prod(shape_of(value))) for value in values))
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
    return Unknown(
        trace.each(lambda *all: joined(all), *(one.cells for one in unknown)), sum(one.size for one in unknown)
    )


def _pack(trace: Trace, operator: Operator, values: Values) -> Sequence[Value]:
    return [together(trace, values, operator.option("PackOptions", "Axis"), np.stack)]


def _gather(trace: Trace, operator: Operator, values: Values) -> Sequence[Value]:
    if operator.option("GatherOptions", "BatchDims"):
        raise trace.refuse(operator, "gathers by batch", "export the model without it")
    shape, places = shape_of(values[0]), trace.numbers(values[1])
    axis = axis_of(operator.option("GatherOptions", "Axis"), len(shape))
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
    rank = len(shape_of(values[0]))
    axes = [axis_of(axis, rank) for axis in trace.integers(values[1])]
    return [trace.moved(values[0], lambda a: np.flip(a, tuple(axes)), rank - 1 in axes)]


def _broadcast_to(trace: Trace, operator: Operator, values: Values) -> Sequence[Value]:
    shape = trace.integers(values[1])
    trace.spend(shape)
    have = shape_of(values[0])
    if np.broadcast_shapes(tuple(shape), have) != tuple(shape):
        raise ValueError("broadcast to a smaller shape")
    if not isinstance(values[0], Unknown):
        return [np.broadcast_to(trace.numbers(values[0]), shape)]
    if shape[-1] != have[-1]:
        raise trace.refuse(operator, "spreads one value over several", "export the model without it")
    return [trace.moved(values[0], lambda a: np.broadcast_to(a, shape[:-1]), False)]


def _tile(trace: Trace, operator: Operator, values: Values) -> Sequence[Value]:
    times = trace.integers(values[1])
    shape = shape_of(values[0])
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


def _shape_operator(trace: Trace, operator: Operator, values: Values) -> Sequence[Value]:
    return [np.array(shape_of(values[0]), np.int64)]


MOVES: dict[str, Callable[[Trace, Operator, list[Value]], Sequence[Value]]] = {
    "TRANSPOSE": _transpose,
    "RESHAPE": _reshape,
    "EXPAND_DIMS": _expand,
    "SQUEEZE": _squeeze,
    "STRIDED_SLICE": _strided_slice,
    "SLICE": _slice,
    "SPLIT": _split,
    "SPLIT_V": _split_v,
    "UNPACK": _unpack,
    "PACK": _pack,
    "GATHER": _gather,
    "DYNAMIC_UPDATE_SLICE": _update,
    "REVERSE_V2": _reverse,
    "BROADCAST_TO": _broadcast_to,
    "TILE": _tile,
    "FILL": _fill,
    "RANGE": _range,
    "SHAPE": _shape_operator,
}
