"""Stored rows, read back the way the kernels read them."""

from dataclasses import replace

import numpy as np
import pytest

from edgetqs.errors import BadInput
from edgetqs.integer import Matrix
from edgetqs.layout import (
    BIAS_BYTES,
    KERNELS,
    MULTIPLIER_BYTES,
    blocks,
    is_wide,
    layout_name,
    layout_of,
    packed_bytes,
    padded,
    stored,
)
from edgetqs.rounding import limit

SHAPES = [(1, 1), (4, 8), (3, 5), (5, 4), (7, 9), (8, 1), (1, 16), (6, 7), (13, 33), (16, 12), (8, 21), (9, 11)]


def signed(value: int, bits: int) -> int:
    value &= 2**bits - 1
    return value - 2**bits if value >= 2 ** (bits - 1) else value


def field(words: list[int], index: int, bits: int) -> int:
    return words[index * bits // 32] >> (index * bits % 32) & (2**bits - 1)


def weight_portable(words: list[int], rows: int, columns: int, width: int, row: int, column: int) -> int:
    if width == 8:
        return signed(field(words, row * columns + column, 8), 8)
    both = signed(field(words, row // 2 * columns + column, 8), 8)
    return one_of(both, row) if row // 2 < rows // 2 else both


def one_of(both: int, row: int) -> int:
    """The even or odd row's of a byte that holds 16 odd + even."""
    high = (both + 8) >> 4
    return high if row % 2 else both - 16 * high


def weight_dsp(words: list[int], rows: int, columns: int, width: int, row: int, column: int) -> int:
    """The way the kernels take the rows apart; see runtime/edgetqs_dsp.c."""
    if rows == 1:
        return signed(field(words, column // 4 * 4 + [0, 2, 1, 3][column % 4], 8), 8)
    if width == 8:
        half = signed(field(words, column // 2 * 4 + row // 2 * 2 + column % 2, 16), 16)
        low = signed(half, 8)
        return (half - low) // 256 if row % 2 else low
    half = signed(field(words, column, 16), 16)
    return half >> 12 if row == 3 else (half >> 4 * row & 15) - 8


def weight_thumb2(words: list[int], rows: int, columns: int, width: int, row: int, column: int) -> int:
    """As two sums 2^28 apart; see runtime/edgetqs_thumb2.c."""
    if rows == 1:
        return signed(field(words, column, 8), 8)
    if width == 8:
        return signed(words[column] >> 8 * row, 8)
    word, turn = words[column // 2], 8 * (row // 2 + column % 2 * 2)
    turned = signed((word >> turn | word << (32 - turn)) & 0xF000000F, 32)
    low = turned & 15
    return (turned - low) >> 28 if row % 2 else low - 8


def weight_thumb1(words: list[int], rows: int, columns: int, width: int, row: int, column: int) -> int:
    """Whole words shifted right, less the next row's; see runtime/edgetqs_thumb1.c."""
    if rows == 1:
        return (
            signed(field(words, column, 8), 8)
            if width == 8
            else (words[column // 8] << 4 * (column % 8) >> 28) % 16 - 8
        )
    if width == 4:
        assert all(word & 15 for word in words[:-1]) and words[-1] == 0, "0 ends the loop, and nothing else"
    word, place = signed(words[column * 8 * width // 32 + row * width // 32], 32), row * width % 32
    own = word >> place
    return own if place + width == 32 else own - (word >> place + width << width) - 2 ** (width - 1)


def weight_mve(words: list[int], rows: int, columns: int, width: int, row: int, column: int) -> int:
    """By groups of eight columns, and what is behind them; see runtime/edgetqs_mve.c."""
    pair, together = (row, 1) if width == 8 else (row // 2, 2)
    vectors, group = -(-rows // together), column // 8
    if column >= columns // 8 * 8:
        index = column * vectors + ([0, 4, 1, 5, 2, 6, 3, 7][row] if width == 8 else pair)
    elif rows == 8:
        index = (group * vectors + pair) * 8 + column % 8
    else:
        index = pair * columns + column
    both = signed(field(words, index, 8), 8)
    if width == 8 or row == rows - 1 == 2 * pair:
        return both
    return one_of(both, row)


def weight_simd(words: list[int], rows: int, columns: int, width: int, row: int, column: int) -> int:
    """A word for two rows half a block apart, of two or four columns; see runtime/edgetqs_simd_rows.h."""
    size, together = padded(rows) // 2, 16 // width  # rows and columns of a group
    half = signed(field(words, 2 * (size * (column // together) + row % size) + column % 2, 16), 16)
    if width == 8:
        return half >> 8 if row >= size else (half & 0xFF) - 128
    return (half >> 4 * (row // size) + 8 * (column % 4 // 2) & 15) - 8


def weight_neon(words: list[int], rows: int, columns: int, width: int, row: int, column: int) -> int:
    """Column by column; see runtime/edgetqs_neon.c."""
    size = padded(rows)
    if width == 8:
        return signed(field(words, size * column + row, 8), 8)
    half = size // 2
    return one_of(signed(field(words, half * column + row % half, 8), 8), row // half)


WEIGHT = {
    "portable": weight_portable,
    "dsp": weight_dsp,
    "thumb2": weight_thumb2,
    "thumb1": weight_thumb1,
    "mve": weight_mve,
    "simd": weight_simd,
    "neon": weight_neon,
}


def bias_thumb1(words: list[int], width: int) -> list[int]:
    """Less the next row's in the same word."""
    last = [len(words) == 1 or (row + 1) * width % 32 == 0 for row in range(len(words))]
    return [
        word - (0 if end else words[row + 1] << width) for row, (word, end) in enumerate(zip(words, last, strict=True))
    ]


def bias_mve(words: list[int], width: int) -> list[int]:
    """Of a pair of rows the lower one's with 16 times the other's, in a block of eight."""
    if width == 8 or len(words) < 8:
        return words
    return [word if row % 2 else word - 16 * words[row + 1] for row, word in enumerate(words)]


def bias_neon(words: list[int], width: int) -> list[int]:
    """Of two rows half a block apart the upper one's with 16 times the other's."""
    half = len(words) // 2
    if width == 8:
        return words
    return [word - 16 * words[row + half] if row < half else word for row, word in enumerate(words)]


FILLED = ("simd", "neon")  # up to eight rows a block
BIAS = {"thumb1": bias_thumb1, "mve": bias_mve, "neon": bias_neon}


def columns_stored(rows: int, columns: int, width: int, kernels: str) -> int:
    if kernels == "mve":
        return padded(columns) if rows < 8 or columns % 8 > (4 if width == 8 else 3) else columns
    return padded(columns, layout_of(kernels).columns[width])


def read_back(words: np.ndarray, matrix: Matrix, width: int, kernels: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Weights, biases and multipliers of all rows, block by block."""
    layout, rest = layout_of(kernels), words.tolist()
    rows, columns = matrix.weights.shape
    weights, bias, multiplier = np.zeros((rows, columns), int), np.zeros(rows, int), np.zeros(rows, int)
    biased = matrix.bias.any()
    for low, high in blocks(rows, layout):
        count = high - low
        padded_columns = columns_stored(count, columns, width, kernels)
        filled = -count % 8 if kernels in FILLED else 0
        size = packed_bytes(count, columns, width, kernels) // 4 - 2 * filled
        held = count + filled if biased else 0
        first = held if layout.biases_first else 0
        own, rest = rest[first : first + size], rest[:first] + rest[first + size :]
        for row in range(count + filled):
            for column in range(padded_columns):
                value = WEIGHT[kernels](own, count, padded_columns, width, row, column)
                if column < columns and row < count:
                    weights[low + row, column] = value
                else:
                    assert value == 0, "padding must not count"
        biases = BIAS[kernels](rest[:held], width) if kernels in BIAS and biased else rest[:held]
        bias[low:high], rest = [signed(word, 32) for word in biases[:count]] if biased else 0, rest[held:]
        factors = [(word >> 16) << 17 - (word & 0xFF) for word in rest[:count]] if kernels == "thumb1" else rest[:count]
        multiplier[low:high], rest = factors, rest[count + filled :]
    assert not rest
    return weights, bias, multiplier


def matrix_of(weights: np.ndarray, *, bias: bool = True, shift: int = 20) -> Matrix:
    rows = len(weights)
    rng = np.random.default_rng(rows)
    return Matrix(
        weights,
        (8,),
        np.ones(rows),
        rng.integers(1, 2**14, rows) * 2 + 1,
        np.full(rows, shift),
        rng.integers(-(2**29), 2**29, rows) * bias,
        1.0,
        1.0,
    )


def integers(rows: int, columns: int, width: int) -> np.ndarray:
    values = np.random.default_rng(rows * 100 + columns).integers(-limit(width), limit(width) + 1, (rows, columns))
    values.flat[0], values.flat[-1] = -limit(width), limit(width)
    return values


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("width", [4, 8])
@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: f"{shape[0]}x{shape[1]}")
def test_stored_rows_read_back(shape, width, kernels, bias):
    matrix = matrix_of(integers(*shape, width), bias=bias)
    words = stored(matrix, 0, shape[0], width, kernels)
    assert words.dtype == np.dtype("<u4")
    kernels = layout_name(matrix, kernels)
    weights, biases, multipliers = read_back(words, matrix, width, kernels)
    assert np.array_equal(weights, matrix.weights)
    assert np.array_equal(biases, matrix.bias)
    assert np.array_equal(multipliers / 2.0**32, matrix.multiplier * 2.0**-20)
    row_bytes = MULTIPLIER_BYTES + BIAS_BYTES * bias
    filled_without_bias = -shape[0] % 8 if kernels in FILLED and not bias else 0
    room = packed_bytes(*shape, width, kernels) + row_bytes * shape[0]
    assert words.nbytes == room - BIAS_BYTES * filled_without_bias


@pytest.mark.parametrize("kernels", KERNELS)
def test_part_of_the_rows_of_weights_that_are_not_contiguous(kernels):
    matrix = matrix_of(integers(9, 9, 4).T)
    part = replace(matrix, **{name: getattr(matrix, name)[2:8] for name in ("weights", "bias", "multiplier", "shift")})
    assert np.array_equal(stored(matrix, 2, 8, 4, kernels), stored(part, 0, 6, 4, kernels))


@pytest.mark.parametrize(
    ("shape", "width", "kernels", "expected"),
    [
        ((3, 5), 8, "portable", 16),  # 15 bytes and one of padding
        ((3, 5), 4, "portable", 12),  # 5 bytes two rows, 5 the last, and two of padding
        ((3, 5), 8, "dsp", 24),
        ((3, 5), 4, "dsp", 24),  # rows alone are bytes
        ((5, 5), 4, "dsp", 16 + 8),  # columns padded to 8 in both kinds of blocks
        ((5, 9), 4, "dsp", 24 + 12),
        ((5, 9), 4, "thumb2", 24 + 12),
        ((8, 1), 8, "mve", 8),
        ((8, 13), 8, "mve", 8 * 16),  # five columns are padded, four are not
        ((8, 12), 8, "mve", 8 * 12),
        ((8, 12), 4, "mve", 4 * 16),
        ((8, 11), 4, "mve", 4 * 11),
        ((3, 9), 8, "mve", 3 * 16),
        ((3, 9), 4, "mve", 2 * 16),  # an odd row takes a byte for a column
        ((128, 32), 4, "mve", 2048),
        ((5, 9), 8, "simd", 8 * 12 + 3 * 8),  # to 8 rows and 12 columns; multipliers and biases of 3 rows
        ((16, 8), 4, "simd", 64),
        ((7, 7), 8, "simd", 52),  # as portable
        ((5, 9), 4, "neon", 4 * 16 + 3 * 8),
        ((16, 8), 8, "neon", 128),
        ((128, 32), 4, "dsp", 2048),
        ((9, 9), 8, "thumb1", 8 * 12 + 12),
        ((9, 9), 4, "thumb1", 4 * 12 + 4 + 8 + 4),  # a word of 0 behind each block
        ((128, 32), 4, "portable", 2048),
    ],
)
def test_packed_bytes(shape, width, kernels, expected):
    assert packed_bytes(*shape, width, kernels) == expected


@pytest.mark.parametrize(
    ("multiplier", "shift", "word"), [(5, 32, 5 << 16 | 17), (5, 16, 5 << 16 | 1), (3, 4, 3 << 28 | 1)]
)
def test_thumb1_multipliers_and_shifts(multiplier, shift, word):
    matrix = replace(
        matrix_of(np.ones((1, 4), int), bias=False), multiplier=np.array([multiplier]), shift=np.array([shift])
    )
    assert stored(matrix, 0, 1, 8, "thumb1")[-1] == word


def test_wide_rows_keep_multiplier_and_shift():
    matrix = matrix_of(integers(2, 3, 8), shift=33)
    assert is_wide(matrix, "dsp")
    words = stored(matrix, 0, 2, 8, "dsp").tolist()
    assert [signed(word, 32) for word in words[2:4]] == matrix.bias.tolist()
    assert [(word & 0xFFFF, word >> 16) for word in words[4:]] == [(m, 33) for m in matrix.multiplier]
    assert [signed(field(words, k, 8), 8) for k in range(6)] == matrix.weights.ravel().tolist()


def test_unknown_kernels():
    with pytest.raises(BadInput, match="helium"):
        packed_bytes(1, 1, 8, "helium")


@pytest.mark.parametrize(("count", "expected"), [(0, 0), (1, 8), (8, 8), (9, 16)])
def test_padded(count, expected):
    assert padded(count) == expected


@pytest.mark.parametrize(("bias", "wide"), [(2**31 - 1 - 127 * 32768 * 2, False), (2**31 - 127 * 32768 * 2, True)])
def test_is_wide_from_the_first_sum_that_leaves_an_int32(bias, wide):
    matrix = replace(matrix_of(np.array([[127, -127]])), bias=np.array([-bias]))
    assert is_wide(matrix, "portable") is wide


@pytest.mark.parametrize(
    ("multiplier", "shift", "wide"), [(3, 32, False), (3, 33, True), (2**14 - 1, 15, False), (2**15 - 1, 15, True)]
)
def test_is_wide_where_the_factor_does_not_fit(multiplier, shift, wide):
    matrix = replace(matrix_of(np.array([[1]])), multiplier=np.array([multiplier]), shift=np.array([shift]))
    assert is_wide(matrix, "portable") is wide


@pytest.mark.parametrize(("columns", "wide"), [(480, False), (481, True)])
def test_is_wide_with_more_columns_than_the_kernels_have_room_for(columns, wide):
    matrix = matrix_of(np.ones((1, columns), int), bias=False)
    assert is_wide(matrix, "dsp") is wide
    assert not is_wide(matrix, "portable")
