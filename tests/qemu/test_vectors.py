"""Softmax and LayerNormalization in C, here under sanitizers and on emulated cores, against the reference."""

from pathlib import Path

import numpy as np
import pytest
from engines import all_pairs, brimming, vectors_of
from installed import ready

from edgetqs import emulate, firmware, normalization, softmax
from edgetqs.paths import data_dir
from edgetqs.target import Target

SOURCES = ("edgetqs_softmax.c", "edgetqs_normalize.c")


def run(target: Target, folder: Path, feed: bytes, *, sanitizers: bool) -> np.ndarray:
    """What vectors.c writes on ``feed``."""
    sources = [Path(__file__).with_name("vectors.c"), *(data_dir("runtime") / name for name in SOURCES)]
    sources += [*firmware.board_sources(target), *firmware.port_sources(target)]
    defines = firmware.board_defines(target, emulated=True)
    objects = firmware.compile_sources(target, sources, folder / "obj", defines=defines, sanitizers=sanitizers)
    script = firmware.write_linker_script(target, folder / "link.ld") if target.kind == "bare" else None
    elf = firmware.link(target, objects, folder / "vectors.elf", script, sanitizers=sanitizers)
    (folder / "harness.in").write_bytes(feed)
    done = emulate.run(target, elf, folder)
    assert done.exit_code == 0, done.log
    return np.fromfile(folder / "harness.out", "<i2")


def words(what: int, vectors: np.ndarray, *, multiplier: int = 0, shift: int = 0, factor: int = 0, epsilon: int = 0):
    """The words in front of the vectors."""
    rows, count = vectors.shape
    return np.array([what, count, rows, multiplier, shift, factor, epsilon % 2**32, epsilon >> 32], "<u4").tobytes()


def softmax_case(count: int, rows: int, scale: float) -> tuple[bytes, np.ndarray]:
    """What is fed and what is due."""
    vectors = vectors_of(count, rows, count)
    multiplier, shift = softmax.exp_multiplier(scale)
    feed = words(1, vectors, multiplier=multiplier, shift=shift) + vectors.astype("<i2").tobytes()
    return feed, softmax.softmax(vectors, multiplier, shift).ravel()


def normalization_case(count: int, rows: int, bits: int, gain: float, epsilon: float) -> tuple[bytes, np.ndarray]:
    rng, vectors = np.random.default_rng(count), vectors_of(count, rows, count)
    gamma, beta = rng.normal(gain, gain / 2, count), rng.normal(0, 5, count)
    layer = normalization.quantize_normalization(gamma, beta, epsilon, 2.0**-bits, 2.0**-10)
    feed = words(2, vectors, factor=layer.factor, epsilon=layer.epsilon)
    feed += b"".join(values.astype("<i4").tobytes() for values in (layer.gamma, layer.beta))
    due = normalization.layer_normalize(vectors, layer)
    wide = normalization.layer_normalize(vectors, layer, clip=False)
    clipped = (wide != due).any(axis=1)
    return feed + vectors.astype("<i2").tobytes(), np.column_stack([due, clipped]).ravel()


def cases(portion: int) -> list[tuple[bytes, np.ndarray]]:
    """``portion``: 1 for all rows, n for an n-th of them."""
    found = []
    for count in (1, 2, 3, 10, 64):
        for scale in (2.0, 2.0**-8, 2.0**-11, 2.0**-13, 2.5, 5 * 2.0**-13, 5 * 2.0**-15):
            found.append(softmax_case(count, 4096 // portion, scale))
    for count in (1, 2, 3, 7, 16, 64, 257, 511, 512):
        for bits, gain, epsilon in ((0, 1.0, 1e-3), (11, 1.0, 1e-3), (15, 1.0, 1e-3), (12, 20.0, 1e-5), (15, 1.0, 3.9)):
            found.append(normalization_case(count, 1024 // portion, bits, gain, epsilon))
    return found


def check(name: str, folder: Path, portion: int, *, sanitizers: bool = False, runs: bool = True) -> None:
    parts = cases(portion)
    written = run(ready(name, runs=runs), folder, b"".join(feed for feed, _ in parts), sanitizers=sanitizers)
    for _, due in parts:
        np.testing.assert_array_equal(written[: due.size], due)
        written = written[due.size :]
    assert written.size == 0


def test_here_under_sanitizers(tmp_path):
    check("x86", tmp_path, 1, sanitizers=True, runs=False)


@pytest.mark.qemu
@pytest.mark.parametrize("name", ["cortex-m0plus", "cortex-m3", "cortex-m4", "cortex-m33", "cortex-m55"])
def test_on_emulated_cores(tmp_path, name):
    check(name, tmp_path, 16)


@pytest.mark.parametrize("make", [all_pairs, brimming])
def test_all_entries_and_sums(tmp_path, make):
    vectors = make()
    multiplier, shift = softmax.exp_multiplier(softmax.EXP_STEP)
    feed = words(1, vectors, multiplier=multiplier, shift=shift) + vectors.astype("<i2").tobytes()
    written = run(ready("x86", runs=False), tmp_path, feed, sanitizers=True)
    np.testing.assert_array_equal(written, softmax.softmax(vectors, multiplier, shift).ravel())
