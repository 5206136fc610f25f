"""How the package hangs together: which module may import which, what an import costs."""

import ast
import functools
import graphlib
import itertools
import subprocess
import sys
import time
from pathlib import Path

import pytest

import edgetqs

PACKAGE = Path(edgetqs.__file__).parent
SOURCES = sorted(PACKAGE.glob("*.py"))
#: The pipeline by its public stages; none may know one behind it.
STAGES = "model read project tqs planner reference quantizer write_tflite emit_c pipeline cli".split()
#: Who may start processes.
STARTERS = {"firmware", "stack", "emulate", "saved_model", "transport", "flash", "ssh"}
#: A program that is run beside the package, and imported by nothing.
PROGRAMS = {"convert_saved_model"}
EVERYWHERE = {"__init__", "__main__"}


def imported(path: Path) -> set[str]:
    """Full names of all that a module imports anywhere, also inside functions."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}: relative import"
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


@functools.cache
def graph() -> dict[str, set[str]]:
    modules = {path.stem for path in SOURCES} - EVERYWHERE
    return {
        path.stem: {name.split(".")[1] for name in imported(path) if name.startswith("edgetqs.")} & modules
        for path in SOURCES
        if path.stem in modules
    }


def reach(module: str) -> set[str]:
    found, pending = set(), {module}
    while pending:
        found |= pending
        pending = set().union(*(graph()[name] for name in pending)) - found
    return found


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout


def test_the_graph_sees_the_package():
    assert graph()["tqs"] >= {"model", "rollout", "trajectories", "units"}
    assert graph()["read"] >= {"read_keras"}  # imported inside a function


def test_imports_make_no_circle():
    graphlib.TopologicalSorter(graph()).prepare()


@pytest.mark.parametrize(("early", "late"), list(itertools.combinations(STAGES, 2)))
def test_no_stage_knows_one_behind_it(early, late):
    assert late not in reach(early)


def test_nobody_imports_the_command_line():
    assert {name for name, used in graph().items() if used & {"cli", "show"}} <= {"cli"}


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.stem)
def test_nothing_imports_tensorflow(path):
    if path.stem in PROGRAMS:
        assert not any(path.stem in used for used in graph().values())
        return
    assert not {name.split(".")[0] for name in imported(path)} & {"tensorflow", "keras", "tf_keras", "tflite_runtime"}


@pytest.mark.parametrize("module", ["edgetqs", "edgetqs.pipeline", "edgetqs.cli", "edgetqs.read_keras"])
def test_tensorflow_is_not_loaded_by_others_either(module):
    loaded = run(f"import sys, {module}; print(*sys.modules)").split()
    assert not {name.split(".")[0] for name in loaded} & {"tensorflow", "keras"}


def test_the_package_loads_nothing_before_it_is_used():
    loaded = run("import sys, edgetqs; print(*sys.modules)").split()
    assert not {name.split(".")[0] for name in loaded} & {"numpy", "scipy", "h5py", "ai_edge_litert", "rich", "click"}


def test_import_takes_less_than_300_ms():
    def once() -> float:
        start = time.perf_counter()
        run("import edgetqs")
        return time.perf_counter() - start

    assert min(once() for _ in range(3)) < 0.3


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.stem)
def test_few_modules_start_processes(path):
    starts = {"subprocess", "os.system", "os.popen", "pty", "multiprocessing"} & imported(path)
    text = path.read_text(encoding="utf-8")
    assert not starts or path.stem in STARTERS
    assert "os.system" not in text
    assert "os.exec" not in text


@pytest.mark.parametrize("path", [*SOURCES, *sorted((PACKAGE / "runtime").glob("*.[ch]"))], ids=lambda path: path.name)
def test_no_module_is_longer_than_400_lines(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 400


@pytest.mark.parametrize("name", [name for name in edgetqs.__all__ if name != "__version__"])
def test_public_functions_are_there_whatever_was_imported(name):
    code = f"import edgetqs, edgetqs.cli, edgetqs.pipeline; f = edgetqs.{name}; print(callable(f), f.__name__)"
    assert run(code).split() == ["True", name]


def test_public_names():
    assert set(edgetqs.__all__) == {"__version__", "load", "score", "plan", "quantize", "build"}
    with pytest.raises(AttributeError, match="nothing"):
        _ = edgetqs.nothing


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.stem)
def test_every_module_says_what_it_is(path):
    assert ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
