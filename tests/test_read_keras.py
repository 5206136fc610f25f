"""The Keras reader against hand-made files, published models, hostile files and Keras itself."""

from __future__ import annotations

import copy
import hashlib
import io
import itertools
import json
import os
import random
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from whole import whole

from edgetqs.emit_c import c_name
from edgetqs.errors import BadInput, EdgeTqsError, Unsupported
from edgetqs.hdf5 import Hdf5
from edgetqs.model import Activation, Dense, Forecaster, Gru, Lstm, Merge, SimpleRnn, Window
from edgetqs.read_keras import read_keras
from edgetqs.rollout import window

pytestmark = pytest.mark.filterwarnings("error::RuntimeWarning")

THIRD_PARTY = Path(__file__).parents[2] / "shared" / "third-party"

Config = dict[str, Any]
Weights = list[tuple[str, np.ndarray]]


# --- files as Keras writes them ---------------------------------------------


def layer(kind: str, name: str, **config: Any) -> Config:
    return {"class_name": kind, "config": {"name": name, **config}}


def lstm(name: str = "lstm", units: int = 3, **config: Any) -> Config:
    options = {"units": units, "activation": "tanh", "recurrent_activation": "sigmoid", "use_bias": True}
    return layer("LSTM", name, **{**options, **config})


def gru(name: str = "gru", units: int = 3, **config: Any) -> Config:
    options = {"units": units, "activation": "tanh", "recurrent_activation": "sigmoid", "use_bias": True}
    return layer("GRU", name, **{**options, **config})


def dense(name: str = "dense", units: int = 2, **config: Any) -> Config:
    return layer("Dense", name, **{"units": units, "activation": "linear", "use_bias": True, **config})


def sequential(*layers: Config, shape: tuple[int | None, ...] = (8, 2)) -> Config:
    first = layer("InputLayer", "input", batch_shape=[None, *shape])
    return {"class_name": "Sequential", "config": {"name": "sequential", "layers": [first, *layers]}}


