"""How rows of weights lie in flash: the one place that knows packing, padding and row order.

Rows of one width are stored as one array of 32-bit words that the row
functions of ``runtime/`` walk through from front to back: blocks of rows, and
within a block its weights, a bias a row where any row has one, and a
multiplier a row (32 bits; if not told otherwise the row's factor times 2^32).

``portable``  one block, a byte for each column. int4: of two rows, 16 second + first;
              a last row of its own has bytes as at int8.
``dsp``       blocks of four rows, the rest in blocks of one; columns padded to
              4. In a block of four each half of a word holds one column of
              several rows; in a block of one a byte is a weight of either
              width; see runtime/edgetqs_dsp.c.
``thumb2``    blocks of four rows, the rest in blocks of one, padded as in dsp; see
              runtime/edgetqs_thumb2.c.
``thumb1``    blocks of eight rows, the rest in blocks of one; columns padded to 4.
              Biases and multipliers are stored in forms of their own; see
              runtime/edgetqs_thumb1.c.
``mve``       blocks of eight rows, what is left over in one more block; biases first;
              see runtime/edgetqs_mve.c.
``simd``      blocks of sixteen rows, the rest in blocks of eight, the last one filled up
              with rows of zeros; columns padded to 4; see runtime/edgetqs_simd_rows.h.
              Matrices of less than eight rows and columns are portable.
``neon``      blocks of sixteen rows, the rest in blocks of eight, the last one filled up
              with rows of zeros; columns padded to 8; biases first; see
              runtime/edgetqs_neon.c. Small matrices as in simd.
``wide``      as portable, with multiplier and shift instead of the factor: for
              rows that the others cannot compute, on every target.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from edgetqs.errors import BadInput
from edgetqs.integer import ACCUMULATOR_LIMIT, Matrix

#: Activation vectors are padded to this many values; the same as EDGETQS_PAD.
PAD = 8
MULTIPLIER_BYTES = 4
BIAS_BYTES = 4

_ASSEMBLY = ("edgetqs_blocks.h", "edgetqs_thumb.h", "edgetqs_thumb2.h")


@dataclass(frozen=True, slots=True)
class Layout:
    """Weights in blocks of ``block`` rows (None: all in one block), the rest in blocks of ``rest`` (None: in one).

    ``pack`` gives the bytes of one block; ``columns`` is what columns are
    padded to, by width; ``most`` is the number of columns that the kernels'
    sums have room for. ``biases`` gives a block's biases of some width as
    stored, ``scales`` multipliers and shifts. With ``biases_first`` biases stand in
    front of the weights.
    """

    sources: tuple[str, ...]  # of runtime/
    block: int | None
    columns: Mapping[int, int]
    pack: Callable[[np.ndarray, int], bytes]
    most: int
    biases: Callable[[np.ndarray, int], np.ndarray] = lambda bias, width: bias
    scales: Callable[[np.ndarray, np.ndarray], np.ndarray] = lambda multiplier, shift: _factors(multiplier, shift)
    biases_first: bool = False
    rest: int | None = 1
    cells: str = "edgetqs_cells.c"  # of runtime/
    least: int = 0  # matrices with both fewer rows a gate and fewer columns stay portable
    saved: Callable[[int, int], int] = lambda rows, columns: 0  # instructions of int8 that int4 does without, at least


def padded(count: int, multiple: int = PAD) -> int:
    return -(-count // multiple) * multiple


def layout_of(kernels: str) -> Layout:
    if kernels not in LAYOUTS:
        raise BadInput(f"unknown kernels {kernels!r}", todo=f"one of: {', '.join(KERNELS)}")
    return LAYOUTS[kernels]


def is_wide(matrix: Matrix, kernels: str = "portable") -> bool:
    """Whether ``kernels`` cannot compute it: a sum may leave an int32, or a factor is no uint31 / 2^32."""
    factor_fits = (matrix.shift <= 32).all() and (_factors(matrix.multiplier, matrix.shift) < 2**31).all()
    small = matrix.accumulator_bound().max() <= ACCUMULATOR_LIMIT and matrix.columns <= layout_of(kernels).most
    return not (factor_fits and small)


def layout_name(matrix: Matrix, kernels: str) -> str:
    """The layout that the matrix is stored in on a target with ``kernels``."""
    if is_wide(matrix, kernels):
        return "wide"
    return _name(matrix.gate_rows, matrix.columns, kernels)


def _name(rows: int, columns: int, kernels: str) -> str:
    return "portable" if max(rows, columns) < layout_of(kernels).least else kernels


def layer_calls(gates: int, units: int, columns: int, *, recurrent: bool, times: int = 1) -> list[tuple[int, int, int]]:
    """(rows, columns, times in a step) of the calls that a layer makes with all its weights at one width."""
    calls = [(gates * units, columns, times)]
    if recurrent:
        apart = [2, 1] if gates == 3 else [gates]  # a GRU's candidate waits for its gates
        calls += [(many * units, units, times) for many in apart]
    return calls


def stored_width(width: int, calls: Iterable[tuple[int, int, int]], kernels: str) -> int:
    """The width that a model stores weights of ``width`` in: int4 as int8 if all its calls cost more at int4."""
    saved = sum(times * layout_of(kernels).saved(rows, columns) for rows, columns, times in calls)
    return 8 if saved < 0 else width


def stored(matrix: Matrix, start: int, stop: int, width: int, kernels: str) -> np.ndarray:
    """Rows ``start`` to ``stop`` of one width as little-endian uint32 words."""
    name = layout_name(matrix, kernels)
    layout = _WIDE if name == "wide" else layout_of(name)
    weights, bias = matrix.weights[start:stop], matrix.bias[start:stop]
    multiplier, shift = (values[start:stop].astype(np.int64) for values in (matrix.multiplier, matrix.shift))
    data = b""
    for low, high in blocks(stop - start, layout):
        packed = layout.pack(_pad_columns(weights[low:high], layout.columns[width]), width)
        packed += bytes(-len(packed) % 4)
        biases = layout.biases(bias[low:high], width).astype("<u4").tobytes() if bias.any() else b""
        data += biases + packed if layout.biases_first else packed + biases
        data += layout.scales(multiplier[low:high], shift[low:high]).astype("<u4").tobytes()
    return np.frombuffer(data, "<u4")


def blocks(rows: int, layout: Layout) -> list[tuple[int, int]]:
    """(first row, last row + 1) of each block, in the order of storage."""
    size = layout.block or rows
    whole = rows // size * size
    rest = layout.rest or size
    return [(k, k + size) for k in range(0, whole, size)] + [(k, min(k + rest, rows)) for k in range(whole, rows, rest)]


def packed_bytes(rows: int, columns: int, width: int, kernels: str) -> int:
    """Bytes of the weights of these rows as stored, padding included."""
    kernels = _name(rows, columns, kernels)
    layout = layout_of(kernels)
    return sum(_block_bytes(high - low, columns, width, kernels) for low, high in blocks(rows, layout))


@functools.cache
def _block_bytes(rows: int, columns: int, width: int, kernels: str) -> int:
    layout, none = layout_of(kernels), np.zeros(rows, np.int64)
    filled = len(layout.scales(none, none)) - rows  # each with a multiplier, and a bias at most
    packed = layout.pack(_pad_columns(np.zeros((rows, columns)), layout.columns[width]), width)
    return padded(len(packed), 4) + filled * (MULTIPLIER_BYTES + BIAS_BYTES)


def _factors(multiplier: np.ndarray, shift: np.ndarray) -> np.ndarray:
    """What a row's sum is multiplied with, in steps of 2^-32."""
    return multiplier.astype(np.int64) << np.maximum(32 - shift.astype(np.int64), 0)


