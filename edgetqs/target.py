"""A device: what its compiler, its memories and its emulator are.

One TOML file a device, in ``targets/``. Everything in it is checked when it is
read, and all mistakes are reported together.
"""

from __future__ import annotations

import difflib
import re
import tomllib
import types
import typing
from collections.abc import Iterator
from dataclasses import MISSING, dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal

from edgetqs.errors import BadInput
from edgetqs.paths import data_dir

#: Cores for which the runtime leaves the cells to the assembly of one layout, by gcc's -mcpu.
_CELLS_IN_ASSEMBLY = {
    **dict.fromkeys(("cortex-m0", "cortex-m0plus", "cortex-m1"), "thumb1"),
    **dict.fromkeys(("cortex-m52", "cortex-m55", "cortex-m85"), "mve"),
}

#: Ways of getting a program onto a device; flash.py has one function each.
METHODS = ("pyocd", "openocd", "gdb", "uf2", "ssh")


@dataclass(frozen=True, slots=True)
class Cpu:
    core: str
    compiler: str  # prefix of gcc: "arm-none-eabi-", or "" for the computer's own
    flags: tuple[str, ...]  # for compiling and for linking
    kernels: Literal["portable", "thumb1", "thumb2", "dsp", "mve", "simd", "neon"]  # see layout.py
    clock_hz: int = 0  # what the core runs at on the board; 0: as uart.clock_hz


@dataclass(frozen=True, slots=True)
class Memory:
    """Flash and RAM. 0 bytes means no limit, which only "linux" and "host" may have."""

    flash_origin: int = 0
    flash_bytes: int = 0
    flash_reserve_bytes: int = 0  # part of flash_bytes that a plan never spends
    boot_bytes: int = 0  # first bytes of flash, for the second stage of the boot loader
    ram_origin: int = 0
    ram_bytes: int = 0
    ram_reserve_bytes: int = 0  # part of ram_bytes that a build never spends
    stack_bytes: int = 0  # part of ram_bytes that the linker script sets aside


@dataclass(frozen=True, slots=True)
class Uart:
    driver: Literal["cmsdk", "stm32", "stm32l4", "nrf51", "rp2040"]  # see runtime/board_uart.c
    base: int
    clock_hz: int
    tx: str = ""  # the pin as the manual writes it; see pin_number
    rx: str = ""
    function: int = 0  # what connects the pins to the UART, where that is a choice


@dataclass(frozen=True, slots=True)
class Watchdog:
    driver: Literal["cmsdk", "stm32", "stm32l4", "nrf51"]  # see runtime/board_watchdog.c
    base: int
    clock_hz: int


@dataclass(frozen=True, slots=True)
class Chip:
    """What start-up does for it before main, and the word of its memory that tells what it is."""

    start: Literal["", "stm32l4", "nrf5", "rp2040"] = ""  # see runtime/board_chip.c
    id_address: int = 0  # 0: nothing tells
    id_mask: int = 0
    id_value: int = 0


@dataclass(frozen=True, slots=True)
class Flash:
    """How a program gets onto it. ``methods``: the first is what `edgetqs flash` does unless told otherwise."""

    methods: tuple[str, ...]  # see flash.py
    pyocd: str = ""  # the part's name there
    openocd: tuple[str, ...] = ()  # configuration files, in order
    uf2_family: int = 0  # what the mass-storage boot loader takes
    uf2_board: str = ""  # what it calls itself: Board-ID in INFO_UF2.TXT
    machines: tuple[str, ...] = ()  # what `uname -m` says on it


@dataclass(frozen=True, slots=True)
class Qemu:
    program: str
    machine: str = ""  # of a system emulator
    systick_hz: int = 0  # of a system emulator: what the core's timer runs at there
    cpu: str = ""  # of a user-space emulator


