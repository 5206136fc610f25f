"""The black box: which weights it finds, that it measures what the white box measures, what it refuses."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema
from models import random_forecaster
from test_cli import run
from tflite_files import KINDS, Model, looped, save, unrolled

from edgetqs import blackbox, rollout, tflite_forecaster, tqs
from edgetqs.blackbox import score, synthetic_starts
from edgetqs.emulate import survives
from edgetqs.errors import BadInput, Unsupported
from edgetqs.flatbuffer import pack
from edgetqs.model import Feedback, Forecaster, Gru, Lstm
from edgetqs.tflite_forecaster import BlackBox, Engine, load, prepared, read_black_box
from edgetqs.tflite_weights import exchanged, read_contents, values

PUBLISHED = Path(__file__).parents[2] / "shared" / "third-party"


def rnn(layers: int = 2, **options: object) -> Forecaster:
    return random_forecaster("rnn", 6, 3, 1, **{"layers": layers, "window": 10, "gain": 0.6, **options})


def boxed(forecaster: Forecaster, path: Path, kind: str = "float32", batch: bool = True) -> BlackBox:
    box = read_black_box(save(unrolled(forecaster, kind, batch), path / "model.tflite"))
    return prepared(box, replace(forecaster, layers=(), name="model"))


def white_growth(forecaster: Forecaster, start: blackbox.Starts, horizon: int, name: str, deltas: list) -> np.ndarray:
    """G by step of the sliding window, computed by ``rollout`` for the same perturbations of the same windows."""
    layer, tensor = name.split("/")
    index = next(k for k, one in enumerate(forecaster.layers) if one.name == layer)
    weights = getattr(forecaster.layers[index], tensor)
    found = []
    for delta in deltas:
        moved = forecaster.replace_tensor(index, tensor, weights + delta.reshape(weights.shape))
        stack = rollout.cells(moved)
        windows, squares = start.windows.astype(np.float64), []
        for t in range(horizon):
            outputs, _ = rollout.run(stack, rollout.zero_state(stack, (len(windows),)), windows)
            y = outputs[:, -1]
            squares.append(np.mean(((y - start.reference[:, t]) / start.spread) ** 2))
            if t + 1 < horizon:
                x = rollout.next_input(forecaster, windows[:, -1], y, start.future[:, t])
                windows = np.concatenate([windows[:, 1:], x[:, None]], axis=1)
        found.append(np.array(squares) / np.sum(delta**2))
    return np.mean(found, axis=0)


def assert_agrees(box: BlackBox, forecaster: Forecaster, names: dict[str, str], horizon: int = 8) -> None:
    """The black box's G equals that of NumPy for the same perturbations, at every step and for every weight."""
    start = synthetic_starts(box, horizon, 12, 0)
    meter = blackbox._Meter(box, start, horizon)
    rng = np.random.default_rng(0)
    assert {names[constant.name] for constant in box.weights} == set(names.values())
    for constant in box.weights:
        weights = values(box.content, constant)
        drawn = rng.standard_normal((2, *constant.shape))
        deltas = [0.02 * np.linalg.norm(weights) / np.linalg.norm(d) * d for d in drawn]
        wanted = white_growth(forecaster, start, horizon, names[constant.name], deltas)
        assert meter.growth(constant, weights, deltas) == pytest.approx(wanted, rel=0.02)


# --- weights ------------------------------------------------------------------------------


def test_matrices_are_found_and_nothing_else(tmp_path):
    box = boxed(rnn(), tmp_path)
    names = ["rnn_0/kernel", "rnn_0/recurrent_kernel", "rnn_1/kernel", "rnn_1/recurrent_kernel", "dense/kernel"]
    assert [constant.name for constant in box.weights] == names
    assert [constant.shape for constant in box.weights] == [(6, 3), (6, 6), (6, 6), (6, 6), (1, 6)]
    assert [len(constant.uses) for constant in box.weights] == [10, 9, 10, 9, 1]  # the first state is zero
    for constant in box.weights:
        layer, tensor = constant.name.split("/")
        wanted = getattr(next(one for one in rnn().layers if one.name == layer), tensor)[0]
        assert np.array_equal(values(box.content, constant).astype(np.float32), wanted)