def array(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng([seed, *shape]).normal(0, 0.4, shape).astype(np.float32)


def rnn_weights(gates: int, inputs: int = 2, units: int = 3, bias_rows: int = 0) -> Weights:
    wide = gates * units
    bias = array(bias_rows, wide) if bias_rows else array(wide)
    return [("kernel", array(inputs, wide)), ("recurrent_kernel", array(units, wide)), ("bias", bias)]


def bidirectional_weights() -> Weights:
    return [(f"{way}/{name}", values) for way in ("forward", "backward") for name, values in rnn_weights(4)]


def dense_weights(inputs: int = 3, units: int = 2) -> Weights:
    return [("kernel", array(inputs, units)), ("bias", array(units))]


def write_h5(path: Path, config: Any, weights: dict[str, Weights], version: str | None = "2.4.0") -> Path:
    with h5py.File(path, "w") as file:
        file.attrs["model_config"] = json.dumps(config).encode()
        if version:
            file.attrs["keras_version"] = version.encode()
        groups = file.create_group("model_weights")
        groups.attrs["layer_names"] = [name.encode() for name in weights]
        for name, tensors in weights.items():
            group = groups.create_group(name)
            group.attrs["weight_names"] = [f"{name}/{tensor}:0".encode() for tensor, _ in tensors]
            for tensor, values in tensors:
                group[f"{name}/{tensor}:0"] = values
    return path


def write_keras(path: Path, config: Any, tensors: dict[str, np.ndarray], version: str = "3.9.2") -> Path:
    """``tensors`` by their path in model.weights.h5; None for an empty group."""
    buffer = io.BytesIO()
    with h5py.File(buffer, "w") as file:
        for name, values in tensors.items():
            file[name] = values
    return write_zip(path, config, buffer.getvalue(), version)


def write_zip(path: Path, config: Any, weights: bytes, version: str = "3.9.2") -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("metadata.json", json.dumps({"keras_version": version}))
        archive.writestr("config.json", config if isinstance(config, str) else json.dumps(config))
        archive.writestr("model.weights.h5", weights)
    return path


def plain_tensors() -> dict[str, np.ndarray]:
    """For an LSTM of 3 units over 2 features and a Dense of 2."""
    found = {f"layers/lstm/cell/vars/{i}": values for i, (_, values) in enumerate(rnn_weights(4))}
    return found | {f"layers/dense/vars/{i}": values for i, (_, values) in enumerate(dense_weights())}


@pytest.fixture
def plain_keras(tmp_path: Path) -> Path:
    return write_keras(tmp_path / "plain.keras", sequential(lstm(), dense()), plain_tensors())


@pytest.fixture
def plain_h5(tmp_path: Path) -> Path:
    weights = {"lstm": rnn_weights(4), "dense": dense_weights()}
    return write_h5(tmp_path / "plain.h5", sequential(lstm(), dense()), weights)


def outputs(forecaster: Forecaster, steps: int = 8) -> np.ndarray:
    return window(forecaster, array(4, steps, len(forecaster.inputs), seed=1))


# --- published models --------------------------------------------------------


def third_party(name: str) -> tuple[Path, dict[str, np.ndarray]]:
    path = THIRD_PARTY / name
    if not path.exists():
        pytest.skip(f"{path} is not there")
    return path, dict(np.load(f"{path}.npz"))


@pytest.mark.parametrize("name", ["circuit_lstm.h5", "traffic_gru.h5", "turbofan_rul.h5"])
def test_published_h5(name: str) -> None:
    path, reference = third_party(name)
    forecaster = read_keras(path)
    np.testing.assert_allclose(window(forecaster, reference["x"]), reference["y_numpy_f64_own_semantics"], rtol=1e-12)
    assert forecaster.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert forecaster.name == path.stem


@pytest.mark.parametrize("name", ["emg_gru.keras", "emg_lstm_unrolled.keras"])
def test_published_keras(name: str) -> None:
    """Both end in a softmax; with its logits instead they are the same model."""
    path, reference = third_party(name)
    for logits in (False, True):
        forecaster = read_keras(path, logits=logits)
        x = reference["x"].reshape(len(reference["x"]), forecaster.window, len(forecaster.inputs))
        y = window(forecaster, x)
        if logits:
            exponentials = np.exp(y)
            y = exponentials / exponentials.sum(axis=1, keepdims=True)
        np.testing.assert_allclose(y, reference["y_numpy_f64_own_semantics"], rtol=1e-12)


@pytest.mark.parametrize(
    "end",
    [
        [dense(activation="softmax"), layer("Dropout", "drop", rate=0.5)],
        [dense(activation="linear"), layer("Activation", "a", activation="softmax")],
        [dense(activation="linear"), layer("Softmax", "s", axis=-1)],
        [dense(activation="linear")],
    ],
    ids=["dense", "activation", "layer", "none"],
)
def test_logits(tmp_path: Path, end: list[Config], plain_h5: Path) -> None:
    weights = {"lstm": rnn_weights(4), "dense": dense_weights()}
    path = write_h5(tmp_path / "m.h5", sequential(lstm(), *end), weights)
    assert np.array_equal(outputs(read_keras(path, logits=True)), outputs(read_keras(plain_h5)))


# --- what a file says --------------------------------------------------------


def test_plain_model(plain_keras: Path, plain_h5: Path) -> None:
    forecaster = read_keras(plain_keras)
    first, last = forecaster.layers
    assert isinstance(first, Lstm) and isinstance(last, Dense)
    kernel, recurrent_kernel, bias = (values for _, values in rnn_weights(4))
    for gate in range(4):
        block = slice(3 * gate, 3 * gate + 3)
        np.testing.assert_array_equal(first.kernel[gate], kernel[:, block].T)
        np.testing.assert_array_equal(first.recurrent_kernel[gate], recurrent_kernel[:, block].T)
        np.testing.assert_array_equal(first.bias[gate], bias[block])
    assert not first.kernel.flags.writeable
    assert [channel.name for channel in forecaster.inputs] == ["x0", "x1"]
    assert [channel.name for channel in forecaster.outputs] == ["y0", "y1"]
    assert (forecaster.window, forecaster.name, forecaster.windowed) == (8, "plain", False)
    assert forecaster.parameters == 4 * 3 * (2 + 3 + 1) + 3 * 2 + 2
    np.testing.assert_array_equal(outputs(forecaster), outputs(read_keras(str(plain_h5))))


def test_file_kind_is_told_by_content(plain_h5: Path) -> None:
    """TensorFlow before 2.12 wrote HDF5 under any other suffix too."""
    assert read_keras(plain_h5.rename(plain_h5.with_suffix(".keras"))).window == 8


@pytest.mark.parametrize(
    ("stem", "name"),
    [
        ("weather", "weather"),
        ("my model-v2.1", "my_model_v2_1"),
        ("2024", "forecaster_2024"),
        ("…", "forecaster"),
        ("_x_", "x"),
        ("model", "forecaster"),
        ("best-lstm-units64-lr0.001-epoch100-val0.0123-x", "best_lstm_units64_lr0_001_epoch100_val0"),
    ],
)
def test_model_name_is_an_identifier(plain_keras: Path, stem: str, name: str) -> None:
    found = read_keras(plain_keras.rename(plain_keras.with_name(f"{stem}.keras"))).name
    assert found == name == c_name(found)


def test_layer_names_are_distinct_identifiers(tmp_path: Path) -> None:
    config = sequential(lstm("a*/\nb"), dense("a b"))
    assert [one.name for one in read_keras(write_keras(tmp_path / "m.keras", config, plain_tensors())).layers] == [
        "a_b",
        "a_b_",
    ]


def test_open_window(tmp_path: Path) -> None:
    config = sequential(lstm(), dense(), shape=(None, 2))
    assert read_keras(write_keras(tmp_path / "m.keras", config, plain_tensors())).window == 32


def test_weights_follow_the_order_of_layers_not_names(tmp_path: Path) -> None:
    tensors = plain_tensors() | {f"layers/dense_1/vars/{i}": v for i, (_, v) in enumerate(dense_weights(2, 1))}
    config = sequential(lstm(), dense("dense_1"), dense("dense", units=1))
    forecaster = read_keras(write_keras(tmp_path / "m.keras", config, tensors))
    assert [(one.name, one.kernel.shape) for one in forecaster.layers[1:]] == [
        ("dense_1", (1, 2, 3)),
        ("dense", (1, 1, 2)),
    ]


@pytest.mark.parametrize("separator", ["/", "\\"])
def test_first_keras_files_of_tensorflow(tmp_path: Path, separator: str) -> None:
    """TensorFlow 2.12: other group names, layers with weights counted twice, backslashes on Windows."""
    top = "_layer_checkpoint_dependencies"
    tensors = {}
    for name, values in plain_tensors().items():
        prefix, _, end = name.replace("layers", top).rpartition("/vars/")
        tensors[f"{prefix.replace('/', separator)}/vars/{end}"] = values
    for end, (_, values) in enumerate(dense_weights(2, 1)):
        tensors[f"{top}{separator}dense_2/vars/{end}"] = values
    config = sequential(lstm(), dense(), dense("head", units=1))
    forecaster = read_keras(write_keras(tmp_path / "m.keras", config, tensors, "2.12.0"))
    assert forecaster.layers[2].kernel.shape == (1, 1, 2)


@pytest.mark.parametrize(
    ("version", "function"),
    [
        (None, "hard_sigmoid_keras2"),
        ("1.2.2", "hard_sigmoid_keras2"),
        ("2.3.0-tf", "hard_sigmoid_keras2"),
        ("3.0.5", "hard_sigmoid_keras3"),
    ],
)
def test_hard_sigmoid_depends_on_the_version(tmp_path: Path, version: str | None, function: str) -> None:
    config = sequential(
        lstm(recurrent_activation="hard_sigmoid"), layer("Activation", "act", activation="hard_sigmoid")
    )
    recurrent, activation = read_keras(write_h5(tmp_path / "m.h5", config, {"lstm": rnn_weights(4)}, version)).layers
    assert isinstance(recurrent, Lstm) and recurrent.recurrent_activation == function
    assert isinstance(activation, Activation) and activation.function == function


@pytest.mark.parametrize(("rows", "reset_after"), [(0, False), (2, True)])
def test_gru_that_does_not_say_reset_after(tmp_path: Path, rows: int, reset_after: bool) -> None:
    """Keras 2.1: a bare list of layers, no InputLayer, no reset_after."""
    config = {"class_name": "Sequential", "config": [gru(batch_input_shape=[None, 8, 2])]}
    weights = rnn_weights(3, bias_rows=rows)
    (one,) = read_keras(write_h5(tmp_path / "m.h5", config, {"gru": weights}, "2.1.4")).layers
    assert isinstance(one, Gru) and one.reset_after is reset_after
    bias = weights[2][1].reshape(-1, 3, 3)
    np.testing.assert_array_equal(one.bias, bias[0])
    np.testing.assert_array_equal(one.recurrent_bias, bias[1] if rows else np.zeros((3, 3)))


@pytest.mark.parametrize(("kind", "order"), [("LSTM", "icfo"), ("GRU", "zrh"), ("SimpleRNN", "h")])
@pytest.mark.parametrize("apart", [True, False])
def test_keras_1(tmp_path: Path, kind: str, order: str, apart: bool) -> None:
    """Old option names; the gates' weights in arrays of their own, or joined (consume_less='gpu')."""
    names = {"LSTM": "ifco", "GRU": "zrh", "SimpleRNN": "h"}[kind]
    weights = rnn_weights(len(names))
    old = {
        "name": "r",
        "batch_input_shape": [None, 8, 2],
        "input_dim": 2,
        "output_dim": 3,
        "activation": "tanh",
        "inner_activation": "hard_sigmoid",
        "consume_less": "cpu" if apart else "gpu",
        "return_sequences": False,
    }
    head = {"name": "d", "output_dim": 2, "activation": "linear", "bias": True}
    config = {
        "class_name": "Sequential",
        "config": [{"class_name": kind, "config": old}, {"class_name": "Dense", "config": head}],
    }
    stored = weights
    if apart:
        stored = [
            (f"r_{role}_{gate}", values[..., 3 * names.index(gate) : 3 * names.index(gate) + 3])
            for gate in order
            for role, (_, values) in zip("WUb", weights, strict=True)
        ]
    path = write_h5(tmp_path / "old.h5", config, {"r": stored, "d": dense_weights()}, "1.2.2")
    new = layer(kind, "r", units=3, activation="tanh", recurrent_activation="hard_sigmoid", use_bias=True)
    if kind == "GRU":
        new["config"]["reset_after"] = False
    same = write_h5(tmp_path / "new.h5", sequential(new, dense("d")), {"r": weights, "d": dense_weights()}, "2.2.4")
    np.testing.assert_array_equal(outputs(read_keras(path)), outputs(read_keras(same)))


def test_long_lists_of_names_come_in_pieces(plain_h5: Path) -> None:
    expected = outputs(read_keras(plain_h5))
    with h5py.File(plain_h5, "a") as file:
        for group, name in (("model_weights", "layer_names"), ("model_weights/lstm", "weight_names")):
            names = list(file[group].attrs.pop(name))
            file[group].attrs[f"{name}0"], file[group].attrs[f"{name}1"] = names[:1], names[1:]
    np.testing.assert_array_equal(outputs(read_keras(plain_h5)), expected)


def functional(*links: tuple[Config, list[str]], version: int = 3) -> Config:
    """A Functional configuration from (layer, names of its inputs)."""
    layers = []
    for one, sources in links:
        if version == 3:
            args = [{"class_name": "__keras_tensor__", "config": {"keras_history": [name, 0, 0]}} for name in sources]
            calls: list[Any] = [{"args": args, "kwargs": {"mask": None, "training": False}}] if args else []
        else:
            calls = [[[name, 0, 0, {}] for name in sources]] if sources else []
        layers.append({**one, "name": one["config"]["name"], "inbound_nodes": calls})
    names = [one["name"] for one in layers]
    ends = {"input_layers": [names[0], 0, 0], "output_layers": [names[-1], 0, 0]}
    if version < 3:
        ends = {key: [value] for key, value in ends.items()}
    kind = "Functional" if version == 3 else "Model"
    return {"class_name": kind, "config": {"name": "f", "layers": layers, **ends}}


INPUT = layer("InputLayer", "input", batch_shape=[None, 8, 2])


@pytest.mark.parametrize("version", [2, 3])
def test_functional(tmp_path: Path, plain_h5: Path, version: int) -> None:
    config = functional((INPUT, []), (lstm(), ["input"]), (dense(), ["lstm"]), version=version)
    path = write_h5(tmp_path / "f.h5", config, {"lstm": rnn_weights(4), "dense": dense_weights()})
    np.testing.assert_array_equal(outputs(read_keras(path)), outputs(read_keras(plain_h5)))


# --- what is refused ----------------------------------------------------------


@pytest.mark.parametrize(
    ("links", "text"),
    [
        ([(INPUT, []), (lstm(), ["input"]), (layer("Add", "add"), ["lstm", "input"])], "'add'.*joins 'lstm', 'input'"),
        ([(INPUT, []), (dense("aside"), ["input"]), (lstm(), ["input"])], "'aside'.*not on the path"),
        ([(INPUT, []), (lstm("a"), ["b"]), (lstm("b"), ["a"])], "runs in a circle"),
        ([(INPUT, []), (lstm(), ["nowhere"])], "'nowhere'.*not there"),
    ],
)
def test_graphs_that_branch(tmp_path: Path, links: list[tuple[Config, list[str]]], text: str) -> None:
    with pytest.raises(BadInput, match=text):
        read_keras(write_h5(tmp_path / "f.h5", functional(*links), {"lstm": rnn_weights(4)}))


def test_two_outputs(tmp_path: Path) -> None:
    config = functional((INPUT, []), (lstm(), ["input"]), (dense(), ["lstm"]))
    config["config"]["output_layers"] = [["lstm", 0, 0], ["dense", 0, 0]]
    with pytest.raises(Unsupported, match="2 output_layers: 'lstm', 'dense'"):
        read_keras(write_h5(tmp_path / "f.h5", config, {}))


def test_call_with_training(tmp_path: Path) -> None:
    config = functional((INPUT, []), (lstm(), ["input"]))
    config["config"]["layers"][1]["inbound_nodes"][0]["kwargs"]["training"] = True
    with pytest.raises(Unsupported, match=r"'lstm'.*training=True"):
        read_keras(write_h5(tmp_path / "f.h5", config, {}))


LSTM_CELL = layer("LSTMCell", "cell", units=3)
REFUSED = {
    "return_state": ([lstm(return_state=True)], "'lstm' .LSTM.*return_state=True"),
    "time_major": ([lstm(time_major=True)], "'lstm' .LSTM.*time_major=True"),
    "activation": ([lstm(activation="gelu")], "'lstm' .LSTM.*activation='gelu'"),
    "recurrent": ([lstm(recurrent_activation="swish")], "recurrent_activation='swish'"),
    "function": ([lstm(activation={"class_name": "function", "config": "f"})], "activation is an object"),
    "softmax": ([lstm(activation="softmax"), dense()], "'lstm' .LSTM.*softmax"),
    "masking": ([layer("Masking", "mask", mask_value=0.0), lstm()], "'mask' .Masking.*(.|\n)*without gaps"),
    "embedding": ([layer("Embedding", "words"), lstm()], "'words' .Embedding"),
    "lambda": (
        [layer("Lambda", "magic", function=["4wEAAA==", None, None]), lstm()],
        "'magic' .Lambda(.|\n)*never run",
    ),
    "custom": ([{**lstm("mine"), "registered_name": "my>LSTM"}], "'mine'.*custom class"),
    "module": ([{**lstm("mine"), "module": "os"}], "'mine'.*custom class"),
    "conv": ([layer("Conv2D", "conv"), lstm()], "'conv' .Conv2D.*not supported"),
    "nested": ([layer("Sequential", "inner", layers=[]), lstm()], "'inner' .Sequential(.|\n)*outer one"),
    "merge": ([layer("Bidirectional", "two", merge_mode=None, layer=lstm())], "'two'.*merge_mode=None"),
    "backwards": ([layer("Bidirectional", "two", merge_mode="sum", layer=lstm(go_backwards=True))], "goes backwards"),
    "cells": ([layer("RNN", "rnn", cell=layer("StackedRNNCells", "s", cells=[]))], "StackedRNNCells"),
    "cell list": ([layer("RNN", "rnn", cell=[LSTM_CELL, LSTM_CELL])], "'rnn'.*several cells"),
    "distributed": ([lstm(return_sequences=True), layer("TimeDistributed", "td", layer=lstm("in"))], "'td'.*LSTM"),
    "no recurrent layer": ([dense(units=3)], "no recurrent layer"),
    "axis": ([layer("Normalization", "norm", axis=[1], mean=None), lstm()], r"'norm'.*axis=\[1\]"),
    "max_value": ([lstm(), layer("ReLU", "relu", max_value=6.0)], "'relu'.*max_value=6.0"),
}


@pytest.mark.parametrize(("layers", "text"), REFUSED.values(), ids=REFUSED.keys())
def test_unsupported(tmp_path: Path, layers: list[Config], text: str) -> None:
    weights = {"lstm": rnn_weights(4), "two": bidirectional_weights(), "dense": dense_weights()}
    if layers == REFUSED["no recurrent layer"][0]:
        weights["dense"] = dense_weights(2, 3)
    with pytest.raises(Unsupported, match=text) as caught:
        read_keras(write_h5(tmp_path / "m.h5", sequential(*layers), weights))
    assert str(tmp_path / "m.h5") in caught.value.where and caught.value.todo


WRONG = {
    "units is text": (sequential(lstm(units="3")), "units is not int but '3'"),
    "units is true": (sequential(lstm(units=True)), "units is not int but True"),
    "units is zero": (sequential(lstm(units=0)), "units=0"),
    "units is huge": (sequential(lstm(units=10**30)), "units=10000"),
    "units disagree": (sequential(lstm(units=4)), r"'lstm'.*kernel:0.*\(2, 12\), expected \(2, 16\)"),
    "features disagree": (sequential(lstm(), shape=(8, 5)), r"'lstm'.*\(2, 12\), expected \(5, 12\)"),
    "no bias": (sequential(lstm(use_bias=False)), "'lstm'.*expected 2 weight tensors, the file holds 3"),
    "reset_after": (sequential(gru(reset_after=True)), r"'gru'.*\(9,\), expected \(2, 9\)"),
    "no units": (sequential(layer("LSTM", "lstm")), "'lstm'.*units is missing"),
    "no weights": (sequential(lstm("other")), "'other'.*expected 3 weight tensors, the file holds 0"),
    "name is a number": (sequential(layer("LSTM", 5)), "name is 5"),
    "layer is a number": (sequential(5), "configuration is 5"),
    "huge window": (sequential(lstm(), shape=(10**12, 2)), "not between 1 and 65536"),
    "negative window": (sequential(lstm(), shape=(-1, 2)), "not between"),
    "no shape": ({"class_name": "Sequential", "config": {"layers": [lstm()]}}, "shape of the model's input is None"),
    "no layers": ({"class_name": "Sequential", "config": {"layers": []}}, "no layers"),
    "flat input": (sequential(lstm(), shape=(16,)), r"after the shape \(16,\)"),
    "reshape": (sequential(layer("Reshape", "r", target_shape=[3, -1]), shape=(16,)), "does not hold 16"),
    "repeat": (sequential(lstm(), layer("RepeatVector", "r", n=10**9)), "n=1000000000"),
    "scale": (sequential(layer("Rescaling", "s", scale=[[1], [2, 3]], offset=0.0), lstm()), "scale is not a number"),
    "infinite": (sequential(layer("Rescaling", "s", scale=float("inf"), offset=0.0), lstm()), "not finite"),
    "variance": (
        sequential(layer("Normalization", "n", axis=-1, mean=[0.0, 0.0], variance=[-1.0, 1.0]), lstm()),
        "variance is negative",
    ),
}


@pytest.mark.parametrize(("config", "text"), WRONG.values(), ids=WRONG.keys())
def test_contradictions(tmp_path: Path, config: Config, text: str) -> None:
    with pytest.raises(BadInput, match=text):
        read_keras(write_h5(tmp_path / "m.h5", config, {"lstm": rnn_weights(4), "gru": rnn_weights(3)}))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e300])
