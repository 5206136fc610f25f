"""The chain on this computer: every engine exact, every defect found and named, and what the C promises."""

from __future__ import annotations

import functools
import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from models import KINDS, mixed, random_forecaster, uniform

from edgetqs import chain, fixedpoint, images, prove, reference
from edgetqs.chain import Golden, Link
from edgetqs.emit_c import Replay, emit_c
from edgetqs.errors import CheckFailed
from edgetqs.integer import IntegerModel, Matrix
from edgetqs.layout import KERNELS, is_wide
from edgetqs.model import Forecaster, frozen
from edgetqs.paths import data_dir
from edgetqs.quantizer import quantize
from edgetqs.target import load_target
from edgetqs.tflite_build import pack_int4
from edgetqs.write_tflite import write_tflite

HOST = load_target("x86")
Texts = dict[str, str]


@functools.cache
def forecaster(kind: str) -> Forecaster:
    """Odd sizes, so that rows, columns and nibbles are left over; large enough weights to saturate."""
    return random_forecaster(kind, 9, 5, 2, scaled=True, gain=3.0)


@functools.cache
def integers(kind: str) -> IntegerModel:
    return quantize(forecaster(kind), mixed(forecaster(kind)), "nearest")


@functools.cache
def golden(kind: str) -> Golden:
    return chain.golden(integers(kind))


def emitted(model: IntegerModel, kernels: str) -> Texts:
    return emit_c(model, kernels, no_replay(model), horizon=4, version="0", plan_hash="0")


def no_replay(model: IntegerModel) -> Replay:
    count, known = len(model.inputs), len(model.feedback.known)
    return Replay(np.zeros((2, count), np.float32), np.zeros((4, known), np.float32), "zeros")


def run_c(
    model: IntegerModel, vectors: Golden, texts: Texts, folder: Path, kernels: str = "portable", sanitizers: bool = True
) -> tuple[Link, bytes]:
    sources = images.write_sources(folder / "src", texts, kernels)
    subject = prove.Subject(model, HOST, sources, folder, no_replay(model), 4)
    return prove._check(HOST, subject, vectors, sanitizers)


# --- golden vectors ----------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_golden_vectors_are_demanding(kind):
    model, vectors = integers(kind), golden(kind)
    assert vectors.closed.sum() >= 1000
    assert len(np.unique(vectors.outputs[vectors.closed], axis=0)) > 500  # the loop does not settle
    for limit in (-32768, 32767):
        assert (vectors.inputs == limit).all(axis=1).any()
        assert (vectors.inputs == limit).any(axis=0).all()
    assert vectors.clipped.max() > 0
    assert set(vectors.statuses) == {0, 1}
    assert len(vectors.resets) > 1
    assert vectors.resets[-1] < vectors.steps - 100
    assert len(vectors.forecast) == chain.FORECAST_STEPS
    assert [len(values) for values in vectors.last_states] == [9] * sum(len(s) for s in reference.zero_state(model))


@pytest.mark.parametrize("kind", KINDS)
def test_closed_loop_of_the_golden_vectors(kind):
    """Outputs become inputs, the known input moves by itself, the others are held."""
    vectors, model = golden(kind), integers(kind)
    steps = np.flatnonzero(vectors.closed)
    before, now = vectors.inputs[steps - 1], vectors.inputs[steps]
    fed_back = {code.target for code in model.loop}
    assert (fed_back, model.feedback.known) == ({0, 1}, (4,))
    assert np.array_equal(now[:, 2:4], before[:, 2:4])
    assert (now[:, 4] != before[:, 4]).mean() > 0.1
    physical = reference.decode(model, vectors.outputs[steps - 1])
    for code in model.loop:
        target = model.inputs[code.target]
        wanted = (physical[:, code.source].astype(float) - target.mean) * target.gain
        inside = np.abs(wanted) < 32000
        assert inside.sum() > 100
        # Half a step of rounding; the factor has 15 bits.
        assert np.abs(now[inside, code.target] - wanted[inside]).max() < 0.51 + 32767 * 2**-15


def test_golden_vectors_without_a_loop():
    vectors = chain.golden(quantize(direct := random_forecaster(units=3, feedback=False), uniform(direct, 4)))
    assert vectors.steps > 1000
    assert not vectors.closed.any()
    assert len(vectors.forecast) == 0


