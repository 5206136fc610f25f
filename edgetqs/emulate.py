"""Running an image: in a QEMU machine, in QEMU's user mode, or on this computer.

A run happens in a folder that holds harness.in; the program leaves harness.out
there, and QEMU what came over the UART.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import hashlib
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from edgetqs.elf import symbol
from edgetqs.errors import CheckFailed, ToolMissing
from edgetqs.paths import data_dir
from edgetqs.target import Qemu, Target

#: What a "bare" image exits with after a fault (BOARD_EXIT_FAULT); its UART says more.
FAULT_EXIT_CODE = 99

#: Symbols of the harness's marker functions; see runtime/count.c.
COUNT_MARKERS = ("edgetqs_count_begin", "edgetqs_count_end")

_ICOUNT_SHIFT = 6  # every instruction takes 2^6 ns of the machine's time
_UART_FILE = "uart.log"
_COUNTS_FILE = "counts.txt"
_DEBIAN_PACKAGES = {"qemu-system-arm": "qemu-system-arm"}  # all others: qemu-user


@dataclass(frozen=True, slots=True)
class Run:
    exit_code: int
    uart: str  # what a "bare" image sent
    log: str  # standard output and error; semihosting text too
    counts: tuple[int, ...]  # instructions, one number a pair of markers
    how: str  # "tcg plugin", "icount", "not counted", or "not run: " and the reason


def survives(module: str, *arguments: str, timeout_s: float = 120) -> str:
    """Run ``module.trial(*arguments)`` in a Python of its own; "" if it ends, else what happened to it."""
    code = f"import sys, {module}; {module}.trial(*sys.argv[1:])"
    command = [sys.executable, "-c", code, *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=timeout_s, check=False)
    except subprocess.TimeoutExpired:
        return f"does not end in {timeout_s:g} s"
    if done.returncode < 0:
        return f"is killed by {signal.Signals(-done.returncode).name}"
    return (done.stderr.strip().splitlines() or ["fails"])[-1] if done.returncode else ""


def run(
    target: Target, elf: Path, workdir: Path, *, timeout_s: float = 120, count: bool = False, icount: bool = False
) -> Run:
    """Run ``elf`` with ``workdir`` as its current folder until it exits.

    ``count`` counts instructions between the marker functions, with a QEMU plugin
    that is compiled on first use. Where that cannot be done, a "bare" image still
    runs under ``-icount``, as with ``icount``: the ticks that the image itself reads
    are then proportional to instructions; see ``instructions_of_ticks``.

    Raises ToolMissing where QEMU is not installed, CheckFailed where the program
    does not end in ``timeout_s`` seconds or is killed: a lock-up, a crash.
    """
    elf = elf.resolve()
    plugin, obstacle = _plugin_arguments(target, elf) if count else ([], "")
    if plugin:
        done = _execute(_command(target, elf, plugin, icount), elf, workdir, timeout_s)
        if (workdir / _COUNTS_FILE).exists():  # the plugin makes it when it is loaded
            return Run(*done, _counts(workdir), "tcg plugin")
        obstacle = f"QEMU does not load the plugin: {done[2].strip().partition(chr(10))[0]}"
    icount = (icount or bool(obstacle)) and target.kind == "bare"
    done = _execute(_command(target, elf, [], icount), elf, workdir, timeout_s)
    if icount:
        return Run(*done, (), "icount")
    return Run(*done, (), f"not run: {obstacle}" if obstacle else "not counted")


def instructions_of_ticks(target: Target, ticks: int) -> int:
    """Instructions that SysTick ticks stand for in a run of ``how`` "icount", give or take two.

    ``ticks`` is a difference of two readings, less than 2^24.
    """
    return round(ticks * 10**9 / (_machine(target).systick_hz << _ICOUNT_SHIFT))


def _execute(command: list[str], elf: Path, workdir: Path, timeout_s: float) -> tuple[int, str, str]:
    """Exit code, UART output and log."""
    uart_file = workdir / _UART_FILE
    for stale in (uart_file, workdir / _COUNTS_FILE):
        stale.unlink(missing_ok=True)
    process = subprocess.Popen(
        command, cwd=workdir, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    with process:
        try:
            output, _ = process.communicate(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            process.kill()
            output, _ = process.communicate()
            code = None
        else:
            code = process.returncode
    log = output.decode(errors="replace")
    uart = uart_file.read_text(encoding="utf-8", errors="replace") if uart_file.exists() else ""
    if code is None:
        raise CheckFailed(f"still running after {timeout_s:g} s", str(elf), _last_words(uart, log))
    if code < 0:
        raise CheckFailed(_death(-code, log), str(elf), _last_words(uart, log))
    return code, uart, log


def _death(number: int, log: str) -> str:
    """What it means that a signal ended the program."""
    lockup = re.search(r"Lockup: (.*)", log)
    if lockup:
        where = re.search(r"R15=([0-9a-f]+)", log)
        return f"the core locked up, a fault inside a fault, at pc 0x{where[1] if where else '?'} ({lockup[1]})"
    return f"killed by {signal.Signals(number).name}"


def _last_words(uart: str, log: str) -> str:
    """The end of what the program said, for a message."""
    said = [(name, text.strip()) for name, text in (("UART", uart), ("log", log)) if text.strip()]
    return "\n  ".join(f"{name}: {'...' * (len(text) > 500)}{text[-500:]}" for name, text in said) or "It said nothing."


def _command(target: Target, elf: Path, plugin: list[str], icount: bool) -> list[str]:
    if target.kind == "host" and not plugin:
        return [str(elf)]
    program = _qemu(target)
    if target.kind != "bare":
        cpu = ["-cpu", _machine(target).cpu] if _machine(target).cpu else []
        return [program, *cpu, *plugin, str(elf)]
    command = [program, "-M", _machine(target).machine, "-display", "none", "-monitor", "none"]
    command += ["-serial", f"file:{_UART_FILE}", "-semihosting-config", "enable=on,target=native"]
    command += ["-icount", f"shift={_ICOUNT_SHIFT}"] if icount else []
    return [*command, *plugin, "-kernel", str(elf)]


def serving_command(target: Target, elf: Path, uart: Path) -> list[str]:
    """What runs a "bare" link.elf; its UART is a socket at the path ``uart``, which the machine waits for at first.

    Its ticks are proportional to instructions; see ``instructions_of_ticks``.
    """
    command = [_qemu(target), "-M", _machine(target).machine, "-display", "none", "-monitor", "none"]
    command += ["-chardev", f"socket,id=uart,path={uart},server=on,wait=on", "-serial", "chardev:uart"]
    return [*command, "-icount", f"shift={_ICOUNT_SHIFT}", "-kernel", str(elf)]


def program_command(target: Target, elf: Path) -> list[str]:
    """What runs a program for Linux, or for this computer."""
    return _command(target, elf, [], False)


def _machine(target: Target) -> Qemu:
    if target.qemu is None:
        other = f": build for {target.stand_in}, which has the same core" if target.stand_in else ""
        raise ToolMissing(f"nothing emulates this device{other}", f"target {target.name}", "or use a board")
    return target.qemu


def _qemu(target: Target) -> str:
    name = _machine(target).program
    program = shutil.which(name)
    if program is None:
        package = _DEBIAN_PACKAGES.get(name, "qemu-user")
        raise ToolMissing(
            f"{name} is not installed", f"target {target.name}", f"On Debian or Ubuntu: apt install {package}"
        )
    return program


def _plugin_arguments(target: Target, elf: Path) -> tuple[list[str], str]:
    """QEMU's arguments for counting, or none and what stands in the way."""
    if target.kind == "host" and platform.machine() not in ("x86_64", "AMD64"):
        return [], f"{_machine(target).program} does not run {platform.machine()} programs"
    try:
        plugin = _build_plugin(_qemu(target))
    except ToolMissing as error:
        return [], error.what
    values = {"out": _COUNTS_FILE}
    for key, name in zip(("begin", "end"), COUNT_MARKERS, strict=True):
        marker = symbol(elf, name)
        values |= {key: hex(marker.address), f"{key}_size": str(marker.bytes)}
    path = str(plugin).replace(",", ",,")  # how QEMU's option parser wants it
    return ["-plugin", ",".join([path, *(f"{key}={value}" for key, value in values.items())])], ""


