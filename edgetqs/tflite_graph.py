"""The flatbuffer of any ``.tflite``, read with hard checks: subgraphs, tensors, operators, where constants lie.

Every index, offset and size is checked before it is used, and what is visited
is counted, so a damaged or hostile file is refused and costs neither time nor
memory. Errors are ``ValueError`` and its like from here and from the schema's
code; ``DAMAGED`` lists them.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema
from numpy.typing import NDArray

from edgetqs.errors import BadInput

Floats = NDArray[np.float64]

#: The largest file, and the most elements that all its tensors together may declare.
MOST_BYTES = 1 << 30
MOST_ELEMENTS = 1 << 26
#: Tensors, operators, operands and axes that are looked at before a file is called malformed.
MOST_VISITS = 500_000
#: Operators whose integer constants say how large their output is.
SIZED = frozenset(
    "BATCH_TO_SPACE_ND BROADCAST_TO FILL MIRROR_PAD PACK PAD PADV2 RESIZE_BILINEAR RESIZE_NEAREST_NEIGHBOR "
    "SPACE_TO_BATCH_ND TILE TRANSPOSE_CONV".split()
)
#: What reading a damaged file may raise.
DAMAGED = (struct.error, IndexError, KeyError, ValueError, TypeError, OverflowError, AttributeError)
_OPERATORS = {code: name for name, code in vars(schema.BuiltinOperator).items() if isinstance(code, int)}
_KINDS = {code: name.lower() for name, code in vars(schema.TensorType).items() if isinstance(code, int)}


@dataclass(frozen=True, slots=True)
class Tensor:
    """A tensor as declared; ``data`` is (first byte, bytes) of its constant in the file, (0, 0) if it has none."""

    name: str
    kind: str
    shape: tuple[int, ...]
    signature: tuple[int, ...]  # -1 where an axis is dynamic
    data: tuple[int, int]
    scale: Floats
    zero: Floats
    axis: int
    sparse: bool


@dataclass(frozen=True, slots=True)
class Operator:
    name: str
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    calls: tuple[tuple[int, int], ...]  # (subgraph, operand that is its first input)
    loop: int  # the body of a WHILE, -1 otherwise
    axis: int | None
    custom: str = ""  # the name of a CUSTOM operator
    table: Any = field(default=None, repr=False, compare=False)
    found: dict[tuple[str, str], Any] = field(default_factory=dict, repr=False, compare=False)  # loops ask again

    def option(self, kind: str, name: str) -> Any:
        """A field of the operator's options, its default where it has none."""
        if (kind, name) not in self.found:
            self.found[kind, name] = self._option(kind, name)
        return self.found[kind, name]

    def _option(self, kind: str, name: str) -> Any:
        stated = self.table.BuiltinOptionsType()
        if stated not in (0, getattr(schema.BuiltinOptions, kind)):
            raise ValueError(f"{self.name} with the options of another operator")
        if not stated or self.table.BuiltinOptions() is None:
            return getattr(getattr(schema, f"{kind}T")(), name[0].lower() + name[1:])
        return getattr(_options(self.table.BuiltinOptions(), getattr(schema, kind)), name)()


