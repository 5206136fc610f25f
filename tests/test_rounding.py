"""Rounding a matrix: nearest, clipped scales, and errors made up for along trajectories."""

from dataclasses import replace

import numpy as np
import pytest
from models import KINDS, random_forecaster, uniform

from edgetqs import distill
from edgetqs.bptt import Tape
from edgetqs.distill import dequantized, learn
from edgetqs.model import Forecaster
from edgetqs.quantizer import quantize
from edgetqs.rollout import cells, closed_loop, run, zero_state
from edgetqs.rounding import CLIPS, clip_scales, damped, limit, nearest, trajectory

ROWS, COLUMNS = 12, 10


def second_moments(x: np.ndarray) -> np.ndarray:
    extended = np.concatenate([x, np.ones((len(x), 1))], axis=1)
    return extended.T @ extended / len(x)


def case(seed: int, width: int, mean: float = 0.5):
    """Weights, bias, scales, limits and the moments of correlated inputs with a mean."""
    rng = np.random.default_rng(seed)
    weights, bias = rng.normal(size=(ROWS, COLUMNS)), rng.normal(size=ROWS)
    x = rng.normal(size=(500, COLUMNS)) @ rng.normal(size=(COLUMNS, COLUMNS)) + mean * rng.normal(size=COLUMNS)
    limits = np.full(ROWS, float(limit(width)))
    return weights, bias, np.abs(weights).max(axis=1) / limits, limits, second_moments(x)


def cost(weights, bias, scales, moments, integers, corrected) -> np.ndarray:
    """Mean squared error of each row's product along the inputs."""
    error = np.concatenate([integers * scales[:, None] - weights, (corrected - bias)[:, None]], axis=1)
    return np.einsum("rk,kl,rl->r", error, moments, error)


@pytest.mark.parametrize(("width", "expected"), [(4, 7), (8, 127)])
def test_limit_is_symmetric(width, expected):
    assert limit(width) == expected


def test_nearest():
    weights = np.array([[0.49, 0.5, 1.5, -2.5, 100, -100]])
    assert nearest(weights, np.ones(1), np.array([7.0])).tolist() == [[0, 0, 2, -2, 7, -7]]


@pytest.mark.parametrize("width", [4, 8])
@pytest.mark.parametrize("seed", range(8))
def test_trajectory_beats_nearest_along_the_inputs(seed, width):
    weights, bias, scales, limits, moments = case(seed, width)
    plain = cost(weights, bias, scales, moments, nearest(weights, scales, limits), bias)
    careful = cost(weights, bias, scales, moments, *trajectory(weights, bias, scales, limits, moments))
    assert careful.sum() < 0.7 * plain.sum()


@pytest.mark.parametrize("width", [4, 8])
def test_each_column_is_rounded_where_the_errors_before_it_cost_least(width):
    weights, bias, scales, limits, moments = case(9, width)
    integers, corrected = trajectory(weights, bias, scales, limits, moments)
    metric = damped(moments)
    error = np.concatenate([integers * scales[:, None] - weights, np.zeros((ROWS, 1))], axis=1)
    done: list[int] = []
    for column in [*np.argsort(-np.diag(metric)[:-1]), COLUMNS]:
        rest = [k for k in range(COLUMNS + 1) if k not in done]
        best = -error[:, done] @ metric[np.ix_(done, rest)] @ np.linalg.inv(metric[np.ix_(rest, rest)])
        moved = best[:, rest.index(column)]
        if column == COLUMNS:
            np.testing.assert_allclose(corrected, bias + moved, rtol=1e-9)
        else:
            wanted = np.clip(np.rint((weights[:, column] + moved) / scales), -limits, limits)
            assert np.array_equal(integers[:, column], wanted)
        done.append(column)


def test_trajectory_is_nearest_for_unrelated_inputs_of_mean_zero():
    weights, bias, scales, limits, _ = case(0, 4)
    integers, corrected = trajectory(weights, bias, scales, limits, np.eye(COLUMNS + 1))
    assert np.array_equal(integers, nearest(weights, scales, limits))
    assert np.array_equal(corrected, bias)


@pytest.mark.parametrize("width", [4, 8])
def test_trajectory_keeps_representable_weights(width):
    _, bias, _, limits, moments = case(1, width)
    exact = np.random.default_rng(2).integers(-limit(width), limit(width) + 1, (ROWS, COLUMNS))
    scales = np.linspace(0.01, 0.3, ROWS)
    integers, corrected = trajectory(exact * scales[:, None], bias, scales, limits, moments)
    assert np.array_equal(integers, exact)
    assert np.array_equal(corrected, bias)


@pytest.mark.parametrize("clip", [1.0, 0.3])
@pytest.mark.parametrize("width", [4, 8])
def test_trajectory_respects_limits(width, clip):
    weights, bias, scales, limits, moments = case(3, width)
    integers, _ = trajectory(weights, bias, clip * scales, limits, moments)
    assert np.abs(integers).max() <= limit(width)


