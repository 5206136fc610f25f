"""No core is given an instruction that it does not have; running proves nothing, as QEMU has them all."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from installed import ready
from instruction_sets import Instruction, disassemble, foreign
from models import mixed, random_forecaster, uniform

from edgetqs import firmware, images
from edgetqs.emit_c import Replay, emit_c
from edgetqs.integer import IntegerModel
from edgetqs.model import frozen
from edgetqs.quantizer import quantize
from edgetqs.target import Target, list_targets, load_target

pytestmark = pytest.mark.qemu

TARGETS = [target.name for target in list_targets() if target.kind != "host" and target.qemu]
BARE = [target.name for target in list_targets() if target.kind == "bare" and target.qemu]
KINDS = ("lstm", "gru", "gru_reset_before", "rnn")
Listing = list[Instruction]


def integer_model(kind: str) -> IntegerModel:
    """Both widths; soft gates, hard ones (gru_reset_before), rows summed in parts (rnn)."""
    if kind == "rnn":
        plain = random_forecaster(kind, 4, 700, 2, layers=1, window=6, scaled=True)
        full = replace(plain.layers[0], kernel=frozen(np.sign(plain.layers[0].kernel)))
        wide = replace(plain, layers=(full, *plain.layers[1:]))
        return quantize(wide, uniform(wide, 8), "nearest")
    gate = "hard_sigmoid_keras3" if kind == "gru_reset_before" else "sigmoid"
    forecaster = random_forecaster(kind, 9, 3, 2, layers=1, window=6, scaled=True, gate=gate)
    return quantize(forecaster, mixed(forecaster), "nearest")


def listings(target: Target, kind: str, folder: Path, optimise: str = "-O2") -> dict[str, Listing]:
    """Of the application and the harness; of a Linux program the objects, as its C library chooses at run time."""
    model = integer_model(kind)
    inputs = len(model.inputs)
    known = len(model.feedback.known)
    replay = Replay(np.zeros((6, inputs), np.float32), np.zeros((4, known), np.float32), "zeros")
    texts = emit_c(model, target.cpu.kernels, replay, horizon=4, version="0", plan_hash="0")
    assert kind != "rnn" or "_wide(" in texts["rnn4.c"]
    sources = images.write_sources(folder / "src", texts, target.cpu.kernels)
    objects = folder / "obj"
    firmware_elf = images.link_ample(target, sources, objects, folder / "firmware.elf")
    harness_elf = images.link_harness(target, sources, folder / "harness", folder / "harness.elf", optimise=optimise)
    objdump = firmware.toolchain(target).objdump
    if target.kind == "linux":
        paths = [*objects.glob("*.o"), *(folder / "harness").glob("*.o")]
        return {f"{path.parent.name}/{path.name}": disassemble(objdump, path, target.cpu.core) for path in paths}
    return {path.name: disassemble(objdump, path, target.cpu.core) for path in (firmware_elf, harness_elf)}


@pytest.fixture(scope="module")
def listed(tmp_path_factory) -> Callable[[str, str], dict[str, Listing]]:
    known: dict[tuple[str, str], dict[str, Listing]] = {}

    def get(name: str, kind: str) -> dict[str, Listing]:
        if (name, kind) not in known:
            known[name, kind] = listings(ready(name, runs=False), kind, tmp_path_factory.mktemp(f"{name}-{kind}"))
        return known[name, kind]

    return get


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", TARGETS)
def test_no_instruction_that_the_core_lacks(listed, name, kind):
    found = listed(name, kind)
    assert sum(map(len, found.values())) > 1000
    assert {image: foreign(load_target(name).cpu.core, one) for image, one in found.items()} == {
        image: [] for image in found
    }


@pytest.mark.parametrize("name", BARE)
def test_nor_when_it_is_compiled_for_size(name, tmp_path):
    found = listings(ready(name, runs=False), "lstm", tmp_path, "-Os")["harness.elf"]
    assert foreign(load_target(name).cpu.core, found) == []


@pytest.mark.parametrize("name", [name for name in BARE if load_target(name).cpu.kernels == "dsp"])
def test_cores_with_smlad_use_it(listed, name):
    assert "smlad" in {one.mnemonic for one in listed(name, "lstm")["firmware.elf"]}


def test_cores_with_helium_use_it(listed):
    # vmlava is objdump's name of vmladava.
    assert {"vmlava.s16", "letp"} <= {one.mnemonic for one in listed("cortex-m55", "lstm")["firmware.elf"]}


#: Encodings of what a core lacks, and what objdump calls them.
FOREIGN = [
    ("cortex-m0plus", ".inst.n 0xb108", "cbz"),
    ("cortex-m0plus", ".inst.n 0xbf08", "it"),
    ("cortex-m0plus", ".inst.w 0xfbb0f0f1", "udiv"),
    ("cortex-m0plus", ".inst.w 0xf2400001", "movw"),
    ("cortex-m0plus", ".inst.w 0xf8d01000", "ldr.w"),
    ("cortex-m0plus", ".inst.w 0xfb810203", "smull"),
    ("cortex-m3", ".inst.w 0xfb213002", "smlad"),
    ("cortex-m3", ".inst.w 0xfbc013c2", "smlald"),
    ("cortex-m3", ".inst.w 0xfa2ff081", "sxtb16"),
    ("cortex-m3", ".inst.w 0xfa00f081", "sxtah"),
    ("cortex-m3", ".inst.w 0xfa82f081", "qadd"),
    ("cortex-m3", ".inst.w 0xfb11f002", "smulbb"),
    ("cortex-m3", ".inst.w 0xfbe10263", "umaal"),
    ("cortex-m3", ".inst.w 0xf3210007", "ssat16"),
    ("cortex-m3", ".inst.w 0xee300a20", "vadd.f32"),
    ("cortex-m4", ".inst.w 0xee300b01", "vadd.f64"),
    ("cortex-m4", ".inst.w 0xef100842", "vadd.i16"),
    ("cortex-m4", ".inst.w 0xfe300a20", "vselgt.f32"),
    ("cortex-m7", ".inst.w 0xee300b01", "vadd.f64"),
    ("cortex-m7", ".inst.w 0xe8d10faf", "lda"),
    ("cortex-m33", ".inst.w 0xef100842", "vadd.i16"),
    ("cortex-m33", ".inst.w 0xf00fc001", "le"),
    ("cortex-m33", ".inst.w 0xea518002", "csel"),
    ("cortex-m55", ".inst.w 0xf920078f", "UNDEFINED"),
    ("raspberry-pi-zero", ".inst 0xe3000001", "movw"),
    ("raspberry-pi-zero", ".inst 0xe7e00050", "ubfx"),
    ("raspberry-pi-zero", ".inst 0xe710f110", "sdiv"),
    ("raspberry-pi-zero", ".inst 0xf2200842", "vadd.i32"),
    ("raspberry-pi-zero", ".inst 0xeeb70a00", "vmov.f32"),
    ("raspberry-pi-4", ".inst 0x4e829420", "sdot"),
    ("raspberry-pi-4", ".inst 0xb8210000", "ldadd"),
    ("raspberry-pi-4", ".inst 0x04a00000", "add"),
    ("raspberry-pi-4", ".inst 0x4e421420", "fadd"),
]


@pytest.mark.parametrize(("name", "encoding", "called"), FOREIGN)
def test_a_foreign_instruction_is_seen(name, encoding, called, tmp_path):
    target = ready(name, runs=False)
    source = tmp_path / "foreign.c"
    source.write_text(f'int foreign(int x);\nint foreign(int x) {{ __asm__ volatile("{encoding}"); return x + 1; }}\n')
    (made,) = firmware.compile_sources(target, [source], tmp_path)
    found = foreign(target.cpu.core, disassemble(firmware.toolchain(target).objdump, made, target.cpu.core))
    assert len(found) == 1
    assert called in found[0]


def test_data_between_instructions_is_none(tmp_path):
    target = ready("cortex-m0plus", runs=False)
    source = tmp_path / "data.c"
    source.write_text(
        'int data(void);\nint data(void) { __asm__ volatile("b 1f\\n.word 0xfb213002\\n1:"); return 0x12345678; }\n'
    )
    (made,) = firmware.compile_sources(target, [source], tmp_path)
    assert foreign(target.cpu.core, disassemble(firmware.toolchain(target).objdump, made, target.cpu.core)) == []
