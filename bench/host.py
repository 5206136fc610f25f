"""make bench-host: processor time of one LSTM step on this computer, the emitted C against LiteRT.

LSTM(32) and LSTM(128) on 8 features with Dense(1) on every step, random weights.
LiteRT runs, on one thread, the same integer model as its own .tflite (step by
step and as a sequence) and what it has itself: the fused op in float32 and in
int8, with XNNPACK and without. Everything takes turns on one core, a few
milliseconds each; what is printed is the median of the rounds and the
quartiles, in processor time, so that other programs disturb little.

LiteRT is called from Python. Where a call is one step, the call is measured
with it; where it is a sequence of 256 steps it does not count, and that is
what the comparison is made with. The C program calls its step function once a
step. Before anything is timed, C and LiteRT must agree on the integer model to
the last bit, and the float op with the float model.
"""

from __future__ import annotations

import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # before NumPy starts its threads

import argparse
import json
import platform
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from litert_peers import INPUT_SCALE, fused_lstm
from rich.console import Console

from edgetqs import images, rollout
from edgetqs.emit_c import Replay, emit_c
from edgetqs.firmware import compile_sources, link, toolchain
from edgetqs.integer import IntegerModel
from edgetqs.litert import quiet
from edgetqs.model import Channel, Dense, Feedback, Forecaster, Lstm, frozen
from edgetqs.quantizer import quantize
from edgetqs.show import table
from edgetqs.target import Target, load_target
from edgetqs.units import blocks
from edgetqs.write_tflite import write_tflite

HERE = Path(__file__).resolve().parent
UNITS, FEATURES, STEPS = (32, 128), 8, 256
WIDTHS = ("int8", "int4", "mix")
CANDIDATE = 2  # of the gates i f c o
#: The fused ops' time over ours that is to be reached, by units.
TO_REACH = {32: 3.0, 128: 1.5}
ROUND_NS = 4e6
FLOAT_TOLERANCE = 1e-3


@dataclass(frozen=True, slots=True)
class Engine:
    """``round`` runs for a few milliseconds and gives nanoseconds a step."""

    units: int
    name: str
    how: str
    round: Callable[[], float]


def forecaster(units: int) -> Forecaster:
    """Glorot-uniform kernels, orthogonal recurrent kernels."""
    rng = np.random.default_rng(units)
    limit = (6 / (FEATURES + units)) ** 0.5
    recurrent = np.stack([np.linalg.qr(rng.normal(size=(units, units)))[0] for _ in range(4)])
    bias = rng.normal(0, 0.1, (4, units))
    bias[1] += 1
    kernel = rng.uniform(-limit, limit, (4, units, FEATURES))
    lstm = Lstm("lstm", frozen(kernel), frozen(recurrent), frozen(bias))
    dense = Dense("dense", frozen(rng.uniform(-limit, limit, (1, 1, units))), frozen(np.zeros((1, 1))))
    inputs = tuple(Channel(f"x{k}") for k in range(FEATURES))
    return Forecaster(f"host{units}", (lstm, dense), inputs, (Channel("y"),), STEPS, Feedback(((0, 0),)))


def quantized(model: Forecaster, widths: str) -> IntegerModel:
    def width(block: Any) -> int:
        if widths == "mix":
            return 8 if isinstance(model.layers[block.layer], Dense) or block.gate == CANDIDATE else 4
        return int(widths.removeprefix("int"))

    return quantize(model, {block: width(block) for block in blocks(model)}, "nearest")


def own_target() -> Target:
    """What this computer's C is emitted and compiled for."""
    return load_target("raspberry-pi-4" if platform.machine() == "aarch64" else "x86")


