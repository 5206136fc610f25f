"""Proof of a build: every engine on the golden vectors, instruction counts, the application's own output."""

from __future__ import annotations

import re
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from edgetqs import chain, emulate, images, reference
from edgetqs.chain import Golden, Link
from edgetqs.emit_c import Replay
from edgetqs.errors import CheckFailed, ToolMissing
from edgetqs.integer import IntegerModel
from edgetqs.target import Target, emulated_as, load_target
from edgetqs.write_tflite import TfliteFile

#: Seconds after which a run in an emulator is given up.
TIMEOUT_S = 600


@dataclass(frozen=True, slots=True)
class Subject:
    """What is proven: a model, its sources and images in ``folder``, and what its application replays."""

    model: IntegerModel
    target: Target
    sources: images.Sources
    folder: Path
    replay: Replay
    horizon: int


@dataclass(frozen=True, slots=True)
class Proof:
    """Verdicts by engine, instruction counts, and the stack that the application used in the emulator."""

    steps: int
    links: dict[str, Link]
    cost: dict[str, Any]
    stack_measured_bytes: int | None


def prove(subject: Subject, file: TfliteFile) -> Proof:
    """Run everything that can run here; what cannot says why."""
    model, folder = subject.model, subject.folder
    vectors = chain.golden(model)
    golden_folder = folder / "golden"
    chain.write_harness_input(golden_folder, chain.commands(model, vectors))
    links = {"litert": chain.check_litert(model, file, vectors)}
    host = load_target("x86")
    links["host"], _ = _check(host, subject, vectors, sanitizers=True)
    cost: dict[str, Any] = {"instructions_per_step": None, "instructions_per_window": None}
    measured = None
    subject, note = _emulated(subject)
    try:
        links["emulator"], output = _check(subject.target, subject, vectors)
        (golden_folder / "harness.out").write_bytes(output)
        counts, cost["how"] = _count(subject, vectors)
        if counts:
            cost["instructions_per_step"] = round(sum(counts) / len(counts))
            cost["instructions_per_window"] = sum(counts)
        links["application"], measured = _run_application(subject)
        for engine in ("emulator", "application") if note else ():
            links[engine] = replace(links[engine], detail=f"{links[engine].detail}, {note}")
    except ToolMissing as error:
        links.setdefault("emulator", Link("not run", f"{error.what}; {error.todo}"))
        links.setdefault("application", Link("not run", error.what))
        cost.setdefault("how", f"not run: {error.what}")
    except CheckFailed as error:
        if not note or "does not fit" not in error.what:
            raise
        why = f"larger than what emulates the core, {subject.target.name}: {error.what}"
        links = {"emulator": Link("not run", why), "application": Link("not run", why)} | links
        cost.setdefault("how", f"not run: {why}")
    return Proof(vectors.steps, links, cost, measured)


