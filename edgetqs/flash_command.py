"""``edgetqs flash``: parse, call one function, print."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from edgetqs.output import Output


@click.command("flash")
@click.argument("folder", metavar="BUILD", type=click.Path(path_type=Path))
@click.option("--method", metavar="NAME", help="pyocd, openocd, gdb, uf2 or ssh. [the target's first]")
@click.option(
    "--probe",
    default="",
    metavar="WHERE",
    help="pyocd, openocd: the probe's serial number; gdb: HOST:PORT; uf2: the drive; ssh: USER@HOST.",
)
@click.option("--device", metavar="SPEC", help="Where the firmware must answer afterwards: serial:PATH:BAUD, tcp:...")
@click.option("--image", type=click.Choice(["link", "firmware"]), default="link", help="What to program. [link]")
@click.option("--ssh-config", type=click.Path(path_type=Path), help="ssh's configuration file.")
@click.pass_obj
def flash_command(output: Output, folder: Path, **options: Any) -> None:
    """Program BUILD onto a device, and make sure that it runs there."""
    from edgetqs.flash import flash

    output.progress("programming")
    done = flash(folder, **options)
    if output.as_json:
        output.json(done)
        return
    output.end_progress()
    click.echo(f"{done.image}: {done.bytes} bytes by {done.method}; chip: {done.chip}; written: {done.verified}")
    if done.hello is None:
        click.echo("note: nothing was asked to answer: name its serial port with --device", err=True)
    else:
        hello = done.hello
        click.echo(f"{hello.target} answers: {hello.name}, model {hello.model_hash}, plan {hello.plan_hash}")
