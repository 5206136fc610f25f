"""A build's folder of sources and the images linked from it.

``src/``            the model, the runtime and the application: all a firmware project needs
``board/``          start-up, UART and linker script of a bare target
``firmware.bin``    what is written to flash; ``firmware.uf2`` too where a boot loader takes it
``firmware.elf``    the application, as it is flashed
``emulated.elf``    the same, ending its emulator with an exit code
``link.elf``        the model behind the link of docs/protocol.md, sealed; ``link.bin`` is what flash gets
``harness.elf``     the model with the test harness
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from edgetqs import firmware
from edgetqs.layout import layout_of
from edgetqs.paths import data_dir
from edgetqs.seal import seal
from edgetqs.target import Target

#: The runtime's files that every generated model needs; its layout names more.
_RUNTIME = ("edgetqs_rt.c", "edgetqs_gates.c")
_HEADERS = ("edgetqs_rt.h", "sigmoid_table.inc", "board.h")
#: What some models need besides: (a call that tells, files).
_AS_CALLED = (
    (r"edgetqs_(slide|frame|gather|pool|join)\(", ("edgetqs_frames.c",)),
    (r"edgetqs_softmax\(", ("edgetqs_softmax.c", "exp_table.inc")),
    (r"edgetqs_layer_normalize\(", ("edgetqs_normalize.c", "rsqrt_table.inc")),
)
_LINK = ("serve.c", "serve_requests.c", "edgetqs_link.c")
#: Room given to images that are only measured, so that linking tells sizes instead of failing.
_AMPLE = 1 << 26
#: The harness may be this much larger than the device's flash; emulated flash is larger still.
_HARNESS_ROOM = 1 << 16


@dataclass(frozen=True, slots=True)
class Sources:
    """The folder of sources and which of them make the model."""

    folder: Path
    model: tuple[Path, ...]


def write_sources(folder: Path, texts: Mapping[str, str], kernels: str) -> Sources:
    """Write the generated texts and copy the runtime beside them."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8")
    called = [name for call, names in _AS_CALLED for name in names if any(re.search(call, t) for t in texts.values())]
    runtime = (*_RUNTIME, *called, layout_of(kernels).cells, *layout_of(kernels).sources)
    for name in (*runtime, *_HEADERS, "app.c", *_LINK, "serve.h", "edgetqs_link.h"):
        shutil.copyfile(data_dir("runtime") / name, folder / name)
    generated = [name for name in texts if name.endswith(".c")]
    compiled = [name for name in runtime if name.endswith((".c", ".S"))]
    return Sources(folder, tuple(folder / name for name in (*generated, *compiled)))


def write_board(target: Target, folder: Path) -> None:
    """Start-up code and linker script for building the application elsewhere; nothing for Linux."""
    if target.kind != "bare":
        return
    folder.mkdir()
    for source in (*firmware.board_sources(target, link=True), data_dir("runtime") / "semihost.h"):
        shutil.copyfile(source, folder / source.name)
    firmware.write_linker_script(target, folder / "link.ld")


def link_application(target: Target, sources: Sources, work: Path, out: Path, *, emulated: bool = False) -> Path:
    """The application's image at ``out``; raises ``CheckFailed`` if it does not fit the device."""
    return _link(target, sources, work, out, sources.folder / "app.c", emulated=emulated)


def link_ample(target: Target, sources: Sources, work: Path, out: Path) -> Path:
    """The application linked for an ample device, to be measured."""
    return _link(_larger(target, flash=_AMPLE, ram=_AMPLE), sources, work, out, sources.folder / "app.c")


def link_serving(
    target: Target,
    sources: Sources,
    work: Path,
    out: Path,
    *,
    hooks: Sequence[Path] = (),
    sanitizers: bool = False,
) -> int:
    """The image that answers over the link, sealed with the CRC-32 that comes back.

    ``hooks`` are sources of the user's own that replace hooks. Raises ``CheckFailed`` if it does not fit the device.
    """
    console = [] if target.kind == "bare" else [data_dir("runtime") / "board_posix.c"]
    clock = {"EDGETQS_CLOCK_HZ": f"{target.clock_hz}u"} if target.clock_hz else {}
    defines = {"EDGETQS_TARGET": f'"{target.name}"', **clock}
    objects = firmware.compile_sources(
        target, [*sources.model, *hooks, *console], work, [sources.folder], sanitizers=sanitizers
    )
    # The link waits for bytes: it is made small, not fast.
    link = [sources.folder / name for name in _LINK]
    objects += firmware.compile_sources(
        target, link, work, [sources.folder], defines, optimise="-Os", sanitizers=sanitizers
    )
    image = _finish(target, objects, work, out, emulated=False, sanitizers=sanitizers, link=True)
    return seal(target, image)


def link_harness(
    target: Target,
    sources: Sources,
    work: Path,
    out: Path,
    *,
    optimise: str = "-O2",
    sanitizers: bool = False,
    trace: bool = False,
) -> Path:
    """The harness's image; ``trace`` makes it write down what every step computes on its way."""
    objects = firmware.compile_sources(
        target,
        [*sources.model, data_dir("runtime") / "harness.c", *firmware.port_sources(target)],
        work,
        [sources.folder],
        {
            **firmware.board_defines(target, emulated=True),
            **({"EDGETQS_TRACE_BUILD": "1"} if trace else {}),
        },
        optimise=optimise,
        sanitizers=sanitizers,
    )
    roomy = _larger(target, flash=target.memory.flash_bytes + _HARNESS_ROOM)
    return _finish(roomy, objects, work, out, emulated=True, sanitizers=sanitizers)


def _link(target: Target, sources: Sources, work: Path, out: Path, main: Path, *, emulated: bool = False) -> Path:
    console = [] if target.kind == "bare" else [data_dir("runtime") / "board_posix.c"]
    objects = firmware.compile_sources(target, [*sources.model, main, *console], work, [sources.folder])
    return _finish(target, objects, work, out, emulated=emulated)


def _finish(
    target: Target,
    objects: list[Path],
    work: Path,
    out: Path,
    *,
    emulated: bool,
    sanitizers: bool = False,
    link: bool = False,
) -> Path:
    """Add the board and link."""
    script = None
    board = firmware.board_sources(target, link=link)
    defines = {**firmware.board_defines(target, emulated=emulated), **({"EDGETQS_LINK": "1"} if link else {})}
    objects = objects + firmware.compile_sources(target, board, work, (), defines, sanitizers=sanitizers)
    if target.kind == "bare":
        script = firmware.write_linker_script(target, work / "link.ld")
    return firmware.link(target, objects, out, script, sanitizers=sanitizers)


def _larger(target: Target, *, flash: int, ram: int | None = None) -> Target:
    memory = replace(target.memory, flash_bytes=flash, ram_bytes=ram or target.memory.ram_bytes)
    return replace(target, memory=memory)
