"""The whole way: score, plan, quantize, emit, compile, prove. Everything it finds goes into ``build.json``."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

import edgetqs
from edgetqs import elf, emulate, firmware, images, planner, serving
from edgetqs.built import open_build
from edgetqs.curvature import Curvature, curvature
from edgetqs.emit_c import Replay, c_name, emit_c, stored_bytes
from edgetqs.errors import BadInput, CheckFailed, ToolMissing, Unsupported
from edgetqs.evaluate import data_cases, denormalise, evaluate
from edgetqs.integer import IntegerModel
from edgetqs.integer_file import save
from edgetqs.model import Forecaster
from edgetqs.observe import Observation, observe
from edgetqs.planner import Plan
from edgetqs.project import Project, read_data
from edgetqs.prove import Subject, prove
from edgetqs.quantizer import check_supported, quantize
from edgetqs.record import measure, record
from edgetqs.refine import refine
from edgetqs.target import Target, emulated_as, load_target
from edgetqs.tqs import Score, score
from edgetqs.trajectories import synthesise
from edgetqs.units import Block, blocks
from edgetqs.write_tflite import write_tflite

#: How often a plan is made again with what its linked image leaves for weights.
_ATTEMPTS = 5
#: Plans on the Pareto front.
POINTS = 12

Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Options:
    """What the command line may change; None takes the project's value."""

    flash_budget: int | None = None
    granularity: str | None = None
    rounding: str | None = None
    plan_file: Path | None = None
    refine: bool = True
    signatures: tuple[str, ...] = ("step", "sequence")
    force: bool = False


@dataclass(frozen=True, slots=True)
class _Context:
    """What the stages share."""

    forecaster: Forecaster
    target: Target
    project: Project
    data: np.ndarray | None
    scores: Score
    observations: tuple[Observation, ...]
    metrics: tuple[Curvature, ...] | None  # None where nothing but nearest rounding is asked for
    replay: Replay
    rounding: str
    flash_budget: int  # bytes of the whole image; 0: no limit
    folder: Path

    def integers(self, widths: Mapping[Block, int]) -> IntegerModel:
        return quantize(
            self.forecaster,
            widths,
            self.rounding,
            observations=self.observations,
            metrics=self.metrics,
            horizon=self.project.horizon,
        )

    def sized(self, widths: Mapping[Block, int]) -> IntegerModel:
        """A stand-in of the same size, quickly made."""
        return quantize(self.forecaster, widths, "nearest", observations=self.observations)


def build(project: Project, target_name: str, out: Path, options: Options = Options(), progress: Progress = print):
    """Build firmware for a target into ``out``; returns the contents of ``build.json``.

    The folder appears when everything is done. Raises ``BadInput`` if it is
    there already (unless forced), ``CheckFailed`` when the model does not fit
    the device; a build whose chain differs is kept, and its verdict tells.
    """
    target = load_target(target_name)
    if out.exists() and not options.force:
        raise BadInput("the folder exists", str(out), "choose another with --out, or replace it with --force")
    if out.exists() and not out.is_dir():
        raise BadInput("this is a file", str(out), "choose a folder with --out")
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
        if str(target_name).endswith(".toml"):
            shutil.copy(target_name, aside)
        _tidy(aside)
        if out.exists():
            shutil.rmtree(out)
        aside.chmod(0o755)
        aside.rename(out)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return report


def plan_image(project: Project, target_name: str, options: Options = Options(), progress: Progress = print) -> Plan:
    """The plan that ``build`` would take: within the flash budget of the whole image, its code measured."""
    target = load_target(target_name)
    check_supported(project.forecaster)
    firmware.toolchain(target)
    with tempfile.TemporaryDirectory() as scratch:
        context = _context(project, target, Path(scratch), options, progress)
        return _choose(context, options, progress)


def plan_weights(project: Project, target: Target, budget_bytes: int, options: Options, progress: Progress) -> Plan:
    """The best plan whose weights and scales alone fit ``budget_bytes``; nothing is compiled."""
    forecaster, rounding = project.forecaster, options.rounding or project.rounding
    progress("scoring the units")
    scores = score(forecaster, project.horizon, options.granularity or project.granularity)
    chosen = planner.plan(forecaster, scores, budget_bytes, target.cpu.kernels, points=POINTS)
    if not options.refine or chosen.weight_bytes == chosen.int8_bytes:
        return chosen
    try:
        check_supported(forecaster)
    except Unsupported as error:
        hint = f"--no-refine plans by scores alone, without quantizing; {error.todo}"
        raise Unsupported(error.what, error.where, hint) from error
    progress("refining the plan by rollouts")
    metrics = curvature(forecaster, project.horizon) if rounding != "nearest" else None
    return refine(forecaster, scores, chosen, rounding, observations=observe(forecaster), metrics=metrics)


