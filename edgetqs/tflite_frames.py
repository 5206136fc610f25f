"""Operators of a ``.tflite`` over the frames of a window: convolutions, pooling, reductions, padding.

A convolution becomes a product of the frames that it covers, pooling a leaf
"max" or "average" over them; ``tflite_windows`` sees from the frames what layer it was.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from edgetqs.stepwise import frames_behind, positions
from edgetqs.tflite_arithmetic import activated, mixed
from edgetqs.tflite_graph import Operator
from edgetqs.tflite_symbols import Affine, Part, Vector, only
from edgetqs.tflite_trace import Numbers, Trace, Unknown, Value

Values = list[Value]

#: Padding of the schema.
PADDINGS = ("same", "valid")


def _over_frames(
    trace: Trace, operator: Operator, value: Unknown, kernel: tuple[int, int], options: str, dilated: bool,
    combine: Callable[[list[Vector | None]], Vector],
) -> Numbers:  # fmt: skip
    """``combine`` of the vectors under ``kernel`` (height, width) at each of its places, None outside, as cells."""
    if len(value.shape) != 4:
        raise ValueError(f"an image of shape {value.shape}")
    time = 1 if value.shape[1] > 1 or kernel[0] > 1 else 2
    if value.shape[3 - time] != 1 or kernel[2 - time] != 1:
        raise trace.refuse(operator, "covers an image, not the frames of a window", "")
    suffix = "HW"[time - 1]
    stride = operator.option(options, f"Stride{suffix}")
    dilation = operator.option(options, f"Dilation{suffix}Factor") if dilated else 1
    padding, count, taps = PADDINGS[operator.option(options, "Padding")], value.shape[time], kernel[time - 1]
    if min(stride, dilation, taps) < 1:
        raise ValueError("a stride, a dilation or a kernel of nothing")
    reach = (taps - 1) * dilation + 1
    frames = frames_behind(count, reach, stride, padding)
    if frames < 1:
        raise ValueError(f"{taps} taps over {count} frames")
    trace.vectors(frames * taps)
    trace.graphs.count(frames * taps * value.shape[0])
    at = positions(count, reach, stride, padding, dilation)
    rows = value.cells.reshape(value.shape[0], count)
    made = np.empty((value.shape[0], frames), object)
    for place in np.ndindex(made.shape):
        made[place] = combine([rows[place[0], k] if k >= 0 else None for k in at[place[1]]])
    return made.reshape((value.shape[0], frames, 1) if time == 1 else (value.shape[0], 1, frames))


def _convolution(trace: Trace, operator: Operator, values: Values) -> Sequence[Value]:
    value, kernel = trace.unknown(values[0]), trace.numbers(values[1])
    if kernel.ndim != 4 or not kernel.size or kernel.shape[3] != value.size:
        raise trace.refuse(operator, "convolves groups of its inputs", "use Conv1D with groups=1")
    matrix = kernel.reshape(len(kernel), -1).astype(np.float64)
    if operator.option("Conv2DOptions", "Padding") == 0 or any(_is_zero(vector) for vector in value.cells.ravel()):
        # The zeros around a window are no values that a BatchNormalization has shifted.
        value = Unknown(trace.each(lambda one: _kept(trace, one), value.cells), value.size)

    def combine(vectors: list[Vector | None]) -> Vector:
        there = [vector is not None and not _is_zero(vector) for vector in vectors]
        parts: list[Part] = [part for vector, own in zip(vectors, there, strict=True) if own for part in vector or ()]
        if all(there):
            return trace.symbols.matmul(tuple(parts), matrix)
        trace.spend(matrix.shape)
        return trace.symbols.matmul(tuple(parts), matrix[:, np.repeat(there, value.size)])

    made = _over_frames(trace, operator, value, kernel.shape[1:3], "Conv2DOptions", True, combine)
    result = Unknown(made, kernel.shape[0])
    if len(values) > 2 and values[2] is not None:
        result = mixed(trace, operator, "Add", result, bias_of(trace, operator, trace.numbers(values[2])))
    code = operator.option("Conv2DOptions", "FusedActivationFunction")
    if code == 0 and kernel.shape[1] * kernel.shape[2] > 1:
        # Joined to what follows, every step of a recurrent layer would read several frames.
        return [Unknown(trace.each(lambda one: trace.symbols.function("kept", one), result.cells), result.size)]
    return [activated(trace, operator, result, code)]


def bias_of(trace: Trace, operator: Operator, numbers: Numbers) -> Numbers:
    """A bias of an integer product counts in the scales of its factors, where the file leaves its own out."""
    tensors = trace.here.tensors
    x, w, b = (tensors[k] for k in operator.inputs[:3])
    if b.kind != "int32" or len(b.scale) or not len(w.scale):
        return numbers
    if len(x.scale) != 1 or len(w.scale) not in (1, numbers.size):
        raise ValueError("a bias without a scale")
    return numbers * x.scale[0] * w.scale


def _kept(trace: Trace, vector: Vector) -> Vector:
    shifted = any(isinstance(part, Affine) and part.bias.any() for part in vector)
    return trace.symbols.function("kept", vector) if shifted else vector


def _is_zero(vector: Vector) -> bool:
    stretch = only(vector)
    return stretch is not None and stretch.leaf.kind == "zero"


def _pool(kind: str) -> Callable[..., Sequence[Value]]:
    def run(trace: Trace, operator: Operator, values: Values) -> Sequence[Value]:
        value = trace.unknown(values[0])
        height, width = (operator.option("Pool2DOptions", f"Filter{name}") for name in ("Height", "Width"))

        def combine(vectors: list[Vector | None]) -> Vector:
            return _pooled(trace, kind, [vector for vector in vectors if vector is not None])

        made = _over_frames(trace, operator, value, (height, width), "Pool2DOptions", False, combine)
        code = operator.option("Pool2DOptions", "FusedActivationFunction")
        return [activated(trace, operator, Unknown(made, value.size), code)]

    return run


def _pooled(trace: Trace, kind: str, vectors: Sequence[Vector]) -> Vector:
    """A leaf over the frames. A scaling that all have in common (BatchNormalization) is left for after it."""
    found = [vector[0] for vector in vectors if len(vector) == 1 and isinstance(vector[0], Affine)]
    scalings = [next(iter(part.factors.items())) for part in found if len(part.factors) == 1 and not part.matrices]
    if len(scalings) < len(vectors) or not all((factor > 0).all() for _, factor in scalings):
        return trace.symbols.leaf(kind, sum(part.size for part in vectors[0]), vectors)
    (first, factor), bias = scalings[0], found[0].bias
    alike = all(np.array_equal(factor, f) for _, f in scalings) and all(np.array_equal(bias, a.bias) for a in found)
    if not alike:
        return trace.symbols.leaf(kind, first.size, vectors)
    plain: list[Vector] = [(key,) for key, _ in scalings]
    return trace.symbols.scaled(trace.symbols.leaf(kind, first.size, plain), factor, bias)


def _reduced(trace: Trace, operator: Operator, values: Values) -> tuple[Unknown, list[int], bool]:
    """(operand, axes, whether they stay as 1)."""
    value = values[0]
    assert isinstance(value, Unknown)
    rank = len(value.shape)
    axes = sorted({axis % rank for axis in trace.integers(values[1]) if -rank <= axis < rank})
    if not axes:
        raise ValueError("a reduction over no axis")
    return value, axes, bool(operator.option("ReducerOptions", "KeepDims"))


def _over_axes(trace: Trace, value: Unknown, axes: list[int], keep: bool, join: Callable[..., Vector]) -> Unknown:
    """``join`` of the vectors along ``axes``, none of them the last."""
    moved = np.moveaxis(value.cells, axes, range(-len(axes), 0))
    outer = moved.shape[: moved.ndim - len(axes)]
    rows = moved.reshape(*outer, -1)
    made = np.empty(outer, object)
    for place in np.ndindex(outer):
        made[place] = join(list(rows[place]))
    shape = [1 if axis in axes else length for axis, length in enumerate(value.cells.shape)] if keep else outer
    trace.graphs.count(rows.size)
    return Unknown(made.reshape(shape), value.size)


def _reduce_max(trace: Trace, operator: Operator, values: Values) -> Sequence[Value]:
    if not isinstance(values[0], Unknown):
        every = tuple(trace.integers(values[1]))
        return [trace.numbers(values[0]).max(axis=every, keepdims=operator.option("ReducerOptions", "KeepDims"))]
    value, axes, keep = _reduced(trace, operator, values)
    if axes[-1] == len(value.shape) - 1:
        raise trace.refuse(operator, "takes the largest of a vector's elements", "export the model without it")
    return [_over_axes(trace, value, axes, keep, lambda vectors: _pooled(trace, "max", vectors))]


def _mean(trace: Trace, operator: Operator, values: Values) -> Sequence[Value]:
    """Over frames a pooling; over a vector's elements what LayerNormalization is made of."""
    if not isinstance(values[0], Unknown):
        every = tuple(trace.integers(values[1]))
        return [trace.numbers(values[0]).mean(axis=every, keepdims=operator.option("ReducerOptions", "KeepDims"))]
    value, axes, keep = _reduced(trace, operator, values)
    if axes == [len(value.shape) - 1] and keep:
        return [Unknown(trace.each(lambda one: trace.symbols.leaf("mean", 1, (one,)), value.cells), 1)]
    if axes[-1] == len(value.shape) - 1:
        raise trace.refuse(operator, "takes the mean of a vector's elements", "export the model without it")

    return [_over_axes(trace, value, axes, keep, lambda vectors: _pooled(trace, "average", vectors))]


