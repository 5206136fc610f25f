"""The CRC-32 that a serving image carries of itself, so that damaged flash is noticed where it is.

Bare images keep it in the section ``.seal``, which ``runtime/board_link.c``
compares with what flash holds: code and constants, then the initial values of
``.data``. Linux programs end with a mark and the CRC of all bytes before it
(``runtime/board_link_posix.c``).
"""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

from edgetqs.elf import flash_pieces, section_place
from edgetqs.errors import CheckFailed
from edgetqs.target import Target

_MARK = b"edgetqs-crc:"
#: UNSEALED of board_link.c.
_UNSEALED = 0x0DD5EA10


def seal(target: Target, image: Path) -> int:
    """Write the CRC into a linked image, in place; returns it."""
    content = bytearray(image.read_bytes())
    if target.kind != "bare":
        crc = zlib.crc32(content)
        image.write_bytes(content + _MARK + struct.pack("<I", crc))
        return crc
    place = section_place(image, ".seal")
    if place is None or struct.unpack_from("<I", content, place)[0] != _UNSEALED:
        raise CheckFailed("the image has no place for its CRC, or one already", str(image))
    crc = 0
    for piece in flash_pieces(image):
        crc = zlib.crc32(piece, crc)
    struct.pack_into("<I", content, place, crc)
    image.write_bytes(content)
    return crc