@pytest.mark.parametrize("position", [0, 1, 2])
def test_weights_that_are_not_finite(tmp_path: Path, value: float, position: int) -> None:
    weights = [(name, values.astype(np.float64)) for name, values in rnn_weights(4)]
    weights[position][1].flat[-1] = value
    with pytest.raises(BadInput, match=f"'lstm'.*/{weights[position][0]}:0.*NaN or Inf"):
        read_keras(write_h5(tmp_path / "m.h5", sequential(lstm()), {"lstm": weights}))


def test_quantized_weights(tmp_path: Path) -> None:
    weights = [(name, values.astype(np.int8)) for name, values in rnn_weights(4)]
    with pytest.raises(Unsupported, match=r"'lstm'.*int8(.|\n)*float32"):
        read_keras(write_h5(tmp_path / "m.h5", sequential(lstm()), {"lstm": weights}))


@pytest.mark.parametrize("dtype", ["<f2", ">f4", "<f8"])
def test_other_floats(tmp_path: Path, dtype: str) -> None:
    weights = [(name, values.astype(dtype)) for name, values in rnn_weights(4)]
    (one,) = read_keras(write_h5(tmp_path / "m.h5", sequential(lstm()), {"lstm": weights})).layers
    np.testing.assert_array_equal(one.bias, weights[2][1].astype(np.float32).reshape(4, 3))


