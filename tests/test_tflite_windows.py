"""Convolutions, pooling and LayerNormalization in what TensorFlow converts, and their operators on damaged options."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema
from converted import FEATURES, converted, litert, windows
from tflite_files import Model, save

from edgetqs.errors import BadInput
from edgetqs.model import Activation, Dense, Gru, LayerNormalization, Lstm, Merge, Pool, Window
from edgetqs.read_tflite import read_tflite
from edgetqs.rollout import window
from edgetqs.tflite_graph import Graphs
from edgetqs.tflite_operators import OPERATORS
from edgetqs.tflite_symbols import value_of
from edgetqs.tflite_trace import Trace, Unknown

pytestmark = pytest.mark.filterwarnings("error::RuntimeWarning")
STEPS = 12


@pytest.fixture(scope="module")
def tf() -> Iterator[Any]:
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")
    yield pytest.importorskip("tensorflow")


def cases(tf: Any) -> dict[str, list[Any]]:
    K = tf.keras.layers
    return {
        "valid": [K.Conv1D(6, 3, activation="relu"), K.MaxPooling1D(2), K.LSTM(5), K.Dense(1)],
        "causal": [K.Conv1D(6, 3, padding="causal", dilation_rate=2, activation="sigmoid"), K.GRU(5), K.Dense(1)],
        "same": [K.Conv1D(6, 4, padding="same", strides=2, activation="tanh"),
                 K.MaxPooling1D(3, strides=2, padding="same"), K.GRU(5), K.Dense(1)],
        "linear": [K.Conv1D(6, 3, padding="same"), K.LSTM(5, unroll=True), K.Dense(1)],
        "strides": [K.Conv1D(6, 2, strides=2, activation="relu"), K.LSTM(5), K.Dense(1)],
        "a frame that is not read": [K.Conv1D(6, 2, activation="relu"), K.MaxPooling1D(2), K.LSTM(5), K.Dense(1)],
        "normalised": [K.Normalization(mean=[1.0, 2.0, 3.0], variance=[1.0, 2.0, 3.0]),
                       K.Conv1D(6, 3, padding="same", activation="relu"), K.LSTM(5), K.Dense(1)],
        "two": [K.Conv1D(6, 3, padding="same", activation="relu"), K.Conv1D(4, 3, activation="relu"),
                K.MaxPooling1D(2), K.LSTM(5), K.Dense(1)],
        "batch norm": [K.Conv1D(6, 3, padding="causal", dilation_rate=2), K.BatchNormalization(), K.ReLU(),
                       K.MaxPooling1D(2), K.LSTM(5), K.Dense(1)],
        "batch norm between": [K.Conv1D(6, 3, padding="same", activation="relu"), K.BatchNormalization(),
                               K.Conv1D(4, 3, padding="same", activation="relu"), K.LSTM(5), K.Dense(1)],
        "pool first": [K.MaxPooling1D(2), K.LSTM(5), K.Dense(1)],
        "behind a layer": [K.LSTM(5, return_sequences=True), K.Conv1D(4, 3, padding="causal", activation="relu"),
                           K.GRU(3, return_sequences=True), K.TimeDistributed(K.Dense(1))],
        "flatten": [K.LSTM(5, return_sequences=True), K.Conv1D(4, 3, activation="relu"), K.Flatten(), K.Dense(1)],
        "global": [K.Bidirectional(K.LSTM(5, return_sequences=True)), K.GlobalMaxPooling1D(), K.Dense(2)],
        "pooled halves": [K.Bidirectional(K.LSTM(5, return_sequences=True)), K.MaxPooling1D(2), K.LSTM(3), K.Dense(2)],
        "average": [K.AveragePooling1D(2), K.LSTM(5, return_sequences=True), K.GlobalAveragePooling1D(), K.Dense(1)],
        "sigmoid before": [K.Dense(5, "sigmoid"), K.LSTM(5), K.Dense(1)],
        "layer norm": [K.LayerNormalization(), K.LSTM(5, return_sequences=True), K.LayerNormalization(epsilon=0.1),
                       K.LSTM(4), K.LayerNormalization(), K.Dense(1)],
        "layer norm in part": [K.GRU(5, return_sequences=True, unroll=True), K.LayerNormalization(scale=False),
                               K.LSTM(4, unroll=True), K.LayerNormalization(center=False), K.Dense(1)],
        "layer norm of a dense layer": [K.LSTM(5), K.Dense(4), K.LayerNormalization(), K.ReLU(), K.Dense(1)],
    }  # fmt: skip


KINDS = {
    "valid": [Window, Dense, Pool, Lstm, Dense],
    "causal": [Window, Dense, Gru, Dense],
    "same": [Window, Dense, Pool, Gru, Dense],
    "linear": [Window, Dense, Lstm, Dense],
    "strides": [Window, Dense, Lstm, Dense],
    "a frame that is not read": [Window, Dense, Pool, Lstm, Dense],
    "normalised": [Window, Dense, Lstm, Dense],
    "two": [Window, Dense, Dense, Pool, Lstm, Dense],
    "batch norm": [Window, Dense, Pool, Lstm, Dense],
    "batch norm between": [Window, Dense, Dense, Dense, Lstm, Dense],
    "pool first": [Window, Pool, Lstm, Dense],
    "behind a layer": [Lstm, Window, Dense, Gru, Dense],
    "flatten": [Window, Lstm, Dense, Dense],
    "global": [Window, Lstm, Lstm, Merge, Pool, Dense],
    "pooled halves": [Window, Lstm, Lstm, Merge, Pool, Lstm, Dense],
    "average": [Window, Pool, Lstm, Pool, Dense],
    "sigmoid before": [Dense, Lstm, Dense],
    "layer norm": [LayerNormalization, Lstm, LayerNormalization, Lstm, LayerNormalization, Dense],
    "layer norm in part": [Gru, LayerNormalization, Lstm, LayerNormalization, Dense],
    "layer norm of a dense layer": [Lstm, Dense, LayerNormalization, Activation, Dense],
}


@pytest.mark.tensorflow
@pytest.mark.parametrize("name", KINDS)
def test_converted(tf: Any, tmp_path: Path, name: str) -> None:
    content, model = converted(tf, cases(tf)[name], (STEPS, FEATURES), "")
    forecaster = read_tflite(save(content, tmp_path / "m.tflite"))
    x = windows((4, STEPS, FEATURES))
    assert [type(layer) for layer in forecaster.layers] == KINDS[name] and forecaster.window == STEPS
    assert len({layer.name for layer in forecaster.layers}) == len(forecaster.layers)
    expected = litert(content, x)
    found = window(forecaster, x).reshape(expected.shape)
    np.testing.assert_allclose(found, expected, atol=1e-5 * max(1, np.abs(expected).max()))
    np.testing.assert_allclose(found, model(x, training=False), atol=1e-4)


@pytest.mark.tensorflow
@pytest.mark.parametrize("how", ["float16", "hybrid", "int8"])
@pytest.mark.filterwarnings("ignore:Statistics for quantized inputs")
def test_converted_with_fewer_bits(tf: Any, tmp_path: Path, how: str) -> None:
    K = tf.keras.layers
    layers = [K.Conv1D(32, 8, activation="relu"), K.MaxPooling1D(2), K.LSTM(8, unroll=True), K.Dense(1)]
    content, model = converted(tf, layers, (STEPS, FEATURES), how)
    forecaster = read_tflite(save(content, tmp_path / "m.tflite"))
    x = windows((4, STEPS, FEATURES))
    assert [type(layer) for layer in forecaster.layers] == [Window, Dense, Pool, Lstm, Dense]
    kernel = model.layers[0].kernel.numpy().transpose(2, 0, 1).reshape(32, -1)
    step = 0.0 if how == "float16" else np.abs(kernel).max() / 127
    np.testing.assert_allclose(forecaster.layers[1].kernel[0], kernel, atol=1e-3 + 0.51 * step)
    np.testing.assert_allclose(window(forecaster, x), model(x, training=False), atol=0.05)


@pytest.mark.tensorflow
def test_parameters_of_a_layer_normalization(tf: Any, tmp_path: Path) -> None:
    K = tf.keras.layers
    content, model = converted(tf, [K.LSTM(5), K.LayerNormalization(epsilon=0.02), K.Dense(1)], (STEPS, FEATURES), "")
    found = read_tflite(save(content, tmp_path / "m.tflite")).layers[1]
    gamma, beta = (weight.numpy() for weight in model.layers[1].weights)
    np.testing.assert_allclose(found.gamma, gamma, atol=1e-6)
    np.testing.assert_allclose(found.beta, beta, atol=1e-6)
    assert found.epsilon == pytest.approx(0.02)


# --- operators -----------------------------------------------------------------------


def traced(content: bytes, x: np.ndarray) -> np.ndarray:
    """What the expressions of a file's only output come to, over windows x (B, T, features)."""
    trace = Trace(Graphs(content, "m"), OPERATORS, 1)
    (output,) = trace.main()
    assert isinstance(output, Unknown)
    leaves = trace.symbols.evaluate({(0, t): x[:, t].astype(np.float64) for t in range(x.shape[1])}, len(x))
    values = [value_of(vector, leaves, len(x)) for vector in output.cells.ravel()]
    assert output.shape[0] == 1
    return np.stack(values, axis=1).reshape(len(x), *output.shape[1:])


