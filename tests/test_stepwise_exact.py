"""Windows, frames and cells of every activation in integers: the same bits in NumPy, LiteRT and C."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from compositions import FEATURES, STEPS, STREAMING, WINDOWED, with_activation
from models import mixed, uniform
from test_chain import emitted, run_c
from whole import forecaster_of

from edgetqs import chain, emulate, images, reference
from edgetqs.chain import Golden, Link
from edgetqs.errors import Unsupported
from edgetqs.integer import IntegerModel
from edgetqs.model import Activation, frozen
from edgetqs.quantizer import quantize
from edgetqs.rollout import cells, run, zero_state
from edgetqs.target import load_target
from edgetqs.write_tflite import write_tflite

EVERY = {**STREAMING, **WINDOWED}
#: Together they use every function of the runtime that has to do with frames.
DEMANDING = (
    "causal, dilated",
    "decoder",
    "normalised convolution",
    "pool same",
    "backwards twice",
    "mixed",
    "autoencoder",
)
OTHERS = ("relu", "linear", "sigmoid", "hard_sigmoid_keras2", "hard_sigmoid_keras3")
CASES = [(name, "tanh") for name in EVERY] + [
    (name, function) for name in ("stack", *DEMANDING) for function in OTHERS
]  # fmt: skip


def integers(name: str, function: str = "tanh", widths=mixed) -> IntegerModel:
    forecaster = forecaster_of(with_activation(EVERY[name], function), STEPS, FEATURES)
    return quantize(forecaster, widths(forecaster), "nearest")


def golden(model: IntegerModel) -> Golden:
    return chain.golden(model, loop_steps=8)


@pytest.mark.parametrize(("name", "function"), CASES)
def test_litert_is_exact(name: str, function: str) -> None:
    model = integers(name, function)
    vectors = golden(model)
    assert len(np.unique(vectors.outputs, axis=0)) > 20
    assert chain.check_litert(model, write_tflite(model), vectors) == Link("exact", f"{vectors.steps} steps")


@pytest.mark.parametrize(("name", "function"), CASES)
def test_near_the_float_model(name: str, function: str) -> None:
    """With int8 weights, within 3 % of the outputs' size."""
    forecaster = forecaster_of(with_activation(EVERY[name], function), STEPS, FEATURES)
    model = quantize(forecaster, uniform(forecaster, 8), "nearest")
    x = np.random.default_rng(7).normal(size=(8, STEPS, FEATURES))
    stack = cells(forecaster)
    expected, _ = run(stack, zero_state(stack, (8,)), x)
    found, _ = reference.run(model, reference.zero_state(model, (8,)), reference.encode(model, x))
    error = reference.decode(model, found) - expected
    assert np.sqrt(np.mean(error**2)) < 0.03 * np.sqrt(np.mean(expected**2)) + 1e-3


@pytest.mark.parametrize(
    ("name", "function", "kernels"),
    [(name, "tanh", ("portable", "dsp")[k % 2]) for k, name in enumerate(DEMANDING)]
    + [("mixed", function, "simd") for function in OTHERS],
)
def test_c_under_sanitizers_is_exact(tmp_path: Path, name: str, function: str, kernels: str) -> None:
    model = integers(name, function)
    link, _ = run_c(model, golden(model), emitted(model, kernels), tmp_path, kernels)
    assert link.verdict == "exact", link


@pytest.mark.qemu
@pytest.mark.parametrize(
    ("target", "name", "function"),
    [
        ("cortex-m0plus", "mixed", "tanh"),
        ("cortex-m0plus", "pool same", "relu"),
        ("cortex-m4", "autoencoder", "tanh"),
        ("cortex-m4", "normalised convolution", "tanh"),
        ("cortex-m55", "mixed", "tanh"),
        ("cortex-m55", "decoder", "hard_sigmoid_keras3"),
        ("cortex-m3", "mixed", "linear"),
    ],
)
def test_cores_are_exact(tmp_path: Path, target: str, name: str, function: str) -> None:
    model, device = integers(name, function), load_target(target)
    sources = images.write_sources(tmp_path / "src", emitted(model, device.cpu.kernels), device.cpu.kernels)
    image = images.link_harness(device, sources, tmp_path / "obj", tmp_path / "harness.elf")
    vectors = golden(model)
    chain.write_harness_input(tmp_path, chain.commands(model, vectors))
    emulate.run(device, image, tmp_path)
    step, result = chain.judge(model, vectors, (tmp_path / "harness.out").read_bytes())
    assert (step, result.link.verdict) == (None, "exact")


def test_a_wrong_frame_is_named(tmp_path: Path) -> None:
    model = integers("stride")
    texts = emitted(model, "portable")
    wrong = texts["m.c"].replace("_frames[15] = {\n    -1, 0, 1", "_frames[15] = {\n    0, 0, 1")
    assert wrong != texts["m.c"]
    link, _ = run_c(model, golden(model), {**texts, "m.c": wrong}, tmp_path)
    assert link.verdict == "differs" and "layer conv_0, output" in link.detail


def test_unbounded_cells_saturate_and_are_counted() -> None:
    """Inputs far beyond what synthetic rollouts hold drive a relu cell out of its range."""
    model = integers("stack", "relu")
    assert model.layers[0].hidden_bits < 15
    vectors = golden(model)
    trace = reference.Trace()
    state = reference.zero_state(model)
    for x in vectors.inputs[-150:]:
        _, state = reference.step(model, state, x, trace)
    assert {"hidden_state", "cell_state", "kernel"} & {what for _, what in trace.clipped}


def test_products_of_unbounded_cells_are_refused() -> None:
    with pytest.raises(Unsupported, match="'mul'"):
        integers("bidirectional lstm mul True", "relu")


def test_a_limited_cell_state_is_exact(tmp_path: Path) -> None:
    """As TFLite's fused LSTM has it, where rollouts come near the limit."""
    forecaster = forecaster_of(STREAMING["stack"], STEPS, FEATURES)
    layers = (replace(forecaster.layers[0], cell_clip=0.5), *forecaster.layers[1:])
    limited = replace(forecaster, layers=layers)
    model = quantize(limited, mixed(limited), "nearest")
    assert model.layers[0].cell_limit == 1 << 10
    vectors = golden(model)
    assert np.abs(vectors.states["c0"]).max() == 1 << 10
    link, _ = run_c(model, vectors, emitted(model, "portable"), tmp_path)
    assert link.verdict == "exact", link
    assert chain.check_litert(model, write_tflite(model), vectors).verdict == "exact"


@pytest.mark.parametrize(("size", "refused"), [(1e4, False), (1e7, True)])
def test_functions_of_very_large_values(tmp_path: Path, size: float, refused: bool) -> None:
    """A table's argument takes at most 15 bits to the left; what may need more is refused by its layer."""
    lstm, head, *_ = forecaster_of(STREAMING["classes"], STEPS, FEATURES).layers
    head = replace(head, activation="linear", kernel=frozen(head.kernel * size))
    forecaster = forecaster_of([lstm, head, Activation("squash", "sigmoid")], STEPS, FEATURES)
    if refused:
        with pytest.raises(Unsupported, match="squash"):
            quantize(forecaster, uniform(forecaster, 8), "nearest")
        return
    model = quantize(forecaster, uniform(forecaster, 8), "nearest")
    vectors = golden(model)
    link, _ = run_c(model, vectors, emitted(model, "portable"), tmp_path)
    assert link.verdict == "exact", link
    assert chain.check_litert(model, write_tflite(model), vectors).verdict == "exact"