# --- normalisation -------------------------------------------------------------


@pytest.mark.parametrize("scale", [[2.0, 0.5], [-2.0, 0.5], [0.0, 0.5], 3.0])
def test_rescaling_ahead_in_between_and_behind(tmp_path: Path, plain_h5: Path, scale: Any) -> None:
    """Everything folds, a negative or zero scale into the weights, and every std stays positive."""
    plain = read_keras(plain_h5)
    lstm_only, dense_only = plain.layers
    features = np.broadcast_to(scale, 2)
    config = sequential(
        layer("Rescaling", "ahead", scale=scale, offset=[0.25, -1.0]),
        lstm(),
        layer("Rescaling", "between", scale=-3.0, offset=0.5),
        dense(),
        layer("Rescaling", "behind", scale=scale, offset=4.0),
    )
    forecaster = read_keras(write_h5(tmp_path / "m.h5", config, {"lstm": rnn_weights(4), "dense": dense_weights()}))
    assert [type(one) for one in forecaster.layers] == [Lstm, Dense]
    assert all(channel.std > 0 for channel in (*forecaster.inputs, *forecaster.outputs))
    x = array(4, 8, 2, seed=1).astype(np.float64)
    hidden = whole(lstm_only, x * features + [0.25, -1.0])
    expected = whole(dense_only, hidden * -3.0 + 0.5) * features + 4.0
    np.testing.assert_allclose(window(forecaster, x), expected, atol=1e-6)


def test_normalization_becomes_the_channels(tmp_path: Path) -> None:
    config = sequential(layer("Normalization", "n", axis=[-1], mean=[20.0, 5.0], variance=[16.0, 0.0]), lstm())
    forecaster = read_keras(write_h5(tmp_path / "m.h5", config, {"lstm": rnn_weights(4)}))
    assert [(channel.mean, channel.std) for channel in forecaster.inputs] == [(20.0, 4.0), (5.0, pytest.approx(1e-7))]
    np.testing.assert_array_equal(forecaster.layers[0].kernel[0], rnn_weights(4)[0][1][:, :3].T)


def test_a_large_scaling_that_cannot_be_folded_is_refused(tmp_path: Path) -> None:
    """Its matrix would be the square of what the file holds."""
    wide = layer("Dense", "dense", units=60_000, activation="linear", use_bias=True)
    config = sequential(lstm(), wide, layer("Activation", "a", activation="tanh"), layer("Softmax", "s", axis=-1))
    weights = {"lstm": rnn_weights(4), "dense": dense_weights(units=60_000)}
    with pytest.raises(Unsupported, match="60000 features"):
        read_keras(write_h5(tmp_path / "m.h5", config, weights))


def test_convolution_and_pooling_of_keras_1(tmp_path: Path) -> None:
    """Other names of the options, and kernels with an axis more."""
    kernel, bias = array(3, 1, 2, 4, seed=8), array(4, seed=9)
    options = {"nb_filter": 4, "filter_length": 3, "border_mode": "same", "subsample_length": 1, "activation": "relu"}
    config = sequential(
        layer("Convolution1D", "conv", **options),
        layer("MaxPooling1D", "pool", pool_length=2, stride=None, border_mode="valid"),
        lstm(),
    )
    weights = {"conv": [("W", kernel), ("b", bias)], "lstm": rnn_weights(4, inputs=4)}
    forecaster = read_keras(write_h5(tmp_path / "m.h5", config, weights))
    x = array(4, 8, 2, seed=1).astype(np.float64)
    padded = np.pad(x, ((0, 0), (1, 1), (0, 0)))
    taps = np.stack([padded[:, t : t + 3].reshape(4, 6) for t in range(8)], axis=1)
    convolved = np.maximum(taps @ kernel.reshape(6, 4).astype(np.float64) + bias, 0)
    pooled = convolved.reshape(4, 4, 2, 4).max(axis=2)
    recurrent = next(one for one in forecaster.layers if isinstance(one, Lstm))
    np.testing.assert_allclose(window(forecaster, x), whole(replace(recurrent, frames=None), pooled), atol=1e-12)


