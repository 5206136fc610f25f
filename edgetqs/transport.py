"""Byte streams to a device: QEMU, a serial port, TCP, SSH, a place in a lab. ``TRANSPORTS`` is the table."""

from __future__ import annotations

import atexit
import contextlib
import select
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from edgetqs import emulate, lab, ssh
from edgetqs.errors import BadInput, ToolMissing
from edgetqs.target import Target

#: Seconds for a connection, or an emulator, to come up.
_START_S = 20.0


class Transport(Protocol):
    """A byte stream. ``ConnectionError`` where the other side is gone."""

    can_power_cycle: bool

    def read(self, timeout_s: float) -> bytes:
        """What has come; waits up to ``timeout_s`` for the first byte, then gives b""."""

    def write(self, data: bytes) -> None: ...

    def reconnect(self) -> None:
        """Cut the connection and make it again; the device keeps running."""

    def power_cycle(self) -> None:
        """Take the power away and give it back. Only where ``can_power_cycle``."""

    def close(self) -> None: ...


class _Socket:
    """A connected socket as a byte stream."""

    can_power_cycle = False
    _socket: socket.socket

    def read(self, timeout_s: float) -> bytes:
        ready, _, _ = select.select([self._socket], [], [], max(timeout_s, 0))
        if not ready:
            return b""
        data = self._socket.recv(65536)
        if not data:
            raise ConnectionResetError("the device closed the connection")
        return data

    def write(self, data: bytes) -> None:
        self._socket.sendall(data)

    def power_cycle(self) -> None:
        raise NotImplementedError

    def close(self) -> None:
        self._socket.close()


class Tcp(_Socket):
    """A serial port behind TCP: ser2net, a terminal server, a proxy, QEMU."""

    def __init__(self, host: str, port: int) -> None:
        self._address = (host, port)
        self._connect()

    def _connect(self) -> None:
        try:
            self._socket = socket.create_connection(self._address, timeout=_START_S)
        except OSError as error:
            host, port = self._address
            raise ToolMissing(
                f"cannot connect: {error.strerror or error}", f"tcp:{host}:{port}", "is the device's server running?"
            ) from error
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def read(self, timeout_s: float) -> bytes:
        if hasattr(socket, "TCP_QUICKACK"):
            # A server that sends byte by byte waits for each acknowledgement, which Linux holds back for 40 ms.
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)
        return super().read(timeout_s)

    def reconnect(self) -> None:
        self._socket.close()
        self._connect()


class Qemu(_Socket):
    """The build's link.elf in its emulator; a program for Linux or this computer talks on a socket as standard input
    and output."""

    can_power_cycle = True

    def __init__(self, target: Target, image: Path) -> None:
        self._target, self._image = target, image.resolve()
        self._folder = Path(tempfile.mkdtemp(prefix="edgetqs-qemu-"))
        self._process: subprocess.Popen[bytes] | None = None
        atexit.register(self.close)  # an emulator that is left behind takes a whole core
        try:
            self._start()
        except BaseException:
            self.close()
            raise

    def _start(self) -> None:
        if self._target.kind != "bare":
            self._socket, theirs = socket.socketpair()
            with theirs:
                self._spawn(emulate.program_command(self._target, self._image), stdin=theirs, stdout=theirs)
            return
        path = self._folder / "uart"
        path.unlink(missing_ok=True)
        self._spawn(emulate.serving_command(self._target, self._image, path), stdin=subprocess.DEVNULL)
        self._connect()

    def _spawn(self, command: list[str], **streams: Any) -> None:
        with (self._folder / "log").open("wb") as log:
            self._process = subprocess.Popen(command, stderr=log, **streams)

    def _connect(self) -> None:
        assert self._process is not None
        until = time.monotonic() + _START_S
        while True:
            self._socket = socket.socket(socket.AF_UNIX)
            try:
                self._socket.connect(str(self._folder / "uart"))
                return
            except OSError as error:
                self._socket.close()
                if self._process.poll() is not None or time.monotonic() > until:
                    said = (self._folder / "log").read_text(errors="replace").strip()
                    raise ToolMissing("the emulator does not start", str(self._image), said[-500:]) from error
            time.sleep(0.01)

    def reconnect(self) -> None:
        if self._target.kind != "bare":
            raise BadInput(
                "a program's standard input cannot be connected again",
                self._target.name,
                "use a bare target, or tcp:HOST:PORT",
            )
        self._socket.close()
        self._connect()

    def power_cycle(self) -> None:
        self._stop()
        self._start()

    def _stop(self) -> None:
        if self._process is not None:
            self._socket.close()
            self._process.kill()
            self._process.wait()
            self._process = None

    def close(self) -> None:
        self._stop()
        shutil.rmtree(self._folder, ignore_errors=True)
        atexit.unregister(self.close)