def _squared_difference(trace: Trace, operator: Operator, values: Values) -> Sequence[Value]:
    if not any(isinstance(value, Unknown) for value in values):
        return [(trace.numbers(values[0]) - trace.numbers(values[1])) ** 2]
    first, second = (trace.unknown(value) for value in values)
    length = max(first.size, second.size)
    if min(first.size, second.size) not in (1, length):
        raise ValueError(f"vectors of {first.size} and {second.size} elements")
    made = trace.each(lambda a, b: trace.symbols.leaf("squared difference", length, (a, b)), first.cells, second.cells)
    return [Unknown(made, length)]


# --- padding -----------------------------------------------------------------------


def _padded(trace: Trace, operator: Operator, value: Value, paddings: Numbers) -> Value:
    """Zeros before and behind the axes: ``paddings`` (rank, 2)."""
    if paddings.min(initial=0) < 0:
        raise ValueError("a negative padding")
    if not isinstance(value, Unknown):
        return np.pad(trace.numbers(value), paddings)
    if paddings[-1].any():
        raise trace.refuse(operator, "pads a vector", "export the model without it")
    trace.vectors(int(np.prod([length + sum(pair) for length, pair in zip(value.cells.shape, paddings, strict=False)])))
    made = np.pad(value.cells, paddings[:-1])  # with the number 0
    zero = trace.symbols.zero(value.size)
    for place in np.ndindex(made.shape):
        if not isinstance(made[place], tuple):
            made[place] = zero
    return Unknown(made, value.size)


