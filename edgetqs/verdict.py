"""Whether a finished build holds: bit-exact wherever it ran, and within the device."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from edgetqs.errors import CheckFailed


def verdict(figures: dict[str, Any], out: Path) -> None:
    """Raise ``CheckFailed`` for a build that was made but does not hold."""
    links = figures["chain"]
    for engine, detail in links["details"].items():
        if links[engine] == "differs":
            raise CheckFailed(
                f"{engine} differs from the integer reference: {detail}",
                str(out),
                "this is a defect of edgetqs: please report it with the build folder",
            )
        if links[engine] == "not run":
            click.echo(f"note: {engine} was not run: {detail}", err=True)
    if not figures["link"]["fits"]:
        why = figures["link"].get("why", "its stack may need more than is set aside")
        click.echo(f"note: the image that answers over the link does not fit the device: {why}", err=True)
    if not figures["firmware"]["fits"]:
        firmware = figures["firmware"]
        over = [
            f"{name} {firmware[used] - firmware[limit]} bytes over"
            for name, used, limit in (
                ("flash", "flash_bytes", "flash_budget_bytes"),
                ("RAM", "ram_bytes", "ram_budget_bytes"),
                ("stack", "stack_bytes", "stack_budget_bytes"),
            )
            if firmware[used] > firmware[limit]
        ]
        raise CheckFailed(", ".join(over), str(out), "take a larger device or a smaller model")
