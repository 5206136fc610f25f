"""The CRC of RP2040's second boot stage, without which its boot ROM does not start an image.

RP2040 data sheet, 2.8.1.3.1 Checksum: CRC-32 of the stage's first 252 bytes,
polynomial 0x04C11DB7, from 0xFFFFFFFF on, neither reflected nor inverted; the
last four of the 256 bytes hold it, low byte first.
"""

from __future__ import annotations

import struct
from pathlib import Path

from edgetqs.elf import section_place
from edgetqs.errors import CheckFailed

STAGE_BYTES = 256
_POLYNOMIAL = 0x04C11DB7


def crc(data: bytes) -> int:
    """CRC-32 of ``data`` as the boot ROM computes it."""
    value = 0xFFFFFFFF
    for byte in data:
        value ^= byte << 24
        for _ in range(8):
            value = (value << 1) ^ (_POLYNOMIAL if value & 0x8000_0000 else 0)
            value &= 0xFFFFFFFF
    return value


def sign(image: Path) -> None:
    """Write the CRC into the section ``.boot2`` of a linked image, in place."""
    place = section_place(image, ".boot2")
    if place is None:
        raise CheckFailed("the image has no second boot stage", str(image))
    content = bytearray(image.read_bytes())
    end = place + STAGE_BYTES - 4
    struct.pack_into("<I", content, end, crc(bytes(content[place:end])))
    image.write_bytes(content)
