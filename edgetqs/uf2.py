"""UF2: the file that a mass-storage boot loader writes to flash.

Blocks of 512 bytes, each with 256 bytes of payload and the address they belong
to (Microsoft, UF2 file format).

RP2040 data sheet, 2.8.4.2 UF2 Format Details and errata RP2040-E14: its boot ROM
erases a sector with every 16th block, by number, not by address. A sector that
lacks a block shifts all that follow, so only the last one may end early.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

_MAGIC_START = (0x0A324655, 0x9E5D5157)
_MAGIC_END = 0x0AB16F30
_FAMILY_PRESENT = 0x2000
PAYLOAD_BYTES = 256
BLOCK_BYTES = 512
SECTOR_BYTES = 4096


def to_uf2(pieces: Sequence[tuple[int, bytes]], family: int) -> bytes:
    """The file for ``pieces`` of flash, (address, bytes) each.

    Payloads lie on multiples of 256, as the RP2040's boot ROM wants them, and
    fill their sectors up to the last payload; what no piece covers is 0xFF, as
    in erased flash.
    """
    pages: dict[int, bytearray] = {}
    for address, data in pieces:
        for offset, byte in enumerate(data):
            place = address + offset
            page = pages.setdefault(place - place % PAYLOAD_BYTES, bytearray(b"\xff" * PAYLOAD_BYTES))
            page[place % PAYLOAD_BYTES] = byte
    last = max(pages, default=0)
    for sector in {address - address % SECTOR_BYTES for address in pages}:
        for address in range(sector, min(sector + SECTOR_BYTES, last), PAYLOAD_BYTES):
            pages.setdefault(address, bytearray(b"\xff" * PAYLOAD_BYTES))
    blocks = []
    for number, (address, page) in enumerate(sorted(pages.items())):
        head = struct.pack("<8I", *_MAGIC_START, _FAMILY_PRESENT, address, PAYLOAD_BYTES, number, len(pages), family)
        blocks.append(head + bytes(page).ljust(BLOCK_BYTES - len(head) - 4, b"\0") + struct.pack("<I", _MAGIC_END))
    return b"".join(blocks)