def test_same_seed_same_vectors():
    one, again = (chain.golden(integers("rnn"), loop_steps=50) for _ in range(2))
    other = chain.golden(integers("rnn"), loop_steps=50, seed=6)
    assert np.array_equal(one.outputs, again.outputs)
    assert not np.array_equal(one.outputs, other.outputs)


# --- every engine is exact -----------------------------------------------------


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("kind", KINDS)
def test_c_under_sanitizers_is_exact(tmp_path, kind, kernels):
    model, vectors = integers(kind), golden(kind)
    link, _ = run_c(model, vectors, emitted(model, kernels), tmp_path, kernels)
    assert link == Link("exact", f"{vectors.steps} steps")


@pytest.mark.parametrize("vectors", ["", "-DEDGETQS_NO_AVX2", "-DEDGETQS_NO_SIMD"])
@pytest.mark.parametrize(("compiler", "kind"), [("gcc", "gru"), ("gcc", "lstm"), ("gcc", "rnn"), ("clang", "lstm")])
def test_simd_is_exact_with_and_without_its_instructions(tmp_path, compiler, kind, vectors):
    if shutil.which(compiler) is None:
        pytest.skip(f"{compiler} is not installed")
    model = integers(kind)
    sources = images.write_sources(tmp_path / "src", emitted(model, "simd"), "simd")
    runtime = data_dir("runtime")
    sanitizers = {  # without its run-time library, which not every clang has
        "gcc": ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"],
        "clang": ["-fsanitize=undefined", "-fsanitize-trap=undefined"],
    }
    flags = ["-std=c99", "-O1", *sanitizers[compiler], *vectors.split()]
    others = [runtime / "harness.c", runtime / "port_posix.c"]
    command = [compiler, *flags, f"-I{tmp_path / 'src'}", f"-I{runtime}", *map(str, (*sources.model, *others))]
    subprocess.run([*command, "-o", str(tmp_path / "harness")], check=True)
    chain.write_harness_input(tmp_path, chain.commands(model, golden(kind)))
    subprocess.run([str(tmp_path / "harness")], cwd=tmp_path, check=True)
    step, result = chain.judge(model, golden(kind), (tmp_path / "harness.out").read_bytes())
    assert (step, result.link.verdict) == (None, "exact")


@pytest.mark.parametrize("kind", KINDS)
def test_litert_is_exact(kind):
    model, vectors = integers(kind), golden(kind)
    assert chain.check_litert(model, write_tflite(model), vectors) == Link("exact", f"{vectors.steps} steps")


def alternating(columns: int, *, bias: float = 0.0) -> Forecaster:
    """One LSTM unit a gate whose input weights are all at the limit, with the signs of the golden inputs."""
    one = random_forecaster("lstm", 3, columns, 1, layers=1, feedback=False, window=8)
    signs = np.where(np.arange(columns) % 2, 1.0, -1.0)
    layer = one.layers[0]
    first = replace(
        layer,
        kernel=frozen(np.broadcast_to(0.01 * signs, layer.kernel.shape)),
        bias=frozen(np.full_like(layer.bias, bias)),
    )
    return replace(one, layers=(first, *one.layers[1:]))


@pytest.mark.parametrize(
    ("columns", "wide", "kernels"),
    [(516, False, "portable"), (516, False, "dsp"), (517, True, "portable"), (1027, True, "dsp"), (516, False, "simd")],
)
def test_sums_at_and_past_the_int32_limit(tmp_path, columns, wide, kernels):
    one = alternating(columns)
    model = quantize(one, mixed(one), "nearest")
    assert is_wide(model.layers[0].kernel) == wide
    assert np.abs(model.layers[0].kernel.weights).max() == 127
    vectors = chain.golden(model, loop_steps=20)
    sums = vectors.inputs @ model.layers[0].kernel.weights.T.astype(np.int64)
    assert np.abs(sums).max() > 2**31 * 0.999  # the proof is tight: 517 columns really overflow
    link, _ = run_c(model, vectors, emitted(model, kernels), tmp_path, kernels)
    assert link.verdict == "exact", link
    assert chain.check_litert(model, write_tflite(model), vectors).verdict == "exact"


