"""Getting a build onto a device and making sure that it is there.

Before: the image lies within the device's flash and the chip tells the right
id, where the probe lets it. After: what was written is compared, and the
firmware's HELLO must name the build. ``PROGRAMMERS`` is the table of methods;
each leaves the device running.
"""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from edgetqs import elf, ssh
from edgetqs.built import Build, open_build
from edgetqs.dut import Dut, open_dut
from edgetqs.errors import BadInput, CheckFailed, EdgeTqsError, ToolMissing
from edgetqs.protocol import Hello
from edgetqs.target import METHODS, Flash, Target

#: Seconds for a programmer to do its work.
TIMEOUT_S = 180.0
#: Seconds for a board's serial port to come back after its restart.
_RETURN_S = 10.0
_GDBS = ("arm-none-eabi-gdb", "gdb-multiarch", "gdb")
_DONE = "edgetqs-done"

_UDEV = (
    "permission: install the probe's udev rules (pyocd and openocd bring some: copy them to /etc/udev/rules.d, run "
    "`udevadm control --reload && udevadm trigger`, plug the probe in again)"
)
#: What programmers say, whether that means that something is missing, and what to do.
_HINTS: tuple[tuple[str, bool, str], ...] = (
    (r"LIBUSB_ERROR_ACCESS|[Ii]nsufficient permission|[Pp]ermission denied \(os|Access denied", True, _UDEV),
    (
        r"LIBUSB_ERROR_BUSY|[Rr]esource busy|already (open|in use)|claim interface",
        True,
        "another program has the probe open: close it (a debugger, an IDE, another openocd)",
    ),
    (
        r"No connected debug probes|unable to find a matching CMSIS-DAP|No J-Link device|Error: open failed|"
        r"no device found|No available debug probe",
        True,
        "no probe was found: plug the board in; with several, name one with --probe",
    ),
    (
        r"Connection refused|[Cc]onnection timed out|could not connect|Connection reset|No route to host",
        True,
        "is the server running, at this HOST:PORT?",
    ),
    (r"[Tt]arget type .* not recognized|target.*not (found|recognized)", True, "`pyocd pack install PART` brings it"),
    (
        r"init mode failed|[Uu]nable to (connect to the target|reset)|SWD.*fa(ul|i)|[Nn]o ACK|not halted",
        False,
        "the probe does not reach the chip: is the board powered, is this the right target, is debugging locked?",
    ),
)


@dataclass(frozen=True, slots=True)
class Job:
    """One image on its way to one device."""

    build: Build
    image: Path  # an ELF file
    probe: str  # which device, in the method's own words; "" for the only one
    ssh_config: Path | None = None

    @property
    def target(self) -> Target:
        return self.build.target

    @property
    def flash(self) -> Flash:
        return self.build.target.flash or Flash(())


@dataclass(frozen=True, slots=True)
class Flashed:
    """What was done: ``chip`` and ``verified`` say how that is known, ``hello`` what the firmware answered."""

    image: str
    method: str
    bytes: int
    chip: str
    verified: str
    hello: Hello | None


def flash(
    folder: Path,
    *,
    method: str | None = None,
    probe: str = "",
    device: str | None = None,
    image: str = "link",
    ssh_config: Path | None = None,
) -> Flashed:
    """Program a build's ``link.elf`` (or ``firmware.elf``) and greet it over ``device``, a SPEC of transport.py.

    Raises ``BadInput``, ``ToolMissing`` where a program or a board is not there, ``CheckFailed`` where the chip, the
    image or what it answers is wrong.
    """
    build = open_build(folder)
    methods = build.target.flash.methods if build.target.flash is not None else ()
    chosen = method or (methods[0] if methods else None)
    if chosen is None or chosen not in methods:
        raise BadInput(
            f"{build.target.name} is not programmed by {chosen or 'any method'}",
            "--method",
            f"its target file names: {', '.join(methods) or 'none, under [flash]'}",
        )
    path = build.link_image if image == "link" else build.folder / f"{image}.elf"
    if not path.is_file():
        raise BadInput("the build has no such image", str(path), "build again")
    size = check_fits(build.target, path)
    job = Job(build, path, probe, ssh_config)
    chip, verified = PROGRAMMERS[chosen](job)
    spec = device or (ssh.spec(job.probe, ssh_config) if chosen == "ssh" and image == "link" else None)
    hello = greet(spec, build) if spec is not None and image == "link" else None
    return Flashed(path.name, chosen, size, chip, verified, hello)


