"""Names of models and layers: what of a file's may stand in a C source."""

from __future__ import annotations

import re


def module_name(stem: str) -> str:
    """What a file's model is called: it names the generated C, where ``model`` is taken."""
    name = _identifier(stem, "forecaster")[:40].rstrip("_")
    return "forecaster" if name.lower() in ("model", "main", "default") else name


def layer_name(name: str) -> str:
    """A layer's name as a C identifier."""
    return _identifier(name, "layer")


def _identifier(text: str, fallback: str) -> str:
    """``text`` as a C identifier of at most 60 letters, digits and underscores."""
    name = re.sub(r"[^0-9A-Za-z]+", "_", text).strip("_")[:60]
    return name if name[:1].isalpha() else f"{fallback}_{name}".rstrip("_")