@pytest.mark.parametrize("kind", KINDS)
def test_values_are_exchanged_in_place(kind, tmp_path):
    box = boxed(rnn(), tmp_path, kind)
    constant = box.weights[1]
    before = values(box.content, constant)
    content, actual = exchanged(box.content, constant, before)
    assert content == box.content
    assert np.array_equal(actual, before)
    wanted = before + 0.3 * np.abs(before).max() * np.random.default_rng(0).uniform(-1, 1, before.shape)
    content, actual = exchanged(box.content, constant, wanted)
    assert np.array_equal(values(content, constant), actual)
    assert np.flatnonzero(np.frombuffer(content, "u1") != np.frombuffer(box.content, "u1")).min() >= constant.start
    assert content[: constant.start] == box.content[: constant.start]
    assert content[constant.start + constant.stored_bytes :] == box.content[constant.start + constant.stored_bytes :]
    step = {"float32": 1e-7, "float16": 1e-3, "int8": 0.51 / 127, "int4": 0.51 / 7}[kind]
    limits = np.abs(before).max(axis=1, keepdims=True)
    inside = np.abs(wanted) < limits if kind.startswith("int") else np.ones(before.shape, bool)
    assert np.all(np.abs(actual - wanted)[inside] <= (step * (limits + np.abs(wanted)))[inside])
    assert [c.name for c in read_contents(content).weights] == [c.name for c in box.weights]


def test_tensors_on_the_same_bytes_are_one_weight(tmp_path):
    model = Model()
    graph = model.graph()
    x = graph.tensor("input", (1, 4))
    first = graph.constant("layer/kernel", np.full((4, 4), 0.3) - np.eye(4))
    again = graph.tensor("layer/alias", (4, 4), buffer=graph.table.tensors[first].buffer)
    y = graph.dense("two", graph.tanh("squash", graph.dense("one", x, first)), again)
    graph.finish([x], [y])
    _, box = load(save(model.bytes(), tmp_path / "m.tflite"), None)
    assert [(c.name, c.tensors, len(c.uses)) for c in box.weights] == [
        ("layer/kernel", ("layer/kernel", "layer/alias"), 2)
    ]


@pytest.mark.parametrize("inside", [False, True])
def test_loops_are_entered(inside, tmp_path):
    weights = np.random.default_rng(0).normal(0, 0.4, (5, 5))
    _, box = load(save(looped(weights, inside=inside), tmp_path / "m.tflite"), None)
    assert [c.tensors for c in box.weights] == [("body/kernel",) if inside else ("layer/kernel",)]  # not the state
    assert box.weights[0].uses[0].direct == inside
    # W enters y in three rounds: the figure must be that of finite differences of the formula itself.
    delta = 1e-3 * np.random.default_rng(1).standard_normal((5, 5))
    x = np.random.default_rng(2).standard_normal((3, 5)).astype(np.float32)

    def formula(w):
        h = np.full((3, 5), 0.1)
        for _ in range(3):
            h = np.tanh(h @ w.T + x)
        return h

    outputs = Engine(box, exchanged(box.content, box.weights[0], weights + delta)[0])(x[:, None])
    assert outputs == pytest.approx(formula(weights + delta), abs=1e-6)
    assert np.abs(outputs - formula(weights)).max() > 1e-4


def test_what_a_loop_changes_is_no_weight(tmp_path):
    with pytest.raises(BadInput, match="no constant weights"):
        read_black_box(save(looped(np.eye(3) / 2, changing=True), tmp_path / "m.tflite"))


def test_elementwise_constants_count_where_they_span_two_axes(tmp_path):
    model = Model()
    graph = model.graph()
    x = graph.tensor("input", (1, 3, 2))
    position = graph.constant("position", np.arange(6).reshape(1, 3, 2) / 10 + 0.1)
    gain = graph.constant("gain", np.full((1, 1, 2), 0.5))
    y = graph.operator("MUL", [graph.add("sum", x, position), gain], [("out", (1, 3, 2))], schema.MulOptionsT())
    graph.finish([x], y)
    _, box = load(save(model.bytes(), tmp_path / "m.tflite"), None)
    assert [c.name for c in box.weights] == ["position"]


