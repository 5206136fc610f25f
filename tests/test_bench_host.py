"""The benchmark against LiteRT on a small size: what it compares computes the same, and its figures hold together."""

import json
import platform
import subprocess
import sys
from pathlib import Path

import host
import pytest

ROOT = Path(__file__).resolve().parents[1]

pytestmark = pytest.mark.skipif(
    platform.machine() not in ("x86_64", "aarch64"), reason="no target is compiled for this computer"
)


@pytest.fixture(scope="module")
def figures(tmp_path_factory):
    out = tmp_path_factory.mktemp("bench") / "host.json"
    command = [sys.executable, str(ROOT / "bench" / "host.py"), "--units", "12", "--rounds", "3", "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "LSTM(12) on 8 features and Dense(1): nanoseconds a step" in done.stdout
    return json.loads(out.read_text())


def test_every_engine_is_there_and_takes_time(figures):
    assert len(figures["rows"]) == 3 + 2 * 4 + 2 * 4  # C; two files of ours; two fused ops
    for row in figures["rows"]:
        low, high = row["quartiles"]
        assert 0 < low <= row["ns_per_step"] <= high


def test_the_fused_ops_compute_the_same_model(figures):
    errors = figures["rmse_of_fused_ops"]["12"]
    assert errors["float32"] < 1e-3
    assert errors["int8"] < 0.05


def test_ratios_are_against_the_faster_setting(figures):
    times = {(row["engine"], row["how"]): row["ns_per_step"] for row in figures["rows"]}
    fused = min(times[f"LiteRT, fused float32{xnnpack}", "sequence"] for xnnpack in ("", ", XNNPACK"))
    ratio = fused / times["edgetqs C, int8", "step by step"]
    assert figures["ratios"][0]["int8"]["fused float32, sequence"] == pytest.approx(ratio, abs=0.01)


@pytest.mark.parametrize(("machine", "kernels"), [("x86_64", "simd"), ("aarch64", "neon")])
def test_the_c_is_that_of_this_computer(machine, kernels, monkeypatch):
    monkeypatch.setattr(platform, "machine", lambda: machine)
    assert host.own_target().cpu.kernels == kernels
