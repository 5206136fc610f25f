"""The TFLite reader against LiteRT, published models, hostile files and what TensorFlow converts."""

from __future__ import annotations

import os
import random
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema
from converted import FEATURES, STEPS, converted, litert, windows
from models import random_layer
from tflite_files import Model, fused, looped, one_step, save, unrolled

from edgetqs.cli import main
from edgetqs.errors import BadInput, Unsupported
from edgetqs.flatbuffer import pack
from edgetqs.litert import interpreter, quiet
from edgetqs.model import Channel, Dense, Forecaster, Gru, Lstm, Merge, SimpleRnn, Window, frozen
from edgetqs.project import load
from edgetqs.quantizer import quantize
from edgetqs.read_tflite import read_tflite
from edgetqs.rollout import cells, run, step, window, zero_state
from edgetqs.units import blocks
from edgetqs.write_tflite import write_tflite

pytestmark = pytest.mark.filterwarnings("error::RuntimeWarning")

THIRD_PARTY = Path(__file__).parents[2] / "shared" / "third-party"


def dense(outputs: int, inputs: int, seed: int = 5) -> Dense:
    rng = np.random.default_rng(seed)
    return Dense("dense", frozen(rng.normal(0, 0.5, (1, outputs, inputs))), frozen(rng.normal(0, 0.5, (1, outputs))))


def stack(*kinds: str, units: int = 4) -> list[Any]:
    """Recurrent layers, all but the last with sequences, and a dense head of two outputs."""
    rng = np.random.default_rng(3)
    made: list[Any] = []
    for k, kind in enumerate(kinds):
        inputs = made[-1].bias.shape[1] if made else FEATURES
        made.append(random_layer(kind, units + k, inputs, rng, sequence=k < len(kinds) - 1))
    return [*made, dense(2, made[-1].bias.shape[1])]


def softmax(x: np.ndarray) -> np.ndarray:
    raised = np.exp(x - x.max(-1, keepdims=True))
    return raised / raised.sum(-1, keepdims=True)


def kinds_of(forecaster: Forecaster) -> list[type]:
    return [type(layer) for layer in forecaster.layers]


# --- published models --------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "kinds", "steps"),
    [
        ("tflm_mnist_lstm_float", [Window, Lstm, Dense], 28),
        ("tflm_mnist_lstm_int8", [Window, Lstm, Dense], 28),
        ("emg_lstm_unrolled_a", [Lstm, Dense, Dense], 3),
    ],
)
def test_published(name: str, kinds: list[type], steps: int) -> None:
    path = THIRD_PARTY / f"{name}.tflite"
    if not path.exists():
        pytest.skip("the published models are not here")
    forecaster = read_tflite(path, logits=True)
    assert kinds_of(forecaster) == kinds and forecaster.window == steps and forecaster.name == name
    with np.load(f"{path}.npz") as stored:
        x, expected = stored["x0"][:, 0].astype(np.float64), stored["y0_numpy_f64"][:, 0]
        if stored["x0"].dtype == np.int8:
            x = (x + 128) * np.float64(np.float32(1 / 255))
    np.testing.assert_allclose(softmax(window(forecaster, x)), expected, atol=1e-5)


def test_published_int8_against_its_own_integers() -> None:
    """The dequantized weights, taken from the file by another way and computed here."""
    path = THIRD_PARTY / "tflm_mnist_lstm_int8.tflite"
    if not path.exists():
        pytest.skip("the published models are not here")
    table = schema.ModelT.InitFromPackedBuf(path.read_bytes(), 0)
    graph = table.subgraphs[0]

    def real(k: int) -> np.ndarray:
        tensor = graph.tensors[k]
        kind = {schema.TensorType.INT8: "<i1", schema.TensorType.INT32: "<i4"}[tensor.type]
        stored = np.frombuffer(bytes(table.buffers[tensor.buffer].data), kind).reshape(tensor.shape)
        return stored * np.float64(tensor.quantization.scale[0])

    operands = graph.operators[0].inputs
    w, u, b = (np.array([real(operands[first + k]) for k in range(4)]) for first in (1, 5, 12))
    head, head_bias = (real(graph.operators[2].inputs[k]) for k in (1, 2))
    x = np.random.default_rng(0).random((5, 28, 28))
    h = c = np.zeros((5, 20))
    states = []
    for t in range(28):
        i, f, g, o = (x[:, t] @ w[k].T + h @ u[k].T + b[k] for k in range(4))
        i, f, o = (1 / (1 + np.exp(-gate)) for gate in (i, f, o))
        c = np.clip(f * c + i * np.tanh(g), -10, 10)
        h = o * np.tanh(c)
        states.append(h)
    expected = np.concatenate(states, axis=1) @ head.T + head_bias
    forecaster = read_tflite(path, logits=True)
    np.testing.assert_allclose(window(forecaster, x), expected, atol=1e-5)
    assert forecaster.input_range == pytest.approx(1.0, rel=1e-6)  # what its int8 input can hold
    assert forecaster.layers[1].cell_clip == 10


# --- fused operators ---------------------------------------------------------------------


@pytest.mark.parametrize("time_major", [False, True])
def test_fused_lstm(tmp_path: Path, time_major: bool) -> None:
    layers = stack("lstm", "lstm")
    content = fused(layers, STEPS, time_major=time_major)
    forecaster = read_tflite(save(content, tmp_path / "m.tflite"))
    assert kinds_of(forecaster) == [Lstm, Lstm, Dense]
    for found, made in zip(forecaster.layers, layers, strict=True):
        for name in made.tensors:
            np.testing.assert_allclose(getattr(found, name), getattr(made, name), atol=1e-7)
    np.testing.assert_allclose(window(forecaster, windows()), litert(content, windows()), atol=1e-5)


def test_fused_hybrid_lstm(tmp_path: Path) -> None:
    layers = stack("lstm")
    forecaster = read_tflite(save(fused(layers, STEPS, "int8"), tmp_path / "m.tflite"))
    for name in ("kernel", "recurrent_kernel"):
        values = getattr(layers[0], name).astype(np.float64)
        scale = np.abs(values).max(axis=(1, 2), keepdims=True) / 127
        scale = scale.astype(np.float32)
        np.testing.assert_allclose(getattr(forecaster.layers[0], name), np.rint(values / scale) * scale, atol=1e-6)


