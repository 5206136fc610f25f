"""Where a command's words go: results to standard output, progress and complaints to standard error."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click


class Output:
    """Results go to standard output, progress and complaints to standard error."""

    def __init__(self, as_json: bool, quiet: bool) -> None:
        self.as_json, self.quiet = as_json, quiet
        self._status: Any = None

    @property
    def console(self) -> Any:
        from rich.console import Console

        self.end_progress()
        return Console(highlight=False)

    def progress(self, message: str) -> None:
        """Say what is being done, on a terminal only."""
        if self.quiet or not sys.stderr.isatty():
            return
        if self._status is None:
            from rich.console import Console

            self._status = Console(stderr=True).status("")
            self._status.start()
        self._status.update(message)

    def end_progress(self) -> None:
        if self._status is not None:
            self._status.stop()
            self._status = None

    def notes(self, notes: Sequence[str]) -> None:
        if not self.quiet:
            for note in notes:
                click.echo(f"note: {note}", err=True)

    def json(self, value: Any) -> None:
        self.end_progress()
        click.echo(json.dumps(value, indent=1, default=plain))


def write_file(path: Path, data: bytes) -> None:
    """The whole file or none."""
    part = path.with_name(path.name + ".part")
    part.write_bytes(data)
    part.replace(path)


def global_flags(arguments: list[str]) -> tuple[list[str], list[str]]:
    """--json, --debug and -q may stand anywhere."""
    known = {"--json", "--debug", "-q", "--quiet"}
    end = arguments.index("--") if "--" in arguments else len(arguments)
    flags = [a for a in arguments[:end] if a in known]
    return [a for a in arguments[:end] if a not in known] + arguments[end:], flags


def plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if isinstance(value, Path):
        return str(value)
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} has no JSON form")
