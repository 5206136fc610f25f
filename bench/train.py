"""Trains the models of the suite: ``python bench/train.py [NAME ...]`` (all without a name).

Writes into bench/models, for every system: NAME-SEED.keras, NAME.toml (an edgetqs.toml),
NAME.npz (the test stretch, physical, array ``x`` of (samples, inputs)) and its rows of
suite.json. Same machine, same packages: same bytes. Settings were chosen with the scores
of the validation stretches in sight; the test stretches served for nothing but suite.json,
except for ``flow`` (see bench/systems.py).
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before TensorFlow starts its threads

import io
import json
import re
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tools"))

from closed_loop import closed_loop_loss, forecast, one_thread, train, windows  # noqa: E402
from series import Stretches, System  # noqa: E402
from systems import SYSTEMS  # noqa: E402

MODELS = ROOT / "bench" / "models"
SEEDS = (1, 2)
BATCH = 64
RATES = 3e-3, 1e-3  # one step ahead, closed loop
MOST_STARTS = 128  # as in edgetqs.evaluate


def scaling(system: System, training: tuple[NDArray, ...]) -> tuple[NDArray, NDArray]:
    """mean and std (inputs,) of the training pieces, of six digits; an input's own scale wins."""
    rows = np.concatenate([piece.reshape(-1, piece.shape[-1]) for piece in training]).astype(np.float64)
    moments = zip(rows.mean(axis=0), rows.std(axis=0), strict=True)
    pairs = [c.scale or pair for c, pair in zip(system.inputs, moments, strict=True)]
    mean, std = (np.array([float(f"{value:.6g}") for value in values]) for values in zip(*pairs, strict=True))
    return mean, std


def drawing(system: System, pieces: list[NDArray], shift: NDArray, seed: int) -> Callable[[], NDArray]:
    """A function that draws batches (BATCH, window + horizon, inputs), normalised.

    Where there are several places, a window is a mixture of them at the same time. ``shift``
    (forecast inputs,) is the normalised standard deviation of a window's offset.
    """
    data = np.concatenate(
        [np.stack([windows(place, system.window + system.horizon) for place in piece]) for piece in pieces], axis=1
    )
    rng = np.random.default_rng(seed)

    def batch() -> NDArray[np.float32]:
        chosen = data[:, rng.integers(data.shape[1], size=BATCH)]
        weights = rng.dirichlet([0.5] * len(chosen), size=BATCH)
        rows = np.einsum("bp,pbti->bti", weights, chosen)
        rows[:, :, : system.fed] += shift * rng.normal(size=(BATCH, 1, system.fed))
        return rows.astype(np.float32)

    return batch


def network(system: System) -> keras.Model:
    """The untrained model."""
    keras.utils.clear_session()  # layers are named lstm, lstm_1, ... whatever was built before
    cell = getattr(keras.layers, system.cell)
    layers = [cell(n, return_sequences=k + 1 < len(system.units)) for k, n in enumerate(system.units)]
    outputs = keras.layers.Dense(system.horizon if system.direct else system.fed)
    return keras.Sequential([keras.Input((system.window, len(system.inputs))), *layers, outputs], name=system.name)


def direct_loss(model: keras.Model, window: int) -> Callable[[tf.Tensor], tf.Tensor]:
    """Mean squared error of the samples of input 0 that follow a window."""
    return lambda rows: tf.reduce_mean(tf.square(model(rows[:, :window]) - rows[:, window:, 0]))


def trained(system: System, batch: Callable[[], NDArray], seed: int) -> keras.Model:
    """A model of ``system``: one step ahead first, then in closed loop from the window's end on."""
    keras.utils.set_random_seed(seed)
    model = network(system)
    if system.direct:
        train(model, batch, sum(system.updates), RATES[0], direct_loss(model, system.window))
        return model
    for updates, rate, warm_up in zip(
        system.updates, RATES, (system.window + system.horizon, system.window), strict=True
    ):
        train(model, batch, updates, rate, closed_loop_loss(model, warm_up, system.held))
    return model


def scores(system: System, model: keras.Model, rows: NDArray, std: NDArray) -> dict[str, float]:
    """RMSE over the horizon, of the model and of the last value, from up to 128 starts spread over ``rows``.

    ``rows`` (samples, inputs) are normalised; figures are physical where one series is forecast,
    otherwise in standard deviations.
    """
    every = windows(rows, system.window + system.horizon)
    part = every[np.unique(np.linspace(0, len(every) - 1, MOST_STARTS).astype(int))]
    history, truth = part[:, : system.window], part[:, system.window :, : system.fed]
    if system.direct:
        forecasts = model(history).numpy()[:, :, None]
    else:
        forecasts = forecast(model, tf.constant(part), system.window, system.held).numpy()[:, system.window - 1 :]
    unit = std[0] if system.fed == 1 else 1.0
    rmse, naive = (
        float(unit * np.sqrt(np.mean(np.square(guess - truth, dtype=np.float64))))
        for guess in (forecasts, history[:, -1:, : system.fed])
    )
    return {"rmse": rmse, "rmse_persistence": naive, "gain_percent": 100 * (1 - rmse / naive)}


def save(model: keras.Model, path: Path) -> None:
    """Writes a .keras file without the date, the same bytes for the same weights."""
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder) / path.name
        model.save(made)
        repack(made, path)


