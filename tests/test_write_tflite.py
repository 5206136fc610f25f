"""The ``.tflite``: LiteRT equals the integer reference, int4 is stored as int4, the file is small and repeatable."""

from dataclasses import replace

import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema
from models import KINDS, mixed, random_dense, random_forecaster, uniform

from edgetqs import reference
from edgetqs.fixedpoint import Integers
from edgetqs.integer import IntegerModel
from edgetqs.litert import interpreter, run_sequence, run_steps, tensors_of_step
from edgetqs.observe import observe
from edgetqs.quantizer import Z_SCALES, quantize
from edgetqs.tflite_build import pack_int4
from edgetqs.write_tflite import write_tflite

STEPS = 200
WIDTHS = {"int8": lambda f: uniform(f, 8), "int4": lambda f: uniform(f, 4), "mixed": mixed}
HARD = ("hard_sigmoid_keras2", "hard_sigmoid_keras3")


def integers(kind: str, units: int = 7, widths: str = "mixed", **options: object) -> IntegerModel:
    forecaster = random_forecaster(kind, units, 3, 2, **options)
    return quantize(forecaster, WIDTHS[widths](forecaster))


def drive(model: IntegerModel, steps: int = STEPS) -> Integers:
    """Noise of all sizes, then the corners of the int16 range."""
    rng = np.random.default_rng(1)
    x = rng.integers(-32768, 32768, (steps, len(model.inputs))) >> rng.integers(0, 15, (steps, 1))
    corners = rng.choice([-32768, -32767, -1, 0, 1, 32767], x.shape)
    return np.where(np.arange(steps)[:, None] < 0.8 * steps, x, corners)


def reference_steps(model: IntegerModel, x: Integers) -> tuple[Integers, dict[str, Integers], reference.Trace]:
    """(outputs, states by name, trace) of the reference."""
    names = [name for own in model.states() for name in own]
    state, trace = reference.zero_state(model), reference.Trace()
    outputs, states = [], {name: [] for name in names}
    for sample in x:
        y, state = reference.step(model, state, sample, trace)
        outputs.append(y)
        for name, value in zip(names, [part for one in state for part in one], strict=True):
            states[name].append(value)
    return np.array(outputs), {name: np.array(values) for name, values in states.items()}, trace


def assert_equal_in_litert(model: IntegerModel, x: Integers) -> reference.Trace:
    outputs, states, trace = reference_steps(model, x)
    found = run_steps(write_tflite(model, ("step",)).data, x)
    assert np.array_equal(found.outputs, outputs)
    assert set(found.states) == set(states)
    for name, values in states.items():
        assert np.array_equal(found.states[name], values), name
    return trace


@pytest.mark.parametrize("widths", WIDTHS)
@pytest.mark.parametrize("units", [1, 7, 32])
@pytest.mark.parametrize("kind", KINDS)
def test_litert_equals_the_reference(kind, units, widths):
    model = integers(kind, units, widths)
    assert_equal_in_litert(model, drive(model))


@pytest.mark.parametrize("kind", KINDS)
def test_litert_equals_the_reference_where_everything_saturates(kind):
    model = integers(kind, 8, gain=30)
    assert model.layers[0].z_scale == Z_SCALES[-1]
    trace = assert_equal_in_litert(model, drive(model))
    assert trace.clipped


@pytest.mark.parametrize("widths", WIDTHS)
@pytest.mark.parametrize("gate", HARD)
@pytest.mark.parametrize("kind", ["lstm", "gru", "gru_reset_before"])
def test_litert_equals_the_reference_with_hard_sigmoids(kind, gate, widths):
    model = integers(kind, 7, widths, gate=gate)
    assert_equal_in_litert(model, drive(model))


@pytest.mark.parametrize("z_scale", Z_SCALES)
@pytest.mark.parametrize("cell_bits", [11, 9, 3])
@pytest.mark.parametrize("gate", ["sigmoid", *HARD])
def test_litert_equals_the_reference_at_every_scale(gate, cell_bits, z_scale):
    forecaster = random_forecaster("lstm", 6, 3, 1, layers=1, gain=20, gate=gate)
    first, dense = observe(forecaster)
    first = replace(first, part_peak=32767 * z_scale / 1.5, cell_peak=2.0 ** (14 - cell_bits))
    model = quantize(forecaster, uniform(forecaster, 8), observations=(first, dense))
    assert (model.layers[0].z_scale, model.layers[0].cell_bits) == (z_scale, cell_bits)
    assert_equal_in_litert(model, drive(model))