# --- the score ----------------------------------------------------------------------------


def test_same_perturbations_same_growth_as_the_white_box(tmp_path):
    forecaster = rnn(scaled=True)
    box = boxed(forecaster, tmp_path)
    assert box.batched
    assert_agrees(box, forecaster, {c.name: c.name for c in box.weights})


@pytest.mark.parametrize("options", [{"gain": 0.3}, {"gain": 0.5, "units": 10, "seed": 1}])
def test_scores_rank_like_the_white_box(options, tmp_path):
    """Against streaming states with perturbed histories, which is what a window from zero comes close to."""
    from scipy.stats import spearmanr

    forecaster = random_forecaster("rnn", **{"units": 6, "layers": 3, "window": 16, **options})
    black = score(boxed(forecaster, tmp_path), 12, directions=24, trajectories=24)
    white = tqs.score(forecaster, 12, "tensor", directions=24, trajectories=24, perturb_burn_in=True)
    assert [u.unit.name for u in black.units] == [u.unit.name for u in white.units]
    assert spearmanr([u.sensitivity for u in black.units], [u.sensitivity for u in white.units])[0] >= 0.9
    ratios = [b.tqs / w.tqs for b, w in zip(black.units, white.units, strict=True)]
    assert 0.5 < min(ratios) <= max(ratios) < 2


def test_one_by_one_equals_a_batch(tmp_path):
    (tmp_path / "one").mkdir()
    batch, alone = boxed(rnn(), tmp_path), boxed(rnn(), tmp_path / "one", batch=False)
    assert batch.batched
    assert not alone.batched
    for a, b in zip(score(batch, 6).units, score(alone, 6).units, strict=True):
        assert a.sensitivity == pytest.approx(b.sensitivity, rel=1e-3)


def test_a_batch_that_mixes_its_windows_is_not_used(tmp_path):
    """The sum over the batch axis leaves one row alone and spoils many."""
    model = Model()
    graph = model.graph()
    x = graph.tensor("input", (1, 3), batch=True)
    axis = graph.constant("axis", [0], np.int32)
    options = schema.ReducerOptionsT()
    options.keepDims = True
    total = graph.operator("SUM", [x, axis], [("total", (1, 3))], options)[0]
    y = graph.dense("out", graph.add("mixed", x, total), graph.constant("layer/kernel", np.eye(3) * 0.2))
    graph.finish([x], [y])
    _, box = load(save(model.bytes(), tmp_path / "m.tflite"), None)
    assert not box.batched


def test_same_seed_same_score(tmp_path):
    box = boxed(rnn(), tmp_path)
    assert score(box, 5) == score(box, 5)
    assert score(box, 5) != score(box, 5, seed=1)


def test_windows_follow_the_feedback_map(tmp_path):
    forecaster = rnn(scaled=True)  # input 0 takes output 0 in other units, input 1 is held, input 2 known
    box = boxed(forecaster, tmp_path)
    start = synthetic_starts(box, 5, 8, 0)
    gain, offset = rollout.feedback_affine(forecaster, 0, 0)
    for t in range(1, 5):
        before, now = start.seen[t - 1], start.seen[t]
        assert np.array_equal(now[:, :-1], before[:, 1:])
        assert now[:, -1, 0] == pytest.approx(start.reference[:, t - 1, 0] * gain + offset, abs=1e-5)
        assert np.array_equal(now[:, -1, 1], before[:, -1, 1])
        assert np.array_equal(now[:, -1, 2], start.future[:, t - 1, 2])
    assert np.allclose(start.reference[:, 0], Engine(box, box.content)(start.windows))


def test_local_is_one_step_from_the_references_windows(tmp_path):
    box = boxed(rnn(), tmp_path)
    scores = score(box, 6)
    assert all(u.growth[0] == pytest.approx(u.local, rel=1) for u in scores.units)
    one_step = score(box, 1)
    assert [u.local for u in one_step.units] == pytest.approx([u.sensitivity for u in one_step.units], rel=1e-6)
    assert any(u.local != pytest.approx(u.sensitivity, rel=0.05) for u in scores.units)


