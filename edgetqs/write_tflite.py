"""Integer model -> ``.tflite``, with int4 weights stored as int4.

Signature ``step``: inputs ``x`` [1, inputs] and the states ``h0``, ``c0``,
``h1`` ..., outputs ``y`` and the next states under the same names. Signature
``sequence``: ``x`` [1, T, inputs] from a zero state to what the trained model
gives. Both share their weights. All values are int16; which op with which
scales keeps every engine equal to the reference is told in DESIGN.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from edgetqs.fixedpoint import HARD_SIGMOID_SIXTH, TANH_SCALE, UNIT_SCALE
from edgetqs.flatbuffer import AlignedBuffer, SharedQuantization, pack
from edgetqs.integer import HARD_SLOPES, IntegerDense, IntegerModel, IntegerRecurrent, Matrix

Item = TypeVar("Item")

#: Operator versions that carry the int16 kernels.
VERSIONS = {
    "ADD": 4, "SUB": 5, "MUL": 4, "LOGISTIC": 3, "TANH": 3, "QUANTIZE": 3, "SPLIT": 4, "CONCATENATION": 3,
    "GATHER": 4, "WHILE": 1, "LESS": 1, "RESHAPE": 1, "DYNAMIC_UPDATE_SLICE": 1,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class TfliteFile:
    """The file and, for naming a difference, what the tensors of ``step`` hold: (layer, what) by index."""

    data: bytes
    signatures: tuple[str, ...]
    labels: dict[int, tuple[str, str]]


def write_tflite(model: IntegerModel, signatures: Sequence[str] = ("step", "sequence")) -> TfliteFile:
    """The ``.tflite`` of an integer model; tflite-micro takes files with the one signature ``step``."""
    file = _File()
    labels: dict[int, tuple[str, str]] = {}
    if "step" in signatures:
        labels = _step_signature(file, model)
    if "sequence" in signatures:
        _sequence_signature(file, model)
    return TfliteFile(pack(file.model), tuple(signatures), labels)


def pack_int4(values: np.ndarray) -> bytes:
    """Row-major nibbles, the first in the low half of each byte."""
    flat = values.astype(np.int8).ravel().view(np.uint8) & 0xF
    flat = np.append(flat, np.zeros(flat.size % 2, np.uint8))
    return (flat[0::2] | flat[1::2] << 4).astype(np.uint8).tobytes()


class _File:
    """The model under construction: operator codes and buffers are shared by all subgraphs."""

    def __init__(self) -> None:
        self.model = schema.ModelT()
        self.model.version = 3
        self.model.buffers = [schema.BufferT()]
        self.model.operatorCodes, self.model.subgraphs, self.model.signatureDefs = [], [], []
        self._codes: dict[tuple[str, int], int] = {}
        self._buffers: dict[bytes, int] = {}

    def code(self, name: str, version: int) -> int:
        if (name, version) not in self._codes:
            entry = schema.OperatorCodeT()
            entry.builtinCode = getattr(schema.BuiltinOperator, name)
            entry.deprecatedBuiltinCode = min(entry.builtinCode, 127)
            entry.version = version
            self._codes[name, version] = len(self.model.operatorCodes)
            self.model.operatorCodes.append(entry)
        return self._codes[name, version]

    def buffer(self, data: bytes) -> int:
        if data not in self._buffers:
            self._buffers[data] = len(self.model.buffers)
            self.model.buffers.append(AlignedBuffer(data))
        return self._buffers[data]

    def signature(self, key: str, subgraph: _Graph, inputs: dict[str, int], outputs: dict[str, int]) -> None:
        entry = schema.SignatureDefT()
        entry.signatureKey, entry.subgraphIndex = key, subgraph.index
        entry.inputs, entry.outputs = ([_tensor_map(*item) for item in names.items()] for names in (inputs, outputs))
        self.model.signatureDefs.append(entry)


def _tensor_map(name: str, index: int) -> schema.TensorMapT:
    entry = schema.TensorMapT()
    entry.name, entry.tensorIndex = name, index
    return entry


@dataclass(slots=True)
class _Graph:
    """One subgraph; methods append an operator and return its output tensor."""

    file: _File
    graph: Any = field(init=False)
    index: int = field(init=False)
    scales: dict[int, float] = field(default_factory=dict)
    labels: dict[int, tuple[str, str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.graph = schema.SubGraphT()
        self.graph.tensors, self.graph.operators = [], []
        self.index = len(self.file.model.subgraphs)
        self.file.model.subgraphs.append(self.graph)

    def tensor(
        self, shape: Sequence[int], kind: str, scales: np.ndarray | None = None, data: bytes | None = None
    ) -> int:
        entry = schema.TensorT()
        entry.shape, entry.type = np.array(shape, np.int32), getattr(schema.TensorType, kind.upper())
        entry.hasRank = True
        entry.buffer = 0 if data is None else self.file.buffer(data)
        if scales is not None:
            entry.quantization = SharedQuantization(scales)
        self.graph.tensors.append(entry)
        return len(self.graph.tensors) - 1

    def activation(self, shape: Sequence[int], scale: float, data: bytes | None = None) -> int:
        index = self.tensor(shape, "int16", np.array([scale]), data)
        self.scales[index] = scale
        return index

    def integers(self, *values: int, scalar: bool = False) -> int:
        return self.tensor(() if scalar else (len(values),), "int32", data=np.array(values, np.int32).tobytes())

    def width(self, tensor: int) -> int:
        return int(self.graph.tensors[tensor].shape[-1])

    def operator(
        self, name: str, inputs: Sequence[int], outputs: Sequence[int], options: Any = None, version: int = 0
    ) -> None:
        entry = schema.OperatorT()
        entry.opcodeIndex = self.file.code(name, version or VERSIONS[name])
        entry.inputs, entry.outputs = np.array(inputs, np.int32), np.array(outputs, np.int32)
        if options is not None:
            entry.builtinOptionsType = getattr(schema.BuiltinOptions, type(options).__name__.removesuffix("T"))
            entry.builtinOptions = options
        self.graph.operators.append(entry)

    def finish(self, inputs: Sequence[int], outputs: Sequence[int]) -> None:
        self.graph.inputs, self.graph.outputs = np.array(inputs, np.int32), np.array(outputs, np.int32)

    def named(self, tensor: int, layer: str, what: str) -> int:
        self.labels[tensor] = (layer, what)
        return tensor

    def fully_connected(self, x: int, matrix: Matrix, start: int, stop: int, width: int, relu: bool = False) -> int:
        rows = matrix.weights[start:stop]
        data = pack_int4(rows) if width == 4 else rows.astype(np.int8).tobytes()
        weights = self.tensor(rows.shape, f"int{width}", matrix.scales[start:stop], data)
        # Without an int64 bias engines round differently, so there is always one. LiteRT checks its scale
        # where the weights have one row; elsewhere the scale is left out, it costs bytes.
        bias_scale = matrix.scales[start:stop] * np.float32(matrix.input_scale) if stop - start == 1 else None
        bias = self.tensor((stop - start,), "int64", bias_scale, matrix.bias[start:stop].astype(np.int64).tobytes())
        y = self.activation((1, stop - start), matrix.output_scale)
        options = schema.FullyConnectedOptionsT()
        options.fusedActivationFunction = int(relu)
        self.operator("FULLY_CONNECTED", [x, weights, bias], [y], options, 13 if width == 4 else 4)
        return y

    def binary(self, name: str, a: int, b: int, scale: float) -> int:
        y = self.activation((1, self.width(a)), scale)
        options = {"ADD": schema.AddOptionsT, "SUB": schema.SubOptionsT, "MUL": schema.MulOptionsT}[name]()
        if name != "MUL":
            options.potScaleInt16 = False
        self.operator(name, [a, b], [y], options)
        return y

    def table(self, name: str, x: int) -> int:
        y = self.activation((1, self.width(x)), UNIT_SCALE)
        self.operator(name, [x], [y])
        return y

    def quantize(self, x: int, scale: float) -> int:
        y = self.activation((1, self.width(x)), scale)
        self.operator("QUANTIZE", [x], [y], schema.QuantizeOptionsT())
        return y

    def split(self, x: int, parts: int) -> list[int]:
        if parts == 1:
            return [x]
        ys = [self.activation((1, self.width(x) // parts), self.scales[x]) for _ in range(parts)]
        options = schema.SplitOptionsT()
        options.numSplits = parts
        self.operator("SPLIT", [self.integers(1, scalar=True), x], ys, options)
        return ys

    def concatenate(self, parts: list[int]) -> int:
        if len(parts) == 1:
            return parts[0]
        y = self.activation((1, sum(map(self.width, parts))), self.scales[parts[0]])
        options = schema.ConcatenationOptionsT()
        options.axis = 1
        self.operator("CONCATENATION", parts, [y], options)
        return y

    def part(self, x: int, matrix: Matrix, first_gate: int = 0, stop_gate: int | None = None) -> int:
        """The named gates' rows times x: one FULLY_CONNECTED a run of equal widths."""
        low, high = first_gate * matrix.gate_rows, (stop_gate or len(matrix.widths)) * matrix.gate_rows
        runs = [(max(a, low), min(b, high), width) for a, b, width in matrix.groups()]
        return self.concatenate([self.fully_connected(x, matrix, *run) for run in runs if run[0] < run[1]])