def options(kind: str, **values: object) -> object:
    made = getattr(schema, f"{kind}OptionsT")()
    for name, value in values.items():
        setattr(made, name, value)
    return made


SHAPES = {  # operator: (shape of its input, further constant operands, shape of its output, options)
    "PAD": ((1, 6, 3), [[[0, 0], [2, 1], [0, 0]]], (1, 9, 3), None),
    "MEAN": ((1, 6, 3), [[1]], (1, 3), options("Reducer")),
    "MEAN of elements": ((1, 6, 3), [[-1]], (1, 6, 1), options("Reducer", keepDims=True)),
    "REDUCE_MAX": ((1, 2, 3, 3), [[1, 2]], (1, 1, 1, 3), options("Reducer", keepDims=True)),
    "MAX_POOL_2D": ((1, 1, 6, 3), [], (1, 1, 3, 3), options("Pool2D", padding=0, filterHeight=1, filterWidth=3,
                                                             strideH=1, strideW=2)),
    "AVERAGE_POOL_2D": ((1, 6, 1, 3), [], (1, 3, 1, 3), options("Pool2D", padding=0, filterHeight=3, filterWidth=1,
                                                                 strideH=2, strideW=1)),
    "CONV_2D": ((1, 1, 6, 3), None, (1, 1, 3, 4), options("Conv2D", padding=0, strideH=1, strideW=2, dilationHFactor=1,
                                                           dilationWFactor=1, fusedActivationFunction=1)),
    "CONV_2D dilated": ((1, 6, 1, 3), None, (1, 2, 1, 4), options("Conv2D", padding=1, strideH=1, strideW=1,
                                                                   dilationHFactor=4, dilationWFactor=1)),
}  # fmt: skip