def test_local_score_is_the_formula(tmp_path):
    forecaster, horizon = rnn(), 6
    box = boxed(forecaster, tmp_path)
    start = synthetic_starts(box, horizon, 12, 0)
    meter = blackbox._Meter(box, start, horizon)
    constant = box.weights[0]
    weights = values(box.content, constant)
    delta = 0.01 * np.random.default_rng(0).standard_normal(constant.shape)
    moved = forecaster.replace_tensor(0, "kernel", (weights + delta)[None])
    stack = rollout.cells(moved)
    squares = []
    for t, windows in enumerate(start.seen):
        outputs, _ = rollout.run(stack, rollout.zero_state(stack, (len(windows),)), windows.astype(np.float64))
        squares.append(np.mean(((outputs[:, -1] - start.reference[:, t]) / start.spread) ** 2))
    wanted = np.mean(squares) / np.sum(delta**2)
    assert meter.local(constant, weights, [delta], np.zeros(horizon)) == pytest.approx(wanted, rel=0.02)


def test_half_of_the_starts_have_run_closed(tmp_path):
    box = boxed(rnn(), tmp_path)
    start = synthetic_starts(box, 12, 8, 0)  # longer than the window of 10; input 1 is held
    assert len(start.windows) == 8
    assert np.all(np.ptp(start.windows[4:, :, 1], axis=1) == 0)
    assert np.all(np.ptp(start.windows[:2, :, 1], axis=1) > 0)


def test_a_direct_model_is_scored_along_its_inputs(tmp_path):
    box = boxed(rnn(feedback=False), tmp_path)
    assert box.forecaster.feedback == Feedback()
    scores = score(box, 6)
    for unit in scores.units:
        assert unit.local == pytest.approx(unit.sensitivity)
        assert len(unit.growth) == 6
        assert max(unit.growth) < 10 * min(unit.growth)


def test_chaos_is_scored_up_to_saturation(tmp_path):
    scores = score(boxed(rnn(gain=3), tmp_path), 16)
    assert 1 <= scores.scored < 16


def test_integer_weights_move_by_whole_steps(tmp_path):
    forecaster = rnn()
    (tmp_path / "int").mkdir()
    box = boxed(forecaster, tmp_path / "int", "int8")
    scores = score(box, 6)
    plain = score(boxed(forecaster, tmp_path), 6)
    assert {u.epsilon for u in scores.units} <= set(blackbox.INTEGER_EPSILONS)
    for a, b in zip(scores.units, plain.units, strict=True):
        assert a.tqs == pytest.approx(b.tqs, rel=0.5)


def test_perturbations_that_round_away_are_flagged(tmp_path, monkeypatch):
    monkeypatch.setattr(blackbox, "INTEGER_EPSILONS", (1e-3,))
    scores = score(boxed(rnn(), tmp_path, "int4"), 4)
    assert all("rounds away" in unit.flag for unit in scores.units)
    assert all(unit.sensitivity == 0 for unit in scores.units)


def test_half_precision_scores_like_single(tmp_path):
    (tmp_path / "half").mkdir()
    half, single = (score(boxed(rnn(), tmp_path / f, k), 6) for f, k in (("half", "float16"), ("", "float32")))
    assert [u.tqs for u in half.units] == pytest.approx([u.tqs for u in single.units], rel=0.1)


def test_weights_of_zero_are_flagged(tmp_path):
    forecaster = rnn()
    scores = score(boxed(forecaster.replace_tensor(1, "recurrent_kernel", np.zeros((1, 6, 6))), tmp_path), 4)
    assert [u.unit.name for u in scores.flagged] == ["rnn_1/recurrent_kernel"]


def test_diverging_rollouts_are_refused(tmp_path):
    model = Model()
    graph = model.graph()
    x = graph.tensor("input", (1, 3))
    graph.finish([x], [graph.dense("out", x, graph.constant("layer/kernel", 5 * np.eye(3)))])
    _, box = load(save(model.bytes(), tmp_path / "m.tflite"), None)
    with pytest.raises(BadInput, match="diverge"):
        score(box, 24)


def test_audit_with_data(tmp_path):
    box = boxed(rnn(), tmp_path)
    data = np.cumsum(np.random.default_rng(0).standard_normal((300, 3)), axis=0) / 10
    assert blackbox.audit(box, score(box, 6), data) > 0.6
    with pytest.raises(BadInput, match="12 samples"):
        blackbox.audit(box, score(box, 6), data[:12])


