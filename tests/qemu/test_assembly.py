"""The assembly of a layout computes what the same functions compute in C."""

import re
from pathlib import Path

import pytest
from installed import ready

from edgetqs import emulate, firmware
from edgetqs.layout import LAYOUTS
from edgetqs.paths import data_dir

pytestmark = pytest.mark.qemu


@pytest.mark.parametrize(
    ("name", "layout", "architecture"),
    [("cortex-m0plus", "thumb1", "__ARM_ARCH_6M__"), ("cortex-m55", "mve", "__ARM_FEATURE_MVE")],
)
def test_assembly_equals_c(tmp_path, name, layout, architecture):
    target = ready(name)
    runtime = data_dir("runtime")
    both = ["edgetqs_cells.c", f"edgetqs_{layout}.c"]
    assembly = [name for name in LAYOUTS[layout].sources if name.endswith(".S")]
    functions = {
        name for file in both for name in re.findall(r"^\w+ (edgetqs_\w+)\(", (runtime / file).read_text(), re.M)
    }
    objects = firmware.compile_sources(
        target,
        [*(runtime / name for name in (*both, *assembly)), *firmware.board_sources(target)],
        tmp_path / "own",
        defines=firmware.board_defines(target, emulated=True),
    )
    objects += firmware.compile_sources(
        target, [Path(__file__).with_name(f"{layout}_equal.c")], tmp_path / "program", [Path(__file__).parent]
    )
    objects += firmware.compile_sources(
        target,
        [runtime / name for name in both],
        tmp_path / "c",
        defines={name: f"c_{name}" for name in functions},
        extra=[f"-U{architecture}"],
    )
    script = firmware.write_linker_script(target, tmp_path / "link.ld")
    elf = firmware.link(target, objects, tmp_path / "equal.elf", script)
    assert emulate.run(target, elf, tmp_path, timeout_s=120).exit_code == 0
