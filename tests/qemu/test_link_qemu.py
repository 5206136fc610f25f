"""The serving firmware on every emulated device: bits, restarts, and what happens when something breaks."""

import random
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from installed import ready
from linked import Linked, linked, play

from edgetqs import elf, reference
from edgetqs.dut import DeviceError, DeviceRestarted, DeviceSilent, Dut
from edgetqs.errors import CheckFailed
from edgetqs.faults import Faulty, Rates
from edgetqs.firmware import toolchain
from edgetqs.protocol import Code, Fault
from edgetqs.seal import seal
from edgetqs.serving import make
from edgetqs.target import list_targets
from edgetqs.transport import connect

pytestmark = pytest.mark.qemu

BARE = [target.name for target in list_targets() if target.kind == "bare" and target.qemu]
V8M = ["cortex-m33", "cortex-m55"]
WATCHED = ["cortex-m3", "cortex-m4", "cortex-m7"]  # QEMU has no watchdog for the others
#: A hook that does something once after a power-up and a step, between two frames.
ONCE = """
#include "serve.h"
int board_sample_ready(float in[MODEL_INPUTS])
{
    static unsigned polls;
    (void)in;
    polls += served.most != 0u;
    if (polls == 20000u && served.record->cause == BOARD_POWER_UP) {
        %s
    }
    return 0;
}
"""


def device(own: Linked, image: Path | None = None, **options) -> Dut:
    return Dut(connect("qemu", own.target, image or own.image), **options)


def on(name: str) -> Linked:
    ready(name)
    return linked(name)


def patched(image: Path, name: str, address: int, data: bytes) -> Path:
    """A copy of a bare image with other bytes in flash."""
    from elftools.elf.elffile import ELFFile

    with image.open("rb") as stream:
        (place,) = (
            segment["p_offset"] + address - segment["p_paddr"]
            for segment in ELFFile(stream).iter_segments("PT_LOAD")
            if segment["p_paddr"] <= address and address + len(data) <= segment["p_paddr"] + segment["p_filesz"]
        )
    content = bytearray(image.read_bytes())
    content[place : place + len(data)] = data
    copy = image.with_name(f"{name}.elf")
    copy.write_bytes(content)
    return copy


def until_restarted(dut: Dut) -> Fault:
    """Talk until the firmware starts anew; what it said of it."""
    with pytest.raises(DeviceRestarted):
        for _ in range(3000):
            dut.step([0] * dut.hello.inputs)
    return dut.notices[0]


@pytest.mark.parametrize("name", [target.name for target in list_targets() if target.kind != "host" and target.qemu])
def test_every_device_answers_with_the_references_bits(name):
    own = on(name)
    model, vectors, known = own.model, own.golden, list(own.model.feedback.known)
    with device(own) as dut:
        assert play(dut, own, 120) == []
        dut.reset()
        outputs, state = reference.run(model, reference.zero_state(model), vectors.inputs[:9])
        ahead, _ = reference.closed_loop(model, state, vectors.inputs[8], outputs[-1], 80, vectors.inputs[10:90])
        for x in vectors.inputs[:9]:
            dut.step(x)
        saved = dut.state()
        assert dut.forecast(80, vectors.inputs[10:90][:, known]).tolist() == ahead.tolist()
        assert dut.state() == saved
        stats = dut.stats()
        assert stats.steps == 9 and 0 < stats.least_ticks <= stats.ticks <= stats.most_ticks
        assert dut.restart().cause == "requested"
        assert dut.power_cycle().cause == "power-up"
        dut.restore(saved)
        assert dut.step(vectors.inputs[9]).tolist() == vectors.outputs[9].tolist()


@pytest.mark.parametrize("name", BARE)
def test_ticks_are_instructions_and_the_stack_is_within_its_bound(name, tmp_path):
    own = on(name)
    figures = make(own.target, own.sources, tmp_path)
    with device(own) as dut:
        assert dut.hello.clock == "SysTick"
        ticks = []
        for _ in range(2):
            dut.reset()
            play(dut, own, 12)
            ticks.append(dut.stats().ticks)
        assert abs(ticks[0] - ticks[1]) <= 16  # instructions on the way to the counter
        dut.forecast(6, own.golden.inputs[:6, list(own.model.feedback.known)])
        dut.check()
        stats = dut.stats()
        assert stats.stack_bytes == own.target.memory.stack_bytes
        assert 0 < stats.stack_peak_bytes <= figures["stack_bytes"]
        assert f"{dut.check():08x}" == figures["image_crc"]


