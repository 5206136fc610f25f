"""Recipes for ai-edge-quantizer: the best widths, rules that hit the right operators, the file that comes of them."""

from __future__ import annotations

import importlib.util
import itertools
import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from models import random_forecaster
from test_cli import run
from tflite_files import Model, looped, save, unrolled

from edgetqs.blackbox import score
from edgetqs.errors import BadInput, CheckFailed, ToolMissing
from edgetqs.planner import rounding_error
from edgetqs.recipe import CHANNEL_BYTES, Recipe, apply, plan_recipe
from edgetqs.tflite_forecaster import BlackBox, load
from edgetqs.tflite_weights import read_contents, values
from edgetqs.tqs import Score

PUBLISHED = Path(__file__).parents[2] / "shared" / "third-party"
needs_quantizer = pytest.mark.skipif(
    importlib.util.find_spec("ai_edge_quantizer") is None, reason="ai-edge-quantizer is not installed"
)


def scored(path: Path, content: bytes, horizon: int = 4) -> tuple[BlackBox, Score]:
    _, box = load(save(content, path / "m.tflite"), None)
    return box, score(box, horizon, directions=2, trajectories=12)


@pytest.fixture
def small(tmp_path) -> tuple[BlackBox, Score]:
    return scored(tmp_path, unrolled(random_forecaster("rnn", 6, 3, 1, window=8, gain=0.5)))


def stored(constant, width: int) -> int:
    return (constant.size * width + 7) // 8 + CHANNEL_BYTES * constant.shape[0]


def test_the_widths_are_the_best_of_all(small):
    box, scores = small
    choices = list(itertools.product((4, 8), repeat=len(box.weights)))
    sizes = [sum(map(stored, box.weights, widths)) for widths in choices]
    errors = [
        sum(
            unit.sensitivity * rounding_error(values(box.content, c), width)
            for unit, c, width in zip(scores.units, box.weights, widths, strict=True)
        )
        for widths in choices
    ]
    for budget in range(min(sizes), max(sizes) + 1, 7):
        plan = plan_recipe(box, scores, budget, points=0).plan
        best = min(error for error, size in zip(errors, sizes, strict=True) if size <= budget)
        assert plan.weight_bytes <= budget
        assert plan.predicted == pytest.approx(best**0.5)
    with pytest.raises(CheckFailed, match=f"need {min(sizes)} bytes"):
        plan_recipe(box, scores, min(sizes) - 1)


def test_each_rule_hits_the_operators_of_its_weight_alone(small):
    box, scores = small
    recipe = plan_recipe(box, scores, 420)
    assert {u.width for u in recipe.plan.units} == {4, 8}
    for constant, unit, rule in zip(box.weights, recipe.plan.units, recipe.rules, strict=True):
        assert rule["op_config"]["weight_tensor_config"]["num_bits"] == unit.width
        for other in box.weights:
            hits = [bool(re.search(rule["regex"], f"{use.outputs[0]};")) for use in other.uses]
            assert hits == [other is constant] * len(hits)


def test_names_are_escaped(tmp_path):
    model = Model()
    graph = model.graph()
    x = graph.tensor("input", (1, 3))
    y = graph.dense("a+(b)[c]", x, graph.constant("w", np.eye(3) / 2 + 0.1))
    graph.finish([x], [y])
    box, scores = scored(tmp_path, model.bytes())
    (rule,) = plan_recipe(box, scores).rules
    assert re.search(rule["regex"], "a+(b)[c];")
    assert not re.search(rule["regex"], "aa+(b)[c];")


def test_weights_that_cannot_be_quantized_are_named(tmp_path):
    box, scores = scored(tmp_path, looped(np.eye(4) / 2 + 0.1))  # W is an operand of the loop
    with pytest.raises(BadInput, match=r"none of the weights(.|\n)*layer/kernel: does not reach its operator directly"):
        plan_recipe(box, scores)
    box, scores = scored(tmp_path, unrolled(random_forecaster("rnn", 4, 2, 1, window=6), "int8"))
    with pytest.raises(BadInput, match="is int8 already"):
        plan_recipe(box, scores)


