"""bench-plan's tables and picture."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from edgetqs.show import table

RESAMPLES = 4000
#: Predicted deviations, in units of the spread, told apart: small, medium, beyond the linear range.
RANGES = (0.0, 0.01, 0.1, 0.3, 100.0)


def geometric(values: Any) -> float:
    return float(np.exp(np.mean(np.log(list(values)))))


def summarise(results: list[dict[str, Any]]) -> dict[str, Any]:
    """Over the suite: regrets by method with intervals, refinement, rounding, granularity."""
    summary: dict[str, Any] = {"regret": {}, "prediction": {}}
    for granularity in results[0]["plans"]:
        for rounding in results[0]["plans"][granularity]:
            summary["regret"][f"{granularity}, {rounding}"] = _regrets(results, granularity, rounding)
    pairs = [
        (predicted, measured)
        for result in results
        for unit in result["prediction"]["gate"]["units"]
        for predicted, measured in zip(unit["predicted"], unit["measured"], strict=True)
    ]
    for low, high in itertools.pairwise(RANGES):
        ratios = np.log([p / m for p, m in pairs if low <= p < high])
        summary["prediction"][f"{low:g} to {high:g}"] = {
            "pairs": len(ratios),
            "ratio": float(np.exp(ratios.mean())) if len(ratios) else None,
            "factor": float(np.exp(ratios.std())) if len(ratios) else None,
        }
    for name in ("trajectory", "learned"):
        for width in (4, 8):
            ratios = [r["rounding"][f"{name} int{width}"] / r["rounding"][f"nearest int{width}"] for r in results]
            summary[f"{name} int{width} / nearest"] = {"mean": geometric(ratios), "worst": max(ratios)}
    return summary


def _regrets(results: list[dict[str, Any]], granularity: str, rounding: str) -> dict[str, dict[str, Any]]:
    """By method: geometric mean and worst regret over models and budgets.

    ``against`` is the geometric mean of the method's deviation over that of
    TQS's plan, with a 95 % interval from resampling the models (a system and a
    seed each) in pairs.
    """
    rows = [result["plans"][granularity][rounding] for result in results]
    rng = np.random.default_rng(0)
    drawn = rng.integers(len(rows), size=(RESAMPLES, len(rows)))
    found = {}
    for method in rows[0][0]["regret"]:
        logs = [[np.log(row["regret"][method]) for row in budgets] for budgets in rows]
        base = [[np.log(row["regret"]["TQS"]) for row in budgets] for budgets in rows]
        paired = np.array([np.mean(a) - np.mean(b) for a, b in zip(logs, base, strict=True)])
        means = paired[drawn].mean(axis=1)
        found[method] = {
            "mean": float(np.exp(np.mean(np.concatenate(logs)))),
            "worst": float(np.exp(np.max(np.concatenate(logs)))),
            "against": float(np.exp(paired.mean())),
            "interval": [float(np.exp(np.quantile(means, q))) for q in (0.025, 0.975)],
        }
    return found


def show(figures: dict[str, Any]) -> None:
    """Everything, in the order of the questions."""
    console, results, summary = Console(width=140, highlight=False), figures["models"], figures["summary"]
    rows = [
        [
            r["name"],
            f"{r['layers']}x {r['cell']}({r['units']})",
            r["parameters"],
            r["kind"],
            f"{r['rmse']:.4g} {r['rmse_unit']}",
            f"{r['rmse_persistence']:.4g}",
            f"{r['gain_percent']:.0f} %",
        ]
        for r in results
    ]
    columns = ["model", "layers", ">weights", "kind", ">RMSE", ">persistence", ">better by"]
    table(console, "1. The suite, on held-out data", columns, rows)

    rows = []
    for r in results:
        p, amplified = r["prediction"]["gate"], r["amplification"].values()
        rows.append(
            [
                r["name"],
                f"{p['rank']:.2f}",
                f"{p['rank_int4']:.2f}",
                f"{p['ratio']:.2f}",
                f"{p['factor']:.2f}",
                f"{p['unperturbed']['rank']:.2f}",
                f"{p['unperturbed']['ratio']:.2f}",
                f"{min(amplified):.2g} to {max(amplified):.2g}",
                f"{r['lyapunov']['rollout']:+.3f}",
                f"{r['lyapunov']['step_map']:+.3f}",
                f"{p['scored']}",
                len(p["flagged"]),
            ]
        )
    columns = [
        "model",
        ">rank",
        ">at int4",
        ">ratio",
        ">factor",
        ">rank'",
        ">ratio'",
        ">T/local",
        ">lyap.",
        ">step map",
    ]
    note = (
        "predicted / measured deviation of each gate quantized alone: rank correlation over gates and widths, "
        "geometric mean of the ratio, its spread; ' = histories unperturbed; exponents a step; scored = steps before "
        "saturation"
    )
    table(console, "2. Does TQS predict?", [*columns, ">scored", ">flagged"], rows, note)

    rows = [
        [name, found["pairs"], f"{found['ratio']:.2f}", f"{found['factor']:.2f}"]
        for name, found in summary["prediction"].items()
        if found["pairs"]
    ]
    table(console, "   By the size of the prediction", ["predicted", ">gates", ">ratio", ">factor"], rows)

    for case, methods in summary["regret"].items():
        rows = [
            [
                name,
                f"{m['mean']:.3f}",
                f"{m['worst']:.2f}",
                f"{m['against']:.3f}",
                f"{m['interval'][0]:.3f} .. {m['interval'][1]:.3f}",
            ]
            for name, m in sorted(methods.items(), key=lambda item: item[1]["mean"])
        ]
        note = "deviation of the rollout on held-out data over that of the best plan within the same bytes"
        columns = ["plan by", ">regret", ">worst", ">against TQS", ">95 % interval"]
        table(console, f"3. Regret per {case} rounding", columns, rows, note)

    rows = [
        [r["name"], *(f"{r['rounding'][f'{name} int{w}']:.4f}" for w in (4, 8) for name in _ROUNDINGS)] for r in results
    ]
    columns = ["model", *(f">{name} int{w}" for w in (4, 8) for name in _ROUNDINGS)]
    parts = [
        f"{name} int{w}: {summary[f'{name} int{w} / nearest']['mean']:.2f} of nearest, worst "
        f"{summary[f'{name} int{w} / nearest']['worst']:.2f}"
        for w in (4, 8)
        for name in _ROUNDINGS[1:]
    ]
    table(console, "4. Rounding: deviation with one width everywhere", columns, rows, "; ".join(parts))

    columns = [f"{g} {r}" for r in _ROUNDINGS for g in ("layer", "tensor", "gate")]
    rows = [[r["name"], *(f"{r['granularity'][c] - 1:+.2%}" for c in columns)] for r in results]
    within = [sum(r["granularity"][c] <= 1.02 for r in results) for c in columns]
    title = "5. Rollout RMSE against float at 65 % of the int8 weights' bytes"
    rows.append(["within 2 %", *(f"{count} of {len(results)}" for count in within)])
    table(console, title, ["model", *(f">{c}" for c in columns)], rows)

    s = figures["speed"]
    if s is None:
        return
    print(
        f"6. Two LSTM(128) layers per gate, CPU time on one core: score {s['score_seconds']:.1f} s, "
        f"{s['forward_passes']} forward passes; curvature {s['metrics_seconds']:.1f} s, "
        f"refinement {s['refine_seconds']:.1f} s"
    )


_ROUNDINGS = ("nearest", "trajectory", "learned")


def picture(figures: dict[str, Any], path: Path) -> None:
    """Predicted against measured deviations, and regrets by method."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(13, 5.5), layout="constrained")
    for result in figures["models"]:
        units = result["prediction"]["gate"]["units"]
        for k, marker in ((0, "o"), (1, "x")):
            label = result["name"] if k == 0 and result["name"].endswith("-1") else None
            measured = [unit["measured"][k] for unit in units]
            predicted = [unit["predicted"][k] for unit in units]
            left.plot(measured, predicted, marker, ms=4, alpha=0.6, label=label)
    limits = (1e-5, 3)
    left.plot(limits, limits, color="black", lw=1)
    left.set(xscale="log", yscale="log", xlim=limits, ylim=limits, xlabel="measured deviation, one gate quantized")
    left.set(ylabel="predicted by TQS", title="o int4, x int8; nearest rounding, held-out data")
    left.legend(fontsize=7)
    methods = figures["summary"]["regret"]["tensor, nearest"]
    order = sorted(methods, key=lambda name: -methods[name]["mean"])
    for offset, (case, values) in enumerate(figures["summary"]["regret"].items()):
        places = [k for k, name in enumerate(order) if name in values]
        right.plot([values[order[k]]["mean"] for k in places], np.array(places) + 0.12 * offset, "o", label=case)
    right.set(yticks=range(len(order)), yticklabels=order, xscale="log", xlabel="regret to the best plan (1 = best)")
    right.legend(fontsize=8)
    figure.savefig(path, dpi=90)
