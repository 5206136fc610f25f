"""docs/errors.md: the errors appear in the tools that make them, and the commands do the job on the same model."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from files import save_keras
from models import random_forecaster
from test_read_tflite import STEPS, stack
from tflite_files import fused, looped, save, unrolled

from edgetqs.cli import main
from edgetqs.litert import interpreter, quiet

PAGE = Path(__file__).parents[1] / "docs" / "errors.md"


def sections() -> dict[str, str]:
    """Text by heading."""
    _, *parts = re.split(r"^## ", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {part.partition("\n")[0]: part.partition("\n")[2] for part in parts}


@pytest.fixture(scope="module")
def tf() -> Iterator[Any]:
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")
    yield pytest.importorskip("tensorflow", reason="needs the tensorflow extra")


def run_commands(text: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> int:
    """Every command of the section, in the folder of the models."""
    monkeypatch.chdir(tmp_path)
    lines = [line for block in re.findall(r"```sh\n(.*?)```", text, re.DOTALL) for line in block.splitlines()]
    for line in lines:
        program, *arguments = shlex.split(line)
        assert program == "edgetqs"
        assert main(["-q", *arguments]) == 0, line
    return len(lines)


# --- models that show the error, made by the tool that shows it --------------------------------------------------


def keras_model(keras: Any, batch: int | None, **options: Any) -> Any:
    layers = keras.layers
    return keras.Sequential(
        [layers.Input((STEPS, 3), batch_size=batch), layers.LSTM(5, **options), layers.Dense(1)], name="model"
    )


def converter(tf: Any, model: Any) -> Any:
    made = tf.lite.TFLiteConverter.from_keras_model(model)
    made.optimizations = []
    return made


def list_reserve(tf: Any, folder: Path) -> None:
    model = keras_model(tf.keras, None)
    model.save(folder / "model.keras")
    with pytest.raises(Exception, match=r"'tf\.TensorListReserve' op requires element_shape to be static during"):
        converter(tf, model).convert()
    plain = converter(tf, model)
    plain._experimental_lower_tensor_list_ops = False
    with pytest.raises(Exception, match=r"'tf\.TensorListReserve' op is neither a custom op nor a flex op"):
        plain.convert()


def flex(tf: Any, folder: Path) -> None:
    made = converter(tf, keras_model(tf.keras, None))
    made.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS, tf.lite.OpsSet.SELECT_TF_OPS]
    made._experimental_lower_tensor_list_ops = False
    content = made.convert()
    save(content, folder / "model.tflite")
    with (
        quiet(),
        pytest.raises(RuntimeError, match=r"Select TensorFlow op\(s\), included in the given model, is\(are\)"),
    ):
        interpreter(content).allocate_tensors()


CALIBRATE = """
import sys, numpy as np, tensorflow as tf
converter = tf.lite.TFLiteConverter.from_keras_model(tf.keras.models.load_model(sys.argv[1]))
converter.optimizations = [tf.lite.Optimize.DEFAULT]
converter.representative_dataset = lambda: iter([[np.zeros((1, 6, 3), np.float32)]])
converter.convert()
"""


def calibrator(tf: Any, folder: Path) -> None:
    keras_model(tf.keras, 1).save(folder / "model.keras")
    done = subprocess.run(
        [sys.executable, "-c", CALIBRATE, str(folder / "model.keras")], capture_output=True, check=False
    )
    assert done.returncode == -11, done.stderr[-500:]


def no_range(tf: Any, folder: Path) -> None:
    model = keras_model(tf.keras, 1, unroll=True)
    model.save(folder / "model.keras")
    made = tf.lite.TFLiteConverter.from_keras_model(model)
    made.optimizations = [tf.lite.Optimize.DEFAULT]
    made.representative_dataset = lambda: iter(())
    made.experimental_new_quantizer = False
    with pytest.raises(RuntimeError, match="Max and min for dynamic tensors should be recorded during calibration"):
        made.convert()


def saved_model(tf: Any, folder: Path) -> None:
    keras_model(tf.keras, None).export(folder / "saved_model", verbose=False)
    with pytest.raises(ValueError, match=r"(?s)File format not supported: .*Keras 3 only supports V3 `.keras` files"):
        tf.keras.models.load_model(folder / "saved_model")


def keras2_h5(tf: Any, folder: Path) -> None:
    keras2 = pytest.importorskip("tf_keras", reason="needs the keras2 extra")
    keras_model(keras2, None).save(folder / "model.h5")
    with pytest.raises(ValueError, match=r"Unrecognized keyword arguments passed to LSTM: {'time_major': False}"):
        tf.keras.models.load_model(folder / "model.h5")


PROVOKED: dict[str, Callable[[Any, Path], None]] = {
    "'tf.TensorListReserve' op requires element_shape to be static during TF Lite transformation pass": list_reserve,
    "Select TensorFlow op(s), included in the given model, is(are) not supported by this interpreter": flex,
    "Segmentation fault in convert() with a representative_dataset": calibrator,
    "Max and min for dynamic tensors should be recorded during calibration": no_range,
    "File format not supported: Keras 3 only supports V3 `.keras` files and legacy H5 format files": saved_model,
    "Unrecognized keyword arguments passed to LSTM: {'time_major': False}": keras2_h5,
}


@pytest.mark.qemu
@pytest.mark.tensorflow
@pytest.mark.parametrize("heading", PROVOKED, ids=lambda heading: PROVOKED[heading].__name__)
def test_provoked(tf: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, heading: str) -> None:
    PROVOKED[heading](tf, tmp_path)
    assert run_commands(sections()[heading], monkeypatch, tmp_path)


# --- models of the kind that shows it, where the tool is none of Python's -----------------------------------------


def keras_file(folder: Path) -> None:
    save_keras(random_forecaster(kind="lstm", units=5, inputs=3, layers=1, window=STEPS), folder / "model.keras")


def fused_file(folder: Path) -> None:
    save(fused(stack("lstm"), STEPS), folder / "model.tflite")


def unrolled_file(folder: Path) -> None:
    made = random_forecaster(kind="rnn", units=5, inputs=3, layers=1, window=STEPS)
    save(unrolled(made), folder / "model.tflite")


def gru_file(folder: Path) -> None:
    """Small enough for two widths to matter."""
    save_keras(random_forecaster(kind="gru", units=8, inputs=3, layers=1, window=STEPS), folder / "model.keras")


def foreign_file(folder: Path) -> None:
    """A loop that is no cell that edgetqs knows."""
    save(looped(np.random.default_rng(0).normal(0, 0.4, (3, 3)), STEPS), folder / "model.tflite")


ALIKE: dict[str, Callable[[Path], None]] = {
    "Didn't find op for builtin opcode 'UNIDIRECTIONAL_SEQUENCE_LSTM'": fused_file,
    "Failed to allocate tail memory. Requested: 912, available 624, missing: 288": fused_file,
    "The state is lost between two calls of invoke()": keras_file,
    "With unroll=True the file is ten times as large": unrolled_file,
    "How to get int4 weights": gru_file,
    "The forecast is right on the computer and wrong on the device": keras_file,
    "Layers that edgetqs itself refuses": foreign_file,
}


@pytest.mark.qemu
@pytest.mark.parametrize("heading", ALIKE)
def test_alike(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, heading: str) -> None:
    ALIKE[heading](tmp_path)
    assert run_commands(sections()[heading], monkeypatch, tmp_path)


ONE_SUBGRAPH = "Only 1 subgraph is currently supported"


@pytest.mark.qemu
@pytest.mark.tensorflow
def test_one_subgraph(tf: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file has three, what comes of it one."""
    from ai_edge_litert import schema_py_generated as schema

    content = converter(tf, keras_model(tf.keras, 1)).convert()
    assert schema.Model.GetRootAs(content, 0).SubgraphsLength() == 3
    save(content, tmp_path / "model.tflite")
    assert run_commands(sections()[ONE_SUBGRAPH], monkeypatch, tmp_path)
    made = (tmp_path / "build" / "forecaster-cortex-m4" / "forecaster.tflite").read_bytes()
    assert schema.Model.GetRootAs(made, 0).SubgraphsLength() == 1


def test_every_section_is_run() -> None:
    assert set(sections()) == {*PROVOKED, *ALIKE, ONE_SUBGRAPH}


def test_the_page_can_be_found() -> None:
    assert "docs/errors.md" in (PAGE.parents[1] / "README.md").read_text(encoding="utf-8")
