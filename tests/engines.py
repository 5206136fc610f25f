"""LiteRT's kernels in their three forms, on many vectors at once."""

from collections.abc import Callable

import numpy as np
from ai_edge_litert.interpreter import Interpreter, OpResolverType

from edgetqs.flatbuffer import pack
from edgetqs.litert import quiet
from edgetqs.tflite_build import File, Graph

ENGINES = {
    "xnnpack": OpResolverType.AUTO,
    "builtin": OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
    "reference": OpResolverType.BUILTIN_REF,
}


def vector_model(count: int, scale: float, write: Callable[[Graph, int], int]) -> bytes:
    """The ``.tflite`` of what ``write`` appends for an input [1, count] at ``scale``."""
    graph = Graph(File())
    x = graph.activation((1, count), scale)
    graph.finish([x], [write(graph, x)])
    return pack(graph.file.model)


@quiet()
def run_vectors(content: bytes, engine: str, vectors: np.ndarray) -> np.ndarray:
    """Outputs (rows, outputs) for ``vectors`` (rows, inputs), by one call on the tensor made that large."""
    runner = Interpreter(model_content=content, num_threads=1, experimental_op_resolver_type=ENGINES[engine])
    x, y = runner.get_input_details()[0]["index"], runner.get_output_details()[0]["index"]
    runner.resize_tensor_input(x, vectors.shape)
    runner.allocate_tensors()
    runner.set_tensor(x, vectors.astype(np.int16))
    runner.invoke()
    return runner.get_tensor(y).astype(np.int64)


def all_pairs() -> np.ndarray:
    """Two logits, all differences: where they are of ``softmax.EXP_STEP``, every entry of softmax's tables is met."""
    return np.stack([np.full(65536, 32767), np.arange(-32768, 32768)], axis=1)


def brimming() -> np.ndarray:
    """Sixteen equal logits and a lower one: one sum of exp is 2^19 - 1, which is rounded up to 2^19."""
    last = np.arange(-32768, 32768, 16)
    return np.concatenate([np.full((len(last), 16), 32767), last[:, None]], axis=1)


def vectors_of(count: int, rows: int, seed: int) -> np.ndarray:
    """(rows, count) int16 of every spread and level: noise, the corners of the range, equal values, one apart."""
    rng = np.random.default_rng(seed)
    corners = rng.choice([-32768, -32767, -1, 0, 1, 32766, 32767], (rows // 8, count))
    equal = np.repeat(rng.integers(-32768, 32768, (rows // 16, 1)), count, axis=1)
    apart = equal.copy()
    apart[np.arange(len(apart)), rng.integers(0, count, len(apart))] = rng.choice([-32768, 32767], len(apart))
    left = rows - len(corners) - 2 * len(equal)
    noise = rng.integers(-32768, 32768, (left, count)) >> rng.integers(0, 15, (left, 1))
    noise += rng.integers(-32768, 32768, (left, 1)) >> rng.integers(0, 15, (left, 1))
    return np.concatenate([corners, equal, apart, np.clip(noise, -32768, 32767)])