@pytest.mark.parametrize("name", BARE)
def test_a_flood_of_garbage_and_half_frames(name):
    own = on(name)
    rng = random.Random(4)
    with device(own) as dut:
        dut.transport.write(rng.randbytes(3000))
        assert play(dut, own, 5) == []
        assert dut.stats().bad_frames > 0


@pytest.mark.parametrize("name", ["cortex-m0plus", "cortex-m4", "stm32f405"])
def test_a_bad_cable(name):
    own = on(name)
    cable = Faulty(connect("qemu", own.target, own.image), Rates(0.005, 0.005, 0.005, 0.002, 0.05), seed=11)
    with Dut(cable, patience_s=60) as dut:
        assert play(dut, own, 60) == []
        assert dut.stats().steps == 60
        assert dut.repeats > 0


def test_a_cut_cable():
    own = on("cortex-m4")
    with device(own) as dut:
        assert play(dut, own, 5) == []
        dut.transport.write(b"\0\x09\x03half a frame")
        dut.transport.reconnect()
        assert dut.step(own.golden.inputs[5]).tolist() == own.golden.outputs[5].tolist()
        assert dut.stats().steps == 6


# --- damage ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", BARE)
@pytest.mark.parametrize("what", ["weights", "code", "cut"])
def test_damaged_flash_gives_no_numbers(name, what):
    own = on(name)
    weights = max((s for s in elf.symbols(own.image) if s.name.endswith("_stored")), key=lambda s: s.bytes)
    end = max(s.address + s.bytes for s in elf.sections(own.image) if s.in_flash and not s.in_ram)
    rows = next(s for s in elf.symbols(own.image) if s.name.startswith("edgetqs_rows") and s.is_function)
    address = {"weights": weights.address + weights.bytes // 2, "code": rows.address + 8, "cut": end - 64}[what]
    if what == "cut":  # erased flash from there on
        image = own.image
        for word in range(address, end, 4):
            image = patched(image, f"cut-{name}", word, b"\xff" * 4)
    else:
        image = patched(own.image, f"{what}-{name}", address, bytes([_flash(own.image, address) ^ 0x10]))
    with device(own, image) as dut:
        assert not dut.hello.image_intact
        assert [fault.code for fault in dut.notices] == [Code.IMAGE_DAMAGED]
        for request in (dut.check, dut.reset, lambda: dut.step(own.golden.inputs[0]), dut.state):
            with pytest.raises(DeviceError, match="IMAGE_DAMAGED"):
                request()
        assert dut.stats().steps == 0


def test_initial_values_are_checked_too():
    own = on("cortex-m4")
    hook = """
    static volatile uint32_t table[4] = {0x11223344u, 2u, 3u, 4u};
    int board_sample_ready(float in[MODEL_INPUTS])
    {
        in[0] = (float)table[0];
        return 0;
    }
    """
    image = own.link("initial", hook=hook)
    with device(own, image) as dut:
        assert dut.hello.image_intact and dut.check()
    content = image.read_bytes()
    place = content.index(bytes.fromhex("44332211"))
    image.write_bytes(content[:place] + b"\x45" + content[place + 1 :])
    with device(own, image) as dut:
        assert not dut.hello.image_intact


def _flash(image: Path, address: int) -> int:
    from elftools.elf.elffile import ELFFile

    with image.open("rb") as stream:
        for segment in ELFFile(stream).iter_segments("PT_LOAD"):
            if segment["p_paddr"] <= address < segment["p_paddr"] + segment["p_filesz"]:
                return segment.data()[address - segment["p_paddr"]]
    raise AssertionError(hex(address))


@pytest.mark.parametrize("name", [name for name in BARE if name not in V8M])
def test_a_stack_that_is_too_small_gives_no_numbers(name):
    own = on(name)
    small = replace(own.target, memory=replace(own.target.memory, stack_bytes=160))
    with device(own, own.link("narrow", small)) as dut:
        with pytest.raises(DeviceError, match="STACK_OVERFLOW"):
            dut.step(own.golden.inputs[0])
        stats = dut.stats()
        assert stats.stack_peak_bytes == stats.stack_bytes == 160
        assert not dut.greet().stack_intact
        with pytest.raises(DeviceError, match="STACK_OVERFLOW"):
            dut.state()


DEEP = "volatile uint8_t deep[{0}]; for (unsigned k = {0}; k > 0u; --k) {{ deep[k - 1u] = 1; }} (void)deep[0];"


@pytest.mark.parametrize("name", BARE)
def test_a_stack_that_overflows_once_is_told(name):
    own = on(name)
    hook = ONCE % DEEP.format(own.target.memory.stack_bytes)
    with device(own, own.link("deep", hook=hook)) as dut:
        if name in V8M:  # the core has a stack limit: it faults
            assert until_restarted(dut).detail == 2
            assert dut.greet().cause == "fault"
            return
        with pytest.raises(DeviceError, match="STACK_OVERFLOW"):
            for _ in range(3000):
                dut.step([0] * dut.hello.inputs)


@pytest.mark.parametrize("name", BARE)
def test_a_fault_restarts_the_firmware_which_tells(name):
    own = on(name)
    image = own.link("faulty", hook=ONCE % "__builtin_trap();")
    with device(own, image) as dut:
        assert until_restarted(dut) == Fault(Code.RESTARTED, 0, 2)
        assert dut.greet().cause == "fault"
        stats, hook = dut.stats(), elf.symbol(image, "board_sample_ready")
        assert hook.address <= stats.pc < hook.address + hook.bytes
        assert stats.exception == 3
        assert (stats.cfsr != 0) == (own.target.cpu.kernels != "thumb1")


@pytest.mark.parametrize("name", WATCHED)
def test_a_program_that_hangs_is_restarted_by_its_watchdog(name):
    own = on(name)
    image = own.link("hanging", hook=ONCE % 'for (;;) { __asm__ volatile("nop"); }')
    with device(own, image) as dut:
        assert until_restarted(dut) == Fault(Code.RESTARTED, 0, 3)
        assert dut.greet().cause == "watchdog"
        hook = elf.symbol(image, "board_sample_ready")
        assert hook.address <= dut.stats().pc < hook.address + hook.bytes


def test_a_hook_that_never_lets_go_is_silence_without_a_watchdog():
    own = on("cortex-m4")
    image = own.link("stuck", replace(own.target, watchdog=None), ONCE % 'for (;;) { __asm__ volatile("nop"); }')
    with device(own, image, patience_s=2) as dut, pytest.raises(DeviceSilent):
        for _ in range(3000):
            dut.step([0] * dut.hello.inputs)


# --- size -----------------------------------------------------------------------------


def test_what_the_link_takes():
    """Code and RAM of the link itself on a Cortex-M4, the model and the start-up left out."""
    own = on("cortex-m4")
    size = toolchain(own.target).objdump.replace("objdump", "size")
    assert own.image.is_file()
    names = "serve", "serve_requests", "edgetqs_link", "board_link", "board_watchdog"
    objects = [own.folder / "obj-link" / f"{name}.o" for name in names]
    said = subprocess.run([size, *objects], capture_output=True, text=True, check=True).stdout
    text, data, bss = (sum(int(line.split()[k]) for line in said.splitlines()[1:]) for k in range(3))
    assert text <= 3000 and data + bss <= 1000


def test_an_image_too_large_for_the_device_is_told(tmp_path):
    own = on("cortex-m4")
    tiny = replace(own.target, memory=replace(own.target.memory, flash_bytes=4096))
    figures = make(tiny, own.sources, tmp_path)
    assert figures["fits"] is False and "too many in FLASH" in figures["why"]
    assert not (tmp_path / "link.elf").exists()


def test_an_image_is_sealed_once():
    own = on("cortex-m4")
    copy = own.folder / "twice.elf"
    copy.write_bytes(own.image.read_bytes())
    with pytest.raises(CheckFailed, match="one already"):
        seal(own.target, copy)
