"""TCP ports of this computer."""

import os
import random
import socket
import subprocess
import time

# Below what the kernel gives to others (32768), apart for each process of a test run, and each port once:
# a port asked of the kernel (0) may be given to the next who asks before its server listens.
_WORKER = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
_PORTS = iter(random.sample(range(16_000 + 2_000 * _WORKER, 18_000 + 2_000 * _WORKER), 2_000))


def free_port() -> int:
    for port in _PORTS:
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise AssertionError("this process has used up its ports")


def wait_for(port: int, process: subprocess.Popen, seconds: float = 30) -> None:
    """Until ``process`` listens there."""
    until = time.monotonic() + seconds
    while True:
        try:
            socket.create_connection(("127.0.0.1", port)).close()
            return
        except OSError:
            assert process.poll() is None and time.monotonic() < until
            time.sleep(0.05)
