"""``edgetqs.toml`` and the data it names: every mistake at once, roles, scalings, what is found where."""

import tomllib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from compositions import FEATURES, STEPS, WINDOWED
from models import random_forecaster
from whole import forecaster_of

import edgetqs
from edgetqs import project
from edgetqs.errors import BadInput
from edgetqs.model import Channel, Feedback, Forecaster
from edgetqs.project import Project, guess, load_project, read_data, suggest
from edgetqs.quantizer import ROUNDINGS
from edgetqs.read import read_model

#: Three inputs x0 x1 x2, two outputs y0 y1.
FORECASTER = replace(random_forecaster("gru", 3, 3, 2), feedback=Feedback())
CHANNELS = """
[[input]]
name = "temperature"
role = "feedback"
output = "temperature"
[[input]]
name = "load"
role = "feedback"
[[input]]
name = "hour"
role = "known"
[[output]]
name = "load"
[[output]]
name = "temperature"
"""


@pytest.fixture(autouse=True)
def reader(monkeypatch):
    """Any existing file holds FORECASTER."""

    def read(path: Path, **options: object) -> Forecaster:
        if not Path(path).exists():
            raise BadInput("no such file", str(path))
        return replace(FORECASTER, name=Path(path).stem)

    monkeypatch.setattr(project, "read_model", read)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch) -> Path:
    (tmp_path / "m.keras").touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def config(folder: Path, text: str, name: str = "edgetqs.toml") -> Path:
    path = folder / name
    path.write_text(text if "[model]" in text else f'[model]\nfile = "m.keras"\n{text}', encoding="utf-8")
    return path


def loaded(folder: Path, text: str) -> Project:
    return load_project(None, config(folder, text))


def mistakes(folder: Path, text: str) -> list[str]:
    with pytest.raises(BadInput) as caught:
        loaded(folder, text)
    assert "edgetqs.toml" in caught.value.where
    found = caught.value.todo.split("\n  ")
    assert caught.value.what.startswith(f"{len(found)} mistake")
    return found


def test_everything_can_be_said(folder):
    text = """
[model]
file = "m.keras"
name = "weather"
window = 48
input_range = 4
[rollout]
horizon = 12
[data]
file = "sub/series.csv"
[build]
target = "cortex-m7"
flash_budget = 65536
granularity = "tensor"
rounding = "nearest"
"""
    made = loaded(folder, text + CHANNELS)
    assert (made.forecaster.name, made.forecaster.window, made.forecaster.input_range) == ("weather", 48, 4.0)
    assert (made.horizon, made.data) == (12, folder / "sub/series.csv")
    assert (made.target, made.flash_budget, made.granularity, made.rounding) == (
        "cortex-m7",
        65536,
        "tensor",
        "nearest",
    )
    assert made.notes == ()
    assert "m.keras" in made.source
    assert "edgetqs.toml" in made.source


def test_nothing_needs_to_be_said(folder):
    made = loaded(folder, "")
    assert made.forecaster.feedback == Feedback(((0, 0), (1, 1)))
    assert made.forecaster.inputs == FORECASTER.inputs
    assert (made.horizon, made.data, made.target, made.flash_budget) == (24, None, None, None)
    assert (made.granularity, made.rounding) == ("gate", "trajectory")
    assert "assumed" in made.notes[0]


def test_roles_close_the_loop(folder):
    forecaster = loaded(folder, CHANNELS).forecaster
    assert forecaster.feedback == Feedback(((1, 0), (0, 1)), (2,))
    assert [channel.name for channel in forecaster.inputs] == ["temperature", "load", "hour"]
    assert [channel.name for channel in forecaster.outputs] == ["load", "temperature"]


def test_inputs_without_a_role_are_held(folder):
    forecaster = loaded(folder, '[[input]]\nname="a"\n[[input]]\nname="b"\n[[input]]\nname="c"\n').forecaster
    assert forecaster.feedback == Feedback()


def test_outputs_alone_may_be_named(folder):
    made = loaded(folder, '[[output]]\nname="a"\nstd=2\n[[output]]\nname="b"\nunit="kW"\n')
    assert made.forecaster.outputs == (Channel("a", "", 0.0, 2.0), Channel("b", "kW", 0.0, 1.0))
    assert made.forecaster.feedback == Feedback(((0, 0), (1, 1)))


