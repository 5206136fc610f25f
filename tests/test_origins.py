"""What a file's layers were made of, as `inspect` tells it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from files import save_keras
from models import random_forecaster, random_layer
from test_read_keras import dense, dense_weights, layer, lstm, rnn_weights, sequential, write_h5
from test_read_tflite import FEATURES, STEPS, bidirectional, listed, stack
from tflite_files import fused, looped, one_step, save, unrolled

from edgetqs.cli import main
from edgetqs.model import Channel, Forecaster
from edgetqs.origins import Origins, origins
from edgetqs.project import load_project
from edgetqs.read_tflite import read_with_origins


def told(content: bytes) -> dict[str, str]:
    return read_with_origins(content, "m.tflite", "m")[1]


def test_unrolled_operators_are_all_told_once() -> None:
    channels = tuple(Channel(f"x{k}") for k in range(FEATURES))
    made = told(unrolled(Forecaster("m", tuple(stack("rnn", "rnn")), channels, (), STEPS)))
    assert made == {
        "simple_rnn": f"{2 * STEPS - 1} FULLY_CONNECTED, {STEPS} TANH, {STEPS - 1} ADD, UNPACK",
        "simple_rnn_1": f"{2 * STEPS - 1} FULLY_CONNECTED, {STEPS} TANH, {STEPS - 1} ADD",
        "dense": "FULLY_CONNECTED",
    }


def test_fused_operators() -> None:
    made = told(fused(stack("lstm", "lstm"), STEPS))
    assert list(made.values()) == ["UNIDIRECTIONAL_SEQUENCE_LSTM"] * 2 + ["GATHER, FULLY_CONNECTED"]
    assert told(bidirectional(True))["bidirectional"] == "BIDIRECTIONAL_SEQUENCE_RNN"


def test_a_loop_counts_its_steps() -> None:
    cell = random_layer("rnn", 4, FEATURES, np.random.default_rng(2))
    made = told(listed(cell.kernel[0], cell.recurrent_kernel[0], cell.bias[0]))["simple_rnn"]
    assert f"WHILE of {STEPS} steps: 2 FULLY_CONNECTED, 2 ADD, FlexTensorListGetItem, TANH" in made
    assert "TRANSPOSE" in made


def test_single_steps() -> None:
    made = told(one_step(stack("lstm")))
    assert made["lstm"].startswith("8 FULLY_CONNECTED, 5 ADD, 3 LOGISTIC, 3 MUL, 2 TANH")
    assert made["dense"] == "FULLY_CONNECTED"


def test_more_kinds_than_fit_a_line() -> None:
    made = told(one_step(stack("gru")))["gru"]
    assert made.count(",") <= 6


def test_keras_layers_that_are_joined_to_others(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = sequential(
        lstm("first layer"), layer("Dropout", "drop"), dense(), layer("Activation", "end", activation="linear")
    )
    path = write_h5(tmp_path / "m.h5", config, {"first layer": rnn_weights(4), "dense": dense_weights()})
    found = origins(load_project(path, None))
    assert found.layers == {"first_layer": "LSTM", "dense": "Dense"}
    assert found.rest == ("Dropout drop", "Activation end")
    assert main(["inspect", str(path)]) == 0
    assert (
        "joined to these layers, or of no effect once trained: Dropout drop, Activation end" in capsys.readouterr().out
    )
    assert main(["--json", "inspect", str(path)]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["joined"] == ["Dropout drop", "Activation end"]
    assert [one["made_of"] for one in shown["layers"]] == ["LSTM", "Dense"]
    assert sum(one["parameters"] for one in shown["layers"]) == shown["parameters"]


def test_parts_of_a_whole_come_from_it() -> None:
    found = Origins({"lstm": "LSTM", "lstm_2": "Bidirectional(LSTM)"})
    assert found.of("lstm_2_forward") == "Bidirectional(LSTM)"
    assert found.of("lstm") == "LSTM"
    assert found.of("other") == ""


def test_inspect_shows_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save(fused(stack("lstm"), STEPS), tmp_path / "m.tflite")
    assert main(["inspect", str(tmp_path / "m.tflite")]) == 0
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("  lstm"))
    assert line.split() == ["lstm", "Lstm", "3", "->", "4", "128", "512", "112", "56", "UNIDIRECTIONAL_SEQUENCE_LSTM"]
    save_keras(random_forecaster(kind="gru", units=3, inputs=2, layers=1, window=4), tmp_path / "m.keras")
    (tmp_path / "edgetqs.toml").write_text('[model]\nfile = "m.keras"\n')
    assert main(["inspect", "--config", str(tmp_path / "edgetqs.toml")]) == 0
    assert "GRU" in capsys.readouterr().out


@pytest.mark.parametrize(("outputs", "expected"), [(4, ["y0", "y1", "y2", "y3"]), (5, ["y0 to y4 (5)"])])
def test_many_outputs_that_are_alike_take_one_line(
    outputs: int, expected: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_keras(
        random_forecaster(kind="gru", units=3, inputs=1, outputs=outputs, layers=1, window=4), tmp_path / "m.keras"
    )
    assert main(["inspect", str(tmp_path / "m.keras")]) == 0
    shown = capsys.readouterr().out.partition("Outputs\n")[2].splitlines()
    assert [line.removesuffix("1").rstrip().removesuffix("0").strip() for line in shown[1:-2]] == expected


def test_a_loop_that_is_no_layer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save(looped(np.eye(3) * 0.3), tmp_path / "m.tflite")
    assert main(["inspect", str(tmp_path / "m.tflite")]) == 2
    assert "operators: 2 ADD, 1 WHILE" in capsys.readouterr().err
