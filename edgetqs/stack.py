"""Worst-case stack of a program, along its call graph.

gcc says what each function that it compiled takes on the stack (its ``.ci``
files, ``-fcallgraph-info=su``). Functions that come from libgcc are measured in
the linked image instead: every push and every subtraction from the stack pointer
in their disassembly is added up, whether or not one path executes them all, so
the figure is a bound. For Arm images the calls too are taken from the
disassembly, since that is what will run. Interrupts are not included.
"""

from __future__ import annotations

import bisect
import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from edgetqs.elf import Symbol, is_thumb, symbols
from edgetqs.errors import CheckFailed


@dataclass(frozen=True, slots=True)
class StackBound:
    bytes: int
    path: tuple[str, ...]  # the deepest chain of calls, the root first
    unknown: tuple[str, ...]  # what the bound does not cover: empty where it holds


@dataclass(slots=True)
class _Function:
    name: str
    bytes: int | None = None  # None: not known to gcc
    calls: set[str] = field(default_factory=set)
    unknown: set[str] = field(default_factory=set)


def stack_bound(build_dir: Path, elf: Path, root: str, objdump: str) -> StackBound:
    """The most stack that ``root`` and all it calls can take.

    ``build_dir`` holds gcc's ``.ci`` files. Raises CheckFailed on recursion and
    where ``root`` is not in the image.
    """
    graph = _read_call_graphs(sorted(build_dir.glob("*.ci")))
    if is_thumb(elf):
        command = [objdump, "--disassemble", "--no-show-raw-insn", str(elf)]
        listing = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        graph = _read_image(graph, [entry for entry in symbols(elf) if entry.is_function], listing)
    if root not in graph:
        raise CheckFailed(f"the image has no function {root!r}", str(elf))
    return _deepest(graph, root)


def _read_call_graphs(paths: list[Path]) -> dict[str, _Function]:
    """gcc's own account: functions by the name in the image, static ones merged by name."""
    graph: dict[str, _Function] = {}
    for path in paths:
        text = path.read_text(encoding="utf-8")
        for title, label in re.findall(r'node: \{ title: "([^"]*)" label: "([^"]*)"', text):
            function = graph.setdefault(_bare(title), _Function(_bare(title)))
            size = re.search(r"(\d+) bytes \(([\w,]+)\)", label)
            if size:
                function.bytes = max(function.bytes or 0, int(size[1]))
                if size[2] == "dynamic":
                    function.unknown.add(f"{function.name}: array of variable length")
        for caller, callee in re.findall(r'edge: \{ sourcename: "([^"]*)" targetname: "([^"]*)"', text):
            if callee == "__indirect_call":
                graph[_bare(caller)].unknown.add(f"{_bare(caller)}: call through a pointer")
            else:
                graph[_bare(caller)].calls.add(_bare(callee))
    graph.pop("__indirect_call", None)
    return graph


def _bare(title: str) -> str:
    return title.rsplit(":", 1)[-1]  # static functions are called FILE:NAME


def _read_image(known: dict[str, _Function], functions: list[Symbol], listing: str) -> dict[str, _Function]:
    """All functions of a Thumb image: calls from its disassembly, sizes from gcc where it knows them."""
    names: dict[int, str] = {}
    for symbol in functions:  # of several names for one address take the one that gcc knows
        if symbol.address not in names or symbol.name in known:
            names[symbol.address] = symbol.name
    starts = sorted(names)
    bodies: dict[int, list[tuple[str, str]]] = {start: [] for start in starts}
    for address, mnemonic, operands in _instructions(listing):
        index = bisect.bisect_right(starts, address) - 1
        if index >= 0:
            bodies[starts[index]].append((mnemonic, operands))
    graph = {}
    for index, start in enumerate(starts):
        name, body = names[start], bodies[start]
        function = graph[name] = _Function(name, calls=set(_callees(body, starts, start, names)))
        source = known.get(name)
        if source is not None and source.bytes is not None:
            function.bytes, function.unknown = source.bytes, source.unknown
            continue
        function.bytes = sum(_pushed_bytes(mnemonic, operands) for mnemonic, operands in body)
        if any(_is_indirect(mnemonic, operands) for mnemonic, operands in body):
            function.unknown.add(f"{name}: call through a pointer")
        if any(re.fullmatch(r"sp, (?:sp, )?[a-z]\w+", operands) for _, operands in body):
            function.unknown.add(f"{name}: frame of unknown size")
        if index + 1 < len(starts) and not _ends(body):
            function.calls.add(names[starts[index + 1]])  # libgcc lets one function run into the next
    return graph