@pytest.mark.parametrize("rounding", ["nearest", "trajectory"])
def test_integers_are_kept_at_eight_bits(tmp_path: Path, rounding: str) -> None:
    """One scale a gate is coarser than edgetqs' one a row, yet costs nothing where the file was rounded with it."""
    layers = stack("lstm", "lstm")
    forecaster = read_tflite(save(fused(layers, STEPS, "int8"), tmp_path / "m.tflite"))
    model = quantize(forecaster, dict.fromkeys(blocks(forecaster), 8), rounding)
    for made, layer in zip(model.layers[:2], layers[:2], strict=True):
        for found, values in ((made.kernel, layer.kernel), (made.recurrent, layer.recurrent_kernel)):
            scale = (np.abs(values.astype(np.float64)).max(axis=(1, 2), keepdims=True) / 127).astype(np.float32)
            assert np.array_equal(found.weights, np.rint(values / scale).reshape(found.weights.shape))


def test_cell_clip(tmp_path: Path) -> None:
    """It is honoured by the float rollout, and by the integer cell where rollouts come near it."""
    (lstm, head) = stack("lstm")
    bias = np.array(lstm.bias)
    bias[:3] = 6.0  # c grows by one a step
    lstm = replace(lstm, bias=frozen(bias))
    content = fused([lstm, head], STEPS, clip=2.0)
    forecaster = read_tflite(save(content, tmp_path / "m.tflite"))
    assert forecaster.layers[0].cell_clip == 2
    np.testing.assert_allclose(window(forecaster, windows()), litert(content, windows()), atol=1e-5)
    without = replace(forecaster, layers=(replace(forecaster.layers[0], cell_clip=0.0), forecaster.layers[1]))
    assert np.abs(window(without, windows()) - window(forecaster, windows())).max() > 1e-3
    widths = dict.fromkeys(blocks(forecaster), 8)
    assert quantize(forecaster, widths, "nearest").layers[0].cell_limit == 2 << 11
    assert not quantize(without, widths, "nearest").layers[0].limited


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ({9: np.ones(4)}, "peephole"),
        ({16: np.ones((3, 4))}, "projection"),
        ({20: np.ones(4), 21: np.ones(4), 22: np.ones(4), 23: np.ones(4)}, "layer normalisation"),
    ],
)
def test_fused_lstm_with_more(tmp_path: Path, extra: dict[int, np.ndarray], message: str) -> None:
    path = save(fused(stack("lstm"), STEPS, extra=extra), tmp_path / "m.tflite")
    with pytest.raises(Unsupported, match=f"UNIDIRECTIONAL_SEQUENCE_LSTM that makes 'lstm': has .*{message}"):
        read_tflite(path)


def bidirectional(merge: bool, lstm: bool = False) -> bytes:
    """A fused bidirectional SimpleRNN, or LSTM, with a dense head on every step."""
    model = Model()
    graph = model.graph()
    rng = np.random.default_rng(7)
    x = graph.tensor("input", (1, STEPS, FEATURES))
    operands = [x, *[-1] * (47 if lstm else 11)]
    gates, starts, states = (4, (1, 18), (35, 37)) if lstm else (1, (1, 5), (4, 8))
    for start, state in zip(starts, states, strict=True):
        bias = start + (11 if lstm else 2)
        for k in range(gates):
            operands[start + k] = graph.constant("w", rng.normal(0, 0.4, (4, FEATURES)))
            operands[start + gates + k] = graph.constant("r", rng.normal(0, 0.4, (4, 4)))
            operands[bias + k] = graph.constant("b", rng.normal(0, 0.4, 4))
        for k in range(1 + lstm):
            operands[state + k] = graph.tensor("state", (1, 4))
            graph.table.tensors[-1].isVariable = True
    kind = "LSTM" if lstm else "RNN"
    options = getattr(schema, f"BidirectionalSequence{kind}OptionsT")()
    options.fusedActivationFunction, options.mergeOutputs, options.timeMajor = 4, merge, False
    outputs = [("both", (1, STEPS, 8))] if merge else [("forward", (1, STEPS, 4)), ("backward", (1, STEPS, 4))]
    made = graph.operator(f"BIDIRECTIONAL_SEQUENCE_{kind}", operands, outputs, options)
    if not merge:
        options = schema.ConcatenationOptionsT()
        options.axis = 2
        made = graph.operator("CONCATENATION", made, [("joined", (1, STEPS, 8))], options)
    options = schema.FullyConnectedOptionsT()
    options.keepNumDims = True
    weights, bias = graph.constant("head", rng.normal(0, 0.4, (2, 8))), graph.constant("bias", rng.normal(0, 0.4, 2))
    made = graph.operator("FULLY_CONNECTED", [*made, weights, bias], [("out", (1, STEPS, 2))], options, 5)
    graph.finish([x], made)
    return model.bytes()


@pytest.mark.parametrize("merge", [True, False])
@pytest.mark.parametrize("lstm", [True, False])
def test_fused_bidirectional(tmp_path: Path, lstm: bool, merge: bool) -> None:
    content = bidirectional(merge, lstm)
    forecaster = read_tflite(save(content, tmp_path / "m.tflite"))
    cell = Lstm if lstm else SimpleRnn
    assert kinds_of(forecaster) == [Window, cell, cell, Merge, Dense]
    np.testing.assert_allclose(window(forecaster, windows()), litert(content, windows()), atol=1e-5)


def fused_rnn(single: bool, function: int, major: bool = False) -> bytes:
    """UNIDIRECTIONAL_SEQUENCE_RNN over a window, or RNN on one sample."""
    model = Model()
    graph = model.graph()
    rng = np.random.default_rng(9)
    x = graph.tensor("input", (1, FEATURES) if single else (1, STEPS, FEATURES))
    value, shape = x, (1, 4) if single else (1, STEPS, 4)
    if major:
        order, shape = graph.constant("perm", [1, 0, 2], np.int32), (STEPS, 1, 4)
        options = schema.TransposeOptionsT()
        (value,) = graph.operator("TRANSPOSE", [x, order], [("turned", (STEPS, 1, FEATURES))], options)
    operands = [
        value,
        *(graph.constant(n, rng.normal(0, 0.4, s)) for n, s in (("w", (4, FEATURES)), ("r", (4, 4)), ("b", 4))),
    ]
    operands.append(graph.tensor("h", (1, 4)))
    graph.table.tensors[-1].isVariable = True
    options = schema.RNNOptionsT() if single else schema.SequenceRNNOptionsT()
    options.fusedActivationFunction = function
    if not single:
        options.timeMajor = major
    (made,) = graph.operator("RNN" if single else "UNIDIRECTIONAL_SEQUENCE_RNN", operands, [("rnn", shape)], options)
    if not single:
        options = schema.GatherOptionsT()
        options.axis = 0 if major else 1
        (made,) = graph.operator(
            "GATHER", [made, graph.constant("last", STEPS - 1, np.int32)], [("l", (1, 4))], options
        )
    y = graph.dense("out", made, graph.constant("head", rng.normal(0, 0.4, (2, 4))))
    graph.finish([x], [y])
    return model.bytes()