class Program:
    """The emitted C in a program that times itself when it is asked to."""

    def __init__(self, model: IntegerModel, codes: np.ndarray, folder: Path) -> None:
        target = own_target()
        replay = Replay(np.zeros((2, FEATURES), np.float32), np.zeros((4, 0), np.float32), "zeros")
        texts = emit_c(model, target.cpu.kernels, replay, horizon=4, version="0", plan_hash="0")
        sources = images.write_sources(folder / "src", texts, target.cpu.kernels)
        objects = compile_sources(target, [*sources.model, HERE / "host_steps.c"], folder / "obj", [sources.folder])
        codes.astype("<i2").tofile(folder / "inputs")
        program = link(target, objects, folder / "steps")
        self.command = [str(program), str(folder / "inputs")]
        self.start(1)

    def start(self, repeats: int) -> None:
        self.process = subprocess.Popen(
            [*self.command, str(repeats)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.outputs = [int(word) for word in self._line().split()]

    def round(self) -> float:
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return float(self._line())

    def stop(self) -> None:
        self.process.communicate()

    def _line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline()


def program(model: IntegerModel, codes: np.ndarray, folder: Path) -> Program:
    """One whose rounds take about ROUND_NS."""
    made = Program(model, codes, folder)
    once = min(made.round() for _ in range(3)) * STEPS
    made.stop()
    made.start(max(1, round(ROUND_NS / once)))
    return made


def timed(call: Callable[[], Any], steps: int) -> Callable[[], float]:
    """A round of as many calls as take about ROUND_NS."""
    once = min(_elapsed(call, 1) for _ in range(5))
    calls = max(1, round(ROUND_NS / once))
    return lambda: _elapsed(call, calls) / calls / steps


def _elapsed(call: Callable[[], Any], calls: int) -> float:
    start = time.process_time_ns()
    for _ in range(calls):
        call()
    return time.process_time_ns() - start


def interpreter(content: bytes, delegates: bool) -> Any:
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    resolver = OpResolverType.AUTO if delegates else OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        engine = Interpreter(model_content=content, num_threads=1, experimental_op_resolver_type=resolver)
    engine.allocate_tensors()
    return engine


def fused(model: Forecaster, x: np.ndarray, steps: int, *, int8: bool, delegates: bool) -> tuple[Any, np.ndarray]:
    """(interpreter of the fused op with its input set, what it gives for x, (steps,))."""
    engine = interpreter(fused_lstm(model, steps, int8=int8), delegates)
    values = np.clip(np.round(x / INPUT_SCALE), -128, 127).astype(np.int8) if int8 else x.astype(np.float32)
    engine.set_tensor(engine.get_input_details()[0]["index"], values[None, :steps])
    engine.invoke()
    out = engine.get_output_details()[0]
    scale = out["quantization"][0] or 1.0
    return engine, engine.get_tensor(out["index"]).astype(np.float64).ravel() * scale


def engines(units: int, folder: Path) -> tuple[list[Engine], list[Program], dict[str, float]]:
    """Everything that is compared at one size, checked; the programs to stop; deviations of the fused ops."""
    made = forecaster(units)
    x = np.random.default_rng(0).normal(0, 1, (STEPS, FEATURES))
    stack = rollout.cells(made)
    truth = rollout.run(stack, rollout.zero_state(stack, ()), x)[0]
    found: list[Engine] = []
    programs: list[Program] = []
    deviations = {}
    for widths in WIDTHS:
        model = quantized(made, widths)
        codes = np.round(np.array([code.gain for code in model.inputs]) * x).astype(np.int16)
        ours = program(model, codes, folder / f"{units}-{widths}")
        programs.append(ours)
        found.append(Engine(units, f"edgetqs C, {widths}", "step by step", ours.round))
        if widths == "mix":
            continue
        content = write_tflite(model).data
        sequence = interpreter(content, True).get_signature_runner("sequence")
        if sequence(x=codes[None])["y"].ravel().tolist() != ours.outputs:
            raise SystemExit(f"LSTM({units}), {widths}: C and LiteRT differ")
        for delegates in (True, False):
            found += _own_file(units, f"LiteRT, our {widths} .tflite{_label(delegates)}", content, codes, delegates)
    for int8 in (False, True):
        kind = "int8" if int8 else "float32"
        for delegates in (True, False):
            name = f"LiteRT, fused {kind}{_label(delegates)}"
            engine, y = fused(made, x, STEPS, int8=int8, delegates=delegates)
            deviations[kind] = float(np.sqrt(np.mean((y - truth.ravel()) ** 2)))
            found.append(Engine(units, name, "sequence", timed(engine.invoke, STEPS)))
            single, _ = fused(made, x, 1, int8=int8, delegates=delegates)
            found.append(Engine(units, name, "step by step", timed(single.invoke, 1)))
    if deviations["float32"] > FLOAT_TOLERANCE:
        raise SystemExit(f"LSTM({units}): the fused float op computes something else")
    return found, programs, deviations


def _label(delegates: bool) -> str:
    return ", XNNPACK" if delegates else ""


def _own_file(units: int, name: str, content: bytes, codes: np.ndarray, delegates: bool) -> list[Engine]:
    engine = interpreter(content, delegates)
    sequence, step = engine.get_signature_runner("sequence"), engine.get_signature_runner("step")
    zeros = {key: np.zeros(detail["shape"], np.int16) for key, detail in step.get_input_details().items() if key != "x"}

    def one_step() -> None:
        nonlocal zeros
        result = step(x=codes[:1], **zeros)
        result.pop("y")
        zeros = result

    whole = codes[None]
    return [
        Engine(units, name, "sequence", timed(lambda: sequence(x=whole), STEPS)),
        Engine(units, name, "step by step", timed(one_step, 1)),
    ]


@quiet()
def measured(sizes: Sequence[int], rounds: int, folder: Path) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """A row an engine, and the deviations of the fused ops by units."""
    every: list[Engine] = []
    programs: list[Program] = []
    deviations = {}
    for units in sizes:
        found, started, deviations[str(units)] = engines(units, folder)
        every += found
        programs += started
    times: list[list[float]] = [[] for _ in every]
    for _ in range(rounds):
        for engine, own in zip(every, times, strict=True):
            own.append(engine.round())
    for one in programs:
        one.stop()
    rows = []
    for engine, own in zip(every, times, strict=True):
        low, middle, high = np.percentile(own, (25, 50, 75))
        rows.append(
            {
                "units": engine.units,
                "engine": engine.name,
                "how": engine.how,
                "ns_per_step": round(float(middle), 1),
                "quartiles": [round(float(low), 1), round(float(high), 1)],
            }
        )
    return rows, deviations


def compared(rows: Sequence[dict[str, Any]], units: int) -> dict[str, Any]:
    """How many times faster than LiteRT's best setting each of our widths is."""

    def best(engine: str, how: str) -> float:
        return min(
            r["ns_per_step"] for r in rows if r["units"] == units and r["engine"].startswith(engine) and r["how"] == how
        )

    ratios: dict[str, Any] = {"units": units, "to_reach": TO_REACH.get(units)}
    for widths in WIDTHS:
        ours = best(f"edgetqs C, {widths}", "step by step")
        ratios[widths] = {
            f"{peer}, {how}": round(best(f"LiteRT, {engine}", how) / ours, 2)
            for how in ("sequence", "step by step")
            for peer, engine in (
                ("fused float32", "fused float32"),
                ("fused int8", "fused int8"),
                ("same .tflite", f"our {'int4' if widths == 'mix' else widths} .tflite"),
            )
            if not (widths == "mix" and peer == "same .tflite")
        }
    return ratios


def environment() -> dict[str, str]:
    text = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    fields = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in text.splitlines())}
    vectors = "AVX2" if "avx2" in fields.get("flags", "").split() else f"{own_target().cpu.kernels}, no AVX2"
    return {
        "processor": f"{fields.get('model name', platform.machine())}, {vectors}",
        "gcc": toolchain(own_target()).version,
        "litert": version("ai-edge-litert"),
    }


