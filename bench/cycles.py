"""make bench-cycles: where the instructions of an inference go, and an ESTIMATE of the cycles they take.

A QEMU plugin (mix.c) tells how often each instruction ran between the marks,
which branches were taken and what was read from flash. Cycles are those of
TIMINGS times these counts; no pipeline is simulated and no board was timed.
Cores whose manuals give no timing (M7, M33, M55) get no estimate.
``--wait-states`` is what flash adds to each taken branch and each data read from
flash; an accelerator or a cache hides part of it.
"""

from __future__ import annotations

import argparse
import bisect
import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import kernel_models
import kernels
from footprint import build_harness, counted_steps
from rich.console import Console

from edgetqs import chain, elf, firmware
from edgetqs.emulate import COUNT_MARKERS
from edgetqs.errors import CheckFailed
from edgetqs.show import table
from edgetqs.target import Target, load_target


@dataclass(frozen=True, slots=True)
class Place:
    """One instruction and what it did in STEPS steps."""

    function: str
    mnemonic: str
    operands: str
    neighbour: str  # class of the instruction before it in memory
    executed: int
    taken: int  # times it did not go on to the next
    flash_reads: int

    @property
    def kind(self) -> str:
        return kind_of(self.mnemonic)


@dataclass(frozen=True, slots=True)
class Timing:
    """Cycles of a core's manual: one for what is not named here."""

    load: int
    store: int
    pipelined: bool  # a load or store right after another takes one
    taken: int  # beside the branch's own cycle
    divide: int
    multiply: Callable[[str], int]


def _m3_multiply(mnemonic: str) -> int:
    """MUL 1, MLA and MLS 2, long products 3 to 7: the middle."""
    if mnemonic.startswith(("smlal", "umlal")):
        return 5
    return 4 if "mull" in mnemonic else 2 if mnemonic.startswith("ml") else 1


#: M3 by DDI 0337, table 3.1. M0+ (with the fast multiplier) and M4 are not yet checked against DDI 0484 and DDI 0439.
#: A taken branch refills the pipeline: 1 to 3 cycles on M3 and M4, of which 2 are taken here; a division 2 to 12, of
#: which 7 are.
TIMINGS = {
    "cortex-m0plus": Timing(2, 2, False, 1, 0, lambda _: 1),
    "cortex-m3": Timing(2, 2, True, 2, 7, _m3_multiply),
    "cortex-m4": Timing(2, 2, True, 2, 7, lambda _: 1),
}


def kind_of(mnemonic: str) -> str:
    """Class of an instruction: load, store, many (of several registers), branch, multiply, divide, vector or other."""
    stem = mnemonic.partition(".")[0]
    if re.match(r"push|pop|ldm|stm|ldrd|strd", stem):
        return "many"
    if stem.startswith("ldr"):
        return "load"
    if stem.startswith("str"):
        return "store"
    if re.fullmatch(r"b(l|x|lx)?(eq|ne|cs|cc|mi|pl|vs|vc|hi|ls|ge|lt|gt|le)?|cbn?z|tb[bh]|le|[dw]lst?p?|letp", stem):
        return "branch"
    if re.match(r"mul|ml[as]|[su]ml|[su]mul|smm|umaal|smu[as]d", stem):
        return "multiply"
    return "divide" if stem in ("sdiv", "udiv") else "vector" if stem.startswith("v") else "other"


def cycles(places: Sequence[Place], timing: Timing, wait_states: int) -> int:
    """An estimate: see the module."""
    total = 0
    for place in places:
        total += place.executed * _cycles_once(place, timing) + place.taken * timing.taken
        total += wait_states * (place.taken + place.flash_reads)
    return total


def _cycles_once(place: Place, timing: Timing) -> int:
    kind = place.kind
    if kind in ("load", "store"):
        follows = timing.pipelined and place.neighbour in ("load", "store")
        return 1 if follows else timing.load if kind == "load" else timing.store
    if kind == "many":
        return 1 + _registers(place)
    if kind == "multiply":
        return timing.multiply(place.mnemonic)
    return timing.divide if kind == "divide" else 1


def _registers(place: Place) -> int:
    listed = re.search(r"\{(.*)\}", place.operands)
    if listed is None:
        return 2  # ldrd, strd
    count = 0
    for item in listed[1].split(","):
        first, _, last = item.strip().partition("-")
        count += int(last[1:]) - int(first[1:]) + 1 if last else 1
    return count


