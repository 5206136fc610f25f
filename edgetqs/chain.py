"""The chain: the same integers in NumPy, LiteRT, C on the host and the target's emulator.

Golden vectors drive every engine; the reference's answer is the truth. A
difference is traced to the first step, layer and gate.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edgetqs import litert, reference
from edgetqs.errors import ToolMissing
from edgetqs.fixedpoint import INT16_MAX, Integers
from edgetqs.integer import IntegerDense, IntegerModel, IntegerRecurrent
from edgetqs.trajectories import synthetic_inputs
from edgetqs.write_tflite import TfliteFile

#: Closed-loop steps among the golden vectors (open-loop steps without feedback).
LOOP_STEPS = 1000
#: Products of weights that all closed-loop steps together may take, and the fewest steps: see ``_loop_steps``.
MOST_PRODUCTS = 500_000_000
FEWEST_STEPS = 100
#: Steps on inputs at and near the int16 limits, from reset.
SATURATING_STEPS = 160
FORECAST_STEPS = 24


@dataclass(frozen=True, slots=True)
class Golden:
    """Inputs for every engine and the reference's answers, a row a step.

    ``resets`` holds the steps before which the state is zeroed, ``closed``
    (N,) whether the step's input was made by the closed loop; ``inputs`` (N,
    inputs), ``outputs`` (N, outputs), ``states`` (N, units) by name and
    ``clipped`` (N,) counts steps that clipped a value, since the reset. ``physical`` (P, inputs) float32
    samples follow, one of them not a number, with ``statuses`` and
    ``physical_outputs``; then one forecast from ``future`` (T, known), which
    must leave the states at ``last_states`` and the count at ``last_clipped``.
    """

    inputs: Integers
    resets: tuple[int, ...]
    closed: np.ndarray
    outputs: Integers
    states: dict[str, Integers]
    clipped: Integers
    physical: np.ndarray
    statuses: tuple[int, ...]
    physical_outputs: np.ndarray
    future: np.ndarray
    forecast: np.ndarray
    last_states: tuple[Integers, ...]
    last_clipped: int

    @property
    def steps(self) -> int:
        return len(self.inputs)


@dataclass(frozen=True, slots=True)
class Link:
    """One engine's verdict: "exact", "differs" or "not run", with where or why."""

    verdict: str
    detail: str = ""


def golden(model: IntegerModel, *, seed: int = 5, loop_steps: int = 0) -> Golden:
    """Golden vectors: synthetic history, a long closed loop, saturating inputs, physical samples, a forecast."""
    rng = np.random.default_rng(seed)
    loop_steps = loop_steps or _loop_steps(model)
    count, known = len(model.inputs), list(model.feedback.known)
    history = 2 * max(model.window, 24)
    limit = INT16_MAX * model.input_scale
    smooth = synthetic_inputs(count, 1, history + loop_steps, limit, rng)[0]
    smooth_q = np.clip(np.rint(smooth / model.input_scale), -INT16_MAX, INT16_MAX).astype(np.int64)
    plan = [(smooth_q[t], False) for t in range(history)]
    plan += [(smooth_q[history + t], bool(model.loop)) for t in range(loop_steps)]
    resets = (0, len(plan))
    plan += [(x, False) for x in _saturating(count, rng)]

    inputs, outputs, clipped = [], [], []
    states: dict[str, list[Integers]] = {name: [] for own in model.states() for name in own}
    state, count_clipped = reference.zero_state(model), 0
    x: Integers = smooth_q[0]
    y: Integers = np.zeros(len(model.outputs), np.int64)
    for t, (given, closed) in enumerate(plan):
        if t in resets:
            state, count_clipped = reference.zero_state(model), 0
        x = reference.next_input(model, x, y, given) if closed else given
        trace = reference.Trace()
        y, state = reference.step(model, state, x, trace)
        count_clipped += bool(trace.clipped)
        inputs.append(x)
        outputs.append(y)
        clipped.append(count_clipped)
        for name, value in zip(states, (v for own in state for v in own), strict=True):
            states[name].append(value)

    mean = np.array([c.mean for c in model.inputs])
    gain = np.array([c.gain for c in model.inputs])
    physical = (smooth_q[:8] / gain + mean).astype(np.float32)
    physical[2] = np.float32(3e38)
    physical[5, -1] = np.float32("nan")
    state, statuses, physical_outputs, count_clipped = reference.zero_state(model), [], [], 0
    for sample in physical:
        if np.isfinite(sample).all():
            x = reference.encode(model, sample)
            trace = reference.Trace()
            y, state = reference.step(model, state, x, trace)
            count_clipped += bool(trace.clipped)
            physical_outputs.append(reference.decode(model, y))
            statuses.append(0)
        else:
            physical_outputs.append(np.zeros(len(model.outputs), np.float32))
            statuses.append(1)
    future = (smooth_q[8 : 8 + FORECAST_STEPS] / gain + mean)[:, known].astype(np.float32)
    forecast = np.zeros((0, len(model.outputs)), np.float32)
    if model.loop:
        full = np.zeros((FORECAST_STEPS, count), np.float32)
        full[:, known] = future
        ahead, _ = reference.closed_loop(model, state, x, y, FORECAST_STEPS, reference.encode(model, full))
        forecast = reference.decode(model, ahead)
    return Golden(
        np.array(inputs),
        resets,
        np.array([closed for _, closed in plan]),
        np.array(outputs),
        {name: np.array(values) for name, values in states.items()},
        np.array(clipped),
        physical,
        tuple(statuses),
        np.array(physical_outputs),
        future,
        forecast,
        tuple(value for own in state for value in own),
        count_clipped,
    )


