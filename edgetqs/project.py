"""``edgetqs.toml``: what a model's file does not tell.

Names, units and scaling of the inputs and outputs, how the closed loop is
closed, horizon, data for audits, target and budget. ``load`` gives a
forecaster with all of it applied; ``suggest`` writes a first, commented file
by looking at the model.
"""

from __future__ import annotations

import json
import tokenize
import tomllib
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from edgetqs.errors import BadInput
from edgetqs.model import Channel, Feedback, Forecaster
from edgetqs.paths import sample_dir
from edgetqs.read import read_model

CONFIG_NAME = "edgetqs.toml"
ROLES = ("feedback", "known", "held")
#: What numpy and zipfile raise for files that hold no series; a RuntimeError says that they are encrypted.
NO_SERIES = (
    KeyError, ValueError, TypeError, EOFError, MemoryError, OverflowError, RuntimeError, SyntaxError,
    tokenize.TokenError, zipfile.BadZipFile, zlib.error,
)  # fmt: skip
#: Makes a forecaster of a model's file.
Reader: TypeAlias = Callable[[Path], Forecaster]


@dataclass(frozen=True, slots=True)
class Project:
    """A forecaster with its configuration; ``source`` says where each came from."""

    forecaster: Forecaster
    horizon: int
    data: Path | None = None
    target: str | None = None
    flash_budget: int | None = None
    granularity: str = "gate"
    rounding: str = "trajectory"
    source: str = ""
    notes: tuple[str, ...] = ()
    model: Path | None = None  # the model's file
    logits: bool = False


def load(path: str | Path) -> Forecaster:
    """The forecaster of a model file, or of the model that an ``edgetqs.toml`` names."""
    path = Path(path)
    return load_project(None, path).forecaster if path.suffix == ".toml" else load_project(path, None).forecaster


def load_project(model: Path | None, config: Path | None, reader: Reader | None = None) -> Project:
    """The model with its configuration.

    Without ``config``, an ``edgetqs.toml`` beside the model that names it is
    used; without ``model``, the one in the working folder; without either,
    the bundled sample. ``reader`` takes the place of ``read_model``.
    """
    if config is not None:
        return _configured(config, model, reader)
    if model is None:
        here = Path(CONFIG_NAME)
        if here.is_file():
            return _configured(here, None, reader)
        sample = _configured(sample_dir() / CONFIG_NAME, None, reader)
        return replace(sample, notes=("no model given: this is the bundled sample weather forecaster",))
    beside = model.parent / CONFIG_NAME
    if beside.is_file() and _names(beside, model):
        return _configured(beside, model, reader)
    forecaster, guesses = guess((reader or read_model)(model))
    return Project(forecaster, 24, source=str(model), notes=guesses, model=model)


def guess(forecaster: Forecaster) -> tuple[Forecaster, tuple[str, ...]]:
    """The closed loop that the shapes suggest, and what was assumed."""
    inputs, outputs = len(forecaster.inputs), len(forecaster.outputs)
    classes = any(getattr(layer, "activation", "") == "softmax" for layer in forecaster.layers[-1:])
    if outputs > inputs or forecaster.windowed or classes:
        return forecaster, (f"assumed a direct forecaster of {outputs} outputs, without a closed loop",)
    pairs = tuple((k, k) for k in range(outputs))
    rest = f"input {outputs}" if inputs == outputs + 1 else f"inputs {outputs} to {inputs - 1}"
    held = f", {rest} held" if inputs > outputs else ""
    note = f"assumed that output k becomes input k{held}; `edgetqs init` writes a file to correct it"
    return replace(forecaster, feedback=Feedback(pairs)), (note,)


def _names(config: Path, model: Path) -> bool:
    try:
        named = tomllib.loads(config.read_text(encoding="utf-8")).get("model", {}).get("file", "")
        return (config.parent / str(named)).resolve() == model.resolve()
    except (ValueError, RecursionError, OSError, AttributeError):
        return False


