"""Integer model -> C: a header, a source and the glue for the application and the test harness.

Same input, same bytes: no clock, no path. Templates lay out what is decided here.
"""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgetqs.emit_layers import Statements, plain, statements
from edgetqs.errors import BadInput
from edgetqs.integer import ChannelCode, IntegerModel, IntegerRecurrent
from edgetqs.layout import padded
from edgetqs.model import Window
from edgetqs.paths import data_dir

#: EDGETQS_RT_VERSION of runtime/edgetqs_rt.h.
RUNTIME_VERSION = 3

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
    made = statements(model, kernels)
    state = _state(model)
    known = model.feedback.known
    context = {
        "name": name,
        "macro": name.upper(),
        "version": version,
        "rt_version": RUNTIME_VERSION,
        "title": f"{plain(model.name)}: a recurrent forecaster in integers",
        "model_hash": model.model_sha256[:16] or "an unnamed model",
        "plan_hash": plan_hash,
        "kernels": kernels,
        "weight_bytes": _bytes(made),
        "state_bytes": sum(2 * padded(member["size"], 2) for member in state) + 8,
        "inputs": [_channel(code, low_high=True) for code in model.inputs],
        "outputs": [_channel(code) for code in model.outputs],
        "known": list(known),
        "known_size": max(len(known), 1),
        "known_channels": [_channel(model.inputs[index]) for index in known],
        "loop_codes": [
            {
                "fields": f"{c.source}, {c.target}, {c.multiplier}, INT64_C({c.offset}), {c.shift}",
                "label": plain(f"{model.outputs[c.source].name} -> {model.inputs[c.target].name}"),
            }
            for c in model.loop
        ],
        "window": model.window,
        "horizon": horizon,
        "state": state,
        "compared": [member for member in state if member["name"] not in ("x", "y")],
        "scratch": made.scratch,
        "arrays": made.arrays,
        "groups": made.groups,
        "tables": made.tables,
        "normalizations": made.normalizations,
        "layers": made.layers,
        "samples": [_float_row(row) for row in replay.samples],
        "future": [_float_row(row) for row in replay.future] if known else [],
        "samples_comment": plain(replay.comment),
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
    return _bytes(statements(model, kernels))


def _bytes(made: Statements) -> int:
    return sum(4 * array["size"] for array in made.arrays)


def _state(model: IntegerModel) -> list[dict[str, Any]]:
    """Members of the state: ``size`` with padding, ``count`` without."""

    def member(name: str, count: int, comment: str, pad: bool = True) -> dict[str, Any]:
        return {"name": name, "size": padded(count) if pad else count, "count": count, "comment": plain(comment)}

    members = []
    for layer, names in zip(model.layers, model.states(), strict=True):
        if isinstance(layer, Window):
            comment = f"{layer.name}: the last {layer.size} of {layer.features} values, the newest behind"
            members.append(member(names[0], layer.size * layer.features, comment))
        elif isinstance(layer, IntegerRecurrent) and names:
            members.append(member(names[0], layer.units, f"{layer.name}: hidden state, 2^-{layer.hidden_bits}"))
            if layer.kind == "lstm":
                comment = f"{layer.name}: cell state, 2^-{layer.cell_bits}"
                members.append(member(names[1], layer.units, comment, pad=False))
    members.append(member("x", len(model.inputs), "last input"))
    members.append(member("y", len(model.outputs), "last output", pad=False))
    return members


def _channel(code: ChannelCode, low_high: bool = False) -> dict[str, str]:
    channel = {
        "label": plain(f"{code.name} {code.unit}".strip()),
        "mean": _float(code.mean),
        "gain": _float(code.gain),
    }
    if low_high:
        channel["low"] = f"{code.mean - 32768 / code.gain:.6g}"
        channel["high"] = f"{code.mean + 32767 / code.gain:.6g}"
    return channel


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
