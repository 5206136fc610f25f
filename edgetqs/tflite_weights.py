"""The constant weights of any ``.tflite``: which there are, what reads them, and how to exchange their values.

A weight is a constant matrix (rank 2 or more) that an operator multiplies
with or, for elementwise operators, a constant that spans two axes. It is
followed from where it is stored through DEQUANTIZE, reshapes and the operands
of WHILE and IF into their subgraphs. Values are exchanged in place, in a copy
of the file, so the rest of the file stays what it was.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from edgetqs.errors import BadInput, Unsupported
from edgetqs.tflite_graph import DAMAGED, MOST_BYTES, Floats, Graphs, Tensor

#: WHILE in WHILE in WHILE ...
DEEPEST = 16

_LSTM = {
    k: f"{source}_to_{gate}"
    for k, (source, gate) in enumerate(
        ((source, gate) for source in ("input", "recurrent") for gate in ("input", "forget", "cell", "output")), start=1
    )
} | {16: "projection"}
_BIDIRECTIONAL = (
    {k: f"forward_{name}" for k, name in _LSTM.items()}
    | {k + 17: f"backward_{name}" for k, name in _LSTM.items()}
    | {39 + k: f"forward_auxiliary_{name}" for k, name in _LSTM.items() if k <= 4}
    | {43 + k: f"backward_auxiliary_{name}" for k, name in _LSTM.items() if k <= 4}
)
_RNN = {1: "weights", 2: "recurrent_weights"}
#: The operands that an operator multiplies with, and what they are called where there are several.
WEIGHTS: dict[str, dict[int, str]] = {
    "FULLY_CONNECTED": {1: ""},
    "CONV_2D": {1: ""},
    "DEPTHWISE_CONV_2D": {1: ""},
    "CONV_3D": {1: ""},
    "TRANSPOSE_CONV": {1: ""},
    "BATCH_MATMUL": {0: "", 1: ""},
    "EMBEDDING_LOOKUP": {1: ""},
    "GATHER": {0: ""},
    "LSTM": _LSTM,
    "UNIDIRECTIONAL_SEQUENCE_LSTM": _LSTM,
    "BIDIRECTIONAL_SEQUENCE_LSTM": _BIDIRECTIONAL,
    "RNN": _RNN,
    "UNIDIRECTIONAL_SEQUENCE_RNN": _RNN,
    "BIDIRECTIONAL_SEQUENCE_RNN": {1: "forward_weights", 2: "forward_recurrent", 5: "backward_weights", 6: "backward"},
    "SVDF": {1: "feature_weights", 2: "time_weights"},
    **{name: {0: "", 1: ""} for name in ("MUL", "ADD", "SUB", "DIV")},
}
_ELEMENTWISE = ("MUL", "ADD", "SUB", "DIV")
#: Operators whose output holds the values of one operand.
_PASSES = {"DEQUANTIZE": 0, "RESHAPE": 0, "TRANSPOSE": 0, "EXPAND_DIMS": 0, "SQUEEZE": 0, "SLICE": 0,
           "STRIDED_SLICE": 0, "SPLIT": 1}  # fmt: skip
#: Axis with one scale an index, where it is not the first.
_AXES = {"DEPTHWISE_CONV_2D": 3}
#: Bits a value of the kinds that can be perturbed.
BITS = {"float32": 32, "float16": 16, "int8": 8, "int4": 4}


@dataclass(frozen=True, slots=True)
class Use:
    """An operator that reads a weight; ``direct`` unless something stands between the constant and the operator."""

    operator: str
    outputs: tuple[str, ...]
    slot: str
    direct: bool
    axis: int


@dataclass(frozen=True, slots=True)
class Constant:
    """One weight; tensors that share their bytes are one. ``name`` is short and unique in the file."""

    name: str
    tensors: tuple[str, ...]
    kind: str
    shape: tuple[int, ...]
    start: int
    scale: Floats
    zero: Floats
    axis: int
    uses: tuple[Use, ...]

    @property
    def size(self) -> int:
        return int(np.prod(self.shape))

    @property
    def stored_bytes(self) -> int:
        return (self.size * BITS[self.kind] + 7) // 8


@dataclass(frozen=True, slots=True)
class Contents:
    """What a file holds: inputs and outputs of the first subgraph, and the weights it reaches, in order of use."""

    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    weights: tuple[Constant, ...]


def read_contents(content: bytes, where: str = "") -> Contents:
    """The interface and weights of a ``.tflite``.

    Raises ``BadInput`` for files that are not whole, and ``Unsupported`` for
    weights of a kind that cannot be perturbed.
    """
    todo = "convert the model again"
    if not 8 < len(content) <= MOST_BYTES or content[4:8] != b"TFL3":
        raise BadInput("not a .tflite file", where, todo)
    try:
        return _Weights(Graphs(content, where)).contents()
    except DAMAGED as error:
        raise BadInput(f"a damaged .tflite file: {error}", where, todo) from error


def values(content: bytes, constant: Constant) -> Floats:
    """The weight's values, dequantized."""
    stored = _stored(content, constant)
    if constant.kind.startswith("int"):
        stored = (stored - _along(constant, constant.zero)) * _along(constant, constant.scale)
    return stored