class Ssh(_Socket):
    """The program that `edgetqs flash` left on a Linux device; the connection is its standard input and output."""

    can_power_cycle = True  # it starts anew with every connection

    def __init__(self, host: str, config: Path | None, target: Target) -> None:
        program = ssh.program_of(target.name)
        found = ssh.run(host, config, f"test -x {program} && echo yes || echo no").strip()
        if found != b"yes":
            raise ToolMissing("no program of edgetqs is there", host, "put it there with `edgetqs flash BUILD`")
        self._command = ssh.command(host, config, f"exec {program}")
        self._process: subprocess.Popen[bytes] | None = None
        self._start()

    def _start(self) -> None:
        self._socket, theirs = socket.socketpair()
        with theirs:
            streams: Any = {"stdin": theirs, "stdout": theirs, "stderr": subprocess.DEVNULL}
            self._process = subprocess.Popen(self._command, **streams)

    def reconnect(self) -> None:
        raise BadInput("a program's standard input cannot be connected again", "ssh", "use a bare target, or tcp")

    def power_cycle(self) -> None:
        self.close()
        self._start()

    def close(self) -> None:
        self._socket.close()
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None


class Serial:
    """A serial port of this computer, by pyserial."""

    can_power_cycle = False

    def __init__(self, device: str, baud: int) -> None:
        self._device, self._baud = device, baud
        self._open()

    def _open(self) -> None:
        import serial

        try:
            self._port = serial.Serial(self._device, self._baud, timeout=0, exclusive=True)
        except (serial.SerialException, ValueError) as error:
            raise ToolMissing(f"cannot open the serial port: {error}", self._device, _serial_hint(error)) from error

    def read(self, timeout_s: float) -> bytes:
        import serial

        try:
            self._port.timeout = max(timeout_s, 0)
            first = self._port.read(1)
            return first + self._port.read(self._port.in_waiting) if first else b""
        except (serial.SerialException, OSError) as error:
            raise ConnectionResetError(str(error)) from error

    def write(self, data: bytes) -> None:
        import serial

        try:
            self._port.write(data)
            self._port.flush()
        except (serial.SerialException, OSError) as error:
            raise ConnectionResetError(str(error)) from error

    def reconnect(self) -> None:
        self.close()
        self._open()

    def power_cycle(self) -> None:
        raise NotImplementedError

    def close(self) -> None:
        with contextlib.suppress(Exception):
            self._port.close()


def _serial_hint(error: Exception) -> str:
    text = str(error).lower()
    if "permission" in text:
        return "add yourself to the group that owns it (dialout on Debian), log in again"
    if "busy" in text or "lock" in text:
        return "another program has it open: close that one"
    return "is the board plugged in? `python -m serial.tools.list_ports` lists the ports"


def _qemu(rest: str, target: Target, image: Path) -> Transport:
    if rest:
        raise BadInput("qemu takes no more words", f"qemu:{rest}", "the build knows its machine: --device qemu")
    return Qemu(target, image)


def _serial(rest: str, target: Target, image: Path) -> Transport:
    device, _, baud = rest.rpartition(":")
    if not device:
        device, baud = rest, "115200"
    if not device or not baud.isdecimal():
        raise BadInput("not a serial port", f"serial:{rest}", "write serial:/dev/ttyACM0:115200")
    return Serial(device, int(baud))


def _ssh(rest: str, target: Target, image: Path) -> Transport:
    return Ssh(*ssh.parse(rest), target)


def _tcp(rest: str, target: Target, image: Path) -> Transport:
    host, _, port = rest.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise BadInput("not an address", f"tcp:{rest}", "write tcp:HOST:PORT")
    return Tcp(host.strip("[]"), int(port))


def _labgrid(rest: str, target: Target, image: Path) -> Transport:
    return lab.Lab(*lab.parse(rest))


#: What may stand before the first colon of a device's SPEC. Each row takes the words behind it, the build's target and
#: its link.elf.
TRANSPORTS: dict[str, Callable[[str, Target, Path], Transport]] = {
    "qemu": _qemu,
    "serial": _serial,
    "tcp": _tcp,
    "ssh": _ssh,
    "labgrid": _labgrid,
}


def connect(spec: str, target: Target, image: Path) -> Transport:
    """The stream to the device that ``spec`` names; raises ``ToolMissing`` where it cannot be reached."""
    name, _, rest = spec.partition(":")
    if name not in TRANSPORTS:
        raise BadInput(
            f"unknown device {spec!r}",
            "--device",
            "write qemu, serial:/dev/ttyACM0:115200, tcp:HOST:PORT, ssh:USER@HOST or labgrid:PLACE",
        )
    return TRANSPORTS[name](rest, target, image)
