"""A Keras model's configuration -> its layers in the order of execution."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from edgetqs.errors import BadInput, Unsupported
from edgetqs.keras_files import SAVE_AGAIN
from edgetqs.keras_layers import MAX_AXIS, RECURRENT_KINDS, Node, Shape, node, short

ONE_PATH = "edgetqs deploys models with one path from one input to one output."
STACK = "Stack the layers, without skip connection or attention."
BESIDE = {
    "input_layers": "Put the inputs side by side into one.",
    "output_layers": "Put the outputs side by side into one Dense layer, or save a model of each.",
}


def chain(model: dict[str, Any], file: str, keras_major: int) -> tuple[list[Node], Shape]:
    """The layers from input to output, and the input's shape without the batch axis.

    Raises Unsupported for models that branch, join or share a layer.
    """
    kind, config = model.get("class_name"), model.get("config")
    if kind == "Sequential":
        items = config.get("layers") if isinstance(config, dict) else config  # a bare list up to Keras 2.2.2
    elif kind in ("Functional", "Model") and isinstance(config, dict):
        items = _path(config, file)
    else:
        todo = "Build it with keras.Sequential or keras.Model(inputs, outputs), and save it again."
        raise Unsupported(f"a model of class {short(kind)}", file, todo)
    if not isinstance(items, list) or not items:
        raise BadInput("the model has no layers", file, SAVE_AGAIN)
    nodes = [node(item, file, keras_major) for item in items]
    build_shape = config.get("build_input_shape") if isinstance(config, dict) else None
    return nodes, _input_shape(nodes[0], items[0], build_shape)


def _input_shape(first: Node, item: dict[str, Any], build_shape: object) -> Shape:
    """Input shapes have stood in six places over the years."""
    config, build = first.config, item.get("build_config")
    candidates = [config.get("batch_shape"), config.get("batch_input_shape"), build_shape]
    if isinstance(config.get("input_shape"), list):
        candidates.append([None, *config["input_shape"]])
    if first.kind in RECURRENT_KINDS and config.get("input_dim") is not None:
        candidates.append([None, config.get("input_length"), config["input_dim"]])
    if isinstance(build, dict):
        candidates.append(build.get("input_shape"))
    shape = next((candidate for candidate in candidates if candidate is not None), None)
    if not isinstance(shape, list) or len(shape) < 2:
        raise BadInput(f"the shape of the model's input is {short(shape)}", first.where, "Give the model an Input.")
    for axis in shape[1:]:
        if axis is not None and (not isinstance(axis, int) or isinstance(axis, bool) or not 1 <= axis <= MAX_AXIS):
            what = f"the input shape {short(shape)} has an axis that is not between 1 and {MAX_AXIS}"
            raise BadInput(what, first.where)
    return tuple(shape[1:])


def _path(config: dict[str, Any], file: str) -> list[object]:
    """A Functional model's layers from the input to the output."""
    stored = config.get("layers")
    items: dict[str, dict[str, Any]] = {}
    for item in stored if isinstance(stored, list) else []:
        name = item.get("name") if isinstance(item, dict) else None
        if not isinstance(name, str) or name in items:
            raise BadInput(f"a layer's name is {short(name)}, or stands there twice", file, SAVE_AGAIN)
        items[name] = item
    for end in ("input_layers", "output_layers"):
        ends = _ends(config.get(end), f"{file}: {end}")
        if len(ends) != 1:
            raise Unsupported(f"{len(ends)} {end}: {', '.join(map(short, ends))}", file, f"{ONE_PATH} {BESIDE[end]}")
    path: list[object] = []
    seen: set[str] = set()
    name = ends[0]
    while True:
        where = f"{file}: layer {short(name)}"
        if name not in items or name in seen:
            raise BadInput("the graph refers to a layer that is not there, or runs in a circle", where, SAVE_AGAIN)
        seen.add(name)
        path.append(items[name])
        sources = _sources(items[name], where)
        if not sources:
            break
        if len(sources) > 1:
            raise Unsupported(f"it joins {', '.join(map(short, sources))}", where, f"{ONE_PATH} {STACK}")
        name = sources[0]
    for name in items:
        if name not in seen:
            raise Unsupported("it is not on the path to the output", f"{file}: layer {short(name)}", ONE_PATH)
    return path[::-1]


def _ends(value: object, where: str) -> list[str]:
    """Names in [[name, node, tensor], ...], or in Keras 3's single [name, node, tensor]."""
    if isinstance(value, list) and value and isinstance(value[0], str):
        value = [value]
    if not isinstance(value, list) or not all(isinstance(end, list) and end for end in value):
        raise BadInput(f"{short(value)} is not a list of layers", where, SAVE_AGAIN)
    return [_source(end, where) for end in value]


def _sources(item: dict[str, Any], where: str) -> list[str]:
    """The layers whose outputs this one takes."""
    calls = item.get("inbound_nodes")
    if not isinstance(calls, list):
        raise BadInput("inbound_nodes is missing", where, SAVE_AGAIN)
    if not calls:
        return []
    if len(calls) > 1:
        raise Unsupported("it is called more than once", where, ONE_PATH)
    call = calls[0]
    if isinstance(call, dict):  # Keras 3
        sources = [_source(history, where) for history in _histories(call.get("args"))]
        options = call.get("kwargs")
    elif isinstance(call, list) and all(isinstance(one, list) and one for one in call):
        sources = [_source(one[:3], where) for one in call]
        options = call[0][3] if call and len(call[0]) > 3 else {}
    else:
        raise BadInput(f"inbound_nodes holds {short(call)}", where, SAVE_AGAIN)
    for option, value in options.items() if isinstance(options, dict) else ():
        if value not in (None, False, []):
            raise Unsupported(f"it is called with {short(option)[1:-1]}={short(value)}", where, "Call it without.")
    if not sources:
        raise BadInput(f"inbound_nodes holds {short(call)}", where, SAVE_AGAIN)
    return sources


def _histories(value: object) -> Iterator[object]:
    """The keras_history of every tensor in the arguments of a call."""
    if isinstance(value, list):
        for inner in value:
            yield from _histories(inner)
    elif isinstance(value, dict) and value.get("class_name") == "__keras_tensor__":
        config = value.get("config")
        yield config.get("keras_history") if isinstance(config, dict) else None


def _source(history: object, where: str) -> str:
    if not isinstance(history, list) or len(history) != 3 or not isinstance(history[0], str):
        raise BadInput(f"{short(history)} is not a layer's output", where, SAVE_AGAIN)
    if history[2] != 0:
        raise Unsupported(f"it takes output {short(history[2])} of {short(history[0])}", where, ONE_PATH)
    return history[0]