@dataclass(frozen=True, slots=True)
class Subgraph:
    tensors: tuple[Tensor, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    operators: tuple[Operator, ...]


@dataclass(slots=True)
class Graphs:
    """The subgraphs of a file, each read when it is first asked for; ``count`` bounds all that is done with them."""

    content: bytes
    where: str
    visits: int = 0
    elements: int = 0
    root: Any = None
    read: dict[int, Subgraph] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.root = schema.Model.GetRootAs(self.content, 0)

    def count(self, items: int) -> range:
        self.visits += items
        if self.visits > MOST_VISITS:
            raise BadInput("holds more tensors and operators than a forecaster has", self.where, "check the file")
        return range(items)

    def integers(self, table: Any, name: str) -> tuple[int, ...]:
        self.count(getattr(table, f"{name}Length")())
        found = getattr(table, f"{name}AsNumpy")()
        return () if isinstance(found, int) else tuple(int(value) for value in found)

    def floats(self, table: Any, name: str) -> Floats:
        if table is None:
            return np.zeros(0)
        self.count(getattr(table, f"{name}Length")())
        found = getattr(table, f"{name}AsNumpy")()
        return np.zeros(0) if isinstance(found, int) else np.array(found, np.float64)

    def subgraph(self, index: int) -> Subgraph:
        if index not in self.read:
            if not 0 <= index < self.root.SubgraphsLength():
                raise ValueError(f"no subgraph {index}")
            table = self.root.Subgraphs(index)
            tensors = tuple(self.tensor(table.Tensors(k)) for k in self.count(table.TensorsLength()))
            operators = tuple(self.operator(table.Operators(k)) for k in self.count(table.OperatorsLength()))
            made = Subgraph(tensors, self.integers(table, "Inputs"), self.integers(table, "Outputs"), operators)
            used = [k for one in operators for k in (*one.inputs, *one.outputs)]
            if any(not -1 <= k < len(tensors) for k in used) or any(
                not 0 <= k < len(tensors) for k in (*made.inputs, *made.outputs)
            ):
                raise ValueError("an operand that is not there")
            for one in operators:
                if one.name in SIZED:
                    self.check_size([tensors[k] for k in one.inputs if k >= 0])
            self.read[index] = made
        return self.read[index]

    def tensor(self, table: Any) -> Tensor:
        shape = self.integers(table, "Shape")
        elements = 1
        for axis in shape:
            if axis < 0 or axis > MOST_ELEMENTS:
                raise ValueError(f"an axis of {axis}")
            elements *= axis
        self.elements += elements
        if self.elements > MOST_ELEMENTS:
            raise BadInput("declares tensors too large for a forecaster", self.where, "check the file")
        quantization = table.Quantization()
        return Tensor(
            _text(table.Name()),
            _KINDS[table.Type()],
            shape,
            self.integers(table, "ShapeSignature") or shape,
            self.data(table.Buffer()),
            self.floats(quantization, "Scale"),
            self.floats(quantization, "ZeroPoint"),
            0 if quantization is None else int(quantization.QuantizedDimension()),
            table.Sparsity() is not None,
        )

    def check_size(self, operands: list[Tensor]) -> None:
        """Refuse what would make tensors far larger than the declared ones; a damaged padding does."""
        factors = float(max((np.prod(tensor.shape) for tensor in operands), default=1))
        for tensor in operands:
            if tensor.kind in ("int32", "int64"):
                start, size = tensor.data
                found = np.frombuffer(self.content[start : start + size], "<i4" if tensor.kind == "int32" else "<i8")
                factors *= float(np.prod(np.maximum(np.abs(found.astype(np.float64)), 1)))
        if factors > MOST_ELEMENTS:
            raise BadInput("asks for tensors too large for a forecaster", self.where, "check the file")

    def data(self, index: int) -> tuple[int, int]:
        if not 0 <= index < self.root.BuffersLength():
            raise ValueError(f"no buffer {index}")
        table = self.root.Buffers(index)
        if table is None:
            return (0, 0)
        start, size = int(table.Offset()), int(table.Size())  # data that lies behind the tables
        if start <= 1:
            size = table.DataLength()
            start = int(table._tab.Vector(table._tab.Offset(4))) if size else 0
        if not size:
            return (0, 0)
        if start < 8 or start + size > len(self.content):
            raise ValueError("a buffer beyond the end of the file")
        return (start, size)

    def operator(self, table: Any) -> Operator:
        if not 0 <= table.OpcodeIndex() < self.root.OperatorCodesLength():
            raise ValueError(f"no operator code {table.OpcodeIndex()}")
        code = self.root.OperatorCodes(table.OpcodeIndex())
        name = _OPERATORS.get(max(code.BuiltinCode(), code.DeprecatedBuiltinCode()), "CUSTOM")
        calls: tuple[tuple[int, int], ...] = ()
        loop, axis = -1, None
        if name == "WHILE":
            options = _options(table.BuiltinOptions(), schema.WhileOptions)
            loop = options.BodySubgraphIndex()
            calls = ((options.CondSubgraphIndex(), 0), (loop, 0))
        elif name == "IF":
            options = _options(table.BuiltinOptions(), schema.IfOptions)
            calls = ((options.ThenSubgraphIndex(), 1), (options.ElseSubgraphIndex(), 1))
        elif name == "STABLEHLO_COMPOSITE":
            options = _options(table.BuiltinOptions2(), schema.StableHLOCompositeOptions)
            calls = ((options.DecompositionSubgraphIndex(), 0),)
        elif name == "BATCH_MATMUL" and table.BuiltinOptions() is not None:
            axis = -2 if _options(table.BuiltinOptions(), schema.BatchMatMulOptions).AdjY() else -1
        inputs, outputs = self.integers(table, "Inputs"), self.integers(table, "Outputs")
        custom = _text(code.CustomCode())[:60] if name == "CUSTOM" else ""
        return Operator(name, inputs, outputs, calls, loop, axis, custom, table)


def read_bytes(path: Path) -> bytes:
    """The file's bytes. Raises ``BadInput`` where there is no ``.tflite``."""
    if path.suffix.lower() != ".tflite":
        raise BadInput("a black box is a .tflite file", str(path), "leave out --black-box for a Keras model")
    try:
        if path.stat().st_size > MOST_BYTES:
            raise BadInput(f"larger than {MOST_BYTES} bytes", str(path), "this is no model for a microcontroller")
        return path.read_bytes()
    except OSError as error:
        raise BadInput(error.strerror or "cannot be read", str(path), "give the path of a .tflite file") from error


def _text(stored: bytes | None) -> str:
    """A name, fit for a terminal."""
    name = (stored or b"").decode("utf-8", "replace")
    return name if name.isprintable() else "".join(letter if letter.isprintable() else "?" for letter in name)


def _options(table: Any, kind: Any) -> Any:
    made = kind()
    made.Init(table.Bytes, table.Pos)
    return made