def check_fits(target: Target, image: Path) -> int:
    """Bytes to program. Raises ``CheckFailed`` if any lies outside the device's flash."""
    if target.kind != "bare":
        return image.stat().st_size
    memory, size = target.memory, 0
    first, end = memory.flash_origin, memory.flash_origin + memory.flash_bytes
    for address, data in elf.load_pieces(image):
        if address < first or address + len(data) > end:
            raise CheckFailed(
                f"the image writes {address:#x} to {address + len(data):#x}, flash is {first:#x} to {end:#x}",
                str(image),
                f"it was not linked for {target.name}: build again",
            )
        size += len(data)
    return size


def greet(spec: str, build: Build) -> Hello:
    """The firmware's HELLO, which must name the build; waits for a port that comes back after the restart."""
    until = time.monotonic() + _RETURN_S
    while True:
        try:
            dut: Dut = open_dut(spec, build.target, build.link_image)
            break
        except ToolMissing:
            if time.monotonic() > until:
                raise
            time.sleep(0.3)
    with dut:
        hello = dut.hello
    wanted = {
        "model": (hello.model_hash, build.model_hash),
        "plan": (hello.plan_hash, build.record["plan"]["hash"]),
        "target": (hello.target, build.target.name),
    }
    for what, (said, meant) in wanted.items():
        if said != meant:
            raise CheckFailed(
                f"the device runs another program: its {what} is {said}, the build's is {meant}",
                spec,
                "is --device the board that was programmed?",
            )
    if not hello.image_intact:
        raise CheckFailed("the firmware finds its own flash damaged", spec, "flash again; then suspect the flash")
    return hello


# --- the chip's id


def _check_chip(target: Target, word: int | None) -> str:
    """How the chip is known. A word of all zeros or ones is a probe that does not tell."""
    chip = target.chip
    if not chip.id_address:
        return "the target file names no id to check"
    if word is None or word in (0, 0xFFFFFFFF):
        return "not told by the probe"
    if word & chip.id_mask != chip.id_value & chip.id_mask:
        raise CheckFailed(
            f"wrong chip: {word & chip.id_mask:#x} at {chip.id_address:#x}, {target.name} has {chip.id_value:#x}",
            f"target {target.name}",
            "nothing was written: connect the right board, or build for the one that is there",
        )
    return f"{word & chip.id_mask:#x} at {chip.id_address:#x}"


def _word(pattern: str, said: str) -> int | None:
    found = re.search(pattern, said)
    return int(found[1], 16) if found else None


# --- methods


