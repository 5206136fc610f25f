"""What in a model's file each layer was made of, in words: for ``edgetqs inspect``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from edgetqs.project import Project


@dataclass(frozen=True, slots=True)
class Origins:
    """``layers``: by layer name. ``rest``: Keras layers that went into others, or do nothing once trained."""

    layers: dict[str, str]
    rest: tuple[str, ...] = ()

    def of(self, name: str) -> str:
        """Of a layer, or of the whole that it is a part of."""
        found = [known for known in self.layers if name == known or name.startswith(f"{known}_")]
        return self.layers[max(found, key=len)] if found else ""


def origins(project: Project) -> Origins:
    """Of a model that was read before; it is read once more."""
    path = project.model
    if path is None:
        return Origins({})
    if path.is_dir():
        from edgetqs.saved_model import saved_model_with_origins

        return Origins(saved_model_with_origins(path, logits=project.logits)[1])
    if path.suffix.lower() == ".tflite":
        from edgetqs.read_tflite import read_with_origins

        return Origins(read_with_origins(path.read_bytes(), str(path), path.stem, logits=project.logits)[1])
    return _keras(path, [layer.name for layer in project.forecaster.layers])


def _keras(path: Path, names: list[str]) -> Origins:
    from edgetqs import keras_graph
    from edgetqs.keras_files import parse, read_bytes
    from edgetqs.names import layer_name

    file = parse(read_bytes(path), str(path))
    nodes, _ = keras_graph.chain(file.config, str(path), file.keras_major)
    layers: dict[str, str] = {}
    rest = []
    for node in nodes:
        inner = node.config.get("layer")
        wrapped = f"({inner.get('class_name')})" if isinstance(inner, dict) else ""
        name = layer_name(node.name)
        if any(known == name or known.startswith(f"{name}_") for known in names):
            layers[name] = f"{node.kind}{wrapped}"
        elif node.kind != "InputLayer":
            rest.append(f"{node.kind} {node.name}")
    return Origins(layers, tuple(rest))