# --- fused operators ------------------------------------------------------------------------


def test_a_fused_lstm_is_scored_gate_by_gate():
    path = PUBLISHED / "tflm_mnist_lstm_float.tflite"
    if not path.exists():
        pytest.skip("the published models are not there")
    _, box = load(path, None)
    assert len(box.weights) == 9
    names = [c.name.rpartition("/")[2] for c in box.weights]
    gates = ("input", "forget", "cell", "output")
    assert names[:8] == [f"{source}_to_{gate}" for source in ("input", "recurrent") for gate in gates]
    windows = np.random.default_rng(0).standard_normal((2, 28, 28)).astype(np.float32)
    engine = Engine(box, box.content)
    assert np.array_equal(engine(windows[::-1])[::-1], engine(windows))  # its state is put back before each window
    scores = score(box, 3, directions=1, trajectories=6)
    assert all(unit.sensitivity > 0 for unit in scores.units)


# --- what is refused ------------------------------------------------------------------------


def interface(inputs: list[tuple], outputs: list[tuple]) -> bytes:
    model = Model()
    graph = model.graph()
    ports = [
        [graph.tensor(f"p{k}{n}", *port) for n, port in enumerate(many)] for k, many in enumerate((inputs, outputs))
    ]
    graph.into("FULLY_CONNECTED", [ports[0][0], graph.constant("w", np.eye(3)), -1], [ports[1][0]])
    graph.finish(*ports)
    return model.bytes()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "not a .tflite"),
        (b"x" * 100, "not a .tflite"),
        (b"\0\0\0\0TFL3" + b"\xff" * 50, "damaged"),
        (interface([((1, 3),), ((1, 3),)], [((1, 3),)]), "has 2 inputs and 1 outputs"),
        (interface([((1, 3), "int8")], [((1, 3),)]), r"its input is int8 \[1, 3\]"),
        (interface([((2, 3),)], [((2, 3),)]), r"its input is float32 \[2, 3\]"),
        (interface([((1, 3),)], [((1, 2, 2, 3),)]), "its output"),
        (interface([((1, 1 << 20),)], [((1, 3),)]), "its input"),
        (interface([((1, 1 << 30),)], [((1, 3),)]), "damaged|too large"),
    ],
)
def test_other_files_are_refused(content, words, tmp_path):
    with pytest.raises(BadInput, match=words):
        read_black_box(save(content, tmp_path / "m.tflite"))


def test_damaged_files_are_refused_in_time(tmp_path):
    """Bytes changed at random, and files cut short: an answer or ``BadInput``, nothing else."""
    whole = {"rnn": unrolled(rnn(1)), "loop": looped(np.eye(4) / 2)}
    verdicts = []
    for seed in range(600):
        chance = random.Random(seed)
        content = bytearray(whole[chance.choice(sorted(whole))])
        for _ in range(chance.choice([1, 2, 8])):
            content[chance.randrange(len(content))] = chance.choice([0, 1, 127, 128, 255])
        content = content[: chance.randrange(len(content))] if chance.random() < 0.2 else content
        try:
            read_black_box(save(bytes(content), tmp_path / "m.tflite"))
            verdicts.append("read")
        except BadInput:
            verdicts.append("refused")
    assert 100 < verdicts.count("refused") < 590


