"""Programming: the methods that need no board, what the others are called with, and what failures say."""

import contextlib
import getpass
import json
import os
import shutil
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from builds import built
from installed import ready
from ports import free_port, wait_for
from test_uf2 import blocks

from edgetqs import elf, ssh
from edgetqs.built import open_build
from edgetqs.dut import open_dut
from edgetqs.errors import BadInput, CheckFailed, EdgeTqsError, ToolMissing
from edgetqs.flash import PROGRAMMERS, check_fits, flash, greet, openocd_script
from edgetqs.target import METHODS, load_target

BOARDS = ["microbit", "nrf52840-dk", "nucleo-f446re", "nucleo-l4r5zi", "rp2040-pico", "stm32f405"]


def edited(folder: Path, tmp_path: Path, *edits: tuple[str, str]) -> Path:
    """A copy of a build whose target file is changed."""
    copy = tmp_path / "edited"
    shutil.copytree(folder, copy)
    name = json.loads((folder / "build.json").read_text())["target"]
    text = (Path(__file__).parents[1] / "targets" / f"{name}.toml").read_text()
    for old, new in edits:
        assert old in text
        text = text.replace(old, new)
    (copy / f"{name}.toml").write_text(text)
    return copy


def tool(name: str) -> None:
    if shutil.which(name) is None:
        pytest.skip(f"{name} is not installed")


# --- gdb, against an emulated chip without a program


@contextlib.contextmanager
def empty_machine(name: str) -> Iterator[tuple[str, str]]:
    """(GDB server, SPEC of the UART) of a target's machine, halted, nothing in its flash."""
    target = ready(name)
    tool("gdb-multiarch")
    gdb, uart = free_port(), free_port()
    command = [target.qemu.program, "-M", target.qemu.machine, "-display", "none", "-monitor", "none", "-S"]
    command += ["-gdb", f"tcp:127.0.0.1:{gdb}", "-icount", "shift=6", "-serial", "chardev:uart", "-chardev"]
    command += [f"socket,id=uart,host=127.0.0.1,port={uart},server=on,wait=off,nodelay=on"]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL) as process:
        try:
            wait_for(uart, process)
            yield f"127.0.0.1:{gdb}", f"tcp:127.0.0.1:{uart}"
        finally:
            process.kill()


@pytest.mark.qemu
@pytest.mark.parametrize("name", ["microbit", "stm32f405", "cortex-m3", "cortex-m33"])
def test_gdb_programs_an_empty_chip_which_then_answers(name):
    with empty_machine(name) as (server, uart):
        done = flash(built(name), method="gdb", probe=server, device=uart)
    build = open_build(built(name))
    assert done.hello.target == name
    assert done.hello.model_hash == build.record["model"]["sha256"][:16]
    assert done.bytes == sum(len(data) for _, data in elf.load_pieces(build.link_image))
    assert "compared by gdb" in done.verified
    told = {"microbit": "0x100 at 0x10000014", "stm32f405": "not told by the probe"}  # QEMU has no DBGMCU
    assert done.chip == told.get(name, "the target file names no id to check")


@pytest.mark.qemu
def test_gdb_leaves_a_wrong_chip_alone(tmp_path):
    folder = edited(built("microbit"), tmp_path, ("id_value = 256 ", "id_value = 128 "))
    with empty_machine("microbit") as (server, uart):
        with pytest.raises(CheckFailed, match="wrong chip: 0x100 at 0x10000014, microbit has 0x80") as caught:
            flash(folder, method="gdb", probe=server, device=uart)
        assert "nothing was written" in caught.value.todo
        # And nothing was: the first words of flash are still empty, the core still halted.
        ask = [
            "gdb-multiarch",
            "-nx",
            "-batch",
            "-ex",
            f"target remote {server}",
            "-ex",
            "x/2xw 0",
            "-ex",
            "disconnect",
        ]
        said = subprocess.run(ask, capture_output=True, text=True, check=True).stdout
        assert "0x0:\t0x00000000\t0x00000000" in said


@pytest.mark.qemu
def test_gdb_notices_flash_that_did_not_take_it():
    # The image is for 0x08000000, where this chip has nothing.
    with empty_machine("microbit") as (server, _), pytest.raises(CheckFailed, match="other bytes than were written"):
        flash(built("stm32f405"), method="gdb", probe=server)