def _gdb(job: Job) -> tuple[str, str]:
    """Any GDB server: OpenOCD, J-Link, pyOCD, QEMU."""
    gdb = next((path for path in map(shutil.which, _GDBS) if path), None)
    if gdb is None:
        raise ToolMissing("gdb is not installed", "--method gdb", "On Debian or Ubuntu: apt install gdb-multiarch")
    server = job.probe or "localhost:3333"
    if not re.fullmatch(r"\S+:\d{1,5}", server):
        raise BadInput(f"not a GDB server: {server!r}", "--probe", "write HOST:PORT")
    chip = job.target.chip
    settings = ("set confirm off", "set pagination off", "set tcp connect-timeout 5", f"target remote {server}")
    base = [gdb, "-nx", "-batch", *(word for line in settings for word in ("-ex", line))]
    # `disconnect`: the core stays halted. An emulator without a program would run into a fault.
    ask = ["-ex", f"x/1xw {chip.id_address:#x}"] if chip.id_address else []
    said = _run([*base, *ask, "-ex", "disconnect", str(job.image)], server)
    if re.search(r"Connection refused|could not connect|timed out", said):
        raise _explain(said, server, gdb)
    known = _check_chip(job.target, _word(rf"{chip.id_address:#x}(?: <[^>]*>)?:\s+0x([0-9a-f]+)", said))
    # OpenOCD, pyOCD and J-Link reset and halt; QEMU does not know the words and is halted already.
    script = f"monitor reset halt\nload\ncompare-sections\nmonitor reset halt\necho {_DONE}\\n\ndetach\n"
    with tempfile.TemporaryDirectory() as scratch:
        commands = Path(scratch) / "flash.gdb"
        commands.write_text(script, encoding="utf-8")
        said = _run([*base, "-x", str(commands), str(job.image)], server)
    sections = re.findall(r"Section (\S+), range .*: (matched|MIS-MATCHED)", said)
    wrong = [name for name, verdict in sections if verdict != "matched"]
    if wrong:
        raise CheckFailed(f"flash holds other bytes than were written: {', '.join(wrong)}", server, "flash again")
    if _DONE not in said or not sections:
        raise _explain(said, server, gdb)
    return known, f"{len(sections)} sections compared by gdb"


def _openocd(job: Job) -> tuple[str, str]:
    openocd = _tool("openocd", "openocd")
    words: list[str] = []
    for item in job.flash.openocd:  # ["a.cfg", "-c", "words", "b.cfg"]
        words += [item] if words[-1:] == ["-c"] or item == "-c" else ["-f", item]
    words += ["-c", f"adapter serial {{{job.probe}}}"] if job.probe else []
    said = _run([openocd, *words, "-c", openocd_script(job.target, job.image)], openocd)
    word = _word(r"edgetqs-chip 0x([0-9a-f]+)", said)
    known = _check_chip(job.target, word)
    if _DONE not in said:
        raise _explain(said, f"target {job.target.name}", openocd)
    return known, "verified by openocd"


def openocd_script(target: Target, image: Path) -> str:
    """Tcl that OpenOCD runs: reads the id, and programs only the right chip."""
    chip = target.chip
    lines = ["init", "reset halt"]
    if chip.id_address:
        lines += [
            f"set chip [lindex [read_memory {chip.id_address:#x} 32 1] 0]",
            'echo [format "edgetqs-chip 0x%08x" $chip]',
            f"if {{$chip != 0 && $chip != 0xffffffff && ($chip & {chip.id_mask:#x}) != {chip.id_value:#x}}} "
            "{ shutdown error }",
        ]
    path = str(image.resolve()).replace("\\", "/")
    lines += [
        f"flash write_image erase {{{path}}}",
        f"verify_image {{{path}}}",
        "reset run",
        f"echo {_DONE}",
        "shutdown",
    ]
    return "; ".join(lines)


def _pyocd(job: Job) -> tuple[str, str]:
    pyocd = _tool("pyocd", "", "pip install 'edgetqs[flash]'")
    base = [pyocd, "commander", "--no-wait", "--target", job.flash.pyocd]
    base += ["--uid", job.probe] if job.probe else []
    word = None
    if job.target.chip.id_address:
        address = job.target.chip.id_address
        said = _run([*base, "-c", "reset -h", "-c", f"read32 {address:#x}"], pyocd, explain=pyocd)
        word = _word(rf"(?im)^{address:08x}:\s+([0-9a-f]{{8}})", said)
    known = _check_chip(job.target, word)
    # The binary, not the ELF file: between the segments of one, flash holds what it likes.
    binary, origin = shlex.quote(str(job.image.with_suffix(".bin"))), job.target.memory.flash_origin
    steps = ["reset -h", f"load {binary} {origin:#x}", f"compare {origin:#x} {binary}", "reset"]
    said = _run([*base, *(word for step in steps for word in ("-c", step))], pyocd, explain=pyocd)
    if not re.search(r"All \d+ bytes match", said):  # its exit code does not tell
        raise CheckFailed("flash holds other bytes than were written", pyocd, "flash again")
    return known, "compared by pyocd"


