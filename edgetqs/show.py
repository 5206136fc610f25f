"""What the terminal shows: rich tables on a terminal, plain aligned lines elsewhere."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from edgetqs.dynamics import Dynamics, Exponents
from edgetqs.model import (
    RECURRENT,
    Activation,
    Dense,
    Forecaster,
    Frames,
    LayerNormalization,
    Lstm,
    Merge,
    Pool,
    Window,
)
from edgetqs.origins import Origins
from edgetqs.output import plain
from edgetqs.planner import Plan
from edgetqs.target import Target
from edgetqs.tqs import SATURATED, Score


def table(console: Console, title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], note: str = "") -> None:
    """Columns whose name starts with ">" are aligned to the right."""
    names = [column.lstrip(">") for column in columns]
    texts = [[str(cell) for cell in row] for row in rows]
    if not console.is_terminal:
        widths = [max(map(len, column)) for column in zip(names, *texts, strict=True)]
        console.print(title, markup=False, highlight=False, soft_wrap=True)
        for row in [names, *texts]:
            cells = [
                cell.rjust(width) if column.startswith(">") else cell.ljust(width)
                for cell, width, column in zip(row, widths, columns, strict=True)
            ]
            console.print("  " + "  ".join(cells).rstrip(), markup=False, highlight=False, soft_wrap=True)
        if note:
            console.print("  " + note, markup=False, highlight=False, soft_wrap=True)
        console.print()
        return
    shown = Table(title=Text(title), title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
    for column, name in zip(columns, names, strict=True):
        justify: Literal["left", "right"] = "right" if column.startswith(">") else "left"
        shown.add_column(name, justify=justify, overflow="fold", no_wrap=column is columns[0])
    for row in texts:
        shown.add_row(*map(Text, row))  # a unit may be "[m/s]", which is no markup
    console.print(shown)
    if note:
        console.print(note, style="dim", markup=False)
    console.print()


def model(console: Console, forecaster: Forecaster, horizon: int, found: Origins) -> None:
    """What was recognised, a layer a line, and how the closed loop is closed."""
    rows = []
    for layer in forecaster.layers:
        numbers = replace(forecaster, layers=(layer,)).parameters
        weights = sum(getattr(layer, tensor).size for tensor in layer.tensors)
        bytes_by_width = [4 * numbers, weights, (weights + 1) // 2]
        rows.append([layer.name, type(layer).__name__, describe(layer), numbers, *bytes_by_width, found.of(layer.name)])
    columns = ["layer", "kind", "shape and options", ">parameters", ">float B", ">int8 B", ">int4 B", "made of"]
    note = "int8 and int4: weights alone; `edgetqs plan` counts scales and biases too"
    if found.rest:
        note += f"; joined to these layers, or of no effect once trained: {', '.join(found.rest)}"
    table(console, f"Model {forecaster.name}, {forecaster.parameters} parameters", columns, rows, note)
    sources = {target: source for source, target in forecaster.feedback.pairs}
    channels = []
    for index, channel in enumerate(forecaster.inputs):
        role = "known ahead" if index in forecaster.feedback.known else "held"
        if index in sources:
            role = f"takes output {forecaster.outputs[sources[index]].name}"
        role = role if forecaster.feedback.pairs else "given"
        channels.append([channel.name, channel.unit, f"{channel.mean:.6g}", f"{channel.std:.6g}", role])
    table(console, "Inputs", ["name", "unit", ">mean", ">std", "in the closed loop"], _joined(channels))
    outputs = [
        [channel.name, channel.unit, f"{channel.mean:.6g}", f"{channel.std:.6g}"] for channel in forecaster.outputs
    ]
    loop = f"closed loop, horizon {horizon}" if forecaster.feedback.pairs else "direct forecast, no closed loop"
    table(
        console, "Outputs", ["name", "unit", ">mean", ">std"], _joined(outputs), f"window {forecaster.window}, {loop}"
    )


def _joined(channels: list[list[str]]) -> list[list[str]]:
    """Channels that follow each other and differ in name only, in one row; four stay apart."""
    rows = []
    for _, group in itertools.groupby(channels, key=lambda channel: channel[1:]):
        alike = list(group)
        rows += alike if len(alike) < 5 else [[f"{alike[0][0]} to {alike[-1][0]} ({len(alike)})", *alike[0][1:]]]
    return rows


def model_table(forecaster: Forecaster, horizon: int, found: Origins) -> dict[str, Any]:
    """The same for ``--json``."""
    layers = [
        {
            "name": layer.name,
            "kind": type(layer).__name__,
            "about": describe(layer),
            "weights": sum(getattr(layer, tensor).size for tensor in layer.tensors),
            "parameters": replace(forecaster, layers=(layer,)).parameters,
            "made_of": found.of(layer.name),
        }
        for layer in forecaster.layers
    ]
    return {
        "name": forecaster.name,
        "sha256": forecaster.sha256,
        "parameters": forecaster.parameters,
        "windowed": forecaster.windowed,
        "window": forecaster.window,
        "horizon": horizon,
        "layers": layers,
        "joined": found.rest,
        "inputs": forecaster.inputs,
        "outputs": forecaster.outputs,
        "feedback": forecaster.feedback,
    }


def describe(layer: Any) -> str:
    """Sizes and the options that differ from the usual."""
    if isinstance(layer, RECURRENT):
        text = f"{layer.kernel.shape[2]} -> {layer.kernel.shape[1]}"
        options = [name for name in ("return_sequences", "go_backwards", "stateful") if getattr(layer, name)]
        if layer.activation != "tanh":
            options.append(layer.activation)
        gate = getattr(layer, "recurrent_activation", "sigmoid")
        if gate != "sigmoid":
            options.append(gate)
        if isinstance(layer, Lstm) and layer.cell_clip:
            options.append(f"cell within {layer.cell_clip:g}")
        if hasattr(layer, "reset_after"):
            options.append("reset_after" if layer.reset_after else "reset before")
        return ", ".join([text, *options]) + _over(layer.frames)
    if isinstance(layer, Dense):
        return f"{layer.kernel.shape[2]} -> {layer.kernel.shape[1]}, {layer.activation}{_over(layer.frames)}"
    if isinstance(layer, Window):
        return f"the last {layer.size} of {layer.features} values"
    if isinstance(layer, Pool):
        return f"the {'mean' if layer.mean else 'largest'}{_over(layer.frames)}"
    if isinstance(layer, LayerNormalization):
        return f"{len(layer.gamma)} features" + (f", {layer.count} frames" if layer.count > 1 else "")
    if isinstance(layer, Merge):
        return f"{layer.features[0]} and {layer.features[1]} side by side"
    assert isinstance(layer, Activation)
    return layer.function


def _over(frames: Frames | None) -> str:
    """How a layer runs over a time axis within a step."""
    if frames is None:
        return ""
    taps = f" of {frames.taps}" if frames.taps > 1 else ""
    return f", {frames.count} frame{'s' * (frames.count > 1)}{taps}"


def score(console: Console, scores: Score, lyapunov: Dynamics | None = None) -> None:
    """TQS of each unit, its local score, what the dynamics add, its growth, and the model's own dynamics."""
    rows = [
        [
            entry.unit.name,
            f"{entry.tqs:.4g}",
            f"{entry.local**0.5:.4g}",
            f"{entry.amplification**0.5:.1f}x",
            spark(entry.growth),
            entry.flag,
        ]
        for entry in scores.units
    ]
    note = (
        f"{scores.trajectories} trajectories ({scores.collapsed} collapsed, {scores.diverged} diverged, left out), "
        f"{scores.horizon} steps, {scores.forward_passes} forward passes"
    )
    if scores.scored < scores.horizon:
        note += f"; deviations saturate after {scores.scored} steps, scored up to there"
    columns = ["unit", ">TQS", ">local", ">dynamics", "growth", "flag"]
    table(console, f"Sensitivity per {scores.granularity}", columns, rows, note)
    known = [] if lyapunov is None else [found for found in (lyapunov.closed_loop, lyapunov.step_map) if found]
    if lyapunov is None or not known:
        return
    rows = [
        [name, *(f"{value:+.3f}" for value in found.mean), f"{found.deviation:.3f}", verdict(found)]
        for name, found in (("closed loop", lyapunov.closed_loop), ("step map, driven", lyapunov.step_map))
        if found is not None
    ]
    count = len(known[0].mean)
    columns = ["system", *(f">{name}" for name in ("largest", "second", "third")[:count]), ">varies by", "differences"]
    note = f"growth rates of small differences, 1/step, over {known[0].steps} steps"
    if lyapunov.chaotic:
        note += "; the closed loop is chaotic: TQS, and the deviation that a plan predicts, are lower bounds"
    table(console, "Finite-time Lyapunov exponents", columns, rows, note)


