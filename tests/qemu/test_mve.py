"""Helium: the assembly computes what the same functions compute in C."""

import re
import shutil
from pathlib import Path

import pytest

from edgetqs import emulate, firmware
from edgetqs.errors import ToolMissing
from edgetqs.layout import LAYOUTS
from edgetqs.paths import data_dir
from edgetqs.target import load_target

pytestmark = pytest.mark.qemu

TARGET = load_target("cortex-m55")


def test_assembly_equals_c(tmp_path):
    try:
        firmware.toolchain(TARGET)
    except ToolMissing as error:
        pytest.skip(error.what)
    if shutil.which(TARGET.qemu.program) is None:
        pytest.skip(f"{TARGET.qemu.program} is not installed")
    runtime = data_dir("runtime")
    both = ["edgetqs_cells.c", "edgetqs_mve.c"]
    assembly = [name for name in LAYOUTS["mve"].sources if name.endswith(".S")]
    functions = {
        name for file in both for name in re.findall(r"^\w+ (edgetqs_\w+)\(", (runtime / file).read_text(), re.M)
    }
    objects = firmware.compile_sources(
        TARGET,
        [*(runtime / name for name in (*both, *assembly)), *firmware.board_sources(TARGET)],
        tmp_path / "own",
        defines=firmware.board_defines(TARGET, emulated=True),
    )
    objects += firmware.compile_sources(TARGET, [Path(__file__).with_name("mve_equal.c")], tmp_path / "program")
    objects += firmware.compile_sources(
        TARGET,
        [runtime / name for name in both],
        tmp_path / "c",
        defines={name: f"c_{name}" for name in functions},
        extra=["-U__ARM_FEATURE_MVE"],
    )
    script = firmware.write_linker_script(TARGET, tmp_path / "link.ld")
    elf = firmware.link(TARGET, objects, tmp_path / "equal.elf", script)
    assert emulate.run(TARGET, elf, tmp_path, timeout_s=120).exit_code == 0
