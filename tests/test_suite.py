"""The suite of trained models in bench/: each loads, is what suite.json says and forecasts as well as it says."""

from __future__ import annotations

import functools
import importlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgetqs import rollout
from edgetqs.evaluate import MOST_STARTS, Cases, data_cases, forecast_float
from edgetqs.model import RECURRENT, Dense, Gru, Lstm, SimpleRnn
from edgetqs.project import Project, load_project, read_data

BENCH = Path(__file__).parents[1] / "bench"
MODELS = BENCH / "models"
SUITE = json.loads((MODELS / "suite.json").read_text(encoding="utf-8"))
NAMES = [row["model"] for row in SUITE]
ROWS = {row["model"]: row for row in SUITE}
CELLS = {"LSTM": Lstm, "GRU": Gru, "SimpleRNN": SimpleRnn}


@functools.cache
def project(name: str) -> Project:
    return load_project(MODELS / f"{name}.keras", MODELS / f"{ROWS[name]['system']}.toml")


@functools.cache
def data(name: str) -> np.ndarray:
    return read_data(project(name).data, project(name).forecaster)


def cases(name: str) -> Cases:
    """Up to 128 cases spread over the test stretch, with the truth, (starts, horizon, series forecast)."""
    forecaster, horizon, rows = project(name).forecaster, project(name).horizon, data(name)
    if forecaster.feedback.pairs:
        return data_cases(forecaster, rows, horizon)
    made = data_cases(forecaster, rows[:-horizon], horizon)  # a direct model's horizon is not cut off there
    starts = np.unique(np.linspace(0, len(rows) - forecaster.window - horizon, MOST_STARTS).astype(int))
    ends = starts + forecaster.window
    truth = np.stack([rows[end : end + horizon, :1] for end in ends])
    return Cases(made.history, made.future, truth)


def rmse(name: str) -> tuple[float, float]:
    """Over the horizon, of the model and of the last value, in the unit that suite.json names."""
    forecaster, one = project(name).forecaster, cases(name)
    forecasts = forecast_float(forecaster, one, project(name).horizon)
    if not forecaster.feedback.pairs:
        forecasts = forecasts[:, -1, :, None]  # the outputs after the window's last sample
    fed = one.truth.shape[-1]
    scale = 1.0 if fed == 1 else np.array([channel.std for channel in forecaster.outputs])
    naive = one.history[:, -1:, :fed]
    return tuple(float(np.sqrt(np.mean(((guess - one.truth) / scale) ** 2))) for guess in (forecasts, naive))


def test_nothing_is_missing_or_left_over() -> None:
    systems = {row["system"] for row in SUITE}
    files = {path.name for path in MODELS.iterdir()}
    assert len(NAMES) == len(set(NAMES)) == 2 * len(systems)
    assert files == {
        "suite.json",
        *(f"{name}.keras" for name in NAMES),
        *(f"{s}{end}" for s in systems for end in (".toml", ".npz")),
    }
    assert sum((MODELS / file).stat().st_size for file in files) < 3_500_000


@pytest.mark.parametrize("name", NAMES)
def test_has_the_declared_shape(name: str) -> None:
    row, forecaster = ROWS[name], project(name).forecaster
    *recurrent, head = forecaster.layers
    assert [type(layer) for layer in recurrent] == [CELLS[row["cell"]]] * row["layers"]
    assert {layer.kernel.shape[1] for layer in recurrent} == {row["units"]}
    assert isinstance(head, Dense)
    assert forecaster.parameters == row["parameters"]
    assert (len(forecaster.inputs), len(forecaster.outputs)) == (row["inputs"], row["outputs"])
    assert (forecaster.window, project(name).horizon) == (row["window"], row["horizon"])
    assert not forecaster.windowed
    assert len(forecaster.feedback.pairs) == (0 if row["kind"] == "direct" else row["outputs"])


@pytest.mark.parametrize("name", NAMES)
def test_the_seeds_gave_different_models(name: str) -> None:
    other = f"{ROWS[name]['system']}-{3 - ROWS[name]['seed']}"
    mine, theirs = (project(one).forecaster.layers[0] for one in (name, other))
    assert isinstance(mine, RECURRENT)
    assert not np.allclose(mine.kernel, theirs.kernel, atol=1e-3)


@pytest.mark.parametrize("name", NAMES)
def test_the_test_stretch_is_small_and_within_range(name: str) -> None:
    forecaster, rows = project(name).forecaster, data(name)
    assert forecaster.window + project(name).horizon < len(rows) <= 1500
    assert np.abs(rollout.normalise(forecaster, rows)).max() < forecaster.input_range


@pytest.mark.parametrize("name", NAMES)
def test_forecasts_as_well_as_suite_json_says(name: str) -> None:
    row = ROWS[name]
    model, naive = rmse(name)
    # Keras computed in float32: its rounding, 6e-8 a step, grows by less than 1000 over the longest rollout.
    assert model == pytest.approx(row["rmse"], rel=1e-4)
    assert naive == pytest.approx(row["rmse_persistence"], rel=1e-5)
    assert row["gain_percent"] == pytest.approx(100 * (1 - model / naive), abs=0.02)
    assert model < naive


@pytest.mark.tensorflow
@pytest.mark.parametrize("name", NAMES)
def test_same_as_keras(name: str) -> None:
    keras: Any = pytest.importorskip("keras", reason="needs the tensorflow extra")
    pytest.importorskip("tensorflow", reason="needs the tensorflow extra")
    forecaster = project(name).forecaster
    history = cases(name).history[:4]
    model = keras.models.load_model(MODELS / f"{name}.keras")
    assert not hasattr(model, "optimizer") or model.optimizer is None
    mean, std = (np.array([getattr(c, part) for c in forecaster.outputs]) for part in ("mean", "std"))
    expected = model(rollout.normalise(forecaster, history).astype(np.float32)).numpy()
    np.testing.assert_allclose((rollout.window(forecaster, history) - mean) / std, expected, atol=2e-5)


def test_stretches_share_no_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(BENCH)
    series = importlib.import_module("series")
    made = series.cut(np.arange(40.0).reshape(2, 20, 1), slice(3, 5), slice(10, 14), place=1)
    assert [piece[0, :, 0].tolist() for piece in made.training] == [
        [0, 1, 2],
        [5, 6, 7, 8, 9],
        [14, 15, 16, 17, 18, 19],
    ]
    assert made.validation[:, 0].tolist() == [23, 24]
    assert made.test[:, 0].tolist() == [30, 31, 32, 33]


@pytest.mark.parametrize("system", ["glucose", "lorenz", "mackey", "oscillator", "tide"])
def test_simulations_repeat(monkeypatch: pytest.MonkeyPatch, system: str) -> None:
    monkeypatch.syspath_prepend(BENCH)
    test = getattr(importlib.import_module("simulated"), system)().test
    stored = np.load(MODELS / f"{system}.npz")["x"]
    assert test.shape == stored.shape
    if system not in ("lorenz", "mackey"):  # chaos: the last bit of another libm grows
        np.testing.assert_allclose(test, stored, rtol=1e-3, atol=2e-3)


@pytest.mark.parametrize("path", sorted(BENCH.glob("*.py")), ids=lambda path: path.stem)
def test_no_module_is_longer_than_400_lines(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 400