def _context(project: Project, target: Target, folder: Path, options: Options, progress: Progress) -> _Context:
    forecaster = project.forecaster
    data = read_data(project.data, forecaster) if project.data else None
    if data is not None:
        data_cases(forecaster, data, project.horizon)  # too short a series is told before the work, not after it
    granularity = options.granularity or project.granularity
    if options.plan_file and not options.granularity:
        granularity = planner.granularity_of(options.plan_file)
    progress(f"scoring the units (per {granularity})")
    rounding = options.rounding or project.rounding
    return _Context(
        forecaster,
        target,
        project,
        data,
        score(forecaster, project.horizon, granularity),
        observe(forecaster),
        curvature(forecaster, project.horizon) if rounding != "nearest" else None,
        replay(project, data),
        rounding,
        options.flash_budget or project.flash_budget or max(target.flash_budget_bytes, 0),
        folder,
    )


def _build(project: Project, target: Target, folder: Path, options: Options, progress: Progress) -> dict[str, Any]:
    forecaster = project.forecaster
    context = _context(project, target, folder, options, progress)
    chosen = _choose(context, options, progress)
    progress("quantizing, compiling, linking")
    model, sources = _make(context, chosen)
    file = write_tflite(model, options.signatures)
    (folder / f"{c_name(forecaster.name)}.tflite").write_bytes(file.data)
    progress("proving the chain")
    proof = prove(Subject(model, target, sources, folder, context.replay, project.horizon), file)
    progress("rolling out")
    uniform = {f"_int{width}": context.integers(dict.fromkeys(blocks(forecaster), width)) for width in (8, 4)}
    rollout = evaluate(forecaster, {"": model, **uniform}, project.horizon, context.data)
    root = "Reset_Handler" if target.kind == "bare" else f"{c_name(forecaster.name)}_step"
    image, objects = folder / "firmware.elf", folder / "obj"
    memory = measure(target, image, objects, context.flash_budget, root, proof.stack_measured_bytes)
    report = record(forecaster, context.scores, chosen, context.rounding, file, memory, proof, rollout, target)
    progress("linking the image that answers over the link")
    report["link"] = serving.make(target, sources, folder)
    save(model, folder / "golden" / "model.npz")
    (folder / "plan.json").write_text(json.dumps(chosen.to_json(), indent=1) + "\n", encoding="utf-8")
    (folder / "build.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return report


def _tidy(folder: Path) -> None:
    """Leave what a user needs: objects and the host's image go."""
    for work in folder.glob("obj*"):
        shutil.rmtree(work)
    (folder / "host.elf").unlink(missing_ok=True)


def run_firmware(folder: Path, timeout_s: int) -> emulate.Run:
    """Run a finished build's application in its emulator."""
    target = open_build(folder).target
    target = emulated_as(target) or target
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


def _measure(context: _Context, widths: tuple[int, ...] = (4, 8)) -> int:
    """Bytes of flash beside the weights, with kernels of these widths; checks the RAM on the way."""
    if context.target.kind != "bare":
        return 0  # the budget of a Linux program counts the model's constants only
    mixed = {block: widths[k % len(widths)] for k, block in enumerate(blocks(context.forecaster))}
    model = context.sized(mixed)
    with tempfile.TemporaryDirectory(dir=context.folder) as scratch:
        work = Path(scratch)
        sources = _emit(context, model, "0" * 16, work / "src")
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


def _plan(context: _Context, overhead: int, options: Options) -> Plan:
    kernels = context.target.cpu.kernels
    if options.plan_file:
        return planner.read_plan(options.plan_file, context.forecaster, context.scores, kernels)
    if context.flash_budget == 0:
        return planner.plan(context.forecaster, context.scores, None, kernels, points=POINTS)
    room = context.flash_budget - overhead
    try:
        return planner.plan(context.forecaster, context.scores, room, kernels, points=POINTS)
    except CheckFailed as error:
        smallest = planner.fixed(context.forecaster, context.scores, [4] * len(context.scores.units), kernels)
        needed = _image_bytes(context, smallest)  # without the int8 kernels
        overhead = needed - smallest.weight_bytes
        if needed <= context.flash_budget:
            return replace(smallest, budget_bytes=context.flash_budget - overhead)
        raise CheckFailed(
            f"the image needs {needed} bytes of flash even with every weight at int4 ({overhead} for code and "
            f"constants, {smallest.weight_bytes} for weights), {needed - context.flash_budget} more than the budget of "
            f"{context.flash_budget}",
            f"target {context.target.name}",
            f"--flash-budget {needed} would do; otherwise take a larger device or a smaller model",
        ) from error


def _settle(context: _Context, chosen: Plan, options: Options) -> Plan:
    """The best plan whose linked image fits.

    The first plan rests on code measured with other widths, so the image is
    linked and the plan made again with what the image really leaves for
    weights, until nothing is gained. Sizes do not depend on the rounding, so
    the quickest one serves.
    """
    if context.flash_budget == 0:
        return chosen
    if not options.plan_file and chosen.int8_bytes < context.flash_budget:
        # Without int4 weights the int4 kernels are not linked, which may be all that it takes.
        int8 = planner.fixed(context.forecaster, context.scores, [8] * len(chosen.units), chosen.kernels)
        if _image_bytes(context, int8) <= context.flash_budget:
            return replace(int8, budget_bytes=chosen.budget_bytes, front=chosen.front)
    fitting: Plan | None = None
    tried: set[str] = set()
    for _ in range(_ATTEMPTS):
        tried.add(chosen.hash)
        size = _image_bytes(context, chosen)
        excess = size - context.flash_budget
        if excess <= 0:
            fitting = chosen
        room = context.flash_budget - (size - chosen.weight_bytes)
        if options.plan_file and excess <= 0:
            return chosen
        try:
            better = planner.plan(context.forecaster, context.scores, room, context.target.cpu.kernels, points=POINTS)
        except CheckFailed:
            break
        if options.plan_file:
            wide = ", ".join(unit.unit for unit in better.units if unit.width == 8) or "none"
            raise CheckFailed(
                f"the image takes {size} bytes of flash, {excess} more than the budget of {context.flash_budget}",
                str(options.plan_file),
                f"a plan with these units at int8 would fit: {wide}",
            )
        if better.hash in tried:
            break
        chosen = better
    if fitting is None:
        raise CheckFailed(f"the image stays {excess} bytes over the budget", f"target {context.target.name}")
    return fitting


def _choose(context: _Context, options: Options, progress: Progress) -> Plan:
    """The plan: by scores, within what the linked image leaves for weights, then refined by rollouts."""
    progress("measuring the code")
    overhead = _measure(context)
    progress("planning the widths")
    chosen = _settle(context, _plan(context, overhead, options), options)
    if not options.refine or options.plan_file or context.flash_budget == 0 or chosen.weight_bytes == chosen.int8_bytes:
        return chosen
    progress("refining the plan by rollouts")
    room = context.flash_budget - (_image_bytes(context, chosen) - chosen.weight_bytes)
    better = refine(
        context.forecaster,
        context.scores,
        replace(chosen, budget_bytes=room),
        context.rounding,
        observations=context.observations,
        metrics=context.metrics,
    )
    return better if _image_bytes(context, better) <= context.flash_budget else chosen


def _make(context: _Context, chosen: Plan) -> tuple[IntegerModel, images.Sources]:
    """Quantize, emit and link."""
    model = context.integers(chosen.widths())
    sources, image = _emit_and_link(context, model, chosen)
    if context.target.kind == "bare":
        images.link_application(context.target, sources, context.folder / "obj", image)
        firmware.write_programmable(context.target, image)
        images.write_board(context.target, context.folder / "board")
    return model, sources


def _emit_and_link(context: _Context, model: IntegerModel, chosen: Plan) -> tuple[images.Sources, Path]:
    sources = _emit(context, model, chosen.hash, context.folder / "src")
    image = context.folder / "firmware.elf"
    return sources, images.link_ample(context.target, sources, context.folder / "obj", image)


def _image_bytes(context: _Context, chosen: Plan) -> int:
    """What counts against the flash budget: the linked image, or for Linux programs the weights."""
    if context.target.kind != "bare":
        return chosen.weight_bytes
    _, image = _emit_and_link(context, context.sized(chosen.widths()), chosen)
    return elf.flash_bytes(image)
