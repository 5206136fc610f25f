"""Layers -> the statements of one step, and the arrays that they name.

A value is what one layer hands to the next: a pointer to int16 values that
start on a word and are padded (``layout.padded``).
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgetqs.emit_rows import Rows
from edgetqs.fixedpoint import INT16_MAX, SIGMOID_FLAT, table_multiplier
from edgetqs.integer import (
    HARD_SLOPES,
    IntegerActivation,
    IntegerDense,
    IntegerLayer,
    IntegerModel,
    IntegerNormalization,
    IntegerRecurrent,
)
from edgetqs.layout import layer_calls, padded, stored_width
from edgetqs.model import Frames, Merge, Pool, Window
from edgetqs.softmax import exp_multiplier

#: Names the generated source uses itself.
_RESERVED = ("input", "output", "known", "loop", "scratch", "forward", "edgetqs")


@dataclass(frozen=True, slots=True)
class Statements:
    """``layers`` [{comment, calls}], what they name, and the members of the scratch."""

    layers: list[dict[str, Any]]
    arrays: list[dict[str, Any]]
    groups: list[dict[str, str]]
    tables: list[dict[str, Any]]
    normalizations: list[dict[str, str]]
    scratch: list[dict[str, Any]]


def statements(model: IntegerModel, kernels: str) -> Statements:
    """One step of the model, reading s->x and writing s->y."""
    writer = _Writer(model, kernels)
    layers = [{"comment": plain(comment), "calls": calls} for comment, calls in writer.layers()]
    return Statements(
        layers, writer.rows.arrays, writer.rows.groups, writer.tables, writer.normalizations, writer.members()
    )


class _Writer:
    def __init__(self, model: IntegerModel, kernels: str) -> None:
        self.model = model
        self.rows = Rows(kernels, stored_width(4, _calls(model), kernels) == 8)
        self.tables: list[dict[str, Any]] = []
        self.normalizations: list[dict[str, str]] = []
        self.names = set(_RESERVED)
        self.sizes: dict[str, int] = {}  # of the scratch's members
        self.last_use = _last_uses(model)
        self.busy: dict[str, int] = {}  # the last layer that reads what a buffer holds

    def members(self) -> list[dict[str, Any]]:
        return [{"name": name, "size": size} for name, size in self.sizes.items()]

    def layers(self) -> list[tuple[str, list[str]]]:
        """(comment, statements) of each layer."""
        made: list[tuple[str, list[str]]] = []
        values, widths = ["s->x"], [len(self.model.inputs)]
        for index, layer in enumerate(self.model.layers):
            names = [f"s->{name}" for name in self.model.states()[index]]
            last = index == len(self.model.layers) - 1
            source = getattr(layer, "source", -1)
            count, x = width_of(layer, widths), values[source]
            if isinstance(layer, IntegerRecurrent) and layer.frames is None:
                calls = self._cell(layer, index, names, x, self._identifier(layer.name))
                y, about = names[0], f"{layer.kind}, {layer.units} units"
            elif isinstance(layer, Window):
                calls = [f"edgetqs_slide({names[0]}, {layer.size * layer.features}, {x}, {layer.features});"]
                y, about = names[0], f"the last {layer.size} of {layer.features} values"
            else:
                y = "s->y" if last else self._buffer(index, count)
                if isinstance(layer, IntegerRecurrent):
                    calls, about = self._over_frames(layer, index, x, y)
                elif isinstance(layer, IntegerDense):
                    calls, about = self._dense(layer, index, x, y, count)
                else:
                    calls, about = self._plain(layer, index, values, y, count)
            if last and y != "s->y":
                calls.append(f"edgetqs_copy(s->y, {y}, {count});")
            made.append((f"{layer.name}: {about}", calls))
            values.append(y)
            widths.append(count)
        return made

    # --- buffers ---------------------------------------------------------------

    def _buffer(self, index: int, count: int) -> str:
        """A member of the scratch that no layer from ``index`` on reads, for a value of that layer."""
        size = padded(count)
        free = [name for name, until in self.busy.items() if until < index]
        fitting = sorted(free, key=lambda name: (self.sizes[name] < size, abs(self.sizes[name] - size)))
        name = fitting[0] if fitting else f"b{len(self.busy)}"
        self._room(name, size)
        self.busy[name] = self.last_use[index]
        return f"scratch.{name}"

    def _room(self, name: str, size: int) -> str:
        self.sizes[name] = max(self.sizes.get(name, 0), size)
        return f"scratch.{name}"

    def _identifier(self, name: str) -> str:
        return unique(name, self.names)

    # --- layers without a state --------------------------------------------------

    def _dense(self, layer: IntegerDense, index: int, x: str, y: str, count: int) -> tuple[list[str], str]:
        identifier = self._identifier(layer.name)
        units = len(layer.kernel.weights)

        def product(source: str, target: str) -> list[str]:
            return self.rows.calls(identifier, "kernel", [""], layer.kernel, source, target, range(1), add=False)

        about = f"dense, {units} units, {layer.activation}"
        if layer.frames is None:
            calls = product(x, y)
        else:
            source, gathered = self._frame(layer.frames, identifier, x, layer.kernel.columns)
            calls = _over(range(layer.frames.count), [*gathered, *product(source, f"{y} + t * {units}u")])
            about += f", over {layer.frames.count} frames"
        if layer.activation == "softmax":
            multiplier, shift = exp_multiplier(layer.kernel.output_scale)
            frames = range(layer.frames.count if layer.frames else 1)
            calls += _over(frames, [f"edgetqs_softmax({y} + t * {units}u, {units}, {multiplier}u, {shift});"])
        elif layer.activation != "linear":
            calls.append(function_call(layer.activation, y, count, layer.kernel.output_scale))
        return [*calls, f"EDGETQS_TRACE({index}, 'y', {y}, {count});"], about

    def _plain(self, layer: IntegerLayer, index: int, values: list[str], y: str, count: int) -> tuple[list[str], str]:
        x = values[-1]
        if isinstance(layer, Merge):
            if layer.mode == "mul":
                return [f"edgetqs_gru_reset({y}, {values[-2]}, {x}, {count});"], "their product"
            first, second = layer.features
            call = f"edgetqs_join({y}, {values[-2]}, {first}, {x}, {second}, {layer.count});"
            return [call], f"{first} and {second} values side by side"
        if isinstance(layer, Pool):
            table = self._table(layer.frames, self._identifier(layer.name))
            sizes = f"{layer.frames.count}, {layer.frames.taps}, {layer.features}"
            function, what = ("average", "mean") if layer.mean else ("pool", "largest")
            return [f"edgetqs_{function}({y}, {x}, {table}, {sizes});"], f"the {what} of {layer.frames.taps} frames"
        if isinstance(layer, IntegerNormalization):
            return self._normalization(layer, index, x, y, count), "layer normalization"
        assert isinstance(layer, IntegerActivation)
        calls = [f"edgetqs_copy({y}, {x}, {count});"]
        if layer.function != "relu":
            calls.append(f"edgetqs_rescale({y}, {count}, EDGETQS_FOUR_FIFTHS, {layer.z_bits - 2 - layer.input_bits});")
        calls.append(function_call(layer.function, y, count, 5 * 2.0**-layer.z_bits))
        return [*calls, f"EDGETQS_TRACE({index}, 'y', {y}, {count});"], layer.function

    def _normalization(self, layer: IntegerNormalization, index: int, x: str, y: str, count: int) -> list[str]:
        identifier, own = self._identifier(layer.name), layer.layer
        for what, values in (("gamma", own.gamma), ("beta", own.beta)):
            self._add_table("int32_t", f"{identifier}_{what}", f"{what} of {own.features} features", values)
        fields = f"{identifier}_gamma, {identifier}_beta, UINT64_C({own.epsilon}), {own.features}, {own.factor}"
        self.normalizations.append({"name": identifier, "fields": fields})
        call = f"clipped |= edgetqs_layer_normalize(&{identifier}, {y} + t * {own.features}u);"
        calls = [f"edgetqs_copy({y}, {x}, {count});", *_over(range(layer.count), [call])]
        return [*calls, f"EDGETQS_TRACE({index}, 'y', {y}, {count});"]

    # --- frames --------------------------------------------------------------------

    def _frame(self, frames: Frames, identifier: str, x: str, columns: int) -> tuple[str, list[str]]:
        """Where frame t of a layer stands for its rows, and the statement that puts it there."""
        features, frame = columns // frames.taps, self._room("frame", padded(columns))
        if frames.taps == 1 and np.array_equal(frames.sources[:, 0], np.arange(frames.count)):
            return frame, [f"edgetqs_frame({frame}, {x} + t * {columns}u, {columns});"]
        table = self._table(frames, identifier)
        return frame, [f"edgetqs_gather({frame}, {x}, {table} + t * {frames.taps}u, {frames.taps}, {features});"]

    def _table(self, frames: Frames, identifier: str) -> str:
        about = f"the input's frames that each of {frames.count} is made of; -1 for zeros"
        return self._add_table("int16_t", f"{identifier}_frames", about, frames.sources.ravel())

    def _add_table(self, kind: str, name: str, about: str, values: np.ndarray) -> str:
        entries = [str(int(value)) for value in values]
        lines = [", ".join(entries[k : k + 16]) + "," for k in range(0, len(entries), 16)]
        comment = f"{name}: {about}"
        self.tables.append({"kind": kind, "name": name, "size": len(entries), "comment": comment, "lines": lines})
        return name

    def _over_frames(self, layer: IntegerRecurrent, index: int, x: str, y: str) -> tuple[list[str], str]:
        assert layer.frames is not None
        identifier = self._identifier(layer.name)
        states = [self._room(name, padded(layer.units)) for name, _ in zip("hc", layer.state_scales, strict=False)]
        calls = [f"edgetqs_clear({state}, {padded(layer.units)});" for state in states]
        source, gathered = self._frame(layer.frames, identifier, x, layer.kernel.columns)
        inner = [*gathered, *self._cell(layer, index, states, source, identifier)]
        if layer.return_sequences:
            inner.append(f"edgetqs_copy({y} + t * {layer.units}u, {states[0]}, {layer.units});")
        calls += _over(layer.order, inner)
        if layer.return_sequences:
            calls.append(f"EDGETQS_TRACE({index}, 'y', {y}, {layer.frames.count * layer.units});")
        else:
            calls.append(f"edgetqs_copy({y}, {states[0]}, {layer.units});")
        way = ", from the last" if layer.go_backwards else ""
        return calls, f"{layer.kind}, {layer.units} units, over {layer.frames.count} frames{way}"

    # --- cells -------------------------------------------------------------------------

    def _cell(self, layer: IntegerRecurrent, index: int, states: list[str], x: str, identifier: str) -> list[str]:
        """One step of a recurrent layer whose hidden (and cell) state stand at ``states``."""
        units, h = layer.units, states[0]
        z = self._room("z", len(layer.kernel.weights))
        every = range(len(layer.gates))

        def recurrent(source: str, target: str, chosen: range, add: bool = True) -> list[str]:
            return self.rows.calls(
                identifier, "recurrent", layer.gates, layer.recurrent, source, target, chosen, add=add
            )

        def trace(what: str, values: str, count: int) -> str:
            return f"EDGETQS_TRACE({index}, '{what}', {values}, {count});"

        calls = self.rows.calls(identifier, "kernel", layer.gates, layer.kernel, x, z, every, add=False)
        if layer.kind in ("lstm", "rnn"):
            calls += recurrent(h, z, every)
            calls.append(trace("0", z, units * len(every)))
            calls += _rnn_calls(layer, z, h) if layer.kind == "rnn" else _lstm_calls(layer, z, h, states[1])
            calls += [] if layer.kind == "rnn" else [trace("c", states[1], units)]
            return [*calls, trace("h", h, units)]
        r, fresh = f"{z} + {units}", f"{z} + {2 * units}"
        calls += recurrent(h, z, range(2))
        calls += [trace("0", z, 2 * units), function_call(layer.gate, z, 2 * units, layer.z_scale)]
        product = self._room("r", padded(units))
        if layer.kind == "gru_reset_after":
            calls += recurrent(h, product, range(2, 3), add=False)
            calls.append(f"edgetqs_gru_reset_add({fresh}, {r}, {product}, {units});")
        else:
            calls.append(f"edgetqs_gru_reset({product}, {r}, {h}, {units});")
            calls += recurrent(product, fresh, range(2, 3))
        calls.append(trace("2", fresh, units))
        if layer.activation == "tanh":
            shift = table_multiplier(layer.z_scale)[1]
            calls.append(f"edgetqs_gru_update({z}, {fresh}, {h}, {units}, {shift});")
        else:
            calls += [*_new(layer, fresh), f"edgetqs_gru_mix({z}, {fresh}, {h}, {units});"]
        return [*calls, trace("h", h, units)]


def _over(order: range, inner: list[str]) -> list[str]:
    """``inner`` for every frame t."""
    count = len(order)
    head = (
        f"for (unsigned t = {count}u; t-- > 0u;) {{"
        if order.step < 0
        else f"for (unsigned t = 0; t < {count}u; ++t) {{"
    )
    return [head, *(f"    {line}" for line in inner), "}"]


def _lstm_calls(layer: IntegerRecurrent, z: str, h: str, c: str) -> list[str]:
    units = layer.units
    candidate = f"{z} + {2 * units}"
    calls = [
        function_call(layer.gate, z, 2 * units, layer.z_scale),
        *_activated(layer.activation, candidate, units, layer.z_scale),
        function_call(layer.gate, f"{z} + {3 * units}", units, layer.z_scale),
    ]
    if layer.activation == "tanh" and not layer.limited:
        return [*calls, f"clipped |= edgetqs_lstm_update({z}, {h}, {c}, {units}, {layer.cell_bits});"]
    z_bits = 0 if layer.bounded else layer.z_bits
    calls.append(f"clipped |= edgetqs_lstm_cell({z}, {c}, {units}, {layer.cell_bits}, {z_bits});")
    if layer.limited:
        calls.append(f"edgetqs_bound({c}, {units}, {layer.cell_limit});")
    calls.append(f"edgetqs_copy({candidate}, {c}, {units});")
    if layer.bounded:
        calls.append(f"edgetqs_rescale({candidate}, {units}, EDGETQS_FOUR_FIFTHS, {11 - layer.cell_bits});")
        calls += _activated(layer.activation, candidate, units, 5 * 2.0**-13)
        shift = 14
    else:
        calls += _activated(layer.activation, candidate, units, layer.z_scale)
        shift = 14 + layer.cell_bits - layer.hidden_bits
    return [*calls, f"clipped |= edgetqs_lstm_output({z} + {3 * units}, {candidate}, {h}, {units}, {shift});"]


def _rnn_calls(layer: IntegerRecurrent, z: str, h: str) -> list[str]:
    return [*_new(layer, z), f"edgetqs_copy({h}, {z}, {layer.units});"]


def _new(layer: IntegerRecurrent, values: str) -> list[str]:
    """Pre-activations turned into new hidden values, in place."""
    calls = _activated(layer.activation, values, layer.units, layer.z_scale)
    if not layer.bounded:
        shift = layer.hidden_bits - layer.z_bits + 3
        calls.append(f"clipped |= edgetqs_rescale({values}, {layer.units}, EDGETQS_FIVE_EIGHTHS, {shift});")
    return calls


def _activated(function: str, values: str, count: int, scale: float) -> list[str]:
    return [] if function == "linear" else [function_call(function, values, count, scale)]


def function_call(function: str, values: str, count: int, scale: float) -> str:
    """The call that turns values at ``scale`` into the function's."""
    if function == "relu":
        return f"edgetqs_relu({values}, {count});"
    if function in HARD_SLOPES:
        name = {"0.2": "edgetqs_hard_sigmoid_fifth", "1/6": "edgetqs_hard_sigmoid_sixth"}[HARD_SLOPES[function]]
        return f"{name}({values}, {count}, {round(math.log2(5 / scale))});"
    multiplier, shift = table_multiplier(scale)
    if function == "sigmoid" and (INT16_MAX + 1) * multiplier >> shift + 9 < SIGMOID_FLAT:
        return f"edgetqs_sigmoid({values}, {count});"
    return f"edgetqs_{function}{'_wide' if function == 'sigmoid' else ''}({values}, {count}, {shift});"