def _gates(graph: _Graph, layer: IntegerRecurrent, first: int, gates: list[int]) -> list[int]:
    """The same tensors, labelled as the pre-activations of the gates from ``first`` on."""
    return [graph.named(z, layer.name, f"gate {layer.gates[first + k]}") for k, z in enumerate(gates)]


def _squash(graph: _Graph, layer: IntegerRecurrent, z: int) -> int:
    """A gate's value; the steps of ``fixedpoint.hard_sigmoid`` are one operator each."""
    if layer.gate == "sigmoid":
        return graph.table("LOGISTIC", z)
    integer, scale = (1, 0.2) if HARD_SLOPES[layer.gate] == "0.2" else (HARD_SIGMOID_SIXTH, 2.0**-17)
    slope = graph.activation((1,), scale, np.array([integer], np.int16).tobytes())
    centred = graph.quantize(graph.binary("MUL", z, slope, UNIT_SCALE / 2), UNIT_SCALE)
    half = graph.activation((1,), UNIT_SCALE, np.array([1 << 14], np.int16).tobytes())
    return graph.binary("ADD", centred, half, UNIT_SCALE)


def _lstm(graph: _Graph, layer: IntegerRecurrent, x: int, state: list[int]) -> list[int]:
    h, c = state
    summed = graph.binary("ADD", graph.part(x, layer.kernel), graph.part(h, layer.recurrent), layer.z_scale)
    z = _gates(graph, layer, 0, graph.split(summed, 4))
    i, f, o = (_squash(graph, layer, z[k]) for k in (0, 1, 3))
    c_scale = graph.scales[c]
    kept = graph.binary("MUL", f, c, c_scale)
    new = graph.binary("MUL", i, graph.table("TANH", z[2]), c_scale)
    c = graph.named(graph.binary("ADD", kept, new, c_scale), layer.name, "cell_state")
    squashed = graph.table("TANH", graph.quantize(c, TANH_SCALE))
    return [graph.named(graph.binary("MUL", o, squashed, UNIT_SCALE), layer.name, "hidden_state"), c]