def _emulated(subject: Subject) -> tuple[Subject, str]:
    """The subject on the target whose emulator proves its code, and a note where that is another one."""
    other = emulated_as(subject.target)
    if other is None or other is subject.target:
        return subject, ""
    # The stand-in's emulator has at least its flash and RAM; the stack is the device's own, to be measured.
    stack = min(subject.target.memory.stack_bytes, other.memory.ram_bytes // 4)
    stood_in = replace(other, memory=replace(other.memory, stack_bytes=stack, ram_reserve_bytes=0))
    return replace(subject, target=stood_in), f"on {other.name}, the same core"


def _check(target: Target, subject: Subject, vectors: Golden, sanitizers: bool = False) -> tuple[Link, bytes]:
    """(verdict, harness.out) of the harness on one target."""
    model, sources, folder = subject.model, subject.sources, subject.folder
    name = "host" if sanitizers else "harness"
    work = folder / f"obj-{name}"
    try:
        image = images.link_harness(target, sources, work, folder / f"{name}.elf", sanitizers=sanitizers)
    except ToolMissing as error:
        return Link("not run", f"{error.what}; {error.todo}"), b""
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        output = _run_harness(target, image, Path(scratch), chain.commands(model, vectors))
        step, result = chain.judge(model, vectors, output)
        if step is None:
            return result.link, output
        traced = images.link_harness(
            target, sources, Path(scratch) / "obj", Path(scratch) / "trace.elf", sanitizers=sanitizers, trace=True
        )
        trace = _run_harness(target, traced, Path(scratch), chain.commands(model, vectors, steps=step + 1))
        return Link("differs", chain.locate(model, vectors, step, trace)), output


def _run_harness(target: Target, image: Path, folder: Path, content: bytes) -> bytes:
    chain.write_harness_input(folder, content)
    run = emulate.run(target, image, folder, timeout_s=TIMEOUT_S)
    if run.exit_code != 0:
        raise CheckFailed(f"the harness ended with exit code {run.exit_code}", str(image), run.log.strip()[-2000:])
    return (folder / "harness.out").read_bytes()


def _count(subject: Subject, vectors: Golden) -> tuple[list[int], str]:
    """Instructions of each step over one window, and how they were counted."""
    target = subject.target
    steps = b"".join(b"C" + x.astype("<i2").tobytes() for x in vectors.inputs[: subject.model.window])
    with tempfile.TemporaryDirectory(dir=subject.folder) as scratch:
        chain.write_harness_input(Path(scratch), b"R" + steps)
        run = emulate.run(target, subject.folder / "harness.elf", Path(scratch), timeout_s=TIMEOUT_S, count=True)
        ticks = np.frombuffer((Path(scratch) / "harness.out").read_bytes(), "<u4")
    if run.counts:
        return list(run.counts), run.how
    if run.how == "icount":
        return [emulate.instructions_of_ticks(target, int(tick)) for tick in ticks], run.how
    return [], run.how


def _run_application(subject: Subject) -> tuple[Link, int | None]:
    """Run the application in the emulator and compare what it prints with the reference."""
    model, target, folder = subject.model, subject.target, subject.folder
    image = folder / "firmware.elf"
    if target.kind == "bare":
        image = images.link_application(
            target, subject.sources, folder / "obj-emulated", folder / "emulated.elf", emulated=True
        )
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        run = emulate.run(target, image, Path(scratch), timeout_s=TIMEOUT_S)
    printed = run.uart if target.kind == "bare" else run.log
    (folder / "output.txt").write_text(printed, encoding="utf-8")
    rows = [line.split("\t")[1:] for line in printed.splitlines() if line.count("\t") == len(model.outputs)][1:]
    expected = _application_forecast(subject)
    said = re.search(r"(\d+) bytes of stack used$", printed, re.MULTILINE)
    stack = int(said[1]) if said else 0
    try:
        values = np.array(rows, np.float64).reshape(expected.shape)
    except ValueError:
        return Link("differs", f"printed {len(rows)} rows of {len(expected)}"), stack
    # Three decimals are printed, of the value or, below 0.01 and from a million on, of its mantissa.
    size = np.abs(expected)
    tolerance = np.where((size < 0.01) | (size >= 1e6), 0.0006 * size, 0.0006 + 1e-6 * size)
    if not (np.abs(values - expected) <= tolerance).all():
        return Link("differs", "the printed forecast"), stack
    return Link("exact", f"{len(rows)} rows printed"), stack


def _application_forecast(subject: Subject) -> np.ndarray:
    """What the application prints: (rows, outputs) physical."""
    model, replay = subject.model, subject.replay
    state = reference.zero_state(model)
    history = reference.encode(model, replay.samples)
    outputs, state = reference.run(model, state, history)
    if not model.loop:
        return reference.decode(model, outputs[-1:])
    future = np.zeros((subject.horizon, len(model.inputs)), np.float32)
    future[:, list(model.feedback.known)] = replay.future
    ahead, _ = reference.closed_loop(
        model, state, history[-1], outputs[-1], subject.horizon, reference.encode(model, future)
    )
    return reference.decode(model, ahead)