def exchanged(content: bytes, constant: Constant, wanted: Floats) -> tuple[bytes, Floats]:
    """A copy of the file with the weight at ``wanted``, and what the file then holds: the nearest storable values."""
    if constant.kind in ("float32", "float16"):
        kind = np.dtype("<f4" if constant.kind == "float32" else "<f2")
        largest = float(np.finfo(kind).max)
        new = np.clip(wanted, -largest, largest).astype(kind)
        data, actual = new.tobytes(), new.astype(np.float64)
    else:
        high = 2 ** (BITS[constant.kind] - 1) - 1
        low = min(-high, int(_stored(content, constant).min()))  # the last negative value only where it is in use
        scale, zero = _along(constant, constant.scale), _along(constant, constant.zero)
        integers = np.clip(np.rint(wanted / scale) + zero, low, high)
        data = integers.astype(np.int8).tobytes() if constant.kind == "int8" else _nibbles(integers)
        actual = (integers - zero) * scale
    return b"".join([content[: constant.start], data, content[constant.start + len(data) :]]), actual


def _stored(content: bytes, constant: Constant) -> Floats:
    raw = content[constant.start : constant.start + constant.stored_bytes]
    if constant.kind == "int4":
        pairs = np.frombuffer(raw, np.uint8)
        flat = np.stack([pairs & 15, pairs >> 4], axis=1).ravel()[: constant.size].astype(np.int64)
        flat = np.where(flat > 7, flat - 16, flat)
    else:
        flat = np.frombuffer(raw, {"float32": "<f4", "float16": "<f2", "int8": "i1"}[constant.kind])
    with np.errstate(invalid="ignore"):  # a NaN, which read_contents refuses
        return flat.astype(np.float64).reshape(constant.shape)


def _nibbles(integers: Floats) -> bytes:
    flat = integers.astype(np.int8).ravel().view(np.uint8) & 15
    flat = np.append(flat, np.zeros(flat.size % 2, np.uint8))
    return (flat[0::2] | flat[1::2] << 4).astype(np.uint8).tobytes()


def _along(constant: Constant, vector: Floats) -> Floats:
    """One value, or one an index of ``axis``, ready to broadcast."""
    shape = [1] * len(constant.shape)
    if len(vector) > 1:
        shape[constant.axis] = len(vector)
    return vector.reshape(shape)


#: Where a value comes from: (subgraph, tensor) of a constant, and whether an operator stands between.
_Origin = tuple[tuple[int, int], bool]