@pytest.mark.parametrize("rounding", ["nearest", "trajectory"])
@pytest.mark.parametrize("activation", ["linear", "relu", "tanh", "sigmoid"])
@pytest.mark.parametrize("outputs", [1, 3])
def test_dense_heads(activation, outputs, rounding):
    forecaster = random_forecaster("gru", 5, 3, outputs, activation=activation, feedback=outputs == 3)
    model = quantize(forecaster, uniform(forecaster, 4), rounding)
    trace = assert_equal_in_litert(model, drive(model))
    last = np.concatenate([values for layer, what, values in trace.values if what == "output"])
    assert (last.min() >= 0) == (activation in ("relu", "sigmoid"))


@pytest.mark.parametrize("activation", ["relu", "tanh"])
def test_dense_before_and_between_recurrent_layers(activation):
    rng = np.random.default_rng(0)
    forecaster = random_forecaster("lstm", 5, 3, 1)
    first = random_dense(3, 3, rng, activation=activation, name="first")
    between = random_dense(5, 5, rng, activation=activation, name="between")
    a, b, head = forecaster.layers
    forecaster = replace(forecaster, layers=(first, a, between, b, head))
    model = quantize(forecaster, mixed(forecaster))
    x = drive(model, forecaster.window)
    assert_equal_in_litert(model, x)
    assert np.array_equal(run_sequence(write_tflite(model).data, x), reference_steps(model, x)[0][-1])


@pytest.mark.parametrize("kind", KINDS)
def test_model_that_ends_in_its_cell(kind):
    forecaster = random_forecaster(kind, 2, 3, 1)
    forecaster = replace(forecaster, layers=forecaster.layers[:-1], outputs=forecaster.inputs[:2])
    model = quantize(forecaster, mixed(forecaster))
    x = drive(model, forecaster.window)
    assert_equal_in_litert(model, x)
    assert np.array_equal(run_sequence(write_tflite(model).data, x), reference_steps(model, x)[0][-1])


@pytest.mark.parametrize("kind", KINDS)
def test_reference_kernels_agree(kind):
    model = integers(kind)
    x = drive(model, 60)
    runner = interpreter(write_tflite(model).data, reference_kernels=True).get_signature_runner("step")
    state = {name: np.zeros((1, 7), np.int16) for own in model.states() for name in own}
    outputs, states, _ = reference_steps(model, x)
    for t, sample in enumerate(x.astype(np.int16)):
        state = runner(x=sample[None], **state)
        assert np.array_equal(state.pop("y")[0], outputs[t])
    for name, value in state.items():
        assert np.array_equal(value[0], states[name][-1])


