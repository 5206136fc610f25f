"""The kernel benchmark's own arithmetic: what is compared with the baseline, how linker maps are read."""

import json
from dataclasses import replace

import cycles
import footprint
import kernel_models
import kernels
import pytest
from footprint import Count, Figures, Piece

ONE = Figures("cortex-m4", "lstm32-int8", "-O2", 1_000_000, 2_000, 3_000, 400, 150, 200, 190)
BASELINE = json.loads(kernels.BASELINE.read_text(encoding="utf-8"))


def baseline(*figures: Figures, linux: tuple[Count, ...] = ()) -> dict:
    return json.loads(json.dumps(kernels.document(figures, linux) | {"gcc": "12.2.1"}))


@pytest.fixture(autouse=True)
def no_tools(monkeypatch):
    monkeypatch.setattr(kernels, "compiler", lambda: "12.2.1")
    monkeypatch.setattr(kernels, "emulator", lambda: "QEMU")


def test_growth_up_to_two_percent_passes():
    grown = replace(ONE, instructions=1_020_000, flash_bytes=2_040, ram_bytes=408, stack_bytes=204)
    assert kernels.growth(baseline(ONE), [grown], "12.2.1") == []


@pytest.mark.parametrize("name", kernels.GUARDED)
def test_growth_beyond_is_told_with_figure_core_model_old_and_new(name):
    old = getattr(ONE, name)
    new = int(old * 1.02) + 1
    (line,) = kernels.growth(baseline(ONE), [replace(ONE, **{name: new})], "12.2.1")
    assert line == f"lstm32-int8 on cortex-m4 at -O2: {name} {old} -> {new}"


@pytest.mark.parametrize(("name", "said"), [("instructions", True), ("flash_bytes", True), ("ram_bytes", False)])
def test_another_compiler_is_told_where_it_matters(name, said):
    (line,) = kernels.growth(baseline(ONE), [replace(ONE, **{name: 2 * getattr(ONE, name)})], "13.1.0")
    assert ("by gcc 13.1.0, the baseline by gcc 12.2.1" in line) == said


def test_what_the_baseline_lacks_is_told():
    (line,) = kernels.growth(baseline(ONE), [replace(ONE, core="cortex-m3")], "12.2.1")
    assert "lstm32-int8 on cortex-m3 at -O2: not in the baseline" in line


def test_instructions_on_linux_are_compared_too():
    old = Count("raspberry-pi-4", "lstm32-int8", "-O2", 200_000)
    assert kernels.growth(baseline(ONE, linux=(old,)), [replace(old, instructions=204_000)], "12.2.1") == []
    (line,) = kernels.growth(baseline(ONE, linux=(old,)), [replace(old, instructions=204_001)], "12.2.1")
    assert line == "lstm32-int8 on raspberry-pi-4 at -O2: instructions 200000 -> 204001"


def test_int4_is_compared_with_its_twin_on_the_same_core_and_level():
    slow = {"core": "cortex-m4", "model": "lstm32-int4", "optimise": "-O2", "instructions": 1_000_001}
    twin = {"core": "cortex-m4", "model": "lstm32-int8", "optimise": "-O2", "instructions": 1_000_000}
    others = [twin | {"optimise": "-Os", "instructions": 1}, twin | {"core": "cortex-m3", "instructions": 1}]
    assert kernels.slower_int4([slow, twin, *others]) == [
        "lstm32-int4 on cortex-m4 at -O2: 1000001 instructions, int8 1000000"
    ]
    assert kernels.slower_int4([slow | {"instructions": 1_000_000}, twin]) == []


def test_the_baseline_holds_every_model_core_and_level():
    wanted = kernels.jobs(kernels.CORES, kernel_models.names(), kernels.OPTIMISE)
    assert [kernels.key(one) for one in BASELINE["figures"]] == wanted
    on_linux = kernels.jobs(kernels.LINUX, kernel_models.names(), ["-O2"])
    assert [kernels.key(one) for one in BASELINE["linux"]] == on_linux


def test_multiplications():
    assert BASELINE["macs"]["lstm32-int4"] == 48 * (4 * 32 * (32 + 8) + 32)
    assert BASELINE["macs"]["gru32-mix"] == 48 * (3 * 32 * (32 + 8) + 32)


