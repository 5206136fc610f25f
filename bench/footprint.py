"""What one inference takes on a core: instructions, flash, RAM, stack; and whether it is right.

Two images are linked from the same objects:

``step``     its main holds one state and calls reset and step_q (int16 in, int16 out) and nothing else
``harness``  reset, step_q, step (floats), advance_q and forecast: all that a model offers

Flash is the sum of the input sections of code, tables and initial values that
the linker kept (its map), of the model, the runtime and libgcc. Not counted:
the model's stored rows (weights, and with them their biases, multipliers and
shifts), start-up, UART, harness, main, and memcpy and its kin, which every
firmware has. Row descriptors and channels are counted.

RAM is .data and .bss of model, runtime and libgcc and the caller's state, in
the step image: state and scratch. Stack is the bound of step_q along the call
graph, its caller's frame not included.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from kernel_models import STEPS, Subject

from edgetqs import chain, emulate, firmware, images
from edgetqs.emit_c import Replay, c_name, emit_c, stored_bytes
from edgetqs.errors import CheckFailed
from edgetqs.stack import stack_bound
from edgetqs.target import Target

#: No figure of what lies outside the application may stop an image from being linked.
_ROOM = 1 << 18
_TIMEOUT_S = 300
_STEP_MAIN = """
#include "model_glue.h"
static model_state state;
int main(void)
{
    int16_t in[MODEL_INPUTS] = {0};
    int16_t out[MODEL_OUTPUTS];
    model_reset(&state);
    (void)model_step_q(&state, in, out);
    return out[0];
}
"""
_FLASH = (".text", ".rodata", ".data")
_RAM = (".data", ".bss", "COMMON")


@dataclass(frozen=True, slots=True)
class Figures:
    """One model on one core at one optimisation level."""

    core: str
    model: str
    optimise: str
    instructions: int  # STEPS steps, summed
    flash_bytes: int  # code and tables of reset and step_q
    api_flash_bytes: int  # code and tables of everything a model offers
    ram_bytes: int  # state and scratch
    forecast_ram_bytes: int  # what forecast needs beside: a copy of the state
    stack_bytes: int  # of step_q and what it calls
    stack_measured_bytes: int  # at most so much was painted over below step_q's caller


@dataclass(frozen=True, slots=True)
class Count:
    """One model on a computer with Linux, where bytes are no matter."""

    core: str
    model: str
    optimise: str
    instructions: int  # STEPS steps, summed


@dataclass(frozen=True, slots=True)
class Piece:
    """One input section that was linked."""

    section: str
    bytes: int
    file: str  # name of the object, or "libgcc.a(member.o)"


def measure(target: Target, subject: Subject, optimise: str) -> Figures:
    """Build, compare with the reference, count. Raises CheckFailed where any bit differs."""
    with tempfile.TemporaryDirectory() as scratch:
        return _measure(target, subject, optimise, Path(scratch))


def count_instructions(target: Target, subject: Subject, optimise: str) -> Count:
    """As measure, of instructions alone."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        harness, _ = build_harness(target, subject, optimise, folder)
        _check_bits(target, subject, harness, folder)
        return Count(target.name, subject.name, optimise, counted(target, subject, harness, folder)[0])


def build_harness(target: Target, subject: Subject, optimise: str, folder: Path) -> tuple[Path, images.Sources]:
    """The harness's image, and the sources it is made of in ``folder``/src; objects are in ``folder``/obj."""
    model, kernels = subject.model, target.cpu.kernels
    nothing = Replay(np.zeros((1, len(model.inputs)), np.float32), np.zeros((0, 0), np.float32), "")
    texts = emit_c(model, kernels, nothing, horizon=STEPS, version="bench", plan_hash="0")
    sources = images.write_sources(folder / "src", texts, kernels)
    return images.link_harness(target, sources, folder / "obj", folder / "harness.elf", optimise=optimise), sources


def counted_steps(subject: Subject) -> tuple[bytes, chain.Golden]:
    """Commands for STEPS steps between the harness's marks, from reset, and what they should give."""
    vectors = chain.golden(subject.model, loop_steps=0)
    return b"".join(b"C" + x.astype("<i2").tobytes() for x in vectors.inputs[:STEPS]), vectors


def _measure(target: Target, subject: Subject, optimise: str, folder: Path) -> Figures:
    model, kernels = subject.model, target.cpu.kernels
    roomy = replace(target, memory=replace(target.memory, flash_bytes=target.memory.flash_bytes + _ROOM))
    harness, sources = build_harness(roomy, subject, optimise, folder)
    work = folder / "obj"
    objects = sorted(work.glob("*.o"))
    all_pieces = pieces_of_link(roomy, objects, folder / "whole.elf", work / "link.ld")

    main = folder / "step_main.c"
    main.write_text(_STEP_MAIN, encoding="utf-8")
    (step_main,) = firmware.compile_sources(target, [main], folder / "main", [sources.folder], optimise=optimise)
    without_harness = [path for path in objects if path.stem != "harness" and not path.stem.startswith("port_")]
    step_pieces = pieces_of_link(roomy, [*without_harness, step_main], folder / "step.elf", work / "link.ld")

    own = {f"{path.stem}.o" for path in sources.model}
    stored = stored_arrays((sources.folder / f"{c_name(model.name)}.c").read_text(encoding="utf-8"))
    stored_kept = _bytes(p for p in all_pieces if p.section.removeprefix(".rodata.") in stored)
    if stored_kept != stored_bytes(model, kernels):
        raise CheckFailed(f"{stored_kept} bytes of weights were linked, {stored_bytes(model, kernels)} emitted")
    root = f"{c_name(model.name)}_step_q"
    bound = stack_bound(work, folder / "step.elf", root, firmware.toolchain(target).objdump)
    if bound.unknown:
        raise CheckFailed(f"{root} has no stack bound: {'; '.join(bound.unknown)}")
    step_ram = ram_bytes(step_pieces, own)
    _check_bits(target, subject, harness, folder)
    instructions, peak = counted(target, subject, harness, folder)
    return Figures(
        target.name,
        subject.name,
        optimise,
        instructions,
        flash_bytes(step_pieces, own, stored),
        flash_bytes(all_pieces, own, stored),
        step_ram + ram_bytes(step_pieces, {"step_main.o"}),
        ram_bytes(all_pieces, own) - step_ram,
        bound.bytes,
        peak - _callers_bytes(work),
    )


