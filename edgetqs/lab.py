"""A board in a lab of labgrid: ``labgrid:PLACE`` as a device.

labgrid is the engine: it knows places, who has one, serial ports behind a
network, power switches. Here its console and its power switch become a
transport. PLACE is a target of labgrid's environment file (LG_ENV, or after a
"?"), else a place of the coordinator (LG_COORDINATOR) that you have acquired.
"""

from __future__ import annotations

import contextlib
import os
from typing import Any

from edgetqs.errors import BadInput, ToolMissing

_COORDINATOR = "127.0.0.1:20408"


class Lab:
    """The console of one place. It cannot lose a connection, so ``reconnect`` opens the port again where it can."""

    def __init__(self, place: str, environment: str) -> None:
        try:
            import labgrid
        except ImportError as error:
            raise ToolMissing("labgrid is not installed", f"labgrid:{place}", "pip install 'edgetqs[lab]'") from error
        self._place = place
        self._target: Any = None
        try:
            self._target = _target(labgrid, place, environment)
            self._power = self._driver("PowerProtocol")
            if self._power is not None:
                self._power.on()
            self._console = self._driver("ConsoleProtocol")
        except Exception as error:  # labgrid has many kinds, and grpc's besides
            self.close()
            raise _explained(place, error) from error
        if self._console is None:
            self.close()
            raise BadInput("the place has no console", f"labgrid:{place}", "give it a serial port and a SerialDriver")
        self.can_power_cycle = self._power is not None

    def _driver(self, protocol: str) -> Any:
        """The activated driver of a protocol, or None."""
        from labgrid.exceptions import NoDriverFoundError

        with contextlib.suppress(NoDriverFoundError):
            return self._target.get_driver(protocol)
        return None

    def read(self, timeout_s: float) -> bytes:
        import pexpect
        import serial

        found = b""
        try:
            found = self._console.read(size=1, timeout=max(timeout_s, 0.0))
            while True:  # a port behind a network gives a byte at a time
                found += self._console.read(size=1, timeout=0.0)
        except pexpect.TIMEOUT:
            return found
        except (serial.SerialException, OSError) as error:
            raise ConnectionResetError(str(error)) from error

    def write(self, data: bytes) -> None:
        import serial

        try:
            while data:
                data = data[self._console.write(data) :]
        except (serial.SerialException, OSError) as error:
            raise ConnectionResetError(str(error)) from error

    def reconnect(self) -> None:
        if not hasattr(self._console, "open"):
            raise BadInput("its console cannot be opened again", f"labgrid:{self._place}", "use a serial port")
        self._console.close()
        try:
            self._console.open()
        except Exception as error:
            raise _explained(self._place, error) from error

    def power_cycle(self) -> None:
        self._power.cycle()

    def close(self) -> None:
        if self._target is not None:
            with contextlib.suppress(Exception):
                self._target.cleanup()
            self._target = None


def parse(rest: str) -> tuple[str, str]:
    """PLACE, and after "?" the environment file; "" for the one of LG_ENV, or none."""
    place, _, environment = rest.partition("?")
    if not place:
        raise BadInput("not a place", f"labgrid:{rest}", "write labgrid:PLACE")
    return place, environment or os.environ.get("LG_ENV", "")


def _target(labgrid: Any, place: str, environment: str) -> Any:
    if environment:
        found = labgrid.Environment(environment)
        target = found.get_target(place)
        if target is None:
            names = ", ".join(found.config.get_targets())
            raise BadInput(f"the environment has no target {place!r}", environment, f"it has: {names}")
        return target
    from labgrid.driver import SerialDriver
    from labgrid.resource.remote import RemotePlace

    target = labgrid.Target(place)
    RemotePlace(target, name=place)
    SerialDriver(target, name=None)
    return target


def _explained(place: str, error: Exception) -> Exception:
    """labgrid's words with what to do about them."""
    if isinstance(error, (BadInput, ToolMissing)):
        return error
    coordinator = os.environ.get("LG_COORDINATOR", _COORDINATOR)
    text = f"{type(error).__name__}: {error}".strip().rstrip(":").splitlines()[0]
    todo = f"`labgrid-client -p {place} show` tells of it; `labgrid-client -p {place} acquire` makes it yours"
    if isinstance(error, ConnectionError) or "onnect" in text:
        todo = f"is the coordinator running at {coordinator} (LG_COORDINATOR), and the place's exporter?"
    elif isinstance(error, OSError):
        todo = "does the environment file (LG_ENV) exist?"
    return ToolMissing(f"labgrid cannot reach the place: {text}", f"labgrid:{place}", todo)