@pytest.mark.qemu
def test_another_build_on_the_device_is_noticed(tmp_path):
    with empty_machine("microbit") as (server, uart):
        flash(built("microbit"), method="gdb", probe=server)
        other = edited(built("microbit"), tmp_path)
        record = json.loads((other / "build.json").read_text())
        record["model"]["sha256"] = "ab" * 32
        (other / "build.json").write_text(json.dumps(record))
        with pytest.raises(CheckFailed, match="runs another program: its model is"):
            greet(uart, open_build(other))


def test_gdb_without_a_server():
    tool("gdb-multiarch")
    with pytest.raises(ToolMissing, match="programming failed") as caught:
        flash(built("cortex-m3"), method="gdb", probe=f"127.0.0.1:{free_port()}")
    assert "is the server running" in caught.value.todo


@pytest.mark.parametrize("server", ["localhost", "localhost:", "a b:3", "localhost:port"])
def test_gdb_server_must_be_an_address(server):
    tool("gdb-multiarch")
    with pytest.raises(BadInput, match="not a GDB server"):
        flash(built("cortex-m3"), method="gdb", probe=server)


# --- before


def test_an_image_that_lies_elsewhere_is_refused():
    image = open_build(built("stm32f405")).link_image
    assert check_fits(load_target("stm32f405"), image) > 4096
    with pytest.raises(CheckFailed, match=r"writes 0x8000000 to 0x800[0-9a-f]+, flash is 0x0 to 0x40000"):
        check_fits(load_target("microbit"), image)


def test_an_image_that_is_too_large_is_refused(tmp_path):
    image = open_build(built("stm32f405")).link_image
    folder = edited(
        built("stm32f405"), tmp_path, ("flash_bytes = 1_048_576", "flash_bytes = 4_096"), ("65_536", "1_024")
    )
    with pytest.raises(CheckFailed, match="flash is 0x8000000 to 0x8001000"):
        check_fits(open_build(folder).target, image)


def test_methods_are_those_of_the_target():
    assert tuple(PROGRAMMERS) == METHODS
    with pytest.raises(BadInput, match="cortex-m3 is not programmed by uf2") as caught:
        flash(built("cortex-m3"), method="uf2")
    assert "its target file names: gdb" in caught.value.todo


@pytest.mark.parametrize(("method", "hint"), [("openocd", "apt install openocd"), ("pyocd", "edgetqs[flash]")])
def test_a_missing_programmer_says_what_to_install(method, hint, monkeypatch):
    folder = built("microbit")
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(ToolMissing, match=f"{method} is not installed") as caught:
        flash(folder, method=method)
    assert hint in caught.value.todo


# --- uf2


def drive(tmp_path: Path, board: str) -> Path:
    folder = tmp_path / "drive"
    folder.mkdir()
    (folder / "INFO_UF2.TXT").write_text(f"UF2 Bootloader v3.0\nModel: Raspberry Pi RP2\nBoard-ID: {board}\n")
    return folder


def test_uf2_carries_the_image(tmp_path):
    folder = drive(tmp_path, "RPI-RP2")
    done = flash(built("rp2040-pico"), probe=str(folder))
    assert done.method == "uf2" and done.chip == "boot loader RPI-RP2"
    pages = dict(blocks((folder / "link.uf2").read_bytes()))
    pieces = elf.load_pieces(open_build(built("rp2040-pico")).link_image)
    for address, data in pieces:
        for offset in range(0, len(data), 61):
            place = address + offset
            assert pages[place & ~0xFF][place & 0xFF] == data[offset]
    assert min(pages) == 0x1000_0000 and len(pages) * 256 < sum(len(data) for _, data in pieces) + 1024
    assert struct.unpack("<I", pages[0x1000_0100][:4])[0] == 0x2004_2000


def test_uf2_leaves_another_board_alone(tmp_path):
    folder = drive(tmp_path, "RP2350")
    with pytest.raises(CheckFailed, match="wrong board: its boot loader says RP2350, rp2040-pico says RPI-RP2"):
        flash(built("rp2040-pico"), probe=str(folder))
    assert not list(folder.glob("*.uf2"))


