"""One step of a recurrent layer, found by the patterns: its weights, its input, and the state before it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgetqs.tflite_patterns import CELLS, Cell, Found, arguments, matches, same
from edgetqs.tflite_symbols import Affine, Leaf, Stretch, Vector, as_affine, only, size

#: No layer of a model for a microcontroller is wider.
MOST_UNITS = 1 << 10


@dataclass(frozen=True, slots=True, eq=False)
class Step:
    """One step of a cell: its weights where the file has them, what it reads, and the state before it.

    ``before`` is None for a step from zero that a converter has computed ahead.
    """

    kind: str
    activation: str
    gate_function: str
    clip: float
    x: Vector
    kernel: np.ndarray  # (gates, units, inputs)
    recurrent_kernel: np.ndarray | None
    bias: np.ndarray
    recurrent_bias: np.ndarray | None  # of a GRU with reset_after
    present: tuple[int, ...]  # gates that are there
    before: Vector | None
    cell_before: Vector | None = None

    def follows(self, other: Step, slack: float) -> bool:
        """Whether ``other`` is a step of the same layer: the same weights, as far as both have them.

        Biases may differ by ``slack``: quantizers round those of each step for themselves.
        """
        gates = [k for k in self.present if k in other.present]
        pairs = [(self.kernel[gates], other.kernel[gates])]
        if self.recurrent_kernel is not None and other.recurrent_kernel is not None:
            pairs.append((self.recurrent_kernel, other.recurrent_kernel))
        kinds = ("kind", "activation", "gate_function", "clip")
        return (
            all(getattr(self, name) == getattr(other, name) for name in kinds)
            and all(alike(*pair) for pair in pairs)
            and alike(self.bias[gates], other.bias[gates], slack)
        )


def terms(affine: Affine) -> dict[Stretch, np.ndarray]:
    """All of an affine's matrices; factors as diagonal ones."""
    found = dict(affine.matrices)
    for key, factor in affine.factors.items():
        found[key] = found[key] + np.diag(factor) if key in found else np.diag(factor)
    return found


def ordered(keys: Iterator[Stretch] | set[Stretch]) -> list[Stretch]:
    """In the order of the window; of two that run through it from both sides, the forward one first."""
    return sorted(keys, key=lambda key: (sum(key.leaf.steps), key.leaf.index, key.start, key.size))


def step(vector: Vector, slack: float = 1e-6, ports: frozenset[int] = frozenset()) -> Iterator[Step]:
    """Every cell of the table that the vector may be the output of, then a SimpleRNN.

    ``ports`` are the inputs of the model that may be states.
    """
    if size(vector) > MOST_UNITS:
        return
    for cell in CELLS:
        for pattern in (cell.step, cell.first):
            for found in matches(pattern, vector, {}) if pattern is not None else ():
                yield from _steps(cell, found, pattern is cell.first, vector, ports)
    yield from _simple(vector, slack, ports)


def _steps(cell: Cell, found: Found, first: bool, vector: Vector, ports: frozenset[int]) -> Iterator[Step]:
    units = size(vector)
    gates: list[Affine | None] = []
    for name in cell.gates:
        value = found.get(name)
        gates.append(value if value is None or isinstance(value, Affine) else as_affine(value))
    before: list[Vector | None]
    if first:
        before = [None]
    elif "h'" in found:
        before = [found["h'"]]
    else:
        before = _hidden(gates, found["c'"], units, ports)
    for state in before:
        made = _made(cell, found, gates, state, units)
        if made is not None:
            yield made


def _is_state(key: Stretch, units: int, ports: frozenset[int]) -> bool:
    return key.leaf.kind == "input" and key.whole and key.size == units and key.leaf.data[0] in ports


def _hidden(gates: list[Affine | None], cell_before: Vector, units: int, ports: frozenset[int]) -> list[Vector | None]:
    """What may be h' of an LSTM whose c' is known: o' * act(c'), a zero state, or an input of the model."""
    keys = {key for gate in gates if gate is not None for key in (*gate.matrices, *gate.factors)}
    found: list[Vector | None] = []
    for key in ordered(keys):
        for more in matches(("product", ("gate", "o"), ("act", ("clip", "c'"))), (key,), {}):
            clipped = only(cell_before)
            inner = arguments(clipped)[0] if clipped is not None and clipped.leaf.kind == "clip" else cell_before
            if same(more["c'"], inner):
                return [(key,)]
    start = only(cell_before)
    if start is not None and start.leaf.kind == "zero":
        zeros = [key for key in keys if key.leaf.kind == "zero" and key.size == units]
        return [(zeros[0],)] if zeros else [None]
    if start is not None and _is_state(start, units, ports):
        inputs = [key for key in ordered(keys) if _is_state(key, units, ports)]
        found = [(key,) for key in reversed(inputs) if key.leaf is not start.leaf]
    return found