def test_a_fused_lstm_is_kept_and_counted():
    path = PUBLISHED / "tflm_mnist_lstm_float.tflite"
    if not path.exists():
        pytest.skip("the published models are not there")
    _, box = load(path, None)
    recipe = plan_recipe(box, score(box, 2, directions=1, trajectories=6))
    assert [u.unit for u in recipe.plan.units] == ["output/MatMul"]
    assert len(recipe.kept) == 8
    assert {one.reason for one in recipe.kept} == {"UNIDIRECTIONAL_SEQUENCE_LSTM cannot be given integer weights"}
    assert recipe.plan.weight_bytes == sum(one.bytes for one in recipe.kept) + stored(box.weights[-1], 8)
    assert "kept as float32" in recipe.lines("")[0]


def depthwise(path: Path) -> tuple[BlackBox, Score]:
    from ai_edge_litert import schema_py_generated as schema

    rng = np.random.default_rng(0)
    model = Model()
    graph = model.graph()
    x = graph.tensor("input", (1, 8, 3))
    shape = graph.constant("shape", [1, 1, 8, 3], np.int32)
    image = graph.operator("RESHAPE", [x, shape], [("image", (1, 1, 8, 3))])[0]
    options = schema.DepthwiseConv2DOptionsT()
    options.padding, options.strideW, options.strideH, options.depthMultiplier = schema.Padding.VALID, 1, 1, 1
    options.dilationWFactor = options.dilationHFactor = 1
    kernel = graph.constant("filter", rng.normal(0, 0.2, (1, 1, 8, 3)))
    bias = graph.constant("bias", np.zeros(3))
    y = graph.operator("DEPTHWISE_CONV_2D", [image, kernel, bias], [("conv", (1, 1, 1, 3))], options)[0]
    flat = graph.operator("RESHAPE", [y, graph.constant("flat", [1, 3], np.int32)], [("squeezed", (1, 3))])[0]
    graph.finish([x], [graph.dense("out", flat, graph.constant("head", rng.normal(0, 0.4, (3, 3))))])
    return scored(path, model.bytes())


def test_depthwise_weights_are_int8_at_least(tmp_path):
    box, scores = depthwise(tmp_path)
    smallest = 24 + 3 * CHANNEL_BYTES + stored(box.weights[1], 4)
    assert [u.width for u in plan_recipe(box, scores, smallest + 5).plan.units] == [8, 8]
    narrow = plan_recipe(box, scores, smallest).plan
    assert [u.width for u in narrow.units] == [8, 4]
    assert narrow.weight_bytes == smallest == narrow.int4_bytes


def test_without_the_extra_it_says_what_to_install(small, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "ai_edge_quantizer", None)
    box, scores = small
    with pytest.raises(ToolMissing, match=r"edgetqs\[recipe\]"):
        apply(box, plan_recipe(box, scores), 4)


def applied(box: BlackBox, scores: Score, budget: int | None) -> Recipe:
    recipe = apply(box, plan_recipe(box, scores, budget), 4)
    assert recipe.applied is not None
    assert recipe.applied.missed == ()
    kinds = {c.tensors[0]: c.kind for c in read_contents(recipe.content).weights}
    names = {c.name: c.tensors[0] for c in box.weights}
    assert all(kinds[names[u.unit]] == f"int{u.width}" for u in recipe.plan.units)
    return recipe