def _uf2(job: Job) -> tuple[str, str]:
    """Copy the file to the drive of the boot loader; it restarts by itself."""
    drive = _drive(job.probe)
    said = (drive / "INFO_UF2.TXT").read_text(encoding="utf-8", errors="replace")
    board = re.search(r"(?m)^Board-ID:\s*(\S+)", said)
    wanted = job.flash.uf2_board
    if wanted and (board is None or board[1] != wanted):
        raise CheckFailed(
            f"wrong board: its boot loader says {board[1] if board else 'nothing'}, {job.target.name} says {wanted}",
            str(drive),
            "nothing was written: connect the right board, or build for the one that is there",
        )
    file = job.image.with_suffix(".uf2")
    try:
        shutil.copyfile(file, drive / file.name)
    except OSError as error:
        raise ToolMissing(
            f"cannot write to the drive: {error.strerror}", str(drive), "mount it writable for you, then try again"
        ) from error
    return f"boot loader {board[1] if board else 'unknown'}", "by the boot loader, which takes whole blocks only"


def _drive(named: str) -> Path:
    """The mounted boot loader: the one named, or the only one there is."""
    if named:
        found = [Path(named)]
    else:
        patterns = ("media/*", "media/*/*", "run/media/*/*", "mnt/*", "Volumes/*")
        found = [path for pattern in patterns for path in Path("/").glob(pattern)]
    drives = [path for path in found if (path / "INFO_UF2.TXT").is_file()]
    if len(drives) != 1:
        raise ToolMissing(
            f"there are {len(drives)} UF2 boot loaders" if drives else "no UF2 boot loader is mounted",
            named or "--probe",
            "hold BOOTSEL while you plug the board in, mount its drive, name it with --probe FOLDER",
        )
    return drives[0]


def _ssh(job: Job) -> tuple[str, str]:
    name = job.build.record["tflite"]["path"]
    return ssh.install(
        job.probe, job.image, job.build.folder / name, job.flash.machines, job.target.name, job.ssh_config
    )


#: What `--method` may say, in the order of target.METHODS. Each programs the job's image, leaves it running, and says
#: how the chip is known and how what was written was checked.
PROGRAMMERS: dict[str, Callable[[Job], tuple[str, str]]] = dict(
    zip(METHODS, (_pyocd, _openocd, _gdb, _uf2, _ssh), strict=True)
)


# --- tools


def _tool(name: str, package: str, todo: str = "") -> str:
    path = shutil.which(name)
    if path is None:
        raise ToolMissing(f"{name} is not installed", f"--method {name}", todo or f"apt install {package}")
    return path


def _run(command: Sequence[str], where: str, *, explain: str = "") -> str:
    """All that the program says. With ``explain``, the tool's name, an exit code other than 0 is an error."""
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", timeout=TIMEOUT_S,
            check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired as error:
        raise CheckFailed(
            f"{command[0]} does not end in {TIMEOUT_S:g} s", where, "reset the board, try again"
        ) from error
    said = done.stdout + done.stderr
    if explain and done.returncode != 0:
        raise _explain(said, where, explain)
    return said


def _explain(said: str, where: str, tool: str) -> EdgeTqsError:
    """What a programmer's words mean, and what to do."""
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    telling = [line for line in lines if re.search(r"(?i)error|fail|denied|refused|timed out|^no |cannot", line)]
    last = " | ".join((telling or lines)[-2:])[-400:]
    for pattern, missing, todo in _HINTS:
        if re.search(pattern, said):
            return (ToolMissing if missing else CheckFailed)(f"programming failed: {last}", where, todo)
    return CheckFailed(f"programming failed: {last or 'it said nothing'}", where, f"{Path(tool).name} said so")