def test_uf2_without_a_drive(tmp_path):
    with pytest.raises(ToolMissing, match="no UF2 boot loader is mounted") as caught:
        flash(built("rp2040-pico"), probe=str(tmp_path))
    assert "BOOTSEL" in caught.value.todo


# --- openocd: its own interpreter runs the script, its commands about a chip stand-ins

STAND_INS = """
proc init {} { echo "did init" }
proc reset {how} { echo "did reset $how" }
proc read_memory {address width count} { echo "read $address $width $count"; return [list %s] }
proc flash {args} { echo "did flash $args" }
proc verify_image {args} { echo "did verify $args" }
"""


def in_openocd(name: str, word: str) -> tuple[int, list[str], Path]:
    tool("openocd")
    image = open_build(built(name)).link_image
    script = openocd_script(load_target(name), image)
    done = subprocess.run(
        ["openocd", "-c", STAND_INS % word, "-c", script], capture_output=True, text=True, timeout=30, check=False
    )
    said = [line for line in (done.stdout + done.stderr).splitlines() if line.startswith(("did", "read", "edgetqs"))]
    return done.returncode, said, image


def test_openocd_programs_the_right_chip():
    code, said, image = in_openocd("nucleo-f446re", "0x10006421")
    assert code == 0
    assert said == [
        "did init",
        "did reset halt",
        "read 0xe0042000 32 1",
        "edgetqs-chip 0x10006421",
        f"did flash write_image erase {image}",
        f"did verify {image}",
        "did reset run",
        "edgetqs-done",
    ]


def test_openocd_leaves_a_wrong_chip_alone():
    code, said, _ = in_openocd("nucleo-f446re", "0x10006413")
    assert code != 0
    assert said[-1] == "edgetqs-chip 0x10006413"


def test_openocd_that_tells_nothing_programs():
    assert in_openocd("nucleo-f446re", "0")[1][-1] == "edgetqs-done"


@pytest.mark.parametrize("name", [name for name in BOARDS if "openocd" in load_target(name).flash.methods])
def test_openocd_knows_the_boards_files_and_finds_no_probe(name):
    tool("openocd")
    with pytest.raises(ToolMissing, match="programming failed") as caught:
        flash(built(name), method="openocd")
    assert "no probe was found" in caught.value.todo


@pytest.mark.parametrize(
    ("said", "kind", "hint"),
    [
        ("Error: libusb_open() failed with LIBUSB_ERROR_ACCESS", ToolMissing, "udev"),
        ("Error: libusb_claim_interface: LIBUSB_ERROR_BUSY", ToolMissing, "another program"),
        ("Error: init mode failed (unable to connect to the target)", CheckFailed, "powered"),
        ("edgetqs-chip 0x00000413", CheckFailed, "nothing was written"),
        ("", CheckFailed, "openocd said so"),
    ],
)
def test_what_openocd_says_is_explained(said, kind, hint, tmp_path, monkeypatch):
    folder = built("nucleo-f446re")
    fake(tmp_path, monkeypatch, "openocd", f"echo '{said}'; exit 1")
    with pytest.raises(EdgeTqsError) as caught:
        flash(folder)
    assert type(caught.value) is kind
    assert hint in caught.value.todo