def verdict(found: Exponents) -> str:
    """What the largest exponent means."""
    if abs(found.mean[0]) * found.steps < 0.5:
        return "neither grow nor shrink"
    rate = math.expm1(min(found.mean[0], 50))
    return f"{'grow' if rate > 0 else 'shrink'} by {abs(rate):.0%} a step"


def score_table(scores: Score, lyapunov: Dynamics | None) -> dict[str, Any]:
    """The same for ``--json``."""
    return {
        "schema": 1,
        "kind": "edgetqs score",
        **plain(scores),
        "units": [
            {**plain(entry), "unit": entry.unit.name, "tqs": entry.tqs, "amplification": entry.amplification}
            for entry in scores.units
        ],
        "lyapunov": lyapunov,
        "chaotic": lyapunov.chaotic if lyapunov is not None else None,
    }


def spark(values: Sequence[float]) -> str:
    """A curve in eight characters."""
    if not values or max(values) <= 0:
        return ""
    marks = "▁▂▃▄▅▆▇█"
    picked = [values[k * (len(values) - 1) // 7] for k in range(8)]
    return "".join(marks[min(int(8 * (value / max(values)) ** 0.5), 7)] for value in picked)


def plan(console: Console, chosen: Plan) -> None:
    rows = [[u.unit, f"int{u.width}", u.bytes, f"{u.tqs:.4g}", f"{u.error**0.5:.2%}"] for u in chosen.units]
    budget = "no limit" if chosen.budget_bytes is None else f"budget {chosen.budget_bytes} B"
    note = (
        f"{chosen.weight_bytes} B of weights ({budget}; int8 {chosen.int8_bytes} B, int4 {chosen.int4_bytes} B), "
        f"predicted deviation {chosen.predicted:.2%} with nearest rounding, plan {chosen.hash}"
    )
    if chosen.refined is not None:
        note += f"; refined: {chosen.refined:.2%} by rollout"
    if chosen.predicted > SATURATED:
        note += f"; beyond {SATURATED:.0%} errors no longer grow in proportion, and predictions are too large"
    columns = ["unit", "width", ">bytes", ">TQS", ">predicted deviation"]
    table(console, f"Plan per {chosen.granularity}", columns, rows, note)
    if chosen.front:
        points = [[p.weight_bytes, f"{p.predicted:.2%}", p.widths] for p in chosen.front]
        table(console, "Pareto front", [">bytes", ">predicted deviation", "widths by unit"], points)


def targets(console: Console, every: Sequence[Target]) -> None:
    rows = []
    for target in every:
        memory = target.memory
        bare = target.kind == "bare"
        rows.append(
            [
                target.name,
                target.cpu.core,
                f"{memory.flash_bytes // 1024} KiB" if bare else "-",
                f"{memory.ram_bytes // 1024} KiB" if bare else "-",
                target.cpu.kernels,
                _emulated(target),
                target.hardware or "-",
                target.title,
            ]
        )
    columns = ["name", "core", ">flash", ">RAM", "kernels", "emulated as", "hardware", "what it is"]
    table(console, "Targets", columns, rows)


def _emulated(target: Target) -> str:
    if target.qemu is None:
        return f"core only: {target.stand_in}" if target.stand_in else "not at all"
    return target.qemu.machine or target.qemu.cpu or "this computer"


def report(console: Console, figures: dict[str, Any]) -> None:
    """The end of a build: widths, memory, chain, rollout error."""
    _widths(console, figures["plan"])
    _memory(console, figures)
    _chain(console, figures)
    _rollout(console, figures["rollout"])


def _widths(console: Console, planned: dict[str, Any]) -> None:
    rows = [[u["unit"], f"int{u['width']}", u["bytes"], f"{u['tqs']:.4g}"] for u in planned["units"]]
    note = (
        f"{planned['weight_bytes']} B of weights (int8 {planned['int8_bytes']} B, int4 {planned['int4_bytes']} B), "
        f"{planned['rounding']} rounding, plan {planned['hash']}"
    )
    table(console, f"Widths per {planned['granularity']}", ["unit", "width", ">bytes", ">TQS"], rows, note)


def _memory(console: Console, figures: dict[str, Any]) -> None:
    firmware, cost = figures["firmware"], figures["cost"]
    rows = []
    for name, key, limit in (
        ("flash", "flash_bytes", "flash_budget_bytes"),
        ("RAM", "ram_bytes", "ram_budget_bytes"),
        ("stack", "stack_bytes", "stack_budget_bytes"),
    ):
        used, room = firmware[key], firmware[limit]
        rows.append(
            [name, used, room or "no limit", f"{used / room:.1%}" if room else "", _memory_note(name, firmware)]
        )
    if cost["instructions_per_step"] is not None:
        rows.append(["instructions a step", cost["instructions_per_step"], "", "", cost["how"]])
    title = f"{figures['model']['name']} on {figures['target']}: " + (
        "it fits" if firmware["fits"] else "it does NOT fit"
    )
    link = figures["link"]
    note = link["elf"] and (
        f"{link['elf']}, which `edgetqs flash` and `edgetqs hil` use: {link['flash_bytes']} B of flash, "
        f"{link['ram_bytes']} B of RAM, {link['stack_bytes']} B of stack"
    )
    table(console, title, ["", ">used", ">limit", ">share", "how it is known"], rows, note or "")


def _memory_note(name: str, firmware: dict[str, Any]) -> str:
    if name == "flash":
        return f"linked image; {firmware['code_bytes']} B of code"
    if name == "RAM":
        return "linked image: .data and .bss"
    measured = firmware["stack_measured_bytes"]
    if firmware["stack_unknown"]:
        return f"what gcc compiled; not covered: {len(firmware['stack_unknown'])} library functions"
    return "call graph" + (f"; painted and measured: {measured} B" if measured else "")


def _chain(console: Console, figures: dict[str, Any]) -> None:
    links = figures["chain"]
    what = {
        "litert": f"{figures['tflite']['path']} ({figures['tflite']['bytes']} B) in LiteRT",
        "host": "C on this computer, sanitizers on",
        "emulator": f"C on {figures['target']}",
        "application": "what the firmware prints",
    }
    rows = [[what[key], links[key], links["details"][key]] for key in what if key in links]
    table(console, "Against the integer reference", ["engine", "bits", "detail"], rows)


def _rollout(console: Console, rollout: dict[str, Any]) -> None:
    horizon = rollout["horizon"]
    steps = sorted({1, horizon // 4, horizon // 2, horizon} - {0})
    rows = []
    names = {"": "this plan", "_int8": "all int8", "_int4": "all int4"}
    for key, title in (("deviation", "deviation from float"), ("rmse", "RMSE against data")):
        if key not in rollout:
            continue
        shown = {"_float": "float", **names} if key == "rmse" else names
        for suffix, name in shown.items():
            values = rollout[key + suffix]
            cells = [f"{values[step - 1]:.4f}" for step in steps]
            rows.append([title if suffix == next(iter(shown)) else "", name, *cells, f"{rms(values):.4f}"])
    note = "deviation in units of the rollout's spread, on synthetic histories"
    if "rmse" in rollout:
        note += f"; RMSE in {rollout['rmse_unit'] or 'physical units'}, {rollout['cases']} windows"
    columns = ["error at step", "weights", *(f">{step}" for step in steps), ">all"]
    table(console, "Rollout error by horizon", columns, rows, note)


def rms(values: Sequence[float]) -> float:
    return (sum(value * value for value in values) / max(len(values), 1)) ** 0.5
