"""A ``.tflite`` as a forecaster: its interface, and LiteRT running it on windows.

Every file is tried in a process of its own first: LiteRT checks a file's
structure, but a damaged one can still crash it.
"""

from __future__ import annotations

import contextlib
import hashlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

try:
    import resource
except ImportError:  # not on Windows
    resource = None  # type: ignore[assignment]

from edgetqs.emulate import survives
from edgetqs.errors import BadInput, Unsupported
from edgetqs.litert import interpreter, quiet
from edgetqs.model import Channel, Forecaster
from edgetqs.project import Project, load_project
from edgetqs.tflite_graph import Tensor, read_bytes
from edgetqs.tflite_weights import Constant, read_contents

Floats32 = NDArray[np.float32]

#: Address space of a first run, in bytes.
MOST_MEMORY = 8 << 30
#: A batch must give what its windows give one by one, up to this share of the outputs' size.
AGREEMENT = 1e-4
#: The most inputs or outputs, and the longest window in values.
MOST_CHANNELS, MOST_VALUES = 1 << 12, 1 << 17


@dataclass(frozen=True, slots=True)
class BlackBox:
    """A ``.tflite`` forecaster: ``forecaster`` has its channels and closed loop but no layers.

    ``rank`` is the input's; ``any_window`` and ``batched`` say which of its
    axes may be resized.
    """

    forecaster: Forecaster
    content: bytes
    weights: tuple[Constant, ...]
    rank: int
    any_window: bool
    batched: bool


def read_black_box(path: Path) -> BlackBox:
    """The forecaster in a ``.tflite``, not yet run.

    It must have one float input [1, window, inputs] or [1, inputs] and one
    float output [1, outputs] or [1, window, outputs], of which the last step
    counts. Raises ``BadInput`` for anything else.
    """
    content, where = read_bytes(path), str(path)
    contents = read_contents(content, where)
    if len(contents.inputs) != 1 or len(contents.outputs) != 1:
        ports = f"{len(contents.inputs)} inputs and {len(contents.outputs)} outputs"
        raise BadInput(f"has {ports}, a black box has one of each", where, "export the forecaster alone")
    source, result = contents.inputs[0], contents.outputs[0]
    _check_port(source, "input", "[1, window, inputs] or [1, inputs]", where)
    _check_port(result, "output", "[1, outputs] or [1, window, outputs]", where)
    if not contents.weights:
        todo = "convert the model with its variables frozen, from a Keras model with a fixed batch of 1 if it has loops"
        raise BadInput("holds no constant weights", where, todo)
    any_window = len(source.shape) == 3 and source.signature[1] < 0
    window = 1 if len(source.shape) == 2 else source.shape[1]
    forecaster = Forecaster(
        path.stem,
        (),
        tuple(Channel(f"x{k}") for k in range(source.shape[-1])),
        tuple(Channel(f"y{k}") for k in range(result.shape[-1])),
        24 if any_window else window,
        sha256=hashlib.sha256(content).hexdigest(),
    )
    return BlackBox(forecaster, content, contents.weights, len(source.shape), any_window, source.signature[0] < 0)


def _check_port(tensor: Tensor, what: str, wanted: str, where: str) -> None:
    fits = len(tensor.shape) in (2, 3) and 0 < tensor.shape[-1] <= MOST_CHANNELS and 0 <= tensor.shape[0] <= 1
    if tensor.kind != "float32" or not fits or tensor.signature[-1] < 0 or len(tensor.signature) != len(tensor.shape):
        shape = f"{tensor.kind} {list(tensor.signature)}"
        raise BadInput(f"its {what} is {shape}, needed is float32 {wanted}", where, "convert it with such an interface")


def load(model: Path | None, config: Path | None) -> tuple[Project, BlackBox]:
    """The project of a ``.tflite`` with its configuration, and the black box, run once to see that it does run."""
    opened: list[tuple[Path, BlackBox]] = []

    def reader(path: Path) -> Forecaster:
        opened.append((path, read_black_box(path)))
        return opened[-1][1].forecaster

    project = load_project(model, config, reader)
    path, box = opened[-1]
    verdict = survives("edgetqs.tflite_forecaster", str(path), str(project.forecaster.window))
    if verdict:
        raise BadInput(f"LiteRT {verdict} when it runs the file", str(path), "convert the model again")
    return project, prepared(box, project.forecaster)