@pytest.mark.parametrize("name", SHAPES)
def test_operators_compute_what_litert_does(name: str) -> None:
    shape, further, result, chosen = SHAPES[name]
    model = Model()
    graph = model.graph()
    x = graph.tensor("input", (1, 6, 3))
    given = graph.operator("RESHAPE", [x, graph.constant("s", shape, np.int32)], [("given", shape)])[0]
    if further is None:
        taps = (2, 1) if shape[2] == 1 else (1, 2)
        rng = np.random.default_rng(0)
        operands = [graph.constant("w", rng.normal(size=(4, *taps, 3))), graph.constant("b", rng.normal(size=4))]
    else:
        operands = [graph.constant(f"c{k}", values, np.int32) for k, values in enumerate(further)]
    graph.finish([x], graph.operator(name.split()[0], [given, *operands], [("made", result)], chosen, 1))
    some = windows((3, 6, 3))
    np.testing.assert_allclose(traced(model.bytes(), some), litert(model.bytes(), some), atol=1e-6)


def test_a_convolution_between_blocks() -> None:
    """How older converters wrote a dilation of two with causal padding."""
    model = Model()
    graph = model.graph()
    x = graph.tensor("input", (1, 6, 3))

    def operator(name: str, x: int, constants: dict[str, object], shape: tuple[int, ...], chosen: object = None) -> int:
        operands = [graph.constant(key, values, np.int32) for key, values in constants.items()]
        return graph.operator(name, [x, *operands], [(f"made{len(shape)}", shape)], chosen)[0]

    apart = operator("SPACE_TO_BATCH_ND", x, {"block": [2], "paddings": [[2, 0]]}, (2, 4, 3))
    wide = operator("RESHAPE", apart, {"wide": [2, 1, 4, 3]}, (2, 1, 4, 3))
    weights = graph.constant("w", np.random.default_rng(0).normal(size=(5, 1, 2, 3)))
    chosen = options("Conv2D", padding=1, strideH=1, strideW=1, dilationHFactor=1, dilationWFactor=1)
    bias = graph.constant("b", np.arange(5))
    (made,) = graph.operator("CONV_2D", [wide, weights, bias], [("convolved", (2, 1, 3, 5))], chosen)
    narrow = operator("RESHAPE", made, {"narrow": [2, 3, 5]}, (2, 3, 5))
    graph.finish([x], [operator("BATCH_TO_SPACE_ND", narrow, {"block2": [2], "crops": [[0, 0]]}, (1, 6, 5))])
    some = windows((3, 6, 3))
    np.testing.assert_allclose(traced(model.bytes(), some), litert(model.bytes(), some), atol=1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"strideW": 0}, "stride"),
        ({"dilationWFactor": -1}, "dilation"),
        ({"padding": 1, "dilationWFactor": 9}, "taps over 6 frames"),
    ],
)
def test_damaged_options(tmp_path: Path, change: dict[str, int], message: str) -> None:
    chosen = {"padding": 0, "strideH": 1, "strideW": 1, "dilationHFactor": 1, "dilationWFactor": 1, **change}
    model = Model()
    graph = model.graph()
    x = graph.tensor("input", (1, 6, 3))
    given = graph.operator("RESHAPE", [x, graph.constant("s", [1, 1, 6, 3], np.int32)], [("given", (1, 1, 6, 3))])[0]
    weights = graph.constant("w", np.ones((4, 1, 2, 3)))
    graph.finish(
        [x], graph.operator("CONV_2D", [given, weights, -1], [("m", (1, 1, 6, 4))], options("Conv2D", **chosen))
    )
    with pytest.raises(BadInput, match=message):
        read_tflite(save(model.bytes(), tmp_path / "m.tflite"))
