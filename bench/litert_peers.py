"""The LSTM ops that LiteRT has itself: UNIDIRECTIONAL_SEQUENCE_LSTM, float32 and int8, with a dense head.

Written with the schema, since the converter no longer makes this op of a Keras
layer. The state is the op's own, kept from call to call.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from edgetqs.flatbuffer import AlignedBuffer, pack
from edgetqs.model import Dense, Forecaster, Lstm

#: int8 inputs of up to about four standard deviations, int8 states of up to 1, int16 cell states of up to 16.
INPUT_SCALE, HIDDEN_SCALE, CELL_SCALE = 2.0**-5, 2.0**-7, 2.0**-11


class _Graph:
    def __init__(self) -> None:
        self.model, self.graph = schema.ModelT(), schema.SubGraphT()
        self.model.version, self.model.buffers = 3, [schema.BufferT()]
        self.model.operatorCodes, self.model.subgraphs = [], [self.graph]
        self.graph.tensors, self.graph.operators = [], []

    def tensor(
        self, shape: tuple[int, ...], kind: str, scale: float = 0.0, data: np.ndarray | None = None, state: bool = False
    ) -> int:
        entry = schema.TensorT()
        entry.shape, entry.type, entry.isVariable = np.array(shape, np.int32), getattr(schema.TensorType, kind), state
        entry.name = f"t{len(self.graph.tensors)}"
        if data is not None:
            entry.buffer = len(self.model.buffers)
            self.model.buffers.append(AlignedBuffer(np.ascontiguousarray(data).tobytes()))
        if scale:
            entry.quantization = schema.QuantizationParametersT()
            entry.quantization.scale = np.array([scale], np.float32)
            entry.quantization.zeroPoint = np.zeros(1, np.int64)
        self.graph.tensors.append(entry)
        return len(self.graph.tensors) - 1

    def weights(self, values: np.ndarray, int8: bool) -> int:
        if not int8:
            return self.tensor(values.shape, "FLOAT32", data=values.astype(np.float32))
        scale = float(np.abs(values).max()) / 127
        return self.tensor(values.shape, "INT8", scale, np.round(values / scale).astype(np.int8))

    def biases(self, values: np.ndarray, scale: float) -> int:
        if not scale:
            return self.tensor(values.shape, "FLOAT32", data=values.astype(np.float32))
        return self.tensor(values.shape, "INT32", scale, np.round(values / scale).astype(np.int32))

    def scale(self, tensor: int) -> float:
        quantization = self.graph.tensors[tensor].quantization
        return float(quantization.scale[0]) if quantization else 0.0

    def operator(
        self, name: str, version: int, inputs: list[int], outputs: list[int], options: Any, between: list[int]
    ) -> None:
        code, entry = schema.OperatorCodeT(), schema.OperatorT()
        code.builtinCode = code.deprecatedBuiltinCode = getattr(schema.BuiltinOperator, name)
        code.version = version
        entry.opcodeIndex = len(self.model.operatorCodes)
        self.model.operatorCodes.append(code)
        entry.inputs, entry.outputs = np.array(inputs, np.int32), np.array(outputs, np.int32)
        entry.intermediates = np.array(between, np.int32)
        entry.builtinOptionsType = getattr(schema.BuiltinOptions, type(options).__name__.removesuffix("T"))
        entry.builtinOptions = options
        self.graph.operators.append(entry)


def fused_lstm(forecaster: Forecaster, steps: int, *, int8: bool) -> bytes:
    """One LSTM layer over (1, steps, inputs) and a dense layer on each step's output, as a ``.tflite``."""
    lstm, dense = forecaster.layers
    assert isinstance(lstm, Lstm)
    assert isinstance(dense, Dense)
    g = _Graph()
    kind, cell_kind = ("INT8", "INT16") if int8 else ("FLOAT32", "FLOAT32")
    input_scale, hidden_scale, cell_scale = (INPUT_SCALE, HIDDEN_SCALE, CELL_SCALE) if int8 else (0.0, 0.0, 0.0)
    _, units, features = lstm.kernel.shape
    x = g.tensor((1, steps, features), kind, input_scale)
    kernels = [g.weights(gate, int8) for gate in lstm.kernel]
    recurrent = [g.weights(gate, int8) for gate in lstm.recurrent_kernel]
    biases = [g.biases(gate, input_scale * g.scale(kernel)) for gate, kernel in zip(lstm.bias, kernels, strict=True)]
    hidden = g.tensor((1, units), kind, hidden_scale, state=True)
    cell = g.tensor((1, units), cell_kind, cell_scale, state=True)
    between = [g.tensor((0,), "INT16", 2.0**-12) for _ in range(4)] + [g.tensor((0,), "INT8", hidden_scale)]
    y = g.tensor((1, steps, units), kind, hidden_scale)
    options = schema.UnidirectionalSequenceLSTMOptionsT()
    options.fusedActivationFunction = schema.ActivationFunctionType.TANH
    absent = [-1]
    inputs = [x, *kernels, *recurrent, *absent * 3, *biases, *absent * 2, hidden, cell, *absent * 4]
    g.operator("UNIDIRECTIONAL_SEQUENCE_LSTM", 1, inputs, [y], options, between if int8 else [])
    head = g.weights(dense.kernel[0], int8)
    out = g.tensor((1, steps, dense.kernel.shape[1]), kind, 2.0**-5 if int8 else 0.0)
    options = schema.FullyConnectedOptionsT()
    options.keepNumDims = True
    bias = g.biases(dense.bias[0], hidden_scale * g.scale(head))
    g.operator("FULLY_CONNECTED", 5, [y, head, bias], [out], options, [])
    g.graph.inputs, g.graph.outputs = np.array([x], np.int32), np.array([out], np.int32)
    return pack(g.model)
