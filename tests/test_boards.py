"""Boards: what is linked for them lies where the chip looks for it. None of them has been seen on hardware."""

import struct
import zlib
from dataclasses import replace
from pathlib import Path

import pytest
from elftools.elf.elffile import ELFFile
from installed import ready
from linked import linked
from models import random_forecaster

from edgetqs import boot2, elf, firmware
from edgetqs.errors import BadInput, CheckFailed, ToolMissing
from edgetqs.pipeline import Options, build, run_firmware
from edgetqs.project import Project
from edgetqs.target import list_targets, load_target, pin_number
from edgetqs.transport import connect

BOARDS = [target.name for target in list_targets() if target.kind == "bare" and target.hardware]
UNSEEN = "not yet seen on hardware"


def board(name: str):
    ready(name, runs=False)
    return linked(name)


def flash(image: Path) -> list[tuple[int, bytes]]:
    """(address, bytes) of all that is programmed."""
    with image.open("rb") as stream:
        segments = ELFFile(stream).iter_segments("PT_LOAD")
        return [(segment["p_paddr"], segment.data()) for segment in segments if segment["p_filesz"]]


def bytes_at(image: Path, address: int, count: int) -> bytes:
    (piece,) = (data[address - start :][:count] for start, data in flash(image) if start <= address < start + len(data))
    return piece


def test_the_boards_are_there():
    assert set(BOARDS) == {
        "microbit", "nrf52840-dk", "nucleo-f446re", "nucleo-l4r5zi", "rp2040-pico", "stm32f405",
    }  # fmt: skip
    assert all(load_target(name).hardware == UNSEEN for name in BOARDS)
    assert all(load_target(name).flash and load_target(name).chip.id_address for name in BOARDS)


@pytest.mark.parametrize("name", BOARDS)
def test_the_image_lies_within_the_memory_map(name):
    own = board(name)
    memory = own.target.memory
    flash_end = memory.flash_origin + memory.flash_bytes
    ram_end = memory.ram_origin + memory.ram_bytes
    for start, data in flash(own.image):
        assert memory.flash_origin <= start and start + len(data) <= flash_end
    for section in elf.sections(own.image):
        in_ram = section.in_ram and section.name != ".seal"  # written to after linking, hence its flag
        low, high = (memory.ram_origin, ram_end) if in_ram else (memory.flash_origin, flash_end)
        assert low <= section.address and section.address + section.bytes <= high, section.name
    first = min(start for start, _ in flash(own.image))
    assert first == memory.flash_origin  # so that the .bin, written from there on, lies right


@pytest.mark.parametrize("name", BOARDS)
def test_the_vector_table_is_where_the_core_looks(name):
    own = board(name)
    memory = own.target.memory
    words = struct.unpack("<16I", bytes_at(own.image, memory.flash_origin + memory.boot_bytes, 64))
    assert words[0] == memory.ram_origin + memory.ram_bytes  # the stack starts at the top of RAM
    assert words[1] == elf.symbol(own.image, "Reset_Handler").address | 1
    fault = elf.symbol(own.image, "board_fault").address | 1
    assert words[2:8] == (fault,) * 6
    assert words[11] == words[12] == words[14] == words[15] == fault
    assert memory.boot_bytes % 256 == 0  # SCB_VTOR takes no less


@pytest.mark.parametrize("name", BOARDS)
def test_the_binary_is_what_is_programmed(name, tmp_path):
    own = board(name)
    binary = firmware.write_binary(own.target, own.image, tmp_path / "link.bin").read_bytes()
    for start, data in flash(own.image):
        offset = start - own.target.memory.flash_origin
        assert binary[offset : offset + len(data)] == data


@pytest.mark.parametrize("name", [name for name in BOARDS if load_target(name).chip.start])
def test_the_chip_is_started_before_main(name):
    own = board(name)
    start = elf.symbol(own.image, "board_start")
    # objdump names the callees of board_start in order.
    tools = firmware.toolchain(own.target)
    text = firmware._run([tools.objdump, "-d", str(own.image)], "disassembling")
    body = text[text.index("<board_start>:") :].partition("\n\n")[0]
    calls = [line.partition("<")[2].rstrip(">") for line in body.splitlines() if "\tbl\t" in line or "\tbl " in line]
    assert start.bytes and calls.index("board_chip_start") < calls.index("main")


def test_crc_of_the_boot_stage_is_the_published_algorithm():
    assert boot2.crc(b"123456789") == 0x0376E6E7  # CRC-32/MPEG-2
    # Two independent ways: the reflected CRC of zlib on reversed bits gives the same polynomial.
    data = bytes(range(252))
    mirrored = zlib.crc32(bytes(int(f"{byte:08b}"[::-1], 2) for byte in data)) ^ 0xFFFFFFFF
    assert boot2.crc(data) == int(f"{mirrored:032b}"[::-1], 2)


