"""make bench-plan: does the score predict, are the plans near the best possible, what does rounding buy?

Every model of the suite is examined on its held-out data; tables go to the
terminal, all figures to bench/plan.json, a picture to bench/plan.png.
"""

from __future__ import annotations

import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # before NumPy starts its threads

import argparse
import itertools
import json
import time
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import baselines
import numpy as np
import suite
import tables
from scipy.stats import spearmanr

from edgetqs import planner
from edgetqs.curvature import curvature
from edgetqs.distill import dequantized
from edgetqs.dynamics import dynamics
from edgetqs.integer import IntegerModel
from edgetqs.layout import packed_bytes
from edgetqs.model import Dense, Forecaster, Lstm, frozen
from edgetqs.observe import observe
from edgetqs.planner import WIDTHS, Table
from edgetqs.quantizer import quantize, rounded
from edgetqs.refine import Bench, Search, Widths, refine
from edgetqs.tqs import Score, score
from edgetqs.units import blocks, weights

FRACTIONS = {"tensor": (0.15, 0.3, 0.45, 0.6, 0.75), "gate": (0.25, 0.5, 0.75)}
#: Random plans at each budget, and how many that the search on held-out data found are measured as built.
RANDOM, FOUND = {"tensor": 10, "gate": 4}, 4
UNPERTURBED = "TQS, histories unperturbed"
#: The best of all plans on the earlier half of the held-out windows, judged against the best on the later half:
#: what is left to a choice that has the data, but not the data it is judged on.
EARLIER = "best on earlier half (data)"
ROUNDINGS = ("nearest", "trajectory")
HERE = Path(__file__).resolve().parent


class Study:
    """One model with what its examinations share."""

    def __init__(self, name: str) -> None:
        self.member = suite.member(name)
        self.forecaster, self.horizon = self.member.forecaster, self.member.horizon
        self.held = self.member.held
        self.lessons = (self.held.lesson, *self.held.halves())
        self.observations, self.metrics = observe(self.forecaster), curvature(self.forecaster, self.horizon)
        plain = {
            w: rounded(self.forecaster, dict.fromkeys(blocks(self.forecaster), w), self.observations) for w in WIDTHS
        }
        self.errors = baselines.nearest_blocks(
            self.forecaster, {w: dequantized(self.forecaster, model) for w, model in plain.items()}
        )
        truth = self.held.truth[:, 0] if self.forecaster.feedback.pairs else self.held.truth
        some = slice(None, None, 3)
        history = self.held.lesson.history[some].astype(np.float64)
        self.traces = baselines.hessian_traces(self.forecaster, history, truth[some])
        self.scores = {g: score(self.forecaster, self.horizon, g) for g in FRACTIONS}

    def quantized(self, widths: dict, rounding: str) -> IntegerModel:
        """As a build would."""
        return quantize(
            self.forecaster,
            widths,
            rounding,
            observations=self.observations,
            metrics=self.metrics,
            horizon=self.horizon,
        )

    def deviation(self, widths: dict, rounding: str) -> float:
        """Of the rollout on held-out data, in units of its spread, really quantized."""
        return float(np.sqrt(self.squared(widths, rounding)[0]))

    def squared(self, widths: dict, rounding: str) -> tuple[float, ...]:
        """Squared deviation on held-out data as a build quantizes: on all of it, its earlier and its later half."""
        model = dequantized(self.forecaster, self.quantized(widths, rounding))
        return tuple(lesson.error(model) for lesson in self.lessons)

    def costs(self, granularity: str, measured: np.ndarray) -> dict[str, np.ndarray]:
        """Cost of each unit (rows) at int4 and int8 (columns), by method."""
        forecaster, scores, lesson = self.forecaster, self.scores[granularity], self.held.lesson
        units = tuple(entry.unit for entry in scores.units)
        squared = baselines.weight_mse(units, self.errors)

        def scored(values: Any) -> np.ndarray:
            return np.array(list(values))[:, None] * squared

        late = score(forecaster, self.horizon, granularity, perturb_burn_in=False)
        one = score(forecaster, 1, granularity)
        history = lesson.history.astype(np.float64)
        return {
            "weight MSE": squared,
            "one-step output error": baselines.one_step(forecaster, units, self.errors),
            "local score": scored(entry.local for entry in scores.units),
            "TQS, T=1": scored(entry.sensitivity for entry in one.units),
            "TQS": scored(entry.sensitivity for entry in scores.units),
            UNPERTURBED: scored(entry.sensitivity for entry in late.units),
            "SQNR (data)": baselines.signal_to_noise(forecaster, units, self.errors, history),
            "Hessian trace (data)": baselines.hessian_cost(forecaster, units, self.errors, self.traces),
            "leave-one-out (data)": measured,
        }


