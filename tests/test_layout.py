"""Packed weights, read back the way the kernels read them."""

import numpy as np
import pytest

from edgetqs.errors import BadInput
from edgetqs.integer import Matrix
from edgetqs.layout import KERNELS, is_wide, pack, packed_bytes, padded
from edgetqs.rounding import limit

SHAPES = [(1, 1), (4, 8), (3, 5), (5, 4), (7, 9), (8, 1), (1, 16), (6, 7), (13, 33)]


def signed(value: int, bits: int) -> int:
    return value - 2**bits if value >= 2 ** (bits - 1) else value


def unpack_portable(words: np.ndarray, rows: int, columns: int, width: int) -> np.ndarray:
    data, stride = words.astype("<u4").tobytes(), columns if width == 8 else (columns + 1) // 2
    found = np.zeros((rows, columns), int)
    for row in range(rows):
        for column in range(columns):
            if width == 8:
                found[row, column] = signed(data[row * stride + column], 8)
            else:
                byte = data[row * stride + column // 2]
                found[row, column] = signed(byte >> 4 if column % 2 else byte & 15, 4)
    return found


def pairs_of_word(word: int, width: int) -> list[tuple[int, int]]:
    """(low half, high half) of what is multiplied with successive pairs of x."""
    if width == 8:  # SXTB16, then rotated by 8
        return [(signed(word >> s & 255, 8), signed(word >> (s + 16) & 255, 8)) for s in (0, 8)]
    return [((word >> 4 * k & 15) - 8, (word >> (4 * k + 16) & 15) - 8) for k in range(4)]


def unpack_dsp(words: np.ndarray, rows: int, columns: int, width: int) -> np.ndarray:
    groups = -(-columns // (4 if width == 8 else 8))
    found: list[list[int]] = [[] for _ in range(rows)]
    stream, row = iter(words.tolist()), 0
    while row < rows:
        block = 4 if rows - row >= 4 else 1
        for _ in range(groups):
            for k in range(block):
                found[row + k] += [value for pair in pairs_of_word(next(stream), width) for value in pair]
        row += block
    assert next(stream, None) is None
    values = np.array(found)
    assert not values[:, columns:].any(), "padding must not count"
    return values[:, :columns]


UNPACK = {"portable": unpack_portable, "dsp": unpack_dsp}


def integers(rows: int, columns: int, width: int) -> np.ndarray:
    values = np.random.default_rng(rows * 100 + columns).integers(-limit(width), limit(width) + 1, (rows, columns))
    values.flat[0], values.flat[-1] = -limit(width), limit(width)
    return values


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("width", [4, 8])
@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: f"{shape[0]}x{shape[1]}")
def test_pack_reads_back(shape, width, kernels):
    values = integers(*shape, width)
    words = pack(values, width, kernels)
    assert words.dtype == np.dtype("<u4")
    assert np.array_equal(UNPACK[kernels](words, *shape, width), values)
    assert words.nbytes == packed_bytes(*shape, width, kernels)


@pytest.mark.parametrize("kernels", KERNELS)
def test_pack_does_not_need_contiguous_weights(kernels):
    values = integers(9, 6, 4).T
    assert np.array_equal(pack(values, 4, kernels), pack(values.copy(), 4, kernels))


@pytest.mark.parametrize(
    ("shape", "width", "kernels", "expected"),
    [
        ((3, 5), 8, "portable", 16),  # 15 bytes and one of padding
        ((3, 5), 4, "portable", 12),  # 3 bytes a row, 9, and three of padding
        ((3, 5), 8, "dsp", 24),
        ((3, 5), 4, "dsp", 12),
        ((128, 32), 4, "dsp", 2048),
        ((128, 32), 4, "portable", 2048),
    ],
)
def test_packed_bytes(shape, width, kernels, expected):
    assert packed_bytes(*shape, width, kernels) == expected


def test_first_column_lies_in_the_low_half():
    assert pack(np.array([[1, -2]]), 4, "portable").tolist() == [0xE1]


def test_dsp_int4_words_hold_value_plus_eight():
    assert pack(np.arange(8)[None] - 7, 4, "dsp").tolist() == [0x8642_7531]


def test_unknown_kernels():
    with pytest.raises(BadInput, match="helium"):
        pack(np.zeros((1, 1), int), 8, "helium")


@pytest.mark.parametrize(("count", "expected"), [(0, 0), (1, 8), (8, 8), (9, 16)])
def test_padded(count, expected):
    assert padded(count) == expected


@pytest.mark.parametrize(("bias", "wide"), [(2**31 - 1 - 127 * 32768 * 2, False), (2**31 - 127 * 32768 * 2, True)])
def test_is_wide_from_the_first_sum_that_leaves_an_int32(bias, wide):
    one = np.ones(1)
    assert is_wide(Matrix(np.array([[127, -127]]), (8,), one, one, one, np.array([-bias]), 1, 1)) is wide