def test_the_pico_boots():
    own = board("rp2040-pico")
    stage = bytes_at(own.image, 0x1000_0000, 256)
    assert struct.unpack("<I", stage[252:])[0] == boot2.crc(stage[:252])
    assert elf.symbol(own.image, "board_boot2").address == 0x1000_0000
    assert struct.unpack("<2I", bytes_at(own.image, 0x1000_0100, 8))[0] == 0x2004_2000


def test_only_the_pico_has_a_boot_stage(tmp_path):
    with pytest.raises(CheckFailed, match="no second boot stage"):
        boot2.sign(board("nucleo-f446re").image)


@pytest.mark.parametrize(
    ("name", "number"),
    [("PA9", 9), ("PG7", 103), ("P0.06", 6), ("P1.02", 34), ("GPIO1", 1), ("PA16", None), ("P2.1", None), ("9", None)],
)
def test_pins(name, number):
    assert pin_number(name) == number


@pytest.mark.parametrize(
    ("name", "old", "new", "message"),
    [
        ("nucleo-f446re", 'tx = "PA2"', 'tx = "A2"', "uart.tx: name the pin"),
        ("nucleo-f446re", 'stand_in = "cortex-m4"', 'stand_in = "cortex-m7"', "stand_in: cortex-m7 is compiled with"),
        ("nucleo-f446re", 'stand_in = "cortex-m4"', 'stand_in = "cortex"', "stand_in: there is no target 'cortex'"),
        ("nucleo-f446re", 'stand_in = "cortex-m4"', 'stand_in = "nrf52840-dk"', "stand_in: nothing emulates"),
        ("nucleo-f446re", '["openocd", "pyocd", "gdb"]', '["dfu"]', "flash.methods: must be of pyocd, openocd"),
        ("rp2040-pico", "boot_bytes = 256 ", "boot_bytes = 252 ", "memory.boot_bytes: must be a multiple of 8"),
    ],
)
def test_mistakes_in_a_board(tmp_path, name, old, new, message):
    from test_target import edited

    with pytest.raises(BadInput) as caught:
        load_target(edited(tmp_path, (old, new), name=name))
    assert message in str(caught.value)


@pytest.mark.qemu
def test_a_cores_proof_runs_on_the_target_that_stands_in(tmp_path):
    ready("cortex-m0plus")
    figures = small_build("rp2040-pico", tmp_path / "out")
    chain = figures["chain"]
    assert (chain["emulator"], chain["application"]) == ("exact", "exact")
    assert chain["details"]["emulator"].endswith("steps, on cortex-m0plus, the same core")
    assert figures["cost"]["instructions_per_step"] > 0
    assert figures["target"] == "rp2040-pico"
    assert elf.load_pieces(tmp_path / "out" / "firmware.elf")[0][0] == 0x1000_0000  # the board's own
    assert elf.load_pieces(tmp_path / "out" / "emulated.elf")[0][0] == 0  # the stand-in's
    assert (tmp_path / "out" / "firmware.uf2").is_file() and (tmp_path / "out" / "link.uf2").is_file()
    run = run_firmware(tmp_path / "out", 60)
    assert run.exit_code == 0 and "bytes of stack used" in run.uart


@pytest.mark.qemu
def test_what_is_larger_than_the_stand_in_is_not_run(tmp_path, monkeypatch):
    ready("cortex-m4")
    small = load_target("cortex-m4")
    small = replace(small, memory=replace(small.memory, flash_bytes=2048))
    monkeypatch.setattr("edgetqs.images._HARNESS_ROOM", 0)
    monkeypatch.setattr("edgetqs.prove.emulated_as", lambda target: small)
    chain = small_build("nucleo-f446re", tmp_path / "out")["chain"]
    assert (chain["emulator"], chain["application"], chain["host"]) == ("not run", "not run", "exact")
    assert "larger than what emulates the core, cortex-m4" in chain["details"]["emulator"]


def test_a_board_is_not_emulated_as_itself():
    own = board("nucleo-l4r5zi")
    with pytest.raises(ToolMissing, match="nothing emulates this device: build for cortex-m4"):
        connect("qemu", own.target, own.image)


def small_build(name: str, folder: Path):
    forecaster = random_forecaster("gru", 6, 3, 2, window=5, gain=1.5, scaled=True)
    return build(Project(forecaster, 4), name, folder, Options(rounding="nearest", refine=False), str)
