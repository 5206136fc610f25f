"""Compiling and linking: what gcc is called with, for every kind of target.

The same input gives the same bytes: no path, clock or random seed reaches an
object file.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from edgetqs import boot2
from edgetqs.elf import load_pieces
from edgetqs.errors import BadInput, CheckFailed, ToolMissing
from edgetqs.paths import data_dir
from edgetqs.target import Target, pin_number
from edgetqs.uf2 import to_uf2

#: gcc 10 is the first that writes the call graph with stack use.
OLDEST_GCC = 10

_DEBIAN_PACKAGES = {
    "": "gcc",
    "arm-none-eabi-": "gcc-arm-none-eabi",
    "aarch64-linux-gnu-": "gcc-aarch64-linux-gnu",
    "arm-linux-gnueabi-": "gcc-arm-linux-gnueabi",
}

_WARNINGS = ("-Wall", "-Wextra", "-Wconversion", "-Wshadow", "-Werror")


@dataclass(frozen=True, slots=True)
class Toolchain:
    gcc: str  # full path
    objdump: str
    objcopy: str
    version: str  # of gcc: "12.2.1"


def toolchain(target: Target) -> Toolchain:
    """The compiler of ``target``. Raises ToolMissing if it is not there or too old."""
    prefix = target.cpu.compiler
    package = _DEBIAN_PACKAGES.get(prefix, f"gcc for {prefix.rstrip('-')}")
    found = {tool: shutil.which(prefix + tool) for tool in ("gcc", "objdump", "objcopy")}
    for tool, path in found.items():
        if path is None:
            todo = f"On Debian or Ubuntu: apt install {package}"
            raise ToolMissing(f"{prefix}{tool} is not installed", f"target {target.name}", todo)
    gcc = str(found["gcc"])
    said = subprocess.run([gcc, "-dumpfullversion"], capture_output=True, text=True, check=False)
    version = said.stdout.strip()  # nothing where another compiler goes by the name of gcc
    if said.returncode != 0 or int(version.partition(".")[0] or 0) < OLDEST_GCC:
        raise ToolMissing(
            f"gcc {version or 'of unknown version'} cannot be used", gcc, f"gcc {OLDEST_GCC} is the oldest."
        )
    return Toolchain(gcc, str(found["objdump"]), str(found["objcopy"]), version)


def board_sources(target: Target, *, link: bool = False) -> list[Path]:
    """The start-up code that every image of a "bare" target needs; with ``link`` what serving takes besides."""
    bare = target.kind == "bare"
    names = ["board_start.c", "board_uart.c", "board_mem.c"] if bare else []
    names += ["board_chip.c"] if target.chip.start else []
    names += ["board_boot2.S"] if target.memory.boot_bytes else []
    if link:
        names += ["board_link.c", "board_watchdog.c"] if bare else ["board_link_posix.c"]
    return [data_dir("runtime") / name for name in names]


def port_sources(target: Target) -> list[Path]:
    """The test harness's port: files for its vectors, exit code, stack and time."""
    return [data_dir("runtime") / ("port_semihost.c" if target.kind == "bare" else "port_posix.c")]


def board_defines(target: Target, *, emulated: bool) -> dict[str, str]:
    """Macros that the board sources are compiled with.

    ``emulated`` lets the image end the emulator with an exit code; on a board
    without a debugger such an image would stop in a fault.
    """
    defines = {"EDGETQS_SEMIHOST": "1"} if emulated and target.kind == "bare" else {}
    if target.uart is not None:
        defines[f"EDGETQS_UART_{target.uart.driver.upper()}"] = "1"
        defines["EDGETQS_UART_BASE"] = f"{target.uart.base:#x}u"
        defines["EDGETQS_UART_CLOCK_HZ"] = f"{target.uart.clock_hz}u"
        for name in ("tx", "rx"):
            pin = pin_number(getattr(target.uart, name))
            defines |= {f"EDGETQS_UART_{name.upper()}": f"{pin}u"} if pin is not None else {}
        defines["EDGETQS_UART_FUNCTION"] = f"{target.uart.function}u"
    if target.chip.start:
        defines[f"EDGETQS_CHIP_{target.chip.start.upper()}"] = "1"
        defines["EDGETQS_CHIP"] = "1"
    if target.watchdog is not None:
        defines[f"EDGETQS_WATCHDOG_{target.watchdog.driver.upper()}"] = "1"
        defines["EDGETQS_WATCHDOG_BASE"] = f"{target.watchdog.base:#x}u"
        defines["EDGETQS_WATCHDOG_CLOCK_HZ"] = f"{target.watchdog.clock_hz}u"
    return defines


def write_linker_script(target: Target, path: Path) -> Path:
    """Render the linker script of a "bare" target to ``path``."""
    import jinja2

    memory = target.memory
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, keep_trailing_newline=True, trim_blocks=True)
    template = environment.from_string((data_dir("templates") / "link.ld.j2").read_text(encoding="utf-8"))
    stack_origin = memory.ram_origin + memory.ram_bytes - memory.stack_bytes
    text = template.render(
        name=target.name,
        boot_origin=f"{memory.flash_origin:#010x}",
        boot_bytes=memory.boot_bytes,
        flash_origin=f"{memory.flash_origin + memory.boot_bytes:#010x}",
        flash_bytes=memory.flash_bytes - memory.boot_bytes,
        ram_origin=f"{memory.ram_origin:#010x}",
        data_bytes=memory.ram_bytes - memory.stack_bytes,
        stack_origin=f"{stack_origin:#010x}",
        stack_bytes=memory.stack_bytes,
    )
    path.write_text(text, encoding="utf-8")
    return path