@pytest.mark.parametrize("clip", [1.0, 0.5])
def test_bias_takes_the_mean_error(clip):
    weights, bias, scales, limits, moments = case(4, 4, mean=3.0)
    scales = clip * scales
    integers, corrected = trajectory(weights, bias, scales, limits, moments)
    mean_error = (integers * scales[:, None] - weights) @ moments[:-1, -1]
    assert np.abs(mean_error).max() > 0.1
    # 1e-9 is what damping adds to the constant's moment of 1.
    np.testing.assert_allclose(corrected - bias, -mean_error, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("moments", [np.zeros((COLUMNS + 1,) * 2), np.diag([0.0] * COLUMNS + [1.0])])
def test_inputs_that_are_always_zero_leave_nearest_rounding(moments):
    weights, bias, scales, limits, _ = case(5, 4)
    integers, corrected = trajectory(weights, bias, scales, limits, moments)
    assert np.array_equal(integers, nearest(weights, scales, limits))
    assert np.array_equal(corrected, bias)
    assert np.isfinite(clip_scales(weights, scales, limits, moments)).all()


def test_dead_input_among_others_is_harmless():
    weights, bias, scales, limits, moments = case(6, 4)
    moments[3, :] = moments[:, 3] = 0
    integers, corrected = trajectory(weights, bias, scales, limits, moments)
    assert np.array_equal(integers[:, 3], nearest(weights, scales, limits)[:, 3])
    assert np.isfinite(corrected).all()


@pytest.mark.parametrize("width", [4, 8])
def test_clip_scales_never_err_more_than_the_full_scale(width):
    weights, bias, scales, limits, moments = case(7, width)
    weights[:, 0] *= 4  # an outlier that is worth clipping
    scales = np.abs(weights).max(axis=1) / limits
    clipped = clip_scales(weights, scales, limits, moments)

    def centred(scales):
        error = nearest(weights, scales, limits) * scales[:, None] - weights
        return cost(weights, bias, scales, moments, nearest(weights, scales, limits), bias - error @ moments[:-1, -1])

    ratio = clipped / scales
    assert np.isclose(ratio[:, None], CLIPS).any(axis=1).all()
    damping = 0.01 * np.trace(moments[:-1, :-1]) / COLUMNS * np.sum(weights**2, axis=1)
    assert (centred(clipped) <= centred(scales) + damping).all()
    if width == 4:
        assert (ratio < 1).any()


# ---- Learned rounding ----


def forecast(forecaster: Forecaster, stack, history: np.ndarray, future: np.ndarray) -> np.ndarray:
    y, state = run(stack, zero_state(stack, (len(history),)), history)
    if forecaster.feedback.pairs:
        y, _ = closed_loop(forecaster, stack, state, history[:, -1], y[:, -1], future.shape[1], future)
    return y


@pytest.mark.parametrize("feedback", [True, False])
@pytest.mark.parametrize(
    ("kind", "options"),
    [(kind, {}) for kind in KINDS]
    + [("lstm", {"gate": "hard_sigmoid_keras2"}), ("gru", {"activation": "tanh"}), ("gru", {"scaled": True})],
)
def test_gradients_equal_finite_differences_of_the_rollout(kind, options, feedback):
    forecaster = random_forecaster(kind, 3, 3, 2, feedback=feedback, **options)
    rng = np.random.default_rng(0)
    history, future = rng.normal(size=(4, 5, 3)), rng.normal(size=(4, 6, 3))
    stack = cells(forecaster)
    tape = Tape(forecaster, stack)
    outputs = tape.forecast(history, future)
    np.testing.assert_allclose(outputs, forecast(forecaster, stack, history, future), rtol=0, atol=1e-13)
    weight = rng.normal(size=outputs.shape)
    gradients = tape.backward(weight)
    names = {(k, name) for k, layer in enumerate(forecaster.layers) for name in (*layer.tensors, "bias")}
    assert names <= set(gradients)
    for (index, name), gradient in gradients.items():
        values = getattr(stack[index], name)  # ([inputs,] gates * units)
        assert gradient.shape == getattr(forecaster.layers[index], name).shape
        if kind == "gru_reset_before" and name == "recurrent_bias":
            continue
        direction = rng.normal(size=values.shape)
        sides = []
        for step in (1e-6, -1e-6):
            moved = replace(stack[index], **{name: values + step * direction})
            sides.append(
                np.sum(weight * forecast(forecaster, (*stack[:index], moved, *stack[index + 1 :]), history, future))
            )
        along = np.sum(gradient * direction.T.reshape(gradient.shape))
        assert along == pytest.approx((sides[0] - sides[1]) / 2e-6, rel=1e-6, abs=1e-7)


def test_learning_is_never_worse_and_repeatable(monkeypatch):
    monkeypatch.setattr(distill, "STEPS", 20)
    forecaster = random_forecaster("gru", 4, 2, 1, layers=1)
    model = quantize(forecaster, uniform(forecaster, 4), "trajectory")
    student = dequantized(forecaster, model)
    grids = {
        (index, tensor): distill.Grid(
            matrix.scales.astype(float).reshape(len(matrix.widths), -1),
            np.full((len(matrix.widths), matrix.gate_rows), 7.0),
        )
        for index, tensor, matrix in model.matrices()
    }
    first, second = (learn(forecaster, student, grids) for _ in range(2))
    for a, b in zip(first.layers, second.layers, strict=True):
        assert np.array_equal(a.kernel, b.kernel)
        assert np.array_equal(a.bias, b.bias)
    held_out = distill._Lesson.of(forecaster, 24, distill.HELD_OUT, 4)
    assert held_out.error(first) <= held_out.error(student)
    for (index, tensor), grid in grids.items():
        integers = getattr(first.layers[index], tensor) / grid.scales[..., None]
        np.testing.assert_allclose(integers, np.rint(integers), atol=1e-9)
        assert np.abs(integers).max() <= 7 + 1e-9
