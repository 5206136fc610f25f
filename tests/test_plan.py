"""Widths within a budget: the optimum, its bytes, the front, and plans read back."""

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
from models import random_forecaster

from edgetqs.emit_c import stored_bytes
from edgetqs.errors import BadInput, CheckFailed
from edgetqs.model import Forecaster
from edgetqs.planner import Plan, fixed, granularity_of, plan, read_plan
from edgetqs.quantizer import quantize
from edgetqs.tqs import Score, UnitScore, score
from edgetqs.units import GRANULARITIES, units, weights


def scored(forecaster: Forecaster, granularity: str = "gate", seed: int = 0) -> Score:
    """Scores drawn at random, over five decades."""
    every = units(forecaster, granularity)
    drawn = 10 ** np.random.default_rng(seed).uniform(-3, 2, len(every))
    entries = tuple(UnitScore(u, float(g), 1.0, (float(g),), 1e-2) for u, g in zip(every, drawn, strict=True))
    return Score(granularity, 24, 24, entries, (1.0,), 48, 0, 0, 0)


def ends(forecaster: Forecaster, scores: Score, kernels: str) -> tuple[Plan, Plan]:
    return tuple(fixed(forecaster, scores, [width] * len(scores.units), kernels) for width in (4, 8))


MODELS = [
    pytest.param(random_forecaster("lstm", 5, 3, 1, layers=1), "gate", id="lstm-gate"),
    pytest.param(random_forecaster("gru", 7, 2, 2, layers=1), "gate", id="gru-gate"),
    pytest.param(random_forecaster("lstm", 6, 2, 1, layers=3), "tensor", id="lstm-tensor"),
    pytest.param(random_forecaster("gru_reset_before", 9, 3, 1, layers=4), "layer", id="gru-layer"),
]