@dataclass(frozen=True, slots=True)
class Target:
    name: str
    title: str
    kind: Literal["bare", "linux", "host"]  # no system, another computer's Linux, this computer
    sources: tuple[str, ...]  # data sheets and manuals that the figures come from
    cpu: Cpu
    qemu: Qemu | None = None  # None: nothing emulates it
    stand_in: str = ""  # without QEMU: the target with the same core on which its code is proven
    hardware: str = ""  # of a real board: whether it was seen to work
    chip: Chip = Chip()
    flash: Flash | None = None
    uart: Uart | None = None
    watchdog: Watchdog | None = None
    memory: Memory = Memory()
    note: str = ""

    @property
    def clock_hz(self) -> int:
        """What the core runs at on the board; 0 where nothing says."""
        return self.cpu.clock_hz or (self.uart.clock_hz if self.uart is not None else 0)

    @property
    def flash_budget_bytes(self) -> int:
        """Flash that a build may fill; 0 means no limit."""
        return self.memory.flash_bytes - self.memory.flash_reserve_bytes

    @property
    def ram_budget_bytes(self) -> int:
        """RAM that a build may fill with .data and .bss, the stack not included; 0 means no limit."""
        return self.memory.ram_bytes - self.memory.ram_reserve_bytes - self.memory.stack_bytes


def list_targets() -> list[Target]:
    """All devices that come with edgetqs, by name."""
    return [_read(path) for path in _files()]


def load_target(name_or_path: str | Path) -> Target:
    """The device called so, or described by the ``.toml`` file at that path."""
    text = str(name_or_path)
    if text.endswith(".toml"):
        return _read(Path(text))
    paths = {path.stem: path for path in _files()}
    if text in paths:
        return _read(paths[text])
    close = difflib.get_close_matches(text.lower().replace("_", "-"), paths, n=1)
    hint = f"Did you mean {close[0]}? " if close else ""
    raise BadInput(
        f"there is no target {text!r}",
        todo=f"{hint}Known targets: {', '.join(paths)}. A path to a .toml file works too.",
    )


def emulated_as(target: Target) -> Target | None:
    """The target whose emulator runs this one's code: itself, the one that stands in, or none."""
    if target.qemu is not None:
        return target
    return load_target(target.stand_in) if target.stand_in else None


def pin_number(name: str) -> int | None:
    """ "PA9" -> 9, "PG7" -> 103 (16 a port), "P1.02" -> 34 (32 a port), "GPIO12" -> 12; None for no pin."""
    for pattern, size in ((r"P([A-K])(\d{1,2})", 16), (r"P([01])\.(\d{1,2})", 32), (r"(GPIO)(\d{1,2})", 32)):
        found = re.fullmatch(pattern, name)
        if found and int(found[2]) < size:
            port = ord(found[1]) - ord("A") if size == 16 else int(found[1] == "1")
            return port * size + int(found[2])
    return None


def _files() -> list[Path]:
    return sorted(data_dir("targets").glob("*.toml"))


def _read(path: Path) -> Target:
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise BadInput(f"cannot read the target: {error.strerror}", str(path)) from error
    except (ValueError, RecursionError) as error:
        raise BadInput(f"not valid TOML: {error}", str(path)) from error
    problems: list[str] = []
    target = _build(Target, table, "", problems)
    if not problems:
        problems += _contradictions(target, path)
    if problems:
        raise BadInput(
            f"the target has {len(problems)} mistake{'s' * (len(problems) > 1)}",
            str(path),
            "\n  ".join(f"{path}: {problem}" for problem in problems),
        )
    return target


def _build(kind: type, table: dict[str, Any], prefix: str, problems: list[str]) -> Any:
    """``table`` as a dataclass, or None where one of its values is wrong."""
    types_of = typing.get_type_hints(kind)
    before = len(problems)
    problems += [f"{prefix}{key}: unknown key" for key in table if key not in types_of]
    values = {}
    for field in fields(kind):
        if field.name in table:
            values[field.name] = _value(types_of[field.name], table[field.name], prefix + field.name, problems)
        elif field.default is MISSING:
            problems.append(f"{prefix}{field.name}: missing")
    return kind(**values) if len(problems) == before else None