def _pack_portable(weights: np.ndarray, width: int) -> bytes:
    return (weights if width == 8 else _pairs(weights)).astype(np.int8).tobytes()


def _pairs(weights: np.ndarray) -> np.ndarray:
    """Two rows in one, 16 second + first; what is left over as it is."""
    whole = len(weights) & ~1
    return np.concatenate([weights[0:whole:2] + 16 * weights[1:whole:2], weights[whole:]])


def _pack_dsp(weights: np.ndarray, width: int) -> bytes:
    if len(weights) == 1:
        words = _fields(weights.reshape(-1, 4)[:, [0, 2, 1, 3]], 8)
    else:
        together = 16 // width
        offsets = 0 if width == 8 else np.array([8, 8, 8, 0])[:, None]
        halves = (weights.reshape(-1, together, weights.shape[1]) + offsets) << width * np.arange(together)[:, None]
        words = _fields(halves.sum(axis=1).T.reshape(-1, 2, 4 // together).transpose(0, 2, 1).reshape(-1, 2), 16)
    return words.astype("<u4").tobytes()


def _pack_thumb2(weights: np.ndarray, width: int) -> bytes:
    if width == 8 or len(weights) == 1:
        fields = weights.T if len(weights) > 1 else weights.reshape(-1, 4)
        return _fields(fields, 8).astype("<u4").tobytes()
    offsets = np.array([8, 0, 8, 0])[:, None]
    rows, columns = [0, 3, 2, 1, 0, 3, 2, 1], [0, 0, 0, 1, 1, 1, 1, 0]
    pairs = (weights + offsets).reshape(4, -1, 2)
    return _fields(pairs[rows, :, columns].T, 4).astype("<u4").tobytes()


def _pack_thumb1(weights: np.ndarray, width: int) -> bytes:
    half, places = 2 ** (width - 1), 32 // width
    if len(weights) == 8:
        offsets = np.where(np.arange(8) % places == places - 1, 0, half)[:, None]
        words = _fields((weights + offsets).T.reshape(-1, places), width)
    elif width == 8:
        words = _fields(weights.reshape(-1, 4), 8)
    else:
        fields = np.pad((weights + half).ravel(), (0, weights.size % 8))
        words = _fields(fields.reshape(-1, 8)[:, ::-1], 4)
    return np.append(words, [0] * (width == 4)).astype("<u4").tobytes()


def _biases_thumb1(bias: np.ndarray, width: int) -> np.ndarray:
    """With those of the rows above in the same word, as the sums they are added to; modulo 2^32."""
    if len(bias) == 1:
        return bias % 2**32
    words = (bias % 2**32).reshape(-1, 32 // width)
    for row in reversed(range(words.shape[1] - 1)):
        words[:, row] = (words[:, row] + (words[:, row + 1] << width)) % 2**32
    return words.ravel()


def _scales_thumb1(multiplier: np.ndarray, shift: np.ndarray) -> np.ndarray:
    more = np.maximum(16 - shift, 0)
    return multiplier << more << 16 | shift + more - 15


def _pack_mve(weights: np.ndarray, width: int) -> bytes:
    whole, columns = len(weights) == 8, weights.shape[1]
    tail = columns % 8
    if not whole or tail > (4 if width == 8 else 3):
        weights, tail = _pad_columns(weights, 8), 0
    weights = _pairs(weights) if width == 4 else weights
    groups = weights[:, : weights.shape[1] - tail].reshape(len(weights), -1, 8)
    order = [0, 2, 4, 6, 1, 3, 5, 7] if width == 8 else [0, 1, 2, 3]
    behind = weights[order, -tail:].T if tail else weights[:0]
    return b"".join(part.astype(np.int8).tobytes() for part in (groups.transpose(1, 0, 2) if whole else groups, behind))


def _biases_mve(bias: np.ndarray, width: int) -> np.ndarray:
    bias = bias.astype(np.int64)
    if width == 4 and len(bias) == 8:
        bias[0::2] += 16 * bias[1::2]
    return bias & 0xFFFFFFFF


def _pack_simd(weights: np.ndarray, width: int) -> bytes:
    weights = _filled(weights)
    size = len(weights) // 2
    if width == 8:
        halves = weights[:size] + 128 + 256 * weights[size:]
    else:
        columns = (weights[:size] + 8 + 16 * (weights[size:] + 8)).reshape(size, -1, 2, 2)
        halves = columns[:, :, 0] + 256 * columns[:, :, 1]
    return halves.reshape(size, -1, 2).transpose(1, 0, 2).astype("<i8").astype("<u2").tobytes()


def _pack_neon(weights: np.ndarray, width: int) -> bytes:
    weights = _filled(weights)
    half = len(weights) // 2
    return (weights if width == 8 else weights[:half] + 16 * weights[half:]).T.astype(np.int8).tobytes()


def _biases_neon(bias: np.ndarray, width: int) -> np.ndarray:
    bias = _filled(bias.astype(np.int64))
    if width == 4:
        half = len(bias) // 2
        bias[:half] += 16 * bias[half:]
    return bias & 0xFFFFFFFF


def _filled(rows: np.ndarray) -> np.ndarray:
    """With rows of zeros up to a multiple of eight."""
    return np.pad(rows, ((0, padded(len(rows)) - len(rows)), *((0, 0),) * (rows.ndim - 1)))


def _fields(values: np.ndarray, bits: int) -> np.ndarray:
    """(words, fields) integers, two's complement, the first in the lowest bits -> (words,)."""
    places = bits * np.arange(values.shape[1], dtype=np.int64)
    return ((values & (1 << bits) - 1) << places).sum(axis=1)


def _pad_columns(weights: np.ndarray, multiple: int) -> np.ndarray:
    extra = padded(weights.shape[1], multiple) - weights.shape[1]
    return np.ascontiguousarray(np.pad(weights.astype(np.int64), ((0, 0), (0, extra))))


def _saved_dsp(rows: int, columns: int) -> int:
    blocks, groups = rows // 4, padded(columns, 4) // 4
    return blocks * (6 + groups - 2 * -(-groups // 4)) - 7 * padded(columns) // 8 - 14 if blocks else 0


def _saved_thumb2(rows: int, columns: int) -> int:
    blocks, groups = rows // 4, padded(columns, 4) // 4
    return blocks * (16 * groups - 8) - 9 * groups - 7 if blocks else 0


_FOURS = {4: 4, 8: 4}

LAYOUTS = {
    "portable": Layout((), None, {4: 1, 8: 1}, _pack_portable, ACCUMULATOR_LIMIT),
    # An int4 sum on its way holds up to 136 * 32768 a column.
    "dsp": Layout((*_ASSEMBLY, "edgetqs_dsp.c", "edgetqs_dsp_rows.S"), 4, _FOURS, _pack_dsp, 480, saved=_saved_dsp),
    # Two int4 sums share 64 bits, the lower has 28 of them.
    "thumb2": Layout(
        (*_ASSEMBLY, "edgetqs_thumb2.c", "edgetqs_thumb2_rows.S"), 4, _FOURS, _pack_thumb2, 480, saved=_saved_thumb2
    ),
    "thumb1": Layout(
        ("edgetqs_thumb1.c", "edgetqs_thumb1_rows.S", "edgetqs_thumb1_cells.S", "edgetqs_thumb.h"),
        8,
        _FOURS,
        _pack_thumb1,
        ACCUMULATOR_LIMIT,
        _biases_thumb1,
        _scales_thumb1,
    ),
    "mve": Layout(
        ("edgetqs_mve.c", "edgetqs_mve_rows.S", "edgetqs_mve_cells.S", "edgetqs_thumb.h"),
        8,
        {4: 1, 8: 1},
        _pack_mve,
        ACCUMULATOR_LIMIT,
        _biases_mve,
        biases_first=True,
        rest=None,
    ),
    # Both rows' sum at int4 holds up to 16 * 7 * 32768 a column.
    "simd": Layout(
        ("edgetqs_simd.c", "edgetqs_simd_avx2.c", "edgetqs_simd.h", "edgetqs_simd_rows.h", "edgetqs_simd_cells.h"),
        16,
        _FOURS,
        _pack_simd,
        584,
        lambda bias, width: _filled(bias),
        lambda multiplier, shift: _filled(_factors(multiplier, shift)),
        rest=8,
        cells="edgetqs_simd_cells.c",
        least=8,
    ),
    "neon": Layout(
        ("edgetqs_neon.c", "edgetqs_neon_rows.S", "edgetqs_simd.h", "edgetqs_simd_cells.h"),  # for a host that is none
        16,
        {4: 8, 8: 8},
        _pack_neon,
        ACCUMULATOR_LIMIT,
        _biases_neon,
        lambda multiplier, shift: _filled(_factors(multiplier, shift)),
        biases_first=True,
        rest=8,
        cells="edgetqs_neon_cells.c",
        least=8,
    ),
}
_WIDE = replace(LAYOUTS["portable"], scales=lambda multiplier, shift: multiplier | shift << 16)
KERNELS = tuple(LAYOUTS)