def pieces_of_link(target: Target, objects: list[Path], out: Path, script: Path) -> list[Piece]:
    """Link ``objects`` into ``out``; what the linker kept of them."""
    map_file = out.with_suffix(".map")
    firmware.link(target, objects, out, script, extra=[f"-Wl,-Map={map_file}"])
    return linked_pieces(map_file.read_text(encoding="utf-8"))


def linked_pieces(link_map: str) -> list[Piece]:
    """Input sections with code or data that GNU ld kept, from its map; fill between them left out."""
    kept = link_map.partition("Linker script and memory map")[2].partition("/DISCARD/")[0]
    found = re.findall(r"^ (\.\S+|COMMON)\s+0x[0-9a-f]+\s+(0x[0-9a-f]+) (\S.*)$", kept, re.MULTILINE)
    pieces = [Piece(name, int(size, 16), Path(file).name) for name, size, file in found]
    return [piece for piece in pieces if piece.bytes and piece.section.startswith((*_FLASH, *_RAM))]


def stored_arrays(source: str) -> set[str]:
    """Names of the arrays in the generated source's section of weights."""
    section = source.partition("/* ---- Weights ---- */")[2].partition("/* ---- ")[0]
    return set(re.findall(r"^static const \w+ (\w+)\[\d+\]", section, re.MULTILINE))


def flash_bytes(pieces: Iterable[Piece], own: set[str], stored: set[str]) -> int:
    """Code, tables and initial values of the objects ``own`` and of libgcc, without the arrays ``stored``."""
    return _bytes(
        piece
        for piece in pieces
        if piece.section.startswith(_FLASH)
        and _is_inference(piece, own)
        and piece.section.removeprefix(".rodata.") not in stored
    )


def ram_bytes(pieces: Iterable[Piece], own: set[str]) -> int:
    """.data and .bss of the objects ``own``, and of libgcc."""
    return _bytes(piece for piece in pieces if piece.section.startswith(_RAM) and _is_inference(piece, own))


def _is_inference(piece: Piece, own: set[str]) -> bool:
    return piece.file in own or piece.file.startswith("libgcc.a(")


def _bytes(pieces: Iterable[Piece]) -> int:
    return sum(piece.bytes for piece in pieces)


def _check_bits(target: Target, subject: Subject, image: Path, folder: Path) -> None:
    """Golden vectors of every kind: all outputs, states and counts of clipped values."""
    vectors = chain.golden(subject.model, loop_steps=STEPS)
    output, _ = _run(target, image, folder, chain.commands(subject.model, vectors))
    _, result = chain.judge(subject.model, vectors, output)
    if result.link.verdict != "exact":
        where = f"{subject.name} on {target.name}"
        raise CheckFailed(f"{where} differs from the reference: {result.link.detail}", todo="No count is given for it.")


def counted(target: Target, subject: Subject, image: Path, folder: Path) -> tuple[int, int]:
    """(instructions of STEPS steps, deepest stack while they ran); the step after them must be right too."""
    steps, vectors = counted_steps(subject)
    after = b"S" + vectors.inputs[STEPS].astype("<i2").tobytes()
    output, run = _run(target, image, folder, b"RK" + steps + b"K" + after, count=True)
    if run.how != "tcg plugin" or len(run.counts) != STEPS:
        raise CheckFailed(f"{target.name} cannot be counted", todo=run.how)
    peak = int(np.frombuffer(output[4 + 4 * STEPS :][:4], "<u4")[0])
    record = np.frombuffer(output[8 + 4 * STEPS :], chain.record_type(subject.model, vectors))[0]
    states = all(np.array_equal(record[name], values[STEPS]) for name, values in vectors.states.items())
    if not states or not np.array_equal(record["output"], vectors.outputs[STEPS]):
        raise CheckFailed(f"{subject.name} on {target.name}: the counted steps left another state than the reference")
    return sum(run.counts), peak


def _run(target: Target, image: Path, folder: Path, sent: bytes, *, count: bool = False) -> tuple[bytes, emulate.Run]:
    chain.write_harness_input(folder, sent)
    run = emulate.run(target, image, folder, timeout_s=_TIMEOUT_S, count=count)
    if run.exit_code != 0:
        raise CheckFailed(f"the harness ended with exit code {run.exit_code}", str(image), run.log.strip()[-500:])
    return (folder / "harness.out").read_bytes(), run


def _callers_bytes(work: Path) -> int:
    """Frames of those that step_q is called through, as gcc tells them; inlined ones have none."""
    callers = {"board_start", "main", "counted"}
    lines = [line for name in ("board_start.su", "harness.su") for line in (work / name).read_text().splitlines()]
    fields = [line.split("\t") for line in lines]
    return sum(int(size) for place, size, _ in fields if place.rsplit(":", 1)[-1] in callers)