@pytest.mark.parametrize("major", [False, True])
@pytest.mark.parametrize(("function", "name"), [(4, "tanh"), (1, "relu")])
def test_fused_rnn(tmp_path: Path, function: int, name: str, major: bool) -> None:
    content = fused_rnn(False, function, major)
    forecaster = read_tflite(save(content, tmp_path / "m.tflite"))
    assert kinds_of(forecaster) == [SimpleRnn, Dense] and forecaster.layers[0].activation == name
    np.testing.assert_allclose(window(forecaster, windows()), litert(content, windows()), atol=1e-5)


def streamed(content: bytes, x: np.ndarray) -> np.ndarray:
    """One sample after the other; LiteRT keeps the state in the operator's variables."""
    with quiet():
        engine = interpreter(content)
        engine.allocate_tensors()
        given, made = engine.get_input_details()[0]["index"], engine.get_output_details()[0]["index"]
        found = []
        for value in x:
            engine.set_tensor(given, value[None])
            engine.invoke()
            found.append(engine.get_tensor(made)[0])
    return np.array(found)


def fused_step() -> bytes:
    """LSTM on one sample, its states in variables."""
    model = Model()
    graph = model.graph()
    rng = np.random.default_rng(10)
    x = graph.tensor("input", (1, FEATURES))
    operands = [x, *[-1] * 19]
    for k in range(4):
        operands[1 + k] = graph.constant(f"w{k}", rng.normal(0, 0.4, (4, FEATURES)))
        operands[5 + k] = graph.constant(f"r{k}", rng.normal(0, 0.4, (4, 4)))
        operands[12 + k] = graph.constant(f"b{k}", rng.normal(0, 0.4, 4))
    for k in (18, 19):
        operands[k] = graph.tensor(f"state{k}", (1, 4))
        graph.table.tensors[-1].isVariable = True
    options = schema.LSTMOptionsT()
    options.fusedActivationFunction = 4
    (made,) = graph.operator("LSTM", operands, [("lstm", (1, 4))], options)
    y = graph.dense("out", made, graph.constant("head", rng.normal(0, 0.4, (2, 4))))
    graph.finish([x], [y])
    return model.bytes()


@pytest.mark.parametrize("kind", [SimpleRnn, Lstm])
def test_fused_single_steps(tmp_path: Path, kind: type) -> None:
    content = fused_rnn(True, 4) if kind is SimpleRnn else fused_step()
    forecaster = read_tflite(save(content, tmp_path / "m.tflite"))
    assert kinds_of(forecaster) == [kind, Dense]
    x = windows((8, FEATURES))
    stacked = cells(forecaster)
    ours, _ = run(stacked, zero_state(stacked, (1,)), x[None].astype(np.float64))
    np.testing.assert_allclose(ours[0], streamed(content, x), atol=1e-5)


# --- unrolled graphs and single steps ---------------------------------------------------------


@pytest.mark.parametrize("kind", ["float32", "float16", "int8", "int4"])
def test_unrolled(tmp_path: Path, kind: str) -> None:
    layers = stack("rnn", "rnn")
    made = Forecaster(
        "m",
        tuple(layers),
        tuple(Channel(f"x{k}") for k in range(FEATURES)),
        tuple(Channel(f"y{k}") for k in range(2)),
        STEPS,
    )
    content = unrolled(made, kind)
    forecaster = read_tflite(save(content, tmp_path / "m.tflite"))
    assert kinds_of(forecaster) == [SimpleRnn, SimpleRnn, Dense] and forecaster.window == STEPS
    np.testing.assert_allclose(window(forecaster, windows()), litert(content, windows()), atol=1e-5)


def test_weights_that_differ_between_steps(tmp_path: Path) -> None:
    """Two graphs of one step each are no recurrent layer."""
    layers = stack("rnn")
    made = Forecaster("m", tuple(layers), tuple(Channel(f"x{k}") for k in range(FEATURES)), (), STEPS)
    table = schema.ModelT.InitFromPackedBuf(unrolled(made), 0)
    graph = table.subgraphs[0]
    products = [one for one in graph.operators if list(one.inputs[1:2]) == list(graph.operators[1].inputs[1:2])]
    assert len(products) == STEPS
    source = graph.tensors[products[2].inputs[1]]
    values = np.frombuffer(bytes(table.buffers[source.buffer].data), "<f4") * np.float32(1.01)
    table.buffers.append(schema.BufferT())
    table.buffers[-1].data = np.frombuffer(values.tobytes(), np.uint8)
    other = schema.TensorT()
    other.name, other.shape, other.type, other.buffer = b"w", source.shape, source.type, len(table.buffers) - 1
    other.hasRank = True
    graph.tensors.append(other)
    products[2].inputs = np.array([products[2].inputs[0], len(graph.tensors) - 1, products[2].inputs[2]], np.int32)
    with pytest.raises(Unsupported):
        read_tflite(save(pack(table), tmp_path / "m.tflite"))


@pytest.mark.parametrize("mixed", [True, False])
@pytest.mark.parametrize("kinds", [("lstm",), ("gru",), ("lstm", "lstm"), ("gru", "lstm"), ("lstm", "gru")])
def test_one_step(tmp_path: Path, kinds: tuple[str, ...], mixed: bool) -> None:
    layers = stack(*kinds)
    content = one_step(layers, mixed)
    forecaster = read_tflite(save(content, tmp_path / "m.tflite"))
    assert [type(layer) for layer in forecaster.layers] == [type(layer) for layer in layers]
    assert len(forecaster.inputs) == FEATURES and len(forecaster.outputs) == 2 and forecaster.window > 1
    x = windows((5, FEATURES))
    with quiet():
        engine = interpreter(content)
        engine.allocate_tensors()
        given, made = engine.get_input_details(), engine.get_output_details()
        state = [np.zeros(one["shape"], np.float32) for one in given[1:]]
        stacked = cells(forecaster)
        ours = zero_state(stacked, (1,))
        for value in x:
            for detail, content_of in zip(given, [value[None], *state], strict=True):
                engine.set_tensor(detail["index"], content_of)
            engine.invoke()
            *state, expected = (engine.get_tensor(one["index"]) for one in made)
            y, ours = step(stacked, ours, value[None].astype(np.float64))
            np.testing.assert_allclose(y, expected, atol=1e-5)
    outputs, _ = run(stacked, zero_state(stacked, (1,)), x[None].astype(np.float64))
    np.testing.assert_allclose(outputs[0, -1], expected[0], atol=1e-5)