def width_of(layer: IntegerLayer, widths: Sequence[int]) -> int:
    """How many values a layer gives, from what the values before it have."""
    if isinstance(layer, Window):
        return layer.size * layer.features
    if isinstance(layer, Pool):
        return layer.frames.count * layer.features
    if isinstance(layer, Merge):
        return layer.count * (layer.features[0] if layer.mode == "mul" else sum(layer.features))
    if isinstance(layer, (IntegerActivation, IntegerNormalization)):
        return widths[-1]
    if isinstance(layer, IntegerDense):
        return len(layer.kernel.weights) * (layer.frames.count if layer.frames else 1)
    return layer.units * (layer.frames.count if layer.frames and layer.return_sequences else 1)


def _calls(model: IntegerModel) -> list[tuple[int, int, int]]:
    """As ``layout.stored_width`` asks for them."""
    found = []
    for layer in model.layers:
        if isinstance(layer, (IntegerDense, IntegerRecurrent)):
            kernel, times = layer.kernel, layer.frames.count if layer.frames else 1
            recurrent = isinstance(layer, IntegerRecurrent)
            shape = len(kernel.widths), kernel.gate_rows, kernel.columns
            found += layer_calls(*shape, recurrent=recurrent, times=times)
    return found


def _last_uses(model: IntegerModel) -> list[int]:
    """By layer, the last one that reads what it gives."""
    uses = list(range(len(model.layers)))
    for index, layer in enumerate(model.layers):
        sources = (-1, -2) if isinstance(layer, Merge) else (getattr(layer, "source", -1),)
        for source in sources:
            if index + source >= 0:
                uses[index + source] = index
    return uses


def plain(text: str) -> str:
    """``text`` as it may stand in a C comment or string: nothing in it ends one or means anything else."""
    text = "".join(character if character.isprintable() else " " for character in text)
    for special, harmless in (('"', "'"), ("\\", "/"), ("*/", "* /"), ("/*", "/ *")):
        text = text.replace(special, harmless)
    return re.sub(r"\?(?=\?)", "? ", text)  # no trigraphs


def unique(text: str, used: set[str]) -> str:
    """``text`` as part of an identifier that is not in ``used``, which it joins."""
    name = re.sub(r"\W+", "_", text.lower(), flags=re.ASCII).strip("_") or "layer"
    name = re.sub(r"^(?=\d)", "l", name)
    candidate, count = name, 1
    while candidate in used:
        count += 1
        candidate = f"{name}_{count}"
    used.add(candidate)
    return candidate