class _Table:
    """One table of the file; ``take`` checks and removes, what is left over is unknown."""

    def __init__(self, values: Any, where: str, mistakes: list[str]) -> None:
        self.values = dict(values) if isinstance(values, dict) else {}
        self.where, self.mistakes = where, mistakes
        if not isinstance(values, dict):
            mistakes.append(f"{where}: must be a table")

    def take(self, key: str, kind: type, default: Any, check: Callable[[Any], str] = lambda value: "") -> Any:
        if key not in self.values:
            return default
        value = self.values.pop(key)
        if kind is float and isinstance(value, int) and not isinstance(value, bool) and abs(value) < 1 << 1023:
            value = float(value)
        if not isinstance(value, kind) or isinstance(value, bool) != (kind is bool):
            self.mistakes.append(f"{self.where}.{key}: must be a {kind.__name__}, not {value!r}")
            return default
        problem = check(value)
        if problem:
            self.mistakes.append(f"{self.where}.{key}: {problem}, not {value!r}")
            return default
        return value

    def end(self) -> None:
        self.mistakes.extend(f"{self.where}.{key}: unknown key" for key in self.values)


def _one_of(*choices: str) -> Callable[[Any], str]:
    return lambda value: "" if value in choices else f"must be one of {', '.join(choices)}"


def _at_least(low: float) -> Callable[[Any], str]:
    return lambda value: "" if value >= low else f"must be at least {low:g}"


def _positive(value: float) -> str:
    return "" if value > 0 and np.isfinite(value) else "must be above 0"


def _finite(value: float) -> str:
    return "" if np.isfinite(value) else "must be finite"


def _configured(config: Path, model: Path | None, reader: Reader | None) -> Project:
    try:
        table = tomllib.loads(config.read_text(encoding="utf-8"))
    except OSError as error:
        raise BadInput(f"cannot be read: {error.strerror}", str(config), "`edgetqs init MODEL` writes one") from error
    except (ValueError, RecursionError) as error:
        raise BadInput(f"not valid TOML: {error}", str(config)) from error
    mistakes: list[str] = []
    top = _Table(table, "", mistakes)
    about = _Table(top.values.pop("model", {}), "model", mistakes)
    inputs, outputs = top.values.pop("input", []), top.values.pop("output", [])
    rollout = _Table(top.values.pop("rollout", {}), "rollout", mistakes)
    data = _Table(top.values.pop("data", {}), "data", mistakes)
    build = _Table(top.values.pop("build", {}), "build", mistakes)
    mistakes += [f"{key}: unknown table" for key in top.values]

    file = about.take("file", str, None)
    if model is None and file is None:
        raise BadInput("names no model", str(config), 'add file = "model.keras" under [model]')
    path = model if model is not None else config.parent / str(file)
    logits = about.take("logits", bool, False)
    forecaster = reader(path) if reader is not None else read_model(path, logits=logits)
    window = about.take("window", int, forecaster.window, _at_least(1))
    if forecaster.windowed and window != forecaster.window:
        mistakes.append(f"model.window: must be {forecaster.window}: the model looks at that many samples at once")
    forecaster = replace(
        forecaster,
        name=about.take("name", str, forecaster.name),
        window=window,
        input_range=about.take("input_range", float, forecaster.input_range, _positive),
    )
    notes: tuple[str, ...] = ()
    if not inputs:
        forecaster, notes = guess(forecaster)
    forecaster = _channels(forecaster, inputs, outputs, mistakes)
    data_file = data.take("file", str, None)
    project = Project(
        forecaster,
        rollout.take("horizon", int, 24, _at_least(1)),
        config.parent / data_file if data_file else None,
        build.take("target", str, None),
        build.take("flash_budget", int, None, _at_least(1)),
        build.take("granularity", str, "gate", _one_of("layer", "tensor", "gate")),
        build.take("rounding", str, "trajectory", _one_of("nearest", "trajectory", "learned")),
        source=f"{path} with {config}",
        notes=notes,
        model=path,
        logits=logits,
    )
    for part in (about, rollout, data, build):
        part.end()
    if mistakes:
        raise BadInput(
            f"{len(mistakes)} mistake{'s' * (len(mistakes) > 1)} in the configuration",
            str(config),
            "\n  ".join(mistakes),
        )
    return project