def test_normalisation_that_cannot_be_folded(tmp_path: Path) -> None:
    """It becomes a dense layer of its own."""
    weights = {"lstm": rnn_weights(4)}
    scaling = layer("Rescaling", "s", scale=-2.0, offset=0.5)
    between = sequential(lstm(), scaling, layer("Activation", "a", activation="tanh"))
    x = array(4, 8, 2, seed=1).astype(np.float64)
    for number, config in enumerate([between, sequential(lstm(), scaling)]):
        forecaster = read_keras(write_h5(tmp_path / f"{number}.h5", config, weights))
        assert [type(one) for one in forecaster.layers] == [Lstm, Dense]
        expected = whole(forecaster.layers[0], x) * -2.0 + 0.5
        np.testing.assert_allclose(window(forecaster, x), np.tanh(expected) if number == 0 else expected, atol=1e-6)


def test_activation_joins_a_linear_dense_layer(tmp_path: Path) -> None:
    weights = {"lstm": rnn_weights(4), "dense": dense_weights()}
    relu = layer("Activation", "relu", activation="relu")
    joined = read_keras(write_h5(tmp_path / "a.h5", sequential(lstm(), dense(), relu), weights))
    assert [getattr(one, "activation", None) for one in joined.layers] == ["tanh", "relu"]
    apart = read_keras(write_h5(tmp_path / "b.h5", sequential(lstm(), dense(activation="tanh"), relu), weights))
    assert isinstance(apart.layers[2], Activation)


# --- hostile files ---------------------------------------------------------------


def test_missing_empty_folder_and_foreign(tmp_path: Path) -> None:
    (tmp_path / "empty.keras").touch()
    (tmp_path / "text.h5").write_text("hello")
    for name, text in [
        ("nowhere.keras", "no such file"),
        ("nul\0.h5", "no such file"),
        (".", "folder"),
        ("empty.keras", "empty"),
        ("text.h5", "neither"),
    ]:
        with pytest.raises(BadInput, match=text):
            read_keras(tmp_path / name)


def test_sparse_giant(tmp_path: Path) -> None:
    path = tmp_path / "giant.h5"
    with path.open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(BadInput, match="more than any microcontroller"):
        read_keras(path)


def test_weights_only(tmp_path: Path, plain_keras: Path, plain_h5: Path) -> None:
    with h5py.File(plain_h5, "a") as file:
        del file.attrs["model_config"]
    with zipfile.ZipFile(plain_keras) as archive:
        (tmp_path / "model.weights.h5").write_bytes(archive.read("model.weights.h5"))
    for path in (plain_h5, tmp_path / "model.weights.h5"):
        with pytest.raises(Unsupported, match=r"weights only(.|\n)*model\.save"):
            read_keras(path)