def _gru(graph: _Graph, layer: IntegerRecurrent, x: int, state: list[int]) -> list[int]:
    (h,) = state
    inputs = graph.split(graph.part(x, layer.kernel), 3)
    recurrent = graph.split(graph.part(h, layer.recurrent, 0, 2), 2)
    sums = [graph.binary("ADD", inputs[k], recurrent[k], layer.z_scale) for k in range(2)]
    z, r = (_squash(graph, layer, gate) for gate in _gates(graph, layer, 0, sums))
    if layer.kind == "gru_reset_after":
        candidate = graph.binary("MUL", r, graph.part(h, layer.recurrent, 2, 3), layer.z_scale)
    else:
        candidate = graph.part(graph.binary("MUL", r, h, UNIT_SCALE), layer.recurrent, 2, 3)
    (zh,) = _gates(graph, layer, 2, [graph.binary("ADD", inputs[2], candidate, layer.z_scale)])
    new = graph.table("TANH", zh)
    fresh = graph.binary("SUB", new, graph.binary("MUL", z, new, UNIT_SCALE), UNIT_SCALE)
    kept = graph.binary("MUL", z, h, UNIT_SCALE)
    return [graph.named(graph.binary("ADD", fresh, kept, UNIT_SCALE), layer.name, "hidden_state")]


