"""Starting states made without data: families, burn-in, and what is left out."""

from dataclasses import replace

import numpy as np
import pytest
from compositions import FEATURES, STEPS, STREAMING, WINDOWED
from models import KINDS, random_forecaster
from whole import forecaster_of

from edgetqs.errors import BadInput
from edgetqs.model import Channel, Dense, Feedback, Forecaster, SimpleRnn, frozen
from edgetqs.rollout import closed_loop, run, zero_state
from edgetqs.trajectories import COLLAPSED, FAMILIES, synthesise, synthetic_inputs


def scalar(gain: float, activation: str = "linear", bias: float = 0.0) -> Forecaster:
    """y = activation(gain * x + bias), fed back."""
    cell = SimpleRnn("r", frozen([[[gain]]]), frozen([[[0.0]]]), frozen([[bias]]), activation)
    head = Dense("d", frozen([[[1.0]]]), frozen([[0.0]]))
    return Forecaster("m", (cell, head), (Channel("x"),), (Channel("y"),), 16, Feedback(((0, 0),)))


def inputs(count: int = 30, length: int = 400, features: int = 2, bound: float = 8.0) -> np.ndarray:
    return synthetic_inputs(features, count, length, bound, np.random.default_rng(0))


def test_same_seed_same_trajectories():
    forecaster = random_forecaster("lstm", 5, 3, 1)
    first, second, other = (synthesise(forecaster, 12, seed=seed) for seed in (3, 3, 4))
    for name in ("burn_in", "x", "y", "future", "reference", "spread"):
        assert np.array_equal(getattr(first, name), getattr(second, name))
    assert not np.array_equal(first.x, other.x)


def test_there_are_three_families():
    assert len(FAMILIES) == 3
    assert inputs().shape == (30, 400, 2)


def test_autoregressive_noise_is_stationary_and_remembers():
    noise = inputs(300, 2000, 1)[0::3, :, 0]
    assert np.sqrt(np.mean(noise**2)) == pytest.approx(1, abs=0.1)
    lag = np.array([np.corrcoef(one[:-1], one[1:])[0, 1] for one in noise])
    for memory in (0.7, 0.95, 0.99):
        assert (np.abs(lag - memory) < 0.05).any()
    assert lag.min() > 0.6


def test_sinusoids_are_sinusoids():
    for wave in np.concatenate(list(np.moveaxis(inputs()[1::3], -1, 0))):
        past, now, following = wave[:-2], wave[1:-1], wave[2:]
        design = np.stack([now, np.ones_like(now)], axis=1)
        solution = np.linalg.lstsq(design, past + following, rcond=None)[0]
        assert np.abs(past + following - design @ solution).max() < 1e-9
        assert 6 <= 2 * np.pi / np.arccos(solution[0] / 2) <= 200


def test_steps_hold_their_level():
    steps = inputs()[2::3]
    moved = np.diff(steps, axis=1) != 0
    assert 1 / 32 < moved.mean() < 1 / 8
    assert steps.std() == pytest.approx(1, abs=0.2)


def test_inputs_stay_in_range():
    assert np.abs(inputs(bound=0.5)).max() == 0.5


def test_the_first_half_starts_where_the_history_ends():
    forecaster = random_forecaster("gru", 5, 3, 1)
    start = synthesise(forecaster, 10, count=12)
    assert start.burn_in.shape == (12, 24, 3)
    assert start.future.shape == (12, 10, 3)
    outputs, state = run(start.stack, zero_state(start.stack, (12,)), start.burn_in)
    early = slice(0, 6)
    np.testing.assert_allclose(start.state[0][0][early], state[0][0][early], rtol=0, atol=1e-15)
    assert np.array_equal(start.x[early], start.burn_in[early, -1])
    np.testing.assert_allclose(start.y[early], outputs[early, -1], rtol=0, atol=1e-15)


def test_the_second_half_has_run_closed_for_the_horizon():
    forecaster = random_forecaster("lstm", 5, 3, 3, gain=2)  # all inputs are fed back, nothing is known ahead
    start = synthesise(forecaster, 10, count=12)
    assert len(start.x) == 12
    late = slice(6, 12)
    outputs, state = run(start.stack, zero_state(start.stack, (12,)), start.burn_in)
    ahead, state = closed_loop(forecaster, start.stack, state, start.burn_in[:, -1], outputs[:, -1], 11)
    np.testing.assert_allclose(start.y[late], ahead[late, -1], rtol=0, atol=1e-14)
    np.testing.assert_allclose(start.state[1][0][late], state[1][0][late], rtol=0, atol=1e-14)
    np.testing.assert_allclose(start.x[late], ahead[late, -2], rtol=0, atol=1e-14)


