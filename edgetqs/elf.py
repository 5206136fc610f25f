"""What a linked image takes: sections, symbols, flash and RAM."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgetqs.errors import BadInput, CheckFailed


@dataclass(frozen=True, slots=True)
class Section:
    """A section that is there when the image runs; .data is in flash and in RAM."""

    name: str
    address: int
    bytes: int
    in_flash: bool
    in_ram: bool
    executable: bool


@dataclass(frozen=True, slots=True)
class Symbol:
    name: str
    address: int  # without the bit that says Thumb
    bytes: int
    is_function: bool


def sections(elf: Path) -> list[Section]:
    """The sections with a place in flash or RAM, by address; empty ones left out."""
    from elftools.elf.constants import SH_FLAGS

    found = []
    with elf.open("rb") as stream:
        for section in _open(stream, elf).iter_sections():
            flags = section["sh_flags"]
            if not flags & SH_FLAGS.SHF_ALLOC or section["sh_size"] == 0:
                continue
            found.append(
                Section(
                    section.name,
                    section["sh_addr"],
                    section["sh_size"],
                    in_flash=section["sh_type"] != "SHT_NOBITS",
                    in_ram=bool(flags & SH_FLAGS.SHF_WRITE),
                    executable=bool(flags & SH_FLAGS.SHF_EXECINSTR),
                )
            )
    return sorted(found, key=lambda section: section.address)


def flash_bytes(elf: Path) -> int:
    """Bytes that are programmed: code, constants and the initial values of .data."""
    return sum(section.bytes for section in sections(elf) if section.in_flash)


def ram_bytes(elf: Path) -> int:
    """Bytes of .data and .bss; the stack is not among them."""
    return sum(section.bytes for section in sections(elf) if section.in_ram)


def code_bytes(elf: Path) -> int:
    """Bytes of executable sections: instructions, their literals and the vector table."""
    return sum(section.bytes for section in sections(elf) if section.executable)


def section_place(elf: Path, name: str) -> int | None:
    """Where in the file the section's bytes start; None if it is not there."""
    with elf.open("rb") as stream:
        section = _open(stream, elf).get_section_by_name(name)
        return None if section is None else int(section["sh_offset"])


def flash_pieces(elf: Path) -> list[bytes]:
    """What a bare image puts into flash from its first byte on, gaps as they are loaded: code and
    constants, then the initial values of ``.data``."""
    with elf.open("rb") as stream:
        image = _open(stream, elf)
        constants = [image.get_section_by_name(name) for name in (".text", ".rodata")]
        start = constants[0]["sh_addr"]
        end = max(section["sh_addr"] + section["sh_size"] for section in constants if section is not None)
        for segment in image.iter_segments("PT_LOAD"):
            if segment["p_paddr"] <= start and end <= segment["p_paddr"] + segment["p_filesz"]:
                code = segment.data()[start - segment["p_paddr"] : end - segment["p_paddr"]]
                break
        else:
            raise CheckFailed("code and constants are not one piece of flash", str(elf))
        data = image.get_section_by_name(".data")
        return [code, data.data() if data is not None and data["sh_type"] != "SHT_NOBITS" else b""]


def load_pieces(elf: Path) -> list[tuple[int, bytes]]:
    """(address, bytes) of all that is programmed into a bare image's flash, by address."""
    with elf.open("rb") as stream:
        segments = _open(stream, elf).iter_segments("PT_LOAD")
        return sorted((segment["p_paddr"], segment.data()) for segment in segments if segment["p_filesz"])


def is_thumb(elf: Path) -> bool:
    """Whether it is a Cortex-M image, or another that starts in Thumb code."""
    with elf.open("rb") as stream:
        image = _open(stream, elf)
        return image["e_machine"] == "EM_ARM" and bool(image["e_entry"] & 1)


def symbols(elf: Path) -> list[Symbol]:
    """All functions and objects, by address. Names of static ones may repeat."""
    found = []
    with elf.open("rb") as stream:
        image = _open(stream, elf)
        thumb_bit = 1 if image["e_machine"] == "EM_ARM" else 0
        table = image.get_section_by_name(".symtab")
        for entry in table.iter_symbols() if table is not None else ():
            kind = entry["st_info"]["type"]
            if kind not in ("STT_FUNC", "STT_OBJECT") or entry["st_shndx"] == "SHN_UNDEF":
                continue
            is_function = kind == "STT_FUNC"
            address = entry["st_value"] & ~thumb_bit if is_function else entry["st_value"]
            found.append(Symbol(entry.name, address, entry["st_size"], is_function))
    return sorted(found, key=lambda symbol: (symbol.address, symbol.name))


def symbol(elf: Path, name: str) -> Symbol:
    """The one symbol called ``name``. Raises CheckFailed if there is none, or several."""
    found = [entry for entry in symbols(elf) if entry.name == name]
    if len(found) != 1:
        raise CheckFailed(f"there are {len(found)} symbols called {name!r}, not one", str(elf))
    return found[0]


def symbols_bytes(elf: Path, names: Iterable[str]) -> int:
    """Total size of the objects or functions called so; every name must be there."""
    wanted = set(names)
    found = [entry for entry in symbols(elf) if entry.name in wanted]
    missing = sorted(wanted - {entry.name for entry in found})
    if missing:
        raise CheckFailed(f"the image holds no {', '.join(missing)}", str(elf))
    return sum(entry.bytes for entry in found)


def _open(stream: Any, path: Path) -> Any:
    from elftools.common.exceptions import ELFError
    from elftools.elf.elffile import ELFFile

    try:
        return ELFFile(stream)
    except ELFError as error:
        raise BadInput(f"not an ELF file: {error}", str(path)) from error
