"""The sensitivity score against Jacobians, and what it says about dead, zero and chaotic units."""

from dataclasses import replace

import numpy as np
import pytest
from models import KINDS, random_forecaster

from edgetqs import rollout, tqs
from edgetqs.errors import BadInput
from edgetqs.model import Forecaster
from edgetqs.tqs import Score, score
from edgetqs.trajectories import Trajectories, synthesise
from edgetqs.units import GRANULARITIES, Unit, norm, units

DIRECTIONS = 1500


def jacobian(stack: tuple, unit: Unit, outputs) -> np.ndarray:
    """d outputs(stack) / d each of the unit's weights, by central differences: (weights, ...)."""
    found = []
    for block in unit.blocks:
        own = stack[block.layer]
        matrix = getattr(own, block.tensor)
        width = matrix.shape[1] // len(own.layer.gates)
        for index in np.ndindex(matrix.shape[0], width):
            sides = []
            for step in (1e-6, -1e-6):
                moved = matrix.copy()
                moved[index[0], block.gate * width + index[1]] += step
                changed = [*stack]
                changed[block.layer] = replace(own, **{block.tensor: moved})
                sides.append(outputs(tuple(changed)))
            found.append((sides[0] - sides[1]) / 2e-6)
    return np.array(found)


def expected_score(derivatives: np.ndarray, spread: np.ndarray) -> tuple[float, float]:
    """(mean over unit-norm directions d of the mean of (J d)^2 / spread^2, its standard error over DIRECTIONS)."""
    rows = (derivatives / spread).reshape(len(derivatives), -1)
    gram, n = rows @ rows.T / rows.shape[1], len(rows)
    variance = 2 / (n * (n + 2)) * (np.sum(gram**2) - np.trace(gram) ** 2 / n)
    return np.trace(gram) / n, np.sqrt(max(variance, 0) / DIRECTIONS)


@pytest.fixture
def linear(monkeypatch):
    """Perturbations small enough that only the Jacobian counts; starts are in float64."""
    monkeypatch.setattr(tqs, "EPSILONS", (1e-4,))
    monkeypatch.setattr(tqs, "NOISE", 0)


def tiny(kind: str, **options: object) -> Forecaster:
    return random_forecaster(kind, 2, 2, 1, layers=1, window=6, **options)


def from_reset(forecaster: Forecaster, stack: tuple, start: Trajectories, horizon: int) -> np.ndarray:
    """(B, horizon + 1, outputs): the histories from reset, then the closed loop."""
    history, state = rollout.run(stack, rollout.zero_state(stack, (len(start.x),)), start.burn_in)
    last = start.burn_in[:, -1], history[..., -1, :]
    return rollout.closed_loop(forecaster, stack, state, *last, horizon + 1, start.future)[0]


@pytest.mark.parametrize("burn_in", [True, False])
@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("kind", KINDS)
def test_score_equals_the_squared_jacobian_of_the_rollout(linear, kind, granularity, burn_in):
    forecaster, horizon = tiny(kind), 5
    start = synthesise(forecaster, horizon + 1, count=5, seed=1)
    scores = score(forecaster, horizon, granularity, directions=DIRECTIONS, start=start, perturb_burn_in=burn_in)

    def outputs(stack):
        if burn_in:
            return from_reset(forecaster, stack, start, horizon)
        return rollout.closed_loop(forecaster, stack, start.state, start.x, start.y, horizon + 1, start.future)[0]

    for entry in scores.units:
        derivatives = jacobian(start.stack, entry.unit, outputs)[:, :, 1:]
        value, deviation = expected_score(derivatives, start.spread)
        assert entry.sensitivity == pytest.approx(value, abs=5 * deviation + 1e-6 * value)
        for t in range(horizon):
            value, deviation = expected_score(derivatives[:, :, t], start.spread)
            assert entry.growth[t] == pytest.approx(value, abs=5 * deviation + 1e-6 * value)


@pytest.mark.parametrize("kind", KINDS)
def test_score_of_a_direct_model_follows_the_window(linear, kind):
    forecaster = tiny(kind, feedback=False)
    start = synthesise(forecaster, 6, count=5, seed=1)
    scores = score(forecaster, directions=DIRECTIONS, start=start)
    for entry in scores.units:
        derivatives = jacobian(start.stack, entry.unit, lambda stack: rollout.run(stack, start.state, start.future)[0])
        value, deviation = expected_score(derivatives, start.spread)
        assert entry.sensitivity == pytest.approx(value, abs=5 * deviation + 1e-6 * value)


