"""An integer model as a file: arrays in an ``.npz``, everything else as JSON in it.

Dataclasses of ``integer.py`` and ``model.Feedback`` are written field by field, so a field that is added there is
written too. Nothing in a file is executed.
"""

from __future__ import annotations

import json
import zipfile
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgetqs import integer
from edgetqs.errors import BadInput
from edgetqs.integer import IntegerModel
from edgetqs.model import Feedback

_TREE = "tree"
_KINDS: dict[str, Any] = {
    name: kind for name, kind in {**vars(integer), "Feedback": Feedback}.items() if is_dataclass(kind)
}


def save(model: IntegerModel, path: Path) -> None:
    """Write ``model`` to ``path``, a ``.npz``."""
    arrays: dict[str, np.ndarray] = {}
    tree = json.dumps(_to_json(model, arrays))
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(path, **{_TREE: np.array(tree)}, **arrays)  # type: ignore[arg-type]


def load(path: Path) -> IntegerModel:
    """The model in ``path``. Raises ``BadInput`` where it holds none."""
    try:
        with np.load(path, allow_pickle=False) as stored:
            model = _from_json(json.loads(str(stored[_TREE])), stored)
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
        raise BadInput(f"not an integer model: {error}", str(path), "build again with this edgetqs") from error
    if not isinstance(model, IntegerModel):
        raise BadInput("not an integer model", str(path), "build again with this edgetqs")
    return model


def _to_json(value: Any, arrays: dict[str, np.ndarray]) -> Any:
    if is_dataclass(value):
        own = {field.name: _to_json(getattr(value, field.name), arrays) for field in fields(value)}
        return {"kind": type(value).__name__, "fields": own}
    if isinstance(value, np.ndarray):
        name = f"a{len(arrays)}"
        arrays[name] = value
        return {"array": name}
    if isinstance(value, tuple | list):
        return [_to_json(item, arrays) for item in value]
    return value.item() if isinstance(value, np.generic) else value


def _from_json(tree: Any, arrays: Any) -> Any:
    if isinstance(tree, list):
        return tuple(_from_json(item, arrays) for item in tree)
    if not isinstance(tree, dict):
        return tree
    if "array" in tree:
        array = arrays[tree["array"]]
        array.setflags(write=False)
        return array
    return _KINDS[tree["kind"]](**{name: _from_json(value, arrays) for name, value in tree["fields"].items()})
