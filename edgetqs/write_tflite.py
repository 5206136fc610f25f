"""Integer model -> ``.tflite``, with int4 weights stored as int4.

Signature ``step``: inputs ``x`` [1, inputs] and the states ``h0``, ``c0``,
``h1``, ``w0`` ..., outputs ``y`` and the next states under the same names.
Signature ``sequence``: ``x`` [1, T, inputs] from a zero state to what the
trained model gives. Both share their weights. All values are int16; which op
with which scales keeps every engine equal to the reference is told in DESIGN.md.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np

from edgetqs.fixedpoint import HARD_SIGMOID_SIXTH, TANH_SCALE, UNIT_SCALE
from edgetqs.flatbuffer import pack
from edgetqs.integer import (
    HARD_SLOPES,
    IntegerActivation,
    IntegerDense,
    IntegerLayer,
    IntegerModel,
    IntegerNormalization,
    IntegerRecurrent,
    output_scale,
)
from edgetqs.model import Merge, Pool, Window
from edgetqs.tflite_build import File, Graph
from edgetqs.write_normalization import write_layer_normalization, write_softmax

Item = TypeVar("Item")


@dataclass(frozen=True, slots=True)
class TfliteFile:
    """The file and, for naming a difference, what the tensors of ``step`` hold: (layer, what) by index."""

    data: bytes
    signatures: tuple[str, ...]
    labels: dict[int, tuple[str, str]]


def write_tflite(model: IntegerModel, signatures: Sequence[str] = ("step", "sequence")) -> TfliteFile:
    """The ``.tflite`` of an integer model; tflite-micro takes files with the one signature ``step``."""
    file = File()
    labels: dict[int, tuple[str, str]] = {}
    if "step" in signatures:
        labels = _step_signature(file, model)
    if "sequence" in signatures:
        _sequence_signature(file, model)
    return TfliteFile(pack(file.model), tuple(signatures), labels)


def _gates(graph: Graph, layer: IntegerRecurrent, first: int, gates: list[int]) -> list[int]:
    """The same tensors, labelled as the pre-activations of the gates from ``first`` on."""
    return [graph.named(z, layer.name, f"gate {layer.gates[first + k]}") for k, z in enumerate(gates)]


def _function(graph: Graph, name: str, z: int) -> int:
    """A function's value; the steps of ``fixedpoint.hard_sigmoid`` are one operator each."""
    if name == "linear":
        return z
    if name == "relu":
        return graph.relu(z)
    if name == "softmax":
        return write_softmax(graph, z)
    if name not in HARD_SLOPES:
        return graph.table("TANH" if name == "tanh" else "LOGISTIC", z)
    integer, scale = (1, 0.2) if HARD_SLOPES[name] == "0.2" else (HARD_SIGMOID_SIXTH, 2.0**-17)
    slope = graph.activation((1,), scale, np.array([integer], np.int16).tobytes())
    centred = graph.quantize(graph.binary("MUL", z, slope, UNIT_SCALE / 2), UNIT_SCALE)
    half = graph.activation((1,), UNIT_SCALE, np.array([1 << 14], np.int16).tobytes())
    return graph.binary("ADD", centred, half, UNIT_SCALE)


def _lstm(graph: Graph, layer: IntegerRecurrent, x: int, state: Sequence[int]) -> list[int]:
    h, c = state
    summed = graph.binary("ADD", graph.part(x, layer.kernel), graph.part(h, layer.recurrent), layer.z_scale)
    z = _gates(graph, layer, 0, graph.split(summed, 4))
    i, f, o = (_function(graph, layer.gate, z[k]) for k in (0, 1, 3))
    h_scale, c_scale = layer.state_scales
    kept = graph.binary("MUL", f, c, c_scale)
    new = graph.binary("MUL", i, _function(graph, layer.activation, z[2]), c_scale)
    c = graph.binary("ADD", kept, new, c_scale)
    if layer.limited:
        c = graph.bounded(c, layer.cell_limit)
    graph.named(c, layer.name, "cell_state")
    squashed = _function(graph, layer.activation, graph.quantize(c, TANH_SCALE) if layer.bounded else c)
    return [graph.named(graph.binary("MUL", o, squashed, h_scale), layer.name, "hidden_state"), c]


def _new(graph: Graph, layer: IntegerRecurrent, z: int) -> int:
    """The activation of a GRU's or SimpleRNN's pre-activation, at the hidden state's scale."""
    value = _function(graph, layer.activation, z)
    return value if layer.bounded else graph.quantize(value, layer.state_scales[0])


