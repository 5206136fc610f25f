"""The fused recurrent operators of TFLite, taken apart into what each step computes."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from edgetqs.tflite_graph import Floats, Operator
from edgetqs.tflite_symbols import Vector, size
from edgetqs.tflite_trace import Trace, Unknown, Value, cells

#: Gates in the order of the operands.
GATES = ("input", "forget", "cell", "output")
ACTIVATIONS = {1: "relu", 4: "tanh"}
FLOAT_CELL = "train it with a plain LSTM: edgetqs has no such cell"


class _Lstm:
    """The operands of one direction: weights of four gates."""

    def __init__(self, trace: Trace, operator: Operator, values: Sequence[Value], where: dict[str, int]) -> None:
        def given(first: str, count: int) -> list[Value]:
            return list(values[where[first] : where[first] + count])

        def absent(what: str, first: str, count: int) -> None:
            if any(value is not None for value in given(first, count)):
                raise trace.refuse(operator, f"has {what}", FLOAT_CELL)

        weights, recurrent, biases = (given(name, 4) for name in ("weights", "recurrent", "bias"))
        if weights[0] is None or recurrent[0] is None:
            raise trace.refuse(operator, "couples its input and forget gates", FLOAT_CELL)
        absent("peephole connections", "peephole", 3)
        absent("a projection", "projection", 2)
        if "norm" in where:
            absent("layer normalisation", "norm", 4)
        if "auxiliary" in where:
            absent("an auxiliary input", "auxiliary", 1)
        self.weights = [_matrix(trace, value) for value in weights]
        self.recurrent = [_matrix(trace, value) for value in recurrent]
        self.units = len(self.recurrent[0])
        biases = [np.zeros(self.units) if value is None else trace.numbers(value) for value in biases]
        self.biases = [np.asarray(value, np.float64) for value in biases]
        inputs = self.weights[0].shape[1]
        for w, r, b in zip(self.weights, self.recurrent, self.biases, strict=True):
            if w.shape != (self.units, inputs) or r.shape != (self.units, self.units) or b.shape != (self.units,):
                raise ValueError("gates of different shapes")

    def step(self, trace: Trace, x: Vector, state: list[Vector], activation: str, clip: float) -> list[Vector]:
        """[h, c] after one step."""
        symbols = trace.symbols
        h, c = state
        parts = []
        for w, r, b in zip(self.weights, self.recurrent, self.biases, strict=True):
            together = symbols.add(symbols.matmul(x, w), symbols.matmul(h, r))
            parts.append(symbols.scaled(together, np.ones(self.units), b))
        gates = [symbols.function("sigmoid", parts[k]) for k in (0, 1, 3)]
        new = symbols.product(gates[0], symbols.function(activation, parts[2]))
        c = symbols.add(symbols.product(gates[1], c), new)
        if clip > 0:
            c = symbols.function("clip", c, clip)
        return [symbols.product(gates[2], symbols.function(activation, c)), c]


class _Rnn:
    def __init__(self, trace: Trace, operator: Operator, values: Sequence[Value], where: dict[str, int]) -> None:
        first = where["weights"]
        self.weights, self.recurrent = (_matrix(trace, value) for value in values[first : first + 2])
        self.units = len(self.recurrent)
        self.bias = np.asarray(trace.numbers(values[first + 2]), np.float64)
        if self.recurrent.shape != (self.units,) * 2 or self.bias.shape != (self.units,):
            raise ValueError("weights of different shapes")
        if "auxiliary" in where and any(v is not None for v in values[where["auxiliary"] : where["auxiliary"] + 1]):
            raise trace.refuse(operator, "has an auxiliary input", FLOAT_CELL)

    def step(self, trace: Trace, x: Vector, state: list[Vector], activation: str, clip: float) -> list[Vector]:
        symbols = trace.symbols
        together = symbols.add(symbols.matmul(x, self.weights), symbols.matmul(state[0], self.recurrent))
        return [symbols.function(activation, symbols.scaled(together, np.ones(self.units), self.bias))]


def _matrix(trace: Trace, value: Value) -> Floats:
    matrix = trace.numbers(value).astype(np.float64)
    if matrix.ndim != 2 or not matrix.size:
        raise ValueError(f"weights of shape {matrix.shape}")
    return matrix


def _sequence(
    trace: Trace,
    operator: Operator,
    x: Value,
    cell: _Lstm | _Rnn,
    states: Sequence[Value],
    code: int,
    clip: float,
    time_major: bool,
    backward: bool = False,
) -> Unknown:
    """The cell over every step of x, in the order of the window."""
    if code not in ACTIVATIONS:
        raise trace.refuse(operator, f"has the activation {code}", "train it with tanh or relu")
    source = trace.unknown(x)
    flat = len(source.shape) == 2  # the operator of a single step
    steps = source.cells.ravel() if (flat or 1 in source.cells.shape) and len(source.shape) <= 3 else None
    axis = 0 if time_major else 1
    if steps is None or (not flat and source.cells.shape[1 - axis] != 1) or source.size != cell_inputs(cell):
        raise ValueError(f"input of shape {source.shape}")
    state: list[Vector] = []
    for value in states:
        if value is None:  # a variable, which is zero after a reset
            state.append(trace.symbols.zero(cell.units))
            continue
        given = trace.unknown(value)
        if given.cells.size != 1 or given.size != cell.units:
            raise ValueError(f"a state of shape {given.shape}")
        state.append(given.cells.ravel()[0])
    made = []
    for vector in steps[::-1] if backward else steps:
        trace.graphs.count(20)
        state = cell.step(trace, vector, state, ACTIVATIONS[code], clip)
        made.append(state[0])
    return Unknown(cells(made[::-1] if backward else made, source.cells.shape), size(made[0]))


def cell_inputs(cell: _Lstm | _Rnn) -> int:
    matrix = cell.weights[0] if isinstance(cell, _Lstm) else cell.weights
    return int(matrix.shape[1])


def _padded(values: Sequence[Value], count: int) -> list[Value]:
    return [*values, *[None] * count][:count]


def _clip(trace: Trace, operator: Operator, kind: str) -> float:
    if operator.option(kind, "ProjClip") not in (0.0,):
        raise trace.refuse(operator, "clips a projection", FLOAT_CELL)
    limit = float(operator.option(kind, "CellClip"))
    if not 0 <= limit < 1e6:
        raise ValueError(f"cell clip {limit}")
    return limit


LSTM_OPERANDS = {"weights": 1, "recurrent": 5, "peephole": 9, "bias": 12, "projection": 16, "norm": 20}


def _unidirectional_lstm(trace: Trace, operator: Operator, values: list[Value]) -> Sequence[Value]:
    kind = "UnidirectionalSequenceLSTMOptions" if operator.name.startswith("UNI") else "LSTMOptions"
    if kind == "LSTMOptions" and operator.option(kind, "KernelType"):
        raise trace.refuse(operator, "is the LSTM with joined gates", "convert the model again")
    values = _padded(values, 24)
    cell = _Lstm(trace, operator, values, LSTM_OPERANDS)
    major = bool(kind != "LSTMOptions" and operator.option(kind, "TimeMajor"))
    code = operator.option(kind, "FusedActivationFunction")
    made = _sequence(trace, operator, values[0], cell, values[18:20], code, _clip(trace, operator, kind), major)
    return [made]


def _bidirectional_lstm(trace: Trace, operator: Operator, values: list[Value]) -> Sequence[Value]:
    kind = "BidirectionalSequenceLSTMOptions"
    values = _padded(values, 48)
    made = []
    for start, states in ((1, 35), (18, 37)):
        where = {name: first + start - 1 for name, first in LSTM_OPERANDS.items() if name != "norm"}
        cell = _Lstm(trace, operator, values, {**where, "auxiliary": 39})
        major = bool(operator.option(kind, "TimeMajor"))
        code, clip = operator.option(kind, "FusedActivationFunction"), _clip(trace, operator, kind)
        state = values[states : states + 2]
        made.append(_sequence(trace, operator, values[0], cell, state, code, clip, major, start > 1))
    return _merged(made, operator.option(kind, "MergeOutputs"))


def _merged(made: list[Unknown], merge: bool) -> Sequence[Value]:
    if not merge:
        return made
    first, second = made
    pairs = zip(first.cells.ravel(), second.cells.ravel(), strict=True)
    return [Unknown(cells([(*a, *b) for a, b in pairs], first.cells.shape), first.size + second.size)]


def _unidirectional_rnn(trace: Trace, operator: Operator, values: list[Value]) -> Sequence[Value]:
    kind = "SequenceRNNOptions" if operator.name.startswith("UNI") else "RNNOptions"
    values = _padded(values, 5)
    cell = _Rnn(trace, operator, values, {"weights": 1})
    major = bool(kind == "SequenceRNNOptions" and operator.option(kind, "TimeMajor"))
    code = operator.option(kind, "FusedActivationFunction")
    return [_sequence(trace, operator, values[0], cell, values[4:5], code, 0.0, major)]


def _bidirectional_rnn(trace: Trace, operator: Operator, values: list[Value]) -> Sequence[Value]:
    kind = "BidirectionalSequenceRNNOptions"
    values = _padded(values, 12)
    made = []
    for start in (1, 5):
        cell = _Rnn(trace, operator, values, {"weights": start, "auxiliary": 9})
        major, code = bool(operator.option(kind, "TimeMajor")), operator.option(kind, "FusedActivationFunction")
        state = values[start + 3 : start + 4]
        made.append(_sequence(trace, operator, values[0], cell, state, code, 0.0, major, start > 1))
    return _merged(made, operator.option(kind, "MergeOutputs"))


FUSED: dict[str, Callable[[Trace, Operator, list[Value]], Sequence[Value]]] = {
    "UNIDIRECTIONAL_SEQUENCE_LSTM": _unidirectional_lstm,
    "LSTM": _unidirectional_lstm,
    "BIDIRECTIONAL_SEQUENCE_LSTM": _bidirectional_lstm,
    "UNIDIRECTIONAL_SEQUENCE_RNN": _unidirectional_rnn,
    "RNN": _unidirectional_rnn,
    "BIDIRECTIONAL_SEQUENCE_RNN": _bidirectional_rnn,
}
