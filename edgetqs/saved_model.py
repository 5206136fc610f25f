"""A SavedModel folder of TensorFlow -> Forecaster, through the ``tensorflow`` extra.

TensorFlow converts the serving signature to a ``.tflite`` in a process of its
own, so its memory, its messages and its crashes stay there; the file is then
read like any other.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import os
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

from edgetqs.errors import BadInput, ToolMissing, Unsupported
from edgetqs.model import Forecaster
from edgetqs.read_tflite import read_with_origins
from edgetqs.tflite_graph import MOST_BYTES

GRAPH = "saved_model.pb"
INSTALL = "pip install 'edgetqs[tensorflow]', or save the model as .keras or .h5, which needs no TensorFlow"
OTHERWISE = "save the model as .keras or .h5 instead: model.save('model.keras')"
LONGEST_S = 300


def is_saved_model(path: Path) -> bool:
    return (path / GRAPH).is_file()


def read_saved_model(path: str | os.PathLike[str], *, logits: bool = False) -> Forecaster:
    """The forecaster in the folder of ``model.export``, ``tf.saved_model.save`` or Keras 2's ``model.save``.

    Layers are named by their kinds, since the signature keeps no others.
    Raises ToolMissing without TensorFlow, BadInput where TensorFlow refuses
    the folder, Unsupported where no known layers are in it.
    """
    return saved_model_with_origins(Path(path), logits=logits)[0]


def saved_model_with_origins(path: Path, *, logits: bool = False) -> tuple[Forecaster, dict[str, str]]:
    """The same, and by layer the operators of the converted file that it was found in."""
    digest = _digest(path)
    content = _converted(path, digest)
    try:
        forecaster, found = read_with_origins(content, str(path), path.resolve().name, logits=logits)
    except Unsupported as error:
        raise Unsupported(error.what, error.where, f"{error.todo}; or {OTHERWISE}".lstrip("; ")) from error
    return replace(forecaster, sha256=digest), found


def _digest(path: Path) -> str:
    """SHA-256 over the graph and the variables."""
    files = [path / GRAPH, *sorted((path / "variables").glob("variables.*"))]
    try:
        if sum(file.stat().st_size for file in files) > MOST_BYTES:
            raise BadInput(f"larger than {MOST_BYTES} bytes", str(path), "this is no model for a microcontroller")
        total = hashlib.sha256()
        for file in files:
            total.update(hashlib.sha256(file.read_bytes()).digest())
    except OSError as error:
        raise BadInput(error.strerror or "cannot be read", str(error.filename or path), "check the folder") from error
    return total.hexdigest()


@functools.lru_cache(maxsize=1)
def _converted(path: Path, digest: str) -> bytes:
    """The converted file, kept for whoever asks for the same content again."""
    if importlib.util.find_spec("tensorflow") is None:
        raise ToolMissing("a SavedModel is read by TensorFlow, which is not installed", str(path), INSTALL)
    program = Path(__file__).with_name("convert_saved_model.py")
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": "-1"}
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "model.tflite"
        command = [sys.executable, "-P", str(program), str(path.resolve()), str(out)]
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, errors="replace", timeout=LONGEST_S, check=False,
                env=environment, stdin=subprocess.DEVNULL,
            )  # fmt: skip
        except subprocess.TimeoutExpired as error:
            raise BadInput(f"TensorFlow did not convert it in {LONGEST_S} s", str(path), OTHERWISE) from error
        said = done.stdout.strip().splitlines()
        if done.returncode == 0:
            return out.read_bytes()
        if done.returncode == 3:
            raise ToolMissing(f"TensorFlow cannot be imported ({said[-1] if said else ''})", str(path), INSTALL)
        told = said[-1] if said and done.returncode == 2 else f"TensorFlow ended with exit code {done.returncode}"
        raise BadInput(told if told.startswith("has ") else f"TensorFlow: {told}", str(path), OTHERWISE)
