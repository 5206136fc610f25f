"""Softmax against LiteRT in its three forms, its tables' formulas, and the float function."""

import math

import numpy as np
import pytest
from engines import ENGINES, all_pairs, brimming, run_vectors, vector_model, vectors_of

from edgetqs import softmax as sm
from edgetqs.write_normalization import write_softmax

POWERS = [2.0**-k for k in range(-1, 14)]
FIVES = [5 * 2.0**-k for k in range(1, 16)]
SCALES = [*POWERS, *FIVES]
PAIRS = all_pairs()


def reference(vectors: np.ndarray, scale: float) -> np.ndarray:
    return sm.softmax(vectors, *sm.exp_multiplier(scale))


def table_entries(low: float, high: float, function) -> list[int]:
    """LiteRT's rule for a table: the function at 512 steps and the end, corrected for what lies between."""

    def away(value: float) -> int:
        return math.floor(value + 0.5) if value >= 0 else -math.floor(0.5 - value)

    step = (high - low) / 512
    entries = []
    for k in range(512):
        entry = away(function(low + k * step) * 32768)
        middle = away((function(low + (k + 1) * step) * 32768 + entry) / 2)
        above = middle - away(function(low + (k + 0.5) * step) * 32768)
        entries.append(min(entry - away(above / 2), 32767))
    return [*entries, min(away(function(high) * 32768), 32767)]


def test_exp_table_is_the_rule():
    assert sm.EXP_TABLE.tolist() == table_entries(-10.0, 0.0, math.exp)


def test_reciprocal_is_the_rule():
    assert sm.reciprocal_entry(np.arange(513)).tolist() == table_entries(0.0, 1.0, lambda x: 1 / (1 + x))


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("scale", [sm.EXP_STEP, 2.0**-13, 2.0**-8, 5 * 2.0**-15])
def test_all_pairs_equal_litert(engine, scale):
    got = run_vectors(vector_model(2, scale, write_softmax), engine, PAIRS)
    np.testing.assert_array_equal(got, reference(PAIRS, scale))


@pytest.mark.parametrize("engine", ENGINES)
def test_a_sum_at_the_brim_equals_litert(engine):
    vectors = brimming()
    got = run_vectors(vector_model(17, sm.EXP_STEP, write_softmax), engine, vectors)
    np.testing.assert_array_equal(got, reference(vectors, sm.EXP_STEP))


@pytest.fixture(scope="module")
def crowd() -> np.ndarray:
    """One logit at the top, many at each lower one: the sum shows small changes of an entry of exp."""
    below = np.repeat(np.arange(-32768, 32768, 8)[:, None], 63, axis=1)
    return np.concatenate([np.full((len(below), 1), 32767), below], axis=1)


def test_every_entry_of_exp_is_litert_s(crowd, monkeypatch):
    """Any entry one off is seen in what LiteRT gives, for a crowd or for a pair."""
    sets = [(16, crowd), (128, PAIRS)]
    true = [run_vectors(vector_model(v.shape[1], sm.EXP_STEP, write_softmax), "reference", v) for _, v in sets]
    unseen, table = [], sm.EXP_TABLE
    for entry in range(513):
        for step in (-1, 1):
            monkeypatch.setattr(sm, "EXP_TABLE", table + step * (np.arange(513) == entry))
            for (rows, vectors), expected in zip(sets, true, strict=True):
                near = slice(max(entry - 1, 0) * rows, (entry + 1) * rows)
                if not np.array_equal(reference(vectors[near], sm.EXP_STEP), expected[near]):
                    break
            else:
                unseen.append((entry, step))
    assert unseen == []


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("count", [1, 2, 3, 5, 10, 31, 32, 33, 64])
def test_vectors_equal_litert(engine, count):
    for scale in SCALES:
        vectors = vectors_of(count, 320, count)
        got = run_vectors(vector_model(count, scale, write_softmax), engine, vectors)
        np.testing.assert_array_equal(got, reference(vectors, scale), err_msg=f"scale {scale}")


@pytest.mark.parametrize("scale", SCALES)
def test_multiplier_is_of_one_rounding(scale):
    multiplier, shift = sm.exp_multiplier(scale)
    assert 2**30 <= multiplier <= 2**31
    assert 17 <= shift <= 31
    assert multiplier / 2**shift == pytest.approx(scale / sm.EXP_STEP, rel=2**-31)


@pytest.mark.parametrize("scale", [2.0**-14, 5 * 2.0**-16, 4.0, 5.0])
def test_other_scales_are_refused(scale):
    with pytest.raises(ValueError, match="engines agree"):
        sm.exp_multiplier(scale)


@pytest.mark.parametrize("count", [1, 2, 7, 64])
@pytest.mark.parametrize("scale", [2.0**-12, 2.0**-9, 5 * 2.0**-13])
def test_softmax_of_floats_is_near(count, scale):
    vectors = vectors_of(count, 2000, 3)
    floats = np.exp((vectors - vectors.max(axis=1, keepdims=True)) * scale)
    error = np.abs(reference(vectors, scale) / 32768 - floats / floats.sum(axis=1, keepdims=True))
    # In steps of 2^-15: exp is within 2 and, by its argument's rounding, 2.5 exp; the share of the sum of n such
    # errors is 2 n + 2.5 at most; the reciprocal is within 4, the result rounded and 1 held as 32767.
    assert error.max() * 32768 <= 4.5 + 2 * count + 2.5 + 4 + 1.5


def test_shares_do_not_depend_on_the_level_or_the_order():
    vectors = vectors_of(9, 400, 5) // 2
    shares = reference(vectors, 2.0**-10)
    np.testing.assert_array_equal(reference(vectors - 16000, 2.0**-10), shares)
    np.testing.assert_array_equal(reference(vectors[:, ::-1], 2.0**-10), shares[:, ::-1])
    assert shares.min() >= 0
