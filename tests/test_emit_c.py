"""The generated C: repeatable, warning-free whatever the names, floats exact, every byte counted."""

import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from models import KINDS, mixed, random_dense, random_forecaster, uniform

from edgetqs.emit_c import RUNTIME_VERSION, Replay, _float, c_name, emit_c, stored_bytes
from edgetqs.errors import BadInput
from edgetqs.integer import IntegerModel
from edgetqs.layout import stored
from edgetqs.model import Channel
from edgetqs.paths import data_dir
from edgetqs.quantizer import quantize

C_KEYWORDS = """auto break case char const continue default do double else enum extern float for goto if inline int long
register restrict return short signed sizeof static struct switch typedef union unsigned void volatile while""".split()
NASTY = [
    'say "hi"',
    "line\nbreak\r\n#error",
    "*/ int x; /*",
    "/*/ /**/",
    "back\\slash\\",
    "trigraph ??/ ???= ????/",
    "per cent %s %n %",
    "Größe ⅔ 温度 \u202e\u200b",
    "nul\0tab\t\x1b[31m",
    "*\\",
    "{{ braces }} {% if %}",
    "",
]


def integers(kind: str = "lstm", units: int = 5, widths=mixed, **options: object) -> IntegerModel:
    forecaster = random_forecaster(kind, units, 3, 2, **options)
    return quantize(forecaster, widths(forecaster))


def texts(model: IntegerModel, kernels: str = "dsp", comment: str = "") -> dict[str, str]:
    rng = np.random.default_rng(0)
    known = len(model.feedback.known)
    replay = Replay(rng.normal(size=(4, len(model.inputs))), rng.normal(size=(6, known)), comment)
    return emit_c(model, kernels, replay, horizon=6, version="1.2.3", plan_hash="0123456789abcdef")


def source(model: IntegerModel, kernels: str = "dsp") -> str:
    (name,) = (name for name in texts(model, kernels) if name.endswith(".c"))
    return texts(model, kernels)[name]


def arrays(text: str) -> dict[str, tuple[str, list[int]]]:
    """(type, values) of each constant array, by name."""
    found = re.findall(r"static const (u?int\d+_t) (\w+)\[(\d+)\] = \{(.*?)\};", text, re.DOTALL)
    values = {name: (kind, [int(v, 0) for v in re.findall(r"-?\w+", body)]) for kind, name, _, body in found}
    assert all(len(values[name][1]) == int(size) for _, name, size, _ in found)
    assert len(values) == len(found)
    return values