def _channels(forecaster: Forecaster, inputs: Any, outputs: Any, mistakes: list[str]) -> Forecaster:
    made, roles = _read_channels(inputs, "input", forecaster.inputs, mistakes)
    made_outputs, _ = _read_channels(outputs, "output", forecaster.outputs, mistakes)
    if not inputs:
        return replace(forecaster, outputs=made_outputs)
    names = [channel.name for channel in made_outputs]
    pairs, known = [], []
    for index, (role, source) in enumerate(roles):
        wanted = source or made[index].name
        if role == "known":
            known.append(index)
        elif role == "feedback" and wanted in names:
            pairs.append((names.index(wanted), index))
        elif role == "feedback":
            mistakes.append(f"input[{index}].output: no output is called {wanted!r}; outputs: {', '.join(names)}")
    return replace(forecaster, inputs=made, outputs=made_outputs, feedback=Feedback(tuple(pairs), tuple(known)))


def _read_channels(
    entries: Any, what: str, channels: tuple[Channel, ...], mistakes: list[str]
) -> tuple[tuple[Channel, ...], list[tuple[str, str]]]:
    """Channels with the file's names and scaling, and (role, output) of each.

    A scaling given here comes before the one inside the model (a Normalization
    layer), so the two are joined.
    """
    if not entries:
        return channels, [("held", "")] * len(channels)
    if not isinstance(entries, list) or len(entries) != len(channels):
        count = len(entries) if isinstance(entries, list) else 0
        mistakes.append(f"{what}: {count} entries of [[{what}]], the model has {len(channels)} {what}s")
        return channels, [("held", "")] * len(channels)
    made, roles = [], []
    for index, (entry, channel) in enumerate(zip(entries, channels, strict=True)):
        table = _Table(entry, f"{what}[{index}]", mistakes)
        mean, std = table.take("mean", float, None, _finite), table.take("std", float, None, _positive)
        low, high = table.take("min", float, None, _finite), table.take("max", float, None, _finite)
        if low is not None or high is not None:
            if low is None or high is None or not low < high or mean is not None or std is not None:
                mistakes.append(f"{what}[{index}]: give mean and std, or min below max")
            else:  # scaled to 0..1
                mean, std = low, high - low
        mean, std = mean or 0.0, std or 1.0
        made.append(
            Channel(
                table.take("name", str, channel.name),
                table.take("unit", str, ""),
                mean + std * channel.mean,
                std * channel.std,
            )
        )
        roles.append(
            (table.take("role", str, "held", _one_of(*ROLES)), table.take("output", str, ""))
            if what == "input"
            else ("", "")
        )
        table.end()
    names = [channel.name for channel in made]
    mistakes += [
        f"{what}: the name {name!r} is given twice" for name in sorted({n for n in names if names.count(n) > 1})
    ]
    return tuple(made), roles


def read_data(path: Path, forecaster: Forecaster) -> np.ndarray:
    """(samples, inputs) float64 in physical units from a CSV with a header or an NPZ.

    CSV columns and NPZ arrays are found by the inputs' names; an NPZ may hold
    one array ``x`` (samples, inputs) instead. Raises ``BadInput`` for missing
    columns and for values that are not numbers.
    """
    names = [channel.name for channel in forecaster.inputs]
    try:
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as arrays:
                whole = arrays.get("x")
                if isinstance(whole, np.ndarray) and whole.ndim == 2 and whole.shape[1] == len(names):
                    values = _real("x", whole)
                else:
                    values = np.stack([_real(name, arrays[name]) for name in names], axis=1)
        else:
            values = _read_csv(path, names)
    except OSError as error:
        raise BadInput(f"cannot be read: {error.strerror or error}", str(path), "check [data] file") from error
    except NO_SERIES as error:
        what = str(error).strip("'\"") or type(error).__name__
        raise BadInput(what, str(path), f"needed are the inputs {', '.join(names)}") from error
    if values.ndim != 2 or not len(values):
        fact = "there must be one value a sample" if values.ndim != 2 else "there are no samples"
        raise BadInput(fact, str(path), "give one column an input and one row a sample")
    if not np.isfinite(values).all():
        row, column = np.argwhere(~np.isfinite(values))[0]
        raise BadInput(f"sample {row} of {names[column]!r} is not a finite number", str(path), "fill the gaps first")
    return values