def repack(source: Path, path: Path) -> None:
    """Writes the .keras file ``source`` again to ``path``, without dates and memory addresses."""
    with zipfile.ZipFile(source) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    metadata = json.loads(parts["metadata.json"])
    metadata.pop("date_saved", None)
    parts["metadata.json"] = json.dumps(metadata).encode()
    numbers: dict[str, str] = {}  # Keras numbers shared objects by their addresses

    def number(found: re.Match[str]) -> str:
        return found[1] + numbers.setdefault(found[2], str(len(numbers) + 1))

    config = re.sub(r'("shared_object_id": )(\d+)', number, parts["config.json"].decode())
    parts["config.json"] = config.encode()
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in sorted(parts.items()):
            archive.writestr(zipfile.ZipInfo(name), content, zipfile.ZIP_DEFLATED)


def save_rows(rows: NDArray[np.float32], path: Path) -> None:
    """Writes an .npz with ``x``, compressed, without the date."""
    buffer = io.BytesIO()
    np.save(buffer, rows)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(zipfile.ZipInfo("x.npy"), buffer.getvalue(), zipfile.ZIP_DEFLATED)


def toml(system: System, mean: NDArray, std: NDArray) -> str:
    """The text of edgetqs.toml."""
    what = "direct: all steps at once" if system.direct else "closed loop"
    text = "".join(f"# {line}\n" for line in system.about.splitlines())
    text += f"# Written by bench/train.py; {what}.\n"
    text += f'\n[model]\nfile = "{system.name}-1.keras"\nname = "{system.name}"\nwindow = {system.window}\n'
    for i, channel in enumerate(system.inputs):
        text += f'\n[[input]]\nname = "{channel.name}"\nunit = "{channel.unit}"\nmean = {mean[i]}\nstd = {std[i]}\n'
        text += f'role = "{channel.role}"\n'
    outputs = [f"y{k + 1}" for k in range(system.horizon)] if system.direct else [c.name for c in system.inputs]
    for i, name in enumerate(outputs[: model_outputs(system)]):
        k = 0 if system.direct else i
        text += f'\n[[output]]\nname = "{name}"\nunit = "{system.inputs[k].unit}"\nmean = {mean[k]}\nstd = {std[k]}\n'
    return text + f'\n[rollout]\nhorizon = {system.horizon}\n\n[data]\nfile = "{system.name}.npz"\n'


def model_outputs(system: System) -> int:
    """Number of the model's outputs."""
    return system.horizon if system.direct else system.fed


def entry(system: System, seed: int, model: keras.Model, figures: dict[str, float]) -> dict[str, Any]:
    """The model's row of suite.json."""
    return {
        "model": f"{system.name}-{seed}",
        "system": system.name,
        "seed": seed,
        "kind": "direct" if system.direct else "closed loop",
        "cell": system.cell,
        "layers": len(system.units),
        "units": system.units[0],
        "inputs": len(system.inputs),
        "outputs": model_outputs(system),
        "parameters": model.count_params(),
        "window": system.window,
        "horizon": system.horizon,
        "rmse_unit": system.inputs[0].unit if system.fed == 1 else "standard deviations",
        **{name: float(f"{value:.6g}") for name, value in figures.items()},
    }


def make(system: System) -> list[dict[str, Any]]:
    """Trains the models of one system, writes its files and gives its rows of suite.json."""
    stretches: Stretches = system.series()
    mean, std = scaling(system, stretches.training)
    pieces = [(piece - mean) / std for piece in stretches.training]
    shift = np.array(system.shift or (0.0,) * system.fed) / std[: system.fed]
    rows = []
    for seed in SEEDS:
        start = time.monotonic()
        model = trained(system, drawing(system, pieces, shift, seed), seed)
        figures = scores(system, model, (stretches.validation - mean) / std, std)
        numbers = ", ".join(f"{name} {value:.4g}" for name, value in figures.items())
        print(f"{system.name}-{seed} validation: {numbers}; {time.monotonic() - start:.0f} s", flush=True)
        save(model, MODELS / f"{system.name}-{seed}.keras")
        rows.append(entry(system, seed, model, scores(system, model, (stretches.test - mean) / std, std)))
    save_rows(stretches.test, MODELS / f"{system.name}.npz")
    (MODELS / f"{system.name}.toml").write_text(toml(system, mean, std), encoding="utf-8")
    return rows


def write_suite(rows: list[dict[str, Any]]) -> None:
    """Replaces the trained systems' rows of suite.json, in the order of ``SYSTEMS``."""
    path = MODELS / "suite.json"
    known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
    by_name = {row["model"]: row for row in [*known, *rows]}
    names = [f"{system.name}-{seed}" for system in SYSTEMS for seed in SEEDS]
    ordered = [by_name[name] for name in names if name in by_name]
    path.write_text(json.dumps(ordered, indent=1) + "\n", encoding="utf-8")


def main(names: list[str]) -> int:
    """Trains the named systems; the exit code."""
    unknown = set(names) - {system.name for system in SYSTEMS}
    if unknown:
        print(f"unknown: {', '.join(sorted(unknown))}; there are {', '.join(s.name for s in SYSTEMS)}", file=sys.stderr)
        return 2
    one_thread()
    MODELS.mkdir(exist_ok=True)
    for system in SYSTEMS:
        if not names or system.name in names:
            write_suite(make(system))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