@needs_quantizer
def test_the_quantized_file_is_as_planned(small):
    box, scores = small
    recipes = [applied(box, scores, budget) for budget in (None, 420, 366)]
    assert len({tuple(u.width for u in r.plan.units) for r in recipes}) == 3
    measured = [r.applied.overall for r in recipes]
    assert measured == sorted(measured)
    for recipe in recipes:
        assert recipe.plan.predicted / 4 < recipe.applied.overall < 4 * recipe.plan.predicted
    sizes = [len(r.content) for r in recipes]
    saved = [r.plan.weight_bytes for r in recipes]
    assert sizes[0] - sizes[2] == pytest.approx(saved[0] - saved[2], abs=32)  # buffers are padded
    assert recipes[0].to_json()["applied"]["bytes"] == sizes[0]


@needs_quantizer
@pytest.mark.parametrize("width", [4, 8])
def test_weights_inside_loops_are_quantized(width, tmp_path):
    box, scores = scored(tmp_path, looped(np.random.default_rng(0).normal(0, 0.2, (6, 6)), inside=True))
    recipe = applied(box, scores, stored(box.weights[0], width))
    assert [u.width for u in recipe.plan.units] == [width]
    assert 0 < recipe.applied.overall < 0.2


@needs_quantizer
def test_depthwise_weights_are_quantized(tmp_path):
    box, scores = depthwise(tmp_path)
    assert [u.width for u in applied(box, scores, 24 + 3 * CHANNEL_BYTES + stored(box.weights[1], 4)).plan.units] == [
        8,
        4,
    ]


@needs_quantizer
def test_what_the_quantizer_refuses_is_said(small):
    box, scores = small
    recipe = plan_recipe(box, scores)
    with pytest.raises(CheckFailed, match="ai-edge-quantizer refuses"):
        apply(box, replace(recipe, rules=({**recipe.rules[0], "algorithm_key": "nothing"},)), 4)
    missed = apply(box, replace(recipe, rules=recipe.rules[1:]), 4).applied.missed
    assert missed == (f"{recipe.plan.units[0].unit}: planned int8, stored as float32",)


# --- the command line ------------------------------------------------------------------------


@pytest.fixture
def here(tmp_path) -> Path:
    save(unrolled(random_forecaster("rnn", 6, 3, 1, window=8, gain=0.5)), tmp_path / "m.tflite")
    return tmp_path


def test_plan_writes_a_recipe(here):
    arguments = ["plan", "m.tflite", "--black-box", "--horizon", 3, "--weight-budget", 420]
    done = run(*arguments, "--out", "recipe.json", cwd=here)
    assert "Plan per tensor" in done.stdout
    assert "Pareto front" in done.stdout
    rules = json.loads((here / "recipe.json").read_text())
    assert {rule["op_config"]["weight_tensor_config"]["num_bits"] for rule in rules} == {4, 8}
    table = json.loads(run(*arguments, "--json", cwd=here).stdout)
    assert table["rules"] == rules
    assert table["weight_bytes"] <= 420
    assert "recipe.json: the file exists" in run(*arguments, "--out", "recipe.json", cwd=here, code=2).stderr
    assert "even at int4" in run(*arguments[:-1], 100, cwd=here, code=1).stderr


def test_apply_without_the_extra_is_a_missing_tool(here):
    (here / "ai_edge_quantizer.py").write_text("raise ImportError('broken')")
    path = f"{here}:{Path(__file__).parents[1]}"
    done = run("plan", "m.tflite", "--black-box", "--apply", "q.tflite", cwd=here, code=3, PYTHONPATH=path)
    assert "pip install 'edgetqs[recipe]'" in done.stderr
    assert not (here / "q.tflite").exists()


@needs_quantizer
def test_apply_writes_the_file(here):
    options = ["--black-box", "--horizon", 3, "--weight-budget", 420, "--apply", "q.tflite"]
    done = run("plan", "m.tflite", *options, cwd=here)
    size = (here / "q.tflite").stat().st_size
    assert f"wrote q.tflite: {size} B" in done.stdout
    assert "measured deviation" in done.stdout
    again = json.loads(run("score", "q.tflite", "--black-box", "--horizon", 2, "--json", cwd=here).stdout)
    assert len(again["units"]) == 5
