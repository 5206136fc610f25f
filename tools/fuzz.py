"""Coverage-guided fuzzing of everything that edgetqs reads.

``make fuzz`` runs every reader for FUZZ_SECONDS (600); ``tools/fuzz.py READER SECONDS`` runs one. It starts from
``tests/corpus/READER``, keeps what reaches new code in ``build/fuzz/READER`` and puts inputs that it fails on, one a
place, into ``build/fuzz/READER-found``. A reader fails by an exception that is no ``EdgeTqsError``, by taking longer
than 5 s, or by more than 1 GB. What still fails when it is replayed makes the exit code 1.

``tools/fuzz.py --replay READER FOLDER`` runs a reader on the files of a folder, without atheris; ``tests/test_fuzz.py``
does it with ``tests/corpus``. ``tools/fuzz.py --grow READER`` adds to that corpus the smallest inputs of ``build/fuzz``
that together reach all code.
"""

from __future__ import annotations

import atexit
import hashlib
import io
import json
import random
import resource
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
CORPUS, WORK = ROOT / "tests" / "corpus", ROOT / "build" / "fuzz"
LONGEST_S, MOST_MB, LONGEST_MESSAGE = 5.0, 1024, 20_000
#: Bytes of what --grow adds, and of one input.
GROWN_BYTES, FILE_BYTES = 20_000, 20_000
#: Parts of an assembled .keras file: configuration, weights.
SEAM = b"\n\0\n"


@dataclass
class Readers:
    """Every reader as a function of a file's bytes; ``folder`` is where files are put for those that want a path."""

    folder: Path
    table: dict[str, Callable[[bytes], Any]] = field(init=False)

    def __post_init__(self) -> None:
        sys.path.insert(0, str(ROOT / "tests"))
        from files import save_keras
        from models import random_forecaster

        from edgetqs.planner import granularity_of, read_plan
        from edgetqs.project import load_project, read_data
        from edgetqs.read_keras import read_keras
        from edgetqs.read_tflite import read_content
        from edgetqs.target import load_target
        from edgetqs.tflite_weights import read_contents
        from edgetqs.tqs import score

        forecaster = random_forecaster(kind="rnn", units=2, inputs=2, layers=1, window=4)
        save_keras(forecaster, self.folder / "model.keras")
        scores = score(forecaster, 2, "tensor")

        def plan(data: bytes) -> Any:
            path = self.file("plan.json", data)
            granularity_of(path)
            return read_plan(path, forecaster, scores, "portable")

        self.table = {
            "keras": lambda data: read_keras(self.file("fuzzed.keras", assembled(data))),
            "h5": lambda data: read_keras(self.file("fuzzed.h5", data)),
            "tflite": lambda data: read_content(data, "fuzzed.tflite", "fuzzed"),
            "black-box": lambda data: read_contents(data, "fuzzed.tflite"),
            "project": lambda data: load_project(None, self.file("edgetqs.toml", data)),
            "target": lambda data: load_target(self.file("fuzzed.toml", data)),
            "plan": plan,
            "csv": lambda data: read_data(self.file("fuzzed.csv", data), forecaster),
            "npz": lambda data: read_data(self.file("fuzzed.npz", data), forecaster),
        }

    def file(self, name: str, data: bytes) -> Path:
        path = self.folder / name
        path.write_bytes(data)
        return path

    def failure(self, name: str, data: bytes) -> str:
        """What is wrong with how the reader takes ``data``: one line, "" for nothing."""
        from edgetqs.errors import EdgeTqsError

        start = time.process_time()
        try:
            self.table[name](data)
        except EdgeTqsError as error:
            said = str(error)
            if not error.what or len(said) > LONGEST_MESSAGE:
                return f"an error of {len(said) // 1000} thousand characters: {error.what[:80]}"
            if not said.replace("\n", "").isprintable():
                return f"an error that is not printable, from {_places(error)}: {said[:200]!r}"
        except Exception as error:
            return f"{type(error).__name__} at {_places(error)}: {str(error)[:100]}"
        taken = time.process_time() - start
        return f"takes: {taken:.1f} s" if taken > LONGEST_S else ""


def _places(error: Exception) -> str:
    """Where it was raised, and the last line of ours before."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if "edgetqs" in frame.filename]
    return ", ".join(dict.fromkeys(f"{Path(one.filename).name} {one.lineno}" for one in (frames[-1], *ours[-1:])))


def assembled(data: bytes) -> bytes:
    """A whole archive, or one around a configuration and weights: checksums are no hurdle then."""
    config, seam, weights = data.partition(SEAM)
    if not seam:
        return data
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in (
            ("metadata.json", b'{"keras_version": "3.9.2"}'),
            ("config.json", config),
            ("model.weights.h5", weights),
        ):
            archive.writestr(zipfile.ZipInfo(name), content)
    return buffer.getvalue()


def changed_json(data: bytes, chance: random.Random) -> bytes:
    """A value of a JSON document in another's place, or exchanged, left out or doubled."""
    head, seam, tail = data.partition(SEAM)
    try:
        table = json.loads(head)
    except (ValueError, RecursionError):
        return data
    places: list[tuple[Any, Any]] = []

    def walk(value: Any) -> None:
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            places.append((value, key))
            if isinstance(inner, (dict, list)):
                walk(inner)

    if not isinstance(table, (dict, list)):
        return data
    walk(table)
    for _ in range(chance.choice((1, 1, 2, 4)) if places else 0):
        holder, key = chance.choice(places)
        other, place = chance.choice(places)
        odd = (
            None,
            True,
            -1,
            0,
            1,
            3,
            1e308,
            float("nan"),
            1 << 40,
            "",
            "x",
            "linear",
            [],
            {},
            [1],
            {"class_name": "x"},
        )
        try:
            match chance.randrange(4):
                case 0:
                    holder[key] = chance.choice(odd)
                case 1:
                    holder[key] = json.loads(json.dumps(other[place]))
                case 2:
                    holder.pop(key)
                case _:
                    holder[key] = [holder[key], holder[key]]
        except (IndexError, KeyError, ValueError, RecursionError):  # the place went with another
            continue
    return json.dumps(table).encode() + seam + tail