def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, script: str) -> Path:
    """A program called so that notes its words; returns the notes."""
    notes = tmp_path / "notes"
    program = tmp_path / name
    program.write_text(f'#!/bin/sh\necho "$*" >> {notes}\n{script}\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    return notes


# --- pyocd


def test_pyocd_is_called_with_what_it_takes(tmp_path, monkeypatch):
    folder = built("microbit")
    notes = fake(tmp_path, monkeypatch, "pyocd", "echo '10000014:  00000100    |....|'; echo All 99 bytes match.")
    done = flash(folder, method="pyocd", probe="9900")
    assert done.chip == "0x100 at 0x10000014" and done.verified == "compared by pyocd"
    ask, program = notes.read_text().splitlines()
    assert ask == "commander --no-wait --target nrf51 --uid 9900 -c reset -h -c read32 0x10000014"
    binary = folder / "link.bin"
    assert program.endswith(f"-c reset -h -c load {binary} 0x0 -c compare 0x0 {binary} -c reset")


def test_pyocd_notices_flash_that_did_not_take_it(tmp_path, monkeypatch):
    folder = built("microbit")
    fake(
        tmp_path,
        monkeypatch,
        "pyocd",
        "echo 'Mismatched byte at 0x00000000 (offset 0x0): 0xff (memory) != 0x00 (file)'",
    )
    with pytest.raises(CheckFailed, match="other bytes than were written"):
        flash(folder, method="pyocd")


def test_pyocd_leaves_a_wrong_chip_alone(tmp_path, monkeypatch):
    folder = built("microbit")
    notes = fake(tmp_path, monkeypatch, "pyocd", "echo '10000014:  00000080    |....|'")
    with pytest.raises(CheckFailed, match="wrong chip: 0x80"):
        flash(folder, method="pyocd")
    assert "load" not in notes.read_text()


def beside_python(monkeypatch: pytest.MonkeyPatch) -> None:
    """The scripts of this Python's packages on the PATH."""
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")


def test_pyocd_knows_the_words_and_finds_no_probe(monkeypatch):
    pytest.importorskip("pyocd")
    folder = built("microbit")
    beside_python(monkeypatch)
    tool("pyocd")
    with pytest.raises(ToolMissing, match="No connected debug probes") as caught:
        flash(folder, method="pyocd")
    assert "no probe was found" in caught.value.todo


def test_pyocd_has_the_commands_and_the_parts():
    pytest.importorskip("pyocd")
    from pyocd.commands import commands  # noqa: F401 (fills the table)
    from pyocd.commands.base import ALL_COMMANDS
    from pyocd.target.builtin import BUILTIN_TARGETS

    names = {name for group in ALL_COMMANDS.values() for command in group for name in command.INFO["names"]}
    assert {"reset", "read32", "load", "compare"} <= names
    builtin = {load_target(name).flash.pyocd for name in BOARDS if "from the pack" not in toml(name)}
    assert builtin == {"nrf51", "nrf52840", "rp2040"}
    assert builtin <= set(BUILTIN_TARGETS)


def toml(name: str) -> str:
    return (Path(__file__).parents[1] / "targets" / f"{name}.toml").read_text()


# --- ssh, against a real server on this computer


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Iterator[tuple[str, Path, Path]]:
    """(name of the host, ssh's configuration, the device's home folder) of a server with fresh keys."""
    daemon = shutil.which("sshd", path=f"{os.environ['PATH']}:/usr/sbin")
    if daemon is None or shutil.which("ssh") is None:
        pytest.skip("openssh-server and openssh-client are not installed")
    folder = tmp_path_factory.mktemp("sshd")
    home = folder / "home"
    home.mkdir()
    for name in ("host", "user"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / name], check=True)
    # The device's home is a folder of the test's, not the one of whoever runs it.
    command = f'cd {home} && exec sh -c "$SSH_ORIGINAL_COMMAND"'.replace('"', '\\"')
    (folder / "keys").write_text(f'command="{command}" {(folder / "user.pub").read_text()}')
    port = free_port()
    (folder / "sshd_config").write_text(
        f"Port {port}\nListenAddress 127.0.0.1\nHostKey {folder}/host\nAuthorizedKeysFile {folder}/keys\n"
        f"PidFile none\nStrictModes no\nUsePAM no\nPasswordAuthentication no\nPermitRootLogin yes\n"
    )
    host_key = " ".join((folder / "host.pub").read_text().split()[:2])
    (folder / "known").write_text(f"[127.0.0.1]:{port} {host_key}\n")
    config = folder / "config"
    config.write_text(
        f"Host device\n  HostName 127.0.0.1\n  Port {port}\n  User {getpass.getuser()}\n"
        f"  IdentityFile {folder}/user\n  IdentitiesOnly yes\n  UserKnownHostsFile {folder}/known\n"
        f"Host stranger\n  HostName 127.0.0.1\n  Port {port}\n  User {getpass.getuser()}\n"
        f"  IdentityFile {folder}/host\n  IdentitiesOnly yes\n  UserKnownHostsFile {folder}/known\n"
        f"Host unknown\n  HostName 127.0.0.1\n  Port {port}\n  UserKnownHostsFile /dev/null\n"
        f"Host off\n  HostName 127.0.0.1\n  Port {free_port()}\n"
    )
    if os.getuid() == 0:
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen([daemon, "-D", "-e", "-f", folder / "sshd_config"], stderr=log)
    try:
        until = time.monotonic() + 20
        while "Server listening" not in (folder / "log").read_text():
            assert process.poll() is None and time.monotonic() < until, (folder / "log").read_text()
            time.sleep(0.05)
        yield "device", config, home
    finally:
        process.kill()
        process.wait()


