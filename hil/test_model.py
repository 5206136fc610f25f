"""The model: the reference's integers on the device, whatever is asked of it in between."""

import hashlib

import numpy as np
import pytest

from edgetqs import chain, reference
from edgetqs.dut import DeviceError
from edgetqs.protocol import Code
from edgetqs.trajectories import synthetic_inputs


@pytest.fixture(scope="module")
def vectors(build):
    return chain.golden(build.model)


@pytest.fixture
def known(build):
    return list(build.model.feedback.known)


@pytest.fixture
def closed(build):
    if not build.model.loop:
        pytest.skip("the model has no closed loop")


def stream(model, count: int, seed: int):
    """(count, inputs) plausible int16 inputs."""
    limit = 32767 * model.input_scale
    smooth = synthetic_inputs(len(model.inputs), 1, count, limit, np.random.default_rng(seed))[0]
    return np.clip(np.rint(smooth / model.input_scale), -32768, 32767).astype(np.int64)


def differs(given, expected, step: int) -> str:
    return f"step {step}: {np.asarray(given).tolist()} instead of {np.asarray(expected).tolist()}"


def test_golden_vectors_bit_for_bit(dut, vectors, known, figures):
    outputs = []
    for step in range(vectors.steps):
        if step in vectors.resets:
            dut.reset()
        x = vectors.inputs[step]
        outputs.append(dut.advance(x[known]) if vectors.closed[step] else dut.step(x))
        assert np.array_equal(outputs[-1], vectors.outputs[step]), differs(outputs[-1], vectors.outputs[step], step)
    figures["golden_sha256"] = hashlib.sha256(np.array(outputs).astype("<i2").tobytes()).hexdigest()
    assert dut.stats().clipped == vectors.clipped[-1]


def test_thousands_of_streaming_steps(dut, build, request, figures):
    model, steps = build.model, request.config.getoption("--edgetqs-steps")
    inputs, state = stream(model, steps, seed=21), reference.zero_state(model)
    for step, x in enumerate(inputs):
        y, state = reference.step(model, state, x)
        given = dut.step(x)
        assert np.array_equal(given, y), differs(given, y, step)
    stats = dut.stats()
    assert stats.steps == steps
    figures["streaming_steps"] = steps


def test_physical_values_are_converted_alike(dut, vectors):
    for sample, status, expected in zip(vectors.physical, vectors.statuses, vectors.physical_outputs, strict=True):
        if status:
            with pytest.raises(DeviceError) as error:
                dut.step_float(sample)
            assert error.value.code == Code.BAD_INPUT
        else:
            assert dut.step_float(sample).tobytes() == expected.tobytes()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_no_number_is_refused_and_changes_nothing(dut, build, vectors, value):
    dut.step(vectors.inputs[0])
    before = dut.state()
    for channel in range(len(build.model.inputs)):
        sample = vectors.physical[0].copy()
        sample[channel] = value
        with pytest.raises(DeviceError) as error:
            dut.step_float(sample)
        assert error.value.code == Code.BAD_INPUT
    assert dut.state() == before


@pytest.mark.parametrize("value", [3e38, -3e38, 1e-38])
def test_out_of_range_values_count_as_the_end_of_the_range(dut, build, value):
    model = build.model
    sample = np.full(len(model.inputs), value, np.float32)
    y, _ = reference.step(model, reference.zero_state(model), reference.encode(model, sample))
    assert dut.step_float(sample).tobytes() == reference.decode(model, y).tobytes()


@pytest.mark.parametrize("steps", [1, 7, 100])
def test_a_forecast_equals_the_reference_and_leaves_the_stream_alone(dut, build, known, closed, steps):
    model = build.model
    horizon = max(2 * build.record["rollout"]["horizon"], 30)
    inputs, future = stream(model, steps + 1, seed=steps), stream(model, horizon, seed=steps + 1)
    outputs, state = reference.run(model, reference.zero_state(model), inputs[:steps])
    expected, _ = reference.closed_loop(model, state, inputs[steps - 1], outputs[-1], horizon, future)
    for x in inputs[:steps]:
        dut.step(x)
    before, counted = dut.state(), dut.stats().steps
    for _ in range(2):
        assert np.array_equal(dut.forecast(horizon, future[:, known]), expected)
    assert (dut.state(), dut.stats().steps) == (before, counted)
    y, _ = reference.step(model, state, inputs[steps])
    assert np.array_equal(dut.step(inputs[steps]), y)


def test_a_forecast_needs_a_sample(dut, known, closed):
    with pytest.raises(DeviceError) as error:
        dut.forecast(3, np.zeros((3, len(known)), np.int64))
    assert error.value.code == Code.NOT_READY


def test_reset_equals_fresh(dut, vectors):
    first = [dut.step(x).tolist() for x in vectors.inputs[:20]]
    fresh = [vectors.outputs[k].tolist() for k in range(20)]
    dut.reset()
    assert first == [dut.step(x).tolist() for x in vectors.inputs[:20]] == fresh


def test_a_saved_state_goes_on_after_a_power_cycle(dut, vectors):
    for x in vectors.inputs[:15]:
        dut.step(x)
    saved = dut.state()
    dut.power_cycle()
    assert dut.stats().steps == 0
    dut.restore(saved)
    assert dut.state() == saved
    for step in range(15, 30):
        y = dut.step(vectors.inputs[step])
        assert np.array_equal(y, vectors.outputs[step]), differs(y, vectors.outputs[step], step)
