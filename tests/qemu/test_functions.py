"""Functions by table and the LSTM's cell, in every form that the runtime has, for all int16 inputs."""

from pathlib import Path

import numpy as np
import pytest
from installed import ready

from edgetqs import emulate, firmware
from edgetqs import fixedpoint as fp
from edgetqs.layout import layout_of
from edgetqs.paths import data_dir

pytestmark = pytest.mark.qemu

EVERY = np.arange(-32768, 32768)
CHUNK = 512  # MANY of functions.c


def outputs() -> list[np.ndarray]:
    """What functions.c is to write, vector by vector."""
    found = [fp.logistic(EVERY, 30720, 13)]
    found += [fp.logistic(EVERY, 30720, shift) for shift in (11, 12, 13)]
    found += [fp.tanh(EVERY, 30720, shift) for shift in (11, 12, 13)]
    for cell_bits in range(3, 12):
        cell = fp.multiply(np.int64(32767), EVERY, 14)
        squashed = fp.tanh(fp.rescale(cell, 11 - cell_bits), *fp.table_multiplier(fp.TANH_SCALE))
        hidden = fp.multiply(np.int64(32767), squashed, 14)
        found.append(np.stack([hidden.reshape(-1, CHUNK), cell.reshape(-1, CHUNK)], axis=1).ravel())
    return found


@pytest.mark.parametrize(
    ("name", "kernels", "sanitizers"),
    [
        ("x86", "portable", True),
        ("x86", "simd", True),
        ("x86", "simd", False),
        ("raspberry-pi-4", "neon", False),
        ("raspberry-pi-zero", "portable", False),
        ("cortex-m0plus", "thumb1", False),
        ("cortex-m3", "thumb2", False),
        ("cortex-m4", "dsp", False),
        ("cortex-m33", "dsp", False),
        ("cortex-m55", "mve", False),
    ],
)
def test_all_inputs(tmp_path, name, kernels, sanitizers):
    target, layout, runtime = ready(name), layout_of(kernels), data_dir("runtime")
    own = [runtime / one for one in (layout.cells, *layout.sources) if not one.endswith(".h")]
    board = [*firmware.board_sources(target), *firmware.port_sources(target)]
    defines = firmware.board_defines(target, emulated=True)
    sources = [Path(__file__).with_name("functions.c"), *own, *board]
    objects = firmware.compile_sources(target, sources, tmp_path / "obj", defines=defines, sanitizers=sanitizers)
    script = firmware.write_linker_script(target, tmp_path / "link.ld") if target.kind == "bare" else None
    elf = firmware.link(target, objects, tmp_path / "functions.elf", script, sanitizers=sanitizers)
    (tmp_path / "harness.in").touch()
    assert emulate.run(target, elf, tmp_path).exit_code == 0
    written = np.fromfile(tmp_path / "harness.out", "<i2")
    for expected in outputs():
        ours, written = written[: expected.size], written[expected.size :]
        np.testing.assert_array_equal(ours, expected)
    assert written.size == 0