@pytest.mark.parametrize("kind", KINDS)
def test_local_score_is_one_step_from_the_reference(linear, kind):
    forecaster, horizon = tiny(kind), 5
    start = synthesise(forecaster, horizon + 1, count=5, seed=1)
    scores = score(forecaster, horizon, directions=DIRECTIONS, start=start)

    def outputs(stack):
        history, state = rollout.run(start.stack, rollout.zero_state(start.stack, (5,)), start.burn_in)
        x, y, steps = start.burn_in[:, -1], history[:, -1], []
        for k in range(horizon):
            x = rollout.next_input(forecaster, x, y, start.future[:, k])
            steps.append(rollout.step(stack, state, x)[0])
            y, state = rollout.step(start.stack, state, x)
        return np.stack(steps)

    for entry in scores.units:
        value, deviation = expected_score(jacobian(start.stack, entry.unit, outputs), start.spread)
        assert entry.local == pytest.approx(value, abs=5 * deviation + 1e-6 * value)
        assert entry.amplification == entry.sensitivity / entry.local
        assert entry.tqs**2 == pytest.approx(entry.sensitivity)


def test_one_direction_of_one_weight_is_exact(linear):
    # A unit of one weight has two directions, +1 and -1: no sampling error at all.
    forecaster = random_forecaster("rnn", 1, 1, 1, layers=1)
    start = synthesise(forecaster, 4, count=5)
    scores = score(forecaster, 3, start=start)

    def outputs(stack):
        return from_reset(forecaster, stack, start, 3)

    for entry in scores.units:
        derivatives = jacobian(start.stack, entry.unit, outputs)[:, :, 1:]
        assert entry.sensitivity == pytest.approx(float(np.mean((derivatives / start.spread) ** 2)), rel=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_layers_below_a_unit_need_not_run_again(kind):
    forecaster = random_forecaster(kind, 6, 3, 2, layers=3)
    start = synthesise(forecaster, 4, count=5, dtype=np.float32)
    stack, zero = start.stack, rollout.zero_state(start.stack, (5,))
    history = tqs.History.of(stack, start.burn_in)
    plain, after = rollout.run(stack, zero, start.burn_in)
    np.testing.assert_array_equal(history.output, plain[:, -1])
    assert_same(history.state, after)
    rng = np.random.default_rng(0)
    for granularity in GRANULARITIES:
        for unit in units(forecaster, granularity):
            moved = tqs._perturbed(stack, unit, tqs._directions(forecaster, unit, 3, rng), 0.1)
            whole, state = rollout.run(moved, zero, start.burn_in)
            last, shared = history.again(moved, unit)
            np.testing.assert_array_equal(last, whole[..., -1, :])
            assert_same(shared, state)


def assert_same(one: rollout.State, other: rollout.State) -> None:
    for own, others in zip(one, other, strict=True):
        for a, b in zip(own, others, strict=True):
            np.testing.assert_array_equal(a, b)


def only(scores: Score, name: str) -> tqs.UnitScore:
    return next(entry for entry in scores.units if entry.unit.name == name)


def test_units_that_do_not_reach_the_output_score_zero():
    forecaster = random_forecaster("lstm", 4, 2, 1, feedback=False)
    cut = forecaster.replace_tensor(1, "kernel", np.zeros((4, 4, 4)))
    scores = score(cut, granularity="tensor")
    for tensor in ("kernel", "recurrent_kernel"):
        dead = only(scores, f"lstm_0/{tensor}")
        assert dead.sensitivity == dead.local == dead.amplification == 0
        assert "hardly reaches" in dead.flag
    assert only(scores, "lstm_1/recurrent_kernel").sensitivity > 0


def test_units_of_zeros_are_flagged():
    forecaster = random_forecaster("gru", 4, 2, 1)
    weights = forecaster.layers[0].recurrent_kernel.copy()
    weights[1] = 0
    scores = score(forecaster.replace_tensor(0, "recurrent_kernel", weights))
    assert [entry.unit.name for entry in scores.flagged] == ["gru_0/recurrent_kernel/r"]
    assert scores.flagged[0].flag == "all weights are zero"
    assert (scores.flagged[0].sensitivity, scores.flagged[0].amplification) == (0, 0)


def test_chaos_is_scored_up_to_saturation():
    forecaster = random_forecaster("rnn", 8, 2, 1, gain=4)
    scores = score(forecaster, 24)
    assert 1 <= scores.scored < scores.horizon == 24

    def deviation(entry):
        return np.sqrt(entry.growth) * entry.epsilon * norm(forecaster, entry.unit)

    assert max(deviation(entry)[: scores.scored].max() for entry in scores.units) <= tqs.SATURATED
    assert max(deviation(entry)[scores.scored] for entry in scores.units) > tqs.SATURATED
    for entry in scores.units:
        assert len(entry.growth) == 24
        assert entry.sensitivity == pytest.approx(np.mean(entry.growth[: scores.scored]))
    assert any("no plateau" in entry.flag for entry in scores.units)
    assert max(entry.amplification for entry in scores.units) > 100


def test_calm_models_are_scored_to_the_horizon():
    scores = score(random_forecaster("lstm", 6, 2, 1), 24)
    assert scores.scored == scores.horizon == 24
    assert not scores.flagged
    assert {entry.epsilon for entry in scores.units} == {tqs.EPSILONS[0]}


@pytest.mark.parametrize("kind", KINDS)
def test_same_seed_same_score(kind):
    forecaster = random_forecaster(kind, 5, 2, 1)
    assert score(forecaster, 8) == score(forecaster, 8)
    assert score(forecaster, 8) != score(forecaster, 8, seed=1)


def test_scores_of_other_seeds_agree():
    forecaster = random_forecaster("lstm", 8, 2, 1)
    first, second = (score(forecaster, 12, seed=seed) for seed in (0, 1))
    ranks = [np.argsort(np.argsort([u.sensitivity for u in scores.units])) for scores in (first, second)]
    assert np.corrcoef(*ranks)[0, 1] > 0.8


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_every_unit_is_scored_in_order(granularity):
    forecaster = random_forecaster("gru", 4, 2, 1)
    scores = score(forecaster, 6, granularity)
    assert [entry.unit for entry in scores.units] == list(units(forecaster, granularity))
    assert scores.granularity == granularity


def test_score_is_relative_to_the_spread():
    forecaster = random_forecaster("lstm", 5, 2, 2, feedback=False)
    head = forecaster.layers[-1]
    doubled = forecaster.replace_tensor(2, "kernel", 2 * head.kernel).replace_tensor(2, "bias", 2 * head.bias)
    plain, larger = score(forecaster), score(doubled)
    for before, after in zip(plain.units, larger.units, strict=True):
        factor = 1 / 4 if before.unit.layer == "dense" else 1
        assert after.sensitivity == pytest.approx(factor * before.sensitivity, rel=1e-5)


@pytest.mark.parametrize(("feedback", "steps"), [(True, 9), (False, 24)])
def test_growth_has_one_figure_a_step(feedback, steps):
    scores = score(random_forecaster("rnn", 4, 2, 1, gain=0.5, feedback=feedback), 9)
    assert scores.horizon == scores.scored == steps
    assert all(len(entry.growth) == steps for entry in scores.units)


def test_forward_passes_are_counted():
    scores = score(random_forecaster("rnn", 4, 2, 1), 10, "tensor", directions=3, trajectories=8)
    assert (scores.trajectories, {entry.epsilon for entry in scores.units}) == (8, {1e-2})
    # The reference; then for each of 5 tensors 6 directions at eps, at eps / 2, and for one step without a history.
    assert scores.forward_passes == 8 * (24 + 10) * (1 + 5 * 6 * 2) + 8 * 10 * 5 * 6


def test_without_a_plateau_every_unit_is_flagged(monkeypatch):
    monkeypatch.setattr(tqs, "PLATEAU", 0)
    scores = score(random_forecaster("lstm", 4, 2, 1), 6)
    assert all("no plateau" in entry.flag for entry in scores.units)
    assert {entry.epsilon for entry in scores.units} == {min(tqs.EPSILONS)}


def test_given_starts_are_used():
    forecaster = random_forecaster("lstm", 4, 2, 1)
    start = synthesise(forecaster, 7, count=6, seed=5, dtype=np.float32)
    scores = score(forecaster, 6, start=start)
    assert scores.trajectories == 6
    assert scores.spread == tuple(map(float, start.spread))
    assert isinstance(start, Trajectories)


def test_the_forecaster_is_left_alone():
    forecaster = random_forecaster("lstm", 4, 2, 1)
    start = synthesise(forecaster, 7, count=6)
    before = [cell.kernel.copy() for cell in start.stack]
    score(forecaster, 6, start=start)
    assert all(np.array_equal(cell.kernel, kernel) for cell, kernel in zip(start.stack, before, strict=True))


def test_unknown_granularity():
    with pytest.raises(BadInput, match="weight"):
        score(random_forecaster("rnn", 4, 2, 1), 6, "weight")