def prediction(scores: Score, measured: np.ndarray, squared: np.ndarray, spread: np.ndarray) -> dict[str, Any]:
    """Predicted against measured deviation of each unit quantized alone.

    Predictions are in units of the synthetic rollouts' spread; ``spread``
    (outputs,) of the held-out rollouts takes them to theirs.
    """
    wider = float(np.sqrt(np.mean((np.array(scores.spread) / spread) ** 2)))
    predicted = wider * np.sqrt(np.array([[e.sensitivity] for e in scores.units]) * squared)
    found = np.sqrt(np.maximum(measured, 1e-20))
    ratio = np.log(predicted / found)
    return {
        "rank": float(spearmanr(predicted.ravel(), found.ravel())[0]),
        "rank_int4": float(spearmanr(predicted[:, 0], found[:, 0])[0]),
        "ratio": float(np.exp(ratio.mean())),
        "factor": float(np.exp(ratio.std())),
        "spread": wider,
        "flagged": [entry.unit.name for entry in scores.flagged],
        "scored": scores.scored,
        "units": [
            {
                "unit": entry.unit.name,
                "predicted": predicted[k].tolist(),
                "measured": found[k].tolist(),
                "flag": entry.flag,
                "saturates": entry.saturates,
            }
            for k, entry in enumerate(scores.units)
        ],
    }


def compare(study: Study, granularity: str, rounding: str, costs: dict[str, np.ndarray]) -> list[dict[str, Any]]:
    """Deviation of every method's plan at each budget, and of the best plan there is, all as a build rounds them."""
    scores = study.scores[granularity]
    table = Table.of(study.forecaster, scores, "dsp")
    own = Bench.of(study.forecaster, table, scores.horizon, rounding, study.observations, study.metrics)
    held = tuple(replace(own, lesson=lesson) for lesson in study.lessons)
    low, high = (table.total([w] * len(table.units)) for w in WIDTHS)
    known: dict[Widths, tuple[float, ...]] = {}

    def measure(plans: Iterable[Widths]) -> None:
        new = [plan for plan in dict.fromkeys(plans) if plan not in known]
        if rounding == "nearest":
            known.update(zip(new, zip(*(bench.errors(new) for bench in held), strict=True), strict=True))
        else:
            known.update((plan, study.squared(widths_of(table, plan), rounding)) for plan in new)

    if granularity == "tensor":
        measure(itertools.product(WIDTHS, repeat=len(table.units)))
    rows = []
    for fraction in FRACTIONS[granularity]:
        budget = int(low + fraction * (high - low))
        plans = {name: tuple(replace(table, errors=cost).solve(budget)) for name, cost in costs.items()}
        start = planner.plan(study.forecaster, scores, budget, "dsp")
        refined = refine(
            study.forecaster, scores, start, rounding, observations=study.observations, metrics=study.metrics
        )
        plans["TQS, refined"] = tuple(unit.width for unit in refined.units)
        plans["uniform int4"] = (4,) * len(table.units)
        chance = [_random(table, budget, np.random.default_rng(k)) for k in range(RANDOM[granularity])]
        measure([*plans.values(), *chance])
        if granularity == "gate":
            search = Search(held[0], table, budget)
            search.measure([*plans.values(), *chance])
            measure(search.run(min(plans.values(), key=search.known.__getitem__))[:FOUND])
        whole, earlier, later = np.array([known[plan] for plan in known if table.total(plan) <= budget]).T
        best = whole.min()
        regret = {name: float(np.sqrt(known[plan][0] / best)) for name, plan in plans.items()}
        regret["random"] = float(np.exp(np.mean([0.5 * np.log(known[plan][0] / best) for plan in chance])))
        if granularity == "tensor":
            regret[EARLIER] = float(np.sqrt(later[np.argmin(earlier)] / later.min()))
        rows.append({"fraction": fraction, "bytes": budget, "best": float(np.sqrt(best)), "regret": regret})
    wide = (8,) * len(table.units)
    measure([wide])
    return [{**row, "uniform int8": float(np.sqrt(known[wide][0]))} for row in rows]