@pytest.mark.parametrize(
    ("body", "verdict"),
    [
        ("pass", ""),
        ("assert argument == 'given'", ""),
        ("os.kill(os.getpid(), signal.SIGSEGV)", "is killed by SIGSEGV"),
        ("raise MemoryError('too much')", "MemoryError: too much"),
        ("time.sleep(60)", "does not end in 3 s"),
    ],
)
def test_a_trial_tells_what_happened(body, verdict, tmp_path, monkeypatch):
    (tmp_path / "attempt.py").write_text(f"import os, signal, time\ndef trial(argument):\n    {body}\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert survives("attempt", "given", timeout_s=3) == verdict


def test_a_file_that_crashes_litert_is_refused(tmp_path, monkeypatch):
    path = save(unrolled(rnn(1)), tmp_path / "m.tflite")
    asked = []

    def crash(module, *arguments):
        asked.append((module, *arguments))
        return "is killed by SIGSEGV"

    monkeypatch.setattr(tflite_forecaster, "survives", crash)
    with pytest.raises(BadInput, match="LiteRT is killed by SIGSEGV when it runs the file"):
        load(path, None)
    assert asked == [("edgetqs.tflite_forecaster", str(path), "10")]


def test_a_trial_runs_the_file(tmp_path, monkeypatch):
    path = save(unrolled(rnn(1)), tmp_path / "m.tflite")
    ran = []
    monkeypatch.setattr(tflite_forecaster, "resource", None)  # no limits for the tests' own process
    monkeypatch.setattr(tflite_forecaster, "prepared", lambda box, forecaster: ran.append(forecaster.window))
    tflite_forecaster.trial(str(path), "10")
    assert ran == [10]


def test_a_padding_that_asks_for_gigabytes_is_refused(tmp_path):
    model = Model()
    graph = model.graph()
    x = graph.tensor("input", (1, 3))
    pads = graph.constant("pads", [[0, 0], [0, 1 << 28]], np.int32)
    padded = graph.operator("PAD", [x, pads], [("padded", (1, 3))], schema.PadOptionsT())[0]
    graph.finish([x], [graph.dense("out", padded, graph.constant("w", np.eye(3)))])
    with pytest.raises(BadInput, match="too large"):
        read_black_box(save(model.bytes(), tmp_path / "m.tflite"))


@pytest.mark.parametrize(("shift", "words"), [(0, ""), (4, "overlap"), (1 << 20, "beyond the end")])
def test_constants_behind_the_tables(shift, words, tmp_path):
    """Large files keep their data behind the tables, at an offset; two weights must not share parts of it."""
    model = Model()
    graph = model.graph()
    x = graph.tensor("input", (1, 4))
    first = graph.constant("first", np.arange(32).reshape(8, 4) / 16)
    second = graph.constant("second", np.full((1, 8), 0.5))
    graph.finish([x], [graph.dense("out", graph.dense("hidden", x, first), second)])
    table = schema.ModelT.InitFromPackedBuf(model.bytes(), 0)
    buffer = table.buffers[table.subgraphs[0].tensors[second].buffer]
    buffer.data, buffer.offset, buffer.size = None, 8, 32
    size = len(pack(table))
    own = read_contents(pack(table) + bytes(64)).weights[0].start
    buffer.offset = own + shift if shift else size
    content = pack(table) + np.full(8, 0.25, np.float32).tobytes()
    if words:
        with pytest.raises(BadInput, match=words):
            read_contents(content)
    else:
        assert np.all(values(content, read_contents(content).weights[1]) == 0.25)


def test_a_subgraph_that_calls_itself_is_refused(tmp_path):
    content = schema.ModelT.InitFromPackedBuf(looped(np.eye(3)), 0)
    body = content.subgraphs[2]
    loop = content.subgraphs[0].operators[0]
    loop.builtinOptions.bodySubgraphIndex = 2
    body.operators.append(loop)
    loop.inputs, loop.outputs = body.inputs, body.inputs
    with pytest.raises(BadInput):
        read_black_box(save(pack(content), tmp_path / "m.tflite"))


def test_weights_of_other_kinds_are_refused_by_name(tmp_path):
    model = Model()
    graph = model.graph()
    x = graph.tensor("input", (1, 4))
    w = graph.tensor("layer/kernel", (2, 4), "int16", model.buffer(bytes(range(16))))
    graph.finish([x], [graph.dense("out", x, w)])
    with pytest.raises(Unsupported, match=r"'layer/kernel': weights stored as int16"):
        read_black_box(save(model.bytes(), tmp_path / "m.tflite"))


def test_weights_that_are_not_finite_are_refused(tmp_path):
    broken = rnn().replace_tensor(2, "kernel", np.full((1, 1, 6), np.nan))
    with pytest.raises(BadInput, match="not finite"):
        read_black_box(save(unrolled(broken), tmp_path / "m.tflite"))


def test_a_model_without_weights_is_refused(tmp_path):
    model = Model()
    graph = model.graph()
    x = graph.tensor("input", (1, 3))
    graph.finish([x], [graph.tanh("y", x)])
    with pytest.raises(BadInput, match="no constant weights"):
        read_black_box(save(model.bytes(), tmp_path / "m.tflite"))


def test_the_window_is_the_models(tmp_path):
    path = save(unrolled(rnn()), tmp_path / "m.tflite")
    config = tmp_path / "edgetqs.toml"
    config.write_text('[model]\nfile = "m.tflite"\nwindow = 4\n')
    with pytest.raises(BadInput, match="window is 4, the model takes 10"):
        load(path, config)


def test_the_configuration_applies(tmp_path):
    save(unrolled(rnn()), tmp_path / "m.tflite")
    config = tmp_path / "edgetqs.toml"
    inputs = "".join(
        f'[[input]]\nname = "{name}"\nmean = 2.0\nstd = 4.0\nrole = "{role}"\n'
        for name, role in (("level", "feedback"), ("wind", "held"), ("hour", "known"))
    )
    output = '[[output]]\nname = "level"\nstd = 2.0\n'
    config.write_text(f'[model]\nfile = "m.tflite"\n{inputs}{output}[rollout]\nhorizon = 7\n')
    project, box = load(None, config)
    assert project.horizon == 7
    assert box.forecaster.feedback == Feedback(((0, 0),), (2,))
    assert rollout.feedback_affine(box.forecaster, 0, 0) == (0.5, -0.5)


# --- the command line ------------------------------------------------------------------------


@pytest.fixture
def here(tmp_path) -> Path:
    save(unrolled(rnn()), tmp_path / "m.tflite")
    save(looped(np.eye(3) / 2), tmp_path / "loop.tflite")
    return tmp_path


def test_score_on_the_command_line(here):
    done = run("score", "m.tflite", "--black-box", "--horizon", 3, cwd=here)
    assert "Sensitivity per tensor" in done.stdout
    assert "rnn_1/recurrent_kernel" in done.stdout
    table = json.loads(run("score", "m.tflite", "--black-box", "--horizon", 3, "--json", cwd=here).stdout)
    assert (table["granularity"], table["horizon"], len(table["units"])) == ("tensor", 3, 5)
    assert all(unit["tqs"] > 0 for unit in table["units"])


def test_init_writes_a_configuration_that_the_black_box_reads(here):
    run("init", "m.tflite", cwd=here)
    table = json.loads(run("score", "--black-box", "--horizon", 2, "--json", cwd=here).stdout)
    assert len(table["units"]) == 5


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["score", "loop.tflite"], ["no layer that is known", "1 WHILE", "--black-box"]),
        (["score", "none.tflite", "--black-box"], ["none.tflite: No such file"]),
        (["score", "m.keras", "--black-box"], ["m.keras: a black box is a .tflite file"]),
        (["score", "m.tflite", "--black-box", "--granularity", "gate"], ["no gates"]),
        (["plan", "m.tflite", "--black-box", "--flash-budget", 9], ["no device", "--weight-budget"]),
        (["plan", "m.tflite", "--black-box", "--refine"], ["plan --black-box: --refine", "leave out --refine"]),
        (["plan", "m.keras", "--apply", "q.tflite", "--target", "x86"], ["--apply needs --black-box"]),
    ],
)
def test_failures(here, arguments, words):
    done = run(*arguments, cwd=here, code=2)
    assert [word for word in words if word not in done.stderr] == []


