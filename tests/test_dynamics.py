"""Lyapunov exponents: systems whose exponents are known."""

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from models import random_forecaster
from rich.console import Console

from edgetqs import show
from edgetqs.dynamics import WARM_UP, _exponents, dynamics
from edgetqs.model import Channel, Dense, Feedback, Forecaster, SimpleRnn, frozen
from edgetqs.project import load_project
from edgetqs.rollout import cells, step
from edgetqs.tqs import score
from edgetqs.trajectories import synthesise


def linear(recurrent: np.ndarray, kernel: np.ndarray, readout: np.ndarray) -> Forecaster:
    """h' = R h + K x, y = C h', fed back."""
    units, inputs = kernel.shape
    zeros = np.zeros((1, units))
    layers = (
        SimpleRnn("rnn", frozen(kernel[None]), frozen(recurrent[None]), frozen(zeros), activation="linear"),
        Dense("dense", frozen(readout[None]), frozen(np.zeros((1, len(readout))))),
    )
    channels = tuple(Channel(f"x{k}") for k in range(inputs))
    outputs = tuple(Channel(f"y{k}") for k in range(len(readout)))
    return Forecaster("linear", layers, channels, outputs, 16, Feedback(((0, 0),)))


def test_step_map_of_a_linear_system():
    forecaster = linear(np.diag([0.9, 0.5]), np.array([[0.1], [0.1]]), np.array([[0.3, 0.1]]))
    found = dynamics(forecaster, 400).step_map
    np.testing.assert_allclose(found.mean[:2], np.log([0.9, 0.5]), atol=0.02)


def test_closed_loop_of_a_linear_system():
    recurrent, kernel, readout = np.diag([0.9, 0.5]), np.array([[0.2], [0.1]]), np.array([[0.3, 0.1]])
    forecaster = linear(recurrent, kernel, readout)
    found = dynamics(forecaster, 400).closed_loop
    # The state h alone decides: h' = (R + K C) h, and y adds a direction that is forgotten at once.
    wanted = np.sort(np.log(np.abs(np.linalg.eigvals(recurrent + kernel @ readout))))[::-1]
    assert found is not None
    np.testing.assert_allclose(found.mean[:2], wanted, atol=0.02)


def test_contracting_models_have_negative_exponents_and_chaotic_ones_positive():
    calm = random_forecaster("rnn", 16, 2, 1, gain=0.5)
    wild = random_forecaster("rnn", 16, 2, 1, gain=3.0)
    assert dynamics(calm, 50).step_map.mean[0] < 0 < dynamics(wild, 50).step_map.mean[0]


@pytest.mark.parametrize("kind", ["lstm", "gru", "gru_reset_before"])
def test_exponents_are_ordered_and_repeatable(kind):
    forecaster = random_forecaster(kind, 5, 3, 2)
    first, second = dynamics(forecaster, 30), dynamics(forecaster, 30)
    assert first == second
    assert list(first.step_map.mean) == sorted(first.step_map.mean, reverse=True)
    assert first.closed_loop is not None


def test_direct_forecasters_have_a_step_map_only():
    found = dynamics(random_forecaster("gru", 4, 2, 3, feedback=False))
    assert found.closed_loop is None
    assert np.isfinite(found.step_map.mean).all()


def test_the_largest_exponent_is_what_two_close_rollouts_show():
    forecaster = random_forecaster("rnn", 12, 2, 1, gain=2.0, layers=1)
    steps, size = 60, 1e-9
    start = synthesise(forecaster, WARM_UP + steps + 1, count=24, seed=0)
    found = _exponents(forecaster, start, steps, False, 0)
    stack = cells(forecaster)
    rng = np.random.default_rng(1)
    growth = []
    state = start.state
    beside = tuple(tuple(v + size * rng.standard_normal(v.shape) for v in own) for own in state)
    for k in range(WARM_UP + steps):
        x = start.future[:, k]
        _, state = step(stack, state, x)
        _, beside = step(stack, beside, x)
        off = beside[0][0] - state[0][0]
        length = np.linalg.norm(off, axis=1, keepdims=True)
        growth.append(np.log(length / (size if k else size * np.sqrt(12))).mean())
        beside = ((state[0][0] + size * off / length,), *beside[1:])
    assert found.mean[0] == pytest.approx(np.mean(growth[WARM_UP:]), abs=0.05)


def test_replacing_weights_changes_the_exponents():
    forecaster = random_forecaster("rnn", 6, 2, 1)
    other = replace(forecaster, layers=random_forecaster("rnn", 6, 2, 1, seed=5).layers)
    assert dynamics(forecaster) != dynamics(other)


def shown(name: str, horizon: int) -> str:
    """What `score` prints of a model of the suite."""
    folder = Path(__file__).resolve().parents[1] / "bench" / "models"
    forecaster = load_project(folder / f"{name}.keras", folder / f"{name[:-2]}.toml").forecaster
    found, text = dynamics(forecaster, horizon), io.StringIO()
    scores = score(forecaster, horizon, "layer", trajectories=8)
    show.score(Console(file=text), scores, found)
    assert show.score_table(scores, found)["chaotic"] is found.chaotic
    return text.getvalue()


@pytest.mark.parametrize("name", ["lorenz-1", "lorenz-2"])
def test_chaos_is_flagged(name):
    assert "chaotic: TQS" in shown(name, 24)
    assert "chaotic" not in shown(name, 2)  # too few steps for anything to grow


@pytest.mark.parametrize("name", ["weather-1", "glucose-2", "sst-1", "tide-1", "oscillator-1", "flow-1"])
def test_sensor_models_are_not_chaotic(name):
    assert "chaotic" not in shown(name, 24)


@pytest.mark.parametrize("seed", [1, 2])
def test_a_model_of_the_lorenz_system_has_learned_its_exponent(seed):
    folder = Path(__file__).resolve().parents[1] / "bench" / "models"
    project = load_project(folder / f"lorenz-{seed}.keras", folder / "lorenz.toml")
    found = dynamics(project.forecaster, 100).closed_loop
    assert found is not None
    assert found.mean[0] == pytest.approx(0.906 * 0.08, rel=0.25)
