"""A finished build, read back from its folder: all that another computer needs to talk to the device."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from edgetqs.errors import BadInput, ToolMissing
from edgetqs.target import Target, load_target


@dataclass(frozen=True)
class Build:
    """The folder, its ``build.json`` and the device that it is for."""

    folder: Path
    record: dict[str, Any]
    target: Target

    @property
    def link_image(self) -> Path:
        """``link.elf``; raises ``ToolMissing`` where the build has none."""
        image = self.folder / "link.elf"
        if not image.is_file():
            why = self.record.get("link", {}).get("why", "it was made by an older edgetqs: build again")
            raise ToolMissing("the build has no image that answers over the link", str(self.folder), why)
        return image

    @property
    def model_hash(self) -> str:
        """What the firmware's HELLO must say."""
        return self.record["model"]["sha256"][:16] or "an unnamed model"

    @cached_property
    def model(self) -> Any:
        """The ``IntegerModel`` that the firmware computes."""
        from edgetqs.integer_file import load

        return load(self.folder / "golden" / "model.npz")


def open_build(folder: Path) -> Build:
    """Read a build. Raises ``BadInput`` for a folder that is none."""
    try:
        record = json.loads((folder / "build.json").read_text(encoding="utf-8"))
        name = record["target"]
    except (OSError, ValueError, RecursionError, KeyError, TypeError) as error:
        raise BadInput("not a build", str(folder), "make one with `edgetqs build`") from error
    own = folder / f"{name}.toml"
    return Build(folder, record, load_target(own if own.is_file() else name))
