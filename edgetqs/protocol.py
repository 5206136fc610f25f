"""The link's frames: what ``runtime/edgetqs_link.h`` and ``runtime/serve.c`` speak. docs/protocol.md tells it in full.

On the wire a frame is 0x00, COBS(payload, CRC-16 of it), 0x00; a payload is
kind, session, sequence number and body, all little-endian. Nothing here waits
or touches a device.
"""

from __future__ import annotations

import binascii
import struct
from dataclasses import dataclass
from enum import IntEnum

#: LINK_VERSION of edgetqs_link.h.
VERSION = 1

_HEAD = struct.Struct("<BHH")
_CRC = struct.Struct("<H")
_REPLY = 0x80
_BLOCK = 254  # bytes of a full COBS block
#: Longest frame that a reader keeps: a body is at most 64 KB.
_LONGEST = 1 << 17


class Kind(IntEnum):
    """Requests; a reply has the same number with the top bit set."""

    HELLO = 1
    RESET = 2
    STEP = 3
    STEP_FLOAT = 4
    ADVANCE = 5
    FORECAST = 6
    GET_STATE = 7
    SET_STATE = 8
    STATS = 9
    CHECK = 10
    RESTART = 11
    ERROR = 0xFF


class Code(IntEnum):
    """What an ERROR frame says."""

    BAD_FRAME = 1
    OVERSIZED = 2
    UNKNOWN_KIND = 3
    BAD_LENGTH = 4
    NO_SESSION = 5
    STALE = 6
    BAD_INPUT = 7
    NOT_READY = 8
    OUT_OF_RANGE = 9
    IMAGE_DAMAGED = 10
    STACK_OVERFLOW = 11
    RESTARTED = 12
    BAD_VERSION = 13


#: Causes of a start (BOARD_POWER_UP ... of board.h), by number.
CAUSES = ("power-up", "requested", "fault", "watchdog", "unexpected")
#: What the ticks of STATS are (BOARD_CLOCK_... of board.h), by number.
CLOCKS = ("none", "SysTick", "DWT cycles", "ns")


@dataclass(frozen=True, slots=True)
class Frame:
    """One payload, taken apart."""

    kind: int
    session: int
    number: int
    body: bytes = b""

    def answers(self, request: Frame) -> bool:
        """Whether this is the reply to ``request``, or an error about it."""
        same = (self.session, self.number) == (request.session, request.number)
        return same and self.kind in (request.kind | _REPLY, Kind.ERROR)


@dataclass(frozen=True, slots=True)
class Fault:
    """The body of an ERROR frame. ``code`` and ``kind`` stay plain numbers where this version knows no name."""

    code: int
    kind: int
    detail: int

    @classmethod
    def parse(cls, body: bytes) -> Fault:
        return cls(*struct.unpack("<BBI", body))

    @property
    def name(self) -> str:
        return Code(self.code).name if self.code in Code.__members__.values() else f"error {self.code}"


@dataclass(frozen=True, slots=True)
class Hello:
    """What the firmware says of itself."""

    version: int
    closed_loop: bool
    image_intact: bool
    stack_intact: bool
    clock: str  # what STATS counts; see CLOCKS
    cause: str  # why it started; see CAUSES
    inputs: int
    outputs: int
    known: int
    horizon: int
    max_body: int  # bytes
    state_bytes: int
    clock_hz: int  # what the UART's rate is divided from; 0: not known
    tool: str
    model_hash: str
    plan_hash: str
    target: str
    name: str

    @classmethod
    def parse(cls, body: bytes) -> Hello:
        head = struct.Struct("<4B5H2I")
        version, flags, clock, cause, *counts = head.unpack_from(body)
        texts = body[head.size :].decode("ascii", "replace").split("\0")[:5]
        return cls(
            version,
            bool(flags & 1),
            not flags & 2,
            not flags & 4,
            _named(CLOCKS, clock),
            _named(CAUSES, cause),
            *counts,
            *texts,
        )


@dataclass(frozen=True, slots=True)
class Stats:
    """Counters of the firmware; ticks are in the unit of ``Hello.clock``, those of steps since the last RESET."""

    steps: int
    clipped: int
    ticks: int  # of the last step
    least_ticks: int  # 2^32 - 1 before the first step
    most_ticks: int
    stack_peak_bytes: int
    stack_bytes: int  # set aside; 0: no limit
    bad_frames: int
    repeated: int  # requests that were answered again without being carried out again
    cause: str
    exception: int  # of the fault that restarted the firmware, with the place and CFSR
    pc: int
    lr: int
    cfsr: int

    @classmethod
    def parse(cls, body: bytes) -> Stats:
        values = list(struct.unpack("<14I", body))
        values[9] = _named(CAUSES, values[9])
        return cls(*values)


def _named(names: tuple[str, ...], number: int) -> str:
    return names[number] if number < len(names) else f"number {number}"


def encode(frame: Frame) -> bytes:
    """The frame as it goes over the wire."""
    payload = _HEAD.pack(frame.kind, frame.session, frame.number) + frame.body
    return b"\0" + cobs(payload + _CRC.pack(crc16(payload))) + b"\0"


def crc16(data: bytes) -> int:
    """CRC-16/CCITT-FALSE."""
    return binascii.crc_hqx(data, 0xFFFF)


def cobs(data: bytes) -> bytes:
    """``data`` without zeros: consistent overhead byte stuffing (Cheshire and Baker, 1999)."""
    out = bytearray()
    parts = data.split(b"\0")
    for index, part in enumerate(parts):
        while len(part) >= _BLOCK:
            out += b"\xff" + part[:_BLOCK]
            part = part[_BLOCK:]
            if not part and index == len(parts) - 1:
                return bytes(out)
        out += bytes([len(part) + 1]) + part
    return bytes(out)


def uncobs(data: bytes) -> bytes | None:
    """The inverse of ``cobs``, for bytes without zeros; None if they are not such a code."""
    out = bytearray()
    place = 0
    while place < len(data):
        count = data[place]
        block = data[place + 1 : place + count]
        if len(block) != count - 1:
            return None
        out += block
        place += count
        if count <= _BLOCK and place < len(data):
            out.append(0)
    return bytes(out)


class Reader:
    """Takes bytes as they come and gives whole frames."""

    def __init__(self) -> None:
        self._bytes = bytearray()
        self.damaged = 0  # pieces between delimiters that were no frame

    def feed(self, data: bytes) -> list[Frame]:
        *pieces, rest = (bytes(self._bytes) + data).split(b"\0")
        self._bytes = bytearray(rest[-_LONGEST:])
        frames = []
        for piece in filter(None, pieces):
            frame = parse(piece)
            if frame is None:
                self.damaged += 1
            else:
                frames.append(frame)
        return frames


def parse(piece: bytes) -> Frame | None:
    """The frame between two delimiters, or None if it is damaged."""
    payload = uncobs(piece)
    if payload is None or len(payload) < _HEAD.size + _CRC.size:
        return None
    content, crc = payload[: -_CRC.size], payload[-_CRC.size :]
    if _CRC.unpack(crc)[0] != crc16(content):
        return None
    kind, session, number = _HEAD.unpack_from(content)
    return Frame(kind, session, number, content[_HEAD.size :])
