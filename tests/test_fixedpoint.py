"""The integer arithmetic against exact fractions, gemmlowp's formulas, float functions and LiteRT's kernels."""

import math
from fractions import Fraction

import numpy as np
import pytest

from edgetqs import fixedpoint as fp
from edgetqs.flatbuffer import pack
from edgetqs.litert import interpreter
from edgetqs.quantizer import Z_SCALES
from edgetqs.tflite_build import File, Graph

EVERY = np.arange(-32768, 32768)
SCALES = [pytest.param(scale, id=f"5*2^{round(math.log2(scale / 5))}") for scale in Z_SCALES]
ENTRY_ERROR = np.abs(fp.SIGMOID_TABLE / 65536 - 1 / (1 + np.exp(-np.arange(256) / 24))).max()
CORNERS = [-32768, -32767, -16385, -16384, -3, -2, -1, 0, 1, 2, 3, 16383, 16384, 32766, 32767]


def gemmlowp(value: int, multiplier: int, exponent: int) -> int:
    """MultiplyByQuantizedMultiplier with two roundings, as published."""
    product = (value << max(exponent, 0)) * multiplier
    nudged = product + (2**30 if product >= 0 else 1 - 2**30)
    high = nudged // 2**31 if nudged >= 0 else -(-nudged // 2**31)
    right = max(-exponent, 0)
    remainder, threshold = high & (2**right - 1), ((2**right - 1) >> 1) + (high < 0)
    return (high >> right) + (remainder > threshold)


def quantized_multiplier(ratio: float) -> tuple[int, int]:
    mantissa, exponent = math.frexp(ratio)
    return round(mantissa * 2**31), exponent


def clamp(value: int) -> int:
    return max(-32768, min(32767, value))


def half_away(value: Fraction) -> int:
    magnitude = math.floor(abs(value) + Fraction(1, 2))
    return magnitude if value >= 0 else -magnitude


def pairs(seed: int, count: int = 1500) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    a = np.concatenate([np.repeat(CORNERS, len(CORNERS)), rng.integers(-32768, 32768, count)])
    b = np.concatenate([np.tile(CORNERS, len(CORNERS)), rng.integers(-32768, 32768, count)])
    return a, b


def kernel(op: str, scales: list[float], out: float, *values: np.ndarray) -> np.ndarray:
    """What LiteRT's kernel gives."""
    graph = Graph(File())
    ins = [graph.activation((1, len(values[0])), scale) for scale in scales]
    if op == "QUANTIZE":
        y = graph.quantize(ins[0], out)
    else:
        y = graph.table(op, ins[0]) if len(ins) == 1 else graph.binary(op, *ins, out)
    graph.finish(ins, [y])
    graph.file.signature("f", graph, {f"x{k}": index for k, index in enumerate(ins)}, {"y": y})
    feeds = {f"x{k}": value.astype(np.int16)[None] for k, value in enumerate(values)}
    return interpreter(pack(graph.file.model)).get_signature_runner("f")(**feeds)["y"][0].astype(np.int64)


def test_saturate():
    values = np.array([-(2**40), -32769, -32768, 0, 32767, 32768, 2**40])
    assert fp.saturate(values).tolist() == [-32768, -32768, -32768, 0, 32767, 32767, 32767]


@pytest.mark.parametrize(
    ("accumulator", "multiplier", "shift", "expected"),
    [
        (1, 1, 1, 1),  # +0.5
        (-1, 1, 1, -1),  # -0.5
        (-3, 1, 1, -2),
        (3, 1, 2, 1),
        (-5, 3, 1, -8),  # -7.5
        (5, 3, 1, 8),
        (-(2**31), 32767, 46, -1),
        (0, 32767, 46, 0),
    ],
)
def test_requantize_ties_away_from_zero(accumulator, multiplier, shift, expected):
    result = fp.requantize(np.array([accumulator]), np.array([multiplier]), np.array([shift]))
    assert result.tolist() == [expected]


