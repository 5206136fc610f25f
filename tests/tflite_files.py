"""``.tflite`` files made without TensorFlow: float forecasters as a converter would write them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from edgetqs.flatbuffer import AlignedBuffer, pack
from edgetqs.model import RECURRENT, Dense, Forecaster, Gru, Lstm
from edgetqs.tflite_build import pack_int4

#: How a matrix may be stored; int8 and int4 with one scale a row.
KINDS = ("float32", "float16", "int8", "int4")


class Model:
    """A file under construction; ``graph`` opens a subgraph."""

    def __init__(self) -> None:
        self.table = schema.ModelT()
        self.table.version = 3
        self.table.buffers = [schema.BufferT()]
        self.table.operatorCodes, self.table.subgraphs = [], []

    def graph(self) -> Graph:
        return Graph(self)

    def bytes(self) -> bytes:
        return pack(self.table)

    def buffer(self, data: bytes) -> int:
        self.table.buffers.append(AlignedBuffer(data))
        return len(self.table.buffers) - 1

    def code(self, name: str, version: int) -> int:
        """A builtin operator, or a custom one that is called so."""
        code = schema.OperatorCodeT()
        code.builtinCode = getattr(schema.BuiltinOperator, name, schema.BuiltinOperator.CUSTOM)
        if code.builtinCode == schema.BuiltinOperator.CUSTOM:
            code.customCode = name.encode()
        code.deprecatedBuiltinCode = min(code.builtinCode, 127)
        code.version = version
        self.table.operatorCodes.append(code)
        return len(self.table.operatorCodes) - 1


class Graph:
    """A subgraph; tensors and operators are named by what they are called with."""

    def __init__(self, model: Model) -> None:
        self.model, self.table = model, schema.SubGraphT()
        self.table.tensors, self.table.operators = [], []
        model.table.subgraphs.append(self.table)
        self.index = len(model.table.subgraphs) - 1

    def tensor(
        self, name: str, shape: Sequence[int], kind: str = "float32", buffer: int = 0, batch: bool = False
    ) -> int:
        entry = schema.TensorT()
        entry.name, entry.shape, entry.hasRank = name.encode(), np.array(shape, np.int32), True
        entry.type, entry.buffer = getattr(schema.TensorType, kind.upper()), buffer
        if batch:
            entry.shapeSignature = np.array([-1, *shape[1:]], np.int32)
        self.table.tensors.append(entry)
        return len(self.table.tensors) - 1

    def constant(self, name: str, values: Any, dtype: Any = np.float32) -> int:
        values = np.asarray(values, dtype)
        kind = {"float32": "float32", "float16": "float16", "int32": "int32", "int8": "int8"}[values.dtype.name]
        return self.tensor(name, values.shape, kind, self.model.buffer(values.tobytes()))

    def matrix(self, name: str, values: np.ndarray, kind: str = "float32") -> int:
        """A weight that is read as float32 whatever it is stored as."""
        if kind == "float32":
            return self.constant(name, values)
        if kind == "float16":
            stored = self.constant(name, values, np.float16)
        else:
            limit = 127 if kind == "int8" else 7
            scale = np.abs(values).max(axis=1) / limit
            integers = np.rint(values / scale[:, None]).astype(np.int8)
            data = integers.tobytes() if kind == "int8" else pack_int4(integers)
            stored = self.tensor(name, values.shape, kind, self.model.buffer(data))
            self.quantize(stored, scale)
        return self.operator("DEQUANTIZE", [stored], [(f"{name}_float", values.shape)], version=4)[0]

    def weight(self, name: str, values: np.ndarray, kind: str = "float32") -> int:
        """A weight of an operator with hybrid kernels: int8 with one scale, or float32."""
        if kind == "float32":
            return self.constant(name, values)
        scale = np.abs(values).max(keepdims=True).ravel()[:1] / 127
        stored = self.constant(name, np.rint(values / scale), np.int8)
        self.quantize(stored, scale)
        return stored

    def quantize(self, tensor: int, scale: np.ndarray) -> None:
        quantization = schema.QuantizationParametersT()
        quantization.scale = np.asarray(scale, np.float32)
        quantization.zeroPoint = np.zeros(len(scale), np.int64)
        self.table.tensors[tensor].quantization = quantization

    def operator(
        self,
        name: str,
        inputs: list[int],
        outputs: list[tuple[str, Sequence[int]]],
        options: Any = None,
        version: int = 1,
    ) -> list[int]:
        made = [self.tensor(label, shape) for label, shape in outputs]
        self.into(name, inputs, made, options, version)
        return made

    def into(self, name: str, inputs: list[int], outputs: list[int], options: Any = None, version: int = 1) -> None:
        entry = schema.OperatorT()
        entry.opcodeIndex = self.model.code(name, version)
        entry.inputs, entry.outputs = np.array(inputs, np.int32), np.array(outputs, np.int32)
        if options is not None:
            entry.builtinOptionsType = getattr(schema.BuiltinOptions, type(options).__name__.removesuffix("T"))
            entry.builtinOptions = options
        self.table.operators.append(entry)

    def dense(self, name: str, x: int, weights: int, bias: int = -1) -> int:
        rows = int(self.table.tensors[weights].shape[0])
        return self.operator(
            "FULLY_CONNECTED", [x, weights, bias], [(name, (1, rows))], schema.FullyConnectedOptionsT(), 1
        )[0]

    def add(self, name: str, a: int, b: int) -> int:
        return self.operator("ADD", [a, b], [(name, self.table.tensors[a].shape)], schema.AddOptionsT())[0]

    def multiply(self, a: int, b: int) -> int:
        return self.operator("MUL", [a, b], [("product", self.table.tensors[a].shape)], schema.MulOptionsT())[0]

    def unary(self, kind: str, x: int) -> int:
        return self.operator(kind, [x], [(kind.lower(), self.table.tensors[x].shape)])[0]

    def tanh(self, name: str, x: int) -> int:
        return self.operator("TANH", [x], [(name, self.table.tensors[x].shape)])[0]

    def finish(self, inputs: list[int], outputs: list[int]) -> None:
        self.table.inputs, self.table.outputs = np.array(inputs, np.int32), np.array(outputs, np.int32)


def unrolled(forecaster: Forecaster, kind: str = "float32", batch: bool = True) -> bytes:
    """SimpleRNN layers and a dense head, unrolled over the window; the first step has no recurrent product."""
    model = Model()
    graph = model.graph()
    window, features = forecaster.window, len(forecaster.inputs)
    x = graph.tensor("input", (1, window, features), batch=batch)
    options = schema.UnpackOptionsT()
    options.num, options.axis = window, 1
    sequence = graph.operator("UNPACK", [x], [(f"sample{t}", (1, features)) for t in range(window)], options)
    for layer in forecaster.layers:
        bias = graph.constant(f"{layer.name}/bias", layer.bias[0])
        kernel = graph.matrix(f"{layer.name}/kernel", layer.kernel[0], kind)
        if not isinstance(layer, RECURRENT):
            y = graph.dense(f"{layer.name}/out", sequence[-1], kernel, bias)
            continue
        recurrent = graph.matrix(f"{layer.name}/recurrent_kernel", layer.recurrent_kernel[0], kind)
        h: int | None = None
        states = []
        for t, value in enumerate(sequence):
            z = graph.dense(f"{layer.name}/in{t}", value, kernel, bias)
            if h is not None:
                z = graph.add(f"{layer.name}/sum{t}", z, graph.dense(f"{layer.name}/rec{t}", h, recurrent))
            h = graph.tanh(f"{layer.name}/h{t}", z)
            states.append(h)
        sequence = states
    graph.finish([x], [y])
    return model.bytes()


def looped(weights: np.ndarray, rounds: int = 3, *, inside: bool = False, changing: bool = False) -> bytes:
    """[1, n] -> [1, n]: h = tanh(W h + x), ``rounds`` times in a WHILE; W is the body's own or the loop's operand.

    ``changing`` puts tanh(W) in W's place after each round.
    """
    size = len(weights)
    model = Model()
    main, condition, body = model.graph(), model.graph(), model.graph()
    state = [("i", (), "int32"), ("h", (1, size), "float32"), ("x", (1, size), "float32")]
    state += [] if inside else [("w", (size, size), "float32")]

    ports = [condition.tensor(f"cond/{name}", shape, kind) for name, shape, kind in state]
    done = condition.tensor("cond/less", (), "bool")
    condition.into(
        "LESS", [ports[0], condition.constant("cond/rounds", rounds, np.int32)], [done], schema.LessOptionsT()
    )
    condition.finish(ports, [done])

    ports = [body.tensor(f"body/{name}", shape, kind) for name, shape, kind in state]
    count = body.tensor("body/next", (), "int32")
    body.into("ADD", [ports[0], body.constant("body/one", 1, np.int32)], [count], schema.AddOptionsT())
    w = body.constant("body/kernel", weights) if inside else ports[3]
    h = body.tanh("body/tanh", body.add("body/sum", body.dense("body/product", ports[1], w), ports[2]))
    last = [body.tanh("body/changed", w)] if changing else ports[3:]
    body.finish(ports, [count, h, ports[2], *last])

    x = main.tensor("input", (1, size))
    given = [main.constant("zero", 0, np.int32), main.constant("start", np.full((1, size), 0.1)), x]
    given += [] if inside else [main.constant("layer/kernel", weights)]
    options = schema.WhileOptionsT()
    options.condSubgraphIndex, options.bodySubgraphIndex = condition.index, body.index
    results = [main.tensor(f"out/{name}", shape, kind) for name, shape, kind in state]
    main.into("WHILE", given, results, options)
    main.finish([x], [results[1]])
    return model.bytes()


def fused(layers: Sequence[Lstm | Dense], window: int, kind: str = "float32", **options: Any) -> bytes:
    """Fused LSTM layers and a dense head on the last step, as Keras 2's converter writes them.

    ``options``: time_major, clip, and by operand what a plain LSTM has not.
    """
    model = Model()
    graph = model.graph()
    features = layers[0].kernel.shape[2]
    major = options.get("time_major", False)
    x = graph.tensor("input", (window, 1, features) if major else (1, window, features))
    value = x
    if major:  # the interface stays (batch, time, features)
        x = graph.tensor("input", (1, window, features))
        order = graph.constant("perm", [1, 0, 2], np.int32)
        graph.into("TRANSPOSE", [x, order], [value], schema.TransposeOptionsT())
    for layer in layers:
        if isinstance(layer, Dense):
            break
        units = layer.bias.shape[1]
        operands = [value, *[-1] * 23]
        for k in range(4):
            operands[1 + k] = graph.weight(f"w{k}", layer.kernel[k], kind)
            operands[5 + k] = graph.weight(f"r{k}", layer.recurrent_kernel[k], kind)
            operands[12 + k] = graph.constant(f"b{k}", layer.bias[k])
        for k in (18, 19):
            operands[k] = graph.tensor(f"state{k}", (1, units))
            graph.table.tensors[-1].isVariable = True
        for k, values in options.get("extra", {}).items():
            operands[k] = graph.constant(f"extra{k}", values)
        about = schema.UnidirectionalSequenceLSTMOptionsT()
        about.fusedActivationFunction, about.cellClip, about.timeMajor = 4, options.get("clip", 0.0), major
        shape = (window, 1, units) if major else (1, window, units)
        (value,) = graph.operator("UNIDIRECTIONAL_SEQUENCE_LSTM", operands, [("lstm", shape)], about)
    last = graph.constant("last", window - 1, np.int32)
    about = schema.GatherOptionsT()
    about.axis = 0 if major else 1
    (value,) = graph.operator("GATHER", [value, last], [("last", (1, units))], about)
    head = layers[-1]
    assert isinstance(head, Dense)
    y = graph.dense("out", value, graph.constant("head", head.kernel[0]), graph.constant("head_bias", head.bias[0]))
    graph.finish([x], [y])
    return model.bytes()


def one_step(layers: Sequence[Lstm | Gru | Dense], mixed: bool = True) -> bytes:
    """One step with the states as inputs and outputs: x, h0, c0, h1, ... -> h0, c0, h1, ..., y.

    A GRU is (1 - z) * n + z * h, or n + z * (h - n) unless ``mixed``.
    """
    model = Model()
    graph = model.graph()
    value = x = graph.tensor("x", (1, layers[0].kernel.shape[2]))
    given, made = [], []
    for number, layer in enumerate(layers):
        name = f"l{number}"

        def product(
            what: str, source: int, matrix: np.ndarray, bias: np.ndarray | None = None, name: str = name
        ) -> int:
            b = -1 if bias is None else graph.constant(f"{name}/{what}_bias", bias)
            return graph.dense(f"{name}/{what}", source, graph.constant(f"{name}/{what}_weights", matrix), b)

        if isinstance(layer, Dense):
            value = product("out", value, layer.kernel[0], layer.bias[0])
            continue
        units = layer.bias.shape[1]
        h = graph.tensor(f"{name}/h", (1, units))
        given.append(h)
        if isinstance(layer, Lstm):
            c = graph.tensor(f"{name}/c", (1, units))
            given.append(c)
            i, f, g, o = (
                graph.add("sum", product(f"x{k}", value, layer.kernel[k], layer.bias[k]),
                          product(f"h{k}", h, layer.recurrent_kernel[k]))
                for k in range(4)
            )  # fmt: skip
            i, f, o = (graph.unary("LOGISTIC", gate) for gate in (i, f, o))
            c = graph.add("c", graph.multiply(f, c), graph.multiply(i, graph.tanh("g", g)))
            h = graph.multiply(o, graph.tanh("c", c))
            made += [h, c]
        else:
            xs = [product(f"x{k}", value, layer.kernel[k], layer.bias[k]) for k in range(3)]
            hs = [product(f"h{k}", h, layer.recurrent_kernel[k], layer.recurrent_bias[k]) for k in range(3)]
            z, r = (graph.unary("LOGISTIC", graph.add("zr", xs[k], hs[k])) for k in (0, 1))
            n = graph.tanh("n", graph.add("n", graph.multiply(r, hs[2]), xs[2]))
            one = graph.constant("one", 1.0)
            (rest,) = graph.operator("SUB", [one, z], [("rest", (1, units))], schema.SubOptionsT())
            if mixed:
                h = graph.add("h", graph.multiply(rest, n), graph.multiply(h, z))
            else:
                (away,) = graph.operator("SUB", [h, n], [("away", (1, units))], schema.SubOptionsT())
                h = graph.add("h", n, graph.multiply(z, away))
            made.append(h)
        value = h
    graph.finish([x, *given], [*made, value])
    return model.bytes()


def save(content: bytes, path: Path) -> Path:
    path.write_bytes(content)
    return path