def _gru(graph: Graph, layer: IntegerRecurrent, x: int, state: Sequence[int]) -> list[int]:
    (h,) = state
    (scale,) = layer.state_scales
    inputs = graph.split(graph.part(x, layer.kernel), 3)
    recurrent = graph.split(graph.part(h, layer.recurrent, 0, 2), 2)
    sums = [graph.binary("ADD", inputs[k], recurrent[k], layer.z_scale) for k in range(2)]
    z, r = (_function(graph, layer.gate, gate) for gate in _gates(graph, layer, 0, sums))
    if layer.kind == "gru_reset_after":
        candidate = graph.binary("MUL", r, graph.part(h, layer.recurrent, 2, 3), layer.z_scale)
    else:
        candidate = graph.part(graph.binary("MUL", r, h, scale), layer.recurrent, 2, 3)
    (zh,) = _gates(graph, layer, 2, [graph.binary("ADD", inputs[2], candidate, layer.z_scale)])
    new = _new(graph, layer, zh)
    fresh = graph.binary("SUB", new, graph.binary("MUL", z, new, scale), scale)
    kept = graph.binary("MUL", z, h, scale)
    return [graph.named(graph.binary("ADD", fresh, kept, scale), layer.name, "hidden_state")]


def _rnn(graph: Graph, layer: IntegerRecurrent, x: int, state: Sequence[int]) -> list[int]:
    summed = graph.binary("ADD", graph.part(x, layer.kernel), graph.part(state[0], layer.recurrent), layer.z_scale)
    (z,) = _gates(graph, layer, 0, [summed])
    return [graph.named(_new(graph, layer, z), layer.name, "hidden_state")]


_CELLS = {"lstm": _lstm, "gru": _gru, "gru_reset_after": _gru, "rnn": _rnn}