@pytest.mark.parametrize(
    ("scaling", "mean", "std"),
    [
        ("", 0, 1),
        ("mean = 5\nstd = 2.5", 5, 2.5),
        ("std = 2", 0, 2),
        ("mean = -1", -1, 1),
        ("min = -10\nmax = 30", -10, 40),
        ("min = 0\nmax = 1", 0, 1),
    ],
)
def test_scaling(folder, scaling, mean, std):
    text = f'[[output]]\nname = "a"\n{scaling}\n[[output]]\nname = "b"\n'
    channel = loaded(folder, text).forecaster.outputs[0]
    assert (channel.mean, channel.std) == (mean, std)


def test_scaling_comes_before_the_one_in_the_model(folder, monkeypatch):
    inside = (Channel("x0", "", 10.0, 2.0), *FORECASTER.inputs[1:])
    monkeypatch.setattr(project, "read_model", lambda path, **options: replace(FORECASTER, inputs=inside))
    text = '[[input]]\nname="a"\nmean=5\nstd=3\n[[input]]\nname="b"\n[[input]]\nname="c"\n'
    channel = loaded(folder, text).forecaster.inputs[0]
    value = 71.0
    assert (value - channel.mean) / channel.std == pytest.approx(((value - 5) / 3 - 10) / 2)


@pytest.mark.parametrize(
    ("scaling", "said"),
    [
        ("min = 1\nmax = 1", "output[0]: give mean and std, or min below max"),
        ("min = 2\nmax = 1", "output[0]: give mean and std, or min below max"),
        ("min = 0", "output[0]: give mean and std, or min below max"),
        ("max = 0", "output[0]: give mean and std, or min below max"),
        ("min = 0\nmax = 1\nstd = 1", "output[0]: give mean and std, or min below max"),
        ("std = 0", "output[0].std: must be above 0, not 0.0"),
        ("std = -1.5", "output[0].std: must be above 0, not -1.5"),
        ("std = inf", "output[0].std: must be above 0, not inf"),
        ("mean = nan", "output[0].mean: must be finite, not nan"),
        ('mean = "5"', "output[0].mean: must be a float, not '5'"),
        ("mean = true", "output[0].mean: must be a float, not True"),
    ],
)
def test_mistakes_in_a_scaling(folder, scaling, said):
    text = f'[[output]]\nname = "a"\n{scaling}\n[[output]]\nname = "b"\n'
    assert mistakes(folder, text) == [said]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[rollout]\nhorizon = 0", "rollout.horizon: must be at least 1, not 0"),
        ("[rollout]\nhorizon = 2.5", "rollout.horizon: must be a int, not 2.5"),
        ("[rollout]\nhorizon = true", "rollout.horizon: must be a int, not True"),
        ("[rollout]\nsteps = 3", "rollout.steps: unknown key"),
        ("[build]\ngranularity = 'weight'", "build.granularity: must be one of layer, tensor, gate, not 'weight'"),
        ("[build]\nrounding = 'up'", f"build.rounding: must be one of {', '.join(ROUNDINGS)}, not 'up'"),
        ("[build]\nflash_budget = 0", "build.flash_budget: must be at least 1, not 0"),
        ("[build]\nflash_budget = '64K'", "build.flash_budget: must be a int, not '64K'"),
        ("[data]\nfile = 3", "data.file: must be a str, not 3"),
        ("[extra]\na = 1", "extra: unknown table"),
        ('[model]\nfile = "m.keras"\nwindow = 0', "model.window: must be at least 1, not 0"),
        ('[model]\nfile = "m.keras"\ninput_range = -1', "model.input_range: must be above 0, not -1.0"),
        ('[model]\nfile = "m.keras"\nfiles = 1', "model.files: unknown key"),
        ('build = 3\n[model]\nfile = "m.keras"', "build: must be a table"),
        ("[[rollout]]\nhorizon = 3", "rollout: must be a table"),
        ('[[input]]\nname = "a"', "input: 1 entries of [[input]], the model has 3 inputs"),
        ('[[output]]\nname = "a"', "output: 1 entries of [[output]], the model has 2 outputs"),
        ('[input]\nname = "a"', "input: 0 entries of [[input]], the model has 3 inputs"),
        ('[[output]]\nname = "a"\n[[output]]\nname = "a"', "output: the name 'a' is given twice"),
        ('[[output]]\nrole = "held"\n[[output]]\n', "output[0].role: unknown key"),
    ],
)
def test_mistakes_are_named_by_key_path(folder, text, said):
    assert mistakes(folder, text) == [said]


