"""A lab on this computer: labgrid's own coordinator and exporter, emulated boards behind its serial ports."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from builds import built
from installed import ready
from ports import free_port, wait_for

from edgetqs.built import open_build
from edgetqs.dut import open_dut
from edgetqs.errors import BadInput, ToolMissing

pytest.importorskip("labgrid")
pytestmark = pytest.mark.qemu

BIN = Path(sys.executable).parent
BOARDS = ["microbit", "stm32f405", "cortex-m4"]


@pytest.fixture(scope="module")
def lab(tmp_path_factory) -> Iterator[dict[str, str]]:
    """The environment of a lab whose places are called like their targets; each is acquired."""
    folder = tmp_path_factory.mktemp("lab")
    coordinator = free_port()
    environment = {**os.environ, "LG_COORDINATOR": f"127.0.0.1:{coordinator}", "PATH": f"{BIN}:{os.environ['PATH']}"}
    environment.pop("LG_ENV", None)
    with ExitStack() as stack:

        def start(command: list[str], name: str) -> subprocess.Popen:
            log = stack.enter_context((folder / f"{name}.log").open("wb"))
            process = subprocess.Popen(
                command, cwd=folder, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
            stack.callback(process.wait)
            stack.callback(process.kill)
            return process

        ports, resources = {}, ""
        for name in BOARDS:
            target = ready(name)
            ports[name] = free_port()
            chardev = f"socket,id=uart,host=127.0.0.1,port={ports[name]},server=on,wait=off,nodelay=on"
            command = [target.qemu.program, "-M", target.qemu.machine, "-display", "none", "-monitor", "none"]
            command += ["-chardev", chardev, "-serial", "chardev:uart", "-icount", "shift=6"]
            wait_for(ports[name], start([*command, "-kernel", str(built(name) / "link.elf")], name))
            resources += f"{name}:\n  NetworkSerialPort:\n    host: 127.0.0.1\n    port: {ports[name]}\n"
            resources += "    speed: 115200\n    protocol: raw\n"
        (folder / "exporter.yaml").write_text(resources)
        wait_for(
            coordinator, start([str(BIN / "labgrid-coordinator"), "-l", f"127.0.0.1:{coordinator}"], "coordinator")
        )
        start([str(BIN / "labgrid-exporter"), "-n", "bench", "--hostname", "127.0.0.1", "exporter.yaml"], "exporter")

        def client(*words: str) -> str:
            command = [str(BIN / "labgrid-client"), *words]
            done = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, timeout=60)
            assert done.returncode == 0, f"{words}: {done.stdout}{done.stderr}"
            return done.stdout

        until = time.monotonic() + 30
        while not all(f"bench/{name}/NetworkSerialPort" in client("resources") for name in BOARDS):
            assert time.monotonic() < until, (folder / "exporter.log").read_text()
            time.sleep(0.3)
        for name in BOARDS:
            client("-p", name, "create")
            client("-p", name, "add-match", f"bench/{name}/NetworkSerialPort")
            client("-p", name, "acquire")
        client("-p", "nobodys", "create")
        yield environment


def test_a_place_answers_with_the_builds_hashes(lab, monkeypatch):
    monkeypatch.setenv("LG_COORDINATOR", lab["LG_COORDINATOR"])
    build = open_build(built("microbit"))
    with open_dut("labgrid:microbit", build.target, build.link_image) as dut:
        assert dut.hello.target == "microbit"
        assert dut.hello.plan_hash == build.record["plan"]["hash"]
        first = dut.step([100, -200, 300]).tolist()
        dut.transport.reconnect()
        dut.reset()
        assert dut.step([100, -200, 300]).tolist() == first
        assert dut.power_cycle().cause == "requested"  # no power switch: a restart
    with open_dut("labgrid:microbit", build.target, build.link_image) as dut:
        assert dut.hello.target == "microbit"


def test_several_boards_at_once(lab, tmp_path):
    """`edgetqs hil` on builds of different targets, in parallel."""
    running = {}
    for name in BOARDS:
        command = [sys.executable, "-m", "edgetqs", "hil", str(built(name)), "--device", f"labgrid:{name}"]
        command += ["-k", "test_handshake", "--report", str(tmp_path / f"{name}.json")]
        running[name] = subprocess.Popen(command, env=lab, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    for name, process in running.items():
        said, _ = process.communicate(timeout=300)
        assert process.returncode == 0, said
        report = json.loads((tmp_path / f"{name}.json").read_text())
        assert report["target"] == report["hello"]["target"] == name
        assert report["tests"] and all(test["outcome"] == "passed" for test in report["tests"])


EXAMPLES = Path(__file__).parents[1] / "hil"


def example(tmp_path: Path, *edits: tuple[str, str]) -> Path:
    text = (EXAMPLES / "lab.yaml").read_text()
    for old, new in edits:
        assert old in text
        text = text.replace(old, new)
    path = tmp_path / "lab.yaml"
    path.write_text(text)
    return path


def test_the_examples_emulator_has_a_power_switch(tmp_path):
    build = open_build(built("cortex-m4"))
    path = example(tmp_path, ("../build/weather-cortex-m4/link.elf", str(build.link_image)))
    with open_dut(f"labgrid:emulated?{path}", build.target, build.link_image) as dut:
        assert dut.transport.can_power_cycle
        first = dut.step([100, -200, 300]).tolist()
        assert dut.power_cycle().cause == "power-up"
        assert dut.step([100, -200, 300]).tolist() == first


def test_the_examples_remote_place(lab, tmp_path, monkeypatch):
    monkeypatch.setenv("LG_COORDINATOR", lab["LG_COORDINATOR"])
    monkeypatch.setenv("LG_ENV", str(example(tmp_path, ("name: shelf", "name: stm32f405"))))
    build = open_build(built("stm32f405"))
    with open_dut("labgrid:shelf", build.target, build.link_image) as dut:
        assert dut.hello.target == "stm32f405"


def test_the_examples_exporter_is_what_labgrid_takes(lab):
    """An exporter that is given the example offers its port."""
    command = [
        str(BIN / "labgrid-exporter"),
        "-n",
        "example",
        "--hostname",
        "127.0.0.1",
        str(EXAMPLES / "exporter.yaml"),
    ]
    with subprocess.Popen(
        command, env=lab, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as own:
        try:
            until, said = time.monotonic() + 60, ""
            while "example/emulated/NetworkSerialPort" not in said:
                assert time.monotonic() < until and own.poll() is None, said
                client = [str(BIN / "labgrid-client"), "resources"]
                said = subprocess.run(client, env=lab, capture_output=True, text=True, timeout=60, check=True).stdout
        finally:
            own.kill()


def test_a_name_that_the_environment_lacks(tmp_path):
    build = open_build(built("cortex-m4"))
    with pytest.raises(BadInput, match="has no target 'cellar'") as caught:
        open_dut(f"labgrid:cellar?{example(tmp_path)}", build.target, build.link_image)
    assert "desk, shelf, emulated" in caught.value.todo


def test_an_environment_that_is_not_there(tmp_path):
    build = open_build(built("cortex-m4"))
    with pytest.raises(ToolMissing) as caught:
        open_dut(f"labgrid:desk?{tmp_path / 'none.yaml'}", build.target, build.link_image)
    assert "none.yaml" in str(caught.value)


@pytest.mark.parametrize("place", ["nobodys", "nowhere"])
def test_places_that_are_not_there(lab, monkeypatch, place):
    monkeypatch.setenv("LG_COORDINATOR", lab["LG_COORDINATOR"])
    build = open_build(built("microbit"))
    with pytest.raises((ToolMissing, BadInput)) as caught:
        open_dut(f"labgrid:{place}", build.target, build.link_image)
    assert f"labgrid-client -p {place}" in caught.value.todo


def test_a_lab_without_a_coordinator():
    environment = {**os.environ, "LG_COORDINATOR": f"127.0.0.1:{free_port()}"}
    command = [sys.executable, "-m", "edgetqs", "hil", str(built("microbit")), "--device", "labgrid:microbit"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 3
    assert "is the coordinator running" in done.stderr
