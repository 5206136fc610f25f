"""A model file -> ``Forecaster``, by its format."""

from __future__ import annotations

from pathlib import Path

from edgetqs.errors import BadInput
from edgetqs.model import Forecaster

KERAS_SUFFIXES = (".keras", ".h5", ".hdf5")


def read_model(path: str | Path, *, logits: bool = False) -> Forecaster:
    """The forecaster in a ``.keras``, ``.h5`` or ``.tflite`` file, or in a SavedModel folder.

    ``logits`` leaves out a softmax at the end. Raises ``BadInput`` for anything else.
    """
    path = Path(path)
    try:
        there = path.exists()
    except OSError as error:
        raise BadInput(error.strerror or "cannot be looked for", str(path), "give a shorter path") from error
    if not there:
        raise BadInput("no such file", str(path), "give the path of a trained model")
    if path.is_dir():
        from edgetqs.saved_model import GRAPH, is_saved_model, read_saved_model

        if is_saved_model(path):
            return read_saved_model(path, logits=logits)
        todo = "give the folder that model.export() wrote, or a .keras, .h5 or .tflite file"
        raise BadInput(f"is a folder without {GRAPH}", str(path), todo)
    if path.suffix.lower() in KERAS_SUFFIXES:
        from edgetqs.read_keras import read_keras

        return read_keras(path, logits=logits)
    if path.suffix.lower() == ".tflite":
        from edgetqs.read_tflite import read_tflite

        return read_tflite(path, logits=logits)
    todo = f"save the model as {' or '.join((*KERAS_SUFFIXES, '.tflite'))}"
    if path.name == "saved_model.pb":
        todo = "give the folder that it is in"
    raise BadInput(f"cannot read a {path.suffix or 'nameless'} file", str(path), todo)
