"""Float simulation: hand-computed cells, whole windows, closed loops, leading axes."""

import math
from dataclasses import replace

import numpy as np
import pytest
from models import KINDS, random_forecaster, random_layer
from whole import whole

from edgetqs.errors import BadInput
from edgetqs.model import (
    Channel,
    Feedback,
    Forecaster,
    Gru,
    Lstm,
    SimpleRnn,
    frozen,
)
from edgetqs.rollout import (
    FUNCTIONS,
    cell,
    cells,
    closed_loop,
    next_input,
    normalise,
    physical,
    run,
    side_by_side,
    step,
    step_cell,
    window,
    zero_state,
)


def column(*values: float) -> np.ndarray:
    """One value a gate, for one unit and one input."""
    return frozen(np.array(values)[:, None, None])


def row(*values: float) -> np.ndarray:
    return frozen(np.array(values)[:, None])


def logistic(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def model(*layers: object, inputs: int = 2, outputs: int = 1, **options: object) -> Forecaster:
    def channels(letter: str, count: int) -> tuple[Channel, ...]:
        return tuple(Channel(f"{letter}{k}") for k in range(count))

    return Forecaster("m", layers, channels("x", inputs), channels("y", outputs), 5, **options)


def one_step(layer: object, x: float, *state: float) -> tuple[float, ...]:
    _, after = step_cell(cell(layer), tuple(np.array([[value]]) for value in state), np.array([[x]]))
    return tuple(float(value[0, 0]) for value in after)


def test_lstm_by_hand():
    layer = Lstm("l", column(0.5, -0.25, 1, 2), column(1, 0.5, -1, 0.25), row(0.125, 1, 0, -0.5))
    x, h, c = 0.75, -0.5, 1.5
    i = logistic(0.5 * x + 1 * h + 0.125)
    f = logistic(-0.25 * x + 0.5 * h + 1)
    new = math.tanh(1 * x - 1 * h)
    o = logistic(2 * x + 0.25 * h - 0.5)
    expected_c = f * c + i * new
    assert one_step(layer, x, h, c) == pytest.approx((o * math.tanh(expected_c), expected_c), abs=1e-14)


@pytest.mark.parametrize("reset_after", [True, False])
def test_gru_by_hand(reset_after):
    inner = row(0.25, -0.5, 0.75) if reset_after else row(0, 0, 0)
    layer = Gru("g", column(1, -2, 0.5), column(0.5, 1.5, -1), row(0.125, 0, -0.25), inner, reset_after=reset_after)
    x, h = 0.5, -0.75
    z = logistic(1 * x + 0.125 + 0.5 * h + inner[0, 0])
    r = logistic(-2 * x + 1.5 * h + inner[1, 0])
    recurrent = r * (-1 * h + 0.75) if reset_after else -1 * (r * h)
    new = math.tanh(0.5 * x - 0.25 + recurrent)
    assert one_step(layer, x, h) == pytest.approx((z * h + (1 - z) * new,), abs=1e-14)


def test_rnn_by_hand():
    layer = SimpleRnn("r", column(0.5), column(-0.75), row(0.25))
    assert one_step(layer, 0.5, -0.25) == pytest.approx((math.tanh(0.25 + 0.1875 + 0.25),), abs=1e-15)


@pytest.mark.parametrize(
    ("name", "x", "expected"),
    [
        ("linear", -3, -3),
        ("relu", -3, 0),
        ("relu", 2, 2),
        ("tanh", 0.5, math.tanh(0.5)),
        ("sigmoid", 0.5, 1 / (1 + math.exp(-0.5))),
        ("sigmoid", -800, 0),
        ("hard_sigmoid_keras2", 1, 0.7),
        ("hard_sigmoid_keras2", 2.6, 1),
        ("hard_sigmoid_keras3", 1, 0.5 + 1 / 6),
        ("hard_sigmoid_keras3", -3.1, 0),
    ],
)
def test_functions(name, x, expected):
    assert FUNCTIONS[name](np.array(float(x))) == pytest.approx(expected, abs=1e-15)


@pytest.mark.parametrize(
    ("kind", "option"),
    [(kind, "activation") for kind in KINDS] + [(kind, "recurrent_activation") for kind in KINDS if kind != "rnn"],
)
def test_cells_use_their_activations(kind, option):
    layer = random_layer(kind, 3, 2, np.random.default_rng(0))
    x = np.ones((1, 4, 2))
    assert not np.allclose(whole(replace(layer, **{option: "hard_sigmoid_keras2"}), x), whole(layer, x))


@pytest.mark.parametrize("sequence", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_a_window_equals_its_steps(kind, sequence):
    forecaster = random_forecaster(kind, 5, 3, 2, sequence=sequence, scaled=True)
    x = np.random.default_rng(0).normal(size=(4, 9, 3))
    stack = cells(forecaster)
    state, outputs = zero_state(stack, (4,)), []
    for t in range(9):
        y, state = step(stack, state, normalise(forecaster, x)[:, t])
        outputs.append(physical(forecaster, y))
    expected = np.stack(outputs, axis=1) if sequence else outputs[-1]
    np.testing.assert_allclose(window(forecaster, x), expected, rtol=0, atol=1e-13)


def test_physical_undoes_normalise():
    forecaster = random_forecaster("rnn", 2, 3, 3, scaled=True)
    same = replace(forecaster, outputs=forecaster.inputs)
    x = np.random.default_rng(0).normal(size=(5, 3))
    np.testing.assert_allclose(physical(same, normalise(same, x)), x, rtol=0, atol=1e-14)
    assert normalise(forecaster, np.array([-2.0, -0.5, 1.0])).tolist() == [0, 0, 0]
    np.testing.assert_allclose(normalise(forecaster, np.array([-1.3, 0.8, 2.9])), 1, atol=1e-14)


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_is_its_parts(kind):
    forecaster = random_forecaster(kind, 4, 2, 1)
    stack, x = cells(forecaster), np.random.default_rng(0).normal(size=(3, 10, 2))
    whole, last = run(stack, zero_state(stack, (3,)), x)
    first, state = run(stack, zero_state(stack, (3,)), x[:, :4])
    second, end = run(stack, state, x[:, 4:])
    assert np.array_equal(whole, np.concatenate([first, second], axis=1))
    assert all(np.array_equal(a, b) for p, q in zip(last, end, strict=True) for a, b in zip(p, q, strict=True))


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_equals_singles(kind):
    forecaster = random_forecaster(kind, 4, 2, 1)
    stack, x = cells(forecaster), np.random.default_rng(0).normal(size=(2, 3, 6, 2))
    together, _ = run(stack, zero_state(stack, (2, 3)), x)
    for index in np.ndindex(2, 3):
        alone, _ = run(stack, zero_state(stack, ()), x[index])
        np.testing.assert_allclose(together[index], alone, rtol=0, atol=1e-14)


@pytest.mark.parametrize("kind", KINDS)
def test_leading_axes_of_weights_are_models_side_by_side(kind):
    forecaster = random_forecaster(kind, 4, 2, 1)
    rng = np.random.default_rng(0)
    factors = rng.uniform(0.5, 1.5, 3)
    base = cells(forecaster)
    first = replace(
        base[0],
        kernel=factors[:, None, None] * base[0].kernel,
        recurrent_kernel=factors[:, None, None] * base[0].recurrent_kernel,
    )
    x, y, future = rng.normal(size=(5, 2)), rng.normal(size=(5, 1)), rng.normal(size=(5, 7, 2))
    start = zero_state(base, (5,))
    together, _ = closed_loop(forecaster, (first, *base[1:]), start, x, y, 7, future)
    assert together.shape == (3, 5, 7, 1)
    for k in range(3):
        alone = replace(first, kernel=first.kernel[k], recurrent_kernel=first.recurrent_kernel[k])
        expected, _ = closed_loop(forecaster, (alone, *base[1:]), start, x, y, 7, future)
        np.testing.assert_allclose(together[k], expected, rtol=0, atol=1e-14)


def test_float32_stays_float32():
    forecaster = random_forecaster("lstm", 4, 2, 1)
    stack = cells(forecaster, np.float32)
    x = np.ones((3, 6, 2), np.float32)
    y, state = run(stack, zero_state(stack, (3,)), x)
    ahead, _ = closed_loop(forecaster, stack, state, x[:, -1], y[:, -1], 4, x)
    assert y.dtype == ahead.dtype == state[0][0].dtype == np.float32


def test_closed_loop_equals_a_loop_by_hand():
    forecaster = random_forecaster("gru", 4, 4, 2, scaled=True)
    assert forecaster.feedback == Feedback(((0, 0), (1, 1)), (3,))
    stack, rng = cells(forecaster), np.random.default_rng(0)
    x, y, future = rng.normal(size=4), rng.normal(size=2), rng.normal(size=(6, 4))
    state = run(stack, zero_state(stack, ()), rng.normal(size=(3, 4)))[1]
    got, last = closed_loop(forecaster, stack, state, x, y, 6, future)
    expected = [y]
    for k in range(5):
        given = (physical(forecaster, y) - [c.mean for c in forecaster.inputs[:2]]) / [
            c.std for c in forecaster.inputs[:2]
        ]
        y, state = step(stack, state, np.array([*given, x[2], future[k, 3]]))
        expected.append(y)
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-13)
    np.testing.assert_allclose(last[0][0], state[0][0], rtol=0, atol=1e-13)


def test_closed_loop_of_one_step_is_the_output_at_hand():
    forecaster = random_forecaster("rnn", 3, 2, 1)
    stack = cells(forecaster)
    start = zero_state(stack, ())
    got, last = closed_loop(forecaster, stack, start, np.zeros(2), np.array([0.5]), 1)
    assert got.tolist() == [[0.5]]
    assert last is start


def test_crossed_feedback_and_held_inputs():
    forecaster = replace(random_forecaster("rnn", 3, 3, 2), feedback=Feedback(((0, 2), (1, 0))))
    assert next_input(forecaster, np.array([1.0, 2, 3]), np.array([7.0, 8]), None).tolist() == [8, 2, 7]


def test_next_input_leaves_its_arguments_alone():
    forecaster = random_forecaster("rnn", 3, 2, 1)
    x = np.array([1.0, 2])
    next_input(forecaster, x, np.array([9.0]), np.array([5.0, 6]))
    assert x.tolist() == [1, 2]


def test_known_inputs_need_their_future():
    forecaster = random_forecaster("rnn", 3, 2, 1)
    with pytest.raises(BadInput, match="future"):
        next_input(forecaster, np.zeros(2), np.zeros(1), None)


@pytest.mark.parametrize("kind", KINDS)
def test_models_side_by_side_do_what_each_does(kind):
    every = [cells(random_forecaster(kind, 5, 3, 2, seed=seed)) for seed in range(3)]
    inputs = np.random.default_rng(0).normal(size=(4, 6, 3))
    together, _ = run(side_by_side(every), zero_state(every[0], (4,)), inputs)
    assert together.shape == (3, 4, 6, 2)
    for stack, outputs in zip(every, together, strict=True):
        np.testing.assert_allclose(outputs, run(stack, zero_state(stack, (4,)), inputs)[0], rtol=1e-12)
