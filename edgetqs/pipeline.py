"""The whole way: score, plan, quantize, emit, compile, prove. Everything it finds goes into ``build.json``."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

import edgetqs
from edgetqs import chain, elf, emulate, firmware, images, planner, reference
from edgetqs.chain import Golden, Link
from edgetqs.emit_c import Replay, c_name, emit_c, stored_bytes
from edgetqs.errors import BadInput, CheckFailed, ToolMissing
from edgetqs.evaluate import denormalise, evaluate
from edgetqs.integer import IntegerModel
from edgetqs.model import Forecaster
from edgetqs.observe import observe
from edgetqs.planner import Plan
from edgetqs.project import Project, read_data
from edgetqs.quantizer import check_supported, quantize
from edgetqs.stack import stack_bound
from edgetqs.target import Target, load_target
from edgetqs.tqs import Score, score
from edgetqs.trajectories import synthesise
from edgetqs.units import blocks
from edgetqs.write_tflite import TfliteFile, write_tflite

SCHEMA = 1
#: How often a plan is tightened when the linked image is a few bytes over what was computed.
_TIGHTENINGS = 4

Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Options:
    """What the command line may change; None takes the project's value."""

    flash_budget: int | None = None
    granularity: str | None = None
    rounding: str | None = None
    plan_file: Path | None = None
    signatures: tuple[str, ...] = ("step", "sequence")
    force: bool = False


@dataclass(frozen=True, slots=True)
class _Context:
    """What the stages share."""

    forecaster: Forecaster
    target: Target
    project: Project
    scores: Score
    replay: Replay
    rounding: str
    flash_budget: int  # bytes of the whole image; 0: no limit
    folder: Path


def build(project: Project, target_name: str, out: Path, options: Options = Options(), progress: Progress = print):
    """Build firmware for a target into ``out``; returns the contents of ``build.json``.

    The folder appears when everything is done. Raises ``BadInput`` if it is
    there already (unless forced), ``CheckFailed`` when the model does not fit
    the device; a build whose chain differs is kept, and its verdict tells.
    """
    target = load_target(target_name)
    if out.exists() and not options.force:
        raise BadInput("the folder exists", str(out), "choose another with --out, or replace it with --force")
    if out.exists() and not (out / "build.json").is_file() and any(out.iterdir()):
        raise BadInput("the folder holds something other than a build", str(out), "choose another with --out")
    forecaster = project.forecaster
    check_supported(forecaster)
    c_name(forecaster.name)
    firmware.toolchain(target)
    out.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    try:
        report = _build(project, target, aside, options, progress)
        if out.exists():
            shutil.rmtree(out)
        aside.chmod(0o755)
        aside.rename(out)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return report


