"""The integer arithmetic that every engine shares, in NumPy.

Each function equals, bit for bit, the LiteRT kernel of the same name and the
C functions of ``runtime/edgetqs_rt.c``. Values are int16
(held in int64 arrays here), accumulators exact.

Sources: the 16-bit reference kernels of LiteRT; the ranges in which engines
agree are written down in DESIGN.md.
"""

from __future__ import annotations

from importlib import resources
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Integers: TypeAlias = NDArray[np.integer[Any]]

INT16_MAX = 32767
#: int16 scale of hidden states and gate outputs: [-1, 1).
UNIT_SCALE = 2.0**-15
#: int16 scale of the cell state on its way into tanh: about +-20.
TANH_SCALE = 5 * 2.0**-13
#: 0.8 as a 31-bit mantissa: every cell-state scale 2^-k meets TANH_SCALE with it.
RESCALE_MANTISSA = 1717986918

#: 5/8 as a 31-bit mantissa: it takes values at 5 * 2^-k to a power of two.
FIFTH_MANTISSA = 1342177280
#: 1/6 in steps of 2^-17.
HARD_SIGMOID_SIXTH = 21845

#: About 65536 * sigmoid(i / 24) for i = 0..255 (U0.16): the table that LiteRT's int16 LOGISTIC and
#: TANH interpolate. The firmware includes the same file: less 32768, with the last entry once more.
SIGMOID_TABLE: Integers = 32768 + np.array(
    resources.files("edgetqs").joinpath("runtime/sigmoid_table.inc").read_text().replace(",", " ").split()[:256],
    np.int64,
)


#: The entry from which on the functions are flat.
SIGMOID_FLAT = 255


def saturate(values: Integers) -> Integers:
    """Clamp to int16."""
    return np.clip(values, -INT16_MAX - 1, INT16_MAX)


def requantize(accumulator: Integers, multiplier: Integers, shift: Integers) -> Integers:
    """``accumulator * multiplier / 2^shift``, ties away from zero, not saturated.

    accumulator (..., rows), multiplier and shift (rows,); shift >= 1. Exact as
    long as |accumulator| * multiplier < 2^62, which ``quantize`` proves.
    """
    magnitude = (np.abs(accumulator) * multiplier + (np.int64(1) << (shift - 1))) >> shift
    return np.where(accumulator < 0, -magnitude, magnitude)


def rounding_shift(values: Integers, shift: int) -> Integers:
    """``values / 2^shift``, ties away from zero."""
    if shift == 0:
        return values
    half = np.int64(1) << (shift - 1)
    return np.where(values < 0, -((-values + half) >> shift), (values + half) >> shift)


def multiply(a: Integers, b: Integers, shift: int) -> Integers:
    """``a * b / 2^(shift + 1)``: first a halving with ties up, then ties away from zero."""
    return saturate(rounding_shift((a * b + 1) >> 1, shift))


def multiply_fifth(a: Integers, b: Integers, shift: int) -> Integers:
    """``a * b * 5/8 / 2^shift``, b at 5 * 2^-k: first to the nearest, ties up, then ties away from zero."""
    return saturate(rounding_shift(doubling_high_product(a * b, FIFTH_MANTISSA), shift))


def rescale_fifth(values: Integers, shift: int) -> Integers:
    """``values * 5/8 * 2^shift``, not saturated: from 5 * 2^-k to 2^-(k + shift - 3)."""
    high = doubling_high_product(values << max(shift, 0), FIFTH_MANTISSA)
    return rounding_shift(high, max(-shift, 0))


def rescale(values: Integers, shift: int) -> Integers:
    """``values * 0.8 * 2^shift``: the cell state at 2^-k taken to TANH_SCALE, shift = 11 - k."""
    high = doubling_high_product(values << max(shift, 0), RESCALE_MANTISSA)
    return saturate(rounding_shift(high, max(-shift, 0)))


def doubling_high_product(values: Integers, mantissa: int) -> Integers:
    """``values * mantissa / 2^31``, ties up."""
    product = values * mantissa
    return np.where(product < 0, -((-product + (1 << 30) - 1) >> 31), (product + (1 << 30)) >> 31)


def table_position(values: Integers, multiplier: int, shift: int) -> Integers:
    """Pre-activation to table position: 1/512 of an entry (sigmoid), 1/256 (tanh)."""
    return (values * multiplier + (1 << (shift - 1))) >> shift


def table_multiplier(scale: float) -> tuple[int, int]:
    """(multiplier, shift) of ``table_position`` for pre-activations of ``scale``."""
    multiplier, shift = scale * 4096 * 3, 0
    while multiplier <= INT16_MAX / 2:
        multiplier, shift = multiplier * 2, shift + 1
    return int(multiplier), shift


def logistic(values: Integers, multiplier: int, shift: int) -> Integers:
    """Sigmoid at UNIT_SCALE by the 256-entry table with linear interpolation."""
    position = table_position(values, multiplier, shift)
    magnitude = np.abs(position)
    entry, fraction = np.minimum(magnitude >> 9, 254), magnitude & 511
    low, high = SIGMOID_TABLE[entry], SIGMOID_TABLE[entry + 1]
    result = np.where(magnitude >> 9 >= SIGMOID_FLAT, 0x7FFF << 10, (low << 9) + fraction * (high - low))
    return np.where(position >= 0, result + 512, (1 << 25) - result + 511) >> 10


def hard_sigmoid(values: Integers, z_bits: int, slope: str) -> Integers:
    """clip(slope * z + 0.5, 0, 1) at UNIT_SCALE, for z in steps of 5 * 2^-z_bits.

    slope * z is first held at 2^-16, where int16 saturation is the clipping.
    Slope "0.2" is exact; "1/6" stands as 21845 * 2^-17.
    """
    if slope == "0.2":
        centred = saturate(values << (16 - z_bits))
    else:
        high = doubling_high_product(values * HARD_SIGMOID_SIXTH, FIFTH_MANTISSA)
        centred = saturate(rounding_shift(high, z_bits - 2))
    return saturate(((centred + 1) >> 1) + (1 << 14))


def tanh(values: Integers, multiplier: int, shift: int) -> Integers:
    """Hyperbolic tangent at UNIT_SCALE, by the sigmoid's table."""
    position = table_position(values, multiplier, shift)
    magnitude = np.abs(position)
    entry, fraction = np.minimum(magnitude >> 8, 254), magnitude & 255
    low, high = SIGMOID_TABLE[entry], SIGMOID_TABLE[entry + 1]
    result = np.where(magnitude >> 8 >= SIGMOID_FLAT, 0xFFFF << 8, (low << 8) + fraction * (high - low))
    return np.where(position >= 0, result - (1 << 23) + 128, -result + (1 << 23) + 127) >> 8
