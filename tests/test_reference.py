"""The integer program: chunked equals whole, the closed loop, conversions, its distance to a float cell."""

import math
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from models import KINDS, mixed, random_dense, random_forecaster, uniform

from edgetqs import fixedpoint as fp
from edgetqs import reference, rollout
from edgetqs.errors import BadInput
from edgetqs.integer import IntegerModel, IntegerRecurrent, Matrix
from edgetqs.model import Layer, frozen
from edgetqs.observe import observe
from edgetqs.quantizer import Z_SCALES, quantize
from edgetqs.reference import Trace

HARD = ("hard_sigmoid_keras2", "hard_sigmoid_keras3")
CELLS = [(kind, "sigmoid") for kind in KINDS] + [(kind, gate) for kind in KINDS[:3] for gate in HARD]


def integers(kind: str = "lstm", units: int = 6, inputs: int = 3, outputs: int = 2, **options) -> IntegerModel:
    forecaster = random_forecaster(kind, units, inputs, outputs, **options)
    return quantize(forecaster, mixed(forecaster))


def samples(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(-32768, 32768, shape)


def same(a: reference.State, b: reference.State) -> bool:
    return all(np.array_equal(x, y) for p, q in zip(a, b, strict=True) for x, y in zip(p, q, strict=True))


@pytest.mark.parametrize(("kind", "gate"), CELLS)
def test_steps_equal_a_run(kind, gate):
    model = integers(kind, gate=gate)
    x = samples(30, 3)
    whole, last = reference.run(model, reference.zero_state(model), x)
    state, outputs = reference.zero_state(model), []
    for sample in x:
        y, state = reference.step(model, state, sample)
        outputs.append(y)
    assert np.array_equal(whole, outputs)
    assert same(state, last)
    first, middle = reference.run(model, reference.zero_state(model), x[:11])
    second, end = reference.run(model, middle, x[11:])
    assert np.array_equal(whole, np.concatenate([first, second]))
    assert same(end, last)


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_equals_singles(kind):
    model = integers(kind)
    x = samples(2, 3, 12, 3)
    together, state = reference.run(model, reference.zero_state(model, (2, 3)), x)
    for index in np.ndindex(2, 3):
        alone, own = reference.run(model, reference.zero_state(model), x[index])
        assert np.array_equal(together[index], alone)
        assert same(tuple(tuple(part[index] for part in one) for one in state), own)


@pytest.mark.parametrize("kind", KINDS)
def test_reset_equals_fresh(kind):
    model = integers(kind)
    fresh = reference.zero_state(model)
    first, used = reference.run(model, fresh, samples(9, 3))
    second, _ = reference.run(model, fresh, samples(9, 3))
    carried, _ = reference.run(model, used, samples(9, 3))
    assert np.array_equal(first, second)
    assert not np.array_equal(first, carried)
    assert not any(part.any() for one in fresh for part in one)


@pytest.mark.parametrize("kind", KINDS)
def test_values_are_int16(kind):
    model = integers(kind, gain=6)
    trace = Trace()
    x = samples(40, 3)
    state = reference.zero_state(model)
    for sample in np.where(x > 0, 32767, -32768):
        _, state = reference.step(model, state, sample, trace)
    for _, _, values in trace.values:
        assert values.min() >= -32768
        assert values.max() <= 32767


def fed_back(code, y: int) -> int:
    exact = Fraction(int(y) * code.multiplier + code.offset, 2**code.shift)
    return max(-32768, min(32767, math.floor(exact + Fraction(1, 2))))


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("scaled", [True, False])
def test_closed_loop_equals_a_loop_by_hand(scaled, known):
    model = integers("gru", 5, 4, 2, scaled=scaled, known=known)
    x, y, future = samples(4, seed=1), samples(2, seed=2), samples(9, 4, seed=3)
    start = reference.run(model, reference.zero_state(model), samples(6, 4))[1]
    got, last = reference.closed_loop(model, start, x, y, 9, future)
    state, expected, given = start, [y], x
    for k in range(8):
        given = [fed_back(model.loop[0], y[0]), fed_back(model.loop[1], y[1]), x[2], future[k, 3] if known else x[3]]
        y, state = reference.step(model, state, np.array(given))
        expected.append(y)
    assert np.array_equal(got, expected)
    assert same(last, state)


def test_closed_loop_of_one_step_is_the_output_at_hand():
    model = integers()
    start = reference.zero_state(model)
    y, last = reference.closed_loop(model, start, samples(3), np.array([5, -7]), 1, samples(1, 3))
    assert y.tolist() == [[5, -7]]
    assert same(last, start)


def test_closed_loop_does_not_read_the_last_future_row():
    model, future = integers(), samples(5, 3)
    start = reference.zero_state(model)
    arguments = (model, start, samples(3), np.array([5, -7]), 5)
    assert np.array_equal(
        reference.closed_loop(*arguments, future)[0], reference.closed_loop(*arguments, future[:4])[0]
    )


def test_feedback_moves_between_scalings():
    forecaster = random_forecaster("lstm", 6, 3, 2, scaled=True)
    model = quantize(forecaster, uniform(forecaster, 8))
    y = samples(200, 2)
    following = reference.next_input(model, samples(200, 3, seed=5), y, samples(200, 3))
    values = reference.decode(model, y)
    for source, target in forecaster.feedback.pairs:
        # Half a step of rounding, and the multiplier's 15 bits over the output's range.
        channel = forecaster.inputs[target]
        exact = np.clip((values[:, source] - channel.mean) / channel.std / model.input_scale, -32768, 32767)
        reach = 32768 * model.output_scale * forecaster.outputs[source].std / channel.std / model.input_scale
        assert np.abs(following[:, target] - exact).max() <= 0.5 + reach * 2**-15 + 0.01


def test_encode_rounds_halves_away_from_zero():
    model = integers(inputs=1, outputs=1)
    assert model.inputs[0].gain == 4096
    quarters = np.arange(-12, 13)
    expected = np.sign(quarters) * np.floor(np.abs(quarters) / 4 + 0.5)
    assert reference.encode(model, quarters[:, None] / 4 / 4096).ravel().tolist() == expected.tolist()


def test_encode_clips():
    model = integers(inputs=1, outputs=1)
    x = np.array([[-3e38], [-1e30], [-8.1], [-8], [7.9999], [8], [1e30], [3e38]])
    assert reference.encode(model, x).ravel().tolist() == [-32768] * 4 + [32767] * 4


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_encode_refuses_what_the_firmware_refuses(value):
    with pytest.raises(BadInput, match="not a finite number"):
        reference.encode(integers(inputs=1, outputs=1), np.array([[0.0], [value]]))


def test_encode_is_float32_arithmetic():
    model = integers(inputs=2, outputs=1, scaled=True)
    x = np.random.default_rng(0).normal(0, 5, (500, 2)).astype(np.float32)
    codes = reference.encode(model, x)
    for k, code in enumerate(model.inputs):
        scaled = ((x[:, k] - np.float32(code.mean)).astype(np.float32) * np.float32(code.gain)).astype(np.float32)
        whole = np.trunc(scaled + np.copysign(np.float32(0.5), scaled)).astype(int)
        assert np.array_equal(codes[:, k], np.clip(whole, -32768, 32767))
        exact = np.clip((x[:, k].astype(float) - code.mean) * code.gain, -32768, 32767)
        assert np.abs(codes[:, k] - exact).max() <= 0.5 + 32768 * 3 * 2**-24  # three float32 operations


def test_decode_is_float32_arithmetic():
    model = integers(outputs=2, scaled=True)
    y = samples(300, 2)
    values = reference.decode(model, y)
    assert values.dtype == np.float32
    for k, code in enumerate(model.outputs):
        assert np.array_equal(values[:, k], y[:, k].astype(np.float32) * np.float32(code.gain) + np.float32(code.mean))


# ---- Distance to a float cell with the same weights ----

TABLE = {"sigmoid": 6.4e-5, "tanh": 1.32e-4}  # derived in test_fixedpoint
PRODUCT = 0.501  # of a step: what MUL rounds, its first halving included


def dequantized(layer: IntegerRecurrent, like: Layer) -> Layer:
    def gates(values: np.ndarray) -> np.ndarray:
        return frozen(values.reshape(len(layer.gates), layer.units, *values.shape[1:]))

    def bias(matrix: Matrix) -> np.ndarray:
        return gates(matrix.bias * matrix.scales * matrix.input_scale)

    changes = {
        "kernel": gates(layer.kernel.dequantized()),
        "recurrent_kernel": gates(layer.recurrent.dequantized()),
        "bias": bias(layer.kernel),
    }
    if hasattr(like, "recurrent_bias"):
        changes["recurrent_bias"] = bias(layer.recurrent)
    return replace(like, **changes)


def derived_error(layer: IntegerRecurrent, like: Layer, h: np.ndarray, c: np.ndarray) -> np.ndarray:
    """The largest |h' - float h'| that rounding can make in one step: (..., units).

    Slopes: tanh up to 1, sigmoid up to 1/4, which covers the hard sigmoids and their roundings too.
    """
    z = layer.z_scale * 1.001  # two parts, half a step each; biases are rounded much finer
    gate = z / 4 + TABLE["sigmoid"]
    new = z + TABLE["tanh"]
    if layer.kind == "rnn":
        return np.full(h.shape, new)
    if layer.kind == "lstm":
        step = 2.0**-layer.cell_bits
        cell = gate * (np.abs(c) + 1 + new) + new + 2 * PRODUCT * step
        return gate + cell + fp.TANH_SCALE / 2 + TABLE["tanh"] + PRODUCT * fp.UNIT_SCALE
    if layer.kind == "gru_reset_after":
        reach = np.abs(h @ like.recurrent_kernel[2].T.astype(float) + like.recurrent_bias[2])
        new = new + gate * reach + PRODUCT * layer.z_scale
    else:
        new = new + (gate * np.abs(h) + PRODUCT * fp.UNIT_SCALE) @ np.abs(like.recurrent_kernel[2].T)
    return new + gate * (np.abs(h) + 1) + 3 * PRODUCT * fp.UNIT_SCALE


@pytest.mark.parametrize("width", [4, 8])
@pytest.mark.parametrize(("kind", "gate"), CELLS)
def test_one_step_stays_within_the_derived_error_of_a_float_cell(kind, gate, width):
    forecaster = random_forecaster(kind, 16, 3, 1, layers=1, gain=0.7, gate=gate)
    model = quantize(forecaster, uniform(forecaster, width))
    layer, trace, rng = model.layers[0], Trace(), np.random.default_rng(0)
    assert layer.z_scale == Z_SCALES[0]
    x = rng.integers(-8192, 8193, (400, 3))
    h, c = rng.integers(-32767, 32768, (400, 16)), rng.integers(-4096, 4097, (400, 16))
    state = (h, c) if kind == "lstm" else (h,)
    _, (after, _) = reference.step(model, (state, ()), x, trace)
    assert not trace.clipped
    like = dequantized(layer, forecaster.layers[0])
    one = rollout.cell(like)
    floats = tuple(v * s for v, s in zip(state, (fp.UNIT_SCALE, 2.0**-layer.cell_bits), strict=False))
    expected, _ = rollout.step_cell(one, floats, x * model.input_scale)
    error = after[0] * fp.UNIT_SCALE - expected
    cell = floats[1] if kind == "lstm" else floats[0]
    assert (np.abs(error) <= derived_error(layer, like, floats[0], cell)).all()
    assert np.sqrt(np.mean(error**2)) < 2e-4  # 5 * 2^-14 / sqrt(6) in z, the cell state's 2^-11 and less
    assert abs(error.mean()) < 2e-5


@pytest.mark.parametrize("activation", ["linear", "relu", "tanh", "sigmoid"])
def test_dense_stays_within_half_a_step_of_float(activation):
    forecaster = random_forecaster("rnn", 9, 2, 3, layers=1, activation=activation)
    model = quantize(forecaster, uniform(forecaster, 8))
    dense = model.layers[1]
    h = samples(300, 9)
    trace = Trace()
    got = reference._dense(dense, h, trace) * dense.output_scale
    exact = (h * fp.UNIT_SCALE) @ dense.kernel.dequantized().T + dense.kernel.bias * dense.kernel.scales * 2.0**-15
    half = dense.kernel.output_scale / 2
    table = TABLE.get(activation, 0)
    assert np.abs(got - rollout.FUNCTIONS[activation](exact)).max() <= half * 1.001 + table


# ---- Traces ----


def test_trace_names_what_was_computed_in_order():
    forecaster = random_forecaster("lstm", 4, 2, 1, layers=1)
    dense = random_dense(2, 2, np.random.default_rng(0), activation="tanh", name="first")
    forecaster = replace(forecaster, layers=(dense, *forecaster.layers))
    model = quantize(forecaster, uniform(forecaster, 8))
    trace = Trace()
    y, state = reference.step(model, reference.zero_state(model), samples(2), trace)
    assert [entry[:2] for entry in trace.values] == [
        ("first", "output"),
        *(("lstm_0", f"gate {gate}") for gate in "ifco"),
        ("lstm_0", "cell_state"),
        ("lstm_0", "hidden_state"),
        ("dense", "output"),
    ]
    assert np.array_equal(trace.values[-1][2], y)
    assert np.array_equal(trace.values[-2][2], state[1][0])


@pytest.mark.parametrize(("kind", "gates"), [("gru", "zrh"), ("gru_reset_before", "zrh"), ("rnn", "h")])
def test_trace_of_other_cells(kind, gates):
    model = integers(kind, layers=1)
    trace = Trace()
    reference.step(model, reference.zero_state(model), samples(3), trace)
    expected = [f"gate {gate}" for gate in gates] + ["hidden_state", "output"]
    assert [what for _, what, _ in trace.values] == expected


@pytest.mark.parametrize("kind", KINDS)
def test_clipped_products_are_counted(kind):
    model = integers(kind, layers=1, gain=40)
    layer, trace = model.layers[0], Trace()
    x, h = samples(50, 3), samples(50, 6)
    state = (h, h) if kind == "lstm" else (h,)
    reference.step(model, (state, ()), x, trace)
    wide = reference.product(layer.kernel, x)
    assert trace.clipped[layer.name, "kernel"] == np.count_nonzero((wide > 32767) | (wide < -32768)) > 0
    assert all(count > 0 for count in trace.clipped.values())


def test_clipped_cell_states_are_counted():
    forecaster = random_forecaster("lstm", 3, 1, 1, layers=1, gain=0)
    open_gates = forecaster.replace_tensor(0, "bias", np.array([[9.9], [9.9], [9.9], [0]]) * np.ones(3))
    first, dense = observe(forecaster)
    model = quantize(open_gates, uniform(forecaster, 8), observations=(replace(first, cell_peak=1.0), dense))
    assert model.layers[0].cell_bits == 11
    trace, state = Trace(), reference.zero_state(model)
    for _ in range(20):  # c grows by almost 1 a step, up to 16
        _, state = reference.step(model, state, np.zeros(1, np.int64), trace)
    assert state[0][1].tolist() == [32767] * 3
    assert trace.clipped == {("lstm_0", "cell_state"): 3 * 4}


def test_one_unit_one_input():
    model = integers("lstm", 1, 1, 1)
    y, state = reference.run(model, reference.zero_state(model), samples(5, 1))
    assert y.shape == (5, 1)
    assert [len(one) for one in state] == [2, 2, 0]