def _build(project: Project, target: Target, folder: Path, options: Options, progress: Progress) -> dict[str, Any]:
    forecaster = project.forecaster
    data = read_data(project.data, forecaster) if project.data else None
    granularity = options.granularity or project.granularity
    if options.plan_file and not options.granularity:
        granularity = planner.granularity_of(options.plan_file)
    progress(f"scoring the units (per {granularity})")
    scores = score(forecaster, project.horizon, granularity)
    context = _Context(
        forecaster,
        target,
        project,
        scores,
        replay(project, data),
        options.rounding or project.rounding,
        options.flash_budget or project.flash_budget or max(target.flash_budget_bytes, 0),
        folder,
    )
    observations = observe(forecaster)

    def integers(widths: dict) -> IntegerModel:
        return quantize(forecaster, widths, context.rounding, observations=observations)

    progress("measuring the code")
    overhead = _measure(context, integers)
    progress("planning the widths")
    chosen = _plan(context, overhead, options)
    progress("quantizing, compiling, linking")
    model, sources, chosen = _fit(context, integers, chosen, options)
    file = write_tflite(model, options.signatures)
    (folder / f"{c_name(forecaster.name)}.tflite").write_bytes(file.data)
    progress("proving the chain")
    vectors = chain.golden(model)
    links, cost, stack_measured = _prove(context, model, file, vectors, sources)
    progress("rolling out")
    uniform = {f"_int{width}": integers(dict.fromkeys(blocks(forecaster), width)) for width in (8, 4)}
    rollout = evaluate(forecaster, {"": model, **uniform}, project.horizon, data)
    report = _report(context, model, chosen, file, links, cost, rollout, stack_measured, vectors.steps)
    (folder / "plan.json").write_text(json.dumps(chosen.to_json(), indent=1) + "\n", encoding="utf-8")
    (folder / "build.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return report


def run_firmware(folder: Path, timeout_s: int) -> emulate.Run:
    """Run a finished build's application in its emulator."""
    try:
        target = load_target(json.loads((folder / "build.json").read_text(encoding="utf-8"))["target"])
    except (OSError, ValueError, KeyError) as error:
        raise BadInput("not a build", str(folder), "make one with `edgetqs build`") from error
    image = folder / ("emulated.elf" if target.kind == "bare" else "firmware.elf")
    if not image.is_file():
        raise ToolMissing("the build has no image for the emulator", str(folder), "install QEMU and build again")
    with tempfile.TemporaryDirectory() as scratch:
        return emulate.run(target, image, Path(scratch), timeout_s=timeout_s)


def replay(project: Project, data: np.ndarray | None) -> Replay:
    """Samples for the application: the end of the data, or a synthetic history."""
    forecaster, horizon = project.forecaster, project.horizon
    window, known = forecaster.window, list(forecaster.feedback.known)
    if data is not None and len(data) >= window + horizon:
        first = len(data) - window - horizon
        samples, ahead = data[first : first + window], data[first + window :]
        comment = f"Samples {first} to {first + window - 1} of {project.data.name if project.data else ''}."
    else:
        start = synthesise(forecaster, max(horizon, 2), count=8)
        history = start.burn_in if forecaster.feedback.pairs else start.future
        samples = denormalise(forecaster, history[0, -window:])
        ahead = denormalise(forecaster, start.future[0, :horizon])
        comment = "Synthetic samples: no data was given."
    return Replay(samples.astype(np.float32), ahead[:, known].astype(np.float32), comment)


def _emit(context: _Context, model: IntegerModel, plan_hash: str, folder: Path) -> images.Sources:
    texts = emit_c(
        model,
        context.target.cpu.kernels,
        context.replay,
        horizon=context.project.horizon,
        version=edgetqs.__version__,
        plan_hash=plan_hash,
    )
    return images.write_sources(folder, texts, context.target.cpu.kernels)


def _measure(context: _Context, integers: Callable[[dict], IntegerModel]) -> int:
    """Bytes of flash beside the weights, with kernels of both widths; checks the RAM on the way."""
    if context.target.kind != "bare":
        return 0  # the budget of a Linux program counts the model's constants only
    mixed = {block: (4, 8)[k % 2] for k, block in enumerate(blocks(context.forecaster))}
    model = integers(mixed)
    with tempfile.TemporaryDirectory(dir=context.folder) as scratch:
        work = Path(scratch)
        sources = _emit(context, model, "", work / "src")
        image = images.link_ample(context.target, sources, work / "obj", work / "measured.elf")
        ram = elf.ram_bytes(image)
        overhead = elf.flash_bytes(image) - stored_bytes(model, context.target.cpu.kernels)
    if ram > context.target.ram_budget_bytes:
        raise CheckFailed(
            f"the model needs {ram} bytes of RAM, {ram - context.target.ram_budget_bytes} more than the "
            f"{context.target.ram_budget_bytes} bytes that the device leaves beside the stack",
            f"target {context.target.name}",
            "take a device with more RAM, or train a model with fewer units",
        )
    return overhead


def _plan(context: _Context, overhead: int, options: Options, shrink: int = 0) -> Plan:
    kernels = context.target.cpu.kernels
    if options.plan_file:
        return planner.read_plan(options.plan_file, context.forecaster, context.scores, kernels)
    if context.flash_budget == 0:
        return planner.plan(context.forecaster, context.scores, None, kernels, points=12)
    room = context.flash_budget - overhead - shrink
    try:
        return planner.plan(context.forecaster, context.scores, room, kernels, points=12)
    except CheckFailed as error:
        smallest = planner.fixed(context.forecaster, context.scores, [4] * len(context.scores.units), kernels)
        needed = overhead + smallest.weight_bytes
        raise CheckFailed(
            f"the image needs {needed} bytes of flash even with every weight at int4 ({overhead} for code and "
            f"constants, {smallest.weight_bytes} for weights), {needed - context.flash_budget} more than the budget of "
            f"{context.flash_budget}",
            f"target {context.target.name}",
            f"--flash-budget {needed} would do; otherwise take a larger device or a smaller model",
        ) from error


def _fit(
    context: _Context, integers: Callable[[dict], IntegerModel], chosen: Plan, options: Options
) -> tuple[IntegerModel, images.Sources, Plan]:
    """Quantize, emit and link; where the image is over the budget by padding, plan again."""
    over = 0
    for _ in range(_TIGHTENINGS):
        model = integers(chosen.widths())
        sources = _emit(context, model, chosen.hash, context.folder / "src")
        work = context.folder / "obj"
        image = images.link_ample(context.target, sources, work, context.folder / "firmware.elf")
        size = elf.flash_bytes(image) if context.target.kind == "bare" else chosen.weight_bytes
        excess = size - context.flash_budget if context.flash_budget else 0
        if excess <= 0:
            if context.target.kind == "bare":
                images.link_application(context.target, sources, work, context.folder / "firmware.elf")
            return model, sources, chosen
        if options.plan_file:
            fitting = _plan(context, size - chosen.weight_bytes, replace(options, plan_file=None))
            wide = ", ".join(unit.unit for unit in fitting.units if unit.width == 8) or "none"
            raise CheckFailed(
                f"the image takes {size} bytes of flash, {excess} more than the budget of {context.flash_budget}",
                str(options.plan_file),
                f"a plan with these units at int8 would fit: {wide}",
            )
        over += excess
        chosen = _plan(context, size - chosen.weight_bytes, options, shrink=over)
    raise CheckFailed(f"the image stays {excess} bytes over the budget", f"target {context.target.name}")


def _prove(
    context: _Context, model: IntegerModel, file: TfliteFile, vectors: Golden, sources: images.Sources
) -> tuple[dict[str, Link], dict[str, Any], int | None]:
    """Verdicts by engine, the instruction counts, and the stack the application used in the emulator."""
    target, golden_folder = context.target, context.folder / "golden"
    everything = chain.commands(model, vectors)
    golden_folder.mkdir()
    (golden_folder / "harness.in").write_bytes(everything)
    links = {"litert": chain.check_litert(model, file, vectors)}
    host = load_target("x86")
    links["host"], _ = _check(host, sources, context.folder, model, vectors, sanitizers=True)
    cost: dict[str, Any] = {"instructions_per_step": None, "instructions_per_window": None}
    measured = None
    try:
        links["emulator"], output = _check(target, sources, context.folder, model, vectors)
        (golden_folder / "harness.out").write_bytes(output)
        counts, cost["how"] = _count(context, model, vectors)
        if counts:
            cost["instructions_per_step"] = round(sum(counts) / len(counts))
            cost["instructions_per_window"] = sum(counts)
        links["application"], measured = _run_application(context, model, sources)
    except ToolMissing as error:
        links.setdefault("emulator", Link("not run", f"{error.what}; {error.todo}"))
        links.setdefault("application", Link("not run", error.what))
        cost.setdefault("how", f"not run: {error.what}")
    return links, cost, measured


def _check(
    target: Target,
    sources: images.Sources,
    folder: Path,
    model: IntegerModel,
    vectors: Golden,
    sanitizers: bool = False,
) -> tuple[Link, bytes]:
    """(verdict, harness.out) of the harness on one target."""
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
    run = emulate.run(target, image, folder, timeout_s=600)
    if run.exit_code != 0:
        raise CheckFailed(f"the harness ended with exit code {run.exit_code}", str(image), run.log.strip()[-2000:])
    return (folder / "harness.out").read_bytes()


def _count(context: _Context, model: IntegerModel, vectors: Golden) -> tuple[list[int], str]:
    """Instructions of each step over one window, and how they were counted."""
    target = context.target
    steps = b"".join(b"C" + x.astype("<i2").tobytes() for x in vectors.inputs[: model.window])
    with tempfile.TemporaryDirectory(dir=context.folder) as scratch:
        chain.write_harness_input(Path(scratch), b"R" + steps)
        run = emulate.run(target, context.folder / "harness.elf", Path(scratch), timeout_s=600, count=True)
        ticks = np.frombuffer((Path(scratch) / "harness.out").read_bytes(), "<u4")
    if run.counts:
        return list(run.counts), run.how
    if run.how == "icount":
        return [emulate.instructions_of_ticks(target, int(tick)) for tick in ticks], run.how
    return [], run.how


def _run_application(context: _Context, model: IntegerModel, sources: images.Sources) -> tuple[Link, int | None]:
    """Run the application in the emulator and compare what it prints with the reference."""
    target, folder = context.target, context.folder
    image = folder / "firmware.elf"
    if target.kind == "bare":
        image = images.link_application(
            target, sources, folder / "obj-emulated", folder / "emulated.elf", emulated=True
        )
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        run = emulate.run(target, image, Path(scratch), timeout_s=600)
    printed = run.uart if target.kind == "bare" else run.log
    (folder / "output.txt").write_text(printed, encoding="utf-8")
    rows = [line.split("\t")[1:] for line in printed.splitlines() if line.count("\t") == len(model.outputs)][1:]
    expected = _application_forecast(context, model)
    stack = next((line.split()[3] for line in printed.splitlines() if line.endswith("of stack used")), "0")
    try:
        values = np.array(rows, np.float64).reshape(expected.shape)
    except ValueError:
        return Link("differs", f"printed {len(rows)} rows of {len(expected)}"), int(stack)
    # Three decimals are printed, computed in float32.
    tolerance = 0.0006 + 1e-6 * np.abs(expected)
    if not (np.abs(values - expected) <= tolerance).all():
        return Link("differs", "the printed forecast"), int(stack)
    return Link("exact", f"{len(rows)} rows printed"), int(stack)


def _application_forecast(context: _Context, model: IntegerModel) -> np.ndarray:
    """What the application prints: (rows, outputs) physical."""
    state = reference.zero_state(model)
    history = reference.encode(model, context.replay.samples)
    outputs, state = reference.run(model, state, history)
    if not model.loop:
        return reference.decode(model, outputs[-1:])
    future = np.zeros((context.project.horizon, len(model.inputs)), np.float32)
    future[:, list(model.feedback.known)] = context.replay.future
    ahead, _ = reference.closed_loop(
        model, state, history[-1], outputs[-1], context.project.horizon, reference.encode(model, future)
    )
    return reference.decode(model, ahead)


def _report(
    context: _Context,
    model: IntegerModel,
    chosen: Plan,
    file: TfliteFile,
    links: dict[str, Link],
    cost: dict[str, Any],
    rollout: dict[str, Any],
    stack_measured: int | None,
    steps: int,
) -> dict[str, Any]:
    forecaster, target = context.forecaster, context.target
    image = context.folder / "firmware.elf"
    root = "Reset_Handler" if target.kind == "bare" else f"{c_name(model.name)}_step"
    bound = stack_bound(context.folder / "obj", image, root, firmware.toolchain(target).objdump)
    flash, ram = elf.flash_bytes(image), elf.ram_bytes(image)
    fits = target.kind != "bare" or (
        flash <= context.flash_budget and ram <= target.ram_budget_bytes and bound.bytes <= target.memory.stack_bytes
    )
    return {
        "schema": SCHEMA,
        "tool_version": edgetqs.__version__,
        "model": {
            "name": forecaster.name,
            "sha256": forecaster.sha256,
            "layers": [f"{layer.name}: {type(layer).__name__}" for layer in forecaster.layers],
            "parameters": forecaster.parameters,
        },
        "target": target.name,
        "plan": {
            "granularity": chosen.granularity,
            "rounding": context.rounding,
            "hash": chosen.hash,
            "units": [asdict(unit) for unit in chosen.units],
            "weight_bytes": chosen.weight_bytes,
            "int8_bytes": chosen.int8_bytes,
            "int4_bytes": chosen.int4_bytes,
            "predicted": chosen.predicted,
            "front": [asdict(point) for point in chosen.front],
        },
        "score": {
            "horizon": context.scores.horizon,
            "scored": context.scores.scored,
            "flagged": [f"{entry.unit.name}: {entry.flag}" for entry in context.scores.flagged],
        },
        "firmware": {
            "elf": "firmware.elf",
            "flash_bytes": flash,
            "ram_bytes": ram,
            "stack_bytes": bound.bytes,
            "stack_path": list(bound.path),
            "stack_unknown": list(bound.unknown),
            "stack_measured_bytes": stack_measured,
            "code_bytes": elf.code_bytes(image),
            "flash_budget_bytes": context.flash_budget,
            "ram_budget_bytes": max(target.ram_budget_bytes, 0),
            "stack_budget_bytes": target.memory.stack_bytes,
            "sections": [asdict(section) for section in elf.sections(image)] if target.kind == "bare" else [],
            "fits": fits,
        },
        "chain": {
            "steps": steps,
            **{engine: link.verdict for engine, link in links.items()},
            "details": {engine: link.detail for engine, link in links.items()},
        },
        "cost": cost,
        "rollout": rollout,
        "tflite": {
            "path": f"{c_name(forecaster.name)}.tflite",
            "bytes": len(file.data),
            "signatures": list(file.signatures),
        },
    }
