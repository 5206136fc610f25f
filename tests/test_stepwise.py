"""Layers over whole windows as steps: the same values, sample by sample or window by window."""

from dataclasses import replace

import numpy as np
import pytest
from compositions import FEATURES, STEPS, STREAMING, WINDOWED, both, convolution, recurrent
from whole import forecaster_of, whole_stack

from edgetqs.bptt import Tape
from edgetqs.errors import Unsupported
from edgetqs.lesson import forecast
from edgetqs.model import Feedback, Merge, Window, frozen
from edgetqs.rollout import cells, run, window, zero_state
from edgetqs.stepwise import Pooling, RepeatVector, Reshape, output_channels, stepwise

X = np.random.default_rng(3).normal(size=(4, STEPS, FEATURES))


@pytest.mark.parametrize("name", [*STREAMING, *WINDOWED])
def test_steps_do_what_the_trained_layers_do(name):
    layers = {**STREAMING, **WINDOWED}[name]
    forecaster = forecaster_of(layers, STEPS, FEATURES)
    assert forecaster.windowed == (name in WINDOWED)
    np.testing.assert_allclose(window(forecaster, X), whole_stack(layers, X), rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", WINDOWED)
def test_every_step_sees_its_own_window(name):
    """A longer series gives at every sample what the window that ends there gives alone, zeros ahead of the first."""
    layers = WINDOWED[name]
    forecaster = forecaster_of(layers, STEPS, FEATURES)
    series = np.random.default_rng(0).normal(size=(2, 14, FEATURES))
    stack = cells(forecaster)
    outputs, _ = run(stack, zero_state(stack, (2,)), series)
    ahead = np.concatenate([np.zeros((2, STEPS - 1, FEATURES)), series], axis=1)
    for t in range(14):
        expected = whole_stack(layers, ahead[:, t : t + STEPS]).reshape(2, -1)
        np.testing.assert_allclose(outputs[:, t], expected, rtol=0, atol=1e-12)


def test_kinds_of_layers():
    made = stepwise(WINDOWED["mixed"], STEPS, FEATURES).layers
    assert isinstance(made[0], Window) and (made[0].size, made[0].features) == (STEPS, FEATURES)
    assert [type(one) for one in made].count(Merge) == 2
    causal = stepwise(STREAMING["causal, dilated"], STEPS, FEATURES).layers
    assert isinstance(causal[0], Window) and causal[0].size == 5


def test_names_of_outputs():
    names = [channel.name for channel in output_channels((2, 2), np.ones(2), np.zeros(2))]
    assert names == ["y0_0", "y0_1", "y1_0", "y1_1"]
    assert [channel.name for channel in output_channels((3, 1), np.ones(1), np.zeros(1))] == ["y0", "y1", "y2"]


STEPPED = (
    "decoder",
    "normalised",
    "classes by sample",
    "classes by frame",
    "causal, dilated",
    "convolved decoder",
    "repeated",
)


@pytest.mark.parametrize("name", [*STEPPED, *WINDOWED])
@pytest.mark.parametrize("closed", [False, True])
def test_gradients_by_back_propagation(name, closed):
    """Against central differences, through history, closed loop, frames, taps, pools and merges."""
    forecaster = forecaster_of({**STREAMING, **WINDOWED}[name], STEPS, FEATURES)
    history = X
    if closed:
        forecaster = replace(forecaster, feedback=Feedback(pairs=((0, 1),), known=(2,)))
    else:
        history = np.random.default_rng(1).normal(size=(4, forecaster.lead + forecaster.trajectory, FEATURES))
    future = np.random.default_rng(2).normal(size=(4, 3, FEATURES))
    tape = Tape(forecaster, cells(forecaster))
    outputs = tape.forecast(history, future)
    np.testing.assert_allclose(outputs, forecast(forecaster, cells(forecaster), history, future), rtol=0, atol=1e-12)
    weight = np.random.default_rng(4).normal(size=outputs.shape)
    gradients = tape.backward(weight)

    def loss(changed):
        return float(np.sum(weight * forecast(changed, cells(changed), history, future)))

    rng = np.random.default_rng(5)
    for (index, field), gradient in gradients.items():
        direction = rng.normal(size=gradient.shape)
        if field == "recurrent_bias" and not forecaster.layers[index].reset_after:
            continue
        values = getattr(forecaster.layers[index], field).astype(np.float64)
        ends = []
        for sign in (1e-6, -1e-6):
            layers = list(forecaster.layers)
            layers[index] = replace(layers[index], **{field: frozen(values + sign * direction, np.float64)})
            ends.append(loss(replace(forecaster, layers=tuple(layers))))
        assert (ends[0] - ends[1]) / 2e-6 == pytest.approx(np.sum(gradient * direction), rel=1e-4, abs=1e-5), field


@pytest.mark.parametrize(
    ("layers", "steps", "name"),
    [
        ([Pooling("huge", 60_000, 1, "same"), recurrent("lstm", 2, 3)], 60_000, "huge"),
        ([recurrent("lstm", 40, 3), RepeatVector("huge", 60_000)], 9, "huge"),
        ([both("lstm", 2, 3)], 1 << 20, "window"),
        ([convolution(2, 30, 3, padding="same"), recurrent("lstm", 2, 2)], 60_000, "conv_0"),
        ([recurrent("lstm", 60, 3, True), Reshape("f", (60 * 30_000,)), recurrent("lstm", 2, 3)], 30_000, "lstm_0"),
    ],
)
def test_steps_that_no_device_has_room_for_are_refused_before_they_take_memory(layers, steps, name):
    with pytest.raises(Unsupported, match=f"{name}: takes .* values in every step"):
        stepwise(layers, steps, FEATURES)
