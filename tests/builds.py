"""Folders with what programming a device takes of a build: small, quickly made, once a session for each target."""

import functools
import hashlib
import json
import tempfile
from dataclasses import replace
from pathlib import Path

from installed import ready
from models import mixed, random_forecaster

import edgetqs
from edgetqs import images, serving
from edgetqs.emit_c import emit_c
from edgetqs.integer_file import save
from edgetqs.observe import observe
from edgetqs.pipeline import replay
from edgetqs.project import Project
from edgetqs.quantizer import quantize
from edgetqs.write_tflite import write_tflite

PLAN_HASH = "0123456789abcdef"


@functools.cache
def model_and_project():
    forecaster = random_forecaster("gru", 6, 3, 2, window=5, gain=1.5, scaled=True)
    forecaster = replace(forecaster, sha256=hashlib.sha256(b"a model's file").hexdigest())
    return quantize(forecaster, mixed(forecaster), "nearest", observations=observe(forecaster)), Project(forecaster, 4)


@functools.cache
def built(name: str) -> Path:
    """The folder; the test is skipped where the target's compiler is not installed."""
    target = ready(name, runs=False)
    model, project = model_and_project()
    folder = Path(tempfile.mkdtemp(prefix="edgetqs-built-")) / name
    folder.mkdir()
    texts = emit_c(
        model, target.cpu.kernels, replay(project, None), horizon=4, version=edgetqs.__version__, plan_hash=PLAN_HASH
    )
    sources = images.write_sources(folder / "src", texts, target.cpu.kernels)
    (folder / "model.tflite").write_bytes(write_tflite(model, ("step",)).data)
    (folder / "golden").mkdir()
    save(model, folder / "golden" / "model.npz")
    record = {
        "target": name,
        "tool_version": edgetqs.__version__,
        "model": {"name": project.forecaster.name, "sha256": project.forecaster.sha256},
        "plan": {"hash": PLAN_HASH},
        "tflite": {"path": "model.tflite"},
        "link": serving.make(target, sources, folder),
    }
    (folder / "build.json").write_text(json.dumps(record))
    return folder
