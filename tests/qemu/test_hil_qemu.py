"""`edgetqs hil` against emulated chips: the bundled sample and its baselines, and a proxy that spoils the line."""

import json
import random
import socket
import subprocess
import threading
import time
from pathlib import Path

import pytest
from installed import ready
from test_hil import hil

from edgetqs import emulate
from edgetqs.built import open_build
from edgetqs.pipeline import Options, build
from edgetqs.project import load_project

pytestmark = pytest.mark.qemu

BASELINES = Path(__file__).parents[2] / "hil" / "baselines"


@pytest.fixture(scope="module")
def sample(tmp_path_factory):
    """The sample's build for a target, each made when it is first asked for."""
    known: dict[str, Path] = {}

    def get(name: str) -> Path:
        if name not in known:
            ready(name)
            known[name] = tmp_path_factory.mktemp("hil") / name
            build(load_project(None, None), name, known[name], Options(), str)
        return known[name]

    return get


@pytest.mark.parametrize("name", sorted(path.stem.removeprefix("weather-") for path in BASELINES.glob("*.json")))
def test_the_sample_is_as_good_as_its_baseline(sample, name, tmp_path):
    """Made with `edgetqs hil build/weather-NAME --baseline hil/baselines/weather-NAME.json --update-baseline`."""
    done = hil(sample(name), "--baseline", BASELINES / f"weather-{name}.json", "--report", tmp_path / "r.json")
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "r.json").read_text())
    assert {entry["outcome"] for entry in report["tests"]} == {"passed"}
    assert report["streaming_steps"] == 10000
    assert report["ticks_are"] == "instructions, by SysTick in an emulator"


class Proxy(threading.Thread):
    """Between a TCP port and a machine's UART; spoils both directions, a byte in ``one_in``."""

    def __init__(self, uart: Path, one_in: int) -> None:
        super().__init__(daemon=True)
        self._server = socket.create_server(("127.0.0.1", 0))
        self.spec = f"tcp:127.0.0.1:{self._server.getsockname()[1]}"
        self._uart, self._one_in, self.spoiled = uart, one_in, 0

    def run(self) -> None:
        with socket.socket(socket.AF_UNIX) as device:
            device.connect(str(self._uart))
            while True:
                client, _ = self._server.accept()
                threads = [
                    threading.Thread(target=self._carry, args=ends, daemon=True)
                    for ends in ((client, device, 1), (device, client, 2))
                ]
                for thread in threads:
                    thread.start()

    def _carry(self, source: socket.socket, target: socket.socket, seed: int) -> None:
        rng = random.Random(seed)
        try:
            while data := source.recv(4096):
                target.sendall(b"".join(self._spoil(bytes([byte]), rng) for byte in data))
        except OSError:
            pass

    def _spoil(self, byte: bytes, rng: random.Random) -> bytes:
        if rng.randrange(self._one_in):
            return byte
        self.spoiled += 1
        fault = rng.randrange(4)
        if fault == 3:
            time.sleep(0.03)
        return (b"", byte + byte, bytes([byte[0] ^ 1 << rng.randrange(8)]), byte)[fault]


def test_the_suite_through_a_proxy_that_spoils_the_line(sample, tmp_path):
    folder = sample("cortex-m4")
    target, image = open_build(folder).target, open_build(folder).link_image
    uart = tmp_path / "uart"
    with subprocess.Popen(emulate.serving_command(target, image, uart)) as machine:
        try:
            while not uart.exists():
                time.sleep(0.01)
            proxy = Proxy(uart, 200)
            proxy.start()
            done = hil(folder, "--device", proxy.spec, "--steps", "300", "-k", "not cut_cable and not golden")
        finally:
            machine.kill()
    assert done.returncode == 0, done.stderr
    assert proxy.spoiled > 200