def compile_quietly(files: dict[str, str], folder: Path) -> None:
    """gcc reads everything that was generated, and the application with it, without a word."""
    gcc = shutil.which("gcc")
    if gcc is None:
        pytest.skip("gcc is not installed")
    for name, text in files.items():
        (folder / name).write_text(text, encoding="utf-8")
    sources = [str(folder / name) for name in files if name.endswith(".c")]
    flags = "-std=c99 -Wall -Wextra -Werror -Wconversion -Wshadow -fsyntax-only".split()
    command = [gcc, *flags, f"-I{folder}", f"-I{data_dir('runtime')}", *sources, str(data_dir("runtime") / "app.c")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("kernels", ["portable", "dsp"])
@pytest.mark.parametrize("kind", KINDS)
def test_same_model_same_text(kind, kernels):
    first, second = (texts(integers(kind), kernels) for _ in range(2))
    assert first == second
    assert list(first) == [f"{kind}5.h", f"{kind}5.c", "model_glue.h"]


def test_text_holds_no_path_and_no_date():
    everything = "".join(texts(integers()).values())
    assert str(Path.home()) not in everything
    assert str(data_dir("templates").parent) not in everything
    assert "edgetqs/" not in everything
    everything = re.sub(r"= \{[^}]*\};", "", everything)
    assert not re.search(r"\b20\d\d\b|\d\d:\d\d|__DATE__|__TIME__|__FILE__", everything)


def test_banner_names_version_model_and_plan():
    model = replace(integers(), model_sha256="fedcba9876543210" * 4)
    for text in (texts(model)["lstm5.h"], texts(model)["lstm5.c"]):
        banner = text.partition("*/")[0]
        assert "edgetqs 1.2.3" in banner
        assert "fedcba9876543210" in banner
        assert "0123456789abcdef" in banner
    assert "an unnamed model" in texts(integers())["lstm5.h"]


def test_header_refuses_another_runtime():
    assert f"#if EDGETQS_RT_VERSION != {RUNTIME_VERSION}\n#error" in texts(integers())["lstm5.h"]
    assert f"#define EDGETQS_RT_VERSION {RUNTIME_VERSION}\n" in (data_dir("runtime") / "edgetqs_rt.h").read_text()


@pytest.mark.parametrize("kernels", ["portable", "dsp"])
@pytest.mark.parametrize("kind", KINDS)
def test_it_compiles_without_a_warning(kind, kernels, tmp_path):
    compile_quietly(texts(integers(kind), kernels), tmp_path)


@pytest.mark.parametrize("options", [{"feedback": False}, {"known": False}, {"gate": "hard_sigmoid_keras3"}])
@pytest.mark.parametrize("kind", ["lstm", "gru"])
def test_it_compiles_without_a_closed_loop_or_known_inputs(kind, options, tmp_path):
    compile_quietly(texts(integers(kind, **options)), tmp_path)


@pytest.mark.parametrize("activation", ["relu", "tanh", "sigmoid"])
def test_it_compiles_with_dense_layers_anywhere(activation, tmp_path):
    forecaster = random_forecaster("gru", 4, 3, 2)
    dense = random_dense(3, 3, np.random.default_rng(0), activation=activation, name="first")
    forecaster = replace(forecaster, layers=(dense, *forecaster.layers[:-1]), outputs=forecaster.inputs)
    forecaster = replace(forecaster, outputs=tuple(Channel(f"h{k}") for k in range(4)))
    compile_quietly(texts(quantize(forecaster, mixed(forecaster))), tmp_path)


@pytest.mark.parametrize("nasty", NASTY, ids=range(len(NASTY)))
def test_it_compiles_whatever_things_are_called(nasty, tmp_path):
    forecaster = random_forecaster("gru", 3, 3, 2)

    def named(channels):
        return tuple(replace(channel, name=nasty + str(k), unit=nasty) for k, channel in enumerate(channels))

    forecaster = replace(
        forecaster,
        name=f"m {nasty}",
        layers=tuple(replace(layer, name=nasty) for layer in forecaster.layers),
        inputs=named(forecaster.inputs),
        outputs=named(forecaster.outputs),
    )
    files = texts(quantize(forecaster, mixed(forecaster)), comment=f"Samples of {nasty}")
    assert all(re.fullmatch(r"[a-z]\w*\.[ch]", name, re.ASCII) for name in files)
    compile_quietly(files, tmp_path)


@pytest.mark.parametrize("name", ["lstm", "input", "scratch", "2nd", "_", "int", "lstm_kernel", "edgetqs"])
def test_layers_may_share_a_name(name, tmp_path):
    forecaster = random_forecaster("lstm", 3, 3, 2)
    layers = tuple(replace(layer, name=name) for layer in forecaster.layers)
    files = texts(quantize(replace(forecaster, layers=layers), uniform(forecaster, 8)))
    compile_quietly(files, tmp_path)
    assert len(arrays(files["lstm3.c"])) == 5


def test_layers_numbered_into_each_other_stay_apart(tmp_path):
    forecaster = random_forecaster("rnn", 3, 3, 2)
    names = ("cell_2", "cell", "cell")
    layers = tuple(replace(layer, name=name) for layer, name in zip(forecaster.layers, names, strict=True))
    compile_quietly(texts(quantize(replace(forecaster, layers=layers), uniform(forecaster, 8))), tmp_path)


@pytest.mark.parametrize("kernels", ["portable", "dsp"])
@pytest.mark.parametrize("widths", [lambda f: uniform(f, 8), lambda f: uniform(f, 4), mixed], ids=["8", "4", "mixed"])
@pytest.mark.parametrize("kind", KINDS)
def test_stored_bytes_are_the_sizes_of_the_arrays(kind, widths, kernels):
    model = integers(kind, 7, widths)
    found = arrays(source(model, kernels)).values()
    assert stored_bytes(model, kernels) == sum(4 * len(values) for _, values in found)
    assert f"Weights: {stored_bytes(model, kernels)} bytes" in texts(model, kernels)[f"{kind}7.h"]


@pytest.mark.parametrize("kernels", ["portable", "dsp"])
def test_arrays_hold_the_models_integers(kernels):
    model = integers("lstm", 5, lambda f: uniform(f, 4))
    found = arrays(source(model, kernels))
    for layer, tensor in (("lstm_0", "kernel"), ("lstm_1", "recurrent")):
        matrix = getattr(model.layers[int(layer[-1])], tensor)
        name = f"{layer}_{tensor}_ifco"
        assert found[f"{name}_stored"] == ("uint32_t", stored(matrix, 0, 20, 4, kernels).tolist())
        biased = str(bool(matrix.bias.any())).lower()
        assert f"edgetqs_rows {name} = {{ {name}_stored, 20, {matrix.columns}, {biased} }};" in source(model, kernels)


def test_vectors_that_rows_read_are_padded():
    header, text = (texts(integers("gru", 5))[f"gru5.{suffix}"] for suffix in "hc")
    assert re.findall(r"int16_t (\w+)\[(\d+)\] EDGETQS_ALIGNED", header) == [
        ("h0", "8"), ("h1", "8"), ("x", "8"), ("y", "2"),
    ]  # fmt: skip
    assert re.findall(r"int16_t (\w+)\[(\d+)\] EDGETQS_ALIGNED", text) == [("z", "15"), ("r", "8")]
    assert "int16_t c0[5] EDGETQS_ALIGNED" in texts(integers("lstm", 5))["lstm5.h"]


def test_every_array_says_what_it_is():
    text = source(integers("gru"))
    comments = re.findall(r"/\* (.*) \*/\nstatic const uint32_t (\w+)_stored", text)
    assert len(comments) == text.count("_stored[")
    for comment, name in comments:
        assert re.match(rf"{name}: \d+ x \d+, int[48], dsp layout, (?:with biases, )?scale \S+ to \S+ a row", comment)


def test_rows_too_long_for_an_int32_use_the_wide_functions(tmp_path):
    forecaster = random_forecaster("rnn", 2, 600, 1, layers=1)
    forecaster = forecaster.replace_tensor(0, "kernel", np.full((1, 2, 600), 0.01))
    model = quantize(forecaster, uniform(forecaster, 8), "nearest")
    text = source(model)
    assert "edgetqs_rows8_wide(&rnn_0_kernel_h, s->x" in text
    assert "edgetqs_rows8_dsp(&rnn_0_recurrent_h" in text
    assert arrays(text)["rnn_0_kernel_h_stored"][1] == stored(model.layers[0].kernel, 0, 2, 8, "dsp").tolist()
    compile_quietly(texts(model), tmp_path)


@pytest.mark.parametrize(
    "value", [0.0, -0.0, 1.0, -2.0, 1e-8, 0.1, 1 / 3, 123456789.0, 3.4028235e38, 1.17549435e-38, 1e-45, -1e10]
)
def test_floats_read_back_exactly(value):
    text = _float(value)
    assert re.fullmatch(r"-?\d+(\.\d+)?(e[+-]\d+)?f", text)
    assert "." in text or "e" in text
    assert np.float32(text[:-1]).tobytes() == np.float32(value).tobytes()


def test_random_floats_read_back_exactly():
    bits = np.random.default_rng(0).integers(0, 2**32, 5000, dtype=np.uint32)
    values = bits.view(np.float32)
    values = values[np.isfinite(values)]
    assert all(np.float32(_float(value)[:-1]).tobytes() == value.tobytes() for value in values)


def test_channels_are_written_exactly():
    model = integers("gru", scaled=True)
    body = re.search(r"input_channels\[\w+\] = \{(.*?)\};", source(model), re.DOTALL)[1]
    rows = re.findall(r"\{ (\S+)f, (\S+)f \}, /\* (.*) \*/", body)
    assert [(np.float32(a), np.float32(b), c) for a, b, c in rows] == [
        (code.mean, code.gain, f"{code.name} {code.unit}") for code in model.inputs
    ]


@pytest.mark.parametrize("name", [*C_KEYWORDS, "main", "_Bool", "class", "model", "edgetqs"])
def test_words_that_c_keeps_are_refused(name):
    for spelled in (name, name.upper(), f"__{name}__"):
        with pytest.raises(BadInput, match=re.escape(repr(spelled))):
            c_name(spelled)


@pytest.mark.parametrize("path", [*data_dir("runtime").iterdir(), Path("model_glue.h")], ids=lambda path: path.name)
def test_names_of_files_beside_the_model_are_refused(path):
    with pytest.raises(BadInput):
        c_name(path.stem)


@pytest.mark.parametrize("name", ["stdint", "stddef", "stdbool", "inttypes", "stdio", "stdlib", "string"])
def test_names_that_would_hide_a_system_header_are_refused(name):
    with pytest.raises(BadInput):
        c_name(name)


@pytest.mark.parametrize("name", ["", "  ", "---", "温度", "x" * 41])
def test_names_without_an_identifier_are_refused(name):
    with pytest.raises(BadInput, match="name"):
        c_name(name)


@pytest.mark.parametrize(
    ("name", "expected"),
    [("Weather", "weather"), ("my model-2.keras", "my_model_2_keras"), ("9lives", "m9lives"), ("x" * 40, "x" * 40)],
)
def test_names_become_identifiers(name, expected):
    assert c_name(name) == expected
