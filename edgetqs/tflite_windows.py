"""Convolutions, pooling and LayerNormalization among the expressions of a ``.tflite``.

A convolution is seen from the frames that each of its outputs is a product of,
pooling from those that it takes the largest or the mean of. A LayerNormalization is a
dozen operators that every converter arranges its own way: its parameters are
fitted to what the expression computes.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Literal, cast

import numpy as np

from edgetqs.model import Dense, LayerNormalization, frozen
from edgetqs.stepwise import Convolution, Pooling, positions
from edgetqs.tflite_cells import alike, ordered, terms
from edgetqs.tflite_graph import Floats
from edgetqs.tflite_patterns import arguments, pre_activation
from edgetqs.tflite_symbols import COMPUTED, Leaf, Stretch, Vector, as_affine, only, size, source, value_of

#: Taps of all outputs of a layer; no window for a microcontroller has more.
MOST_TAPS = 1 << 22
#: Leaves that a LayerNormalization may be made of, inputs that it is tried on, and what it may be off.
MOST_PARTS, PROBES, EXACT = 24, 16, 1e-6


def convolution(values: Sequence[Vector], inputs: Sequence[Leaf]) -> tuple[Convolution, list[Vector]] | None:
    """The convolution that gives ``values``, one a frame, and the frames that it reads; None where it is none.

    ``inputs`` are the leaves of the model's inputs: a convolution need not read all of a window's end.
    """
    found = [pre_activation(value) for value in values]
    if any(one is None for one in found):
        return None
    functions, affines = zip(*(one for one in found if one is not None), strict=True)
    parts = [terms(affine) for affine in affines]
    rows: list[list[Vector]] = [[(key,) for key in ordered(set(part))] for part in parts]
    if len(set(functions)) != 1 or max(map(len, rows), default=0) < 2 or not all(rows):
        return None
    sequence = _frames(rows, inputs)
    layout = _layout(rows, sequence) if sequence and _in_order(sequence) else None
    if not sequence or layout is None:
        return None
    taps, stride, dilation, padding = layout
    whole = next(k for k, row in enumerate(rows) if len(row) == taps)
    kernels = [parts[whole][_key(frame)] for frame in rows[whole]]
    at = positions(len(sequence), (taps - 1) * dilation + 1, stride, padding, dilation)
    for row, part, affine in zip(at, parts, affines, strict=False):
        given = [(part[_key(sequence[k])], kernels[tap]) for tap, k in enumerate(row) if k >= 0]
        if not all(alike(*pair) for pair in given) or not alike(affine.bias, affines[whole].bias):
            return None
    kernel = frozen(np.concatenate(kernels, axis=1)[None])
    dense = Dense("conv1d", kernel, frozen(affines[whole].bias[None]), functions[0])
    return Convolution("conv1d", dense, taps, stride, dilation, padding), sequence


def pooling(values: Sequence[Vector], sequence: bool, inputs: Sequence[Leaf]) -> tuple[Pooling, list[Vector]] | None:
    """The same for pooling by the largest value or the mean; of all frames where ``values`` is no ``sequence``."""
    stretches = [only(value) for value in values]
    kinds = {one.leaf.kind if one is not None else "" for one in stretches}
    if kinds not in ({"max"}, {"average"}):
        return None
    mean = kinds == {"average"}
    name = "average_pooling1d" if mean else "max_pooling1d"
    rows = [arguments(one) for one in stretches if one is not None]
    if not sequence:
        return Pooling(f"global_{name}", 0, mean=mean), rows[0]
    frames = _frames(rows, inputs)
    layout = _layout(rows, frames) if frames else None
    if not frames or layout is None or layout[2] != 1 or layout[3] == "causal":
        return None
    taps, stride, _, padding = layout
    return Pooling(name, taps, stride, cast(Literal["valid", "same"], padding), mean), frames


def _key(frame: Vector) -> Stretch:
    assert isinstance(frame[0], Stretch)
    return frame[0]


def _frames(rows: Sequence[Sequence[Vector]], inputs: Sequence[Leaf]) -> list[Vector] | None:
    """All frames that the rows take theirs from, in order; None where they are no frames of a sequence."""
    seen = list(dict.fromkeys(frame for row in rows for frame in row))
    first = only(seen[0])
    if len({size(frame) for frame in seen}) != 1:
        return None
    if first is not None and _of_inputs(seen):
        window = {
            source(leaf).data[1]: (Stretch(leaf, first.start, first.size),)
            for leaf in inputs
            if _akin(leaf, first.leaf)
        }
        every: list[Vector] = [window[step] for step in sorted(window)]
        return every if set(seen) <= set(every) else None
    return seen


def _in_order(frames: Sequence[Vector]) -> bool:
    """Whether they look at the window one after the other, and are not steps of several layers in turns."""
    reach = [leaf.steps for frame in frames for leaf in _leaves(frame)]
    return all(a <= c and b <= d and (a, b) != (c, d) for (a, b), (c, d) in itertools.pairwise(reach))


def _of_inputs(frames: Sequence[Vector]) -> bool:
    return all(leaf.kind in ("input", "scaled") for frame in frames for leaf in _leaves(frame))


def _akin(one: Leaf, other: Leaf) -> bool:
    """Whether both are steps of the same input, scaled in the same way."""
    if one.kind != other.kind or source(one).data[0] != source(other).data[0]:
        return False
    return one.kind == "input" or all(np.array_equal(a, b) for a, b in zip(one.data, other.data, strict=True))


def _layout(
    rows: Sequence[Sequence[Vector]], sequence: Sequence[Vector]
) -> tuple[int, int, int, Literal["valid", "same", "causal"]] | None:
    """(taps, stride, dilation, padding) that cover the rows' frames of the sequence."""
    place = {frame: k for k, frame in enumerate(sequence)}
    found = [[place[frame] for frame in row] for row in rows]
    widest = max(found, key=len)
    gaps = set(np.diff(widest).tolist()) or {1}
    if len(gaps) != 1 or min(gaps) < 1 or len(sequence) * len(widest) > MOST_TAPS:
        return None
    dilation = gaps.pop()
    reach = (len(widest) - 1) * dilation + 1
    steps = set(np.diff([row[0] for row in found]).tolist())
    for padding in ("valid", "causal", "same"):
        for stride in sorted({step for step in steps if step > 0} | {1}):
            at = positions(len(sequence), reach, stride, padding, dilation)
            enough = len(at) == len(found) or (padding == "valid" and len(at) > len(found))  # the rest is not read
            if enough and [row[row >= 0].tolist() for row in at[: len(found)]] == found:
                return len(widest), stride, dilation, cast(Literal["valid", "same", "causal"], padding)
    return None


