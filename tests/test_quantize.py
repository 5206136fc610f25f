"""The integer model: exact row scales, proven sums and ranges, and what is refused."""

from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from models import KINDS, mixed, random_dense, random_forecaster, uniform

from edgetqs import distill, reference
from edgetqs import fixedpoint as fp
from edgetqs.errors import BadInput, Unsupported
from edgetqs.evaluate import forecast_float, forecast_integer, synthetic_cases
from edgetqs.integer import ACCUMULATOR_LIMIT, IntegerModel, Matrix
from edgetqs.model import Forecaster, frozen
from edgetqs.observe import observe
from edgetqs.quantizer import ROUNDINGS, Z_SCALES, power_of_two_scale, quantize
from edgetqs.rollout import feedback_affine
from edgetqs.rounding import limit
from edgetqs.units import Block, blocks

QUICK = ("nearest", "trajectory")
WIDTHS = [
    pytest.param(lambda f: uniform(f, 8), id="int8"),
    pytest.param(lambda f: uniform(f, 4), id="int4"),
    pytest.param(mixed, id="mixed"),
]


def matrices(model: IntegerModel) -> list[Matrix]:
    return [matrix for _, _, matrix in model.matrices()]


def with_layer(forecaster: Forecaster, index: int, **changes: object) -> Forecaster:
    layers = list(forecaster.layers)
    layers[index] = replace(layers[index], **changes)
    return replace(forecaster, layers=tuple(layers))


def with_rows(forecaster: Forecaster, index: int, tensor: str, row: object, value: object) -> Forecaster:
    changed = getattr(forecaster.layers[index], tensor).copy()
    changed[row] = value
    return forecaster.replace_tensor(index, tensor, changed)


def quantized(forecaster: Forecaster, width: int = 8, rounding: str = "trajectory", **options: object) -> IntegerModel:
    return quantize(forecaster, uniform(forecaster, width), rounding, **options)


def widest_input(matrix: Matrix) -> np.ndarray:
    """For each row the int16 input of the largest sum: (rows, columns)."""
    sign = np.where(matrix.bias < 0, -1, 1)[:, None] * np.sign(matrix.weights.astype(int))
    return np.where(sign < 0, -32768, 32767 * sign)