def _rnn(graph: _Graph, layer: IntegerRecurrent, x: int, state: list[int]) -> list[int]:
    summed = graph.binary("ADD", graph.part(x, layer.kernel), graph.part(state[0], layer.recurrent), layer.z_scale)
    (z,) = _gates(graph, layer, 0, [summed])
    return [graph.named(graph.table("TANH", z), layer.name, "hidden_state")]


def _dense(graph: _Graph, layer: IntegerDense, x: int) -> int:
    y = graph.fully_connected(x, layer.kernel, *layer.kernel.groups()[0], relu=layer.activation == "relu")
    if layer.activation in ("tanh", "sigmoid"):
        y = graph.table("TANH" if layer.activation == "tanh" else "LOGISTIC", y)
    return graph.named(y, layer.name, "output")


_CELLS = {"lstm": _lstm, "gru": _gru, "gru_reset_after": _gru, "rnn": _rnn}


def _layers(graph: _Graph, layers: Sequence[Any], x: int, states: list[list[int]]) -> tuple[int, list[list[int]]]:
    """The layers over one step; ``states`` has one entry a recurrent layer."""
    after, pending = [], iter(states)
    for layer in layers:
        if isinstance(layer, IntegerDense):
            x = _dense(graph, layer, x)
        else:
            after.append(_CELLS[layer.kind](graph, layer, x, next(pending)))
            x = after[-1][0]
    return x, after


def _recurrent_layers(model: IntegerModel) -> list[IntegerRecurrent]:
    return [layer for layer in model.layers if isinstance(layer, IntegerRecurrent)]


def state_names(model: IntegerModel) -> list[list[str]]:
    """The signatures' names of the states, one list a recurrent layer."""
    return [
        [f"h{k}", f"c{k}"] if layer.kind == "lstm" else [f"h{k}"] for k, layer in enumerate(_recurrent_layers(model))
    ]


def _states(graph: _Graph, model: IntegerModel, zero: bool = False) -> list[list[int]]:
    """Tensors for the states, one list a recurrent layer; constants of zeros if ``zero``."""
    made = []
    for layer in _recurrent_layers(model):
        scales = [UNIT_SCALE, 2.0**-layer.cell_bits] if layer.kind == "lstm" else [UNIT_SCALE]
        data = bytes(2 * layer.units) if zero else None
        made.append([graph.activation((1, layer.units), scale, data) for scale in scales])
    return made


def _flat(nested: list[list[Item]]) -> list[Item]:
    return [item for own in nested for item in own]


