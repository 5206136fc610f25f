"""What layers see along rollouts: peaks."""

import numpy as np
import pytest
from models import KINDS, random_forecaster

from edgetqs.observe import observe
from edgetqs.rollout import cells, next_input, step, zero_state
from edgetqs.trajectories import synthesise


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
    assert (dense.part_peak, dense.cell_peak) == (0, 0)
    peak = max(np.abs(before[1][1]).max() for _, before, _ in seen) if kind == "lstm" else 0
    assert second.cell_peak == pytest.approx(peak)
    layer = forecaster.layers[0]
    parts = [x @ kernel.T + bias for x, _, _ in seen for kernel, bias in zip(layer.kernel, layer.bias, strict=True)]
    parts += [before[0][0] @ kernel.T for _, before, _ in seen for kernel in layer.recurrent_kernel]
    assert first.part_peak == pytest.approx(max(np.abs(part).max() for part in parts))


def test_same_seed_same_observations():
    forecaster = random_forecaster("lstm", 3, 2, 1)
    assert observe(forecaster) == observe(forecaster)
    assert observe(forecaster) != observe(forecaster, seed=2)
