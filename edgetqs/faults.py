"""A bad cable: a transport that drops, doubles, flips and delays bytes, and sends requests a second time, later."""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass

import numpy as np

from edgetqs.transport import Transport

#: How long one look at the device takes, so that both directions move.
_LOOK_S = 0.002


@dataclass(frozen=True, slots=True)
class Rates:
    """Probabilities a byte, except ``late``."""

    drop: float = 0.0
    double: float = 0.0
    flip: float = 0.0  # one bit
    delay: float = 0.0  # this byte and all behind it come up to ``longest_s`` later
    late: float = 0.0  # a request: it comes a second time, up to ``longest_s`` after the first
    longest_s: float = 0.05


class Faulty:
    """``transport`` over a bad cable, the faults drawn from ``seed``."""

    def __init__(self, transport: Transport, rates: Rates, seed: int) -> None:
        self.rates = rates
        self.can_power_cycle = transport.can_power_cycle
        self._inner = transport
        self._rng = np.random.default_rng(seed)
        self._there: deque[tuple[float, bytes]] = deque()  # due, bytes; in order of time
        self._back: deque[tuple[float, bytes]] = deque()
        self._again: list[tuple[float, bytes]] = []

    def write(self, data: bytes) -> None:
        if self._rng.random() < self.rates.late:
            self._again.append((time.monotonic() + self._rng.uniform(0, self.rates.longest_s), data))
        self._spoil(self._there, data)
        self._carry()

    def read(self, timeout_s: float) -> bytes:
        until = time.monotonic() + timeout_s
        while True:
            self._carry()
            self._spoil(self._back, self._inner.read(min(_LOOK_S, max(timeout_s, 0))))
            data = _due(self._back)
            if data or time.monotonic() >= until:
                return data

    def reconnect(self) -> None:
        self._forget()
        self._inner.reconnect()

    def power_cycle(self) -> None:
        self._forget()
        self._inner.power_cycle()

    def close(self) -> None:
        self._inner.close()

    def _forget(self) -> None:
        self._there.clear()
        self._back.clear()
        self._again.clear()

    def _carry(self) -> None:
        """Hand the device what is due."""
        now = time.monotonic()
        for due, data in list(self._again):
            if due <= now:
                self._again.remove((due, data))
                self._there.append((now, data))
        data = _due(self._there)
        if data:
            self._inner.write(data)

    def _spoil(self, queue: deque[tuple[float, bytes]], data: bytes) -> None:
        if not data:
            return
        rates, rng = self.rates, self._rng
        due = max(time.monotonic(), queue[-1][0] if queue else 0.0)
        for byte in data:
            chance = rng.random(4)
            if chance[0] < rates.drop:
                continue
            if chance[1] < rates.flip:
                byte ^= 1 << int(rng.integers(8))
            if chance[2] < rates.delay:
                due += rng.uniform(0, rates.longest_s)
            queue.append((due, bytes([byte] * (2 if chance[3] < rates.double else 1))))


def _due(queue: deque[tuple[float, bytes]]) -> bytes:
    now, data = time.monotonic(), b""
    while queue and queue[0][0] <= now:
        data += queue.popleft()[1]
    return data