# --- defects are found, and named ----------------------------------------------


def first_step(model: IntegerModel, vectors: Golden) -> tuple[int, list[tuple[str, str, np.ndarray]]]:
    """Where ``model``, a mutation that closes its own loop, leaves the golden vectors; what it computed there."""
    truth = list(vectors.states.values())
    state, x, y = reference.zero_state(model), vectors.inputs[0], None
    for t in range(vectors.steps):
        if t in vectors.resets:
            state, clipped = reference.zero_state(model), 0
        if vectors.closed[t]:
            given = np.zeros_like(x)
            given[list(model.feedback.known)] = vectors.inputs[t][list(model.feedback.known)]
            x = reference.next_input(model, x, y, given)
        else:
            x = vectors.inputs[t]
        trace = reference.Trace()
        y, state = reference.step(model, state, x, trace)
        clipped += bool(trace.clipped)
        flat = [values for own in state for values in own]
        same = np.array_equal(y, vectors.outputs[t]) and clipped == vectors.clipped[t]
        if not same or any(not np.array_equal(a, b[t]) for a, b in zip(flat, truth, strict=True)):
            return t, trace.values
    raise AssertionError("this mutation changes nothing")


def told(kind: str, changed: IntegerModel, layer: int, what: str) -> str:
    """The report due for ``changed``, whose first wrong values must be ``what`` of ``layer``."""
    step, wrong = first_step(changed, golden(kind))
    right = chain.trace_of(integers(kind), golden(kind), step)
    name = changed.layers[layer].name
    for (place, entry, ours), (_, _, theirs) in zip(right, wrong, strict=True):
        if not np.array_equal(ours, theirs):
            assert (place, entry) == (name, what)
            unit = int(np.flatnonzero(ours != theirs)[0])
            return f"step {step}: layer {name}, {what}, unit {unit}: {theirs[unit]} instead of {ours[unit]}"
    raise AssertionError("the trace tells nothing")


def with_matrix(model: IntegerModel, layer: int, tensor: str, change: Callable[[Matrix], Matrix]) -> IntegerModel:
    layers = list(model.layers)
    layers[layer] = replace(layers[layer], **{tensor: change(getattr(layers[layer], tensor))})
    return replace(model, layers=tuple(layers))


def changed_entry(array: str, index: tuple[int, ...], move: Callable[[int], int]) -> Callable[[Matrix], Matrix]:
    def change(matrix: Matrix) -> Matrix:
        values = getattr(matrix, array).astype(np.int64)
        assert move(values[index]) != values[index]
        values[index] = move(values[index])
        return replace(matrix, **{array: values})

    return change


def edit_array(texts: Texts, file: str, array: str, index: int, move: Callable[[int], int]) -> Texts:
    """One number of a C array changed in the source's text."""
    found = re.search(rf"\b{array}\[\d+\] = \{{(.*?)\}};", texts[file], re.DOTALL)
    numbers = list(re.finditer(r"-?\w+", found[1]))
    old = numbers[index]
    start, stop = found.start(1) + old.start(), found.start(1) + old.end()
    changed = texts[file][:start] + str(move(int(old[0], 0))) + texts[file][stop:]
    return texts | {file: changed}