def trial(path: str, window: str) -> None:
    """What ``load`` does to a file, within bounds of memory; for a process that may crash."""
    if resource is not None:
        resource.setrlimit(resource.RLIMIT_AS, (MOST_MEMORY, MOST_MEMORY))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    box = read_black_box(Path(path))
    with contextlib.suppress(BadInput):  # the caller will meet it again
        prepared(box, replace(box.forecaster, window=int(window)))


def prepared(box: BlackBox, forecaster: Forecaster) -> BlackBox:
    """The black box with the configured forecaster. Raises ``BadInput`` where LiteRT cannot run it as one."""
    name = forecaster.name
    if forecaster.window != box.forecaster.window and not box.any_window:
        fact = f"window is {forecaster.window}, the model takes {box.forecaster.window} samples"
        raise BadInput(fact, name, "leave window out of [model] in edgetqs.toml")
    if forecaster.window * len(forecaster.inputs) > MOST_VALUES:
        fact = f"a window of {forecaster.window} samples of {len(forecaster.inputs)} inputs is too long"
        raise BadInput(fact, name, f"at most {MOST_VALUES} values can be rolled out")
    box = replace(box, forecaster=forecaster)
    rng = np.random.default_rng(0)
    windows = rng.standard_normal((3, forecaster.window, len(forecaster.inputs))).astype(np.float32)
    alone = Engine(replace(box, batched=False), box.content)
    one_by_one = alone(windows)
    size = float(np.abs(one_by_one).max())
    if not np.isfinite(size):
        raise BadInput("gives outputs that are not finite for inputs around zero", name, "check the model")
    if not np.array_equal(alone(windows[::-1])[::-1], one_by_one):
        raise Unsupported(
            "keeps a state between calls, so it is no function of a window",
            name,
            "export it with its state as zeros at the start of each window",
        )
    if box.batched:
        try:
            agree = np.abs(Engine(box, box.content)(windows) - one_by_one).max() <= AGREEMENT * size
        except BadInput:
            agree = False
        box = replace(box, batched=bool(agree))
    return box


class Engine:
    """One file in LiteRT: windows (B, window, inputs) to what it forecasts after each (B, outputs)."""

    def __init__(self, box: BlackBox, content: bytes) -> None:
        self.box = box
        self.shape: tuple[int, ...] = ()
        with quiet():
            try:
                self.engine: Any = interpreter(content)
            except ValueError as error:
                raise BadInput(f"LiteRT cannot read it: {_first_line(error)}", box.forecaster.name) from error

    def __call__(self, windows: Floats32) -> Floats32:
        if self.box.batched:
            return self._run(windows)
        return np.concatenate([self._run(windows[k : k + 1]) for k in range(len(windows))])

    def _run(self, windows: Floats32) -> Floats32:
        engine, box = self.engine, self.box
        given = windows[:, 0] if box.rank == 2 else windows
        try:
            if given.shape != self.shape:
                with quiet():
                    self.input = engine.get_input_details()[0]
                    if tuple(self.input["shape"]) != given.shape:
                        engine.resize_tensor_input(self.input["index"], given.shape)
                    engine.allocate_tensors()
                self.shape = given.shape
                self.output = engine.get_output_details()[0]["index"]
            engine.reset_all_variables()
            engine.set_tensor(self.input["index"], np.ascontiguousarray(given, np.float32))
            engine.invoke()
        except (RuntimeError, ValueError) as error:
            raise BadInput(
                f"LiteRT cannot run it: {_first_line(error)}",
                box.forecaster.name,
                "it must consist of built-in operators and hold its weights as constants",
            ) from error
        result = engine.get_tensor(self.output)
        result = result[:, -1] if result.ndim == 3 and result.shape[1] else result
        if result.shape != (len(windows), len(box.forecaster.outputs)):
            raise BadInput(f"gave outputs of shape {list(result.shape)}", box.forecaster.name, "check the interface")
        return result


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
