"""The image that answers over the link: linked, sealed, measured against the whole device."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from edgetqs import firmware, images
from edgetqs.errors import CheckFailed
from edgetqs.images import Sources
from edgetqs.record import measure
from edgetqs.target import Target


def make(target: Target, sources: Sources, folder: Path) -> dict[str, Any]:
    """``link.elf``, and ``link.bin`` of a bare target, in ``folder``; what ``build.json`` says of them under "link".

    Nothing is reserved on the device: this image is the whole application. Where it does not fit, it is not there,
    "fits" is false and "why" tells.
    """
    image, objects = folder / "link.elf", folder / "obj-link"
    try:
        crc = images.link_serving(target, sources, objects, image)
    except CheckFailed as error:
        if "does not fit" not in error.what:
            raise
        return {"elf": None, "fits": False, "why": error.what}
    if target.kind == "bare":
        firmware.write_programmable(target, image)
    memory = replace(target.memory, flash_reserve_bytes=0, ram_reserve_bytes=0)
    root = "Reset_Handler" if target.kind == "bare" else "main"
    figures = measure(replace(target, memory=memory), image, objects, target.memory.flash_bytes, root)
    del figures["stack_measured_bytes"]  # the device tells, in STATS
    return {**figures, "image_crc": f"{crc:08x}"}