def profile(target: Target, subject: kernel_models.Subject, optimise: str, expected: int | None) -> list[Place]:
    """Every instruction that ran. Raises CheckFailed if they are not ``expected``, what the other plugin counts."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        image, _ = build_harness(target, subject, optimise, folder)
        chain.write_harness_input(folder, b"R" + counted_steps(subject)[0])
        rows = _run(target, image, folder)
        found = _named(target, image, rows)
    total = sum(place.executed for place in found)
    if expected is not None and total != expected:
        raise CheckFailed(f"{total} instructions on {target.name}, {expected} by the other plugin")
    return found


def _run(target: Target, image: Path, folder: Path) -> dict[int, tuple[int, int, int]]:
    """(executed, taken, flash reads) by address."""
    version = re.search(r"version (\d+)", kernels.emulator())
    api = 1 if version and int(version[1]) < 9 else 2
    source = Path(__file__).with_name("mix.c")
    flags = ["-std=c99", "-O2", "-fPIC", "-shared", "-fvisibility=hidden", f"-DEDGETQS_PLUGIN_API={api}"]
    subprocess.run(["gcc", *flags, str(source), "-o", str(folder / "mix.so")], check=True)
    values = {"flash": target.memory.flash_origin, "flash_size": target.memory.flash_bytes}
    for key, name in zip(("begin", "end"), COUNT_MARKERS, strict=True):
        marker = elf.symbol(image, name)
        values |= {key: marker.address, f"{key}_size": marker.bytes}
    plugin = ",".join(["./mix.so", "out=mix.txt", *(f"{key}={value}" for key, value in values.items())])
    command = [target.qemu.program, "-M", target.qemu.machine, "-display", "none", "-monitor", "none"]
    command += ["-serial", "null", "-semihosting-config", "enable=on,target=native", "-plugin", plugin]
    subprocess.run([*command, "-kernel", str(image)], cwd=folder, check=True, stdin=subprocess.DEVNULL, timeout=300)
    rows = [[int(word) for word in line.split()] for line in (folder / "mix.txt").read_text().splitlines()]
    return {address: (executed, taken, reads) for address, executed, taken, reads in rows}


def _named(target: Target, image: Path, rows: dict[int, tuple[int, int, int]]) -> list[Place]:
    """The rows with function and disassembly."""
    functions = [entry for entry in elf.symbols(image) if entry.is_function]
    starts = [entry.address for entry in functions]
    command = [firmware.toolchain(target).objdump, "-d", "--no-show-raw-insn", "-m", "armv8.1-m.main", str(image)]
    listing = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found, before = [], ""
    for match in re.finditer(r"^ *([0-9a-f]+):\t(\S*)(?:\t([^@;\n]*))?", listing, re.MULTILINE):
        address, mnemonic = int(match[1], 16), re.sub(r"\.[nw]$", "", match[2])
        if address in rows:
            function = functions[bisect.bisect_right(starts, address) - 1].name
            found.append(Place(function, mnemonic, (match[3] or "").strip(), before, *rows.pop(address)))
        before = kind_of(mnemonic)
    if rows:
        raise CheckFailed(f"{len(rows)} executed instructions are not in the disassembly", str(image))
    return found


def show(console: Console, model: str, profiles: dict[str, list[Place]], wait_states: int) -> None:
    """The mix a core and what each function takes."""
    kinds = ("load", "store", "many", "branch", "multiply", "divide", "vector", "other")
    rows = []
    for core, places in profiles.items():
        mix = Counter[str]()
        for place in places:
            mix[place.kind] += place.executed
        total, timing = sum(mix.values()), TIMINGS.get(core)
        taken, reads = sum(place.taken for place in places), sum(place.flash_reads for place in places)
        estimate = str(cycles(places, timing, wait_states)) if timing else "no table"
        rows.append([core, total, *(f"{mix[kind] / total:.1%}" for kind in kinds), taken, reads, estimate])
    columns = ["core", ">instructions", *(f">{kind}" for kind in kinds), ">taken", ">flash reads", ">ESTIMATED cycles"]
    note = f"estimate by cycles an instruction, {wait_states} wait states; no board was timed"
    table(console, f"{model}: {kernel_models.STEPS} steps", columns, rows, note)
    for core, places in profiles.items():
        by_function = Counter[str]()
        for place in places:
            by_function[place.function] += place.executed
        total = by_function.total()
        lines = [[name, count, f"{count / total:.1%}"] for name, count in by_function.most_common()]
        table(console, f"{model} on {core}", ["function", ">instructions", ">share"], lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", help=f"of {', '.join(kernel_models.names())}; lstm32-int8 without")
    parser.add_argument("--cores", nargs="+", default=kernels.CORES, choices=kernels.CORES)
    parser.add_argument("--optimise", default="O2", choices=("O1", "O2", "O3", "Os"))
    parser.add_argument("--wait-states", type=int, default=0)
    options = parser.parse_args()
    for model in options.models or ["lstm32-int8"]:
        level = f"-{options.optimise}"
        expected = {core: kernels.measured((core, model, level)).instructions for core in options.cores}
        subject = kernel_models.by_name(model)
        profiles = {core: profile(load_target(core), subject, level, expected[core]) for core in options.cores}
        show(Console(), model, profiles, options.wait_states)


if __name__ == "__main__":
    main()
