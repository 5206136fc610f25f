"""A model file -> ``Forecaster``, by its format."""

from __future__ import annotations

from pathlib import Path

from edgetqs.errors import BadInput
from edgetqs.model import Forecaster

KERAS_SUFFIXES = (".keras", ".h5", ".hdf5")


def read_model(path: str | Path, *, logits: bool = False) -> Forecaster:
    """The forecaster in a ``.keras``, ``.h5`` or ``.tflite`` file. Raises ``BadInput`` for anything else.

    ``logits`` leaves out a softmax at the end.
    """
    path = Path(path)
    if not path.exists():
        raise BadInput("no such file", str(path), "give the path of a trained model")
    if path.suffix.lower() in KERAS_SUFFIXES:
        from edgetqs.read_keras import read_keras

        return read_keras(path, logits=logits)
    if path.suffix.lower() == ".tflite":
        from edgetqs.read_tflite import read_tflite

        return read_tflite(path, logits=logits)
    todo = f"save the model as {' or '.join((*KERAS_SUFFIXES, '.tflite'))}"
    raise BadInput(f"cannot read a {path.suffix or 'nameless'} file", str(path), todo)