def widths_of(table: Table, plan: Widths) -> dict:
    return {block: width for unit, width in zip(table.units, plan, strict=True) for block in unit.blocks}


def _random(table: Table, budget: int, rng: np.random.Generator) -> tuple[int, ...]:
    """A random plan that cannot be widened further."""
    plan = [4] * len(table.units)
    for unit in rng.permutation(len(plan)):
        plan[unit] = 8
        if table.total(plan) > budget:
            plan[unit] = 4
    return tuple(plan)


def rounding_table(study: Study) -> dict[str, float]:
    """Deviation on held-out data with every weight at one width."""
    return {
        f"{rounding} int{width}": study.deviation(dict.fromkeys(blocks(study.forecaster), width), rounding)
        for rounding in ("nearest", "trajectory", "learned")
        for width in WIDTHS
    }


def granularities(study: Study) -> dict[str, Any]:
    """Rollout RMSE at 65 % of the int8 weights' bytes over the float model's, by granularity.

    Scales and biases come on top: they are the same for every plan.
    """
    packed = sum(packed_bytes(*weights(study.forecaster, b).shape, 8, "dsp") for b in blocks(study.forecaster))
    result: dict[str, Any] = {"float": study.held.rmse(study.forecaster)}
    for granularity in ("layer", "tensor", "gate"):
        scores = study.scores.get(granularity) or score(study.forecaster, study.horizon, granularity)
        table = Table.of(study.forecaster, scores, "dsp")
        budget = table.total([8] * len(table.units)) - int(0.35 * packed)
        for rounding in (*ROUNDINGS, "learned"):
            plan = planner.plan(study.forecaster, scores, budget, "dsp")
            plan = refine(
                study.forecaster, scores, plan, rounding, observations=study.observations, metrics=study.metrics
            )
            model = study.quantized(plan.widths(), rounding)
            rmse = study.held.rmse(dequantized(study.forecaster, model))
            result[f"{granularity} {rounding}"] = rmse / result["float"]
    return result