@pytest.mark.parametrize("upper", [True, False])
def test_hard_sigmoid_from_either_side(tmp_path: Path, upper: bool) -> None:
    """min(1, max(0, x)) and max(0, min(1, x)) are the same."""
    layers = stack("gru")
    table = schema.ModelT.InitFromPackedBuf(one_step(layers), 0)
    graph = table.subgraphs[0]

    def code(name: str) -> int:
        made = schema.OperatorCodeT()
        made.builtinCode = made.deprecatedBuiltinCode = getattr(schema.BuiltinOperator, name)
        table.operatorCodes.append(made)
        return len(table.operatorCodes) - 1

    def tensor(values: np.ndarray | None, shape: tuple[int, ...]) -> int:
        made = schema.TensorT()
        made.name, made.shape, made.hasRank, made.type, made.buffer = b"t", np.array(shape, np.int32), True, 0, 0
        if values is not None:
            table.buffers.append(schema.BufferT())
            table.buffers[-1].data = np.frombuffer(values.astype(np.float32).tobytes(), np.uint8)
            made.buffer = len(table.buffers) - 1
        graph.tensors.append(made)
        return len(graph.tensors) - 1

    codes = {name: code(name) for name in ("MINIMUM", "RELU", "MUL", "ADD")}
    one, slope, half = (tensor(np.array([value]), (1,)) for value in (1.0, 0.2, 0.5))
    operators = []
    for found in graph.operators:
        if table.operatorCodes[found.opcodeIndex].builtinCode != schema.BuiltinOperator.LOGISTIC:
            operators.append(found)
            continue
        shape = tuple(graph.tensors[found.inputs[0]].shape)
        chain = [("MUL", [found.inputs[0], slope]), ("ADD", [half]), *(
            [("MINIMUM", [one]), ("RELU", [])] if upper else [("RELU", []), ("MINIMUM", [one])])]  # fmt: skip
        value = -1
        for k, (name, operands) in enumerate(chain):
            made = schema.OperatorT()
            made.opcodeIndex = codes[name]
            made.inputs = np.array(operands if k == 0 else [value, *operands], np.int32)
            value = found.outputs[0] if k == len(chain) - 1 else tensor(None, shape)
            made.outputs = np.array([value], np.int32)
            operators.append(made)
    graph.operators = operators
    forecaster = read_tflite(save(pack(table), tmp_path / "m.tflite"))
    assert forecaster.layers[0].recurrent_activation == "hard_sigmoid_keras2"
    np.testing.assert_allclose(forecaster.layers[0].kernel, layers[0].kernel, atol=1e-6)


def test_one_step_without_its_state(tmp_path: Path) -> None:
    table = schema.ModelT.InitFromPackedBuf(one_step(stack("lstm")), 0)
    table.subgraphs[0].outputs = table.subgraphs[0].outputs[-1:]
    with pytest.raises(Unsupported, match="state among its inputs that is no output"):
        read_tflite(save(pack(table), tmp_path / "m.tflite"))


# --- loops, lists, variables ----------------------------------------------------------------------


def listed(weights: np.ndarray, recurrent: np.ndarray, bias: np.ndarray, prefix: str = "Flex") -> bytes:
    """A SimpleRNN in a WHILE over lists of tensors, as Keras' default conversion leaves it; nothing can run it."""
    units, features = weights.shape
    model = Model()
    main_graph, condition, body = model.graph(), model.graph(), model.graph()
    state = [("t", (), "int32"), ("h", (1, units), "float32"), ("in", (), "variant"), ("out", (), "variant")]

    ports = [condition.tensor(f"cond/{name}", shape, kind) for name, shape, kind in state]
    less = condition.tensor("less", (), "bool")
    condition.into("LESS", [ports[0], condition.constant("n", STEPS, np.int32)], [less], schema.LessOptionsT())
    condition.finish(ports, [less])

    ports = [body.tensor(f"body/{name}", shape, kind) for name, shape, kind in state]
    t, h, source, result = ports
    following, written = body.tensor("next", (), "int32"), body.tensor("written", (), "variant")
    body.into("ADD", [t, body.constant("one", 1, np.int32)], [following], schema.AddOptionsT())
    shape = body.constant("shape", [1, features], np.int32)
    (x,) = body.operator(f"{prefix}TensorListGetItem", [source, t, shape], [("x", (1, features))])
    z = body.add(
        "z", body.dense("wx", x, body.constant("w", weights)), body.dense("uh", h, body.constant("u", recurrent))
    )
    h = body.tanh("h", body.add("zb", z, body.constant("b", bias)))
    body.into(f"{prefix}TensorListSetItem", [result, t, h], [written])
    body.finish(ports, [following, h, source, written])

    x = main_graph.tensor("input", (1, STEPS, features), batch=True)
    (turned,) = main_graph.operator(
        "TRANSPOSE", [x, main_graph.constant("perm", [1, 0, 2], np.int32)], [("turned", (STEPS, 1, features))],
        schema.TransposeOptionsT(),
    )  # fmt: skip
    lists = [main_graph.tensor(name, (), "variant") for name in ("in", "out")]
    shape = main_graph.constant("shape", [1, features], np.int32)
    main_graph.into(f"{prefix}TensorListFromTensor", [turned, shape], lists[:1])
    main_graph.into(f"{prefix}TensorListReserve", [shape, main_graph.constant("n", STEPS, np.int32)], lists[1:])
    options = schema.WhileOptionsT()
    options.condSubgraphIndex, options.bodySubgraphIndex = condition.index, body.index
    results = [main_graph.tensor(f"end/{name}", shape, kind) for name, shape, kind in state]
    zeros = [main_graph.constant("t0", 0, np.int32), main_graph.constant("h0", np.zeros((1, units)))]
    main_graph.into("WHILE", [*zeros, *lists], results, options)
    (stacked,) = main_graph.operator(f"{prefix}TensorListStack", [results[3], shape], [("all", (STEPS, 1, units))])
    (back,) = main_graph.operator(
        "TRANSPOSE", [stacked, main_graph.constant("perm", [1, 0, 2], np.int32)], [("back", (1, STEPS, units))],
        schema.TransposeOptionsT(),
    )  # fmt: skip
    main_graph.finish([x], [back])
    return model.bytes()