@dataclass(frozen=True, slots=True)
class _Weights:
    """Finds the weights of a file."""

    graphs: Graphs

    def contents(self) -> Contents:
        main = self.graphs.subgraph(0)
        inputs, outputs = ([main.tensors[k] for k in ports] for ports in (main.inputs, main.outputs))
        return Contents(tuple(inputs), tuple(outputs), self.named(self.merged(list(self.uses(0, {}, 0)))))

    def uses(self, index: int, origins: dict[int, set[_Origin]], depth: int) -> Iterator[tuple[tuple[int, int], Use]]:
        """((subgraph, tensor) of a constant, use) in the order of execution."""
        if depth > DEEPEST:
            raise BadInput("nested too deeply", self.graphs.where, "check the file")
        graph = self.graphs.subgraph(index)
        known = {k: set(found) for k, found in origins.items()}
        for k in self.graphs.count(len(graph.tensors)):
            if graph.tensors[k].data[1]:
                known.setdefault(k, set()).add(((index, k), True))
        for one in graph.operators:
            self.graphs.count(1 + len(one.inputs))
            for position, k in enumerate(one.inputs):
                if position not in WEIGHTS.get(one.name, {}):
                    continue
                for origin, direct in sorted(known.get(k, ())):
                    if self.is_weight(origin, one.name):
                        names = tuple(graph.tensors[o].name for o in one.outputs if o >= 0)
                        rank = len(self.graphs.subgraph(origin[0]).tensors[origin[1]].shape)
                        axis = _AXES.get(one.name, 0) if one.axis is None else one.axis % rank
                        slot = WEIGHTS[one.name][position]
                        yield origin, Use(one.name, names, slot, (direct and position == 1) or bool(slot), axis)
            if one.name in _PASSES and len(one.inputs) > _PASSES[one.name]:
                for o in one.outputs:
                    passed_on = {(at, False) for at, _ in known.get(one.inputs[_PASSES[one.name]], ())}
                    known.setdefault(o, set()).update(passed_on)  # which may be the same tensor, in a damaged file
            for called, first in one.calls:
                inner = self.graphs.subgraph(called)
                given = dict(zip(inner.inputs, one.inputs[first:], strict=False))
                if one.loop >= 0:  # only what the body hands on unchanged is the same in each round
                    body = self.graphs.subgraph(one.loop)
                    kept = {a for a, b in enumerate(body.inputs) if a < len(body.outputs) and body.outputs[a] == b}
                    given = {k: v for a, (k, v) in enumerate(given.items()) if a in kept}
                passed = {k: {(at, False) for at, _ in known[v]} for k, v in given.items() if v in known}
                yield from self.uses(called, passed, depth + 1)

    def is_weight(self, origin: tuple[int, int], operator: str) -> bool:
        tensor = self.graphs.subgraph(origin[0]).tensors[origin[1]]
        if len(tensor.shape) < 2 or np.prod(tensor.shape) < 2 or tensor.kind in ("int32", "int64", "bool", "string"):
            return False
        return operator not in _ELEMENTWISE or sum(axis > 1 for axis in tensor.shape) > 1

    def merged(self, found: list[tuple[tuple[int, int], Use]]) -> list[Constant]:
        """One constant for all tensors that lie on the same bytes."""
        grouped: dict[int, tuple[dict[tuple[int, int], Tensor], dict[Use, None]]] = {}
        for (index, k), use in found:
            tensor = self.graphs.subgraph(index).tensors[k]
            tensors, uses = grouped.setdefault(tensor.data[0], ({}, {}))
            tensors[index, k], uses[use] = tensor, None
        constants = [self.constant(list(tensors.values()), list(uses)) for tensors, uses in grouped.values()]
        end = 0
        for constant in sorted(constants, key=lambda one: one.start):
            if constant.start < end:
                raise ValueError("constants that overlap")
            end = constant.start + constant.stored_bytes
        return constants

    def constant(self, tensors: list[Tensor], uses: list[Use]) -> Constant:
        first = tensors[0]
        named = (first.name or uses[0].operator)[-60:]
        if first.kind not in BITS or first.sparse or len({tensor.kind for tensor in tensors}) > 1:
            what = "sparse" if first.sparse else "/".join(sorted({tensor.kind for tensor in tensors}))
            raise Unsupported(
                f"weights stored as {what} cannot be perturbed", f"{self.graphs.where}: {named!r}",
                f"convert the model with {', '.join(BITS)} weights",
            )  # fmt: skip
        scale, zero = first.scale, first.zero
        if first.kind.startswith("int"):
            zero = np.zeros(1) if not len(zero) else zero
            lengths = {1, first.shape[first.axis]} if 0 <= first.axis < len(first.shape) else {1}
            if not {len(scale), len(zero)} <= lengths or not np.all((scale > 0) & np.isfinite(scale)):
                raise Unsupported("weights with these scales cannot be perturbed", f"{self.graphs.where}: {named!r}")
        names = tuple(tensor.name for tensor in tensors)
        made = Constant("", names, first.kind, first.shape, first.data[0], scale, zero, first.axis, tuple(uses))
        if first.data[1] != made.stored_bytes:
            raise ValueError(f"{named!r} has {first.data[1]} bytes, its shape needs {made.stored_bytes}")
        if not np.isfinite(values(self.graphs.content, made)).all():
            raise BadInput(
                "holds weights that are not finite numbers", f"{self.graphs.where}: {named!r}", "train it again"
            )
        return made

    def named(self, constants: list[Constant]) -> tuple[Constant, ...]:
        made: list[Constant] = []
        taken: set[str] = set()
        for constant in constants:
            short = base = short_name(constant)
            number = 1
            while short in taken:
                number += 1
                short = f"{base}#{number}"
            taken.add(short)
            made.append(Constant(short, *(getattr(constant, f) for f in Constant.__slots__[1:])))
        return tuple(made)


#: Parts of a tensor's name that tell nothing.
_NOISE = re.compile(r"(model|sequential|functional|while|body|StatefulPartitionedCall|PartitionedCall)?(_\d+)*(:\d+)?")
_MADE_UP = re.compile(r"(|arith\.constant\d*|tfl\.pseudo_\w+|cst\d*)")


def short_name(constant: Constant) -> str:
    """The last telling parts of the tensor's name, or of the operator's that reads it where the tensor has none."""
    use = constant.uses[0]
    first = constant.tensors[0]
    made_up = bool(_MADE_UP.fullmatch(first))
    name = (use.outputs[0] if use.outputs else "") if made_up else first
    parts = [part for part in name.split(";")[-1].split("/") if not _NOISE.fullmatch(part)]
    parts = [part for part in parts if part not in ("ReadVariableOp", "resource")][-3:]
    return "/".join([*(parts or [use.operator.lower()]), *([use.slot] if use.slot else [])])