def examine(name: str) -> dict[str, Any]:
    """All figures of one model."""
    began = time.perf_counter()
    study = Study(name)
    result: dict[str, Any] = {"name": name, **study.member.about, "plans": {}, "prediction": {}}
    for granularity in FRACTIONS:
        scores = study.scores[granularity]
        units = tuple(entry.unit for entry in scores.units)
        measured = baselines.leave_one_out(study.forecaster, units, study.errors, study.held.lesson)
        costs = study.costs(granularity, measured)
        squared = costs["weight MSE"]
        predicted = prediction(scores, measured, squared, study.held.lesson.spread[0, 0])
        result["prediction"][granularity] = predicted
        late = predicted["spread"] * np.sqrt(costs[UNPERTURBED])
        found = np.sqrt(np.maximum(measured, 1e-20))
        result["prediction"][granularity]["unperturbed"] = {
            "rank": float(spearmanr(late.ravel(), found.ravel())[0]),
            "ratio": float(np.exp(np.log(late / found).mean())),
            "factor": float(np.exp(np.log(late / found).std())),
        }
        result["plans"][granularity] = {r: compare(study, granularity, r, costs) for r in ROUNDINGS}
    gates = study.scores["gate"]
    result["amplification"] = {e.unit.name: float(np.sqrt(e.amplification)) for e in gates.units if e.local > 0}
    result["rounding"] = rounding_table(study)
    result["granularity"] = granularities(study)
    found_dynamics = dynamics(study.forecaster, study.horizon)
    loop = found_dynamics.closed_loop or found_dynamics.step_map
    result["lyapunov"] = {"rollout": loop.mean[0], "step_map": found_dynamics.step_map.mean[0], "steps": loop.steps}
    result["chaotic"] = found_dynamics.chaotic
    result["seconds"] = time.perf_counter() - began
    return result


def speed() -> dict[str, Any]:
    """Two LSTM(128) layers per gate on one core: CPU seconds to score and to refine."""
    rng = np.random.default_rng(0)

    def lstm(name: str, inputs: int, more: bool) -> Lstm:
        square = np.stack([0.9 * np.linalg.qr(rng.normal(size=(128, 128)))[0] for _ in range(4)])
        bias = rng.normal(0, 0.1, (4, 128)) + np.array([[0.0], [1], [0], [0]])
        return Lstm(
            name,
            frozen(rng.normal(0, inputs**-0.5, (4, 128, inputs))),
            frozen(square),
            frozen(bias),
            return_sequences=more,
        )

    base = suite.member(
        next(name for name, about in suite.records().items() if about["kind"] == "closed loop")
    ).forecaster
    inputs, outputs = len(base.inputs), len(base.outputs)
    dense = Dense("dense", frozen(rng.normal(0, 128**-0.5, (1, outputs, 128))), frozen(np.zeros((1, outputs))))
    forecaster: Forecaster = replace(
        base, name="wide", layers=(lstm("a", inputs, True), lstm("b", 128, False), dense), window=48
    )
    began = time.process_time()
    scores = score(forecaster, 24, "gate")
    scored = time.process_time()
    observations, metrics = observe(forecaster), curvature(forecaster)
    small = planner.plan(forecaster, scores, None, "dsp")
    budget = (small.int4_bytes + small.int8_bytes) // 2
    began_refining = time.process_time()
    refine(
        forecaster, scores, planner.plan(forecaster, scores, budget, "dsp"), observations=observations, metrics=metrics
    )
    return {
        "score_seconds": scored - began,
        "forward_passes": scores.forward_passes,
        "metrics_seconds": began_refining - scored,
        "refine_seconds": time.process_time() - began_refining,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="*", help="names such as weather-1; all of the suite without")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--quick", action="store_true", help="no timing and no picture")
    parser.add_argument("--out", type=Path, default=HERE)
    options = parser.parse_args()
    chosen = options.models or list(suite.records())
    timing = None if options.quick else speed()
    with ProcessPoolExecutor(options.jobs, mp_context=get_context("spawn")) as pool:
        largest = sorted(chosen, key=lambda name: -suite.records()[name]["parameters"])
        pending = {name: pool.submit(examine, name) for name in largest}
        results = []
        for name in chosen:
            results.append(pending[name].result())
            print(f"{name}: {results[-1]['seconds']:.0f} s", flush=True)
    figures = {"schema": 1, "kind": "edgetqs bench-plan", "models": results, "speed": timing}
    figures["summary"] = tables.summarise(results)
    (options.out / "plan.json").write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    tables.show(figures)
    if not options.quick:
        tables.picture(figures, options.out / "plan.png")


if __name__ == "__main__":
    main()