def _pad(trace: Trace, operator: Operator, values: Values) -> Sequence[Value]:
    if len(values) > 2 and trace.numbers(values[2]).any():
        raise trace.refuse(operator, "pads with other numbers than zero", "pad with zeros")
    paddings = trace.numbers(values[1])
    if not isinstance(values[0], (np.ndarray, Unknown)) or paddings.shape != (len(values[0].shape), 2):
        raise ValueError("paddings of other axes")
    return [_padded(trace, operator, values[0], paddings)]


def _blocks(trace: Trace, values: Values) -> tuple[Unknown, list[int], Numbers]:
    """Of a dilated convolution: (operand, block sizes, paddings or crops) of the axes behind the batch."""
    value, blocks, edges = trace.unknown(values[0]), trace.integers(values[1]), trace.numbers(values[2])
    if edges.shape != (len(blocks), 2) or len(blocks) > value.cells.ndim - 1 or min(blocks, default=1) < 1:
        raise ValueError("blocks of other axes")
    return value, blocks, edges


def _space_to_batch(trace: Trace, operator: Operator, values: Values) -> Sequence[Value]:
    value, blocks, paddings = _blocks(trace, values)
    rest = np.zeros((len(value.shape) - len(blocks) - 1, 2), np.int64)
    padded = _padded(trace, operator, value, np.concatenate([np.zeros((1, 2), np.int64), paddings, rest]))
    assert isinstance(padded, Unknown)
    cells, count = padded.cells, len(blocks)
    if any(length % block for length, block in zip(cells.shape[1:], blocks, strict=False)):
        raise ValueError("blocks that do not fit")
    split = [axis for length, block in zip(cells.shape[1:], blocks, strict=False) for axis in (length // block, block)]
    apart = cells.reshape(cells.shape[0], *split, *cells.shape[1 + count :])
    inside, outside = range(2, 2 * count + 1, 2), range(1, 2 * count + 1, 2)
    moved = apart.transpose(*inside, 0, *outside, *range(2 * count + 1, apart.ndim))
    return [Unknown(moved.reshape(-1, *split[::2], *cells.shape[1 + count :]), value.size)]


def _batch_to_space(trace: Trace, operator: Operator, values: Values) -> Sequence[Value]:
    value, blocks, crops = _blocks(trace, values)
    cells, count = value.cells, len(blocks)
    if cells.shape[0] % int(np.prod(blocks)):
        raise ValueError("blocks that do not fit")
    apart = cells.reshape(*blocks, -1, *cells.shape[1:])
    order = [count, *(axis for k in range(count) for axis in (count + 1 + k, k)), *range(2 * count + 1, apart.ndim)]
    lengths = [block * length for block, length in zip(blocks, cells.shape[1:], strict=False)]
    whole = apart.transpose(order).reshape(-1, *lengths, *cells.shape[1 + count :])
    places = [slice(low, length - high) for length, (low, high) in zip(lengths, crops.tolist(), strict=True)]
    made = whole[(slice(None), *places)]
    if not made.size or crops.min(initial=0) < 0:
        raise ValueError("crops of more than there is")
    return [Unknown(made, value.size)]


FRAMES: dict[str, Callable[[Trace, Operator, Values], Sequence[Value]]] = {
    "CONV_2D": _convolution,
    "MAX_POOL_2D": _pool("max"),
    "AVERAGE_POOL_2D": _pool("average"),
    "REDUCE_MAX": _reduce_max,
    "MEAN": _mean,
    "SQUARED_DIFFERENCE": _squared_difference,
    "PAD": _pad,
    "PADV2": _pad,
    "SPACE_TO_BATCH_ND": _space_to_batch,
    "BATCH_TO_SPACE_ND": _batch_to_space,
}