@pytest.mark.parametrize("sequence", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_sequence_equals_steps(kind, sequence):
    model = integers(kind, sequence=sequence)
    x = drive(model, model.window)
    outputs, _, _ = reference_steps(model, x)
    data = write_tflite(model).data
    for _ in range(2):  # from a zero state each time
        assert np.array_equal(run_sequence(data, x), outputs if sequence else outputs[-1])


def test_sequence_alone():
    model = integers("gru")
    x = drive(model, model.window)
    data = write_tflite(model, ("sequence",)).data
    assert np.array_equal(run_sequence(data, x), reference_steps(model, x)[0][-1])


def test_resets_start_over():
    model = integers("lstm")
    x = drive(model, 10)
    found = run_steps(write_tflite(model).data, np.concatenate([x, x]), {10})
    assert np.array_equal(found.outputs[:10], found.outputs[10:])


def test_requantization_ties_away_from_zero():
    # h * 2^-15 * weight comes to k + 1/2 steps of the output for odd h: every engine must round alike.
    forecaster = random_forecaster("rnn", 1, 1, 2, layers=1, feedback=False)
    for layer, tensor, shape in ((1, "bias", (1, 2)), (0, "recurrent_kernel", (1, 1, 1)), (0, "bias", (1, 1))):
        forecaster = forecaster.replace_tensor(layer, tensor, np.zeros(shape))
    model = quantize(forecaster, uniform(forecaster, 8), "nearest")
    head = model.layers[1]
    one = np.array([1, 1])
    ties = replace(
        head.kernel,
        weights=np.array([[1], [-1]], np.int8),
        multiplier=one,
        shift=one,
        bias=0 * one,
        scales=np.full(2, 2.0**-1 * head.kernel.output_scale / 2.0**-15, np.float32),
    )
    model = replace(model, layers=(model.layers[0], replace(head, kernel=ties)))
    x = np.random.default_rng(0).integers(-8192, 8193, (300, 1))
    outputs, states, _ = reference_steps(model, x)
    h = states["h0"][:, 0]
    assert ((h % 2 == 1) & (h < 0)).sum() > 20
    assert ((h % 2 == 1) & (h > 0)).sum() > 20
    away = np.sign(h) * ((np.abs(h) + 1) // 2)
    assert np.array_equal(outputs, np.stack([away, -away], axis=1))
    assert_equal_in_litert(model, x)


@pytest.mark.parametrize("width", [4, 8])
@pytest.mark.parametrize("kind", KINDS)
def test_rows_of_zeros(kind, width):
    forecaster = random_forecaster(kind, 4, 3, 1)
    for tensor in ("kernel", "recurrent_kernel", "bias"):
        values = getattr(forecaster.layers[0], tensor).copy()
        values[0, 1] = 0
        forecaster = forecaster.replace_tensor(0, tensor, values)
    forecaster = forecaster.replace_tensor(2, "kernel", np.zeros((1, 1, 4)))
    model = quantize(forecaster, uniform(forecaster, width), "nearest")
    assert_equal_in_litert(model, drive(model, 60))


def test_rows_whose_sums_leave_an_int32():
    forecaster = random_forecaster("gru", 2, 700, 1, layers=1)
    sign = np.where(np.arange(700) % 7, 1, -1)
    forecaster = forecaster.replace_tensor(0, "kernel", sign * np.full((3, 2, 700), 0.01))
    model = quantize(forecaster, uniform(forecaster, 8), "nearest")
    assert model.layers[0].kernel.accumulator_bound().max() > 2**31
    x = np.where(sign > 0, 32767, -32768) * np.array([[1], [0], [1]])
    assert_equal_in_litert(model, x)


# ---- What the file holds ----


def parse(data: bytes) -> schema.ModelT:
    return schema.ModelT.InitFromObj(schema.Model.GetRootAs(data, 0))


def constants(model: schema.ModelT, kind: int) -> list[tuple[tuple[int, ...], bytes]]:
    """(shape, data) of the first subgraph's constant tensors of one type."""
    found = []
    for tensor in model.subgraphs[0].tensors:
        data = model.buffers[tensor.buffer].data
        if tensor.type == kind and data is not None:
            found.append((tuple(tensor.shape), bytes(data)))
    return found


def unpack_int4(data: bytes, shape: tuple[int, ...]) -> Integers:
    nibbles = np.array([half for byte in data for half in (byte & 15, byte >> 4)])
    return (((nibbles + 8) & 15) - 8)[: np.prod(shape)].reshape(shape)


@pytest.mark.parametrize("units", [3, 5, 8])
def test_int4_weights_are_stored_as_int4(units):
    forecaster = random_forecaster("rnn", units, 3, 1)
    model = quantize(forecaster, uniform(forecaster, 4))
    parsed = parse(write_tflite(model, ("step",)).data)
    found = constants(parsed, schema.TensorType.INT4)
    assert not constants(parsed, schema.TensorType.INT8)
    assert len(found) == 5
    for shape, data in found:
        assert len(data) == (np.prod(shape) + 1) // 2
    stored = [unpack_int4(data, shape).tolist() for shape, data in found]
    for _, _, matrix in model.matrices():
        assert matrix.weights.tolist() in stored


def test_each_gate_has_its_own_width():
    forecaster = random_forecaster("lstm", 4, 3, 1, layers=1)
    parsed = parse(write_tflite(quantize(forecaster, mixed(forecaster)), ("step",)).data)
    kinds = [schema.TensorType.INT4, schema.TensorType.INT8]
    shapes = [sorted(shape for shape, _ in constants(parsed, kind)) for kind in kinds]
    assert shapes == [[(1, 4), (4, 3), (4, 3), (4, 4), (4, 4)], [(4, 3), (4, 3), (4, 4), (4, 4)]]


@pytest.mark.parametrize(("width", "version"), [(4, 13), (8, 4)])
def test_fully_connected_has_the_version_of_its_width(width, version):
    forecaster = random_forecaster("lstm", 4, 3, 1)
    parsed = parse(write_tflite(quantize(forecaster, uniform(forecaster, width))).data)
    codes = {code.builtinCode: code.version for code in parsed.operatorCodes}
    assert codes[schema.BuiltinOperator.FULLY_CONNECTED] == version


def test_no_buffer_is_written_twice():
    parsed = parse(write_tflite(integers("lstm")).data)
    data = [bytes(buffer.data) for buffer in parsed.buffers if buffer.data is not None]
    assert len(data) == len(set(data))


def test_pack_int4():
    assert pack_int4(np.array([[1, -1, 7], [-7, 0, -8]])) == bytes([0xF1, 0x97, 0x80])
    assert pack_int4(np.array([1, 2, 3])) == bytes([0x21, 0x03])


@pytest.mark.parametrize("kind", KINDS)
def test_int4_halves_the_weights(kind):
    forecaster = random_forecaster(kind, 32, 3, 2)
    sizes = {width: len(write_tflite(quantize(forecaster, uniform(forecaster, width))).data) for width in (4, 8)}
    weights = sum(matrix.weights.size for _, _, matrix in quantize(forecaster, uniform(forecaster, 8)).matrices())
    # Vectors of equal scales are written once, so rows may cost a little more or less.
    assert sizes[8] - sizes[4] == pytest.approx(weights / 2, rel=0.1)


def test_step_alone_is_one_subgraph():
    file = write_tflite(integers("lstm"), ("step",))
    parsed = parse(file.data)
    assert len(parsed.subgraphs) == 1
    assert [entry.signatureKey for entry in parsed.signatureDefs] == [b"step"]
    assert file.signatures == ("step",)


def test_signatures_share_their_weights():
    forecaster = random_forecaster("lstm", 32, 8, 1)
    model = quantize(forecaster, uniform(forecaster, 8))
    step, both = (len(write_tflite(model, signatures).data) for signatures in (("step",), ("step", "sequence")))
    weights = sum(matrix.weights.size for _, _, matrix in model.matrices())
    assert step > weights
    assert both - step < 5000 < weights / 2


@pytest.mark.parametrize(("inputs", "most"), [(1, 8_900), (8, 9_800)])
def test_lstm_of_32_with_int4_recurrent_weights_stays_small(inputs, most):
    forecaster = random_forecaster("lstm", 32, inputs, 1, layers=1)
    widths = {block: 4 if block.tensor == "recurrent_kernel" else 8 for block in uniform(forecaster, 8)}
    model = quantize(forecaster, widths)
    step, both = (len(write_tflite(model, signatures).data) for signatures in (("step",), ("step", "sequence")))
    assert step <= most
    assert both - step <= 2_500


@pytest.mark.parametrize("kind", KINDS)
def test_same_model_same_bytes(kind):
    assert write_tflite(integers(kind)).data == write_tflite(integers(kind)).data


def test_file_is_a_tflite():
    data = write_tflite(integers("gru")).data
    assert data[4:8] == b"TFL3"
    assert parse(data).version == 3


def test_signature_names():
    engine = interpreter(write_tflite(integers("lstm")).data)
    signatures = engine.get_signature_list()
    assert set(signatures) == {"step", "sequence"}
    assert sorted(signatures["step"]["inputs"]) == ["c0", "c1", "h0", "h1", "x"]
    assert sorted(signatures["step"]["outputs"]) == ["c0", "c1", "h0", "h1", "y"]
    assert signatures["sequence"] == {"inputs": ["x"], "outputs": ["y"]}
    details = engine.get_signature_runner("sequence").get_input_details()["x"]
    assert details["shape"].tolist() == [1, 24, 3]


@pytest.mark.parametrize("kind", KINDS)
def test_io_tensors_are_int16_at_the_models_scales(kind):
    model = integers(kind)
    runner = interpreter(write_tflite(model).data).get_signature_runner("step")
    inputs, outputs = runner.get_input_details(), runner.get_output_details()
    assert {detail["dtype"] for detail in (*inputs.values(), *outputs.values())} == {np.int16}
    assert inputs["x"]["quantization"] == (model.input_scale, 0)
    assert outputs["y"]["quantization"] == (model.output_scale, 0)
    assert inputs["h0"]["quantization"] == outputs["h0"]["quantization"] == (2**-15, 0)


@pytest.mark.parametrize("kind", KINDS)
def test_labels_name_the_tensors_of_a_step(kind):
    model = integers(kind)
    file = write_tflite(model)
    x = drive(model, 5)
    _, states, _ = reference_steps(model, x[:4])
    before = {name: values[-1] for name, values in states.items()}
    found = tensors_of_step(file.data, x[4], before)
    trace = reference.Trace()
    state = reference.run(model, reference.zero_state(model), x[:4])[1]
    reference.step(model, state, x[4], trace)
    expected = {(layer, what): values for layer, what, values in trace.values}
    assert set(file.labels.values()) == set(expected)
    for index, label in file.labels.items():
        assert np.array_equal(found[index].reshape(-1), expected[label]), label
