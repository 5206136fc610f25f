"""Rounding rows: nearest, clipped scales, and errors made up for in the metric of the rollout."""

from dataclasses import replace

import numpy as np
import pytest
from models import KINDS, random_forecaster, uniform

from edgetqs import distill
from edgetqs.bptt import Tape
from edgetqs.distill import dequantized, learn
from edgetqs.lesson import Lesson, forecast
from edgetqs.quantizer import quantize
from edgetqs.rollout import cells
from edgetqs.rounding import CLIPS, along, clip_scales, damped, limit, nearest, without_free

ROWS, COLUMNS, FREE = 12, 10, 2


def case(seed: int, width: int):
    """Weights, free columns, scales, limits and a metric for each row."""
    rng = np.random.default_rng(seed)
    weights, free = rng.normal(size=(ROWS, COLUMNS)), rng.normal(size=(ROWS, FREE))
    factors = rng.normal(size=(ROWS, 40, COLUMNS + FREE)) @ rng.normal(size=(COLUMNS + FREE, COLUMNS + FREE))
    scales = np.repeat(np.abs(weights).max(axis=1, keepdims=True) / limit(width), COLUMNS, axis=1)
    return weights, free, scales, np.full((ROWS, COLUMNS), float(limit(width))), factors.swapaxes(1, 2) @ factors / 40


def cost(weights, free, scales, metric, integers, corrected) -> np.ndarray:
    """e^T M e of each row."""
    error = np.concatenate([integers * scales - weights, corrected - free], axis=1)
    return np.einsum("rk,rkl,rl->r", error, np.broadcast_to(metric, (len(error), *metric.shape[1:])), error)


def plainly(weights, scales, limits):
    return nearest(weights, scales[:, 0], limits[:, 0])


@pytest.mark.parametrize(("width", "expected"), [(4, 7), (8, 127)])
def test_limit_is_symmetric(width, expected):
    assert limit(width) == expected


def test_nearest():
    weights = np.array([[0.49, 0.5, 1.5, -2.5, 100, -100]])
    assert nearest(weights, np.ones(1), np.array([7.0])).tolist() == [[0, 0, 2, -2, 7, -7]]


@pytest.mark.parametrize("width", [4, 8])
def test_rounding_along_costs_less_than_nearest(width):
    plain = careful = 0.0
    for seed in range(8):
        weights, free, scales, limits, metric = case(seed, width)
        plain += cost(weights, free, scales, metric, plainly(weights, scales, limits), free).sum()
        careful += cost(weights, free, scales, metric, *along(weights, free, scales, limits, metric)).sum()
    assert careful < 0.7 * plain


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("width", [4, 8])
def test_each_column_is_rounded_where_the_errors_before_it_cost_least(width, shared):
    weights, free, scales, limits, metric = case(9, width)
    metric = metric[:1] if shared else metric
    integers, corrected = along(weights, free, scales, limits, metric)
    error = np.concatenate([integers * scales - weights, corrected - free], axis=1)
    for row in range(ROWS):
        own = metric[0 if shared else row]
        done: list[int] = []
        order = np.argsort(-np.einsum("rii->i", metric)[:COLUMNS], kind="stable")
        for column in [*order, *range(COLUMNS, COLUMNS + FREE)]:
            rest = [k for k in range(COLUMNS + FREE) if k not in done]
            best = -error[row, done] @ own[np.ix_(done, rest)] @ np.linalg.inv(own[np.ix_(rest, rest)])
            moved = best[rest.index(column)]
            if column >= COLUMNS:
                assert corrected[row, column - COLUMNS] == pytest.approx(free[row, column - COLUMNS] + moved)
            else:
                wanted = np.rint((weights[row, column] + moved) / scales[row, column])
                assert integers[row, column] == np.clip(wanted, -limit(width), limit(width))
            done.append(column)


def test_a_metric_without_correlations_leaves_nearest_rounding():
    weights, free, scales, limits, _ = case(0, 4)
    integers, corrected = along(weights, free, scales, limits, np.eye(COLUMNS + FREE)[None])
    assert np.array_equal(integers, plainly(weights, scales, limits))
    assert np.array_equal(corrected, free)


