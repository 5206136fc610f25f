"""The plan benchmark on one small model: it runs, and its figures hold together."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def figures(tmp_path_factory):
    out = tmp_path_factory.mktemp("bench")
    command = [sys.executable, str(ROOT / "bench" / "plan.py"), "sst-1", "--jobs", "1", "--quick", "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "3. Regret per gate, trajectory rounding" in done.stdout
    return json.loads((out / "plan.json").read_text())


def test_no_plan_beats_the_exhaustive_best(figures):
    for rounding in ("nearest", "trajectory"):
        for row in figures["models"][0]["plans"]["tensor"][rounding]:
            assert min(row["regret"].values()) >= 1 - 1e-6
            assert row["best"] > 0
            assert set(row["regret"]) >= {"TQS", "TQS, refined", "local score", "random", "uniform int4"}


def test_more_bytes_never_make_the_best_plan_worse(figures):
    for rounding in ("nearest", "trajectory"):
        best = [row["best"] for row in figures["models"][0]["plans"]["tensor"][rounding]]
        assert best == sorted(best, reverse=True)


def test_summary_is_made_of_the_models(figures):
    rows = figures["models"][0]["plans"]["tensor"]["nearest"]
    summary = figures["summary"]["regret"]["tensor, nearest"]
    for method in rows[0]["regret"]:
        logs = [np.log(row["regret"][method]) for row in rows]
        assert summary[method]["mean"] == pytest.approx(np.exp(np.mean(logs)))
        assert summary[method]["worst"] == pytest.approx(np.exp(max(logs)))


def test_the_score_ranks_what_is_measured(figures):
    found = figures["models"][0]["prediction"]["gate"]
    assert found["rank"] > 0.5
    assert 0.3 < found["ratio"] < 3
