"""What layers see along rollouts: moments and peaks."""

import numpy as np
import pytest
from models import KINDS, random_forecaster

from edgetqs.observe import observe
from edgetqs.rollout import cells, next_input, sigmoid, step, zero_state
from edgetqs.trajectories import synthesise


def moments(values: list[np.ndarray]) -> np.ndarray:
    rows = np.concatenate(values)
    return sum(np.outer(v, v) for v in np.hstack([rows, np.ones((len(rows), 1))])) / len(rows)


def walk(forecaster, start):
    """(inputs, state before, state after) of each step, from reset and then in the closed loop."""
    stack, seen = cells(forecaster), []
    history = start.burn_in if forecaster.feedback.pairs else start.future
    state = zero_state(stack, (len(history),))
    for t in range(history.shape[1]):
        after = step(stack, state, history[:, t])[1]
        seen.append((history[:, t], state, after))
        state = after
    if forecaster.feedback.pairs:
        state, x, y = start.state, start.x, start.y
        for k in range(start.future.shape[1]):
            x = next_input(forecaster, x, y, start.future[:, k])
            y, after = step(stack, state, x)
            seen.append((x, state, after))
            state = after
    return seen


@pytest.mark.parametrize("feedback", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_observations_equal_a_walk_along_the_rollouts(kind, feedback):
    forecaster = random_forecaster(kind, 3, 2, 1, feedback=feedback, window=16)
    start = synthesise(forecaster, 6, count=6)
    first, second, dense = observe(forecaster, start)
    seen = walk(forecaster, start)
    np.testing.assert_allclose(first.input_moments, moments([x for x, _, _ in seen]), atol=1e-12)
    np.testing.assert_allclose(second.input_moments, moments([after[0][0] for _, _, after in seen]), atol=1e-12)
    np.testing.assert_allclose(dense.input_moments, moments([after[1][0] for _, _, after in seen]), atol=1e-12)
    hidden = moments([before[1][0] for _, before, _ in seen])
    own = second.hidden_moments[:-1] if kind == "gru_reset_before" else second.hidden_moments
    assert len(second.hidden_moments) == len(forecaster.layers[1].gates)
    for found in own:
        np.testing.assert_allclose(found, hidden, atol=1e-12)
    peak = max(np.abs(before[1][1]).max() for _, before, _ in seen) if kind == "lstm" else 0
    assert second.cell_peak == pytest.approx(peak)
    layer = forecaster.layers[0]
    parts = [x @ kernel.T + bias for x, _, _ in seen for kernel, bias in zip(layer.kernel, layer.bias, strict=True)]
    parts += [before[0][0] @ kernel.T for _, before, _ in seen for kernel in layer.recurrent_kernel]
    assert first.part_peak == pytest.approx(max(np.abs(part).max() for part in parts))


def test_reset_before_candidate_sees_the_reset_state():
    forecaster = random_forecaster("gru_reset_before", 3, 2, 1, layers=1, window=16)
    start = synthesise(forecaster, 6, count=6)
    layer = forecaster.layers[0]
    reset = []
    for x, before, _ in walk(forecaster, start):
        h = before[0][0]
        reset.append(sigmoid(x @ layer.kernel[1].T + layer.bias[1] + h @ layer.recurrent_kernel[1].T) * h)
    np.testing.assert_allclose(observe(forecaster, start)[0].hidden_moments[2], moments(reset), atol=1e-12)


def test_same_seed_same_observations():
    forecaster = random_forecaster("lstm", 3, 2, 1)
    first, second, other = observe(forecaster), observe(forecaster), observe(forecaster, seed=2)
    assert all(np.array_equal(a.input_moments, b.input_moments) for a, b in zip(first, second, strict=True))
    assert not np.array_equal(first[0].input_moments, other[0].input_moments)
