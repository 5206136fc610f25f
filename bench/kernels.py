"""make bench-kernels: instructions, flash, RAM and stack of one inference on every bare core; instructions on Linux.

An inference is 48 steps of LSTM(32) or GRU(32) on 8 features and Dense(1),
which runs with every step; each step's 48th part is the same work. No figure
is given unless all outputs, states and counts of clipped values equal the
NumPy reference. What is counted: bench/footprint.py. Tables go to the
terminal, figures to bench/kernels.json, the baseline that
tests/qemu/test_kernels.py holds every change against.
"""

from __future__ import annotations

import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # before NumPy starts its threads

import argparse
import json
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import kernel_models
from footprint import Count, Figures, count_instructions, measure
from rich.console import Console

from edgetqs.errors import EdgeTqsError
from edgetqs.firmware import toolchain
from edgetqs.show import table
from edgetqs.target import list_targets, load_target

BASELINE = Path(__file__).resolve().parent / "kernels.json"
OPTIMISE = ("-O2", "-Os")
#: Cores, not devices: the STM32F405 is a Cortex-M4.
CORES = tuple(target.name for target in list_targets() if target.name.startswith("cortex-"))
#: Computers with Linux, of which instructions alone are counted, under an emulator.
LINUX = tuple(target.name for target in list_targets() if target.kind == "linux")
#: What a change may not make larger, and by how much.
GUARDED = ("instructions", "flash_bytes", "api_flash_bytes", "ram_bytes", "forecast_ram_bytes", "stack_bytes")
ALLOWED_GROWTH = 0.02
#: Figures that another compiler changes.
COMPILED = ("instructions", "flash_bytes", "api_flash_bytes", "stack_bytes")

#: TensorFlow Lite Micro with CMSIS-NN at -O2, the same LSTM with int8 weights and activations, 245,792 MACs (the
#: dense layer counted once), gcc 12.2, instructions counted under QEMU 7.2. M0+ was measured as M0.
TFLM_INSTRUCTIONS = {
    "cortex-m0plus": 3_577_313,
    "cortex-m3": 1_649_000,
    "cortex-m4": 1_400_121,
    "cortex-m7": 1_387_642,
    "cortex-m33": 1_408_000,
    "cortex-m55": 599_395,
}
TFLM_M4 = "TFLM + CMSIS-NN -O2 on cortex-m4: flash 56366, RAM 5548, stack 768; -Os: 1819988 instructions, flash 43054"
#: What the LSTM shall reach, int8 and int4 alike.
TO_REACH = {
    "cortex-m0plus": 1_800_000,
    "cortex-m3": 1_000_000,
    "cortex-m4": 650_000,
    "cortex-m7": 650_000,
    "cortex-m33": 650_000,
    "cortex-m55": 300_000,
}
BOUNDS = "to reach: flash 4096 (3072 with one width), RAM 1024, stack 256"


def measured(job: tuple[str, str, str]) -> Figures:
    """Figures of (core, model, optimisation level)."""
    core, model, optimise = job
    return measure(load_target(core), kernel_models.by_name(model), optimise)


def counted(job: tuple[str, str, str]) -> Count:
    """Instructions of (computer, model, optimisation level)."""
    core, model, optimise = job
    return count_instructions(load_target(core), kernel_models.by_name(model), optimise)


def jobs(cores: Sequence[str], models: Sequence[str], optimise: Sequence[str]) -> list[tuple[str, str, str]]:
    """What is measured, in the order of the figures."""
    return [(core, model, level) for model in models for level in optimise for core in cores]


def document(figures: Iterable[Figures], counts: Iterable[Count]) -> dict[str, Any]:
    """The whole of kernels.json."""
    macs = {name: kernel_models.by_name(name).macs for name in kernel_models.names()}
    return {
        "schema": 1,
        "kind": "edgetqs bench-kernels",
        "gcc": compiler(),
        "qemu": emulator(),
        "steps": kernel_models.STEPS,
        "macs": macs,
        "figures": [asdict(one) for one in figures],
        "linux": [asdict(one) for one in counts],
    }


def compiler() -> str:
    """Version of the cross compiler."""
    return toolchain(load_target("cortex-m4")).version


def emulator() -> str:
    """First line of what QEMU says of itself."""
    said = subprocess.run(["qemu-system-arm", "--version"], capture_output=True, text=True, check=True).stdout
    return said.partition("\n")[0]


def key(figures: Mapping[str, Any]) -> tuple[str, str, str]:
    return figures["core"], figures["model"], figures["optimise"]