def place_of(kernels: str, width: int, columns: int, word: int, bit: int) -> tuple[int, int]:
    """(row, column) of the weight that holds this bit, from the layouts as they are written down in the runtime."""
    if kernels == "portable":
        byte = 4 * word + bit // 8
        if width == 8:
            return divmod(byte, columns)
        pair, column = divmod(byte, columns)
        return 2 * pair + bit % 8 // 4, column
    column, place = bit // 16, bit % 16 // width  # of the first block of four rows
    return (2 * (word % 2) + place, word // 2 * 2 + column) if width == 8 else (place, 2 * word + column)


def flipped(width: int, bit: int, value: int, offset: bool = False, below: int = 0) -> int:
    """The weight ``value`` with one of its bits flipped: two's complement, or value + 8.

    ``below`` is what is added to 16 times the value.
    """
    mask = 1 << (bit % width)
    if below < 0:
        return flipped(width, bit, value - 1) + 1
    if offset:
        return ((value + 8) ^ mask) - 8
    bits = (value & (2**width - 1)) ^ mask
    return bits - 2**width if bits >> (width - 1) else bits


@pytest.mark.parametrize(
    ("kind", "kernels", "layer", "tensor", "gate", "word", "bit"),
    [
        ("lstm", "portable", 0, "kernel", "f", 5, 6),
        ("lstm", "portable", 1, "recurrent", "c", 8, 25),
        ("lstm", "dsp", 1, "recurrent", "o", 3, 21),
        ("lstm", "dsp", 0, "kernel", "i", 1, 17),
        ("gru", "portable", 1, "recurrent", "h", 3, 12),
        ("gru_reset_before", "portable", 0, "recurrent", "h", 20, 4),
        ("rnn", "portable", 2, "kernel", "", 1, 13),
    ],
)
def test_a_flipped_weight_in_the_c_source_is_named(tmp_path, kind, kernels, layer, tensor, gate, word, bit):
    model, vectors = integers(kind), golden(kind)
    part = getattr(model.layers[layer], tensor)
    gates = getattr(model.layers[layer], "gates", ("",))
    width, first = part.widths[gates.index(gate)], gates.index(gate) * part.gate_rows
    row, column = place_of(kernels, width, part.columns, word, bit)
    offset = kernels == "dsp" and width == 4 and row < 3
    below = part.weights[first + row - 1, column] if kernels == "portable" and width == 4 and row % 2 else 0
    change = changed_entry("weights", (first + row, column), lambda value: flipped(width, bit, value, offset, below))
    due = told(kind, with_matrix(model, layer, tensor, change), layer, f"gate {gate}" if gate else "output")

    group = "_".join(filter(None, (model.layers[layer].name, tensor, gate)))
    texts = edit_array(emitted(model, kernels), f"{kind}9.c", f"{group}_stored", word, lambda value: value ^ 1 << bit)
    link, _ = run_c(model, vectors, texts, tmp_path, kernels, sanitizers=False)
    assert link == Link("differs", due)


def behind_weights(matrix: Matrix, gate: int) -> int:
    """Index of the first bias in what one gate's rows of a portable build are stored as."""
    rows = matrix.gate_rows if matrix.widths[gate] == 8 else (matrix.gate_rows + 1) // 2
    return -(-rows * matrix.columns // 4)


@pytest.mark.parametrize(
    ("array", "row", "behind", "changed", "move"),
    [
        ("bias", 4, 4, lambda value: value + 40, lambda value: value + 40),
        ("shift", 2, 9 + 2, lambda value: value + 1, lambda value: value // 2),
        ("multiplier", 8, 9 + 8, lambda value: value ^ 2, None),
    ],
)
def test_a_corrupted_table_is_named(tmp_path, array, row, behind, changed, move):
    model = integers("lstm")
    matrix = model.layers[1].kernel
    if move is None:
        unit = 1 << int(32 - matrix.shift[3 * 9 + row])
        move = lambda value: value ^ 2 * unit  # noqa: E731
    change = changed_entry(array, (3 * 9 + row,), changed)
    due = told("lstm", with_matrix(model, 1, "kernel", change), 1, "gate o")
    index = behind_weights(matrix, 3) + behind
    texts = edit_array(emitted(model, "portable"), "lstm9.c", "lstm_1_kernel_o_stored", index, move)
    assert run_c(model, golden("lstm"), texts, tmp_path, sanitizers=False)[0] == Link("differs", due)


def test_a_difference_late_in_the_closed_loop_is_dated(tmp_path):
    """A bias off by one shows where a rounding tips, long after the first step."""
    model = integers("gru")
    change = changed_entry("bias", (3,), lambda value: value + 1)
    due = told("gru", with_matrix(model, 0, "kernel", change), 0, "gate z")
    assert int(re.match(r"step (\d+)", due)[1]) > 3
    index = behind_weights(model.layers[0].kernel, 0) + 3
    texts = edit_array(emitted(model, "portable"), "gru9.c", "gru_0_kernel_z_stored", index, lambda value: value + 1)
    assert run_c(model, golden("gru"), texts, tmp_path, sanitizers=False)[0] == Link("differs", due)


@pytest.mark.parametrize(("layer", "tensor", "gate", "place"), [(0, "kernel", "f", 11), (1, "recurrent", "c", 40)])
def test_a_flipped_byte_in_the_tflite_is_named(layer, tensor, gate, place):
    model, file = integers("lstm"), write_tflite(integers("lstm"))
    part, index = getattr(model.layers[layer], tensor), "ifco".index(gate)
    rows, width = part.weights[9 * index : 9 * index + 9], part.widths[index]
    packed = pack_int4(rows) if width == 4 else rows.tobytes()
    assert file.data.count(packed) == 1
    at = file.data.index(packed) + (place if width == 8 else place // 2)
    bit = 5 if width == 8 else 4 * (place % 2) + 2
    data = file.data[:at] + bytes([file.data[at] ^ 1 << bit]) + file.data[at + 1 :]
    row, column = divmod(place, part.columns)
    change = changed_entry("weights", (9 * index + row, column), lambda value: flipped(width, bit, value))
    due = told("lstm", with_matrix(model, layer, tensor, change), layer, f"gate {gate}")
    assert chain.check_litert(model, replace(file, data=data), golden("lstm")) == Link("differs", due)


def test_a_damaged_tflite_is_a_difference_not_a_crash():
    model, file = integers("rnn"), write_tflite(integers("rnn"))
    link = chain.check_litert(model, replace(file, data=file.data[: len(file.data) // 2]), golden("rnn"))
    assert link.verdict == "differs"


def test_a_wrong_sequence_signature_is_found():
    """Its loop runs one step less than the window."""
    model = integers("rnn")
    file = write_tflite(replace(model, window=model.window - 1))
    assert chain.check_litert(model, file, golden("rnn")) == Link("differs", "signature sequence")


# --- what the harness wrote ----------------------------------------------------


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> bytes:
    """harness.out of a whole run."""
    model = integers("lstm")
    link, output = run_c(model, golden("lstm"), emitted(model, "portable"), tmp_path_factory.mktemp("run"))
    assert link.verdict == "exact"
    return output


@pytest.mark.parametrize("cut", [1, 4, 500, 100_000])
def test_a_truncated_output_is_not_exact(written, cut):
    step, result = chain.judge(integers("lstm"), golden("lstm"), written[:-cut])
    assert step is None
    assert result.link == Link("differs", f"wrote {max(len(written) - cut - 4, 0)} bytes of {len(written) - 4}")
    assert chain.judge(integers("lstm"), golden("lstm"), written + b"\0")[1].link.verdict == "differs"
    assert chain.judge(integers("lstm"), golden("lstm"), b"")[1].link.verdict == "differs"


def test_every_flipped_bit_of_the_output_is_found(written):
    """All but the two stack figures at its ends."""
    model, vectors = integers("lstm"), golden("lstm")
    record = chain.record_type(model, vectors).itemsize
    tail = range(4 + record * (vectors.steps - 1), len(written) - 4)
    for place in [4, 5, 4 + record - 1, 4 + 700 * record + 3, *tail]:
        bad = bytearray(written)
        bad[place] ^= 1 << place % 8
        step, result = chain.judge(model, vectors, bytes(bad))
        assert result.link.verdict == "differs", place
        if place < 4 + record * vectors.steps:
            assert step == (place - 4) // record


DEFECTS_AROUND = {
    "the state after a forecast": [
        ("static lstm9_state ahead;", ""),
        ("ahead = *s;", ""),
        ("&ahead", "(lstm9_state *)s"),
        ("ahead.y", "s->y"),
    ],
    "the forecast of physical values": [("future += LSTM9_KNOWN;", "")],
    "physical samples: a status differs": [("return LSTM9_BAD_INPUT;", "return LSTM9_OK;")],
    "step 48: layer lstm_0, gate i": [("edgetqs_feed_back(loop_codes, 2,", "edgetqs_feed_back(loop_codes, 1,")],
    "physical samples: conversion": [("LSTM9_OUTPUTS, s->y, out)", "1, s->y, out)")],
}


@pytest.mark.parametrize(("complaint", "edits"), DEFECTS_AROUND.items(), ids=DEFECTS_AROUND)
def test_defects_of_the_functions_around_the_step_are_found(tmp_path, complaint, edits):
    texts = emitted(integers("lstm"), "portable")
    text = texts["lstm9.c"]
    for old, new in edits:
        assert old in text
        text = text.replace(old, new)
    link, _ = run_c(integers("lstm"), golden("lstm"), texts | {"lstm9.c": text}, tmp_path, sanitizers=False)
    assert link.verdict == "differs"
    assert link.detail.startswith(complaint)


def test_a_read_past_the_weights_ends_the_sanitized_run(tmp_path):
    """Sanitizers really are on: one column too many reads past the last row."""
    texts = emitted(integers("rnn"), "portable")
    text, count = re.subn(r"(edgetqs_rows dense_kernel = \{.*), 2, 9, true \}", r"\1, 2, 99, true }", texts["rnn9.c"])
    assert count == 1
    with pytest.raises(CheckFailed, match="AddressSanitizer"):
        run_c(integers("rnn"), golden("rnn"), texts | {"rnn9.c": text}, tmp_path)


# --- what the C promises -------------------------------------------------------


@functools.cache
def direct() -> IntegerModel:
    one = random_forecaster("gru", 5, 2, 3, layers=1, feedback=False, scaled=True)
    return quantize(one, mixed(one))


@pytest.mark.parametrize(
    ("compiler", "kind", "kernels"),
    [
        ("gcc", "lstm", "dsp"),
        ("gcc", "direct", "portable"),
        ("gcc", "lstm", "mve"),
        ("gcc", "gru", "simd"),
        ("gcc", "gru", "neon"),
        ("clang", "lstm", "dsp"),
        ("clang", "lstm", "mve"),
        ("clang", "gru", "portable"),
        ("clang", "lstm", "simd"),
        ("clang", "lstm", "neon"),
    ],
)
def test_all_c_is_clean_with_both_compilers(tmp_path, compiler, kind, kernels):
    if shutil.which(compiler) is None:
        pytest.skip(f"{compiler} is not installed")
    model = direct() if kind == "direct" else integers(kind)
    images.write_sources(tmp_path, emitted(model, kernels), kernels)
    runtime = data_dir("runtime")
    flags = ["-std=c99", "-pedantic", "-O2", "-Wall", "-Wextra", "-Wconversion", "-Wshadow", "-Werror"]
    flags += [f"-I{tmp_path}", f"-I{runtime}"]
    sources = [*tmp_path.glob("*.c"), *(runtime / f"{name}_posix.c" for name in ("board", "port"))]
    subprocess.run([compiler, *flags, "-c", *map(str, sources)], check=True, cwd=tmp_path)
    for trace in ([], ["-DEDGETQS_TRACE_BUILD=1"]):
        traced = [str(runtime / "harness.c"), str(tmp_path / f"{model.name}.c")]
        subprocess.run([compiler, *flags, *trace, "-c", *traced], check=True, cwd=tmp_path)


PROPERTIES = r"""
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "model_glue.h"

#define STEPS 40
#define CHECK(property) do { if (!(property)) { printf("%d: %s\n", __LINE__, #property); failed = 1; } } while (0)

static int failed;
static int16_t inputs[STEPS][MODEL_INPUTS];

static int same(const model_state *a, const model_state *b)
{
    int equal = a->steps == b->steps && a->clipped == b->clipped && memcmp(a->y, b->y, sizeof a->y) == 0
                && memcmp(a->x, b->x, sizeof a->x) == 0;
#define SAME(values) equal = equal && memcmp(a->values, b->values, sizeof a->values) == 0;
    SAME_STATES
    return equal;
}

static void run(model_state *s, int first, int last, int16_t out[][MODEL_OUTPUTS])
{
    for (int t = first; t < last; ++t) {
        CHECK(model_step_q(s, inputs[t], out[t]) == 0);
    }
}

static void refuse(model_state *s, float bad)
{
    for (int k = 0; k < MODEL_INPUTS; ++k) {
        float in[MODEL_INPUTS] = {0};
        float out[MODEL_OUTPUTS];
        float kept[MODEL_OUTPUTS];
        model_state before = *s;
        memset(out, 0x5A, sizeof out);
        memcpy(kept, out, sizeof out);
        in[k] = bad;
        CHECK(model_step(s, in, out) == 1);
        CHECK(same(s, &before));
        CHECK(memcmp(out, kept, sizeof out) == 0);
    }
}

static void clip(const model_state *s, float huge, int16_t end)
{
    model_state a = *s;
    model_state b = *s;
    float in[MODEL_INPUTS];
    float out[MODEL_OUTPUTS];
    int16_t q[MODEL_INPUTS];
    int16_t y[MODEL_OUTPUTS];
    for (int k = 0; k < MODEL_INPUTS; ++k) {
        in[k] = huge;
        q[k] = end;
    }
    CHECK(model_step(&a, in, out) == 0);
    CHECK(model_step_q(&b, q, y) == 0);
    CHECK(same(&a, &b));
}

#if MODEL_CLOSED_LOOP
static void forecasts(model_state *s, const model_state *fresh)
{
    static float future[STEPS * (MODEL_KNOWN + 1)];
    float out[STEPS * MODEL_OUTPUTS];
    float shorter[STEPS * MODEL_OUTPUTS];
    float untouched[STEPS * MODEL_OUTPUTS];
    int16_t known[MODEL_KNOWN + 1] = {0};
    int16_t y[MODEL_OUTPUTS];
    const model_state before = *s;
    model_state empty = *fresh;
    for (int k = 0; k < STEPS * MODEL_KNOWN; ++k) {
        future[k] = 0.25f * (float)(k % 7) - 1.0f;
    }
    memset(out, 0x5A, sizeof out);
    memcpy(untouched, out, sizeof out);

    CHECK(model_forecast(fresh, 5, future, out) == 2);
    CHECK(model_advance_q(&empty, known, y) == 2);
    CHECK(same(&empty, fresh));
    CHECK(model_forecast(s, 0, NULL, out) == 0);
    CHECK(memcmp(out, untouched, sizeof out) == 0);
    CHECK(model_forecast(s, 1, NULL, out) == 0); /* the output of the last sample */
    CHECK(memcmp(out + MODEL_OUTPUTS, untouched, sizeof out - MODEL_OUTPUTS * sizeof out[0]) == 0);

    CHECK(model_forecast(s, STEPS, future, out) == 0);
    CHECK(same(s, &before));
    memcpy(shorter, untouched, sizeof out);
    CHECK(model_forecast(s, 7, future, shorter) == 0);
    CHECK(memcmp(shorter, out, 7 * MODEL_OUTPUTS * sizeof out[0]) == 0);
    CHECK(memcmp(shorter + 7 * MODEL_OUTPUTS, untouched, (STEPS - 7) * MODEL_OUTPUTS * sizeof out[0]) == 0);
#if MODEL_KNOWN
    float keep = future[3 * MODEL_KNOWN];
    future[3 * MODEL_KNOWN] = NAN;
    CHECK(model_forecast(s, 4, future, shorter) == 0); /* the last row is not read */
    CHECK(model_forecast(s, 5, future, shorter) == 1);
    CHECK(same(s, &before));
    future[3 * MODEL_KNOWN] = keep;
    future[0] += 0.5f; /* what is known ahead counts from the second step on */
    CHECK(model_forecast(s, STEPS, future, shorter) == 0);
    CHECK(memcmp(shorter, out, MODEL_OUTPUTS * sizeof out[0]) == 0);
    CHECK(memcmp(shorter, out, sizeof out) != 0);
#endif
}
#endif

int main(void)
{
    static int16_t whole[STEPS][MODEL_OUTPUTS];
    static int16_t parts[STEPS][MODEL_OUTPUTS];
    static int16_t other[STEPS][MODEL_OUTPUTS];
    static model_state fresh;
    static model_state s;
    static model_state t;
    uint32_t random = 1;
    for (int k = 0; k < STEPS * MODEL_INPUTS; ++k) {
        random = random * 1664525u + 1013904223u;
        inputs[k / MODEL_INPUTS][k % MODEL_INPUTS] = (int16_t)((random >> 16) & 0xFFFFu);
    }
    model_reset(&fresh);
    memset(&s, 0xA5, sizeof s);
    model_reset(&s);
    CHECK(same(&s, &fresh));

    run(&s, 0, STEPS, whole);
    CHECK(!same(&s, &fresh) && s.steps == STEPS);
    t = fresh;
    run(&t, 0, 13, parts); /* in parts, the state copied between them, another stream in the meantime */
    model_state copy = t;
    run(&t, 20, 30, other);
    run(&copy, 13, STEPS, parts);
    CHECK(same(&copy, &s));
    CHECK(memcmp(whole, parts, sizeof whole) == 0);
    CHECK(memcmp(s.y, whole[STEPS - 1], sizeof whole[0]) == 0);

    t = s;
    model_reset(&t);
    CHECK(same(&t, &fresh));
    run(&t, 0, STEPS, parts);
    CHECK(same(&t, &s));
    CHECK(memcmp(whole, parts, sizeof whole) == 0);

    refuse(&s, NAN);
    refuse(&s, INFINITY);
    refuse(&s, -INFINITY);
    refuse(&fresh, NAN);
    for (float beyond = 40.0f; beyond < 1e38f; beyond *= 10.0f) {
        clip(&s, beyond, 32767);
        clip(&s, -beyond, -32768);
    }
#if MODEL_CLOSED_LOOP
    forecasts(&s, &fresh);
#endif
    return failed;
}
"""


@pytest.mark.parametrize(
    ("kind", "kernels"),
    [
        ("lstm", "dsp"),
        ("gru", "portable"),
        ("gru_reset_before", "dsp"),
        ("rnn", "portable"),
        ("direct", "portable"),
        ("lstm", "simd"),
        ("direct", "simd"),
        ("lstm", "neon"),
    ],
)
def test_properties_of_the_c(tmp_path, kind, kernels):
    model = direct() if kind == "direct" else integers(kind)
    sources = images.write_sources(tmp_path, emitted(model, kernels), kernels)
    names = re.findall(r"\(s\)->(\w+), \d+", (tmp_path / "model_glue.h").read_text())
    assert names
    text = PROPERTIES.replace("SAME_STATES", " ".join(f"SAME({name})" for name in names))
    (tmp_path / "properties.c").write_text(text)
    program = tmp_path / "properties"
    flags = ["-std=c99", "-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all", f"-I{tmp_path}"]
    subprocess.run(["gcc", *flags, *map(str, sources.model), str(tmp_path / "properties.c"), "-o", program], check=True)
    done = subprocess.run([program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_the_header_serves_cpp(tmp_path):
    if shutil.which("g++") is None:
        pytest.skip("g++ is not installed")
    sources = images.write_sources(tmp_path, emitted(integers("rnn"), "portable"), "portable")
    program = "static rnn9_state s;\nint main() { rnn9_reset(&s); return static_cast<int>(s.steps); }\n"
    (tmp_path / "main.cpp").write_text('#include "rnn9.h"\n' + program)
    objects = []
    for source in sources.model:
        objects.append(source.with_suffix(".o"))
        subprocess.run(["gcc", "-std=c99", "-c", str(source), "-o", str(objects[-1])], check=True)
    subprocess.run(["g++", str(tmp_path / "main.cpp"), *map(str, objects), "-o", str(tmp_path / "main")], check=True)
    assert subprocess.run([str(tmp_path / "main")], check=False).returncode == 0


def test_a_header_of_another_version_is_refused(tmp_path):
    texts = emitted(integers("rnn"), "portable")
    images.write_sources(tmp_path, texts, "portable")
    runtime = (tmp_path / "edgetqs_rt.h").read_text()
    (tmp_path / "edgetqs_rt.h").write_text(runtime.replace("EDGETQS_RT_VERSION 3", "EDGETQS_RT_VERSION 4"))
    command = ["gcc", "-std=c99", "-fsyntax-only", str(tmp_path / "rnn9.c")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "come from different versions of edgetqs" in done.stderr


def test_the_same_table_everywhere():
    table = (data_dir("runtime") / "sigmoid_table.inc").read_text()
    entries = [int(word) + 32768 for word in table.replace(",", " ").split()]
    assert entries == [*fixedpoint.SIGMOID_TABLE.tolist(), fixedpoint.SIGMOID_TABLE[-1]]