def _made(cell: Cell, found: Found, gates: list[Affine | None], state: Vector | None, units: int) -> Step | None:
    after = as_affine(found[cell.recurrent]) if cell.recurrent else None
    h = only(state) if state is not None else None
    if state is not None and (h is None or h.size != units):
        return None
    product: Stretch | None = None
    reset: Any = None
    if cell.kind == "GRU" and not cell.recurrent and state is not None:
        for key in ordered(set(terms(gates[2]))) if gates[2] is not None else []:  # r * h'
            for more in matches(("product", ("gate", "r"), "h'"), (key,), {"h'": state}):
                if more["gate function"] == found["gate function"]:
                    product, reset = key, more["r"]
        if reset is None:
            return None
        gates = [gates[0], reset, gates[2]]
    kernels, recurrents, biases, keys = [], [], [], set()
    for k, affine in enumerate(gates):
        if affine is None:
            continue
        found_terms = terms(affine)
        own = product if k == 2 and product is not None else h
        recurrents.append((k, found_terms.pop(own, None) if own is not None else None))
        ahead = {key for key in affine.factors if k == 2 and key not in affine.matrices and _is_gate(key.leaf)}
        found_terms = {key: m for key, m in found_terms.items() if key not in ahead and key.leaf.kind != "zero"}
        keys |= set(found_terms)
        kernels.append((k, found_terms))
        biases.append((k, affine.bias))
    columns = ordered(keys)
    count = len(cell.gates)
    kernel = np.zeros((count, units, sum(key.size for key in columns)))
    bias, recurrent = np.zeros((count, units)), np.zeros((count, units, units))
    for k, found_terms in kernels:
        rows = [found_terms.get(key, np.zeros((units, key.size))) for key in columns]
        kernel[k] = np.concatenate(rows, axis=1) if rows else kernel[k]
    for k, values in biases:
        bias[k] = values
    complete = state is not None
    for k, matrix in recurrents:
        if matrix is not None and matrix.shape == (units, units):
            recurrent[k] = matrix
    recurrent_bias = None
    if after is not None:
        after_terms = terms(after)
        matrix = after_terms.pop(h, None) if h is not None else None
        if matrix is None or any(key.leaf.kind != "zero" for key in after_terms):
            return None
        recurrent[2], recurrent_bias = matrix, np.zeros((count, units))
        recurrent_bias[2] = after.bias
    if not columns:
        return None
    return Step(
        cell.kind,
        found["activation"],
        found["gate function"],
        float(found.get("clip", 0.0)),
        tuple(columns),
        kernel,
        recurrent if complete else None,
        bias,
        recurrent_bias,
        tuple(k for k, _ in kernels),
        state,
        found.get("c'"),
    )


def _is_gate(leaf: Leaf) -> bool:
    """A reset gate that multiplies the recurrent bias alone, in a step computed ahead."""
    return leaf.kind in ("sigmoid", "unit", "relu6")


def _simple(vector: Vector, slack: float, ports: frozenset[int]) -> Iterator[Step]:
    """A SimpleRNN's step: an activation whose argument holds one of the same kind, of the step before."""
    stretch = only(vector)
    if stretch is None or stretch.leaf.kind not in ("tanh", "relu", "sigmoid"):
        return
    affine = as_affine(arguments(stretch)[0])
    found = terms(affine)
    units = stretch.size
    for key in reversed(ordered(set(found))):
        if key.size != units or len(found) < 2 or found[key].shape != (units, units):
            continue
        if key.leaf.kind == stretch.leaf.kind:
            earlier = as_affine(arguments(key)[0])
            kernels = [matrix for other, matrix in found.items() if other != key]
            same_kernel = [any(alike(a, b) for b in kernels) for a in terms(earlier).values()]
            if not (alike(earlier.bias, affine.bias, slack) and any(same_kernel)):
                continue
        elif key.leaf.kind != "zero" and not _is_state(key, units, ports):
            continue
        others = ordered({other for other in found if other != key})
        kernel = np.concatenate([found[other] for other in others], axis=1)
        yield Step(
            "SimpleRNN", stretch.leaf.kind, "", 0.0, tuple(others), kernel[None], found[key][None], affine.bias[None],
            None, (0,), (key,),
        )  # fmt: skip
    others = ordered(set(found))
    if others:
        kernel = np.concatenate([found[other] for other in others], axis=1)
        yield Step(
            "SimpleRNN", stretch.leaf.kind, "", 0.0, tuple(others), kernel[None], None, affine.bias[None], None, (0,),
            None,
        )  # fmt: skip


def alike(one: np.ndarray, other: np.ndarray, slack: float = 1e-6) -> bool:
    """Equal, but for what a converter that computes ahead rounds."""
    return one.shape == other.shape and np.allclose(one, other, rtol=1e-5, atol=slack)