def test_ssh_installs_and_starts_the_program(server):
    host, config, home = server
    folder = built("x86")
    done = flash(folder, probe=host, ssh_config=config)
    build = open_build(folder)
    assert done.method == "ssh" and done.hello.target == "x86"
    assert done.hello.plan_hash == build.record["plan"]["hash"]
    assert (home / "edgetqs/x86/link.elf").read_bytes() == build.link_image.read_bytes()
    tflite = build.record["tflite"]["path"]
    assert (home / "edgetqs/x86" / tflite).read_bytes() == (folder / tflite).read_bytes()
    assert not list(home.rglob("*.part"))
    with open_dut(ssh.spec(host, config), build.target, build.link_image) as dut:
        first = dut.step([100, -200, 300]).tolist()
        assert dut.stats().steps == 1
        assert dut.restart().cause == "requested"
        assert dut.step([100, -200, 300]).tolist() == first
        assert dut.power_cycle().cause == "power-up"
        assert dut.step([100, -200, 300]).tolist() == first


def test_ssh_replaces_a_program_that_runs(server):
    host, config, _ = server
    build = open_build(built("x86"))
    flash(built("x86"), probe=host, ssh_config=config)
    with open_dut(ssh.spec(host, config), build.target, build.link_image) as dut:
        flash(built("x86"), probe=host, ssh_config=config)
        assert dut.stats().steps == 0


def test_ssh_leaves_a_wrong_machine_alone(server, tmp_path):
    host, config, home = server
    shutil.rmtree(home / "edgetqs", ignore_errors=True)
    folder = edited(built("x86"), tmp_path, ('machines = ["x86_64"]', 'machines = ["aarch64"]'))
    with pytest.raises(CheckFailed, match="wrong machine: it is x86_64, x86 is aarch64"):
        flash(folder, probe=host, ssh_config=config)
    assert not (home / "edgetqs").exists()


@pytest.mark.parametrize(
    ("host", "hint"),
    [("stranger", "ssh-copy-id"), ("unknown", "connect once by hand"), ("off", "nothing listens there")],
)
def test_ssh_failures_say_what_to_do(server, host, hint):
    _, config, _ = server
    with pytest.raises(ToolMissing) as caught:
        flash(built("x86"), probe=host, ssh_config=config)
    assert hint in caught.value.todo


@pytest.mark.parametrize("host", ["", "-oProxyCommand=date", "a b"])
def test_ssh_hosts_are_names(host):
    with pytest.raises(BadInput):
        flash(built("x86"), probe=host)


# --- the command


@pytest.mark.qemu
def test_the_command():
    with empty_machine("microbit") as (server, uart):
        command = [sys.executable, "-m", "edgetqs", "flash", str(built("microbit")), "--method", "gdb"]
        done = subprocess.run(
            [*command, "--probe", server, "--device", uart, "--json"], capture_output=True, text=True, check=False
        )
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert (said["method"], said["image"], said["hello"]["target"]) == ("gdb", "link.elf", "microbit")


def test_the_commands_exit_codes(tmp_path):
    command = [sys.executable, "-m", "edgetqs", "flash"]
    for words, code in (
        ([str(tmp_path)], 2),
        ([str(built("rp2040-pico")), "--probe", str(tmp_path)], 3),
        ([str(built("rp2040-pico")), "--probe", str(drive(tmp_path, "X"))], 1),
    ):
        assert subprocess.run([*command, *words], capture_output=True, check=False).returncode == code