@pytest.mark.parametrize("rounding", ROUNDINGS)
def test_every_rounding_may_be_asked_for(folder, rounding):
    assert loaded(folder, f"[build]\nrounding = '{rounding}'").rounding == rounding


def test_unknown_output_names_what_there_is(folder):
    text = CHANNELS.replace('output = "temperature"', 'output = "pressure"')
    assert mistakes(folder, text) == ["input[0].output: no output is called 'pressure'; outputs: load, temperature"]


def test_unknown_role(folder):
    text = CHANNELS.replace('role = "known"', 'role = "future"')
    assert mistakes(folder, text) == ["input[2].role: must be one of feedback, known, held, not 'future'"]


def test_every_mistake_is_told_at_once(folder):
    text = """
[model]
file = "m.keras"
window = -1
[rollout]
horizon = "long"
[build]
granularity = "bit"
colour = "red"
[nonsense]
""" + CHANNELS.replace('name = "hour"', 'name = "load"\nstd = 0').replace('output = "temperature"', 'output = "x"')
    assert sorted(mistakes(folder, text)) == [
        "build.colour: unknown key",
        "build.granularity: must be one of layer, tensor, gate, not 'bit'",
        "input: the name 'load' is given twice",
        "input[0].output: no output is called 'x'; outputs: load, temperature",
        "input[2].std: must be above 0, not 0.0",
        "model.window: must be at least 1, not -1",
        "nonsense: unknown table",
        "rollout.horizon: must be a int, not 'long'",
    ]


@pytest.mark.parametrize("text", ["[model\n", "a = \n", '[model]\nfile = "m.keras"\n[model]\n'])
def test_invalid_toml(folder, text):
    path = folder / "edgetqs.toml"
    path.write_text(text)
    with pytest.raises(BadInput, match="not valid TOML"):
        load_project(None, path)


def test_bytes_that_are_not_text(folder):
    path = folder / "edgetqs.toml"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(BadInput, match="not valid TOML"):
        load_project(None, path)


def test_configuration_without_a_model(folder):
    path = folder / "edgetqs.toml"
    path.write_text("[rollout]\nhorizon = 3\n")
    with pytest.raises(BadInput, match="names no model"):
        load_project(None, path)
    assert load_project(folder / "m.keras", path).horizon == 3


def test_missing_files(folder):
    with pytest.raises(BadInput, match=r"nowhere\.toml"):
        load_project(None, folder / "nowhere.toml")
    with pytest.raises(BadInput, match=r"nowhere\.keras"):
        loaded(folder, '[model]\nfile = "nowhere.keras"')
    with pytest.raises(BadInput, match=r"nowhere\.keras"):
        load_project(folder / "nowhere.keras", None)


# ---- What is found where ----


def test_configuration_beside_the_model_is_picked_up(folder):
    config(folder, "[rollout]\nhorizon = 7\n")
    assert load_project(folder / "m.keras", None).horizon == 7
    assert load_project(Path("m.keras"), None).horizon == 7


@pytest.mark.parametrize("text", ['[model]\nfile = "other.keras"\n[rollout]\nhorizon = 7', "[model\n", "[model]\n"])
def test_configuration_of_another_model_is_not(folder, text):
    (folder / "edgetqs.toml").write_text(text)
    assert load_project(folder / "m.keras", None).horizon == 24


def test_configuration_in_the_working_folder_is_picked_up(folder):
    config(folder, "[rollout]\nhorizon = 7\n")
    assert load_project(None, None).horizon == 7


def test_model_of_a_configuration_is_found_beside_it(folder, monkeypatch):
    path = config(folder, "")
    (folder / "elsewhere").mkdir()
    monkeypatch.chdir(folder / "elsewhere")
    assert load_project(None, path).forecaster.name == "m"


