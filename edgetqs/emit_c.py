"""Integer model -> C: a header, a source and the glue for the application and the test harness.

Same input, same bytes: no clock, no path. Templates lay out what is decided here.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from edgetqs.errors import BadInput
from edgetqs.fixedpoint import INT16_MAX, SIGMOID_FLAT, table_multiplier
from edgetqs.integer import HARD_SLOPES, ChannelCode, IntegerDense, IntegerModel, IntegerRecurrent, Matrix
from edgetqs.layout import layout_name, padded, stored
from edgetqs.paths import data_dir

#: EDGETQS_RT_VERSION of runtime/edgetqs_rt.h.
RUNTIME_VERSION = 2

#: Names the generated source uses itself.
_RESERVED = ("input", "output", "known", "loop", "scratch", "forward", "edgetqs")

_KEYWORDS = frozenset(
    "auto break case char const continue default do double else enum extern float for goto if inline int long "
    "register restrict return short signed sizeof static struct switch typedef union unsigned void volatile while "
    "bool true false main model edgetqs asm class new delete this template namespace private public".split()
)

#: Headers that a model's header must not be taken for.
_HEADERS = frozenset("model_glue stdbool stddef stdint inttypes stdio stdlib string".split())


@dataclass(frozen=True, slots=True)
class Replay:
    """Samples for the application to replay, physical units: inputs (n, inputs), then future (horizon, known)."""

    samples: np.ndarray
    future: np.ndarray
    comment: str


def emit_c(
    model: IntegerModel, kernels: str, replay: Replay, *, horizon: int, version: str, plan_hash: str
) -> dict[str, str]:
    """Texts by file name: ``NAME.h``, ``NAME.c`` and ``model_glue.h``."""
    name = c_name(model.name)
    rows = _Rows(kernels)
    layers = _layers(model, rows)
    state = _state(model)
    known = model.feedback.known
    context = {
        "name": name,
        "macro": name.upper(),
        "version": version,
        "rt_version": RUNTIME_VERSION,
        "title": f"{_plain(model.name)}: a recurrent forecaster in integers",
        "model_hash": model.model_sha256[:16] or "an unnamed model",
        "plan_hash": plan_hash,
        "kernels": kernels,
        "weight_bytes": stored_bytes(model, kernels),
        "state_bytes": sum(2 * padded(member["size"], 2) for member in state) + 8,
        "inputs": [_channel(code, low_high=True) for code in model.inputs],
        "outputs": [_channel(code) for code in model.outputs],
        "known": list(known),
        "known_size": max(len(known), 1),
        "known_channels": [_channel(model.inputs[index]) for index in known],
        "loop_codes": [
            {
                "fields": f"{c.source}, {c.target}, {c.multiplier}, INT64_C({c.offset}), {c.shift}",
                "label": _plain(f"{model.outputs[c.source].name} -> {model.inputs[c.target].name}"),
            }
            for c in model.loop
        ],
        "window": model.window,
        "horizon": horizon,
        "state": state,
        "compared": [member for member in state if member["name"] not in ("x", "y")],
        "scratch": _scratch(model),
        "arrays": rows.arrays,
        "groups": rows.groups,
        "layers": layers,
        "samples": [_float_row(row) for row in replay.samples],
        "future": [_float_row(row) for row in replay.future] if known else [],
        "samples_comment": _plain(replay.comment),
    }
    return {
        f"{name}.h": _render("model.h.j2", context),
        f"{name}.c": _render("model.c.j2", context),
        "model_glue.h": _render("glue.h.j2", context),
    }


def c_name(text: str) -> str:
    """``text`` as a C identifier in lower case; raises ``BadInput`` for one that C keeps to itself."""
    name = re.sub(r"\W+", "_", text.lower(), flags=re.ASCII).strip("_")
    name = re.sub(r"^(?=\d)", "m", name)
    beside = {path.stem for path in data_dir("runtime").iterdir()} | _HEADERS
    if not name or name in _KEYWORDS | beside or len(name) > 40:
        raise BadInput(
            f"{text!r} cannot be the name of a C module", todo='set another one: [model] name = "..." in edgetqs.toml'
        )
    return name


def stored_bytes(model: IntegerModel, kernels: str) -> int:
    """Bytes of all rows as stored: packed weights, multipliers, biases."""
    rows = _Rows(kernels)
    _layers(model, rows)
    return sum(4 * array["size"] for array in rows.arrays)


@dataclass(slots=True)
class _Rows:
    """Collects the arrays and row groups that the layers' calls name."""

    kernels: str
    arrays: list[dict[str, Any]] = field(default_factory=list)
    groups: list[dict[str, str]] = field(default_factory=list)

    def calls(
        self, layer: str, tensor: str, gates: Sequence[str], matrix: Matrix, x: str, y: str, chosen: range, *, add: bool
    ) -> list[str]:
        """Calls that put the chosen gates' rows times x into y, one a run of equal widths."""
        calls = []
        for start, stop, width in matrix.groups():
            low, high = max(start, chosen.start * matrix.gate_rows), min(stop, chosen.stop * matrix.gate_rows)
            if low >= high:
                continue
            names = "".join(gates[low // matrix.gate_rows : high // matrix.gate_rows])
            group, function = self._group("_".join(filter(None, (layer, tensor, names))), matrix, low, high, width)
            offset = low - chosen.start * matrix.gate_rows
            target = f"{y} + {offset}" if offset else y
            calls.append(f"clipped |= {function}(&{group}, {x}, {target}, {'true' if add else 'false'});")
        return calls

    def _group(self, name: str, matrix: Matrix, start: int, stop: int, width: int) -> tuple[str, str]:
        """Add one run of rows: (name of the group, function that computes it)."""
        layout = layout_name(matrix, self.kernels)
        scales, biased = matrix.scales[start:stop], bool(matrix.bias[start:stop].any())
        words = stored(matrix, start, stop, width, self.kernels)
        about = (
            f"{name}: {stop - start} x {matrix.columns}, int{width}, {layout} layout, "
            f"{'with biases, ' if biased else ''}scale {scales.min():.3g} to {scales.max():.3g} a row"
        )
        lines = [f"0x{int(word):08x}" for word in words]
        lines = [", ".join(lines[k : k + 8]) + "," for k in range(0, len(lines), 8)]
        self.arrays.append({"name": f"{name}_stored", "size": len(words), "comment": about, "lines": lines})
        fields = f"{name}_stored, {stop - start}, {matrix.columns}, {str(biased).lower()}"
        self.groups.append({"name": name, "fields": fields})
        return name, f"edgetqs_rows{width}" + ("" if layout == "portable" else f"_{layout}")


def _layers(model: IntegerModel, rows: _Rows) -> list[dict[str, Any]]:
    """The layers with their calls, for the template."""
    layers: list[dict[str, Any]] = []
    source, number = "s->x", 0
    used: set[str] = set(_RESERVED)
    for index, layer in enumerate(model.layers):
        identifier = _unique(layer.name, used)
        last = index == len(model.layers) - 1
        if isinstance(layer, IntegerDense):
            count = len(layer.kernel.weights)
            output = "s->y" if last else f"scratch.d{index}"
            calls = rows.calls(identifier, "kernel", [""], layer.kernel, source, output, range(1), add=False)
            calls += _activation(layer, output)
            calls.append(f"EDGETQS_TRACE({index}, 'y', {output}, {count});")
            comment = f"{layer.name}: dense, {count} units, {layer.activation}"
        else:
            output = f"s->h{number}"
            calls = _recurrent_calls(layer, identifier, index, number, source, rows)
            if last:
                calls.append(f"edgetqs_copy(s->y, {output}, {layer.units});")
            comment = f"{layer.name}: {layer.kind}, {layer.units} units"
            number += 1
        layers.append({"comment": _plain(comment), "calls": calls})
        source = output
    return layers


def _activation(layer: IntegerDense, output: str) -> list[str]:
    count = len(layer.kernel.weights)
    if layer.activation == "relu":
        return [f"edgetqs_relu({output}, {count});"]
    if layer.activation in ("tanh", "sigmoid"):
        return [_table_call(layer.activation, output, count, layer.kernel.output_scale)]
    return []


def _table_call(function: str, values: str, count: int, scale: float) -> str:
    """The call that turns values at ``scale`` into the function's."""
    multiplier, shift = table_multiplier(scale)
    if function == "sigmoid" and (INT16_MAX + 1) * multiplier >> shift + 9 < SIGMOID_FLAT:
        return f"edgetqs_sigmoid({values}, {count});"
    return f"edgetqs_{function}{'_wide' if function == 'sigmoid' else ''}({values}, {count}, {shift});"


def _recurrent_calls(
    layer: IntegerRecurrent, identifier: str, index: int, number: int, x: str, rows: _Rows
) -> list[str]:
    units, h, z = layer.units, f"s->h{number}", "scratch.z"
    shift = table_multiplier(layer.z_scale)[1]
    every = range(len(layer.gates))

    def recurrent(source: str, target: str, chosen: range, add: bool = True) -> list[str]:
        return rows.calls(identifier, "recurrent", layer.gates, layer.recurrent, source, target, chosen, add=add)

    def trace(what: str, values: str, count: int) -> str:
        return f"EDGETQS_TRACE({index}, '{what}', {values}, {count});"

    calls = rows.calls(identifier, "kernel", layer.gates, layer.kernel, x, z, every, add=False)
    if layer.kind in ("lstm", "rnn"):
        calls += recurrent(h, z, every)
        calls.append(trace("0", z, units * len(every)))
        if layer.kind == "rnn":
            calls += [_table_call("tanh", z, units, layer.z_scale), f"edgetqs_copy({h}, {z}, {units});"]
        else:
            c = f"s->c{number}"
            calls += [
                _squash(layer, z, 2 * units),
                _table_call("tanh", f"{z} + {2 * units}", units, layer.z_scale),
                _squash(layer, f"{z} + {3 * units}", units),
                f"clipped |= edgetqs_lstm_update({z}, {h}, {c}, {units}, {layer.cell_bits});",
                trace("c", c, units),
            ]
        return [*calls, trace("h", h, units)]
    r, fresh = f"{z} + {units}", f"{z} + {2 * units}"
    calls += recurrent(h, z, range(2))
    calls += [trace("0", z, 2 * units), _squash(layer, z, 2 * units)]
    if layer.kind == "gru_reset_after":
        calls += recurrent(h, "scratch.r", range(2, 3), add=False)
        calls.append(f"edgetqs_gru_reset_add({fresh}, {r}, scratch.r, {units});")
    else:
        calls.append(f"edgetqs_gru_reset(scratch.r, {r}, {h}, {units});")
        calls += recurrent("scratch.r", fresh, range(2, 3))
    calls += [trace("2", fresh, units), f"edgetqs_gru_update({z}, {fresh}, {h}, {units}, {shift});"]
    return [*calls, trace("h", h, units)]


def _squash(layer: IntegerRecurrent, values: str, count: int) -> str:
    """The call that turns pre-activations into gates."""
    if layer.gate == "sigmoid":
        return _table_call("sigmoid", values, count, layer.z_scale)
    function = {"0.2": "edgetqs_hard_sigmoid_fifth", "1/6": "edgetqs_hard_sigmoid_sixth"}[HARD_SLOPES[layer.gate]]
    return f"{function}({values}, {count}, {layer.z_bits});"


def _unique(text: str, used: set[str]) -> str:
    """``text`` as part of an identifier that is not in ``used``, which it joins."""
    name = re.sub(r"\W+", "_", text.lower(), flags=re.ASCII).strip("_") or "layer"
    name = re.sub(r"^(?=\d)", "l", name)
    candidate, count = name, 1
    while candidate in used:
        count += 1
        candidate = f"{name}_{count}"
    used.add(candidate)
    return candidate


def _state(model: IntegerModel) -> list[dict[str, Any]]:
    """Members of the state: ``size`` with padding, ``count`` without."""

    def member(name: str, count: int, comment: str, pad: bool = True) -> dict[str, Any]:
        return {"name": name, "size": padded(count) if pad else count, "count": count, "comment": _plain(comment)}

    members = []
    for number, layer in enumerate(_recurrent(model)):
        members.append(member(f"h{number}", layer.units, f"{layer.name}: hidden state, 2^-15"))
        if layer.kind == "lstm":
            comment = f"{layer.name}: cell state, 2^-{layer.cell_bits}"
            members.append(member(f"c{number}", layer.units, comment, pad=False))
    members.append(member("x", len(model.inputs), "last input"))
    members.append(member("y", len(model.outputs), "last output", pad=False))
    return members


def _scratch(model: IntegerModel) -> list[dict[str, Any]]:
    recurrent = _recurrent(model)
    members = [{"name": "z", "size": max(len(layer.kernel.weights) for layer in recurrent)}]
    reset = [layer.units for layer in recurrent if layer.kind.startswith("gru")]
    if reset:
        members.append({"name": "r", "size": padded(max(reset))})
    members += [
        {"name": f"d{index}", "size": padded(len(layer.kernel.weights))}
        for index, layer in enumerate(model.layers[:-1])
        if isinstance(layer, IntegerDense)
    ]
    return members


def _recurrent(model: IntegerModel) -> list[IntegerRecurrent]:
    return [layer for layer in model.layers if isinstance(layer, IntegerRecurrent)]


def _channel(code: ChannelCode, low_high: bool = False) -> dict[str, str]:
    channel = {
        "label": _plain(f"{code.name} {code.unit}".strip()),
        "mean": _float(code.mean),
        "gain": _float(code.gain),
    }
    if low_high:
        channel["low"] = f"{code.mean - 32768 / code.gain:.6g}"
        channel["high"] = f"{code.mean + 32767 / code.gain:.6g}"
    return channel


def _plain(text: str) -> str:
    """``text`` as it may stand in a C comment or string: nothing in it ends one or means anything else."""
    text = "".join(character if character.isprintable() else " " for character in text)
    for special, harmless in (('"', "'"), ("\\", "/"), ("*/", "* /"), ("/*", "/ *")):
        text = text.replace(special, harmless)
    return re.sub(r"\?(?=\?)", "? ", text)  # no trigraphs


def _float(value: float) -> str:
    """A float32 literal that reads back exactly."""
    text = f"{np.float32(value):.9g}"
    return (text if any(mark in text for mark in ".en") else text + ".0") + "f"


def _float_row(row: np.ndarray) -> str:
    return ", ".join(map(_float, row))


@functools.cache
def _environment() -> Any:
    import jinja2

    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(data_dir("templates")),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )


def _render(template: str, context: dict[str, Any]) -> str:
    return _environment().get_template(template).render(context)
