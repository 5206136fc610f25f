"""Targets whose tools are there; a test of another one is skipped, which CI counts as a failure."""

import shutil

import pytest

from edgetqs import firmware
from edgetqs.errors import ToolMissing
from edgetqs.target import Target, load_target


def ready(name: str, *, runs: bool = True) -> Target:
    """The target, with its compiler and, if something ``runs`` on it, its emulator installed."""
    target = load_target(name)
    try:
        firmware.toolchain(target)
    except ToolMissing as error:
        pytest.skip(error.what)
    if runs:
        assert target.qemu is not None, "it runs on a board only"
        if shutil.which(target.qemu.program) is None:
            pytest.skip(f"{target.qemu.program} is not installed")
    return target
