"""TQS of any ``.tflite`` forecaster, from outside: weights are perturbed in the file, rollouts run in LiteRT.

The forecaster is a function of a window of inputs. A closed loop slides the
window: the next input is made of the last output as everywhere else, the
window moves on by one sample. There is no state to carry, so a perturbed
model sees its whole history with perturbed weights. Direction, eps, plateau,
noise and saturation are those of ``tqs.py``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgetqs.errors import BadInput, Unsupported
from edgetqs.litert import interpreter, quiet
from edgetqs.model import Channel, Forecaster
from edgetqs.project import Project, load_project
from edgetqs.rollout import Values, next_input, normalise
from edgetqs.tflite_graph import Tensor, read_bytes
from edgetqs.tflite_weights import Constant, exchanged, read_contents, values
from edgetqs.tqs import EPSILONS, Measured, Score, plateau, summarise
from edgetqs.trajectories import select_alive, spread_of, synthetic_inputs
from edgetqs.units import Unit

Floats32 = NDArray[np.float32]

#: A batch must give what its windows give one by one, up to this share of the outputs' size.
AGREEMENT = 1e-4
#: The most inputs or outputs, and the longest window in values.
MOST_CHANNELS, MOST_VALUES = 1 << 12, 1 << 17
#: The most windows that are taken from data.
MOST_CASES = 48


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
    opened: list[BlackBox] = []

    def reader(path: Path) -> Forecaster:
        opened.append(read_black_box(path))
        return opened[-1].forecaster

    project = load_project(model, config, reader)
    return project, prepared(opened[-1], project.forecaster)


def scored(
    model: Path | None,
    config: Path | None,
    granularity: str | None = None,
    horizon: int | None = None,
    say: Callable[[str], None] = lambda message: None,
) -> tuple[Project, BlackBox, Score]:
    """What the command line starts with: the project, its horizon replaced if one is given, the box, its score."""
    if granularity not in (None, "tensor"):
        raise BadInput("a black box has tensors, no gates and no layers", todo="leave out --granularity")
    project, box = load(model, config)
    project = project if horizon is None else replace(project, horizon=horizon)
    say("scoring")
    return project, box, score(box, project.horizon)


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


@dataclass(frozen=True, slots=True)
class Starts:
    """Windows (B, W, inputs) to roll out from, inputs to come (B, .., inputs), and the unperturbed rollout.

    ``reference`` is (B, T, outputs), ``seen`` the T windows that led to it.
    """

    windows: Floats32
    future: Floats32
    reference: Floats32
    seen: tuple[Floats32, ...]
    spread: Values
    collapsed: int
    diverged: int


def _roll(engine: Engine, windows: Floats32, future: Floats32, horizon: int) -> tuple[Floats32, tuple[Floats32, ...]]:
    """(outputs (B, horizon, outputs), the window before each step and, as far as ``future`` goes, the one after)."""
    forecaster = engine.box.forecaster
    outputs, seen = [], [windows]
    for t in range(horizon):
        y = engine(windows)
        outputs.append(y)
        if t < future.shape[1]:
            x = future[:, t]
            if forecaster.feedback.pairs:
                x = next_input(forecaster, windows[:, -1], y, x).astype(np.float32)
            windows = np.concatenate([windows[:, 1:], x[:, None]], axis=1)
            seen.append(windows)
    return np.stack(outputs, axis=1), tuple(seen)


def synthetic_starts(box: BlackBox, horizon: int, count: int, seed: int) -> Starts:
    """Windows of synthetic inputs; with feedback, the second half after a closed loop of ``horizon`` steps."""
    forecaster = box.forecaster
    closed = bool(forecaster.feedback.pairs)
    rng = np.random.default_rng(seed)
    length = forecaster.window + (2 * horizon if closed else horizon - 1)
    inputs = synthetic_inputs(len(forecaster.inputs), count, length, forecaster.input_range, rng).astype(np.float32)
    windows, future = inputs[:, : forecaster.window], inputs[:, forecaster.window :]
    if closed:
        late = slice(count - count // 2, None)
        _, seen = _roll(Engine(box, box.content), windows[late], future[late, :horizon], horizon)
        windows, ahead = windows.copy(), future[:, :horizon].copy()
        windows[late], ahead[late] = seen[-1], future[late, horizon:]
        future = ahead
    return _starts(box, windows, future, horizon)


def data_starts(box: BlackBox, data: Values, horizon: int) -> Starts:
    """Windows evenly spread over a time series (samples, inputs) in physical units."""
    window = box.forecaster.window
    last = len(data) - window - horizon
    if last < 0:
        fact = f"the data has {len(data)} samples, a window and a forecast need {window + horizon}"
        raise BadInput(fact, box.forecaster.name, "give a longer series or a shorter horizon")
    first = np.unique(np.linspace(0, last, MOST_CASES).astype(int))
    cases = normalise(box.forecaster, np.stack([data[k : k + window + horizon] for k in first])).astype(np.float32)
    return _starts(box, cases[:, :window], cases[:, window:], horizon)


def _starts(box: BlackBox, windows: Floats32, future: Floats32, horizon: int) -> Starts:
    future = future[:, : horizon - 1]
    with np.errstate(over="ignore", invalid="ignore"):
        reference, seen = _roll(Engine(box, box.content), windows, future, horizon)
        alive, collapsed, diverged = select_alive(box.forecaster, reference)
    kept = reference[alive]
    seen = tuple(one[alive] for one in seen)
    return Starts(windows[alive], future[alive], kept, seen, spread_of(kept), collapsed, diverged)


def score(
    box: BlackBox,
    horizon: int = 24,
    *,
    directions: int = 4,
    trajectories: int = 48,
    seed: int = 0,
    start: Starts | None = None,
) -> Score:
    """The sensitivity of each weight of the file, over ``horizon`` steps of the sliding window.

    Without feedback the windows slide over the inputs, so G is flat and equals
    the local score. ``start`` replaces the synthetic windows, for an audit.
    """
    if start is None:
        start = synthetic_starts(box, horizon, trajectories, seed)
    rng = np.random.default_rng(seed)
    meter = _Meter(box, start, horizon)
    measured = []
    for constant, unit in zip(box.weights, units(box), strict=True):
        weights = values(box.content, constant)
        size = float(np.linalg.norm(weights))
        drawn = rng.standard_normal((directions, *constant.shape))
        drawn /= np.linalg.norm(drawn.reshape(directions, -1), axis=1).reshape(-1, *[1] * weights.ndim)
        deltas = np.concatenate([drawn, -drawn])
        if size == 0:
            measured.append(Measured(unit, np.zeros(horizon), 0.0, EPSILONS[0], "all weights are zero", 0.0))
            continue
        with np.errstate(over="ignore", invalid="ignore"):
            growth, epsilon, flag, _ = plateau(lambda scale: meter.growth(constant, weights, scale * deltas), size)  # noqa: B023
            local = float(meter.local(constant, weights, epsilon * size * deltas, growth))
        if not meter.moves(constant, weights, epsilon * size * deltas):
            flag = f"the perturbation rounds away: it is less than half a step of its {constant.kind} grid"
        measured.append(Measured(unit, growth, local, epsilon, flag, size))
    counts = (len(start.reference), start.collapsed, start.diverged, meter.passes)
    return summarise("tensor", horizon, measured, start.spread, counts)


def units(box: BlackBox) -> tuple[Unit, ...]:
    """The file's weights as units of a plan, in the same order."""
    names = [constant.name.rpartition("/") for constant in box.weights]
    return tuple(Unit(c.name, layer, tensor, "", ()) for c, (layer, _, tensor) in zip(box.weights, names, strict=True))