def test_lists_of_tensors(tmp_path: Path) -> None:
    layer = random_layer("rnn", 4, FEATURES, np.random.default_rng(2))
    content = listed(layer.kernel[0], layer.recurrent_kernel[0], layer.bias[0])
    forecaster = read_tflite(save(content, tmp_path / "m.tflite"))
    assert kinds_of(forecaster) == [SimpleRnn] and forecaster.sequence_output
    made = replace(forecaster, layers=(replace(layer, return_sequences=True),))
    np.testing.assert_allclose(window(forecaster, windows()), window(made, windows()), atol=1e-6)


def with_variable(assigned: bool) -> bytes:
    """A SimpleRNN of one unrolled step whose state is a variable, zero by an initialiser that runs once."""
    model = Model()
    graph, initial = model.graph(), model.graph()
    rng = np.random.default_rng(4)

    def handle(where: Any) -> int:
        made = where.tensor("variable", (), "resource")
        options = schema.VarHandleOptionsT()
        options.container, options.sharedName = b"", b"state"
        where.into("VAR_HANDLE", [], [made], options)
        return made

    if assigned:
        initial.into("ASSIGN_VARIABLE", [handle(initial), initial.constant("zeros", np.zeros((1, 4)))], [])
    initial.finish([], [])
    options = schema.CallOnceOptionsT()
    options.initSubgraphIndex = initial.index
    graph.into("CALL_ONCE", [], [], options)
    variable = handle(graph)
    (h,) = graph.operator("READ_VARIABLE", [variable], [("h", (1, 4))])
    x = graph.tensor("input", (1, FEATURES))
    w, u = (graph.constant(name, rng.normal(0, 0.5, (4, n))) for name, n in (("w", FEATURES), ("u", 4)))
    h = graph.tanh("h", graph.add("z", graph.dense("wx", x, w, graph.constant("b", rng.normal(0, 0.5, 4))),
                                  graph.dense("uh", h, u)))  # fmt: skip
    graph.into("ASSIGN_VARIABLE", [variable, h], [])
    graph.finish([x], [h])
    return model.bytes()


def test_state_in_a_variable(tmp_path: Path) -> None:
    content = with_variable(True)
    forecaster = read_tflite(save(content, tmp_path / "m.tflite"))
    assert kinds_of(forecaster) == [SimpleRnn]
    x = windows((5, FEATURES))
    stacked = cells(forecaster)
    ours, _ = run(stacked, zero_state(stacked, (1,)), x[None].astype(np.float64))
    with quiet():
        engine = interpreter(content)
        engine.allocate_tensors()
        for t, value in enumerate(x):
            engine.set_tensor(engine.get_input_details()[0]["index"], value[None])
            engine.invoke()
            given = engine.get_tensor(engine.get_output_details()[0]["index"])
            np.testing.assert_allclose(ours[:, t], given, atol=1e-5)


# --- refusals ------------------------------------------------------------------------------------------


def plain(operators: Callable[[Any, int], int], shape: tuple[int, ...] = (1, STEPS, FEATURES)) -> bytes:
    model = Model()
    graph = model.graph()
    x = graph.tensor("input", shape)
    graph.finish([x], [operators(graph, x)])
    return model.bytes()


def feed_forward(graph: Any, x: int) -> int:
    shape = graph.constant("shape", [1, STEPS * FEATURES], np.int32)
    (flat,) = graph.operator("RESHAPE", [x, shape], [("flat", (1, STEPS * FEATURES))], schema.ReshapeOptionsT())
    h = graph.tanh("h", graph.dense("d", flat, graph.constant("w", np.ones((4, STEPS * FEATURES)))))
    return graph.dense("out", h, graph.constant("v", np.ones((2, 4))))


def convolution(graph: Any, x: int, image: tuple[int, int] = (1, STEPS), kernel: int = 1) -> int:
    w = graph.constant("w", np.ones((2, kernel, 3, FEATURES)))
    shape = graph.constant("shape", [1, *image, FEATURES], np.int32)
    (wide,) = graph.operator("RESHAPE", [x, shape], [("wide", (1, *image, FEATURES))], schema.ReshapeOptionsT())
    options = schema.Conv2DOptionsT()
    options.padding, options.strideH, options.strideW = schema.Padding.VALID, 1, 1
    made = (1, image[0] - kernel + 1, image[1] - 2, 2)
    (frames,) = graph.operator("CONV_2D", [wide, w, -1], [("made", made)], options)
    shape = graph.constant("behind", [1, made[1] * made[2], 2], np.int32)
    return graph.operator("RESHAPE", [frames, shape], [("flat", (1, made[1] * made[2], 2))], schema.ReshapeOptionsT())[
        0
    ]


def attention(graph: Any, x: int) -> int:
    options = schema.BatchMatMulOptionsT()
    options.adjY = True
    return graph.operator("BATCH_MATMUL", [x, x], [("scores", (1, STEPS, STEPS))], options)[0]