def test_the_reader_loads_no_tensorflow():
    code = "import sys, edgetqs.blackbox, edgetqs.recipe; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {name.split(".")[0] for name in loaded} & {"tensorflow", "keras", "ai_edge_quantizer"}


# --- models of TensorFlow ---------------------------------------------------------------------


@pytest.fixture(scope="module")
def convert():
    keras = pytest.importorskip("keras", reason="TensorFlow is not installed")
    tensorflow = pytest.importorskip("tensorflow", reason="TensorFlow is not installed")

    def make(path: Path, build, batch: int | None = None, window: int = 12) -> tuple[BlackBox, Path]:
        keras.utils.set_random_seed(3)
        source = keras.Input(batch_shape=(batch, window, 3))
        model = keras.Model(source, build(keras.layers, source))
        model.save(path / "m.keras")
        converter = tensorflow.lite.TFLiteConverter.from_keras_model(model)
        return load(save(converter.convert(), path / "m.tflite"), None)[1], path / "m.keras"

    return make


def recurrent(kind: str, unroll: bool):
    def build(layers, x):
        x = getattr(layers, kind)(7, return_sequences=True, unroll=unroll)(x)
        return layers.Dense(2)(getattr(layers, kind)(6, unroll=unroll)(x))

    return build


def same_tensors(box: BlackBox, forecaster: Forecaster) -> dict[str, str]:
    """The white box's layer/tensor by the black box's name, found by equal values."""
    every = {
        f"{layer.name}/{t}": np.concatenate(list(getattr(layer, t)))
        for layer in forecaster.layers
        for t in layer.tensors
    }
    found = {}
    for constant in box.weights:
        weights = values(box.content, constant)
        (found[constant.name],) = [k for k, v in every.items() if v.shape == weights.shape and np.allclose(v, weights)]
    return found


