"""Small builds, made once a session for each target."""

import functools
import tempfile
from pathlib import Path

from installed import ready
from models import random_forecaster

from edgetqs.pipeline import Options, build
from edgetqs.project import Project


@functools.cache
def built(name: str) -> Path:
    """The folder of a build; of a target whose compiler is there, else the test is skipped."""
    ready(name, runs=False)
    forecaster = random_forecaster("gru", 6, 3, 2, window=5, gain=1.5, scaled=True)
    folder = Path(tempfile.mkdtemp(prefix="edgetqs-built-")) / name
    build(Project(forecaster, 4), name, folder, Options(rounding="nearest", refine=False), str)
    return folder
