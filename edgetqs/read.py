"""A model file -> ``Forecaster``, by its format."""

from __future__ import annotations

from pathlib import Path

from edgetqs.errors import BadInput
from edgetqs.model import Forecaster

KERAS_SUFFIXES = (".keras", ".h5", ".hdf5")


def read_model(path: str | Path) -> Forecaster:
    """The forecaster in a ``.keras`` or ``.h5`` file. Raises ``BadInput`` for anything else."""
    path = Path(path)
    if not path.exists():
        raise BadInput("no such file", str(path), "give the path of a trained model")
    if path.suffix.lower() in KERAS_SUFFIXES:
        from edgetqs.read_keras import read_keras

        return read_keras(path)
    todo = f"save the model as {' or '.join(KERAS_SUFFIXES)}"
    if path.suffix.lower() == ".tflite":
        todo += "; `edgetqs score` and `edgetqs plan` take a .tflite with --black-box"
    raise BadInput(f"cannot read a {path.suffix or 'nameless'} file", str(path), todo)