def test_requantize_equals_exact_fractions():
    rng = np.random.default_rng(0)
    shift = rng.integers(1, 47, 3000)
    multiplier = rng.integers(0, 2**14, 3000) * 2 + 1
    accumulator = rng.integers(-(2**31), 2**31, 3000) >> rng.integers(0, 31, 3000)
    tie = (1 << (shift - 1)) * rng.choice([-3, -1, 1, 3], 3000)  # multiplier 1 makes these exact ties
    accumulator[:1000], multiplier[:1000] = tie[:1000] % 2**47, 1
    accumulator[:1000] *= rng.choice([-1, 1], 1000)
    expected = [
        half_away(Fraction(int(a) * int(m), 2 ** int(n)))
        for a, m, n in zip(accumulator, multiplier, shift, strict=True)
    ]
    assert fp.requantize(accumulator, multiplier, shift).tolist() == expected


@pytest.mark.parametrize("shift", [14, *range(18, 27)])
def test_multiply_equals_gemmlowp(shift):
    a, b = pairs(shift)
    multiplier, exponent = quantized_multiplier(2.0 ** -(shift + 1))
    expected = [clamp(gemmlowp(int(x) * int(y), multiplier, exponent)) for x, y in zip(a, b, strict=True)]
    assert fp.multiply(a, b, shift).tolist() == expected


@pytest.mark.parametrize(("product", "expected"), [(1, 1), (-1, 0), (3, 1), (-3, -1)])
def test_multiply_rounds_a_quarter_twice(product, expected):
    # 1/4 goes up to 1/2 and then to 1, where one rounding would give 0.
    assert fp.multiply(np.array([product]), np.array([1]), 1).tolist() == [expected]


@pytest.mark.parametrize("shift", range(-3, 9))
def test_rescale_equals_gemmlowp(shift):
    values = np.concatenate([CORNERS, np.random.default_rng(shift + 3).integers(-32768, 32768, 1500)])
    multiplier, exponent = quantized_multiplier(2.0 ** (shift - 11) / fp.TANH_SCALE)
    assert (multiplier, exponent) == (fp.RESCALE_MANTISSA, shift)
    assert fp.rescale(values, shift).tolist() == [clamp(gemmlowp(int(v), multiplier, exponent)) for v in values]


@pytest.mark.parametrize(("value", "expected"), [(4, 3), (-4, -2), (12, 8), (-12, -7), (5, 3), (-5, -3)])
def test_doubling_high_product_ties_up(value, expected):
    assert fp.doubling_high_product(np.array([value]), 5 << 28).tolist() == [expected]  # times 5/8


@pytest.mark.parametrize("shift", [0, 1, 5])
def test_rounding_shift_ties_away_from_zero(shift):
    values = np.arange(-200, 201)
    assert fp.rounding_shift(values, shift).tolist() == [half_away(Fraction(int(v), 2**shift)) for v in values]


def test_sigmoid_table_is_the_sigmoid():
    assert len(fp.SIGMOID_TABLE) == 256
    assert fp.SIGMOID_TABLE[[0, 1, 255]].tolist() == [32768, 33451, 65535]
    assert (np.diff(fp.SIGMOID_TABLE) >= 0).all()
    assert ENTRY_ERROR < 1.2 / 65536


@pytest.mark.parametrize(("scale", "shift"), list(zip(Z_SCALES, (13, 12, 11), strict=True)))
def test_table_multiplier_is_exact(scale, shift):
    multiplier, found = fp.table_multiplier(scale)
    assert found == shift
    assert multiplier < 2**15
    assert Fraction(multiplier, 2**shift) == Fraction(scale) * 12288


def table_error(slope: float, curvature: float, gain: int) -> float:
    """Position rounded to 1/12288, linear between entries, the entries' own error, output rounded."""
    return slope * 0.5 / 12288 + gain * (1 / 24) ** 2 / 8 * curvature + gain * ENTRY_ERROR + 0.5 / 32768


@pytest.mark.parametrize("scale", SCALES)
def test_logistic_is_the_sigmoid_within_its_derived_error(scale):
    got = fp.logistic(EVERY, *fp.table_multiplier(scale)) / 32768
    error = np.abs(got - 1 / (1 + np.exp(-EVERY * scale)))
    assert error.max() <= table_error(1 / 4, 0.0963, 1)