def _loop_steps(model: IntegerModel) -> int:
    """``LOOP_STEPS``, fewer for models that go over many frames in each step."""
    products = 0
    for layer in model.layers:
        if isinstance(layer, (IntegerDense, IntegerRecurrent)):
            rows = layer.kernel.weights.size + (
                layer.recurrent.weights.size if isinstance(layer, IntegerRecurrent) else 0
            )
            products += rows * (layer.frames.count if layer.frames else 1)
    return max(FEWEST_STEPS, min(LOOP_STEPS, MOST_PRODUCTS // max(products, 1)))


def _saturating(count: int, rng: np.random.Generator) -> list[Integers]:
    """Inputs at and near the limits: all high, all low, alternating, and anything."""
    high, low = np.full(count, INT16_MAX), np.full(count, -INT16_MAX - 1)
    mixed = np.where(np.arange(count) % 2, high, low)
    fixed = [high] * 12 + [low] * 12 + [mixed, -mixed - 1] * 8
    return fixed + [rng.integers(-INT16_MAX - 1, INT16_MAX + 1, count) for _ in range(SATURATING_STEPS - len(fixed))]


def commands(model: IntegerModel, vectors: Golden, *, steps: int | None = None) -> bytes:
    """``harness.in`` for the first ``steps`` steps, or for everything."""
    known = list(model.feedback.known)
    made = [b"K"]
    for t in range(vectors.steps if steps is None else steps):
        if t in vectors.resets:
            made.append(b"R")
        x = vectors.inputs[t]
        made.append(b"A" + _int16(x[known]) if vectors.closed[t] else b"S" + _int16(x))
    if steps is None:
        made.append(b"R")
        made += [b"P" + sample.astype("<f4").tobytes() for sample in vectors.physical]
        if model.loop:
            made.append(b"F" + struct.pack("<I", FORECAST_STEPS) + vectors.future.astype("<f4").tobytes())
        made.append(b"K")
    return b"".join(made)


def _int16(values: Integers) -> bytes:
    return values.astype("<i2").tobytes()


def record_type(model: IntegerModel, vectors: Golden) -> np.dtype:
    """One record of ``harness.out``."""
    fields: list[tuple] = [("output", "<i2", (len(model.outputs),))]
    fields += [(name, "<i2", (values.shape[1],)) for name, values in vectors.states.items()]
    return np.dtype([*fields, ("clipped", "<u4")])


@dataclass(frozen=True, slots=True)
class HarnessResult:
    """What ``harness.out`` tells: the verdict on it, and the stack the steps used."""

    link: Link
    stack_bytes: int


def judge(model: IntegerModel, vectors: Golden, output: bytes) -> tuple[int | None, HarnessResult]:
    """(first step that differs or None, result) of a whole run's ``harness.out``."""
    kind = record_type(model, vectors)
    outputs = len(model.outputs)
    body = output[4:]
    expected = vectors.steps * kind.itemsize + len(vectors.physical) * (4 + 4 * outputs) + 4
    if model.loop:
        expected += 4 + 4 * FORECAST_STEPS * outputs + kind.itemsize - 2 * outputs
    if len(body) != expected:
        detail = f"wrote {len(body)} bytes of {expected}"
        return None, HarnessResult(Link("differs", detail), 0)
    records = np.frombuffer(body[: vectors.steps * kind.itemsize], kind)
    stack = struct.unpack("<I", body[-4:])[0]
    step = first_difference(records, vectors)
    if step is not None:
        return step, HarnessResult(Link("differs", f"step {step}"), stack)
    rest = body[vectors.steps * kind.itemsize : -4]
    return None, HarnessResult(_judge_physical(model, vectors, rest), stack)


def _judge_physical(model: IntegerModel, vectors: Golden, rest: bytes) -> Link:
    outputs = len(model.outputs)
    entry = np.dtype([("status", "<u4"), ("values", "<f4", (outputs,))])
    size = len(vectors.physical) * entry.itemsize
    samples = np.frombuffer(rest[:size], entry)
    if samples["status"].tolist() != list(vectors.statuses):
        return Link("differs", "physical samples: a status differs")
    if samples["values"].tobytes() != vectors.physical_outputs.tobytes():
        return Link("differs", "physical samples: conversion from or to float32")
    if model.loop:
        status = struct.unpack("<I", rest[size : size + 4])[0]
        values = rest[size + 4 : size + 4 + 4 * FORECAST_STEPS * outputs]
        if status != 0 or values != vectors.forecast.tobytes():
            return Link("differs", "the forecast of physical values")
        states = np.concatenate(vectors.last_states)
        kept = np.frombuffer(rest, "<i2", len(states), size + 4 + 4 * FORECAST_STEPS * outputs)
        clipped = struct.unpack("<I", rest[-4:])[0]
        if not np.array_equal(kept, states) or clipped != vectors.last_clipped:
            return Link("differs", "the state after a forecast, which must leave it alone")
    return Link("exact", f"{vectors.steps} steps")


def first_difference(records: np.ndarray, vectors: Golden) -> int | None:
    """The first step at which a record is not the reference's."""
    truth = {"output": vectors.outputs, **vectors.states, "clipped": vectors.clipped[:, None]}
    wrong = np.zeros(vectors.steps, bool)
    for name, values in truth.items():
        wrong |= (records[name].reshape(vectors.steps, -1) != values).any(axis=1)
    return int(np.argmax(wrong)) if wrong.any() else None


def trace_of(model: IntegerModel, vectors: Golden, step: int) -> list[tuple[str, str, Integers]]:
    """What the reference computes on the way through ``step``."""
    trace = reference.Trace()
    reference.step(model, _state_before(model, vectors, step), vectors.inputs[step], trace)
    return trace.values


def _state_before(model: IntegerModel, vectors: Golden, step: int) -> reference.State:
    if step in vectors.resets:
        return reference.zero_state(model)
    values = iter(vectors.states.values())
    return tuple(tuple(next(values)[step - 1] for _ in own) for own in reference.zero_state(model))


def locate(model: IntegerModel, vectors: Golden, step: int, trace_output: bytes) -> str:
    """Name the first difference from a trace build's ``harness.out`` that ends with ``step``."""
    truth = trace_of(model, vectors, step)
    found = _parse_trace(model, vectors, trace_output)
    for (layer, what, values), (other_layer, other_what, other) in zip(truth, found, strict=False):
        if (layer, what) != (other_layer, other_what):
            return f"step {step}: {other_layer} {other_what} where {layer} {what} was due"
        if not np.array_equal(values, other):
            return describe(step, layer, what, other, values)
    return f"step {step}: the count of steps that clipped a value"


def describe(step: int, layer: str, what: str, other: Integers, values: Integers) -> str:
    unit = int(np.argmax(np.asarray(other) != np.asarray(values)))
    return f"step {step}: layer {layer}, {what}, unit {unit}: {int(other[unit])} instead of {int(values[unit])}"


def _parse_trace(model: IntegerModel, vectors: Golden, output: bytes) -> list[tuple[str, str, Integers]]:
    """The last step's entries, gates split apart."""
    record = record_type(model, vectors).itemsize
    position = 4
    entries: list[tuple[str, str, Integers]] = []
    while position < len(output):
        layer = struct.unpack_from("<H", output, position)[0]
        if layer == 0xFFFF:
            position += 2 + record
            if position < len(output):
                entries = []
            continue
        _, what, count = struct.unpack_from("<3H", output, position)
        values = np.frombuffer(output, "<i2", count, position + 6).astype(np.int64)
        position += 6 + 2 * count
        entries += _named_entries(model, layer, chr(what), values)
    return entries


def _named_entries(model: IntegerModel, index: int, what: str, values: Integers) -> list[tuple[str, str, Integers]]:
    layer = model.layers[index]
    if what.isdigit():
        gates = layer.gates[int(what) :]  # type: ignore[union-attr]
        split = np.split(values, len(values) // layer.units)  # type: ignore[union-attr]
        return [(layer.name, f"gate {gate}", part) for gate, part in zip(gates, split, strict=False)]
    return [(layer.name, {"c": "cell_state", "h": "hidden_state", "y": "output"}[what], values)]


def check_litert(model: IntegerModel, file: TfliteFile, vectors: Golden) -> Link:
    """LiteRT on the emitted file: ``step`` over all golden vectors, ``sequence`` over the first window."""
    try:
        step = _first_step_in_litert(model, file, vectors) if "step" in file.signatures else None
        if step is not None:
            return Link("differs", _locate_litert(model, file, vectors, step))
        if "sequence" in file.signatures:
            given = litert.run_sequence(file.data, vectors.inputs[: model.window])
            expected = vectors.outputs[: model.window] if model.sequence_output else vectors.outputs[model.window - 1]
            if not np.array_equal(given, expected):
                return Link("differs", "signature sequence")
    except ToolMissing as error:
        return Link("not run", error.what)
    except (RuntimeError, ValueError) as error:
        return Link("differs", f"LiteRT refuses the file: {str(error).splitlines()[0]}")
    return Link("exact", f"{vectors.steps if 'step' in file.signatures else model.window} steps")


def _first_step_in_litert(model: IntegerModel, file: TfliteFile, vectors: Golden) -> int | None:
    result = litert.run_steps(file.data, vectors.inputs, set(vectors.resets))
    records = np.zeros(vectors.steps, record_type(model, vectors))
    records["output"], records["clipped"] = result.outputs, vectors.clipped
    for name, values in result.states.items():
        records[name] = values
    return first_difference(records, vectors)


def _locate_litert(model: IntegerModel, file: TfliteFile, vectors: Golden, step: int) -> str:
    state = {
        name: np.zeros_like(values[0]) if step in vectors.resets else values[step - 1]
        for name, values in vectors.states.items()
    }
    tensors = litert.tensors_of_step(file.data, vectors.inputs[step], state)
    by_name = {label: tensors[index].ravel() for index, label in file.labels.items() if index in tensors}
    for layer, what, values in trace_of(model, vectors, step):
        other = by_name.get((layer, what))
        if other is not None and not np.array_equal(other, values):
            return describe(step, layer, what, other, values)
    return f"step {step}"


def write_harness_input(folder: Path, content: bytes) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "harness.in").write_bytes(content)
