"""The device under test: requests and replies over a stream that may lose, double, flip or delay bytes.

Every request is sent until its own reply comes. The firmware carries out each
sequence number once and keeps its last reply, so nothing is stepped twice.
"""

from __future__ import annotations

import contextlib
import secrets
import struct
import time
from pathlib import Path

import numpy as np

from edgetqs.errors import BadInput, CheckFailed, ToolMissing
from edgetqs.fixedpoint import Integers
from edgetqs.protocol import VERSION, Code, Fault, Frame, Hello, Kind, Reader, Stats, encode
from edgetqs.target import Target
from edgetqs.transport import Transport, connect

#: Seconds that a request is repeated for before the device counts as silent.
PATIENCE_S = 20.0
#: Seconds for CHECK, which reads all of the flash.
CHECK_S = 60.0
#: Bounds of the time after which a request is sent again.
_SHORTEST_S, _LONGEST_S = 0.03, 0.5
#: After a frame that either side could not read, the request is sent again, but no sooner than this.
_AGAIN_S = 0.02
_SILENT = "is the build's link image on it, and the rate 115200?"


class DeviceError(CheckFailed):
    """The firmware answered with an ERROR frame."""

    def __init__(self, fault: Fault, request: str) -> None:
        super().__init__(f"the firmware answers {fault.name} (detail {fault.detail:#x})", request, _hint(fault.code))
        self.fault = fault
        self.code = fault.code


class DeviceRestarted(CheckFailed):
    """The firmware has started anew, or another program has taken it over: its stream is not the one it was."""


class DeviceSilent(ToolMissing):
    """Nothing that could be understood came back."""