@pytest.mark.parametrize("scale", SCALES)
def test_tanh_is_the_tanh_within_its_derived_error(scale):
    got = fp.tanh(EVERY, *fp.table_multiplier(scale)) / 32768
    assert np.abs(got - np.tanh(EVERY * scale)).max() <= table_error(1, 0.0963, 2)


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("function", [fp.logistic, fp.tanh])
def test_tables_are_monotone_int16(function, scale):
    y = function(EVERY, *fp.table_multiplier(scale))
    assert (np.diff(y) >= 0).all()
    assert y.max() == 32767
    assert y.min() == (1 if function is fp.logistic else -32767)


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize(("function", "total"), [(fp.logistic, 32768), (fp.tanh, 0)])
def test_tables_are_symmetric_but_for_ties_of_the_position(function, total, scale):
    multiplier, shift = fp.table_multiplier(scale)
    x = np.arange(32768)
    sums = function(x, multiplier, shift) + function(-x, multiplier, shift)
    tie = (x * multiplier) % 2**shift == 2 ** (shift - 1)
    assert (sums[~tie] == total).all()
    step = 32768 / 12288 * (1 if function is fp.tanh else 1 / 4)  # one position further, at the steepest
    assert set(sums[tie] - total) <= set(range(math.ceil(step) + 1))


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize(("op", "function"), [("LOGISTIC", fp.logistic), ("TANH", fp.tanh)])
def test_tables_equal_litert_for_every_input(op, function, scale):
    ours = function(EVERY, *fp.table_multiplier(scale))
    assert np.array_equal(kernel(op, [scale], fp.UNIT_SCALE, EVERY), ours)


@pytest.mark.parametrize("bits", range(3, 12))
def test_multiply_equals_litert(bits):
    a, b = pairs(bits, 20_000)
    cell = 2.0**-bits
    assert np.array_equal(kernel("MUL", [2.0**-15, cell], cell, a, b), fp.multiply(a, b, 14))
    assert np.array_equal(kernel("MUL", [2.0**-15, 2.0**-15], cell, a, b), fp.multiply(a, b, 29 - bits))


@pytest.mark.parametrize("bits", range(3, 12))
def test_rescale_equals_litert_for_every_input(bits):
    assert np.array_equal(kernel("QUANTIZE", [2.0**-bits], fp.TANH_SCALE, EVERY), fp.rescale(EVERY, 11 - bits))


def test_hard_sigmoid_constants():
    assert round(2**17 / 6) == fp.HARD_SIGMOID_SIXTH
    assert quantized_multiplier(5.0)[0] == fp.FIFTH_MANTISSA


@pytest.mark.parametrize(("slope", "value"), [("0.2", 1 / 5), ("1/6", 1 / 6)])
@pytest.mark.parametrize("scale", SCALES)
def test_hard_sigmoid_within_its_derived_error(scale, slope, value):
    got = fp.hard_sigmoid(EVERY, round(math.log2(5 / scale)), slope) / 32768
    # Rounded to 2^-16, then to 2^-15, clipped at 1 - 2^-15; 21845 * 2^-17 is off by 1/3 in 21845.
    bound = 2**-17 + 2**-16 + 2**-15 + (slope == "1/6") * 0.5 / 3 / 21845
    assert np.abs(got - np.clip(value * EVERY * scale + 0.5, 0, 1)).max() <= bound
    assert (np.diff(got) >= 0).all()
    assert (got.min(), got.max()) == (0, 32767 / 32768)


@pytest.mark.parametrize("slope", ["0.2", "1/6"])
@pytest.mark.parametrize("scale", SCALES)
def test_hard_sigmoid_equals_litert_for_every_input(scale, slope):
    integer, step = {"0.2": (1, 0.2), "1/6": (fp.HARD_SIGMOID_SIXTH, 2.0**-17)}[slope]
    wide = kernel("MUL", [scale, step], 2.0**-16, EVERY, np.full_like(EVERY, integer))
    halved = kernel("QUANTIZE", [2.0**-16], 2.0**-15, wide)
    got = kernel("ADD", [2.0**-15] * 2, 2.0**-15, halved, np.full_like(EVERY, 1 << 14))
    assert np.array_equal(got, fp.hard_sigmoid(EVERY, round(math.log2(5 / scale)), slope))