def fuzz(name: str, options: list[str]) -> int:
    """Runs libFuzzer, which ends the process."""
    import atheris

    with atheris.instrument_imports(include=["edgetqs", "tomllib", "flatbuffers"]):
        temporary = tempfile.mkdtemp(prefix="edgetqs-fuzz-")
        atexit.register(shutil.rmtree, temporary, ignore_errors=True)
        readers = Readers(Path(temporary))
    found, seen = WORK / f"{name}-found", set()

    def one(data: bytes) -> None:
        failure = readers.failure(name, data)
        place = failure.partition(": ")[0]
        if failure and place not in seen:
            seen.add(place)
            path = found / hashlib.sha256(data).hexdigest()[:12]
            path.write_bytes(data)
            print(f"FOUND {failure} ({path})", flush=True)

    def mutated(data: bytes, most: int, seed: int) -> bytes:
        chance = random.Random(seed)
        if name in ("keras", "plan") and chance.random() < 0.5:
            return changed_json(data, chance)[:most]
        return bytes(atheris.Mutate(data, most))

    limits = [f"-timeout={4 * int(LONGEST_S)}", f"-rss_limit_mb={MOST_MB}", f"-max_len={FILE_BYTES}"]
    again = f"{sys.executable} {__file__} --inner {name}"  # how a merge starts its parts
    arguments = [again, *limits, f"-artifact_prefix={found}/", *options]
    atheris.Setup(arguments, one, custom_mutator=mutated)
    atheris.Fuzz()
    return 1


def replay(name: str, folder: Path) -> int:
    """The reader on every file: 1 if it fails on one or takes too much memory."""
    failures = []
    with tempfile.TemporaryDirectory() as temporary:
        readers = Readers(Path(temporary))
        paths = sorted(folder.iterdir())
        for path in paths:
            failure = readers.failure(name, path.read_bytes())
            if failure:
                failures.append(f"{path}: {failure}")
    peak_mb = _peak_mb()
    if peak_mb > MOST_MB:
        failures.append(f"{folder}: takes {peak_mb} MB")
    print(*failures, f"{name}: {len(paths)} files, {len(failures)} failures, {peak_mb} MB", sep="\n", flush=True)
    return 1 if failures else 0


def _peak_mb() -> int:
    """Of this program alone: getrusage counts what the one that started it held."""
    status = Path("/proc/self/status")
    if not status.is_file():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    peak = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
    return int(peak.split()[1]) // 1024


def every(seconds: int) -> int:
    """One reader after the other, each in processes of its own."""
    bad = []
    with tempfile.TemporaryDirectory() as temporary:
        names = list(Readers(Path(temporary)).table)
    for name in names:
        print(f"--- {name}", flush=True)
        subprocess.run([sys.executable, __file__, name, str(seconds)], check=False)
        command = [sys.executable, __file__, "--replay", name, str(WORK / f"{name}-found")]
        if subprocess.run(command, check=False).returncode:
            bad.append(name)
    print(f"found something in: {', '.join(bad)}" if bad else "nothing found")
    return 1 if bad else 0


def grow(name: str) -> int:
    """Add the smallest inputs that reach all the code that the fuzzer has reached, as far as they fit."""
    with tempfile.TemporaryDirectory() as temporary:
        command = [sys.executable, __file__, "--merge", name, temporary]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        room = GROWN_BYTES
        for path in sorted(Path(temporary).iterdir(), key=lambda path: (path.stat().st_size, path.name)):
            room -= path.stat().st_size
            if room < 0:
                break
            (CORPUS / name / path.name[:12]).write_bytes(path.read_bytes())
    print(f"{name}: {GROWN_BYTES - max(room, 0)} bytes")
    return 0


def main() -> int:
    match sys.argv[1:]:
        case ["--all", seconds]:
            return every(int(seconds))
        case ["--replay", name, folder]:
            return replay(name, Path(folder))
        case ["--grow", name]:
            return grow(name)
        case ["--merge", name, out]:
            return fuzz(name, ["-merge=1", out, str(WORK / name)])
        case ["--inner", name, *options]:
            return fuzz(name, options)
        case [name, seconds]:
            (WORK / name).mkdir(parents=True, exist_ok=True)
            (WORK / f"{name}-found").mkdir(exist_ok=True)
            return fuzz(name, [f"-max_total_time={seconds}", str(WORK / name), str(CORPUS / name)])
    print(__doc__)
    return 2


if __name__ == "__main__":
    sys.exit(main())
