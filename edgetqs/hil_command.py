"""``edgetqs hil``: parse, call ``hardware.run``, print."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from edgetqs.output import Output


@click.command("hil")
@click.argument("folder", metavar="BUILD", type=click.Path(path_type=Path))
@click.option(
    "--device",
    metavar="SPEC",
    default="qemu",
    help="qemu, serial:PATH:BAUD, tcp:HOST:PORT, ssh:USER@HOST, labgrid:PLACE. [qemu]",
)
@click.option("--board-id", metavar="NAME", help="What reports call the board. [its target and SPEC]")
@click.option("--steps", type=click.IntRange(min=1), help="Streaming steps. [10000]")
@click.option("-k", "select", metavar="EXPR", help="Only tests whose names match, as for pytest.")
@click.option("--junit", type=click.Path(path_type=Path), help="Write JUnit XML.")
@click.option("--report", type=click.Path(path_type=Path), help="Write figures and outcomes as JSON.")
@click.option("--baseline", type=click.Path(path_type=Path), help="Figures that must not get worse.")
@click.option("--update-baseline", is_flag=True, help="Write this run's figures into --baseline.")
@click.pass_obj
def hil_command(output: Output, folder: Path, device: str, **wishes: Any) -> None:
    """Run the hardware-in-the-loop suite on a device that has BUILD's link image, or on its emulator."""
    from edgetqs.hardware import Wishes, run

    outcome = run(folder, device, Wishes(**wishes))
    if output.as_json:
        output.json({**outcome.report, "differences": outcome.differences})
        return
    for difference in outcome.differences or ():
        click.echo(str(difference))
    tests = outcome.report["tests"]
    skipped = sum(entry["outcome"] == "skipped" for entry in tests)
    also = f", {skipped} skipped" if skipped else ""
    click.echo(f"{outcome.report['board_id']}: {len(tests)} tests, none failed{also}")