def _build_plugin(qemu: str) -> Path:
    """The compiled counter for this QEMU; compiled once and kept in the user's cache."""
    source = data_dir("runtime") / "count.c"
    api = 1 if _major_version(qemu) < 9 else 2
    flags = ["-std=c99", "-O2", "-fPIC", "-shared", "-fvisibility=hidden", f"-DEDGETQS_PLUGIN_API={api}"]
    key = hashlib.sha256(source.read_bytes() + " ".join([*flags, platform.machine()]).encode()).hexdigest()
    cache = _cache_dir()
    plugin = cache / f"count-{key[:16]}.so"
    if plugin.exists():
        return plugin
    compiler = shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        raise ToolMissing("no compiler for the instruction counter", todo="On Debian or Ubuntu: apt install gcc")
    with tempfile.TemporaryDirectory(dir=cache) as folder:
        part = Path(folder) / "count.so"
        command = [compiler, *flags, str(source), "-o", str(part)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise ToolMissing(f"the instruction counter does not compile: {done.stderr.strip()}", str(source))
        os.replace(part, plugin)
    return plugin


@functools.cache
def _cache_dir() -> Path:
    """The user's cache folder, or a fresh private one where that cannot be written."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "edgetqs"
    with contextlib.suppress(OSError):
        cache.mkdir(parents=True, exist_ok=True)
    if os.access(cache, os.W_OK):
        return cache
    private = tempfile.mkdtemp(prefix="edgetqs-")
    atexit.register(shutil.rmtree, private, ignore_errors=True)
    return Path(private)


@functools.cache
def _major_version(qemu: str) -> int:
    said = subprocess.run([qemu, "--version"], capture_output=True, text=True, check=False).stdout
    found = re.search(r"version (\d+)\.", said)
    return int(found[1]) if found else 0


def _counts(workdir: Path) -> tuple[int, ...]:
    return tuple(int(line) for line in (workdir / _COUNTS_FILE).read_text().split())
