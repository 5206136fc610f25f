"""The one family of errors a user can meet: what happened, where, what to do.

Exit codes of the command line: 0 done, 1 checked and failed, 2 bad input or
usage, 3 a tool or a board is missing.
"""

from __future__ import annotations


class EdgeTqsError(Exception):
    """Base of every deliberate error.

    ``what`` states the fact, ``where`` names the file, layer or option, and
    ``todo`` tells the user the next step.
    """

    exit_code = 2

    def __init__(self, what: str, where: str = "", todo: str = "") -> None:
        super().__init__(what)
        self.what, self.where, self.todo = what, where, todo

    def __str__(self) -> str:
        """For a terminal: what a file's names hold besides letters becomes "?"."""
        text = f"{self.where}: {self.what}" if self.where else self.what
        text = f"{text}\n  {self.todo}" if self.todo else text
        return "".join(letter if letter.isprintable() or letter == "\n" else "?" for letter in text)


class CheckFailed(EdgeTqsError):
    """Something was checked and did not hold: over budget, not bit-exact."""

    exit_code = 1


class BadInput(EdgeTqsError):
    """The model, the configuration or the command line cannot be used."""


class Unsupported(BadInput):
    """The model is well formed but holds what edgetqs cannot deploy."""


#: What to do about a softmax, whichever file it is in.
LOGITS = "At the end, logits = true under [model] in edgetqs.toml leaves it out: the largest is the same class."


class ToolMissing(EdgeTqsError):
    """A compiler, an emulator or a board is not there."""

    exit_code = 3