def _real(name: str, values: object) -> np.ndarray:
    if not isinstance(values, np.ndarray) or values.dtype.kind not in "biuf":
        raise ValueError(f"{name} holds {getattr(values, 'dtype', 'bytes')}, not real numbers")
    return values.astype(np.float64)


def _read_csv(path: Path, names: list[str]) -> np.ndarray:
    with path.open(encoding="utf-8-sig") as lines:
        header = [cell.strip() for cell in lines.readline().split(",")]
        missing = [name for name in names if name not in header]
        if missing:
            raise KeyError(f"no column {', '.join(missing)}")
        columns = [header.index(name) for name in names]
        rows = [line for line in lines if line.partition("#")[0].strip()]
        if not rows:
            return np.empty((0, len(names)))
        return np.loadtxt(rows, delimiter=",", usecols=columns, ndmin=2, dtype=np.float64)


def suggest(forecaster: Forecaster, model: Path) -> str:
    """A commented ``edgetqs.toml`` for a model, with the closed loop that its shapes suggest."""
    guessed, notes = guess(forecaster)
    targets = {target: source for source, target in guessed.feedback.pairs}
    lines = [
        f"# {notes[0].partition(';')[0]}." if notes else "#",
        "# Correct what is wrong: everything edgetqs computes rests on this file.",
        "",
        "[model]",
        f"file = {_quoted(model.name)}",
        f"name = {_quoted(forecaster.name)}   # names the C functions",
        f"window = {forecaster.window}       # samples the model looked back at in training",
        f"input_range = {forecaster.input_range:g}   # normalised inputs beyond +- this are clipped",
        "",
        "# Inputs in the model's order. mean and std are those of the training data: the model gets",
        "# (value - mean) / std; min and max may be given instead, for a scaling to 0..1. role is",
        '# "feedback" (takes an output of the step before), "known" (known ahead) or "held".',
    ]
    for index, channel in enumerate(guessed.inputs):
        role = "feedback" if index in targets else "held"
        lines += [
            "",
            "[[input]]",
            f"name = {_quoted(channel.name)}",
            'unit = ""',
            "mean = 0.0",
            "std = 1.0",
            f'role = "{role}"',
        ]
        if role == "feedback":
            lines.append(f"output = {_quoted(guessed.outputs[targets[index]].name)}")
    lines += ["", "# Outputs in the model's order: value = model output * std + mean."]
    for channel in guessed.outputs:
        lines += ["", "[[output]]", f"name = {_quoted(channel.name)}", 'unit = ""', "mean = 0.0", "std = 1.0"]
    lines += [
        "",
        "[rollout]",
        "horizon = 24            # steps to forecast",
        "",
        "# A time series in physical units to audit with: CSV with the inputs' names as header, or NPZ.",
        "# [data]",
        '# file = "observations.csv"',
        "",
        "[build]",
        'target = "cortex-m4"    # see `edgetqs targets`',
        "# flash_budget = 65536  # bytes for the whole image; default: the target's flash less its reserve",
        'granularity = "gate"    # gate | tensor | layer',
        'rounding = "trajectory" # nearest | trajectory | learned (slower, best at int4)',
        "",
    ]
    return "\n".join(lines)


def _quoted(text: str) -> str:
    """A TOML string."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