@pytest.mark.parametrize("kind", KINDS)
def test_reference_is_the_closed_loop_and_spread_its_deviation(kind):
    forecaster = random_forecaster(kind, 5, 3, 2)
    start = synthesise(forecaster, 10)
    expected, _ = closed_loop(forecaster, start.stack, start.state, start.x, start.y, 10, start.future)
    np.testing.assert_allclose(start.reference, expected, rtol=0, atol=1e-14)
    np.testing.assert_allclose(start.spread, expected.reshape(-1, 2).std(axis=0))


def test_short_windows_still_burn_in():
    assert synthesise(random_forecaster("rnn", 3, 2, 1, window=3), 5).burn_in.shape[1] == 16


def test_direct_model_runs_over_the_window_from_reset():
    forecaster = random_forecaster("lstm", 5, 2, 3, feedback=False)
    start = synthesise(forecaster, 14, count=9)
    assert start.burn_in.shape == (9, 0, 2)
    assert start.future.shape == (9, 14, 2)
    assert not any(part.any() for one in start.state for part in one)
    expected, _ = run(start.stack, zero_state(start.stack, (9,)), start.future)
    assert np.array_equal(start.reference, expected)


def test_collapsed_and_diverged_are_dropped_and_counted():
    # Above 0 an output grows by half a step; below 0 it is 0 for good.
    start = synthesise(scalar(1.5, "relu"), 8, count=48)
    alive = len(start.reference)
    assert alive >= 4
    assert start.collapsed > 0
    assert start.diverged > 0
    assert alive + start.collapsed + start.diverged == 48
    assert len(start.burn_in) == len(start.x) == len(start.state[0][0]) == len(start.future) == alive
    assert np.abs(start.reference).max() < 4 * 8
    assert (start.reference.std(axis=1) > COLLAPSED).all()


def test_a_forecaster_that_settles_everywhere_is_kept():
    start = synthesise(scalar(0.0, bias=0.5), 8, count=12)
    assert (len(start.reference), start.collapsed, start.diverged) == (12, 12, 0)
    assert start.spread.tolist() == [COLLAPSED]


def test_divergence_everywhere_is_refused():
    with pytest.raises(BadInput, match="12 of 12 rollouts diverge"):
        synthesise(scalar(4.0, bias=1.0), 24, count=12)


def test_overflow_counts_as_divergence():
    with np.errstate(over="ignore", invalid="ignore"), pytest.raises(BadInput, match="diverge"):
        synthesise(scalar(1e30, bias=1.0), 24, count=12)


def test_outputs_that_are_not_fed_back_may_be_large():
    forecaster = random_forecaster("rnn", 4, 2, 2)
    forecaster = replace(forecaster, feedback=Feedback(((0, 0),)))
    large = forecaster.layers[-1].kernel * np.array([[[1], [1000]]])
    start = synthesise(forecaster.replace_tensor(2, "kernel", large), 8)
    assert start.diverged == 0
    assert start.spread[1] > 100


@pytest.mark.parametrize("name", ["flatten", "decoder"])
def test_direct_forecasters_with_frames_hear_their_lead(name):
    """The trajectory begins where the window is full."""
    forecaster = forecaster_of({**STREAMING, **WINDOWED}[name], STEPS, FEATURES)
    start = synthesise(forecaster, forecaster.trajectory, count=6)
    assert start.burn_in.shape[1] == forecaster.lead > 0
    series = np.concatenate([start.burn_in, start.future], axis=1)
    outputs, _ = run(start.stack, zero_state(start.stack, (len(series),)), series)
    np.testing.assert_allclose(start.reference, outputs[:, forecaster.lead :], atol=1e-12)


def test_float32():
    start = synthesise(random_forecaster("lstm", 4, 2, 1), 6, dtype=np.float32)
    assert {start.burn_in.dtype, start.x.dtype, start.y.dtype, start.reference.dtype} == {np.dtype(np.float32)}