@pytest.mark.parametrize("width", [4, 8])
def test_representable_weights_are_kept(width):
    _, free, _, limits, metric = case(1, width)
    exact = np.random.default_rng(2).integers(-limit(width), limit(width) + 1, (ROWS, COLUMNS))
    scales = np.repeat(np.linspace(0.01, 0.3, ROWS)[:, None], COLUMNS, axis=1)
    integers, corrected = along(exact * scales, free, scales, limits, metric)
    assert np.array_equal(integers, exact)
    np.testing.assert_allclose(corrected, free, atol=1e-12)


@pytest.mark.parametrize("clip", [1.0, 0.3])
@pytest.mark.parametrize("width", [4, 8])
def test_limits_are_respected(width, clip):
    weights, free, scales, limits, metric = case(3, width)
    integers, _ = along(weights, free, clip * scales, limits, metric)
    assert np.abs(integers).max() <= limit(width)


def test_columns_may_have_scales_and_limits_of_their_own():
    weights, free, scales, limits, metric = case(4, 4)
    scales[:, 5:] *= 7 / 127
    limits[:, 5:] = 127
    mixed = cost(weights, free, scales, metric, *along(weights, free, scales, limits, metric)).sum()
    coarse = case(4, 4)
    assert mixed < 0.8 * cost(*coarse[:3], metric, *along(*coarse)).sum()


@pytest.mark.parametrize("metric", [np.zeros((COLUMNS + FREE,) * 2), np.diag([0.0] * COLUMNS + [1.0] * FREE)])
def test_rows_that_the_rollout_never_feels_are_rounded_to_nearest(metric):
    weights, free, scales, limits, _ = case(5, 4)
    raised = damped(metric[None], FREE, 0.01)
    integers, corrected = along(weights, free, scales, limits, raised)
    assert np.array_equal(integers, plainly(weights, scales, limits))
    assert np.array_equal(corrected, free)
    own = without_free(raised, slice(0, COLUMNS), FREE)
    assert np.isfinite(clip_scales(weights, scales[:, 0], limits[:, 0], own)).all()


def test_damping_raises_weights_by_their_mean_and_free_columns_by_next_to_nothing():
    metric = case(6, 4)[4]
    raised = damped(metric, FREE, 0.5) - metric
    mean = np.einsum("rii->ri", metric)[:, :COLUMNS].mean(axis=1)
    for row in range(ROWS):
        np.testing.assert_allclose(np.diag(raised[row])[:COLUMNS], 0.5 * mean[row])
        assert 0 < np.diag(raised[row])[COLUMNS:].max() < 1e-4 * mean[row]
        assert np.count_nonzero(raised[row] - np.diag(np.diag(raised[row]))) == 0


def test_without_free_is_the_least_cost_over_the_free_columns():
    metric = case(7, 4)[4]
    own = without_free(metric, slice(0, COLUMNS), FREE)
    error = np.random.default_rng(0).normal(size=(ROWS, COLUMNS))
    for row in range(ROWS):
        best = -np.linalg.solve(metric[row, COLUMNS:, COLUMNS:], metric[row, COLUMNS:, :COLUMNS] @ error[row])
        whole = np.concatenate([error[row], best])
        assert error[row] @ own[row] @ error[row] == pytest.approx(whole @ metric[row] @ whole)


@pytest.mark.parametrize("width", [4, 8])
def test_clip_scales_never_err_more_than_the_full_scale(width):
    weights, _, _, limits, metric = case(7, width)
    weights[:, 0] *= 4  # an outlier that is worth clipping
    metric = metric[:, :COLUMNS, :COLUMNS]
    scales = np.abs(weights).max(axis=1) / limits[:, 0]
    clipped = clip_scales(weights, scales, limits[:, 0], metric)

    def error(scales):
        off = nearest(weights, scales, limits[:, 0]) * scales[:, None] - weights
        return np.einsum("rk,rkl,rl->r", off, metric, off)

    ratio = clipped / scales
    assert np.isclose(ratio[:, None], CLIPS).any(axis=1).all()
    assert (error(clipped) <= error(scales) * (1 + 1e-9)).all()
    if width == 4:
        assert (ratio < 1).any()


# ---- Learned rounding ----


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
    held_out = Lesson.of(forecaster, 24, distill.HELD_OUT, 4)
    assert held_out.error(first) <= held_out.error(student)
    for (index, tensor), grid in grids.items():
        integers = getattr(first.layers[index], tensor) / grid.scales[..., None]
        np.testing.assert_allclose(integers, np.rint(integers), atol=1e-9)
        assert np.abs(integers).max() <= 7 + 1e-9
