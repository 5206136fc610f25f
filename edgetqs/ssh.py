"""A Linux device over SSH: a program copied there, started, its standard input and output as the link."""

from __future__ import annotations

import shlex
import shutil
import subprocess
from pathlib import Path

from edgetqs.errors import BadInput, CheckFailed, ToolMissing

#: Where builds go, below the user's home on the device.
FOLDER = "edgetqs"
#: Seconds for one command there.
_TIMEOUT_S = 120.0
#: Never a question: a program cannot answer one.
_OPTIONS = ("-o", "BatchMode=yes", "-o", "ConnectTimeout=10")

_HINTS = (
    ("Permission denied", "the device does not know your key: ssh-copy-id USER@HOST"),
    ("Host key verification failed", "connect once by hand to accept the device's key: ssh USER@HOST"),
    ("Connection refused", "nothing listens there: start the device's SSH server (raspi-config, Interface Options)"),
    ("Could not resolve", "the name is unknown: is the device on this network? Its address works too"),
    ("timed out", "the device does not answer: is it on, is this its address?"),
    ("No space left", "the device's disk is full"),
)


def spec(host: str, config: Path | None) -> str:
    """The device SPEC whose link is the installed program."""
    return f"ssh:{host}" + (f"?{config.resolve()}" if config is not None else "")


def parse(rest: str) -> tuple[str, Path | None]:
    """HOST, USER@HOST or ssh's own name of it, and after "?" a configuration file of ssh."""
    host, _, config = rest.partition("?")
    if not host or host.startswith("-") or any(letter.isspace() for letter in host):
        raise BadInput(f"not a host: {host!r}", "ssh", "write USER@HOST, or a name from your ~/.ssh/config")
    return host, Path(config) if config else None


def command(host: str, config: Path | None, remote: str) -> list[str]:
    """What runs ``remote``, words for a shell, on the device."""
    program = shutil.which("ssh")
    if program is None:
        raise ToolMissing("ssh is not installed", "--method ssh", "On Debian or Ubuntu: apt install openssh-client")
    parse(host)
    return [program, *(["-F", str(config)] if config is not None else []), *_OPTIONS, host, remote]


def program_of(target_name: str) -> str:
    """The installed program's path on the device, from the home folder."""
    return shlex.quote(f"{FOLDER}/{target_name}/link.elf")


def install(
    host: str, image: Path, tflite: Path, machines: tuple[str, ...], target_name: str, config: Path | None
) -> tuple[str, str]:
    """Copy ``image`` and the .tflite; how the machine is known, and how the copies were checked.

    Each file is written beside the one it replaces and renamed, so that a program that runs is not disturbed.
    """
    if not host:
        raise BadInput("no device", "--probe", "write --probe USER@HOST")
    machine = run(host, config, "uname -m").decode(errors="replace").strip()
    if machines and machine not in machines:
        raise CheckFailed(
            f"wrong machine: it is {machine}, {target_name} is {' or '.join(machines)}",
            host,
            "nothing was written: build for the machine that is there, or use another",
        )
    folder = f"{FOLDER}/{target_name}"
    for file, name, mode in ((tflite, tflite.name, "644"), (image, image.name, "755")):
        data, path = file.read_bytes(), shlex.quote(f"{folder}/{name}")
        part = shlex.quote(f"{folder}/{name}.part")
        steps = (f"mkdir -p {shlex.quote(folder)}", f"cat > {part}", f"chmod {mode} {part}", f"mv -f {part} {path}")
        remote = " && ".join((*steps, f"cat {path}"))
        if run(host, config, remote, data) != data:
            raise CheckFailed(f"{name} came back changed", host, "is the device's disk sound?")
    return machine, "read back over SSH"


def run(host: str, config: Path | None, remote: str, data: bytes = b"") -> bytes:
    """What ``remote`` writes on the device when it is given ``data``. Raises where it does not end with 0."""
    try:
        done = subprocess.run(
            command(host, config, remote), input=data, capture_output=True, timeout=_TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise ToolMissing(f"no answer in {_TIMEOUT_S:g} s", host, "is the device's network up?") from error
    if done.returncode != 0:
        said = done.stderr.decode(errors="replace").strip()
        for words, todo in _HINTS:
            if words in said:
                raise ToolMissing(said.splitlines()[-1], host, todo)
        raise CheckFailed(said[-400:] or f"ssh ended with exit code {done.returncode}", host, f"it ran: {remote[:60]}")
    return done.stdout
