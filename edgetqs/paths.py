"""Where the files that travel with the package are, installed or in a checkout."""

from __future__ import annotations

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent


def data_dir(name: str) -> Path:
    """The folder ``name``: ``runtime``, ``templates``, ``targets`` or ``hil``.

    A wheel carries all of them inside the package; a checkout (an editable
    install) keeps all but ``runtime`` beside it.
    """
    packed = _PACKAGE / name
    if packed.is_dir():
        return packed
    checkout = _PACKAGE.parent
    if (checkout / "pyproject.toml").is_file() and (checkout / name).is_dir():
        return checkout / name
    raise FileNotFoundError(f"edgetqs is installed without its folder {name!r}: install it again")


def sample_dir() -> Path:
    """The folder of the bundled sample forecaster."""
    return _PACKAGE / "sample"
