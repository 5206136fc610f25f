"""SavedModel folders: what TensorFlow and Keras write, and what happens without them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from files import save_keras
from models import random_forecaster

from edgetqs import saved_model
from edgetqs.cli import main
from edgetqs.errors import BadInput, Unsupported
from edgetqs.model import Dense, Gru, Lstm, Merge, SimpleRnn, Window
from edgetqs.project import load_project
from edgetqs.read import read_model
from edgetqs.rollout import window

STEPS, FEATURES = 6, 3


@pytest.fixture(scope="module")
def tf() -> Iterator[Any]:
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")
    yield pytest.importorskip("tensorflow", reason="needs the tensorflow extra")


@pytest.fixture(scope="module")
def keras2(tf: Any) -> Iterator[Any]:
    yield pytest.importorskip("tf_keras", reason="needs the keras2 extra")


def made(keras: Any, name: str) -> Any:
    """A model with random weights."""
    layers = keras.layers
    stacks = {
        "lstm": [layers.LSTM(5), layers.Dense(2)],
        "hard": [layers.GRU(5, reset_after=False, recurrent_activation="hard_sigmoid"), layers.Dense(2)],
        "rnn": [layers.SimpleRNN(5), layers.Dense(2)],
        "stack": [layers.BatchNormalization(), layers.LSTM(6, return_sequences=True), layers.Dropout(0.2),
                  layers.GRU(5, return_sequences=True), layers.TimeDistributed(layers.Dense(2))],
        "bidirectional": [layers.Bidirectional(layers.LSTM(5)), layers.Dense(2)],
        "softmax": [layers.LSTM(5), layers.Dense(3, "softmax")],
        "stateful": [layers.LSTM(5, stateful=True), layers.Dense(2)],
        "masked": [layers.Masking(), layers.LSTM(5), layers.Dense(2)],
    }  # fmt: skip
    batch = {"batch_size": 1} if name == "stateful" else {}
    model = keras.Sequential([layers.Input((STEPS, FEATURES), **batch), *stacks[name]])
    rng = np.random.default_rng(0)
    for weight in model.weights:
        if weight.dtype == "float32" and "state" not in weight.name:
            variance = "variance" in weight.name
            weight.assign(rng.uniform(0.5, 2, weight.shape) if variance else rng.normal(0, 0.4, weight.shape))
    return model


def compare(folder: Path, model: Any, kinds: list[type], **options: bool) -> Any:
    x = np.random.default_rng(1).standard_normal((1, STEPS, FEATURES)).astype(np.float32)
    expected = np.asarray(model(x, training=False))
    forecaster = read_model(folder, **options)
    assert [type(layer) for layer in forecaster.layers] == kinds
    found = window(forecaster, x)
    if options.get("logits"):
        found = np.exp(found) / np.exp(found).sum(-1, keepdims=True)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    return forecaster


KINDS = {
    "lstm": [Lstm, Dense],
    "hard": [Gru, Dense],
    "rnn": [SimpleRnn, Dense],
    "stack": [Lstm, Gru, Dense],
    "bidirectional": [Window, Lstm, Lstm, Merge, Dense],
}


@pytest.mark.tensorflow
@pytest.mark.parametrize("name", KINDS)
def test_exported_by_keras_3(tf: Any, tmp_path: Path, name: str) -> None:
    model = made(tf.keras, name)
    model.export(tmp_path / "my-model", verbose=False)
    forecaster = compare(tmp_path / "my-model", model, KINDS[name])
    assert forecaster.name == "my_model" and forecaster.window == STEPS and len(forecaster.sha256) == 64
    assert not getattr(forecaster.layers[0], "cell_clip", 0.0)


@pytest.mark.tensorflow
def test_saved_by_tensorflow(tf: Any, tmp_path: Path) -> None:
    """The variables stay variables unless the signature is frozen first."""
    model = made(tf.keras, "stack")
    tf.saved_model.save(model, str(tmp_path / "m"))
    compare(tmp_path / "m", model, KINDS["stack"])


@pytest.mark.tensorflow
@pytest.mark.parametrize("name", ["lstm", "stack", "hard", "stateful"])
def test_saved_by_keras_2(keras2: Any, tmp_path: Path, name: str) -> None:
    """The converter would fuse these LSTMs; a fused one clips its cell, the model does not."""
    model = made(keras2, name)
    model.save(tmp_path / "m", save_format="tf")
    forecaster = compare(tmp_path / "m", model, KINDS.get(name, [Lstm, Dense]))
    assert not getattr(forecaster.layers[0], "cell_clip", 0.0)


@pytest.mark.tensorflow
def test_refusals_name_another_format(tf: Any, tmp_path: Path) -> None:
    made(tf.keras, "masked").export(tmp_path / "masked", verbose=False)
    with pytest.raises(Unsupported, match=r"NOT_EQUAL(.|\n)*save the model as \.keras"):
        read_model(tmp_path / "masked")
    model = made(tf.keras, "softmax")
    model.export(tmp_path / "softmax", verbose=False)
    compare(tmp_path / "softmax", model, KINDS["lstm"])
    compare(tmp_path / "softmax", model, KINDS["lstm"], logits=True)


@pytest.mark.tensorflow
def test_without_a_signature(tf: Any, tmp_path: Path) -> None:
    tf.saved_model.save(tf.Module(), str(tmp_path / "m"))
    with pytest.raises(BadInput, match=r"m: has no serving signature"):
        read_model(tmp_path / "m")


@pytest.mark.tensorflow
def test_damaged(tf: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder(tmp_path, b"\x08\x01" + b"\xff" * 50)
    assert main(["inspect", str(tmp_path / "m")]) == 2
    said = capsys.readouterr().err
    assert "m: TensorFlow: OSError: Cannot parse file" in said and "save the model as .keras" in said
    assert len(said) < 800


# --- without TensorFlow ---------------------------------------------------------------------------------------


def folder(tmp_path: Path, content: bytes = b"") -> Path:
    (tmp_path / "m" / "variables").mkdir(parents=True)
    (tmp_path / "m" / "saved_model.pb").write_bytes(content)
    return tmp_path / "m"


def pretended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    """A TensorFlow that does ``code`` when it is imported."""
    (tmp_path / "fake" / "tensorflow").mkdir(parents=True)
    (tmp_path / "fake" / "tensorflow" / "__init__.py").write_text(code)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "fake"))
    monkeypatch.setattr(saved_model.importlib.util, "find_spec", lambda name: name)


def test_tensorflow_is_not_there(tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    monkeypatch.setattr(saved_model.importlib.util, "find_spec", lambda name: None)
    assert main(["inspect", str(folder(tmp_path))]) == 3
    said = capsys.readouterr().err
    assert "TensorFlow, which is not installed" in said and "pip install 'edgetqs[tensorflow]'" in said


def test_tensorflow_is_broken(tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    pretended(tmp_path, monkeypatch, "raise ImportError('no libcuda')")
    assert main(["inspect", str(folder(tmp_path))]) == 3
    assert "cannot be imported (ImportError: no libcuda)" in capsys.readouterr().err


def test_tensorflow_crashes(tmp_path: Path, monkeypatch: Any) -> None:
    pretended(tmp_path, monkeypatch, "import os; os.abort()")
    with pytest.raises(BadInput, match="TensorFlow ended with exit code -6"):
        read_model(folder(tmp_path))


def test_tensorflow_never_ends(tmp_path: Path, monkeypatch: Any) -> None:
    pretended(tmp_path, monkeypatch, "import time; time.sleep(30)")
    monkeypatch.setattr(saved_model, "LONGEST_S", 1)
    with pytest.raises(BadInput, match="did not convert it in 1 s"):
        read_model(folder(tmp_path))


def test_too_large(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(saved_model, "MOST_BYTES", 100)
    with pytest.raises(BadInput, match="larger than 100 bytes"):
        read_model(folder(tmp_path, b"x" * 101))


def test_no_saved_model(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"is a folder without saved_model\.pb"):
        read_model(tmp_path)
    with pytest.raises(BadInput, match=r"(?s)cannot read a \.pb file.*the folder that it is in"):
        read_model(folder(tmp_path) / "saved_model.pb")


def test_a_folder_and_its_configuration(tmp_path: Path, monkeypatch: Any) -> None:
    """`init` writes beside the folder; what it writes finds the folder again."""
    made_by = random_forecaster(kind="rnn", units=3, inputs=2, layers=1, window=4)
    model = folder(tmp_path)
    from edgetqs.read_keras import read_keras

    stored = read_keras(save_keras(made_by, tmp_path / "m.keras"))
    monkeypatch.setattr(saved_model, "read_saved_model", lambda path, logits=False: stored)
    assert main(["init", str(model)]) == 0
    project = load_project(model, None)
    assert project.source.endswith("edgetqs.toml") and project.forecaster.window == 4
