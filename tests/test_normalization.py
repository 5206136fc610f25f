"""LayerNormalization against LiteRT in its three forms, exact integers, and the float formula."""

import math

import numpy as np
import pytest
from engines import ENGINES, run_vectors, vector_model, vectors_of

from edgetqs import normalization as nz
from edgetqs.write_normalization import write_layer_normalization

FEATURES = [1, 2, 3, 7, 16, 17, 64, 100, 256, 257, 511, 512]
EPSILON = 1e-3


def layer_of(features: int, seed: int, input_scale: float, output_scale: float, epsilon: float = EPSILON):
    """Random (gamma, beta) and the layer's integers."""
    rng = np.random.default_rng(seed)
    gamma, beta = rng.normal(1, 0.5, features), rng.normal(0, 0.5, features)
    return gamma, beta, nz.quantize_normalization(gamma, beta, epsilon, input_scale, output_scale)


def floats(values: np.ndarray, gamma: np.ndarray, beta: np.ndarray, scale: float, epsilon: float) -> np.ndarray:
    """Keras' formula."""
    x = values * scale
    centred = x - x.mean(axis=-1, keepdims=True)
    return gamma * centred / np.sqrt(x.var(axis=-1, keepdims=True) + epsilon) + beta


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("features", FEATURES)
def test_vectors_equal_litert(engine, features):
    for bits in (0, 7, 11, 15):
        scale, output_scale = 2.0**-bits, 2.0 ** -(8 + bits % 4)
        _, _, layer = layer_of(features, bits, scale, output_scale)
        content = vector_model(
            features, scale, lambda graph, x, layer=layer: write_layer_normalization(graph, x, layer)
        )
        vectors = vectors_of(features, 640, features + bits)
        got = run_vectors(content, engine, vectors)
        np.testing.assert_array_equal(got, nz.layer_normalize(vectors, layer), err_msg=f"2^-{bits}")


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("gain", [1e-6, 30.0, 1e4])
def test_clipped_and_lost_outputs_equal_litert(engine, gain):
    beta = np.linspace(-31.9, 31.9, 9)
    layer = nz.quantize_normalization(np.full(9, gain), beta, EPSILON, 2.0**-12, 2.0**-10)
    content = vector_model(9, 2.0**-12, lambda graph, x: write_layer_normalization(graph, x, layer))
    vectors = vectors_of(9, 640, 0)
    expected = nz.layer_normalize(vectors, layer)
    extremes = (expected.min(), expected.max())
    assert extremes == ((-32768, 32767) if gain > 1 else (round(beta[0] * 1024), round(beta[-1] * 1024)))
    np.testing.assert_array_equal(run_vectors(content, engine, vectors), expected)


def test_integers_are_the_exact_ones():
    """The steps of int64 arithmetic never overflow: Python's integers give the same."""
    for features in FEATURES:
        _, _, layer = layer_of(features, 1, 2.0**-15, 2.0**-11)
        vectors = vectors_of(features, 48, 2)
        got = nz.layer_normalize(vectors, layer)
        for row, result in zip(vectors.tolist(), got.tolist(), strict=True):
            assert result == exact(row, layer)


def exact(row: list[int], layer: nz.Normalization) -> list[int]:
    n, total = len(row), sum(row)
    centred = [layer.factor * (n * x - total) for x in row]
    power = sum(d * d for d in centred) + layer.epsilon
    shift = next(s for s in range(30) if power << (2 * s) >= 2**58)
    mantissa = (power << (2 * shift)) >> 32
    place = (mantissa >> 20) - 64
    start, stop = (int(nz.RSQRT_TABLE[k]) for k in (place, place + 1))
    root = (start << 15) - (start - stop) * ((mantissa >> 5) % 2**15)
    scaled = [((d << shift) * root) >> 32 for d in centred]
    assert all(abs(q) <= 2**28 + 2**14 for q in scaled)
    sums = [q * int(g) + (int(b) << 16) for q, g, b in zip(scaled, layer.gamma, layer.beta, strict=True)]
    return [max(-32768, min(32767, (value + 2**31) >> 32)) for value in sums]


def test_rsqrt_table_is_the_formula():
    assert nz.RSQRT_TABLE.tolist() == [min(round(2**19 / math.sqrt(k)), 65535) for k in range(64, 257)]


def test_reciprocal_root_within_2_15():
    mantissa = np.arange(2**26, 2**28, 997)
    error = nz.reciprocal_root(mantissa) / (2**44 / np.sqrt(mantissa)) - 1
    assert np.abs(error).max() < 2**-14.9


@pytest.mark.parametrize("features", FEATURES)
@pytest.mark.parametrize("bits", [2, 8, 12, 15])
def test_layer_is_the_formula_within_its_derived_error(features, bits):
    output_scale = 2.0**-11 if features < 64 else 2.0**-9
    gamma, beta, layer = layer_of(features, 5, 2.0**-bits, output_scale)
    vectors = vectors_of(features, 1000, bits)
    expected = floats(vectors, gamma, beta, 2.0**-bits, EPSILON) / output_scale
    error = np.abs(nz.layer_normalize(vectors, layer) - np.clip(expected, -32768, 32767))
    # The root is within 2^-14.9; gamma within 1/2 of 2^-32 a normalized 2^28; the result is rounded.
    bound = np.abs(expected - beta / output_scale) * 2**-14.9 + 2.0**-5 + 2**-16 + 0.5
    assert (error <= bound).all()


@pytest.mark.parametrize("features", FEATURES)
def test_sizes_are_in_their_range(features):
    layer = nz.quantize_normalization(np.ones(features), np.zeros(features), EPSILON, 2.0**-11, 2.0**-11)
    assert 256 < features * layer.factor <= 512


def test_equal_values_give_beta():
    _, beta, layer = layer_of(12, 3, 2.0**-10, 2.0**-10)
    equal = np.repeat(np.array([[-32768], [-1], [0], [32767]]), 12, axis=1)
    np.testing.assert_array_equal(nz.layer_normalize(equal, layer), np.tile(np.rint(beta * 1024), (4, 1)))


@pytest.mark.parametrize(
    ("features", "epsilon", "gamma", "beta", "what"),
    [
        (0, EPSILON, 1.0, 0.0, "0 features"),
        (513, EPSILON, 1.0, 0.0, "513 features"),
        (8, 1e12, 1.0, 0.0, "epsilon"),
        (8, EPSILON, 1e5, 0.0, "gamma"),
        (8, EPSILON, 1.0, 40.0, "beta"),
        (8, EPSILON, math.nan, 0.0, "gamma"),
    ],
)
def test_what_does_not_fit_is_refused(features, epsilon, gamma, beta, what):
    with pytest.raises(ValueError, match=what):
        nz.quantize_normalization(np.full(features, gamma), np.full(features, beta), epsilon, 2.0**-12, 2.0**-10)