def assert_exact(model: IntegerModel, chosen: dict[Block, int]) -> None:
    """Rows requantize by odd multipliers without any rounding of scales; weights stay within their width and use it."""
    for layer, tensor, matrix in model.matrices():
        assert matrix.widths == tuple(chosen[Block(layer, tensor, gate)] for gate in range(len(matrix.widths)))
        limits = np.repeat([limit(width) for width in matrix.widths], matrix.gate_rows)
        largest = np.abs(matrix.weights.astype(int)).max(axis=1)
        assert (largest <= limits).all()
        assert (largest > limits // 2).all()
        assert (matrix.multiplier % 2 == 1).all()
        assert (matrix.multiplier >= 2**14).all()
        assert (matrix.multiplier < 2**15).all()
        assert (matrix.shift >= 1).all()
        assert (matrix.shift <= 46).all()
        for scale, multiplier, shift in zip(matrix.scales, matrix.multiplier, matrix.shift, strict=True):
            exact = Fraction(int(multiplier), 2 ** int(shift))
            assert Fraction(matrix.input_scale) * Fraction(float(scale)) / Fraction(matrix.output_scale) == exact
            single = np.float32(matrix.input_scale) * scale / np.float32(matrix.output_scale)
            assert (single.dtype, Fraction(float(single))) == (np.float32, exact)


@pytest.mark.parametrize("rounding", QUICK)
@pytest.mark.parametrize("widths", WIDTHS)
@pytest.mark.parametrize("kind", KINDS)
def test_rows_requantize_exactly_and_keep_their_width(kind, widths, rounding):
    forecaster = random_forecaster(kind, 7, 3, 2, gain=1.5)
    chosen = widths(forecaster)
    assert_exact(quantize(forecaster, chosen, rounding), chosen)


@pytest.mark.parametrize("feedback", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_learned_rounding_keeps_the_grid(kind, feedback, monkeypatch):
    monkeypatch.setattr(distill, "STEPS", 12)
    forecaster = random_forecaster(kind, 4, 3, 2, feedback=feedback)
    chosen = mixed(forecaster)
    observations = observe(forecaster)
    model, before = (quantize(forecaster, chosen, r, observations=observations) for r in ("learned", "trajectory"))
    assert_exact(model, chosen)
    for a, b in zip(matrices(model), matrices(before), strict=True):
        assert np.array_equal(a.scales, b.scales)
        assert (a.accumulator_bound() <= ACCUMULATOR_LIMIT).all()
    assert matrices(model)[-1].reach() <= 32767
    assert model.rounding == "learned"


@pytest.mark.parametrize("rounding", QUICK)
@pytest.mark.parametrize("kind", KINDS)
def test_no_input_exceeds_the_accumulator_bound(kind, rounding):
    for matrix in matrices(quantized(random_forecaster(kind, 9, 4, 2, gain=3), 8, rounding)):
        sums = np.abs(np.einsum("rc,rc->r", widest_input(matrix), matrix.weights.astype(int)) + matrix.bias)
        bound = matrix.accumulator_bound()
        assert (sums <= bound).all()
        assert (sums >= bound * (1 - 2**-14)).all()  # tight but for 32767 against 32768
        assert (bound <= ACCUMULATOR_LIMIT).all()
        assert (np.abs(fp.requantize(bound, matrix.multiplier, matrix.shift)) < 2**31).all()


def test_rows_too_long_for_an_int32_are_told():
    forecaster = random_forecaster("rnn", 1, 520, 1, layers=1)
    forecaster = forecaster.replace_tensor(0, "kernel", np.full((1, 1, 520), 0.01))
    assert matrices(quantized(forecaster, 8, "nearest"))[0].accumulator_bound().max() > ACCUMULATOR_LIMIT
    assert matrices(quantized(forecaster, 4, "nearest"))[0].accumulator_bound().max() <= ACCUMULATOR_LIMIT


@pytest.mark.parametrize("width", [4, 8])
def test_nearest_weights_lie_within_half_a_step(width):
    forecaster = random_forecaster("lstm", 6, 3, 1)
    for layer, tensor, matrix in quantized(forecaster, width, "nearest").matrices():
        exact = np.concatenate(list(getattr(forecaster.layers[layer], tensor))).astype(np.float64)
        step = np.abs(exact).max(axis=1) / limit(width)
        # The grid of odd multipliers below 2^15 has gaps of 2 in 2^14; its top stands for what is just above.
        assert (matrix.scales >= step * (1 - 2**-15)).all()
        assert (matrix.scales <= step * (1 + 2**-13)).all()
        error = np.abs(matrix.dequantized() - exact) / matrix.scales[:, None]
        assert error.max() <= 0.5 + limit(width) * 2**-15 + 1e-6  # and float32


@pytest.mark.parametrize("activation", ["linear", "relu"])
@pytest.mark.parametrize("rounding", QUICK)
@pytest.mark.parametrize("width", [4, 8])
@pytest.mark.parametrize("seed", range(4))
def test_no_hidden_state_clips_a_dense_output(seed, width, rounding, activation):
    forecaster = random_forecaster("gru", 12, 2, 3, seed=seed, activation=activation)
    matrix = matrices(quantized(forecaster, width, rounding))[-1]
    extreme = widest_input(matrix)
    values = np.stack([reference.product(matrix, sign * extreme.clip(-32767)) for sign in (1, -1)])
    assert np.abs(values).max() <= 32767
    assert np.abs(values).max() > 32767 / 4  # and the range is used


@pytest.mark.parametrize("rounding", QUICK)
def test_dense_weights_that_all_round_up_do_not_clip(rounding):
    forecaster = random_forecaster("gru", 32, 2, 1, layers=1)
    row = np.full((1, 1, 32), 0.55)
    row[..., 0] = 7
    forecaster = with_layer(forecaster, 1, kernel=frozen(row), bias=frozen([[0]]))
    matrix = matrices(quantized(forecaster, 4, rounding))[-1]
    assert np.abs(reference.product(matrix, widest_input(matrix))).max() <= 32767


def test_large_dense_bias_does_not_clip():
    forecaster = with_layer(random_forecaster("rnn", 4, 2, 1, feedback=False), 2, bias=frozen([[-1000]]))
    model = quantized(forecaster, 8, "nearest")
    (value,) = reference.product(matrices(model)[-1], np.zeros(4, np.int64))
    assert model.output_scale == 2**-5
    assert value == -32000


@pytest.mark.parametrize(
    ("bound", "scale"), [(1, 2**-15), (1.001, 2**-14), (8, 2**-12), (0.5, 2**-16), (0, 2**-29), (3e5, 2**4)]
)
def test_power_of_two_scale(bound, scale):
    assert power_of_two_scale(bound) == scale


@pytest.mark.parametrize(
    ("peak", "expected"),
    [(0, 0), (32767 * Z_SCALES[0] / 1.5, 0), (6.7, 1), (32767 * Z_SCALES[1] / 1.5, 1), (13.4, 2), (1e6, 2)],
)
def test_z_scale_holds_what_rollouts_reach_with_a_margin(peak, expected):
    forecaster = random_forecaster("lstm", 8, 3, 1, layers=1, gain=20)
    first, *rest = observe(forecaster)
    model = quantized(forecaster, observations=(replace(first, part_peak=peak), *rest))
    assert model.layers[0].z_scale == Z_SCALES[expected]


def test_z_scale_is_the_finest_where_nothing_can_saturate():
    forecaster = random_forecaster("rnn", 4, 2, 1, layers=1, gain=0.2)
    first, *rest = observe(forecaster)
    model = quantized(forecaster, observations=(replace(first, part_peak=1e6), *rest))
    assert model.layers[0].z_scale == Z_SCALES[0]


@pytest.mark.parametrize(
    ("weight", "expected"), [(1.249, 0), (1.251, 1), (2.499, 1), (2.501, 2), (9, 2)]
)  # an input of 8 times 1.25 is 10
def test_dense_product_scale_holds_the_proven_range(weight, expected):
    forecaster = random_forecaster("rnn", 4, 1, 1, layers=1)
    dense = replace(random_dense(1, 1, np.random.default_rng(0), activation="tanh"), kernel=frozen([[[weight]]]))
    forecaster = replace(forecaster, layers=(replace(dense, bias=frozen([[0]])), *forecaster.layers))
    first = quantized(forecaster).layers[0]
    assert first.kernel.output_scale == Z_SCALES[expected]
    assert first.output_scale == 2**-15


@pytest.mark.parametrize(("peak", "bits"), [(0, 11), (8, 11), (8.01, 10), (16, 10), (17, 9), (600, 4), (1e9, 3)])
def test_cell_scale_holds_twice_what_rollouts_reach(peak, bits):
    forecaster = random_forecaster("lstm", 4, 2, 1, layers=1)
    first, *rest = observe(forecaster)
    model = quantized(forecaster, observations=(replace(first, cell_peak=peak), *rest))
    assert model.layers[0].cell_bits == bits


@pytest.mark.parametrize("rounding", QUICK)
@pytest.mark.parametrize("width", [4, 8])
@pytest.mark.parametrize("bias", [0.0, 0.37, -3.0, 1e-6])
def test_rows_of_zeros_give_their_bias(bias, width, rounding):
    forecaster = with_rows(random_forecaster("lstm", 4, 2, 1, layers=1), 0, "kernel", (0, 1), 0)
    forecaster = with_rows(forecaster, 0, "bias", (0, 1), bias)
    if rounding == "trajectory":  # keep the recurrent part's correction out of this bias
        forecaster = with_rows(forecaster, 0, "recurrent_kernel", (0, 1), 0)
    layer = quantized(forecaster, width, rounding).layers[0]
    x = np.random.default_rng(0).integers(-32768, 32768, (50, 2))
    got = reference.product(layer.kernel, x)[:, 1] * layer.z_scale
    assert np.abs(got - np.float32(bias)).max() <= layer.z_scale / 2 + abs(bias) * 2**-28


@pytest.mark.parametrize("rounding", QUICK)
@pytest.mark.parametrize("kind", KINDS)
def test_model_of_zeros(kind, rounding):
    forecaster = random_forecaster(kind, 3, 2, 1, layers=1, gain=0)
    forecaster = with_rows(with_rows(forecaster, 1, "kernel", (), 0), 0, "bias", (), 0)
    model = quantized(forecaster, 4, rounding)
    y, _ = reference.run(model, reference.zero_state(model), np.full((3, 2), 32767))
    expected = forecaster.layers[1].bias[0, 0] / model.output_scale
    assert y.ravel().tolist() == [round(float(expected))] * 3


@pytest.mark.parametrize("rounding", QUICK)
def test_gru_joins_the_biases_that_are_only_added(rounding):
    forecaster = random_forecaster("gru", 5, 3, 1, layers=1)
    layer = forecaster.layers[0]
    made = quantized(forecaster, 8, rounding).layers[0]
    assert not made.recurrent.bias[:10].any()
    assert made.recurrent.bias[10:].all()
    if rounding == "nearest":
        biases = made.kernel.bias * made.kernel.scales * made.kernel.input_scale
        joined = np.concatenate([layer.bias[:2] + layer.recurrent_bias[:2], layer.bias[2:]]).ravel()
        np.testing.assert_allclose(biases, joined, atol=float(made.kernel.scales.max()) * made.kernel.input_scale)


@pytest.mark.parametrize("kind", KINDS)
def test_trajectory_rounding_errs_less_than_nearest(kind):
    forecaster = random_forecaster(kind, 16, 3, 2)
    error = {rounding: rollout_error(forecaster, quantized(forecaster, 4, rounding)) for rounding in QUICK}
    assert error["trajectory"] < error["nearest"]


def test_learned_rounding_errs_less_than_trajectory():
    forecaster = random_forecaster("lstm", 8, 3, 1, layers=1)
    error = {rounding: rollout_error(forecaster, quantized(forecaster, 4, rounding)) for rounding in ROUNDINGS[1:]}
    assert error["learned"] < error["trajectory"]


def rollout_error(forecaster: Forecaster, model: IntegerModel) -> float:
    cases = synthetic_cases(forecaster, 8)
    return float(np.mean((forecast_integer(model, cases, 8) - forecast_float(forecaster, cases, 8)) ** 2))


def test_channels_and_feedback_carry_the_scaling():
    forecaster = random_forecaster("lstm", 4, 3, 2, scaled=True)
    model = quantized(forecaster)
    for code, channel in zip(model.inputs, forecaster.inputs, strict=True):
        assert (code.name, code.unit) == (channel.name, channel.unit)
        assert code.mean == np.float32(channel.mean)
        assert code.gain == np.float32(1 / (channel.std * model.input_scale))
    for code, channel in zip(model.outputs, forecaster.outputs, strict=True):
        assert code.mean == np.float32(channel.mean)
        assert code.gain == np.float32(channel.std * model.output_scale)
    for code, pair in zip(model.loop, forecaster.feedback.pairs, strict=True):
        gain, offset = feedback_affine(forecaster, *pair)
        assert (code.source, code.target) == pair
        assert code.multiplier < 2**15
        assert code.multiplier / 2**code.shift == pytest.approx(
            gain * model.output_scale / model.input_scale, rel=2**-15
        )
        assert code.offset / 2**code.shift == pytest.approx(offset / model.input_scale, abs=0.5 / 2**code.shift)


def test_feedback_of_equal_scaling_is_exact():
    model = quantized(random_forecaster("gru", 4, 2, 1))
    (code,) = model.loop
    assert Fraction(code.multiplier, 2**code.shift) == Fraction(model.output_scale) / Fraction(model.input_scale)
    assert code.offset == 0


@pytest.mark.parametrize(("std", "mean"), [(1e9, 0), (1e-12, 0), (1, 1e6), (2e-7, 30_000)])
def test_feedback_between_scalings_too_different_is_refused(std, mean):
    forecaster = random_forecaster("gru", 4, 2, 1)
    far = replace(forecaster, outputs=(replace(forecaster.outputs[0], std=std, mean=mean),))
    with pytest.raises(BadInput, match=r"y0.*x0"):
        quantized(far, observations=observe(forecaster))


@pytest.mark.parametrize(("mean", "std"), [(1e39, 1), (0, 1e-45), (0, 1e-320), (0, 1e60), (0, 1e300)])
@pytest.mark.parametrize("side", ["inputs", "outputs"])
@pytest.mark.filterwarnings("error")
def test_scalings_beyond_float32_are_refused(side, mean, std):
    forecaster = random_forecaster("rnn", 2, 2, 2, layers=1, feedback=False)
    first, *rest = getattr(forecaster, side)
    far = replace(forecaster, **{side: (replace(first, mean=mean, std=std), *rest)})
    with pytest.raises(BadInput, match=first.name):
        quantized(far)


def test_same_input_same_integers():
    forecaster = random_forecaster("lstm", 6, 3, 1)
    first, second = quantized(forecaster), quantized(forecaster, observations=observe(forecaster))
    for a, b in zip(matrices(first), matrices(second), strict=True):
        for name in ("weights", "scales", "multiplier", "shift", "bias"):
            assert np.array_equal(getattr(a, name), getattr(b, name))


def test_integers_are_read_only():
    matrix = matrices(quantized(random_forecaster("rnn", 3, 2, 1)))[0]
    with pytest.raises(ValueError, match="read-only"):
        matrix.weights[0, 0] = 1


@pytest.mark.parametrize(
    ("index", "tensor", "value", "where"),
    [
        (0, "kernel", 1e12, "lstm_0"),
        (0, "recurrent_kernel", 1e12, "lstm_0"),
        (1, "kernel", 1e12, "lstm_1"),
        (1, "bias", 1e12, "lstm_1"),
    ],
)
@pytest.mark.parametrize("rounding", QUICK)
def test_weights_too_large_are_refused_by_layer(index, tensor, value, where, rounding):
    forecaster = with_rows(random_forecaster("lstm", 4, 2, 2, feedback=False), index, tensor, (0, 1), value)
    with pytest.raises(BadInput, match=where):
        quantized(forecaster, 8, rounding)


@pytest.mark.parametrize(("index", "tensor"), [(0, "kernel"), (1, "recurrent_kernel"), (1, "bias"), (2, "kernel")])
@pytest.mark.parametrize("feedback", [True, False])
def test_weights_that_are_not_numbers_are_refused(index, tensor, feedback):
    forecaster = random_forecaster("lstm", 4, 2, 2, feedback=feedback)
    with pytest.raises(BadInput):
        quantized(with_rows(forecaster, index, tensor, (0, 1), np.nan))


def test_gates_without_an_integer_form_are_refused_by_layer():
    forecaster = with_layer(random_forecaster("lstm", 4, 2, 1), 1, recurrent_activation="tanh")
    with pytest.raises(Unsupported, match=r"lstm_1: recurrent_activation 'tanh'"):
        quantized(forecaster)


def test_unknown_rounding():
    with pytest.raises(BadInput, match="stochastic"):
        quantized(random_forecaster("rnn", 2, 2, 1), 8, "stochastic")


@pytest.mark.parametrize("width", [None, 5, 0])
def test_missing_or_odd_width_is_refused_by_block(width):
    forecaster = random_forecaster("gru", 2, 2, 1)
    widths = {**uniform(forecaster, 8), Block(1, "recurrent_kernel", 2): width}
    with pytest.raises(BadInput, match=r"layer=1, tensor='recurrent_kernel', gate=2"):
        quantize(forecaster, widths)


def test_blocks_cover_every_weight():
    forecaster = random_forecaster("lstm", 3, 2, 1)
    assert len(blocks(forecaster)) == 2 * 8 + 1
