"""How weights lie in flash: the one place that knows packing, padding and row order.

``portable``  int8 row by row; int4 row by row, two columns a byte, first in
              the low half, odd rows padded with a zero.
``dsp``       rows in blocks of four (the rest in blocks of one), columns
              padded to 4 (int8) or 8 (int4); within a block one word a row for
              each group of columns. See runtime/edgetqs_dsp.c.

A matrix is stored as one array of words a run of gates of equal width, with
a multiplier (2 bytes), a shift (1 byte) and, where there is one, a bias (4
bytes) a row.
"""

from __future__ import annotations

import numpy as np

from edgetqs.errors import BadInput
from edgetqs.integer import ACCUMULATOR_LIMIT, Matrix

KERNELS = ("portable", "dsp")
#: Activation vectors are padded to this many values; the same as EDGETQS_PAD.
PAD = 8
#: Bytes a row beside its weights: multiplier and shift.
ROW_BYTES = 3
BIAS_BYTES = 4

_BYTE_ORDER = [0, 2, 1, 3]
_NIBBLE_ORDER = [0, 2, 4, 6, 1, 3, 5, 7]


def padded(count: int, multiple: int = PAD) -> int:
    return -(-count // multiple) * multiple


def is_wide(matrix: Matrix) -> bool:
    """Whether some row's sum could leave an int32, so that it is summed in parts."""
    return bool(matrix.accumulator_bound().max() > ACCUMULATOR_LIMIT)


def packed_bytes(rows: int, columns: int, width: int, kernels: str) -> int:
    """Bytes of ``pack(weights of this shape)``, the whole array padded to words."""
    if kernels == "dsp":
        return rows * padded(columns, 4 if width == 8 else 8) * width // 8
    return padded(rows * (columns if width == 8 else (columns + 1) // 2), 4)


def pack(weights: np.ndarray, width: int, kernels: str) -> np.ndarray:
    """(rows, columns) integers as little-endian uint32 words."""
    if kernels not in KERNELS:
        raise BadInput(f"unknown kernels {kernels!r}", todo=f"one of: {', '.join(KERNELS)}")
    data = _pack_dsp(weights, width) if kernels == "dsp" else _pack_portable(weights, width)
    return np.frombuffer(data + bytes(-len(data) % 4), "<u4")


def _pack_portable(weights: np.ndarray, width: int) -> bytes:
    if width == 8:
        return weights.astype(np.int8).tobytes()
    nibbles = _pad_columns(weights, 2).astype(np.int8).view(np.uint8) & 0xF
    return (nibbles[:, 0::2] | nibbles[:, 1::2] << 4).astype(np.uint8).tobytes()


def _pack_dsp(weights: np.ndarray, width: int) -> bytes:
    group = 4 if width == 8 else 8
    padded_weights = _pad_columns(weights, group)
    rows, columns = padded_weights.shape
    grouped = padded_weights.reshape(rows, columns // group, group)
    if width == 8:
        words = np.ascontiguousarray(grouped[..., _BYTE_ORDER].astype(np.int8)).view("<u4")[..., 0]
    else:
        nibbles = (grouped[..., _NIBBLE_ORDER] + 8).astype(np.uint32)
        words = (nibbles << (4 * np.arange(8, dtype=np.uint32))).sum(axis=-1, dtype=np.uint32)
    blocks = rows // 4 * 4
    in_fours = words[:blocks].reshape(-1, 4, columns // group).transpose(0, 2, 1)
    return in_fours.astype("<u4").tobytes() + words[blocks:].astype("<u4").tobytes()


def _pad_columns(weights: np.ndarray, multiple: int) -> np.ndarray:
    extra = padded(weights.shape[1], multiple) - weights.shape[1]
    return np.ascontiguousarray(np.pad(weights.astype(np.int64), ((0, 0), (0, extra))))