def test_a_given_model_goes_before_the_named_one(folder):
    (folder / "other.keras").touch()
    assert load_project(folder / "other.keras", config(folder, "")).forecaster.name == "other"


def test_without_anything_it_is_the_sample(folder, monkeypatch):
    monkeypatch.setattr(project, "read_model", read_model)
    made = load_project(None, None)
    assert "sample" in made.notes[0]
    assert made.forecaster.name == "weather"
    assert len(read_data(made.data, made.forecaster)) > 1000


def test_load_takes_a_model_or_a_configuration(folder):
    path = config(folder, CHANNELS)
    assert edgetqs.load(folder / "m.keras").inputs[0].name == "temperature"
    assert edgetqs.load(str(path)).inputs[0].name == "temperature"


# ---- Guessing and suggesting ----


def test_guess_feeds_back_what_it_can():
    guessed, notes = guess(FORECASTER)
    assert guessed.feedback == Feedback(((0, 0), (1, 1)))
    assert "input 2 held" in notes[0]


@pytest.mark.parametrize(
    "forecaster",
    [
        random_forecaster("rnn", 2, 1, 4, feedback=False),
        forecaster_of(WINDOWED["flatten"], STEPS, FEATURES),
        random_forecaster("rnn", 2, 3, 3, feedback=False, activation="softmax"),
    ],
    ids=["more outputs", "windowed", "classes"],
)
def test_guess_leaves_direct_forecasters_open(forecaster):
    guessed, notes = guess(forecaster)
    assert guessed.feedback == Feedback()
    assert "direct" in notes[0]


NAMES = ["plain", 'say "hi"', "back\\slash", "line\nbreak", "Größe 温度", "#", "a]", "\t", "\x01", "'", "🌧", "\x7f"]


@pytest.mark.parametrize("name", NAMES)
def test_suggestion_reads_back(folder, monkeypatch, name):
    strange = replace(
        FORECASTER,
        name=name,
        inputs=tuple(Channel(f"{name}{k}") for k in range(3)),
        outputs=tuple(Channel(f"{name}{k}") for k in range(2)),
    )
    monkeypatch.setattr(project, "read_model", lambda path, **options: strange)
    text = suggest(strange, folder / "m.keras")
    path = folder / "edgetqs.toml"
    path.write_text(text, encoding="utf-8")
    made = load_project(None, path)
    assert made.forecaster == guess(strange)[0]
    assert (made.horizon, made.target, made.granularity, made.rounding) == (24, "cortex-m4", "gate", "trajectory")


def test_suggestion_of_a_direct_forecaster_reads_back(folder, monkeypatch):
    direct = random_forecaster("rnn", 2, 1, 4, feedback=False)
    monkeypatch.setattr(project, "read_model", lambda path, **options: direct)
    (folder / "edgetqs.toml").write_text(suggest(direct, folder / "m.keras"))
    assert load_project(None, None).forecaster == direct


def test_suggestion_names_the_model_file(folder):
    assert tomllib.loads(suggest(FORECASTER, folder / "m.keras"))["model"]["file"] == "m.keras"


# ---- Data ----

ROWS = np.array([[1.5, 2, 3], [4, 5.25, 6], [7, 8, -9e-3]])


def csv(tmp_path: Path, text: str | bytes) -> Path:
    path = tmp_path / "data.csv"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


@pytest.mark.parametrize(
    "text",
    [
        "x0,x1,x2\n1.5,2,3\n4,5.25,6\n7,8,-9e-3\n",
        "\ufeffx0,x1,x2\n1.5,2,3\n4,5.25,6\n7,8,-9e-3",
        "x0, x1 ,x2\r\n1.5, 2,3\r\n4,5.25,6\r\n7,8,-9e-3\r\n",
        "time,x2,x0,note,x1\nmon,3,1.5,a,2\ntue,6,4,b,5.25\nwed,-9e-3,7,c,8\n",
    ],
    ids=["plain", "byte order mark", "spaces and CRLF", "other columns and order"],
)
def test_csv(tmp_path, text):
    values = read_data(csv(tmp_path, text), FORECASTER)
    assert values.dtype == np.float64
    assert np.array_equal(values, ROWS)


