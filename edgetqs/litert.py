"""Run an emitted ``.tflite`` in LiteRT, on integers."""

from __future__ import annotations

import contextlib
import os
import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgetqs.errors import ToolMissing
from edgetqs.fixedpoint import Integers


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """LiteRT announces its delegate on the process's standard error; that is not for users."""
    sys.stderr.flush()
    kept = os.dup(2)
    try:
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def interpreter(content: bytes, *, preserve_all: bool = False, reference_kernels: bool = False) -> Any:
    """An interpreter over ``content``; one thread, so that it runs alike everywhere."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    try:
        from ai_edge_litert.interpreter import Interpreter, OpResolverType
    except ImportError as error:
        raise ToolMissing("LiteRT is not installed", "ai-edge-litert", "pip install ai-edge-litert") from error
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about preserve_all, which is used for a single step
        return Interpreter(
            model_content=content,
            num_threads=1,
            experimental_preserve_all_tensors=preserve_all,
            experimental_op_resolver_type=OpResolverType.BUILTIN_REF if reference_kernels else OpResolverType.AUTO,
        )


@dataclass(frozen=True, slots=True)
class Steps:
    """Outputs (T, outputs) and states by name (T, units) of a run of the ``step`` signature."""

    outputs: Integers
    states: dict[str, Integers]


@quiet()
def run_steps(content: bytes, inputs: Integers, resets: set[int] = frozenset()) -> Steps:  # type: ignore[assignment]
    """Feed ``inputs`` (T, inputs) through ``step`` from a zero state, which is also taken before each of ``resets``."""
    runner = interpreter(content).get_signature_runner("step")
    details = runner.get_input_details()
    zeros = {name: np.zeros(detail["shape"], np.int16) for name, detail in details.items() if name != "x"}
    state, outputs = zeros, []
    states: dict[str, list[Integers]] = {name: [] for name in zeros}
    for t, x in enumerate(inputs.astype(np.int16)):
        if t in resets:
            state = zeros
        result = runner(x=x[None], **state)
        outputs.append(result.pop("y")[0])
        state = result
        for name, value in state.items():
            states[name].append(value[0])
    return Steps(np.array(outputs, np.int64), {name: np.array(values, np.int64) for name, values in states.items()})


@quiet()
def run_sequence(content: bytes, inputs: Integers) -> Integers:
    """The ``sequence`` signature on one window (T, inputs): (outputs,) or (T, outputs)."""
    runner = interpreter(content).get_signature_runner("sequence")
    return runner(x=inputs.astype(np.int16)[None])["y"][0].astype(np.int64)


@quiet()
def tensors_of_step(content: bytes, x: Integers, state: dict[str, Integers]) -> dict[int, Integers]:
    """Every tensor of subgraph 0 after one step from ``state``, by index."""
    engine = interpreter(content, preserve_all=True)
    runner = engine.get_signature_runner("step")
    feeds = {name: value.astype(np.int16)[None] for name, value in state.items()}
    runner(x=x.astype(np.int16)[None], **feeds)
    return {
        detail["index"]: engine.get_tensor(detail["index"]).astype(np.int64)
        for detail in engine.get_tensor_details()
        if detail["dtype"] == np.int16
    }
