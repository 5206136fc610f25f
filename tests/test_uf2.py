"""UF2 files, read back by a reader of the test's own."""

import struct

from edgetqs.uf2 import to_uf2

FAMILY = 0xE48BFF56


def blocks(data: bytes) -> list[tuple[int, bytes]]:
    """(address, payload) of each block, its frame checked against the format."""
    assert len(data) % 512 == 0
    found = []
    for number in range(len(data) // 512):
        block = data[512 * number :][:512]
        first, second, flags, address, size, index, count, family = struct.unpack_from("<8I", block)
        assert block[:4] == b"UF2\n"
        assert (first, second, struct.unpack("<I", block[508:])[0]) == (0x0A324655, 0x9E5D5157, 0x0AB16F30)
        assert (flags, size, index, count, family) == (0x2000, 256, number, len(data) // 512, FAMILY)
        assert block[32 + 256 : 508] == bytes(220)
        found.append((address, block[32 : 32 + 256]))
    return found


def test_blocks_carry_the_pieces():
    first, second = bytes(range(256)) + b"ab", b"tail"
    found = dict(blocks(to_uf2([(0x1000_0000, first), (0x1000_0210, second)], FAMILY)))
    assert list(found) == [0x1000_0000, 0x1000_0100, 0x1000_0200]
    assert found[0x1000_0000] == first[:256]
    assert found[0x1000_0100] == b"ab" + b"\xff" * 254
    assert found[0x1000_0200] == b"\xff" * 16 + b"tail" + b"\xff" * 236


def test_sectors_are_whole_up_to_the_last_page():
    """The boot ROM of RP2040 takes 16 blocks for one sector, whatever their addresses are (errata RP2040-E14)."""
    pieces = [(0x1000_0100, b"one"), (0x1000_2300, b"two"), (0x1000_5200, b"three")]
    found = blocks(to_uf2(pieces, FAMILY))
    for number, (address, _) in enumerate(found):
        assert address % 4096 == number % 16 * 256
        assert address // 4096 == found[number - number % 16][0] // 4096
    assert {address // 4096 for address, _ in found} == {0x1_0000, 0x1_0002, 0x1_0005}
    assert found[-1] == (0x1000_5200, b"three".ljust(256, b"\xff"))
    written = {address for address, _ in pieces}
    assert {payload for address, payload in found if address not in written} == {b"\xff" * 256}


def test_pieces_that_share_a_page_share_a_block():
    found = blocks(to_uf2([(0x1000_0000, b"left"), (0x1000_0080, b"right")], FAMILY))
    assert found == [(0x1000_0000, (b"left".ljust(128, b"\xff") + b"right").ljust(256, b"\xff"))]


def test_nothing_is_no_file():
    assert to_uf2([], FAMILY) == b""