def _value(wanted: Any, given: Any, key: str, problems: list[str]) -> Any:
    if isinstance(wanted, types.UnionType):  # "Uart | None": None is said by leaving it out
        wanted = typing.get_args(wanted)[0]
    if is_dataclass(wanted):
        if isinstance(given, dict):
            return _build(typing.cast(type, wanted), given, f"{key}.", problems)
        problems.append(f"{key}: must be a table")
    elif typing.get_origin(wanted) is Literal:
        choices = typing.get_args(wanted)
        if given in choices:
            return given
        problems.append(f"{key}: must be one of {', '.join(choices)}, not {given!r}")
    elif typing.get_origin(wanted) is tuple:
        if isinstance(given, list) and all(isinstance(item, str) for item in given):
            return tuple(given)
        problems.append(f"{key}: must be a list of strings, not {given!r}")
    elif wanted is int:
        if isinstance(given, int) and not isinstance(given, bool) and 0 <= given < 2**32:
            return given
        problems.append(f"{key}: must be a whole number from 0 to 2^32 - 1, not {given!r}")
    elif isinstance(given, str):
        return given.strip()
    else:
        problems.append(f"{key}: must be a string, not {given!r}")
    return None


def _contradictions(target: Target, path: Path) -> Iterator[str]:
    memory = target.memory
    if target.name != path.stem:
        yield f"name: must be the file's own name, {path.stem!r}, not {target.name!r}"
    if not target.sources:
        yield "sources: name the data sheet that the figures come from"
    own = _CELLS_IN_ASSEMBLY.get(next((f[6:] for f in target.cpu.flags if f.startswith("-mcpu=")), ""))
    if own and target.cpu.kernels != own:
        yield f"cpu.kernels: must be {own!r} for {target.cpu.core}, whose cells are in that layout's assembly"
    if target.qemu is None and target.stand_in:
        yield from _wrong_stand_in(target)
    if target.flash is not None:
        for method in target.flash.methods:
            if method not in METHODS:
                yield f"flash.methods: must be of {', '.join(METHODS)}, not {method!r}"
    if target.kind != "bare":
        if target.qemu is None:
            yield "qemu: missing, and needed where kind is not 'bare'"
        return
    for name in ("flash_bytes", "ram_bytes", "stack_bytes"):
        if getattr(memory, name) == 0:
            yield f"memory.{name}: must not be 0 where kind is 'bare'"
    for name in ("flash_origin", "boot_bytes", "ram_origin", "ram_bytes", "stack_bytes"):
        if getattr(memory, name) % 8:
            yield f"memory.{name}: must be a multiple of 8, as the stack is aligned"
    if memory.flash_reserve_bytes >= memory.flash_bytes:
        yield "memory.flash_reserve_bytes: leaves nothing of flash_bytes"
    if memory.ram_reserve_bytes + memory.stack_bytes >= memory.ram_bytes:
        yield "memory.stack_bytes: together with ram_reserve_bytes it leaves nothing of ram_bytes"
    for name in ("machine", "systick_hz"):
        if target.qemu is not None and not getattr(target.qemu, name):
            yield f"qemu.{name}: missing, and needed where kind is 'bare'"
    if target.uart is None:
        yield "uart: missing, and needed where kind is 'bare'"
        return
    for name in ("tx", "rx"):
        if target.uart.driver != "cmsdk" and pin_number(getattr(target.uart, name)) is None:
            yield f"uart.{name}: name the pin, as in 'PA9', 'P0.06' or 'GPIO0'"


def _wrong_stand_in(target: Target) -> Iterator[str]:
    try:
        other = load_target(target.stand_in)
    except BadInput:
        yield f"stand_in: there is no target {target.stand_in!r}"
        return
    if other.qemu is None:
        yield f"stand_in: nothing emulates {other.name}"
    if (other.cpu.flags, other.cpu.kernels) != (target.cpu.flags, target.cpu.kernels):
        yield f"stand_in: {other.name} is compiled with other flags or kernels, so it proves nothing"
