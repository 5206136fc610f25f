"""Refinement: candidates are what they claim to be, budgets hold, plans get better."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
from models import KINDS, random_forecaster

from edgetqs import refine as module
from edgetqs.curvature import curvature
from edgetqs.distill import dequantized
from edgetqs.errors import BadInput
from edgetqs.observe import observe
from edgetqs.planner import Table, plan
from edgetqs.quantizer import quantize, rounded
from edgetqs.refine import STYLE, Bench, Search, refine
from edgetqs.tqs import score


def bench_of(forecaster, granularity="gate", rounding="trajectory"):
    scores = score(forecaster, 8, granularity)
    table = Table.of(forecaster, scores, "portable")
    metrics = curvature(forecaster) if rounding != "nearest" else None
    return scores, table, Bench.of(forecaster, table, scores.horizon, rounding, observe(forecaster), metrics)


def built(forecaster, bench, plan):
    """The judged error of the model that a build makes."""
    model = quantize(forecaster, plan.widths(), observations=observe(forecaster), horizon=8)
    return bench.judged.error(dequantized(forecaster, model))


@pytest.mark.parametrize("rounding", ["nearest", "trajectory"])
@pytest.mark.parametrize("kind", KINDS)
def test_candidates_are_the_models_that_quantizing_gives(kind, rounding):
    forecaster = random_forecaster(kind, 4, 3, 2)
    _, table, bench = bench_of(forecaster, rounding=rounding)
    rng = np.random.default_rng(0)
    plans = [tuple(int(w) for w in rng.choice([4, 8], len(table.units))) for _ in range(5)]
    errors = bench.errors(plans)
    metrics = curvature(forecaster)
    for widths, error in zip(plans, errors, strict=True):
        by_block = {b: w for unit, w in zip(table.units, widths, strict=True) for b in unit.blocks}
        style = None if rounding == "nearest" else STYLE
        model = rounded(forecaster, by_block, observe(forecaster), metrics, style)
        assert error == pytest.approx(bench.lesson.error(dequantized(forecaster, model)), rel=2e-3)


def test_batches_do_not_matter(monkeypatch):
    _, table, bench = bench_of(random_forecaster("gru", 4, 3, 2), "tensor")
    plans = list(itertools.product((4, 8), repeat=len(table.units)))
    whole = bench.errors(plans)
    monkeypatch.setattr(module, "BATCH", 3)
    np.testing.assert_allclose(bench.errors(plans), whole, rtol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_refined_plans_fit_and_are_not_worse(kind):
    forecaster = random_forecaster(kind, 6, 3, 2)
    scores, table, bench = bench_of(forecaster)
    low, high = (table.total([w] * len(table.units)) for w in (4, 8))
    for budget in (low, (low + high) // 2, high - 1):
        first = plan(forecaster, scores, budget, "portable")
        better = refine(forecaster, scores, first, observations=observe(forecaster), metrics=curvature(forecaster, 8))
        assert better.weight_bytes <= budget
        assert better.budget_bytes == budget
        before, after = (built(forecaster, bench, p) for p in (first, better))
        assert after <= before
        assert better.refined == pytest.approx(after**0.5, rel=1e-4)


def test_few_units_are_searched_exhaustively():
    forecaster = random_forecaster("lstm", 6, 3, 2)
    _, table, bench = bench_of(forecaster, "tensor")
    low, high = (table.total([w] * len(table.units)) for w in (4, 8))
    search = Search(bench, table, (low + high) // 2)
    best = search.run((4,) * len(table.units))[0]
    every = [p for p in itertools.product((4, 8), repeat=len(table.units)) if search.fits(p)]
    assert bench.errors([best])[0] <= min(bench.errors(every)) * (1 + 1e-4)


def test_a_wrong_score_is_mended():
    forecaster = random_forecaster("lstm", 8, 3, 2, seed=3)
    scores, table, bench = bench_of(forecaster)
    upside_down = replace(scores, units=tuple(replace(u, sensitivity=1 / u.sensitivity) for u in scores.units))
    low, high = (table.total([w] * len(table.units)) for w in (4, 8))
    bad = plan(forecaster, upside_down, (low + high) // 2, "portable")
    better = refine(forecaster, scores, bad, observations=observe(forecaster), metrics=curvature(forecaster, 8))
    before, after = (built(forecaster, bench, p) for p in (bad, better))
    assert after < 0.5 * before


def test_the_number_of_rollouts_is_bounded(monkeypatch):
    monkeypatch.setattr(module, "FEWEST", 0)
    monkeypatch.setattr(module, "WORK", 0)
    forecaster = random_forecaster("lstm", 4, 3, 2)
    _, table, bench = bench_of(forecaster)
    search = Search(bench, table, table.total([8] * len(table.units)) - 1)
    start = (4,) * len(table.units)
    assert search.run(start) == []
    assert search.measure([start]) == [np.inf]


def test_metrics_are_asked_for():
    forecaster = random_forecaster("rnn", 4, 3, 2)
    scores = score(forecaster, 8)
    with pytest.raises(BadInput, match="metrics"):
        refine(forecaster, scores, plan(forecaster, scores, None), observations=observe(forecaster))


def test_candidates_are_rolled_out_over_the_scores_horizon():
    for feedback, steps in ((True, 8), (False, 0)):
        _, _, bench = bench_of(random_forecaster("gru", 4, 3, 2, feedback=feedback), "layer")
        assert bench.lesson.future.shape[1] == bench.judged.future.shape[1] == steps