def _instructions(listing: str) -> Iterator[tuple[int, str, str]]:
    """Address, mnemonic without its width, operands without comment; data and padding left out."""
    for match in re.finditer(r"^ *([0-9a-f]+):\t(\S+)(?:\t([^@;\n]*))?", listing, re.MULTILINE):
        mnemonic = re.sub(r"\.[nw]$", "", match[2])
        if not mnemonic.startswith(".") and mnemonic != "nop":
            yield int(match[1], 16), mnemonic, (match[3] or "").strip()


_CONDITION = "(?:eq|ne|cs|cc|mi|pl|vs|vc|hi|ls|ge|lt|gt|le)?"
_CALL = re.compile(f"blx?{_CONDITION}")
_JUMP = re.compile(f"b{_CONDITION}|cbn?z")


def _callees(body: list[tuple[str, str]], starts: list[int], start: int, names: dict[int, str]) -> Iterator[str]:
    """Functions that are called or jumped to.

    A jump within the function is none, nor is a call into its middle: libgcc has
    subroutines there, whose pushes count as the function's own.
    """
    for mnemonic, operands in body:
        to = re.search(r"\b([0-9a-f]+) <", operands)
        call = _CALL.fullmatch(mnemonic)
        if to and (call or _JUMP.fullmatch(mnemonic)):
            address = int(to[1], 16)
            callee = starts[bisect.bisect_right(starts, address) - 1]
            if callee != start or (call and address == start):
                yield names[callee]


def _is_indirect(mnemonic: str, operands: str) -> bool:
    return (mnemonic == "blx" and "<" not in operands) or (mnemonic.startswith("bx") and operands != "lr")


def _ends(body: list[tuple[str, str]]) -> bool:
    """Whether nothing after the last instruction is reached."""
    if not body:
        return False
    mnemonic, operands = body[-1]
    return mnemonic in ("b", "bx", "bl", "udf") or bool(re.search(r"\bpc\b", operands))


def _pushed_bytes(mnemonic: str, operands: str) -> int:
    """By how much one instruction moves the stack pointer down."""
    if mnemonic in ("push", "vpush") or (mnemonic.startswith(("stmdb", "vstmdb")) and operands.startswith("sp!")):
        return _register_bytes(operands[operands.index("{") + 1 : operands.index("}")])
    found = re.search(r"\[sp, #-(\d+)\]!", operands)  # str, strd
    if found is None and mnemonic in ("sub", "subw"):
        found = re.fullmatch(r"sp, (?:sp, )?#(\d+)", operands)
    return int(found[1]) if found else 0


def _register_bytes(registers: str) -> int:
    """Size of a list such as ``r4, r5, lr`` or ``d8-d11``."""
    total = 0
    for item in registers.split(","):
        first, _, last = item.strip().partition("-")
        count = int(last[1:]) - int(first[1:]) + 1 if last else 1
        total += count * (8 if first.startswith("d") else 4)
    return total


def _deepest(graph: dict[str, _Function], root: str) -> StackBound:
    """Depth first, each function once. Raises CheckFailed where a function reaches itself."""
    done: dict[str, StackBound] = {}

    def visit(name: str, chain: tuple[str, ...]) -> StackBound:
        if name in chain:
            cycle = " -> ".join((*chain[chain.index(name) :], name))
            raise CheckFailed(f"recursion: {cycle}", todo="Its stack has no bound; turn it into a loop.")
        if name not in done:
            function = graph[name]
            below = [visit(callee, (*chain, name)) for callee in sorted(function.calls)]
            deepest = max(below, key=lambda bound: bound.bytes, default=StackBound(0, (), ()))
            unknown = function.unknown.union(*(bound.unknown for bound in below))
            if function.bytes is None:
                unknown.add(f"{name}: its code is not among the files that gcc compiled")
            done[name] = StackBound(
                (function.bytes or 0) + deepest.bytes, (name, *deepest.path), tuple(sorted(unknown))
            )
        return done[name]

    return visit(root, ())
