"""Serving images of small random models, made once, and what they must answer."""

import functools
import tempfile
from dataclasses import dataclass
from pathlib import Path

from models import mixed, random_forecaster

from edgetqs import images
from edgetqs.chain import Golden, golden
from edgetqs.dut import Dut
from edgetqs.emit_c import emit_c
from edgetqs.images import Sources
from edgetqs.integer import IntegerModel
from edgetqs.observe import observe
from edgetqs.pipeline import replay
from edgetqs.project import Project
from edgetqs.quantizer import quantize
from edgetqs.target import Target, load_target
from edgetqs.transport import Transport

INPUTS, OUTPUTS = 4, 2


@dataclass(frozen=True)
class Linked:
    """A model with sources that any image of it is linked from."""

    model: IntegerModel
    target: Target
    sources: Sources
    folder: Path

    @functools.cached_property
    def golden(self) -> Golden:
        return golden(self.model, loop_steps=200)

    @functools.cached_property
    def image(self) -> Path:
        return self.link("link")

    def link(self, name: str, target: Target | None = None, hook: str = "", sanitizers: bool = False) -> Path:
        """An image of its own: another target, a source with hooks."""
        hooks = []
        if hook:
            hooks = [self.folder / f"{name}_hook.c"]
            hooks[0].write_text('#include "board.h"\n#include "model_glue.h"\n' + hook)
        image = self.folder / f"{name}.elf"
        work = self.folder / f"obj-{name}"
        images.link_serving(target or self.target, self.sources, work, image, hooks=hooks, sanitizers=sanitizers)
        return image


@functools.cache
def linked(target_name: str, kind: str = "lstm", closed: bool = True) -> Linked:
    forecaster = random_forecaster(kind, 9, INPUTS, OUTPUTS, layers=2, window=6, gain=2.0, scaled=True, feedback=closed)
    model = quantize(forecaster, mixed(forecaster), "nearest", observations=observe(forecaster))
    target = load_target(target_name)
    folder = Path(tempfile.mkdtemp(prefix="edgetqs-linked-"))
    texts = emit_c(
        model, target.cpu.kernels, replay(Project(forecaster, 6), None), horizon=6, version="0", plan_hash="0" * 16
    )
    return Linked(model, target, images.write_sources(folder / "src", texts, target.cpu.kernels), folder)


def play(dut: Dut, linked: Linked, steps: int | None = None) -> list[int]:
    """Feed the golden vectors; the steps whose outputs are wrong."""
    vectors, known = linked.golden, list(linked.model.feedback.known)
    wrong = []
    for k in range(vectors.steps if steps is None else steps):
        if k in vectors.resets:
            dut.reset()
        x = vectors.inputs[k]
        y = dut.advance(x[known]) if vectors.closed[k] else dut.step(x)
        if y.tolist() != vectors.outputs[k].tolist():
            wrong.append(k)
    return wrong


class Tapped:
    """A transport that keeps what was written, for sending it again."""

    def __init__(self, transport: Transport) -> None:
        self.inner, self.written = transport, []
        self.can_power_cycle = transport.can_power_cycle
        self.read, self.reconnect = transport.read, transport.reconnect
        self.power_cycle, self.close = transport.power_cycle, transport.close

    def write(self, data: bytes) -> None:
        self.written.append(data)
        self.inner.write(data)