@dataclass(slots=True)
class _Meter:
    """Measures how perturbed files deviate from the reference rollout; counts the windows it runs."""

    box: BlackBox
    start: Starts
    horizon: int
    passes: int = 0

    def __post_init__(self) -> None:
        self.passes = self.start.reference.shape[0] * self.horizon

    def growth(self, constant: Constant, weights: Any, deltas: Any) -> Values:
        """G by step (T,): mean over the directions that the file's number format does not round away."""
        found = []
        for engine, moved in self._perturbed(constant, weights, deltas):
            outputs, _ = _roll(engine, self.start.windows, self.start.future, self.horizon)
            found.append(self._squares(outputs).mean(axis=(0, 2)) / moved**2)
        self.passes += len(found) * self.start.reference.shape[0] * self.horizon
        return np.mean(found, axis=0) if found else np.zeros(self.horizon)

    def local(self, constant: Constant, weights: Any, deltas: Any, growth: Values) -> float:
        """The same for one step from each of the reference's own windows."""
        if not self.box.forecaster.feedback.pairs:
            return float(growth.mean())  # the windows are the reference's anyway
        found = []
        for engine, moved in self._perturbed(constant, weights, deltas):
            outputs = np.stack([engine(windows) for windows in self.start.seen], axis=1)
            found.append(self._squares(outputs).mean() / moved**2)
        self.passes += len(found) * self.start.reference.shape[0] * self.horizon
        return float(np.mean(found)) if found else 0.0

    def moves(self, constant: Constant, weights: Any, deltas: Any) -> bool:
        """Whether any perturbation is left once it is stored."""
        if constant.kind == "float32":
            return True
        return any(np.any(exchanged(self.box.content, constant, weights + d)[1] != weights) for d in deltas)

    def _squares(self, outputs: Floats32) -> Values:
        return ((outputs - self.start.reference) / self.start.spread).astype(np.float64) ** 2

    def _perturbed(self, constant: Constant, weights: Any, deltas: Any) -> Any:
        """(engine, norm of the perturbation as stored); LiteRT packs weights, so each file gets a fresh one."""
        for delta in deltas:
            content, actual = exchanged(self.box.content, constant, weights + delta)
            moved = float(np.linalg.norm(actual - weights))
            if moved > 0:
                yield Engine(self.box, content), moved


def audit(box: BlackBox, scores: Score, data: Values) -> float:
    """Rank correlation with the score from windows of the data, (samples, inputs) in physical units."""
    from scipy.stats import spearmanr

    again = score(box, scores.horizon, start=data_starts(box, data, scores.horizon))
    return float(spearmanr([u.sensitivity for u in scores.units], [u.sensitivity for u in again.units])[0])


def deviation(
    box: BlackBox, content: bytes, horizon: int, *, trajectories: int = 48, seed: int = 7
) -> tuple[float, ...]:
    """How far another file's rollout is from the box's, by step: RMS in units of the rollout's spread."""
    start = synthetic_starts(box, horizon, trajectories, seed)
    outputs, _ = _roll(Engine(box, content), start.windows, start.future, horizon)
    squares = ((outputs - start.reference) / start.spread).astype(np.float64) ** 2
    return tuple(float(value) for value in np.sqrt(squares.mean(axis=(0, 2))))
