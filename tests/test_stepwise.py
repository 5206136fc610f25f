"""Layers over whole windows as steps: the same values, sample by sample or window by window."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
from models import KINDS, random_layer
from whole import forecaster_of, whole_stack

from edgetqs.bptt import Tape
from edgetqs.lesson import forecast
from edgetqs.model import Activation, Dense, Feedback, Merge, Window, frozen
from edgetqs.rollout import cells, run, window, zero_state
from edgetqs.stepwise import Bidirectional, Convolution, Pooling, RepeatVector, Reshape, output_channels, stepwise

STEPS, FEATURES = 9, 3
X = np.random.default_rng(3).normal(size=(4, STEPS, FEATURES))


def dense(units, inputs, activation="linear", seed=0, name="dense"):
    rng = np.random.default_rng(seed)
    kernel = frozen(rng.normal(size=(1, units, inputs)) / np.sqrt(inputs))
    return Dense(name, kernel, frozen(rng.normal(size=(1, units))), activation)


def recurrent(kind, units, inputs, sequence=False, seed=0, **options):
    layer = random_layer(kind, units, inputs, np.random.default_rng(seed), sequence=sequence)
    return replace(layer, name=f"{kind}_{seed}", **options)


def convolution(filters, taps, inputs, activation="relu", seed=0, **options):
    inner = dense(filters, taps * inputs, activation, seed, f"conv_{seed}")
    return Convolution(inner.name, inner, taps, **options)


def both(kind, units, inputs, sequence=False, mode="concat"):
    backward = recurrent(kind, units, inputs, sequence, 2, go_backwards=True)
    return Bidirectional("both", recurrent(kind, units, inputs, sequence, 1), backward, mode)


STREAMING = {
    "stack": [recurrent("lstm", 4, 3, True), recurrent("gru", 5, 4, seed=1), dense(2, 5)],
    "sequence": [recurrent("rnn", 4, 3, True), dense(2, 4, "tanh")],
    "causal": [convolution(5, 4, 3, padding="causal"), recurrent("lstm", 4, 5), dense(1, 4)],
    "causal, dilated": [convolution(5, 3, 3, padding="causal", dilation=2), recurrent("lstm", 4, 5)],
    "causal, on top": [recurrent("gru", 4, 3, True), convolution(2, 3, 4, "linear", padding="causal")],
    "pointwise": [convolution(5, 1, 3, padding="same"), recurrent("lstm", 4, 5)],
    "repeated": [recurrent("lstm", 4, 3), RepeatVector("r", 3)],
    "decoder": [recurrent("lstm", 4, 3), RepeatVector("r", 6), recurrent("gru", 5, 4, True, 1), dense(2, 5)],
    "horizon": [recurrent("lstm", 4, 3), dense(8, 4, "tanh"), Reshape("r", (4, 2))],
    "horizon, then by frame": [recurrent("lstm", 4, 3), dense(8, 4), Reshape("r", (4, 2)), dense(3, 2, "sigmoid")],
    "convolved decoder": [recurrent("lstm", 4, 3), dense(8, 4), Reshape("r", (4, 2)), convolution(3, 2, 2)],
}
WINDOWED = {
    "convolution": [convolution(5, 3, 3), recurrent("lstm", 4, 5), dense(2, 4)],
    "same": [convolution(5, 4, 3, padding="same"), recurrent("lstm", 4, 5)],
    "stride": [convolution(5, 3, 3, padding="same", stride=2), recurrent("gru", 4, 5, True), convolution(2, 2, 4)],
    "causal stride": [convolution(5, 3, 3, padding="causal", stride=2), recurrent("gru", 4, 5)],
    "dilated": [convolution(5, 2, 3, dilation=3), recurrent("rnn", 4, 5)],
    "pool": [convolution(5, 3, 3, padding="same"), Pooling("p", 2, 2), recurrent("lstm", 4, 5)],
    "pool same": [Pooling("p", 4, 3, "same"), recurrent("lstm", 4, 3)],
    "pool overlapping": [Pooling("p", 3, 1), recurrent("lstm", 4, 3, True), Pooling("q", 0), dense(1, 4)],
    "flatten": [recurrent("lstm", 4, 3, True), Reshape("f", (STEPS * 4,)), dense(2, STEPS * 4)],
    "backwards": [recurrent("lstm", 4, 3, go_backwards=True), dense(2, 4)],
    "backwards alone": [recurrent("gru", 4, 3, True, go_backwards=True)],
    "backwards twice": [recurrent("lstm", 4, 3, True, go_backwards=True), recurrent("gru", 2, 4, True, 1), dense(1, 2)],
    "backwards, then again": [
        recurrent("rnn", 4, 3, True, go_backwards=True),
        recurrent("rnn", 2, 4, True, 1, go_backwards=True),
        dense(1, 2),
    ],
    "mixed": [both("lstm", 4, 3, True), recurrent("gru", 5, 8, True, 3), Activation("a", "relu"), both("gru", 2, 5)],
    "autoencoder": [
        both("lstm", 4, 3),
        RepeatVector("r", STEPS),
        both("gru", 3, 8, True),
        convolution(3, 3, 6, "linear", 4, padding="same"),
    ],
} | {
    f"bidirectional {kind} {mode} {sequence}": [
        both(kind, 4, 3, sequence, mode),
        dense(2, 8 if mode == "concat" else 4),
    ]
    for kind, mode, sequence in itertools.product(KINDS, ("concat", "sum", "ave", "mul"), (True, False))
}


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


@pytest.mark.parametrize("name", ["decoder", "causal, dilated", "convolved decoder", "repeated", *WINDOWED])
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
