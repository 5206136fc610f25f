"""The link's frames: what Python encodes, the firmware's C decodes, and the other way round."""

import re
import shutil
import subprocess

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgetqs import protocol
from edgetqs.paths import data_dir
from edgetqs.protocol import Code, Frame, Kind, Reader, cobs, crc16, encode, parse, uncobs

# Reads frames, sends each back with the kind's top bit set; of others it sends what they were.
ECHO = """
#include "board.h"
#include "edgetqs_link.h"
#include <stdio.h>
static uint8_t payload[700];
void board_putc(char c)
{
    (void)putchar(c);
}
int main(void)
{
    link_reader reader;
    int byte;
    link_reader_init(&reader, payload, sizeof payload - 2u);
    while ((byte = getchar()) != EOF) {
        const link_event event = link_take(&reader, (uint8_t)byte);
        if (event == LINK_FRAME) {
            payload[0] |= LINK_REPLY;
            link_send(payload, reader.count);
        } else if (event != LINK_MORE) {
            uint8_t said[16] = {event == LINK_TOO_LONG ? 2 : 1, 0, 0, 0, 0};
            link_send(said, 5);
        }
    }
    return 0;
}
"""


@pytest.fixture(scope="module")
def echo(tmp_path_factory):
    """The C framing under sanitizers: bytes in, bytes out."""
    if shutil.which("gcc") is None:
        pytest.skip("gcc is not installed")
    folder = tmp_path_factory.mktemp("echo")
    (folder / "echo.c").write_text(ECHO)
    runtime = data_dir("runtime")
    flags = "-std=c99 -O2 -Wall -Wextra -Wconversion -Wshadow -Werror -fsanitize=address,undefined".split()
    command = ["gcc", *flags, "-fno-sanitize-recover=all", f"-I{runtime}", str(runtime / "edgetqs_link.c"), "echo.c"]
    subprocess.run([*command, "-o", "echo"], cwd=folder, check=True)

    def run(data: bytes) -> bytes:
        return subprocess.run([folder / "echo"], input=data, capture_output=True, check=True, timeout=60).stdout

    return run


@given(st.binary(max_size=1200))
def test_cobs_takes_the_zeros_out_and_gives_them_back(data):
    assert 0 not in cobs(data)
    assert uncobs(cobs(data)) == data


@pytest.mark.parametrize(
    "data, coded",
    [
        (b"", "01"),
        (b"\0", "01 01"),
        (b"\0\0", "01 01 01"),
        (b"\x11\x22\0\x33", "03 11 22 02 33"),
        (b"\x11\0\0\0", "02 11 01 01 01"),
        (bytes(range(1, 255)), "ff" + bytes(range(1, 255)).hex()),
        (bytes(range(255)), "01 ff" + bytes(range(1, 255)).hex()),
        (bytes(range(1, 256)), "ff" + bytes(range(1, 255)).hex() + "02 ff"),
        ([*range(2, 256), 0], "ff" + bytes(range(2, 256)).hex() + "01 01"),
    ],
)
def test_cobs_of_the_published_examples(data, coded):
    assert cobs(bytes(data)) == bytes.fromhex(coded)


def test_crc_of_the_check_string():
    assert crc16(b"123456789") == 0x29B1


frames = st.builds(Frame, st.integers(1, 0x7F), st.integers(0, 0xFFFF), st.integers(0, 0xFFFF), st.binary(max_size=600))


@given(st.lists(frames, min_size=1, max_size=4), st.lists(st.integers(1, 40), min_size=1))
@settings(max_examples=50)
def test_a_reader_finds_frames_in_pieces_of_any_size(sent, sizes):
    data, reader, found, place, turn = b"".join(map(encode, sent)), Reader(), [], 0, 0
    while place < len(data):
        size = sizes[turn % len(sizes)]
        found += reader.feed(data[place : place + size])
        place, turn = place + size, turn + 1
    assert found == sent and reader.damaged == 0


@given(frames, st.data())
def test_a_frame_with_one_changed_byte_is_none(frame, data):
    coded = bytearray(encode(frame)[1:-1])
    place = data.draw(st.integers(0, len(coded) - 1))
    coded[place] ^= data.draw(st.integers(1, 255).filter(lambda bits: coded[place] != bits))  # a zero would end it
    assert parse(bytes(coded)) is None


@given(st.lists(frames, min_size=1, max_size=6))
@settings(max_examples=30, deadline=None)
def test_the_firmware_reads_and_writes_the_same_frames(echo, sent):
    back = Reader().feed(echo(b"".join(map(encode, sent))))
    assert back == [Frame(f.kind | 0x80, f.session, f.number, f.body) for f in sent]


@pytest.mark.parametrize("length", [*range(246, 252), 500, 501, 502, 503, 504])
@pytest.mark.parametrize("byte", [0, 1, 255])
def test_the_firmware_reads_and_writes_blocks_of_254(echo, length, byte):
    frame = Frame(0x7F, 0x0101, 0x0101, bytes([byte] * length))
    assert Reader().feed(echo(encode(frame))) == [Frame(0xFF, 0x0101, 0x0101, frame.body)]


@pytest.mark.parametrize(
    "sent, said",
    [
        (b"\0\0\0", []),
        (b"\0" + cobs(b"\1\2\3\4\5\0\0") + b"\0", [1]),  # the CRC is wrong
        (b"\0" + cobs(b"\1\2") + b"\0", [1]),  # shorter than any frame
        (b"\0\x05\x01\0", [1]),  # a block that is cut short
        (b"\0" + b"\x01" * 800 + b"\0", [2]),
        (encode(Frame(1, 1, 1, bytes(700))), [2]),
        (encode(Frame(1, 1, 1, bytes(690))), [0x81]),  # just not too long
        (encode(Frame(1, 1, 1))[:-4] + encode(Frame(2, 1, 1)), [1, 0x82]),  # half a frame, then a whole one
        (b"garbage" + encode(Frame(3, 1, 1)), [1, 0x83]),
    ],
)
def test_the_firmware_says_what_was_no_frame(echo, sent, said):
    assert [frame.kind for frame in Reader().feed(echo(sent))] == said


@given(st.lists(st.one_of(st.binary(max_size=60), frames.map(encode)), max_size=20), st.randoms())
@settings(max_examples=60, deadline=None)
def test_no_bytes_hurt_the_firmwares_reader(echo, pieces, random):
    data = bytearray(b"".join(pieces))
    for _ in range(len(data) // 50):
        data[random.randrange(len(data))] ^= 1 << random.randrange(8)
    reader = Reader()
    found = reader.feed(echo(bytes(data)))  # the sanitizers end the program where it errs
    assert reader.damaged == 0
    assert len(found) <= bytes(data).count(0)


def test_names_and_numbers_are_those_of_the_header():
    text = (data_dir("runtime") / "edgetqs_link.h").read_text()
    defined = {name: int(value, 0) for name, value in re.findall(r"#define LINK_(\w+) (\w+?)u\b", text)}
    expected = {member.name: member.value for member in (*Kind, *Code)}
    others = {"VERSION": protocol.VERSION, "HEAD": 5, "CRC": 2, "ERROR_BODY": 6, "REPLY": 0x80}
    assert defined == {**expected, **others}
