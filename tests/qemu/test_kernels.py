"""No change may make the kernels slower or larger: the benchmark again, against bench/kernels.json."""

from __future__ import annotations

import json
from dataclasses import replace

import cycles
import footprint
import kernel_models
import kernels
import pytest
from installed import ready

from edgetqs import chain, elf, firmware
from edgetqs.errors import CheckFailed

pytestmark = pytest.mark.qemu

BASELINE = json.loads(kernels.BASELINE.read_text(encoding="utf-8"))
MODELS = ("lstm32-int8", "lstm32-int4", "lstm32-mix", "gru32-int8")


@pytest.mark.parametrize("core", kernels.CORES)
@pytest.mark.parametrize("model", MODELS)
def test_nothing_grows_over_the_baseline(core, model):
    found = footprint.measure(ready(core), kernel_models.by_name(model), "-O2")
    assert found.stack_measured_bytes <= found.stack_bytes
    not_grown(found)


@pytest.mark.parametrize("computer", kernels.LINUX)
@pytest.mark.parametrize("model", MODELS)
def test_instructions_on_linux_do_not_grow_over_the_baseline(computer, model):
    not_grown(footprint.count_instructions(ready(computer), kernel_models.by_name(model), "-O2"))


def not_grown(found: footprint.Figures | footprint.Count) -> None:
    grown = kernels.growth(BASELINE, [found], kernels.compiler())
    if grown:
        pytest.fail("\n".join(grown), pytrace=False)


@pytest.mark.parametrize("core", ["cortex-m0plus", "cortex-m4"])
def test_the_map_accounts_for_the_whole_image(core, tmp_path):
    """What is counted is what the linker kept: its sections are the map's pieces and fill, and the vectors."""
    target = ready(core)
    main = tmp_path / "main.c"
    main.write_text(
        "#include <stdint.h>\n"
        "static volatile uint64_t large = 7;\n"
        "static volatile uint8_t odd[3];\n"
        'static const char said[] = "quotient";\n'
        "int main(void) { large = large / (large - 4); odd[2] = (uint8_t)said[large & 7]; return odd[1]; }\n"
    )
    sources = [main, *firmware.board_sources(target)]
    defines = firmware.board_defines(target, emulated=True)
    objects = firmware.compile_sources(target, sources, tmp_path, defines=defines)
    script = firmware.write_linker_script(target, tmp_path / "link.ld")
    pieces = footprint.pieces_of_link(target, objects, tmp_path / "main.elf", script)
    assert any("div" in piece.file for piece in pieces if piece.file.startswith("libgcc.a("))
    flash = sum(piece.bytes for piece in pieces if piece.section.startswith((".text", ".rodata", ".data")))
    vectors = elf.symbol(tmp_path / "main.elf", "vectors").bytes
    assert 0 <= elf.flash_bytes(tmp_path / "main.elf") - vectors - flash < 4 * len(pieces)
    ram = sum(piece.bytes for piece in pieces if piece.section.startswith((".data", ".bss")))
    assert 0 <= elf.ram_bytes(tmp_path / "main.elf") - ram < 4 * len(pieces)
    assert ram == 8 + 3


def test_a_wrong_result_is_not_counted(monkeypatch):
    true_golden = chain.golden

    def other(model, **options):
        vectors = true_golden(model, **options)
        outputs = vectors.outputs.copy()
        outputs[-1] += 1
        return replace(vectors, outputs=outputs)

    monkeypatch.setattr(chain, "golden", other)
    with pytest.raises(CheckFailed, match="lstm32-int8 on cortex-m4 differs from the reference"):
        footprint.measure(ready("cortex-m4"), kernel_models.by_name("lstm32-int8"), "-O2")


def test_two_plugins_count_alike():
    """The profile's instructions, by address, sum up to the count; every weight is read from flash in every step."""
    target, subject = ready("cortex-m4"), kernel_models.by_name("lstm32-int8")
    count = footprint.measure(target, subject, "-O2").instructions
    places = cycles.profile(target, subject, "-O2", count)
    assert sum(place.flash_reads for place in places) >= subject.macs / 4
    assert 0 < sum(place.taken for place in places) < sum(p.executed for p in places if p.kind in ("branch", "many"))
    with pytest.raises(CheckFailed, match="by the other plugin"):
        cycles.profile(target, subject, "-O2", count + 1)