def growth(baseline: Mapping[str, Any], found: Iterable[Figures | Count], gcc: str) -> list[str]:
    """One line for each figure that grew more than ALLOWED_GROWTH over the baseline's, or is new to it."""
    known = {key(old): old for old in (*baseline["figures"], *baseline["linux"])}
    lines = []
    for new in map(asdict, found):
        core, model, optimise = key(new)
        where = f"{model} on {core} at {optimise}"
        old = known.get(key(new))
        if old is None:
            lines.append(f"{where}: not in the baseline; run make bench-kernels")
            continue
        for name in (name for name in GUARDED if name in new):
            if new[name] > old[name] * (1 + ALLOWED_GROWTH):
                foreign = name in COMPILED and gcc != baseline["gcc"]
                why = f" (by gcc {gcc}, the baseline by gcc {baseline['gcc']})" if foreign else ""
                lines.append(f"{where}: {name} {old[name]} -> {new[name]}{why}")
    return lines


def slower_int4(figures: Iterable[Mapping[str, Any]]) -> list[str]:
    """One line for each int4 model that takes more instructions than its int8 twin at the same level."""
    known = {key(one): one["instructions"] for one in figures}
    lines = []
    for (core, model, optimise), count in known.items():
        twin = known.get((core, model.replace("int4", "int8"), optimise), count)
        if count > twin:
            lines.append(f"{model} on {core} at {optimise}: {count} instructions, int8 {twin}")
    return lines


def show(console: Console, figures: Sequence[Mapping[str, Any]], macs: Mapping[str, int]) -> None:
    """One table a model."""
    columns = [
        "core",
        "gcc",
        ">instructions",
        ">a MAC",
        ">TFLM",
        ">of TFLM",
        ">to reach",
        ">flash",
        ">with API",
        ">RAM",
    ]
    columns += [">forecast", ">stack", ">painted"]
    for model in dict.fromkeys(one["model"] for one in figures):
        is_lstm = model.startswith("lstm")
        rows = []
        for one in (one for one in figures if one["model"] == model):
            core, count = one["core"], one["instructions"]
            tflm, reach = (TFLM_INSTRUCTIONS[core], TO_REACH[core]) if is_lstm else (None, None)
            rows.append(
                [
                    core,
                    one["optimise"],
                    count,
                    f"{count / macs[model]:.2f}",
                    tflm or "",
                    f"{count / tflm:.0%}" if tflm else "",
                    f"{reach} {'yes' if count <= reach else 'no'}" if reach else "",
                    one["flash_bytes"],
                    one["api_flash_bytes"],
                    one["ram_bytes"],
                    f"+{one['forecast_ram_bytes']}",
                    one["stack_bytes"],
                    one["stack_measured_bytes"],
                ]
            )
        note = f"{TFLM_M4}\n  {BOUNDS}" if is_lstm else f"TFLM has no GRU\n  {BOUNDS}"
        title = f"{model}: {kernel_models.STEPS} steps, {macs[model]} MACs; bytes without weights, start-up, UART"
        table(console, title, columns, rows, note)


def show_linux(console: Console, counts: Sequence[Mapping[str, Any]]) -> None:
    """One table: a row a model, a column a computer."""
    cores = list(dict.fromkeys(one["core"] for one in counts))
    found = {key(one): one["instructions"] for one in counts}
    rows = [
        [model, *(found[core, model, "-O2"] for core in cores)]
        for model in dict.fromkeys(one["model"] for one in counts)
    ]
    title = f"Linux: instructions of {kernel_models.STEPS} steps at -O2, under an emulator"
    table(console, title, ["model", *(f">{core}" for core in cores)], rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="*", help=f"of {', '.join(kernel_models.names())}; all without")
    parser.add_argument("--cores", nargs="+", default=(*CORES, *LINUX), choices=(*CORES, *LINUX))
    parser.add_argument("--optimise", nargs="+", default=("O2", "Os"), choices=("O1", "O2", "O3", "Os"))
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--out", type=Path, default=None, help="the JSON file; bench/kernels.json for a whole run")
    options = parser.parse_args()
    levels = [f"-{level}" for level in options.optimise]
    models = options.models or kernel_models.names()
    work = jobs([name for name in CORES if name in options.cores], models, levels)
    computers = jobs([name for name in LINUX if name in options.cores], models, ["-O2"])
    try:
        with ProcessPoolExecutor(options.jobs, mp_context=get_context("spawn")) as pool:
            made = document(pool.map(measured, work), pool.map(counted, computers))
    except EdgeTqsError as error:
        sys.exit(f"bench-kernels: {error}")
    console = Console()
    show(console, made["figures"], made["macs"])
    if computers:
        show_linux(console, made["linux"])
    every = {*jobs(CORES, kernel_models.names(), OPTIMISE), *jobs(LINUX, kernel_models.names(), ["-O2"])}
    whole = {*work, *computers} >= every
    if BASELINE.exists():
        old = json.loads(BASELINE.read_text(encoding="utf-8"))
        found = [Figures(**one) for one in made["figures"]] + [Count(**one) for one in made["linux"]]
        for line in growth(old, found, made["gcc"]):
            console.print(line, markup=False, highlight=False, soft_wrap=True)
    out = options.out or (BASELINE if whole else None)
    if out is not None:
        out.write_text(json.dumps(made, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