# --- LayerNormalization ---------------------------------------------------------------


def normalization(values: Sequence[Vector]) -> tuple[LayerNormalization, list[Vector]] | None:
    """The LayerNormalization that gives each of ``values``, and what it normalises; None where it is none."""
    found = [_normalized(value) for value in values]
    if any(one is None for one in found):
        return None
    first, *others = [one for one in found if one is not None]
    if any(not alike(a, b) for one in others for a, b in zip(one[:3], first[:3], strict=True)):
        return None
    gamma, beta, epsilon, _ = first
    layer = LayerNormalization("layer_normalization", frozen(gamma), frozen(beta), float(epsilon[0]))
    return layer, [one[3] for one in found if one is not None]


def _normalized(value: Vector) -> tuple[Floats, Floats, Floats, Vector] | None:
    """(gamma, beta, epsilon, x) of gamma * (x - mean(x)) / sqrt(variance(x) + epsilon) + beta."""
    root = next((leaf for leaf in _below(value) if leaf.kind == "rsqrt"), None)
    if root is None:
        return None
    variance = as_affine(root.args[0])
    keys = list(terms(variance))
    if root.size != 1 or len(keys) != 1 or keys[0].leaf.kind != "mean":
        return None
    squares = only(keys[0].leaf.args[0])
    if squares is None or squares.leaf.kind != "squared difference":
        return None
    x = max(squares.leaf.args, key=size)
    if size(x) != size(value) or size(x) < 2:
        return None
    rng = np.random.default_rng(0)
    known: dict[int, Floats] = {leaf.index: rng.normal(size=(PROBES, leaf.size)) for leaf in _leaves(x)}
    try:
        given, wanted = _computed(x, known), _computed(value, known)
    except KeyError:  # made of something else besides
        return None
    epsilon = variance.bias
    normal = (given - given.mean(axis=1, keepdims=True)) / np.sqrt(given.var(axis=1, keepdims=True) + epsilon)
    spread = normal - normal.mean(axis=0)
    gamma = (spread * wanted).sum(axis=0) / np.maximum((spread * spread).sum(axis=0), 1e-30)
    beta = wanted.mean(axis=0) - gamma * normal.mean(axis=0)
    if not np.allclose(gamma * normal + beta, wanted, rtol=EXACT, atol=EXACT):
        return None
    return gamma, beta, epsilon, x


def _leaves(vector: Vector) -> list[Leaf]:
    keys = [key for part in vector for key in ((part,) if isinstance(part, Stretch) else terms(part))]
    return list(dict.fromkeys(key.leaf for key in keys))


def _below(vector: Vector) -> Iterator[Leaf]:
    """The leaves that a vector is made of, the nearest first."""
    seen: dict[Leaf, None] = dict.fromkeys(_leaves(vector))
    pending = list(seen)
    while pending and len(seen) <= MOST_PARTS:
        leaf = pending.pop(0)
        yield leaf
        new = [one for arg in leaf.args for one in _leaves(arg) if one not in seen]
        seen |= dict.fromkeys(new)
        pending += dict.fromkeys(new)


def _computed(vector: Vector, known: dict[int, Floats]) -> Floats:
    """The vector's values, of the ``known`` leaves' by index. Raises KeyError where it is made of others."""
    for leaf in _leaves(vector):
        if leaf.index not in known:
            if leaf.kind not in ("sum", "product", "mean", "squared difference", "rsqrt"):
                raise KeyError(leaf.kind)
            known[leaf.index] = COMPUTED[leaf.kind](leaf, *(_computed(arg, known) for arg in leaf.args))
    return value_of(vector, known, PROBES)