def test_widths_of_the_mix():
    lstm, gru = (kernel_models.subject(cell, "mix").model.layers for cell in ("lstm", "gru"))
    assert lstm[0].kernel.widths == lstm[0].recurrent.widths == (4, 4, 8, 4)
    assert gru[0].kernel.widths == gru[0].recurrent.widths == (4, 4, 8)
    assert lstm[1].kernel.widths == gru[1].kernel.widths == (8,)


MAP = """
Discarded input sections

 .text.unused   0x00000000       0x99 obj/edgetqs_rt.o

Linker script and memory map

.text           0x00000000      0x100
 *(.text .text.*)
 .text          0x00000000        0x0 obj/edgetqs_rt.o
 .text.short    0x00000000       0x10 obj/edgetqs_rt.o
                0x00000001                short
 .text.a_name_too_long_for_its_column
                0x00000010       0x20 obj/bench.o
 *fill*         0x00000030        0x2
 .text          0x00000032       0x40 /usr/lib/libgcc.a(_muldi3.o)
 .text.putc     0x00000072        0x8 obj/board_uart.o
 .rodata.w_weights
                0x00000080       0x30 obj/bench.o
 .data.set      0x20000000        0x4 obj/bench.o
 .bss.scratch   0x20000004       0x80 obj/bench.o
 COMMON         0x20000084        0x8 obj/bench.o

/DISCARD/
 .ARM.exidx     0x00000000        0x8 obj/bench.o
 .text.lost     0x00000000        0x8 obj/bench.o
"""


def test_linker_map():
    pieces = footprint.linked_pieces(MAP)
    assert pieces[0] == Piece(".text.short", 0x10, "edgetqs_rt.o")
    assert Piece(".text.a_name_too_long_for_its_column", 0x20, "bench.o") in pieces
    assert {piece.section for piece in pieces}.isdisjoint({".text.unused", ".text.lost", ".ARM.exidx"})
    own = {"bench.o", "edgetqs_rt.o"}
    assert footprint.flash_bytes(pieces, own, {"w_weights"}) == 0x10 + 0x20 + 0x40 + 0x4
    assert footprint.flash_bytes(pieces, own, set()) == 0x10 + 0x20 + 0x40 + 0x4 + 0x30
    assert footprint.ram_bytes(pieces, own) == 0x4 + 0x80 + 0x8


KINDS = {
    "load": "ldr ldrb ldrsh.w ldrh",
    "store": "str strh strb",
    "many": "push pop ldmia stmdb ldrd strd",
    "branch": "b bl bx bne cbz le dls tbb",
    "multiply": "mul muls mla smlad smlal smull umull smulbb smmul",
    "divide": "sdiv udiv",
    "vector": "vmladava.s16 vldrb.s16 vadd.f32",
    "other": "lsls bics bfi adds ubfx it sxtb16 blah",
}


@pytest.mark.parametrize(("kind", "mnemonics"), KINDS.items())
def test_kinds_of_instructions(kind, mnemonics):
    assert {cycles.kind_of(mnemonic) for mnemonic in mnemonics.split()} == {kind}


def test_the_estimate_adds_up_by_hand():
    def place(mnemonic, operands="", neighbour="other", executed=10, taken=0, flash_reads=0):
        return cycles.Place("f", mnemonic, operands, neighbour, executed, taken, flash_reads)

    loop = [
        place("ldr", flash_reads=10),  # 2
        place("ldr", neighbour="load"),  # 2, pipelined: 1
        place("mla", neighbour="load"),  # 1; 2 on M3
        place("bne", executed=10, taken=9),  # 1, taken 1 or 2 more
        place("pop", "{r4-r7, r9, pc}", executed=1, taken=1),  # 1 and a word each
    ]
    estimate = {core: cycles.cycles(loop, timing, 0) for core, timing in cycles.TIMINGS.items()}
    assert estimate == {
        "cortex-m0plus": 20 + 20 + 10 + 10 + 9 + 7 + 1,
        "cortex-m3": 20 + 10 + 20 + 10 + 18 + 7 + 2,
        "cortex-m4": 20 + 10 + 10 + 10 + 18 + 7 + 2,
    }
    slow = cycles.cycles(loop, cycles.TIMINGS["cortex-m4"], 3)
    assert slow == estimate["cortex-m4"] + 3 * (10 + 9 + 1)


def test_int4_is_never_slower_than_int8():
    assert "\n".join(kernels.slower_int4(BASELINE["figures"])) == ""