@pytest.mark.tensorflow
@pytest.mark.parametrize("unroll", [True, False])
@pytest.mark.parametrize("kind", ["LSTM", "GRU", "SimpleRNN"])
def test_keras_models_agree_with_the_white_box(convert, kind, unroll, tmp_path):
    from edgetqs.project import guess
    from edgetqs.read_keras import read_keras

    box, path = convert(tmp_path, recurrent(kind, unroll), None if unroll else 1)
    assert box.batched == unroll
    forecaster, _ = guess(read_keras(path))
    assert any(isinstance(layer, (Lstm, Gru)) for layer in forecaster.layers) == (kind != "SimpleRNN")
    names = same_tensors(box, forecaster)
    assert len(names) == 5
    assert_agrees(box, forecaster, names, horizon=5)


@pytest.mark.tensorflow
@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
def test_keras_models_rank_like_the_white_box(convert, kind, tmp_path):
    from scipy.stats import spearmanr

    from edgetqs.project import guess
    from edgetqs.read_keras import read_keras

    box, path = convert(tmp_path, recurrent(kind, True), window=24)
    forecaster, _ = guess(read_keras(path))
    names = same_tensors(box, forecaster)
    black = {names[u.unit.name]: u.tqs for u in score(box, 12, directions=16, trajectories=32).units}
    scores = tqs.score(forecaster, 12, "tensor", directions=16, trajectories=32, perturb_burn_in=True)
    white = {u.unit.name: u.tqs for u in scores.units}
    order = sorted(white)
    assert spearmanr([black[k] for k in order], [white[k] for k in order])[0] > 0.89
    ratios = [black[k] / white[k] for k in order]
    assert 0.5 < min(ratios) <= max(ratios) < 2


@pytest.mark.tensorflow
def test_a_convolutional_forecaster(convert, tmp_path):
    def build(layers, x):
        x = layers.Conv1D(8, 3, padding="causal", activation="relu")(x)
        x = layers.Conv1D(8, 3, dilation_rate=2, padding="causal", activation="relu")(x)
        return layers.Dense(2)(layers.Flatten()(x))

    box, _ = convert(tmp_path, build)
    assert [c.shape for c in box.weights] == [(8, 1, 3, 3), (8, 1, 3, 8), (2, 96)]
    scores = score(box, 8)
    assert all(unit.sensitivity > 0 and not unit.flag for unit in scores.units)


@pytest.mark.tensorflow
def test_an_attention_forecaster(convert, tmp_path):
    def build(layers, x):
        x = layers.Dense(16)(x)
        x = layers.LayerNormalization()(layers.Add()([x, layers.MultiHeadAttention(2, 8)(x, x)]))
        return layers.Dense(2)(layers.GlobalAveragePooling1D()(x))

    box, _ = convert(tmp_path, build)
    scores = {u.unit.name: u.tqs for u in score(box, 8).units}
    assert len(scores) == 6
    key, value = (next(v for k, v in scores.items() if part in k) for part in ("key", "value"))
    assert 0 < key < value  # with nearly even attention, keys hardly matter