REFUSED: dict[str, tuple[Callable[[], bytes], str]] = {
    "feed-forward": (lambda: plain(feed_forward), "no recurrent layer.*\n.*2 FULLY_CONNECTED.*--black-box"),
    "convolution": (lambda: plain(convolution), "no recurrent layer.*\n.*1 CONV_2D.*--black-box"),
    "image": (
        lambda: plain(lambda g, x: convolution(g, x, (STEPS // 3, 3), 2)),
        "CONV_2D that makes 'made': covers an image.*\n.*1 CONV_2D.*--black-box",
    ),
    "attention": (lambda: plain(attention), "BATCH_MATMUL that makes 'scores': multiplies inputs"),
    "custom": (
        lambda: plain(lambda g, x: g.operator("MyOperator", [x], [("made", (1, 2))])[0]),
        "MyOperator that makes 'made'.*\n.*1 MyOperator",
    ),
    "softmax": (
        lambda: plain(lambda g, x: g.operator("SOFTMAX", [x], [("p", (1, 2))], schema.SoftmaxOptionsT())[0]),
        "no recurrent layer",
    ),
    "batch": (lambda: plain(lambda g, x: x, (4, STEPS, FEATURES)), "input 'input': has shape"),
    "rank": (lambda: plain(lambda g, x: x, (1, 8, 8, 3)), "input 'input': is float32"),
    "weights in variables": (lambda: with_variable(False), "holds no value of the variable.*\n.*frozen"),
    "loop that is no layer": (lambda: looped(np.eye(4) / 2), "no layer that is known.*\n.*1 WHILE.*--black-box"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_refused(tmp_path: Path, name: str) -> None:
    make, message = REFUSED[name]
    with pytest.raises(BadInput, match=r"m\.tflite") as caught:
        read_tflite(save(make(), tmp_path / "m.tflite"))
    assert re.search(message, str(caught.value)), str(caught.value)


def test_emitted_files_are_refused(tmp_path: Path) -> None:
    forecaster = Forecaster(
        "m", tuple(stack("lstm")), tuple(Channel(f"x{k}") for k in range(FEATURES)),
        (Channel("y0"), Channel("y1")), STEPS,
    )  # fmt: skip
    content = write_tflite(quantize(forecaster, dict.fromkeys(blocks(forecaster), 8), "nearest")).data
    with pytest.raises(Unsupported, match="a file that edgetqs wrote") as caught:
        read_tflite(save(content, tmp_path / "m.tflite"))
    assert "float model" in str(caught.value)


# --- hostile files ----------------------------------------------------------------------------------------


def endless() -> bytes:
    """A WHILE whose condition is a constant."""
    model = Model()
    graph, condition, body = model.graph(), model.graph(), model.graph()
    port = condition.tensor("c/x", (1, FEATURES))
    condition.finish([port], [condition.constant("true", 1, np.int32)])
    port = body.tensor("b/x", (1, FEATURES))
    body.finish([port], [body.tanh("again", port)])
    x = graph.tensor("input", (1, FEATURES))
    options = schema.WhileOptionsT()
    options.condSubgraphIndex, options.bodySubgraphIndex = condition.index, body.index
    graph.finish([x], graph.operator("WHILE", [x], [("end", (1, FEATURES))], options))
    return model.bytes()


def itself() -> bytes:
    """A WHILE whose body is the graph that it stands in."""
    table = schema.ModelT.InitFromPackedBuf(endless(), 0)
    table.subgraphs[0].operators[0].builtinOptions.bodySubgraphIndex = 0
    return pack(table)


def doubling() -> bytes:
    """Joined with itself again and again."""

    def operators(graph: Any, x: int) -> int:
        for k in range(40):
            (x,) = graph.operator("CONCATENATION", [x, x], [(f"x{k}", (1, 1))], schema.ConcatenationOptionsT())
        return x

    return plain(operators)


def huge(graph: Any, x: int) -> int:
    shape = graph.constant("shape", [1 << 20, 1 << 20], np.int32)
    return graph.operator("FILL", [shape, graph.constant("zero", 0.0)], [("made", (1, 1))], schema.FillOptionsT())[0]


@pytest.mark.parametrize("make", [endless, itself, doubling, lambda: plain(huge)])
def test_bombs(tmp_path: Path, make: Callable[[], bytes]) -> None:
    path = save(make(), tmp_path / "m.tflite")
    start = time.perf_counter()
    with pytest.raises(BadInput):
        read_tflite(path)
    assert time.perf_counter() - start < 5


def test_a_window_of_days(tmp_path: Path) -> None:
    """Each step is followed, so its length is bounded."""
    model = Model()
    graph = model.graph()
    x = graph.tensor("input", (1, 8193, 1))
    graph.finish([x], graph.operator("TANH", [x], [("y", (1, 8193, 1))]))
    with pytest.raises(Unsupported, match="input 'input': has a window of 8193 steps"):
        read_tflite(save(model.bytes(), tmp_path / "m.tflite"))


def test_mutated(tmp_path: Path) -> None:
    """Bytes of sound files exchanged: read, or refused with an error of ours, and at once."""
    layer = random_layer("rnn", 4, FEATURES, np.random.default_rng(2))
    files = [
        fused(stack("lstm"), STEPS),
        one_step(stack("gru")),
        bidirectional(True),
        with_variable(True),
        listed(layer.kernel[0], layer.recurrent_kernel[0], layer.bias[0]),
    ]
    chance = random.Random(0)
    path = tmp_path / "m.tflite"
    begin = time.perf_counter()
    refused = 0
    for number in range(400):
        content = bytearray(files[number % len(files)])
        for _ in range(chance.choice((1, 2, 8))):
            content[chance.randrange(len(content))] = chance.choice((0, 1, 0x7F, 0x80, 0xFF, chance.randrange(256)))
        if number % 9 == 0:
            del content[chance.randrange(len(content)) :]
        path.write_bytes(content)
        start = time.perf_counter()
        try:
            read_tflite(path)
        except BadInput:
            refused += 1
        assert time.perf_counter() - start < 5, number
    assert 50 < refused < 400
    assert time.perf_counter() - begin < 60


# --- the command line -----------------------------------------------------------------------------------------


def test_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    layers = stack("lstm")
    path = save(fused(layers, STEPS, clip=10.0), tmp_path / "fused.tflite")
    assert main(["inspect", str(path)]) == 0
    shown = capsys.readouterr().out
    assert "cell within 10" in shown and "Lstm" in shown and "Dense" in shown and f"window {STEPS}" in shown
    assert main(["score", str(path), "--horizon", "4"]) == 0
    assert "lstm/kernel/i" in capsys.readouterr().out
    assert main(["init", str(path)]) == 0
    assert 'file = "fused.tflite"' in (tmp_path / "edgetqs.toml").read_text()
    capsys.readouterr()
    arguments = [
        "plan",
        str(path),
        "--target",
        "x86",
        "--weight-budget",
        "4000",
        "--no-refine",
        "--rounding",
        "nearest",
    ]
    assert main(arguments) == 0
    assert "lstm" in capsys.readouterr().out


def test_softmax(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = schema.ModelT.InitFromPackedBuf(fused(stack("lstm"), STEPS), 0)
    graph = table.subgraphs[0]
    table.operatorCodes.append(schema.OperatorCodeT())
    code = table.operatorCodes[-1]
    code.builtinCode = code.deprecatedBuiltinCode = schema.BuiltinOperator.SOFTMAX
    made = schema.TensorT()
    made.name, made.shape, made.hasRank, made.type, made.buffer = b"p", np.array([1, 2], np.int32), True, 0, 0
    graph.tensors.append(made)
    last = schema.OperatorT()
    last.opcodeIndex, last.inputs = len(table.operatorCodes) - 1, graph.outputs
    last.outputs = graph.outputs = np.array([len(graph.tensors) - 1], np.int32)
    last.builtinOptionsType, last.builtinOptions = schema.BuiltinOptions.SoftmaxOptions, schema.SoftmaxOptionsT()
    last.builtinOptions.beta = 1.0
    graph.operators.append(last)
    content = pack(table)
    path = save(content, tmp_path / "m.tflite")
    assert main(["inspect", str(path)]) == 0
    assert "softmax" in capsys.readouterr().out
    expected = litert(content, windows())
    np.testing.assert_allclose(window(read_tflite(path), windows()), expected, atol=1e-5)
    config = tmp_path / "edgetqs.toml"
    config.write_text('[model]\nfile = "m.tflite"\nlogits = true\n')
    assert main(["inspect", str(path)]) == 0
    forecaster = load(config)
    np.testing.assert_allclose(softmax(window(forecaster, windows())), expected, atol=1e-5)


def test_unreadable_through_the_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = save(plain(feed_forward), tmp_path / "m.tflite")
    assert main(["inspect", str(path)]) == 2
    assert "--black-box" in capsys.readouterr().err
    assert main(["init", str(path)]) == 0  # for scoring from outside


# --- what TensorFlow converts --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tf() -> Iterator[Any]:
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")
    found = pytest.importorskip("tensorflow")
    yield found


def cases(tf: Any) -> dict[str, list[Any]]:
    K = tf.keras.layers
    return {
        "lstm": [K.LSTM(5), K.Dense(2)],
        "gru": [K.GRU(5), K.Dense(2)],
        "gru before": [K.GRU(5, reset_after=False), K.Dense(2)],
        "rnn": [K.SimpleRNN(5), K.Dense(2)],
        "unrolled lstm": [K.LSTM(5, unroll=True, return_sequences=True), K.BatchNormalization(),
                          K.LSTM(4, unroll=True), K.Dense(3, "relu"), K.Dense(1, "sigmoid")],
        "unrolled gru": [K.GRU(5, unroll=True, return_sequences=True), K.GRU(4, unroll=True), K.Dense(2)],
        "unrolled gru before": [K.GRU(5, unroll=True, reset_after=False), K.Dense(2)],
        "unrolled rnn": [K.SimpleRNN(5, "relu", unroll=True, return_sequences=True),
                         K.SimpleRNN(4, unroll=True), K.Dense(2)],
        "sequence": [K.LSTM(5, return_sequences=True), K.Dropout(0.2), K.GRU(4, return_sequences=True),
                     K.TimeDistributed(K.Dense(2))],
        "bidirectional": [K.Bidirectional(K.LSTM(5)), K.Dense(2)],
        "bidirectional twice": [K.Bidirectional(K.LSTM(4, return_sequences=True)),
                                K.Bidirectional(K.LSTM(3, return_sequences=True)), K.TimeDistributed(K.Dense(2))],
        "bidirectional sum": [K.Bidirectional(K.LSTM(4), merge_mode="sum"), K.Dense(2)],
        "as many units as features": [K.SimpleRNN(3, unroll=True, return_sequences=True),
                                      K.SimpleRNN(3, unroll=True), K.Dense(3, "tanh")],
        "bidirectional stack": [K.Bidirectional(K.GRU(5, unroll=True, return_sequences=True)),
                                K.LSTM(4, unroll=True), K.Dense(2)],
        "backwards": [K.LSTM(5, unroll=True, go_backwards=True), K.Dense(2)],
        "decoder": [K.LSTM(5), K.RepeatVector(4), K.LSTM(4, return_sequences=True), K.TimeDistributed(K.Dense(2))],
        "flatten": [K.LSTM(5, unroll=True, return_sequences=True), K.Flatten(), K.Dense(2)],
        "hard sigmoid": [K.LSTM(5, unroll=True, recurrent_activation="hard_sigmoid"), K.Dense(2)],
        "relu": [K.LSTM(5, "relu", unroll=True), K.Dense(2)],
        "normalised": [K.Normalization(mean=[1.0, 2.0, 3.0], variance=[1.0, 2.0, 3.0]), K.LSTM(5), K.Dense(2)],
        "no bias": [K.GRU(5, use_bias=False), K.Dense(2, use_bias=False)],
        "horizon": [K.LSTM(5), K.Dense(8, "tanh"), K.Reshape((4, 2))],
    }  # fmt: skip


KINDS = {
    "lstm": [Lstm, Dense],
    "gru": [Gru, Dense],
    "gru before": [Gru, Dense],
    "rnn": [SimpleRnn, Dense],
    "unrolled lstm": [Lstm, Lstm, Dense, Dense],
    "unrolled gru": [Gru, Gru, Dense],
    "unrolled gru before": [Gru, Dense],
    "unrolled rnn": [SimpleRnn, SimpleRnn, Dense],
    "sequence": [Lstm, Gru, Dense],
    "bidirectional": [Window, Lstm, Lstm, Merge, Dense],
    "bidirectional twice": [Window, Lstm, Lstm, Merge, Lstm, Lstm, Merge, Dense],
    "bidirectional sum": [Window, Lstm, Lstm, Merge, Dense, Dense],
    "as many units as features": [SimpleRnn, SimpleRnn, Dense],
    "bidirectional stack": [Window, Gru, Gru, Merge, Lstm, Dense],
    "backwards": [Window, Lstm, Dense],
    "decoder": [Lstm, Lstm, Dense],
    "flatten": [Window, Lstm, Dense],
    "hard sigmoid": [Lstm, Dense],
    "relu": [Lstm, Dense],
    "normalised": [Lstm, Dense],
    "no bias": [Gru, Dense],
    "horizon": [Lstm, Dense],
}


@pytest.mark.tensorflow
@pytest.mark.parametrize("name", KINDS)
def test_converted(tf: Any, tmp_path: Path, name: str) -> None:
    content, model = converted(tf, cases(tf)[name], (STEPS, FEATURES), "")
    forecaster = read_tflite(save(content, tmp_path / "m.tflite"))
    assert kinds_of(forecaster) == KINDS[name] and forecaster.window == STEPS
    expected = litert(content, windows())
    np.testing.assert_allclose(window(forecaster, windows()), expected, atol=1e-5 * max(1, np.abs(expected).max()))
    np.testing.assert_allclose(window(forecaster, windows()), model(windows(), training=False), atol=1e-4)
    if name == "normalised":
        np.testing.assert_allclose([channel.mean for channel in forecaster.inputs], [1, 2, 3], rtol=1e-6)
    if name in ("gru", "gru before"):
        assert forecaster.layers[0].reset_after == (name == "gru")


@pytest.mark.tensorflow
@pytest.mark.parametrize("name", ["lstm", "gru", "gru before", "rnn"])
def test_converted_with_lists(tf: Any, tmp_path: Path, name: str) -> None:
    """LiteRT cannot run these; Keras can."""
    content, model = converted(tf, cases(tf)[name], (STEPS, FEATURES), "flex")
    forecaster = read_tflite(save(content, tmp_path / "m.tflite"))
    assert kinds_of(forecaster) == KINDS[name]
    np.testing.assert_allclose(window(forecaster, windows()), model(windows(), training=False), atol=1e-5)


@pytest.mark.tensorflow
def test_converted_single_step(tf: Any, tmp_path: Path) -> None:
    """As Keras users export a step: the states among inputs and outputs, in the converter's own order."""
    K = tf.keras.layers
    x, h, c = K.Input((1, FEATURES), batch_size=1), K.Input((4,), batch_size=1), K.Input((4,), batch_size=1)
    y, *after = K.LSTM(4, return_state=True, unroll=True)(x, initial_state=[h, c])
    model = tf.keras.Model([x, h, c], [K.Dense(2)(y), *after])
    content = tf.lite.TFLiteConverter.from_keras_model(model).convert()
    forecaster = read_tflite(save(content, tmp_path / "m.tflite"))
    assert kinds_of(forecaster) == [Lstm, Dense] and len(forecaster.inputs) == FEATURES
    state = [np.zeros((1, 4), np.float32)] * 2
    stacked = cells(forecaster)
    ours = zero_state(stacked, (1,))
    for value in windows((5, FEATURES)):
        expected, *state = (one.numpy() for one in model([value[None, None], *state]))
        y, ours = step(stacked, ours, value[None].astype(np.float64))
        np.testing.assert_allclose(y, expected, atol=1e-5)


@pytest.mark.tensorflow
def test_converted_with_an_open_window(tf: Any, tmp_path: Path) -> None:
    K = tf.keras.layers
    model = tf.keras.Sequential([K.Input((None, FEATURES)), K.GRU(5), K.Dense(2)])
    converter = tf.lite.TFLiteConverter.from_keras_model(model)
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS, tf.lite.OpsSet.SELECT_TF_OPS]
    converter._experimental_lower_tensor_list_ops = False
    forecaster = read_tflite(save(converter.convert(), tmp_path / "m.tflite"))
    assert forecaster.window == 32
    x = windows((4, 32, FEATURES))
    np.testing.assert_allclose(window(forecaster, x), model(x, training=False), atol=1e-5)


@pytest.mark.tensorflow
@pytest.mark.parametrize(
    ("name", "how"),
    [
        ("unrolled lstm", "int8"),
        ("unrolled gru", "int8"),
        ("unrolled gru before", "int8"),
        ("unrolled rnn", "int8"),
        ("unrolled lstm", "hybrid"),
        ("unrolled lstm", "float16"),
    ],
)
@pytest.mark.filterwarnings("ignore:Statistics for quantized inputs")
def test_converted_with_fewer_bits(tf: Any, tmp_path: Path, name: str, how: str) -> None:
    """The matrices are the file's, dequantized; what they were rounded from is near."""
    layers = cases(tf)[name]
    if name == "unrolled lstm":  # large enough to be quantized, without a BatchNormalization that is folded
        layers = [tf.keras.layers.LSTM(40, unroll=True), tf.keras.layers.Dense(2)]
    content, model = converted(tf, layers, (STEPS, FEATURES), how)
    forecaster = read_tflite(save(content, tmp_path / "m.tflite"))
    table = schema.ModelT.InitFromPackedBuf(content, 0)
    stored = [
        real for tensor in table.subgraphs[0].tensors for real in [dequantized(table, tensor)] if real is not None
    ]
    for layer in forecaster.layers:
        for tensor in layer.tensors:
            rows = getattr(layer, tensor).reshape(-1, getattr(layer, tensor).shape[-1])
            alike = [real for real in stored if real.shape == rows.shape and np.allclose(real, rows, atol=1e-6)]
            if isinstance(layer, Dense) or "before" not in name:
                assert alike or len(rows) < 3, (layer.name, tensor)
    np.testing.assert_allclose(window(forecaster, windows()), model(windows(), training=False), atol=0.05)
    if how == "int8":
        scale = table.subgraphs[0].tensors[table.subgraphs[0].inputs[0]].quantization.scale[0]
        zero = table.subgraphs[0].tensors[table.subgraphs[0].inputs[0]].quantization.zeroPoint[0]
        assert forecaster.input_range == pytest.approx(max(127 - zero, 128 + zero) * scale)


@pytest.mark.tensorflow
@pytest.mark.filterwarnings("ignore:Statistics for quantized inputs")
@pytest.mark.parametrize(("kind", "name"), [(Lstm, "LSTM"), (Gru, "GRU"), (SimpleRnn, "SimpleRNN")])
def test_converted_int8_loop(tf: Any, tmp_path: Path, kind: type, name: str) -> None:
    """One arrangement in which the calibrator survives a loop; the rounded weights are within half a step."""
    K = tf.keras.layers
    model = tf.keras.Sequential([K.Input((STEPS, FEATURES)), getattr(K, name)(8), K.Dense(2)])
    rng = np.random.default_rng(0)
    for weight in model.weights:
        if "seed" not in weight.name:
            weight.assign(rng.normal(0, 0.4, weight.shape))
    converter = tf.lite.TFLiteConverter.from_keras_model(model)
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.representative_dataset = lambda: ([windows((1, STEPS, FEATURES), seed)] for seed in range(20))
    converter._experimental_default_to_single_batch_in_tensor_list_ops = True
    content = converter.convert()
    table = schema.ModelT.InitFromPackedBuf(content, 0)
    assert any(tensor.type == schema.TensorType.INT8 for graph in table.subgraphs[1:] for tensor in graph.tensors)
    forecaster = read_tflite(save(content, tmp_path / "m.tflite"))
    assert kinds_of(forecaster) == [kind, Dense]
    kernel = model.layers[0].cell.kernel.numpy().T
    half = np.abs(kernel).max() / 127 / 2
    assert 0 < np.abs(forecaster.layers[0].kernel.reshape(-1, FEATURES) - kernel).max() < 1.01 * half
    np.testing.assert_allclose(window(forecaster, windows()), model(windows(), training=False), atol=0.03)


def dequantized(table: Any, tensor: Any) -> np.ndarray | None:
    """A matrix of the file, read by another way than the reader's."""
    data = table.buffers[tensor.buffer].data
    kinds = {schema.TensorType.INT8: "<i1", schema.TensorType.FLOAT16: "<f2", schema.TensorType.FLOAT32: "<f4"}
    if data is None or tensor.type not in kinds or len(tensor.shape) != 2:
        return None
    values = np.frombuffer(bytes(data), kinds[tensor.type]).reshape(tensor.shape).astype(np.float64)
    scale = None if tensor.quantization is None else tensor.quantization.scale
    if tensor.type != schema.TensorType.INT8 or scale is None:
        return values
    shape = [-1 if axis == tensor.quantization.quantizedDimension else 1 for axis in range(2)]
    return values * (scale.reshape(shape) if len(scale) > 1 else scale[0])