def test_csv_of_one_sample_or_one_input(tmp_path):
    assert read_data(csv(tmp_path, "x0,x1,x2\n1,2,3\n"), FORECASTER).shape == (1, 3)
    single = random_forecaster("rnn", 2, 1, 1)
    assert read_data(csv(tmp_path, "x0\n1\n2\n"), single).tolist() == [[1], [2]]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("x0,x2\n1,2\n", "no column x1"),
        ("a,b\n1,2\n", "no column x0, x1, x2"),
        ("", "no column x0, x1, x2"),
        ("x0,x1,x2\n1,2,3\n1,nan,3\n", "sample 1 of 'x1'"),
        ("x0,x1,x2\n1,2,-inf\n", "sample 0 of 'x2'"),
        ("x0,x1,x2\n1,,3\n", "data.csv"),
        ("x0,x1,x2\n1,two,3\n", "two"),
        ("x0,x1,x2\n1,2\n", "data.csv"),
        ("x0,x1,x2\n", "no samples"),
        (b"x0,x1,x2\n\xff,2,3\n", "data.csv"),
    ],
)
@pytest.mark.filterwarnings("error")
def test_mistakes_in_a_csv(tmp_path, text, said):
    with pytest.raises(BadInput) as caught:
        read_data(csv(tmp_path, text), FORECASTER)
    assert said in str(caught.value)
    assert "data.csv" in str(caught.value)


def npz(tmp_path: Path, **arrays: np.ndarray) -> Path:
    path = tmp_path / "data.npz"
    np.savez(path, **arrays)
    return path


def test_npz(tmp_path):
    assert np.array_equal(read_data(npz(tmp_path, x=ROWS.astype(np.float64)), FORECASTER), ROWS)
    named = dict(zip(("x2", "x0", "x1"), ROWS[:, [2, 0, 1]].T, strict=True))
    assert np.array_equal(read_data(npz(tmp_path, **named, more=np.zeros(9)), FORECASTER), ROWS)
    assert read_data(npz(tmp_path, x=np.ones((4, 3), np.int16)), FORECASTER).dtype == np.float64


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"x": np.zeros((3, 2))}, "x0"),
        ({"x0": np.zeros(3), "x1": np.zeros(3)}, "x2"),
        ({"x0": np.zeros(3), "x1": np.zeros(3), "x2": np.zeros(4)}, "shape"),
        ({name: np.zeros((3, 2)) for name in ("x0", "x1", "x2")}, "one value a sample"),
        ({"x": np.full((2, 3), np.nan)}, "sample 0 of 'x0'"),
        ({"x": np.array([["a", "b", "c"]])}, "a"),
        ({"x": np.array([[None, None, None]])}, "data.npz"),
        ({"x": np.zeros((0, 3))}, "no samples"),
    ],
)
def test_mistakes_in_an_npz(tmp_path, arrays, said):
    with pytest.raises(BadInput) as caught:
        read_data(npz(tmp_path, **arrays), FORECASTER)
    assert said in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 not really", b"text", b"\x93NUMPY\x01\x00"])
def test_files_that_are_no_npz(tmp_path, content):
    path = tmp_path / "data.npz"
    path.write_bytes(content)
    with pytest.raises(BadInput, match=r"data\.npz"):
        read_data(path, FORECASTER)


@pytest.mark.parametrize("name", ["nowhere.csv", "nowhere.npz"])
def test_missing_data(tmp_path, name):
    with pytest.raises(BadInput, match="nowhere"):
        read_data(tmp_path / name, FORECASTER)


def test_the_window_of_a_windowed_model_is_its_own(folder, monkeypatch):
    forecaster = forecaster_of(WINDOWED["flatten"], STEPS, FEATURES)
    monkeypatch.setattr(project, "read_model", lambda path, **options: forecaster)
    assert mistakes(folder, '[model]\nfile = "m.keras"\nwindow = 4') == [
        f"model.window: must be {STEPS}: the model looks at that many samples at once"
    ]
    assert loaded(folder, f'[model]\nfile = "m.keras"\nwindow = {STEPS}').forecaster.window == STEPS