@pytest.mark.parametrize("missing", ["metadata.json", "config.json", "model.weights.h5"])
def test_members_missing(plain_keras: Path, missing: str) -> None:
    with zipfile.ZipFile(plain_keras) as archive:
        members = {name: archive.read(name) for name in archive.namelist() if name != missing}
    with zipfile.ZipFile(plain_keras, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    with pytest.raises(BadInput, match=missing):
        read_keras(plain_keras)


@pytest.mark.parametrize("member", ["config.json", "model.weights.h5"])
def test_zip_bomb(tmp_path: Path, member: str) -> None:
    with zipfile.ZipFile(tmp_path / "bomb.keras", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("metadata.json", '{"keras_version": "3.9.2"}')
        for name in ("config.json", "model.weights.h5"):
            archive.writestr(name, bytes(8 << 20) if name == member else "{}")
    with pytest.raises(BadInput, match=f"{member}.*zip bomb"):
        read_keras(tmp_path / "bomb.keras")


def test_zip_that_lies_about_sizes(plain_keras: Path) -> None:
    data = bytearray(plain_keras.read_bytes())
    for size in (0, 1, 1000, 0x7FFFFFFF, 0xFFFFFFFF):
        lying = bytearray(data)
        entry = lying.find(b"PK\x01\x02")
        while entry >= 0:
            lying[entry + 24 : entry + 28] = struct.pack("<I", size)
            entry = lying.find(b"PK\x01\x02", entry + 4)
        plain_keras.write_bytes(lying)
        with pytest.raises(BadInput):
            read_keras(plain_keras)


@pytest.mark.parametrize(
    ("config", "text"),
    [
        ("{", "not JSON"),
        ("[1]", "not a JSON object"),
        ("[" * 100_000, "not JSON"),
        ('{"a":' * 500 + "1" + "}" * 500, "nested deeper"),
        ('{"class_name": ' + "9" * 5000 + "}", "not JSON"),
        ("null", "not a JSON object"),
        ("\ud800".encode("utf-16", "surrogatepass").decode("latin-1"), "not JSON"),
        ('{"class_name": "Sequential", "config": 3}', "no layers"),
        ('{"class_name": "Mine", "config": {}}', "model of class 'Mine'"),
    ],
)
def test_configurations_that_are_none(tmp_path: Path, config: str, text: str) -> None:
    buffer = io.BytesIO()
    h5py.File(buffer, "w").close()
    with pytest.raises(BadInput, match=text):
        read_keras(write_zip(tmp_path / "m.keras", config, buffer.getvalue()))


def _giant_chunks(group: h5py.Group, _: Path) -> None:
    group.create_dataset("bias:0", shape=(10**12,), chunks=(1024,), dtype="f4", fillvalue=1.0)


def _never_written(group: h5py.Group, _: Path) -> None:
    space = h5py.h5s.create_simple((10**12,))
    h5py.h5d.create(group.id, b"bias:0", h5py.h5t.IEEE_F32LE, space)


def _no_elements_of_absurd_shape(group: h5py.Group, _: Path) -> None:
    group.create_dataset("bias:0", shape=(0, 2**62), dtype="f4")


def _compressed(group: h5py.Group, _: Path) -> None:
    group.create_dataset("bias:0", data=np.zeros(12, np.float32), compression="gzip")


def _external_link(group: h5py.Group, folder: Path) -> None:
    group["bias:0"] = h5py.ExternalLink(str(folder / "secret.h5"), "/x")


def _soft_link(group: h5py.Group, _: Path) -> None:
    group["bias:0"] = h5py.SoftLink("/model_weights/lstm/lstm/kernel:0")


def _external_storage(group: h5py.Group, folder: Path) -> None:
    group.create_dataset("bias:0", shape=(12,), dtype="f4", external=[(str(folder / "secret"), 0, 48)])


def _virtual(group: h5py.Group, folder: Path) -> None:
    layout = h5py.VirtualLayout((12,), "f4")
    layout[:] = h5py.VirtualSource(str(folder / "secret.h5"), "x", (12,))
    group.create_virtual_dataset("bias:0", layout)


def _is_a_group(group: h5py.Group, _: Path) -> None:
    group.create_group("bias:0")


def _gone(group: h5py.Group, _: Path) -> None:
    pass


@pytest.mark.parametrize(
    ("attack", "text"),
    [
        (_giant_chunks, "in chunks"),
        (_never_written, "does not fit the 4000000000000 bytes stored"),
        (_no_elements_of_absurd_shape, "does not fit"),
        (_compressed, "compressed"),
        (_external_link, "are missing"),
        (_soft_link, "a link, '/model_weights/lstm/lstm/bias:0'"),
        (_external_storage, "stored elsewhere"),
        (_virtual, "virtual"),
        (_is_a_group, "not a dataset"),
        (_gone, "are missing"),
    ],
)
def test_hostile_datasets(plain_h5: Path, attack: Callable[[h5py.Group, Path], None], text: str) -> None:
    with h5py.File(plain_h5.with_name("secret.h5"), "w") as secret:
        secret["x"] = np.zeros(12, np.float32)
    plain_h5.with_name("secret").write_bytes(bytes(48))
    with h5py.File(plain_h5, "a") as file:
        group = file["model_weights/lstm/lstm"]
        del group["bias:0"]
        attack(group, plain_h5.parent)
    with pytest.raises(BadInput, match=text):
        read_keras(plain_h5)


def test_shape_that_is_not_what_is_stored(plain_h5: Path) -> None:
    data = plain_h5.read_bytes()
    shape = struct.pack("<2Q", 3, 12)  # the recurrent kernel's
    assert data.count(shape) >= 1
    plain_h5.write_bytes(data.replace(shape, struct.pack("<2Q", 3, 11)))
    with pytest.raises(BadInput, match=r"shape \(3, 11\) of .*recurrent_kernel.* does not fit the 144 bytes"):
        read_keras(plain_h5)


def test_one_array_under_many_names(tmp_path: Path) -> None:
    path = write_h5(tmp_path / "m.h5", sequential(lstm()), {"lstm": [("big", array(1 << 18))]})
    with h5py.File(path, "a") as file:
        group = file["model_weights/lstm"]
        group.attrs["weight_names"] = [b"lstm/big:0"] * 1000
    with pytest.raises(BadInput, match="larger than the file"):
        read_keras(path)


def test_heap_object_of_size_zero(plain_h5: Path) -> None:
    """HDF5 1.14.6 loops for ever on it."""
    data = bytearray(plain_h5.read_bytes())
    heap = data.find(b"GCOL")
    data[heap + 16 : heap + 32] = bytes(16)
    plain_h5.write_bytes(data)
    with pytest.raises(BadInput, match="global heap"):
        read_keras(plain_h5)


def test_structures_that_refer_to_themselves(plain_h5: Path) -> None:
    data = bytearray(plain_h5.read_bytes())
    tree = data.find(b"TREE")
    data[tree + 5] = 1
    data[tree + 32 : tree + 40] = struct.pack("<Q", tree)
    plain_h5.write_bytes(data)
    with pytest.raises(BadInput, match="without end"):
        read_keras(plain_h5)


def test_one_text_many_times(tmp_path: Path) -> None:
    path = tmp_path / "texts.h5"
    with h5py.File(path, "w") as file:
        file.attrs["texts"] = ["x" * 50_000, "y"]
    data = bytearray(path.read_bytes())
    first = data.find(struct.pack("<I", 50_000), data.find(b"texts\0"))
    data[first + 16 : first + 32] = data[first : first + 16]
    with pytest.raises(BadInput, match="longer than the file"):
        Hdf5(bytes(data), "texts").root.strings("texts")


def flipped(data: bytes, rng: random.Random) -> bytes:
    """``data`` cut short, or with 1 to 30 bytes changed, half the time in its structures at the front."""
    if rng.random() < 0.2:
        return data[: rng.randrange(len(data))]
    changed = bytearray(data)
    end = rng.choice([len(data), min(len(data), 3000)])
    for _ in range(rng.choice([1, 1, 3, 30])):
        changed[rng.randrange(end)] = rng.choice([0, 1, 0x7F, 0xFF, rng.randrange(256)])
    return bytes(changed)


def read_or_refuse(path: Path) -> bool:
    """Whether it can be read; anything but an EdgeTqsError fails the test."""
    try:
        read_keras(path)
    except EdgeTqsError as error:
        assert isinstance(error, BadInput)
        return False
    return True


@pytest.mark.parametrize("seed", range(4))
def test_damaged_h5(plain_h5: Path, seed: int) -> None:
    rng, data = random.Random(seed), plain_h5.read_bytes()
    for _ in range(300):
        plain_h5.write_bytes(flipped(data, rng))
        read_or_refuse(plain_h5)


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("inside", [False, True])
def test_damaged_keras(plain_keras: Path, seed: int, inside: bool) -> None:
    """Damage to the archive, and to the HDF5 file in it under a right checksum."""
    rng, data = random.Random(seed), plain_keras.read_bytes()
    with zipfile.ZipFile(plain_keras) as archive:
        config, weights = archive.read("config.json").decode(), archive.read("model.weights.h5")
    for _ in range(300):
        if inside:
            write_zip(plain_keras, config, flipped(weights, rng))
        else:
            plain_keras.write_bytes(flipped(data, rng))
        read_or_refuse(plain_keras)


EVERYTHING = sequential(
    layer("Normalization", "norm", axis=[-1], mean=[0.0, 1.0], variance=[1.0, 2.0], invert=False),
    layer("Rescaling", "scale", scale=[2.0, 3.0], offset={"class_name": "__numpy__", "config": {"value": 1.0}}),
    layer("Bidirectional", "bi", merge_mode="sum", layer=lstm(return_sequences=True), backward_layer=None),
    layer("TimeDistributed", "td", layer=dense(units=2)),
    layer("BatchNormalization", "bn", axis=-1, epsilon=0.001, scale=True, center=True),
    layer("RNN", "rnn", return_sequences=True, cell={**lstm("cell"), "class_name": "LSTMCell"}),
    gru(reset_after=True),
    layer("RepeatVector", "repeat", n=2),
    layer("Reshape", "reshape", target_shape=[3, -1]),
    layer("Flatten", "flatten"),
    dense(units=1),
    layer("ReLU", "relu", max_value=None, negative_slope=0.0, threshold=0.0),
)
EVERYTHING_WEIGHTS: dict[str, Weights] = {
    "bi": bidirectional_weights(),
    "td": dense_weights(),
    "bn": [("gamma", array(2)), ("beta", array(2)), ("mean", array(2)), ("variance", np.ones(2, np.float32))],
    "rnn": rnn_weights(4),
    "gru": rnn_weights(3, inputs=3, bias_rows=2),
    "dense": dense_weights(6, 1),
}


def places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every (container, key) in a configuration."""
    for key in list(value) if isinstance(value, dict) else range(len(value)):
        yield value, key
        if isinstance(value[key], (dict, list)):
            yield from places(value[key])


@pytest.mark.parametrize("graph", ["sequential", "keras 3", "keras 2"])
def test_every_place_in_a_configuration_with_every_wrong_value(tmp_path: Path, graph: str) -> None:
    path = tmp_path / "m.h5"
    config = EVERYTHING
    if graph != "sequential":
        layers = EVERYTHING["config"]["layers"]
        links = [(one, [before["config"]["name"]]) for before, one in itertools.pairwise(layers)]
        config = functional((layers[0], []), *links, version=int(graph[-1]))
    assert read_or_refuse(write_h5(path, config, EVERYTHING_WEIGHTS))
    values = [None, True, -1, 0, 10**30, 1e308, float("nan"), "", "\ud800", [], [[]], {}, {"class_name": "LSTM"}]
    rng = random.Random(0)
    template = path.read_bytes()
    for number, _ in enumerate(places(config)):
        for value in rng.sample(values, 4 if graph == "sequential" else 2):
            wrong = copy.deepcopy(config)
            container, key = list(places(wrong))[number]
            container[key] = value
            write_config(path, template, wrong)
            read_or_refuse(path)


def write_config(path: Path, template: bytes, config: Any) -> None:
    path.write_bytes(template)
    with h5py.File(path, "a") as file:
        file.attrs["model_config"] = json.dumps(config).encode()


# --- HDF5 --------------------------------------------------------------------------


def test_hdf5_against_h5py(tmp_path: Path) -> None:
    """Groups that take several B-tree levels, and every kind of text and number that Keras has written."""
    path = tmp_path / "many.h5"
    numbers = [np.arange(6, dtype=dtype).reshape(2, 3) for dtype in ("<f2", "<f4", ">f8", "i1", "<u2", ">i8")]
    with h5py.File(path, "w") as file:
        for i in range(600):
            file.create_group(f"layer_{i}").attrs["index"] = str(i)
        for i, values in enumerate(numbers):
            file[f"layer_7/deep/er/{i}"] = values
        file["scalar"], file["none"] = np.float32(5), np.zeros((0, 4), np.float32)
        texts = {"variable": "é" * 9000, "bytes": np.bytes_(b"abc"), "list": [b"a", b"bcd"], "words": ["x", "é", ""]}
        for name, text in texts.items():
            file.attrs[name] = text
        file.attrs["empty"] = []
    root = Hdf5(path.read_bytes(), "many").root
    assert set(root) == {f"layer_{i}" for i in range(600)} | {"scalar", "none"}
    for i in range(600):
        group = root.group(f"layer_{i}")
        assert group is not None and group.strings("index") == [str(i)] and group.strings("nothing") is None
    for i, values in enumerate(numbers):
        read = root.dataset("layer_7", "deep", "er", str(i))
        assert read is not None and read.dtype == values.dtype and not read.flags.writeable
        np.testing.assert_array_equal(read, values)
    scalar, none = root.dataset("scalar"), root.dataset("none")
    assert scalar is not None and scalar.shape == () and scalar == 5
    assert none is not None and none.shape == (0, 4)
    assert root.dataset("layer_7", "nothing") is None and root.group("scalar", "below") is None
    expected = {"variable": ["é" * 9000], "bytes": ["abc"], "list": ["a", "bcd"], "words": ["x", "é", ""], "empty": []}
    assert {name: root.strings(name) for name in expected} == expected


def test_newer_hdf5_is_refused_with_what_to_do(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "new.h5", "w", libver="latest") as file:
        file.attrs["model_config"] = "{}"
    with pytest.raises(BadInput, match=r"superblock version(.|\n)*model\.save"):
        read_keras(tmp_path / "new.h5")


def test_import_is_light() -> None:
    code = "import sys, edgetqs.read_keras; print(sorted({'h5py', 'keras', 'tensorflow', 'scipy'} & set(sys.modules)))"
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=Path(__file__).parents[1]
    )
    assert found.stdout.strip() == "[]"


# --- Keras itself ------------------------------------------------------------------


@pytest.fixture(scope="module")
def keras() -> Any:
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
    return pytest.importorskip("keras")


STEPS, FEATURES = 200, 3
SPREAD, CENTRE = np.array([1.0, 2.0, 0.1], np.float32), np.array([0.5, -0.3, 0.0], np.float32)
Build = Callable[[Any], list[Any]]


def recurrent_cases() -> dict[str, Build]:
    cases: dict[str, Build] = {}
    options: dict[str, Config] = {
        "plain": {},
        "one unit": {"units": 1},
        "no bias": {"use_bias": False},
        "sequences": {"return_sequences": True},
        "backwards": {"go_backwards": True},
        "backwards sequences": {"go_backwards": True, "return_sequences": True},
        "dropout": {"dropout": 0.5, "recurrent_dropout": 0.5},
        "relu": {"activation": "relu"},
        "linear": {"activation": "linear"},
        "hard sigmoid": {"activation": "hard_sigmoid"},
    }
    gates: dict[str, Config] = {
        "hard gates": {"recurrent_activation": "hard_sigmoid"},
        "tanh gates": {"recurrent_activation": "tanh"},
    }
    for kind in ("LSTM", "GRU", "SimpleRNN"):
        for name, chosen in (options | (gates if kind != "SimpleRNN" else {})).items():
            cases[f"{kind} {name}"] = lambda L, kind=kind, chosen=chosen: [getattr(L, kind)(**{"units": 5, **chosen})]
    for name in ("plain", "no bias", "backwards"):
        chosen = {"units": 5, "reset_after": False, **options[name]}
        cases[f"GRU reset before {name}"] = lambda L, chosen=chosen: [L.GRU(**chosen)]
    return cases


def adapted(L: Any, **options: Any) -> Any:
    norm = L.Normalization(**options)
    norm.adapt(array(50, STEPS, FEATURES, seed=5) * SPREAD + CENTRE)
    return norm


CASES: dict[str, Build] = {
    **recurrent_cases(),
    "stack": lambda L: [L.LSTM(4, return_sequences=True), L.GRU(3, return_sequences=True), L.SimpleRNN(2), L.Dense(2)],
    "dense on sequences": lambda L: [L.Dense(4, "tanh"), L.LSTM(3, return_sequences=True), L.Dense(2, use_bias=False)],
    "time distributed": lambda L: [L.LSTM(3, return_sequences=True), L.TimeDistributed(L.Dense(2, "relu"))],
    "activations": lambda L: [
        L.Activation("tanh"),
        L.LSTM(3),
        L.ReLU(),
        L.Dense(2),
        L.Dropout(0.1),
        L.Activation("sigmoid"),
        L.Dense(2, "relu"),
        L.Activation("hard_sigmoid"),
    ],
    "vanishing": lambda L: [
        L.GaussianNoise(0.1),
        L.SpatialDropout1D(0.2),
        L.LSTM(3),
        L.GaussianDropout(0.1),
        L.AlphaDropout(0.1),
        L.ActivityRegularization(0.1),
        L.Identity(),
        L.Dense(1),
    ],
    **{
        f"bidirectional {mode}": lambda L, mode=mode: [
            L.Bidirectional(L.LSTM(3, return_sequences=True), merge_mode=mode),
            L.Bidirectional(L.GRU(2), merge_mode=mode),
        ]
        for mode in ("concat", "sum", "mul", "ave")
    },
    "bidirectional simple": lambda L: [L.Bidirectional(L.SimpleRNN(3)), L.Dense(1)],
    "bidirectional own backward": lambda L: [
        L.Bidirectional(L.LSTM(3), backward_layer=L.GRU(3, go_backwards=True)),
        L.Dense(1),
    ],
    "cells": lambda L: [L.RNN(L.LSTMCell(3), return_sequences=True), L.RNN(L.GRUCell(2)), L.Dense(1)],
    "flatten head": lambda L: [L.LSTM(2, return_sequences=True), L.Flatten(), L.Dense(3)],
    "average": lambda L: [
        L.Conv1D(4, 3, activation="relu"),
        L.BatchNormalization(),
        L.AveragePooling1D(3, 2),
        L.GRU(3, return_sequences=True),
        L.GlobalAveragePooling1D(),
        L.Dense(1),
    ],
    "convolution": lambda L: [L.Conv1D(4, 3, activation="relu"), L.MaxPooling1D(2), L.LSTM(3), L.Dense(1)],
    "convolution same": lambda L: [
        L.Conv1D(4, 4, padding="same", strides=2),
        L.BatchNormalization(),
        L.Activation("relu"),
        L.MaxPooling1D(3, 2, "same"),
        L.GRU(3),
    ],
    "layer normalization": lambda L: [
        L.LayerNormalization(),
        L.LSTM(3, return_sequences=True),
        L.BatchNormalization(),
        L.LayerNormalization(center=False, epsilon=1e-2),
        L.GRU(3),
        L.LayerNormalization(scale=False),
        L.Dense(2),
    ],
    "classes": lambda L: [L.LSTM(3), L.Dense(4, "softmax")],
    "classes by layer": lambda L: [L.LSTM(3, return_sequences=True), L.Dense(4), L.BatchNormalization(), L.Softmax()],
    "classes of states": lambda L: [L.GRU(4), L.Activation("softmax")],
    "convolution causal": lambda L: [L.Conv1D(4, 3, padding="causal", dilation_rate=2), L.LSTM(3), L.Dense(1)],
    "normalised convolutions": lambda L: [
        L.BatchNormalization(),
        L.Conv1D(4, 3, padding="same", use_bias=False, activation="relu"),
        L.BatchNormalization(),
        L.Conv1D(5, 3, padding="same", activation="tanh"),
        L.BatchNormalization(),
        L.MaxPooling1D(),
        L.LSTM(3, return_sequences=True),
        L.BatchNormalization(),
        L.GlobalMaxPooling1D(),
        L.Dense(2),
    ],
    "horizon head": lambda L: [L.LSTM(3), L.Dense(6), L.Reshape((-1, 2)), L.Rescaling([2.0, 0.5], 1.0)],
    "encoder decoder": lambda L: [
        L.LSTM(3),
        L.Rescaling(2.0),
        L.RepeatVector(5),
        L.LSTM(4, return_sequences=True),
        L.TimeDistributed(L.Dense(2)),
    ],
    "normalization": lambda L: [adapted(L), L.LSTM(3), L.Dense(1)],
    "normalization of one scale": lambda L: [adapted(L, axis=None), L.LSTM(3), L.Dense(1)],
    "normalization given": lambda L: [
        L.Normalization(mean=[1.0, 2.0, 3.0], variance=[4.0, 5.0, 0.25]),
        L.GRU(3),
        L.Dense(2),
        L.Normalization(mean=[1.0, -2.0], variance=[4.0, 9.0], invert=True),
    ],
    "normalization in between": lambda L: [
        L.LSTM(3, return_sequences=True),
        adapted(L),
        L.GRU(3, return_sequences=True),
        adapted(L, invert=True),
        L.Bidirectional(L.SimpleRNN(2)),
        L.Rescaling(-0.5, 0.25),
        L.Dense(1),
    ],
    "rescaling": lambda L: [
        L.Rescaling([2.0, -0.5, 0.0], offset=[1.0, 0.5, -1.0]),
        L.Rescaling(0.5, offset=-1.0),
        L.LSTM(3),
        L.Dense(2),
        L.Rescaling([-3.0, 2.0]),
    ],
    "rescaling ahead of an activation": lambda L: [L.Rescaling(2.0), L.Activation("tanh"), L.GRU(3)],
    "batch normalization": lambda L: [
        L.BatchNormalization(),
        L.LSTM(3, return_sequences=True),
        L.BatchNormalization(scale=False),
        L.GRU(3, return_sequences=True),
        L.Dense(4),
        L.BatchNormalization(center=False),
        L.Activation("tanh"),
        L.Dense(1),
    ],
}


def randomised(model: Any) -> Any:
    """Weights that tell every block, bias and order apart, small enough that nothing grows over 200 steps."""
    for number, weight in enumerate(model.weights):
        if "normalization" in weight.path and "batch" not in weight.path:
            continue
        values = array(*weight.shape, seed=number) / 2 if weight.shape else np.asarray(weight)
        weight.assign(np.abs(values) + 0.1 if "variance" in weight.path else values)
    return model


def assert_same(model: Any, x: np.ndarray, folder: Path) -> list[Forecaster]:
    expected = model.predict(x, verbose=0, batch_size=len(x))
    assert np.isfinite(expected).all() and np.ptp(expected) > 1e-4, "the case says nothing"
    found = []
    for suffix in (".keras", ".h5"):
        model.save(folder / f"model{suffix}")
        forecaster = read_keras(folder / f"model{suffix}")
        y = window(forecaster, x.reshape(len(x), -1, len(forecaster.inputs)))
        assert y.shape == expected.shape
        np.testing.assert_allclose(y, expected, atol=1e-5 * max(1, np.abs(expected).max()))
        assert len(forecaster.outputs) == expected.shape[-1] * (forecaster.output_frames or 1)
        found.append(forecaster)
    return found


@pytest.mark.tensorflow
@pytest.mark.parametrize("name", CASES)
def test_same_as_keras(keras: Any, tmp_path: Path, name: str) -> None:
    model = keras.Sequential([keras.layers.Input((STEPS, FEATURES)), *CASES[name](keras.layers)])
    assert_same(randomised(model), array(4, STEPS, FEATURES, seed=2) * SPREAD + CENTRE, tmp_path)


@pytest.mark.tensorflow
def test_functional_same_as_keras(keras: Any, tmp_path: Path) -> None:
    L = keras.layers
    inputs = keras.Input((None, FEATURES))
    head, body = L.Dense(1, name="dense"), L.Dense(4, "tanh", name="dense_1")  # made in the wrong order
    model = keras.Model(inputs, head(L.LSTM(3)(body(inputs), training=False)))
    for forecaster in assert_same(randomised(model), array(4, STEPS, FEATURES, seed=2), tmp_path):
        assert forecaster.window == 32
        assert [type(one) for one in forecaster.layers] == [Dense, Lstm, Dense]


@pytest.mark.tensorflow
def test_window_by_reshape_same_as_keras(keras: Any, tmp_path: Path) -> None:
    L = keras.layers
    layers = [L.Input((60,)), L.Rescaling(0.5, 0.1), L.Reshape((20, 3)), L.LSTM(3, unroll=True), L.Dense(2)]
    for forecaster in assert_same(randomised(keras.Sequential(layers)), array(4, 60, seed=2), tmp_path):
        assert (forecaster.window, len(forecaster.inputs)) == (20, 3)
        assert [type(one) for one in forecaster.layers] == [Lstm, Dense]


@pytest.mark.tensorflow
def test_stateful_same_as_keras(keras: Any, tmp_path: Path) -> None:
    L = keras.layers
    model = keras.Sequential([L.Input((STEPS, FEATURES), batch_size=4), L.GRU(3, stateful=True), L.Dense(1)])
    for forecaster in assert_same(randomised(model), array(4, STEPS, FEATURES, seed=2), tmp_path):
        assert isinstance(forecaster.layers[0], Gru) and forecaster.layers[0].stateful


@pytest.mark.tensorflow
def test_layer_types(keras: Any, tmp_path: Path) -> None:
    """Each Keras layer becomes the dataclass that it should, not one that happens to compute the same."""
    expected = {
        "horizon head": [Lstm, Dense],
        "encoder decoder": [Lstm, Lstm, Dense],
        "cells": [Lstm, Gru, Dense],
        "vanishing": [Lstm, Dense],
        "bidirectional simple": [Window, SimpleRnn, SimpleRnn, Merge, Dense],
        "stack": [Lstm, Gru, SimpleRnn, Dense],
    }
    for number, (name, types) in enumerate(expected.items()):
        model = keras.Sequential([keras.layers.Input((5, FEATURES)), *CASES[name](keras.layers)])
        model.save(tmp_path / f"{number}.keras")
        forecaster = read_keras(tmp_path / f"{number}.keras")
        assert [type(one) for one in forecaster.layers] == types
        assert forecaster.parameters == model.count_params()
