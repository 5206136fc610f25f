"""Rows of every small shape on every core: the reference's values, and int4 never slower than int8."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from pathlib import Path

import footprint
import numpy as np
import pytest
from installed import ready
from kernel_models import Subject
from models import random_forecaster, uniform

from edgetqs import emulate, firmware
from edgetqs.fixedpoint import requantize
from edgetqs.integer import Matrix
from edgetqs.layout import LAYOUTS, layout_name, layout_of, padded, stored
from edgetqs.paths import data_dir
from edgetqs.quantizer import quantize
from edgetqs.target import Target, list_targets

pytestmark = pytest.mark.qemu

CORES = [t.name for t in list_targets() if t.qemu and (t.name.startswith("cortex-") or t.kind != "bare")]
ROWS = (1, 2, 3, 4, 5, 7, 8, 9, 11, 12, 15, 16, 20, 24, 25, 36, 40)
COLUMNS = (1, 2, 3, 4, 5, 7, 8, 9, 11, 12, 13, 16, 17, 20, 24, 33, 48)


@dataclass(frozen=True, slots=True)
class Case:
    """One call with weights that are int4 and may be stored in either width."""

    rows: int
    columns: int
    biased: bool
    add: bool
    width: int

    def matrix(self) -> Matrix:
        rng = np.random.default_rng([self.rows, self.columns])
        weights = rng.integers(-7, 8, (self.rows, self.columns))
        multiplier = rng.integers(2**13, 2**14, self.rows) * 2 + 1
        bias = rng.integers(-(2**20), 2**20, self.rows) * self.biased
        return Matrix(weights, (4,), np.ones(self.rows), multiplier, np.full(self.rows, 18), bias, 1.0, 1.0)

    def fed_and_due(self, kernels: str) -> tuple[bytes, list[int]]:
        """What rows.c reads, and the values that it should write."""
        matrix, rng = self.matrix(), np.random.default_rng([self.columns, self.rows])
        x = np.zeros(padded(self.columns), "<i2")
        x[: self.columns] = rng.integers(-32768, 32768, self.columns)
        y = rng.integers(-3000, 3000, self.rows).astype("<i2")
        words = stored(matrix, 0, self.rows, self.width, kernels)
        own = layout_name(matrix, kernels) != "portable"
        head = [self.width, own, self.rows, self.columns, self.biased, self.add, len(words)]
        sums = matrix.weights @ x[: self.columns].astype(np.int64) + matrix.bias
        wide = requantize(sums, matrix.multiplier, matrix.shift)
        values = np.clip(wide, -32768, 32767)
        clipped = int((values != wide).any())
        values = np.clip(values + y, -32768, 32767) if self.add else values
        return np.array(head, "<u4").tobytes() + words.tobytes() + x.tobytes() + y.tobytes(), [*values, clipped]


CASES = [Case(*one) for one in product(ROWS, COLUMNS, (False, True), (False, True), (8, 4))]


def linked(target: Target, folder: Path, without: str = "") -> Path:
    kernels, runtime = target.cpu.kernels, data_dir("runtime")
    layout = layout_of(kernels)
    own = [runtime / name for name in ("edgetqs_rt.c", layout.cells, *layout.sources) if not name.endswith(".h")]
    sources = [
        Path(__file__).with_name("rows.c"),
        *own,
        *firmware.board_sources(target),
        *firmware.port_sources(target),
    ]
    behind = "" if kernels == "portable" else f"_{kernels}"
    names = {f"ROWS{width}": f"edgetqs_rows{width}{behind}" for width in (4, 8)}
    defines = firmware.board_defines(target, emulated=True) | names | ({without: "1"} if without else {})
    objects = firmware.compile_sources(target, sources, folder / "obj", [runtime], defines)
    script = firmware.write_linker_script(target, folder / "link.ld") if target.kind == "bare" else None
    return firmware.link(target, objects, folder / "rows.elf", script)


def exact(target: Target, folder: Path, without: str = "") -> emulate.Run:
    """A run of all cases whose values are the reference's."""
    fed, due = zip(*(case.fed_and_due(target.cpu.kernels) for case in CASES), strict=True)
    (folder / "harness.in").write_bytes(b"".join(fed))
    run = emulate.run(target, linked(target, folder, without), folder, timeout_s=300, count=True)
    assert run.exit_code == 0, run.log
    assert np.fromfile(folder / "harness.out", "<i2").tolist() == [int(value) for values in due for value in values]
    return run


@pytest.mark.parametrize("without", ["EDGETQS_NO_AVX2", "EDGETQS_NO_SIMD"])
def test_rows_of_every_small_shape_with_fewer_vectors(tmp_path, without):
    exact(ready("x86"), tmp_path, without)


@pytest.mark.parametrize("name", CORES)
def test_rows_of_every_small_shape(tmp_path, name):
    """The values are the reference's; int4 takes no more instructions than int8 less what the layout promises."""
    target = ready(name)
    kernels = target.cpu.kernels
    run = exact(target, tmp_path)
    if target.kind == "host":
        return  # its time is not in its instructions; bench/host.py measures it
    own = [layout_name(case.matrix(), kernels) == kernels for case in CASES]
    if run.how != "tcg plugin":
        pytest.skip(f"not counted: {run.how}")
    saved = LAYOUTS[kernels].saved
    slow = [
        f"{narrow}: {more} instructions, int8 {count}"
        for k, (narrow, count, more) in enumerate(zip(CASES[1::2], run.counts[::2], run.counts[1::2], strict=True))
        if more > count - saved(narrow.rows, narrow.columns) and own[2 * k]
    ]
    assert "\n".join(slow) == ""


#: (cell, units, inputs, outputs, layers)
TINY = [
    ("lstm", 1, 4, 4, 1),
    ("lstm", 5, 3, 1, 1),
    ("gru", 5, 4, 1, 1),
    ("gru", 9, 3, 2, 2),
    ("rnn", 6, 2, 6, 1),
    ("rnn", 17, 2, 12, 1),
]


@pytest.mark.parametrize("name", ["cortex-m0plus", "cortex-m3", "cortex-m4", "cortex-m55"])
@pytest.mark.parametrize(("kind", "units", "inputs", "outputs", "layers"), TINY)
def test_int4_is_not_slower_in_tiny_models(tmp_path, name, kind, units, inputs, outputs, layers):
    target = ready(name)
    made = random_forecaster(kind, units, inputs, outputs, layers=layers, window=48)
    counts = []
    for width in (4, 8):
        folder = tmp_path / str(width)
        folder.mkdir()
        subject = Subject("tiny", "lstm", "int8", 0, quantize(made, uniform(made, width), "nearest"))
        harness, _ = footprint.build_harness(target, subject, "-O2", folder)
        counts.append(footprint.counted(target, subject, harness, folder)[0])
    assert counts[0] <= counts[1]