def compile_sources(
    target: Target,
    sources: Sequence[Path],
    build_dir: Path,
    includes: Iterable[Path] = (),
    defines: Mapping[str, str] | None = None,
    *,
    optimise: str = "-O2",
    sanitizers: bool = False,
    extra: Iterable[str] = (),
) -> list[Path]:
    """Compile each C source to ``build_dir/NAME.o``, with NAME.su and NAME.ci beside it.

    The runtime folder is always searched for headers. ``sanitizers`` is for the
    host: any undefined behaviour or bad access ends the program. Returns the
    objects in the order of the sources; raises CheckFailed with gcc's words.
    """
    names = [source.stem for source in sources]
    twice = {name for name in names if names.count(name) > 1}
    if twice:
        raise BadInput(f"two sources are called {sorted(twice)[0]}.c", str(build_dir), "Rename one of them.")
    gcc = toolchain(target).gcc
    build_dir.mkdir(parents=True, exist_ok=True)
    flags = ["-std=c99", *target.cpu.flags, optimise, *_WARNINGS, "-ffp-contract=off"]
    flags += ["-ffunction-sections", "-fdata-sections", "-fstack-usage", "-fcallgraph-info=su"]
    flags += ["-ffreestanding"] if target.kind == "bare" else []
    flags += _sanitizer_flags(target, sanitizers)
    flags += [f"-D{name}={value}" for name, value in (defines or {}).items()]
    # Headers of quoted includes only: a model named like a system header must not stand in for it.
    flags += [f"-iquote{folder}" for folder in (*includes, data_dir("runtime"))]
    objects = []
    for source in sources:
        output = build_dir / f"{source.stem}.o"
        hide_path = f"-ffile-prefix-map={source.parent}/="
        _run([gcc, *flags, *extra, hide_path, "-c", str(source), "-o", str(output)], f"compiling {source.name}")
        objects.append(output)
    return objects


def link(
    target: Target,
    objects: Sequence[Path],
    out_elf: Path,
    linker_script: Path | None = None,
    *,
    sanitizers: bool = False,
    extra: Iterable[str] = (),
) -> Path:
    """Link ``objects`` into ``out_elf``, unused functions and data left out.

    ``linker_script`` is required for "bare" targets and must be None for others.
    Raises CheckFailed if the image does not fit into flash or RAM.
    """
    if (target.kind == "bare") != (linker_script is not None):
        raise ValueError("a linker script is for bare targets, and only for them")
    flags = [*target.cpu.flags, "-Wl,--gc-sections", "-Wl,--build-id=none"]
    if linker_script is not None:
        flags += ["-nostdlib", "-nostartfiles", "-T", str(linker_script)]
    elif target.kind == "linux":
        flags += ["-static"]
    elif sys.platform == "linux" and not sanitizers:
        flags += ["-static", "-no-pie"]  # addresses that the instruction counter can rely on
    flags += _sanitizer_flags(target, sanitizers)
    part = out_elf.with_name(out_elf.name + ".part")
    command = [toolchain(target).gcc, *flags, *map(str, objects), *extra, "-lgcc", "-o", str(part)]
    try:
        _run(command, f"linking {out_elf.name}")
    except CheckFailed as error:
        over = re.findall(r"region `(\w+)' overflowed by (\d+) bytes", error.todo)
        if not over:
            raise
        raise CheckFailed(
            "the firmware does not fit: " + ", ".join(f"{count} bytes too many in {region}" for region, count in over),
            f"target {target.name}",
            "Take a smaller budget, a smaller model or a larger device.",
        ) from error
    if target.memory.boot_bytes:
        boot2.sign(part)
    os.replace(part, out_elf)
    return out_elf


def write_binary(target: Target, elf: Path, out: Path) -> Path:
    """What a programmer writes to flash from its first byte on, from a linked image."""
    _run([toolchain(target).objcopy, "-O", "binary", str(elf), str(out)], f"converting {elf.name}")
    return out


def write_programmable(target: Target, elf: Path) -> None:
    """Beside a bare target's linked image: its ``.bin``, and its ``.uf2`` where a boot loader takes one."""
    write_binary(target, elf, elf.with_suffix(".bin"))
    if target.flash is not None and target.flash.uf2_family:
        elf.with_suffix(".uf2").write_bytes(to_uf2(load_pieces(elf), target.flash.uf2_family))


def _sanitizer_flags(target: Target, wanted: bool) -> list[str]:
    if not wanted:
        return []
    if target.kind != "host":
        raise ValueError("sanitizers run on the host only")
    return ["-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer"]


def _run(command: list[str], what: str) -> str:
    environment = {**os.environ, "LC_ALL": "C"}  # messages that can be searched
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode != 0:
        raise CheckFailed(f"{what} failed", command[0], done.stderr.strip())
    return done.stdout
