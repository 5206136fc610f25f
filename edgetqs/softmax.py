"""Softmax of one vector of int16 logits, in NumPy: LiteRT's int16 SOFTMAX with beta 1.

LiteRT interpolates two tables of 513 entries, made from a function f over a
range in 512 steps: an entry is f there, rounded, less half of what linear
interpolation is above f in the middle of its step (rounded as well). The table
of exp is in ``runtime/exp_table.inc``, that of 1/(1+x) is computed from
integers where it is needed.
"""

from __future__ import annotations

import math
from importlib import resources

import numpy as np

from edgetqs.fixedpoint import Integers, saturate

#: LiteRT's exp(-10 + i / 51.2) for i = 0..512, at 2^-15. The firmware includes the same file.
EXP_TABLE: Integers = np.array(
    resources.files("edgetqs").joinpath("runtime/exp_table.inc").read_text().replace(",", " ").split(), np.int64
)
#: exp's argument is in steps of this.
EXP_STEP = 10 / 65535
#: Scales of logits in which engines agree; see ``exp_multiplier``.
SCALE_MIN, SCALE_MAX = EXP_STEP / 2, EXP_STEP * 2**14


def exp_multiplier(scale: float) -> tuple[int, int]:
    """(multiplier, shift) that take logits of ``scale`` to ``EXP_STEP``; 2^30 <= multiplier <= 2^31, 17 <= shift <= 31.

    Raises ValueError outside of [SCALE_MIN, SCALE_MAX]: engines round smaller
    scales once or twice, larger ones overflow. 2^-13 to 2 and 5 * 2^-15 to
    5 * 2^-1 are inside.
    """
    if not SCALE_MIN <= scale <= SCALE_MAX:
        raise ValueError(f"softmax of logits at scale {scale:g}: engines agree from {SCALE_MIN:g} to {SCALE_MAX:g}")
    mantissa, exponent = math.frexp(float(np.float32(scale)) / EXP_STEP)
    return round(mantissa * 2**31), 31 - exponent


def softmax(logits: Integers, multiplier: int, shift: int) -> Integers:
    """Softmax over the last axis of int16 ``logits``, at UNIT_SCALE; 1 is held as 32767.

    multiplier and shift from ``exp_multiplier``; any leading shape, at most 65535
    logits, whose sum is an int32.
    """
    below = logits - logits.max(axis=-1, keepdims=True)
    exponent = saturate(((below * multiplier + (1 << (shift - 1))) >> shift) + 32767)
    place, fraction = (exponent + 32768) >> 7, exponent & 127
    exps = EXP_TABLE[place] + (((EXP_TABLE[place + 1] - EXP_TABLE[place]) * fraction + 64) >> 7)
    total = exps.sum(axis=-1, keepdims=True)
    bits = np.frexp(total.astype(np.float64))[1].astype(np.int64)
    scale = _reciprocal(total, bits)
    return np.minimum((exps * scale + (np.int64(1) << (bits - 2))) >> (bits - 1), 32767)


def _reciprocal(total: Integers, bits: Integers) -> Integers:
    """1 / total, of ``bits`` bits, as a 15-bit fraction of its leading power of two."""
    mantissa = ((total << (31 - bits)) + (1 << 13)) >> 14  # 65536 to 131072
    place = mantissa - (1 << 16)  # LiteRT clamps 65536, to the same result
    start, fraction = place >> 7, place & 127
    low, high = reciprocal_entry(start), reciprocal_entry(start + 1)
    return low + (((high - low) * fraction + 64) >> 7)


def reciprocal_entry(index: Integers) -> Integers:
    """LiteRT's 1 / (1 + index / 512) at 2^-15, for index 0..512."""
    entry = _divide(16777216, 512 + index)
    interpolated = _divide(16777216 + entry * (513 + index), 2 * (513 + index))
    above = interpolated - _divide(33554432, 1025 + 2 * index)
    half = np.sign(above) * ((np.abs(above) + 1) >> 1)
    corrected = np.where(index < 512, entry - half, entry)
    return np.minimum(corrected, 32767)


def _divide(numerator: Integers | int, denominator: Integers) -> Integers:
    """Rounded, ties up; both positive."""
    return (2 * numerator + denominator) // (2 * denominator)