class Dut:
    """A device that answers over the link. Values are int16 numbers unless a name says otherwise."""

    def __init__(self, transport: Transport, *, patience_s: float = PATIENCE_S) -> None:
        self.transport = transport
        self.patience_s = patience_s
        self.repeats = 0  # frames that were sent again
        self.notices: list[Fault] = []  # ERROR frames that answered no request
        self._reader = Reader()
        self._session = self._number = 0
        self._wait_s = 0.5
        self.hello = self.greet()

    # --- requests

    def greet(self) -> Hello:
        """Begin a session; what the firmware says of itself."""
        self._session = secrets.randbelow(0xFFFF) + 1
        self._number = secrets.randbelow(0x10000)
        self.hello = Hello.parse(self.request(Kind.HELLO, bytes([VERSION])))
        return self.hello

    def reset(self) -> None:
        self.request(Kind.RESET)

    def step(self, x: Integers) -> Integers:
        """(inputs,) -> (outputs,)."""
        return _integers(self.request(Kind.STEP, _int16(x)))

    def step_float(self, x: np.ndarray) -> np.ndarray:
        """(inputs,) physical -> (outputs,) physical, float32; the firmware converts."""
        return np.frombuffer(self.request(Kind.STEP_FLOAT, np.asarray(x, "<f4").tobytes()), "<f4")

    def advance(self, known: Integers) -> Integers:
        """A closed-loop step of the stream itself: (known,) -> (outputs,)."""
        return _integers(self.request(Kind.ADVANCE, _int16(known)))

    def forecast(self, horizon: int, future: Integers) -> Integers:
        """(horizon, outputs) from the stream as it is. ``future``: (horizon, known), the last row is not read."""
        outputs, known = self.hello.outputs, self.hello.known
        room = min((self.hello.max_body - 2) // max(2 * known, 1), self.hello.max_body // (2 * outputs) - 1, 255)
        future = np.asarray(future, np.int64).reshape(-1, known)[: horizon - 1] if known else np.zeros((0, 0), np.int64)
        if known and len(future) < horizon - 1:
            raise BadInput(f"{len(future)} rows of known inputs for {horizon} steps", "forecast")
        rows: list[Integers] = []
        while len(rows) < horizon:
            first = not rows
            count = min(room, horizon - len(rows) - first)
            chunk = future[max(len(rows) - 1, 0) :][:count]
            body = bytes([first, count]) + _int16(chunk)
            rows += list(_integers(self.request(Kind.FORECAST, body)).reshape(-1, outputs))
        return np.array(rows)

    def state(self) -> bytes:
        """All that the stream remembers."""
        size, saved = self.hello.state_bytes, b""
        while len(saved) < size:
            count = min(size - len(saved), self.hello.max_body)
            saved += self.request(Kind.GET_STATE, struct.pack("<HH", len(saved), count))
        return saved

    def restore(self, saved: bytes) -> None:
        if len(saved) != self.hello.state_bytes:
            raise BadInput(f"{len(saved)} bytes are not a state of {self.hello.state_bytes}", "restore")
        room = self.hello.max_body - 2
        for offset in range(0, len(saved), room):
            self.request(Kind.SET_STATE, struct.pack("<H", offset) + saved[offset : offset + room])

    def stats(self) -> Stats:
        return Stats.parse(self.request(Kind.STATS))

    def check(self) -> int:
        """The CRC-32 of the image in flash; raises ``DeviceError`` where flash holds another."""
        return struct.unpack("<II", self.request(Kind.CHECK, patience_s=CHECK_S))[1]

    def restart(self) -> Hello:
        """Restart the firmware, as its reset pin would, and greet it."""
        with contextlib.suppress(DeviceRestarted):  # its reply was lost, and the next start does not know the session
            self.request(Kind.RESTART)
        return self._greet_again()

    def power_cycle(self) -> Hello:
        """Take the power away where the transport can, else restart; greet the firmware."""
        if not self.transport.can_power_cycle:
            return self.restart()
        self.transport.power_cycle()
        return self._greet_again()

    def close(self) -> None:
        self.transport.close()

    def __enter__(self) -> Dut:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # --- the link

    def _greet_again(self) -> Hello:
        self._reader = Reader()
        return self.greet()

    def request(self, kind: int, body: bytes = b"", *, patience_s: float | None = None) -> bytes:
        """Send until the reply comes; its body. Raises ``DeviceError``, ``DeviceRestarted`` or ``DeviceSilent``."""
        if kind != Kind.HELLO and len(body) > self.hello.max_body:
            raise BadInput(f"{len(body)} bytes are more than the firmware takes", _name(kind))
        self._number = (self._number + 1) % 0x10000
        frame = Frame(kind, self._session, self._number, body)
        data = encode(frame)
        until = time.monotonic() + (patience_s or self.patience_s)
        wait_s = self._wait_s
        while True:
            sent = time.monotonic()
            try:
                self.transport.write(data)
                reply = self._reply(frame, min(sent + wait_s, until))
            except ConnectionError as error:
                self._connect_again(error, _name(kind), until)
                reply = None
            if reply is not None:
                break
            if time.monotonic() >= until:
                raise DeviceSilent(f"the device does not answer{self._said()}", _name(kind), _SILENT)
            self.repeats += 1
            wait_s = min(2 * wait_s, _LONGEST_S)
        taken = time.monotonic() - sent
        self._wait_s = min(max(3 * taken, 0.5 * self._wait_s, _SHORTEST_S), _LONGEST_S)
        return self._content(frame, reply)

    def _reply(self, request: Frame, until: float) -> Frame | None:
        """The reply to ``request``, or None when it is time to send it again."""
        while True:
            now = time.monotonic()
            if now >= until:
                return None
            damaged = self._reader.damaged
            frames = self._reader.feed(self.transport.read(until - now))
            for frame in frames:
                self._notice(frame)
            for frame in frames:
                if frame.answers(request):
                    return frame
            unread = any(_code(frame) in (Code.BAD_FRAME, Code.OVERSIZED) for frame in frames)
            if unread or self._reader.damaged > damaged:  # perhaps the request, perhaps the reply
                until = min(until, now + _AGAIN_S)

    def _connect_again(self, cut: ConnectionError, request: str, until: float) -> None:
        """A plug that was pulled is put in again, or a server started."""
        self._reader = Reader()
        while True:
            try:
                return self.transport.reconnect()
            except (ToolMissing, ConnectionError, BadInput) as error:
                if isinstance(error, BadInput) or time.monotonic() >= until:
                    todo = "its program has ended" if isinstance(error, BadInput) else str(error).splitlines()[0]
                    raise DeviceSilent(f"the connection is cut: {cut}{self._said()}", request, todo) from cut
            time.sleep(_AGAIN_S)

    def _said(self) -> str:
        if not self.notices:
            return ""
        last = self.notices[-1]
        return f"; the last that it said of itself, of {len(self.notices)} times, is {last.name} (detail {last.detail})"

    def _notice(self, frame: Frame) -> None:
        """Keep what the firmware says of itself unasked."""
        if _code(frame) not in (None, Code.BAD_FRAME, Code.OVERSIZED):
            self.notices.append(Fault.parse(frame.body))

    def _content(self, request: Frame, reply: Frame) -> bytes:
        if reply.kind != Kind.ERROR:
            return reply.body
        fault = Fault.parse(reply.body)
        where = _name(request.kind)
        if fault.code in (Code.NO_SESSION, Code.STALE):
            raise DeviceRestarted(
                "the firmware does not know this session: it has started anew, or another program talks to it",
                where,
                "begin again: greet it, then reset or restore its stream",
            )
        raise DeviceError(fault, where)


def _name(kind: int) -> str:
    return Kind(kind).name if kind in Kind.__members__.values() else f"kind {kind}"


def _code(frame: Frame) -> int | None:
    """The code of an ERROR that answers no request."""
    return frame.body[0] if (frame.kind, frame.session, len(frame.body)) == (Kind.ERROR, 0, 6) else None


def _hint(code: int) -> str:
    hints = {
        Code.IMAGE_DAMAGED: "flash holds other bytes than were linked: flash it again",
        Code.STACK_OVERFLOW: "the stack has reached its limit: set aside more with stack_bytes in the target's file",
        Code.BAD_VERSION: "the firmware speaks another version of the protocol: build and flash it with this edgetqs",
        Code.BAD_INPUT: "a value is not a finite number: the firmware leaves such samples out",
        Code.NOT_READY: "step the stream before its closed loop",
    }
    return hints.get(code, "")  # type: ignore[call-overload]


def _int16(values: Integers) -> bytes:
    array = np.asarray(values)
    if ((array < -32768) | (array > 32767)).any():
        raise BadInput("a value does not fit an int16", "request")
    return array.astype("<i2").tobytes()


def _integers(body: bytes) -> Integers:
    return np.frombuffer(body, "<i2").astype(np.int64)


def open_dut(spec: str, target: Target, image: Path, *, patience_s: float = PATIENCE_S) -> Dut:
    """Connect to the device that ``spec`` names and greet it."""
    transport = connect(spec, target, image)
    try:
        return Dut(transport, patience_s=patience_s)
    except BaseException:
        transport.close()
        raise
