"""The metric of rounding: per-trajectory gradients, and the curvature of the rollout's deviation."""

import numpy as np
import pytest
from models import KINDS, random_forecaster

from edgetqs import curvature as module
from edgetqs.bptt import Tape
from edgetqs.curvature import curvature
from edgetqs.lesson import Lesson, forecast
from edgetqs.model import Forecaster
from edgetqs.rollout import cells


@pytest.mark.parametrize("feedback", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_gradients_apart_are_those_of_single_trajectories(kind, feedback):
    forecaster = random_forecaster(kind, 3, 3, 2, feedback=feedback)
    rng = np.random.default_rng(0)
    history, future = rng.normal(size=(4, 5, 3)), rng.normal(size=(4, 6, 3))
    stack = cells(forecaster)

    def gradients(chosen, **options):
        tape = Tape(forecaster, stack)
        outputs = tape.forecast(history[chosen], future[chosen])
        weight = np.arange(1.0, 1 + outputs[0].size).reshape(outputs.shape[1:]) * np.ones((len(outputs), 1, 1))
        return tape.backward(weight, **options)

    apart, together = gradients(slice(None), apart=True), gradients(slice(None))
    singles = [gradients(slice(k, k + 1)) for k in range(4)]
    for key, values in apart.items():
        np.testing.assert_allclose(values, np.stack([single[key] for single in singles]), atol=1e-12)
        np.testing.assert_allclose(values.sum(axis=0), together[key], atol=1e-12)


def jacobian(forecaster: Forecaster, lesson: Lesson, index: int, places: list[tuple[str, tuple[int, ...]]]):
    """d outputs / d parameter by central differences, (B, T, outputs, parameters), in units of the spread."""
    columns = []
    for name, place in places:
        sides = []
        for step in (1e-5, -1e-5):
            values = np.array(getattr(forecaster.layers[index], name), np.float64)
            values[place] += step
            moved = forecaster.replace_tensor(index, name, values)
            sides.append(forecast(moved, cells(moved), lesson.history, lesson.future))
        columns.append((sides[0] - sides[1]) / 2e-5 / lesson.spread)
    return np.stack(columns, axis=-1)


@pytest.mark.parametrize("kind", KINDS)
def test_metric_is_the_squared_jacobian_of_the_rollout(kind, monkeypatch):
    monkeypatch.setattr("edgetqs.model.frozen", lambda values, dtype=np.float64: np.array(values, np.float64))
    monkeypatch.setattr(module, "PROBES", 400)
    monkeypatch.setattr(module, "TRAJECTORIES", 16)
    forecaster = random_forecaster(kind, 2, 2, 1, layers=1, window=16)
    found = curvature(forecaster)
    lesson = Lesson.of(forecaster, 24, 16, 5)
    layer = forecaster.layers[0]
    gate, row = len(layer.gates) - 1, 1
    places = [("kernel", (gate, row, k)) for k in range(2)] + [("recurrent_kernel", (gate, row, k)) for k in range(2)]
    places.append(("bias", (gate, row)))
    if kind == "gru":
        places.append(("recurrent_bias", (gate, row)))
    wanted = jacobian(forecaster, lesson, 0, places)
    metric = np.einsum("btok,btol->kl", wanted, wanted) / len(wanted) / wanted[0, ..., 0].size
    assert found[0].gates[gate].shape == (2, len(places), len(places))
    np.testing.assert_allclose(found[0].gates[gate][row], metric, rtol=0.1, atol=0.05 * np.trace(metric))


def test_large_layers_share_one_metric_a_gate(monkeypatch):
    forecaster = random_forecaster("lstm", 4, 2, 1, layers=1)
    own = curvature(forecaster)
    monkeypatch.setattr(module, "MOST_BYTES", 0)
    shared = curvature(forecaster)
    for one, all_rows in zip(shared[0].gates, own[0].gates, strict=True):
        np.testing.assert_allclose(one[0], all_rows.mean(axis=0), rtol=1e-6)