def _dense(graph: Graph, layer: IntegerDense, x: int) -> int:
    if layer.frames is not None:
        x = graph.frames(x, layer.frames, layer.kernel.columns // layer.frames.taps)
    y = graph.fully_connected(x, layer.kernel, *layer.kernel.groups()[0], relu=layer.activation == "relu")
    if layer.activation not in ("linear", "relu"):
        y = _function(graph, layer.activation, y)
    if layer.frames is not None:
        y = graph.reshape(y, 1, layer.frames.count * graph.width(y))
    return graph.named(y, layer.name, "output")


def _activation(graph: Graph, layer: IntegerActivation, x: int) -> int:
    if layer.function != "relu":
        x = graph.quantize(x, 5 * 2.0**-layer.z_bits)
    return graph.named(_function(graph, layer.function, x), layer.name, "output")


def _pool(graph: Graph, layer: Pool, x: int) -> int:
    rows = graph.reshape(x, graph.width(x) // layer.features, layer.features)
    if layer.mean:
        y = graph.mean(graph.gather(rows, layer.frames.sources.ravel().tolist()), layer.frames.count, layer.frames.taps)
        return graph.reshape(y, 1, layer.frames.count * layer.features)
    y, *others = (graph.gather(rows, taps) for taps in layer.frames.sources.T.tolist())
    for other in others:
        y = graph.maximum(y, other)
    return graph.reshape(y, 1, layer.frames.count * layer.features)


def _merge(graph: Graph, layer: Merge, a: int, b: int) -> int:
    if layer.mode == "mul":
        return graph.binary("MUL", a, b, UNIT_SCALE)
    parts = [graph.reshape(v, layer.count, graph.width(v) // layer.count) for v in (a, b)]
    joined = graph.concatenate(parts)
    return graph.reshape(joined, 1, layer.count * graph.width(joined))


def _over_frames(graph: Graph, layer: IntegerRecurrent, x: int) -> int:
    """A WHILE over the frames, those of a layer that goes backwards in the order of computation."""
    assert layer.frames is not None
    frames = replace(layer.frames, sources=layer.frames.sources[list(layer.order)])
    rows = graph.frames(x, frames, layer.kernel.columns // frames.taps)
    series = graph.reshape(rows, 1, frames.count, graph.width(rows))

    def step(body: Graph, sample: int, states: list[int]) -> tuple[int, list[int]]:
        after = _CELLS[layer.kind](body, layer, sample, states)
        return after[0], after

    zeros = [graph.activation((1, layer.units), scale, bytes(2 * layer.units)) for scale in layer.state_scales]
    collected = (layer.units, layer.state_scales[0]) if layer.return_sequences else None
    last, outputs = graph.loop(series, zeros, step, collected)
    if not layer.return_sequences:
        return last[0]
    by_frame = graph.reshape(outputs, frames.count, layer.units)
    if layer.go_backwards:
        by_frame = graph.gather(by_frame, list(layer.order))
    return graph.named(graph.reshape(by_frame, 1, frames.count * layer.units), layer.name, "output")


def _layers(
    graph: Graph, layers: Sequence[IntegerLayer], x: int, states: Iterator[list[int]]
) -> tuple[int, list[list[int]]]:
    """The layers over one step; ``states`` gives those of each layer that has any."""
    values, after = [x], []
    for layer in layers:
        x = values[getattr(layer, "source", -1)]
        if isinstance(layer, Merge):
            y = _merge(graph, layer, values[-2], values[-1])
        elif isinstance(layer, Window):
            (kept,) = next(states)
            y = graph.concatenate([graph.tail(kept, layer.features), x]) if layer.size > 1 else x
            after.append([y])
        elif isinstance(layer, Pool):
            y = _pool(graph, layer, x)
        elif isinstance(layer, IntegerDense):
            y = _dense(graph, layer, x)
        elif isinstance(layer, IntegerActivation):
            y = _activation(graph, layer, x)
        elif isinstance(layer, IntegerNormalization):
            rows = graph.reshape(x, layer.count, layer.layer.features)
            y = graph.reshape(write_layer_normalization(graph, rows, layer.layer), 1, graph.width(x))
            y = graph.named(y, layer.name, "output")
        elif layer.frames is not None:
            y = _over_frames(graph, layer, x)
        else:
            after.append(_CELLS[layer.kind](graph, layer, x, next(states)))
            y = after[-1][0]
        values.append(y)
    return values[-1], after


def _states(graph: Graph, model: IntegerModel, zero: bool = False) -> list[list[int]]:
    """Tensors for the states, one list a layer that has any; constants of zeros if ``zero``."""
    made, scale = [], model.input_scale
    for layer in model.layers:
        if isinstance(layer, Window):
            shapes = [(layer.size * layer.features, scale)]
        elif isinstance(layer, IntegerRecurrent) and layer.frames is None:
            shapes = [(layer.units, one) for one in layer.state_scales]
        else:
            shapes = []
        scale = output_scale(layer, scale)
        if shapes:
            made.append([graph.activation((1, width), s, bytes(2 * width) if zero else None) for width, s in shapes])
    return made


def _flat(nested: Sequence[Sequence[Item]]) -> list[Item]:
    return [item for own in nested for item in own]


def _step_signature(file: File, model: IntegerModel) -> dict[int, tuple[str, str]]:
    graph = Graph(file)
    x = graph.activation((1, len(model.inputs)), model.input_scale)
    states = _states(graph, model)
    y, after = _layers(graph, model.layers, x, iter(states))
    names = _flat(model.states())
    graph.finish([x, *_flat(states)], [y, *_flat(after)])
    file.signature(
        "step",
        graph,
        {"x": x, **dict(zip(names, _flat(states), strict=True))},
        {"y": y, **dict(zip(names, _flat(after), strict=True))},
    )
    return graph.labels


def _sequence_signature(file: File, model: IntegerModel) -> None:
    """A WHILE over the window; layers that remember nothing run once, after it, unless the output is a sequence."""
    steps, inputs = model.window, len(model.inputs)
    main = Graph(file)
    x = series = main.activation((1, steps, inputs), model.input_scale)
    last = max((k + 1 for k, names in enumerate(model.states()) if names), default=0)
    if isinstance(model.layers[0], Window) and last == 1 and model.layers[0].size == steps:
        y = _layers(main, model.layers[1:], main.reshape(x, 1, steps * inputs), iter(()))[0]
    else:
        inside = model.layers if model.sequence_output else model.layers[:last]

        def step(body: Graph, sample: int, flat: list[int]) -> tuple[int, list[int]]:
            rest = iter(flat)
            own = [[next(rest) for _ in names] for names in model.states() if names]
            y, after = _layers(body, inside, sample, iter(own))
            return y, _flat(after)

        states = _flat(_states(main, model, zero=True))
        wanted = (len(model.outputs), model.output_scale) if model.sequence_output else None
        ends, y = main.loop(series, states, step, wanted)
        if not model.sequence_output:
            by_name = dict(zip(_flat(model.states()), ends, strict=True))
            y = _layers(main, model.layers[last:], by_name[model.states()[last - 1][0]], iter(()))[0]
    main.finish([x], [y])
    file.signature("sequence", main, {"x": x}, {"y": y})