@pytest.mark.parametrize("kernels", ["portable", "dsp"])
@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize(("forecaster", "granularity"), MODELS)
def test_plan_equals_brute_force_at_every_budget(forecaster, granularity, seed, kernels):
    scores = scored(forecaster, granularity, seed)
    narrow, wide = ends(forecaster, scores, kernels)
    choices = np.array(list(itertools.product([0, 1], repeat=len(scores.units))))
    sizes = np.array([[a.bytes, b.bytes] for a, b in zip(narrow.units, wide.units, strict=True)])
    errors = np.array([[a.error, b.error] for a, b in zip(narrow.units, wide.units, strict=True)])
    rows = np.arange(len(sizes))
    totals = narrow.weight_bytes + (sizes[rows, choices] - sizes[:, 0]).sum(axis=1)
    squared = errors[rows, choices].sum(axis=1)
    for budget in range(narrow.weight_bytes, wide.weight_bytes + 1, max(1, wide.weight_bytes // 60)):
        chosen = plan(forecaster, scores, budget, kernels)
        assert chosen.weight_bytes <= budget
        assert chosen.predicted**2 == pytest.approx(squared[totals <= budget].min(), rel=1e-9)
        assert chosen.budget_bytes == budget


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_error_is_the_score_times_what_rounding_changes(granularity):
    forecaster = random_forecaster("gru", 5, 3, 1)
    scores = scored(forecaster, granularity)
    for made, limit in zip(ends(forecaster, scores, "dsp"), (7, 127), strict=True):
        for planned, entry in zip(made.units, scores.units, strict=True):
            changed = 0.0
            for block in entry.unit.blocks:
                matrix = weights(forecaster, block).astype(float)
                step = np.abs(matrix).max(axis=1, keepdims=True) / limit
                changed += np.sum((np.round(matrix / step) * step - matrix) ** 2)
            assert planned.error == pytest.approx(entry.sensitivity * changed, rel=1e-9)
            assert planned.tqs == entry.tqs
        assert made.predicted == pytest.approx(np.sqrt(sum(unit.error for unit in made.units)))


@pytest.mark.parametrize("kernels", ["portable", "dsp", "simd", "neon"])
@pytest.mark.parametrize("kind", ["lstm", "gru", "gru_reset_before", "rnn"])
def test_planned_bytes_hold_the_stored_ones(kind, kernels):
    forecaster = random_forecaster(kind, 7, 3, 1)
    scores = scored(forecaster)
    for budget in (None, (sum(made.weight_bytes for made in ends(forecaster, scores, kernels))) // 2):
        chosen = plan(forecaster, scores, budget, kernels)
        stored = stored_bytes(quantize(forecaster, chosen.widths()), kernels)
        # Units stored together may share a word (portable) or fill a block of four, padded to less than rows alone.
        padding = 3 * (3 if kernels == "dsp" else 1) * len(chosen.units)
        assert chosen.weight_bytes - padding <= stored <= chosen.weight_bytes


def test_without_a_limit_everything_is_wide():
    forecaster = random_forecaster("lstm", 5, 3, 1)
    scores = scored(forecaster)
    narrow, wide = ends(forecaster, scores, "dsp")
    for budget in (None, wide.weight_bytes, 10**9):
        chosen = plan(forecaster, scores, budget, "dsp")
        assert {unit.width for unit in chosen.units} == {8}
        assert chosen.weight_bytes == chosen.int8_bytes == wide.weight_bytes
        assert chosen.int4_bytes == narrow.weight_bytes
    less = plan(forecaster, scores, wide.weight_bytes - 1, "dsp")
    assert {unit.width for unit in less.units} == {4, 8}


@pytest.mark.parametrize("kernels", ["portable", "dsp"])
def test_the_smallest_budget_is_just_enough(kernels):
    forecaster = random_forecaster("lstm", 8, 8, 1)
    scores = scored(forecaster)
    narrow, _ = ends(forecaster, scores, kernels)
    chosen = plan(forecaster, scores, narrow.weight_bytes, kernels)
    assert chosen.weight_bytes == narrow.weight_bytes
    # A single row is stored as bytes: int8 costs nothing there.
    assert {unit.unit for unit in chosen.units if unit.width == 8} == {"dense/kernel"}
    for budget in (narrow.weight_bytes - 1, 0, -100):
        with pytest.raises(CheckFailed, match=rf"need {narrow.weight_bytes} bytes") as caught:
            plan(forecaster, scores, budget, kernels)
        assert caught.value.exit_code == 1
        assert caught.value.todo
        assert f"{narrow.weight_bytes - budget} more" in str(caught.value)


def test_widths_name_every_block():
    forecaster = random_forecaster("gru", 5, 3, 1)
    for granularity in GRANULARITIES:
        scores = scored(forecaster, granularity)
        widths = plan(forecaster, scores, None).widths()
        assert quantize(forecaster, widths, "nearest")
        chosen = fixed(forecaster, scores, [4] + [8] * (len(scores.units) - 1), "portable")
        narrow = {block for block, width in chosen.blocks if width == 4}
        assert narrow == set(scores.units[0].unit.blocks)


@pytest.mark.parametrize("kernels", ["portable", "dsp"])
def test_front_is_monotone_and_reaches_both_ends(kernels):
    forecaster = random_forecaster("lstm", 7, 3, 1)
    scores = score(forecaster, 8)
    narrow, wide = ends(forecaster, scores, kernels)
    front = plan(forecaster, scores, None, kernels, points=12).front
    assert 6 <= len(front) <= 12
    assert all(a.weight_bytes < b.weight_bytes and a.predicted > b.predicted for a, b in itertools.pairwise(front))
    assert front[-1].weight_bytes == wide.weight_bytes
    assert front[0].weight_bytes == narrow.weight_bytes
    for point in front:
        same = fixed(forecaster, scores, [int(width) for width in point.widths], kernels)
        assert (same.weight_bytes, same.predicted) == (point.weight_bytes, point.predicted)


def test_dead_units_do_not_matter():
    forecaster = random_forecaster("rnn", 4, 3, 1)
    scores = scored(forecaster)
    dead = Score(
        "gate", 24, 24, tuple(UnitScore(e.unit, 0.0, 0.0, (0.0,), 1e-2) for e in scores.units), (1.0,), 48, 0, 0, 0
    )
    narrow, wide = ends(forecaster, dead, "portable")
    chosen = plan(forecaster, dead, (narrow.weight_bytes + wide.weight_bytes) // 2, "portable")
    assert chosen.predicted == 0
    assert chosen.weight_bytes <= (narrow.weight_bytes + wide.weight_bytes) // 2


def test_hash_names_the_widths():
    forecaster = random_forecaster("rnn", 4, 3, 1, layers=1)
    first, second = (fixed(forecaster, scored(forecaster, seed=seed), [8, 4, 8], "dsp") for seed in (0, 1))
    assert first.hash == second.hash == "fe1106dc29106dcf"
    hashes = {fixed(forecaster, scored(forecaster), list(w), "dsp").hash for w in itertools.product((4, 8), repeat=3)}
    assert len(hashes) == 8


# ---- Plans from files ----


@pytest.fixture
def case(tmp_path: Path):
    """(forecaster, scores, a plan, its file)"""
    forecaster = random_forecaster("gru", 4, 2, 1, layers=1)
    scores = scored(forecaster)
    made = plan(forecaster, scores, 230, "portable", points=4)
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(made.to_json()))
    assert {unit.width for unit in made.units} == {4, 8}
    return forecaster, scores, made, path


def edit(path: Path, change) -> None:
    table = json.loads(path.read_text())
    change(table)
    path.write_text(json.dumps(table))


def test_plan_reads_back(case):
    forecaster, scores, made, path = case
    again = read_plan(path, forecaster, scores, "portable")
    assert again.hash == made.hash
    assert again.widths() == made.widths()
    assert (again.weight_bytes, again.predicted, again.units) == (made.weight_bytes, made.predicted, made.units)
    assert granularity_of(path) == "gate"


def test_json_has_what_a_reader_needs(case):
    table = case[2].to_json()
    assert (table["schema"], table["kind"], table["granularity"]) == (1, "edgetqs plan", "gate")
    assert set(table["units"][0]) == {"unit", "layer", "tensor", "gate", "width", "bytes", "tqs", "error"}
    assert table["units"][0]["unit"] == "gru_0/kernel/z"
    assert set(table["front"][0]) == {"weight_bytes", "predicted", "widths"}


def test_edited_plan_is_taken_and_computed_anew(case):
    forecaster, scores, _, path = case
    edit(path, lambda table: [entry.update(width=4, bytes=1, error=9.0) for entry in table["units"]])
    again = read_plan(path, forecaster, scores, "portable")
    narrow, _ = ends(forecaster, scores, "portable")
    assert (again.units, again.weight_bytes) == (narrow.units, narrow.weight_bytes)


def test_units_may_come_in_any_order(case):
    forecaster, scores, made, path = case
    edit(path, lambda table: table["units"].reverse())
    assert read_plan(path, forecaster, scores, "portable").hash == made.hash


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda t: t.update(schema=2), "schema 2"),
        (lambda t: t.pop("schema"), "schema None"),
        (lambda t: t.update(granularity="layer"), "per layer"),
        (lambda t: t.pop("granularity"), "not a plan"),
        (lambda t: t.pop("units"), "not a plan"),
        (lambda t: t.update(units=[1, 2]), "not a plan"),
        (lambda t: t["units"][0].pop("width"), "not a plan"),
        (lambda t: t["units"].pop(0), "gru_0/kernel/z: missing"),
        (lambda t: t["units"][0].update(unit="gru_9/kernel/z"), "gru_9/kernel/z: not a unit"),
        (lambda t: t["units"][0].update(width=5), "gru_0/kernel/z: width 5"),
        (lambda t: t["units"][0].update(width="8"), "gru_0/kernel/z: width '8'"),
        (lambda t: t["units"][0].update(width=8.0), "gru_0/kernel/z: width 8.0"),
        (lambda t: t["units"][0].update(width=None), "gru_0/kernel/z: width None"),
        (lambda t: t["units"].append(dict(t["units"][0], width=4)), "twice"),
    ],
)
def test_mistakes_in_a_plan_are_told(case, change, said):
    forecaster, scores, _, path = case
    edit(path, change)
    with pytest.raises(BadInput) as caught:
        read_plan(path, forecaster, scores, "portable")
    assert said in str(caught.value)
    assert str(path) in str(caught.value)


def test_all_mistakes_are_told_at_once(case):
    forecaster, scores, _, path = case

    def change(table):
        table["units"][0]["width"] = 3
        table["units"][1]["unit"] = "elsewhere"
        del table["units"][2]

    edit(path, change)
    with pytest.raises(BadInput, match="4 mistakes") as caught:
        read_plan(path, forecaster, scores, "portable")
    for said in ("kernel/z: width 3", "kernel/r: missing", "kernel/h: missing", "elsewhere: not a unit"):
        assert said in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b"\xff\xfe", b'{"units": 3, "granularity": "gate"}'])
def test_files_that_are_no_plan(case, content):
    forecaster, scores, _, path = case
    path.write_bytes(content)
    with pytest.raises(BadInput, match="not a plan"):
        read_plan(path, forecaster, scores, "portable")
    assert granularity_of(path) == "gate"


def test_missing_file(case, tmp_path):
    forecaster, scores, *_ = case
    with pytest.raises(BadInput, match=r"nowhere\.json"):
        read_plan(tmp_path / "nowhere.json", forecaster, scores, "portable")
