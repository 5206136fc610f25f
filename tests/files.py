"""Model files made without Keras: what ``model.save("NAME.keras")`` of Keras 3 writes, as far as edgetqs reads it."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from edgetqs.model import Dense, Forecaster, Gru, Lstm, Recurrent, SimpleRnn

SNAKE_CASE = {Lstm: "lstm", Gru: "gru", SimpleRnn: "simple_rnn", Dense: "dense"}
CLASSES = {Lstm: "LSTM", Gru: "GRU", SimpleRnn: "SimpleRNN", Dense: "Dense"}


def save_keras(forecaster: Forecaster, path: Path) -> Path:
    """The forecaster's layers as a Sequential model; names of channels, scaling and feedback are not in such a file.

    The same forecaster gives the same bytes.
    """
    layers = [_layer("InputLayer", "input", batch_shape=[None, forecaster.window, len(forecaster.inputs)])]
    tensors: dict[str, np.ndarray] = {}
    counts: dict[str, int] = {}
    for layer in forecaster.layers:
        snake = SNAKE_CASE[type(layer)]
        group = f"{snake}_{counts[snake]}" if counts.get(snake) else snake
        counts[snake] = counts.get(snake, 0) + 1
        options: dict[str, Any] = {"units": layer.bias.shape[1], "activation": layer.activation, "use_bias": True}
        if isinstance(layer, Dense):
            where, weights = f"layers/{group}/vars", [_joined(layer.kernel), layer.bias.ravel()]
        else:
            where, weights = f"layers/{group}/cell/vars", _recurrent(layer)
            options["return_sequences"] = layer.return_sequences
        if isinstance(layer, (Lstm, Gru)):
            options["recurrent_activation"] = layer.recurrent_activation
        if isinstance(layer, Gru):
            options["reset_after"] = layer.reset_after
        layers.append(_layer(CLASSES[type(layer)], layer.name, **options))
        tensors |= {f"{where}/{index}": values for index, values in enumerate(weights)}
    config = {"class_name": "Sequential", "config": {"name": forecaster.name, "layers": layers}}
    buffer = io.BytesIO()
    with h5py.File(buffer, "w") as file:
        for name, values in tensors.items():
            file[name] = values
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in (
            ("metadata.json", json.dumps({"keras_version": "3.9.2"})),
            ("config.json", json.dumps(config)),
            ("model.weights.h5", buffer.getvalue()),
        ):
            archive.writestr(zipfile.ZipInfo(name), data)
    return path


def _layer(kind: str, name: str, **config: Any) -> dict[str, Any]:
    return {"class_name": kind, "config": {"name": name, **config}}


def _joined(kernel: np.ndarray) -> np.ndarray:
    """(gates, units, inputs) -> Keras' (inputs, gates * units)."""
    return kernel.reshape(-1, kernel.shape[2]).T


def _recurrent(layer: Recurrent) -> list[np.ndarray]:
    bias = layer.bias.ravel()
    if isinstance(layer, Gru) and layer.reset_after:
        bias = np.stack([bias, layer.recurrent_bias.ravel()])
    return [_joined(layer.kernel), _joined(layer.recurrent_kernel), bias]