def _step_signature(file: _File, model: IntegerModel) -> dict[int, tuple[str, str]]:
    graph = _Graph(file)
    x = graph.activation((1, len(model.inputs)), model.input_scale)
    states = _states(graph, model)
    y, after = _layers(graph, model.layers, x, states)
    names = _flat(state_names(model))
    graph.finish([x, *_flat(states)], [y, *_flat(after)])
    file.signature(
        "step",
        graph,
        {"x": x, **dict(zip(names, _flat(states), strict=True))},
        {"y": y, **dict(zip(names, _flat(after), strict=True))},
    )
    return graph.labels


def _sequence_signature(file: _File, model: IntegerModel) -> None:
    """A WHILE over the window; trailing dense layers run once, after it, unless the output is a sequence."""
    last = max(k for k, layer in enumerate(model.layers) if isinstance(layer, IntegerRecurrent))
    inside, head = (model.layers, ()) if model.sequence_output else (model.layers[: last + 1], model.layers[last + 1 :])
    steps, inputs, outputs = model.window, len(model.inputs), len(model.outputs)

    def loop_variables(graph: _Graph, zero: bool = False) -> tuple[int, list[list[int]], list[int], int]:
        counter = graph.integers(0, scalar=True) if zero else graph.tensor((), "int32")
        states = _states(graph, model, zero)
        shape = (1, steps, outputs)
        data = bytes(2 * steps * outputs) if zero else None
        collected = [graph.activation(shape, model.output_scale, data)] if model.sequence_output else []
        return counter, states, collected, graph.activation((1, steps, inputs), model.input_scale)

    main, condition, body = _Graph(file), _Graph(file), _Graph(file)
    counter, states, collected, x = loop_variables(main, zero=True)
    ends = loop_variables(main)
    options = schema.WhileOptionsT()
    options.condSubgraphIndex, options.bodySubgraphIndex = condition.index, body.index
    before = [counter, *_flat(states), *collected, x]
    main.operator("WHILE", before, [ends[0], *_flat(ends[1]), *ends[2], ends[3]], options)
    y = ends[2][0] if model.sequence_output else _layers(main, head, ends[1][-1][0], [])[0]
    main.finish([x], [y])
    file.signature("sequence", main, {"x": x}, {"y": y})

    counter, states, collected, x = loop_variables(condition)
    more = condition.tensor((), "bool")
    condition.operator("LESS", [counter, condition.integers(steps, scalar=True)], [more], schema.LessOptionsT())
    condition.finish([counter, *_flat(states), *collected, x], [more])

    counter, states, collected, x = loop_variables(body)
    sample = body.activation((1, inputs), model.input_scale)
    gather = schema.GatherOptionsT()
    gather.axis = 1
    body.operator("GATHER", [x, counter], [sample], gather)
    y, after = _layers(body, inside, sample, states)
    following = body.tensor((), "int32")
    body.operator("ADD", [counter, body.integers(1, scalar=True)], [following], schema.AddOptionsT(), 1)
    written = [_write_row(body, collected[0], y, counter)] if collected else []
    body.finish([counter, *_flat(states), *collected, x], [following, *_flat(after), *written, x])


def _write_row(graph: _Graph, rows: int, y: int, counter: int) -> int:
    """``rows`` [1, T, outputs] with ``y`` at step ``counter``."""
    row = graph.activation((1, 1, graph.width(y)), graph.scales[y])
    graph.operator("RESHAPE", [y, graph.integers(1, 1, graph.width(y))], [row], schema.ReshapeOptionsT())
    zero = graph.integers(0)
    place = graph.tensor((1,), "int32")
    graph.operator("RESHAPE", [counter, graph.integers(1)], [place], schema.ReshapeOptionsT())
    start = graph.tensor((3,), "int32")
    options = schema.ConcatenationOptionsT()
    graph.operator("CONCATENATION", [zero, place, zero], [start], options, 1)
    written = graph.activation(tuple(graph.graph.tensors[rows].shape), graph.scales[rows])
    graph.operator("DYNAMIC_UPDATE_SLICE", [rows, row, start], [written])
    return written