def show(console: Console, figures: dict[str, Any]) -> None:
    facts = figures["environment"]
    console.print(
        f"{facts['processor']}; gcc {facts['gcc']}, LiteRT {facts['litert']}; one core, one thread, "
        f"{figures['rounds']} rounds in turns; processor time",
        highlight=False,
        soft_wrap=True,
    )
    for ratios in figures["ratios"]:
        units = ratios["units"]
        rows = [
            (row["engine"], row["how"], f"{row['ns_per_step']:.0f}", "{:.0f} to {:.0f}".format(*row["quartiles"]))
            for row in figures["rows"]
            if row["units"] == units
        ]
        table(
            console,
            f"LSTM({units}) on {FEATURES} features and Dense(1): nanoseconds a step",
            ("engine", "called", ">median", ">quartiles"),
            rows,
            f"a sequence is {STEPS} steps a call; step by step, LiteRT's figures hold Python's call",
        )
        names = list(ratios["int8"])
        table(
            console,
            f"LSTM({units}): times as fast as LiteRT's best setting, its sequences first",
            ("edgetqs C", *(f">{name}" for name in names)),
            [(w, *(f"{ratios[w][n]:.1f}" if n in ratios[w] else "" for n in names)) for w in WIDTHS],
            f"to reach against the fused ops: {ratios['to_reach']}" if ratios["to_reach"] else "",
        )


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--units", type=int, nargs="+", default=list(UNITS))
    parser.add_argument("--rounds", type=int, default=41)
    parser.add_argument("--core", type=int, help="pin to this core (default: the last one allowed)")
    parser.add_argument("--out", type=Path, default=HERE / "host.json")
    options = parser.parse_args(arguments)
    if hasattr(os, "sched_setaffinity"):
        core = max(os.sched_getaffinity(0)) if options.core is None else options.core
        os.sched_setaffinity(0, {core})  # the programs started here inherit it
    with tempfile.TemporaryDirectory() as folder:
        rows, deviations = measured(options.units, options.rounds, Path(folder))
    figures = {
        "environment": environment(),
        "rounds": options.rounds,
        "rows": rows,
        "ratios": [compared(rows, units) for units in options.units],
        "rmse_of_fused_ops": deviations,
    }
    show(Console(), figures)
    options.out.write_text(json.dumps(figures, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
