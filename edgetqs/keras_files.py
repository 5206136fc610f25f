"""Saved Keras models as containers: what stands in the file, safely.

A ``.keras`` file is a zip of two JSON documents and an HDF5 file; a ``.h5``
file is HDF5 with the configuration in an attribute. Files come from strangers,
so nothing here runs code, follows a link or trusts a size.
"""

from __future__ import annotations

import io
import itertools
import json
import re
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from edgetqs.errors import BadInput, Unsupported
from edgetqs.hdf5 import SIGNATURE, Group, Hdf5

MAX_FILE_BYTES = 512 << 20
MAX_CONFIG_BYTES = 16 << 20
MAX_NESTING = 64

#: Keras stores without compression; a zip that was packed again stays below this ratio.
MAX_EXPANSION = 100
EXPANSION_FLOOR_BYTES = 1 << 20

#: The least that one dataset takes in HDF5, its header and its entry in a group.
OBJECT_BYTES = 256

SAVE_AGAIN = "Save the model again with model.save('model.keras')."
DAMAGED = f"The file is damaged or was cut short. {SAVE_AGAIN}"

#: Where a layer of a .keras file keeps its variables, in the order of layer.weights.
PARTS = ("", "cell", "layer", "forward_layer/cell", "backward_layer/cell")


@dataclass(frozen=True, slots=True)
class Tensor:
    name: str
    values: NDArray[Any]


@dataclass(frozen=True, slots=True)
class KerasFile:
    """The parsed configuration and, by group, the stored weights.

    Groups of a .h5 file are layer names. Groups of a .keras file are class
    names in snake case with a counter, which says nothing about layer names;
    TensorFlow 2.12 counted layers with weights twice, so there only the order
    counts (``sparse``).
    """

    config: dict[str, Any]
    keras_major: int
    groups: dict[str, tuple[Tensor, ...]]
    by_name: bool
    sparse: bool = False


def parse(data: bytes, where: str) -> KerasFile:
    """The container in ``data``. Raises BadInput (damaged, hostile) or Unsupported (weights only)."""
    if data.startswith(b"PK\x03\x04"):
        return _parse_zip(data, where)
    if data.startswith(SIGNATURE):
        return _parse_h5(data, where)
    raise BadInput("this is neither a .keras file nor an HDF5 file", where, SAVE_AGAIN)


def read_bytes(path: Path) -> bytes:
    """The file's bytes. Raises BadInput if it is missing, empty, a folder or too large."""
    where = str(path)
    try:
        if path.is_dir():
            raise BadInput("this is a folder (a SavedModel?)", where, SAVE_AGAIN)
        if not path.is_file():
            raise BadInput("there is no such file", where, "Check the path of the model.")
        size_bytes = path.stat().st_size
        if size_bytes > MAX_FILE_BYTES:
            raise BadInput(f"{size_bytes} bytes are more than any microcontroller's model", where)
        with path.open("rb") as file:
            data = file.read(MAX_FILE_BYTES)
    except OSError as error:
        raise BadInput(f"cannot be read: {error.strerror or error}", where) from error
    if not data:
        raise BadInput("the file is empty", where, SAVE_AGAIN)
    return data


# --- .keras ---------------------------------------------------------------


def _parse_zip(data: bytes, where: str) -> KerasFile:
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members = {info.filename: info for info in archive.infolist()}
            if len(members) != len(archive.infolist()):
                raise BadInput("the archive holds two members of one name", where, SAVE_AGAIN)
            if "model.weights.h5" not in members:
                raise BadInput("the archive holds no model.weights.h5", where, SAVE_AGAIN)
            metadata = _json(_member(archive, members, "metadata.json", MAX_CONFIG_BYTES, where), where)
            config = _json(_member(archive, members, "config.json", MAX_CONFIG_BYTES, where), where)
            weights = _member(archive, members, "model.weights.h5", MAX_FILE_BYTES, where)
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, ValueError, RuntimeError) as error:
        raise BadInput(f"the archive cannot be read: {error}", where, DAMAGED) from error
    major = _major(metadata.get("keras_version"))
    if major is None:
        raise BadInput("metadata.json names no keras_version", where, SAVE_AGAIN)
    root = Hdf5(weights, f"{where}: model.weights.h5").root
    sparse = not any(name == "layers" or name.startswith("layers\\") for name in root)
    top = "_layer_checkpoint_dependencies" if sparse else "layers"
    # Keras 2.12 on Windows wrote whole paths with backslashes into one name.
    names = {re.split(r"[/\\]", name)[1] for name in root if re.match(rf"{top}\\.", name)}
    names.update(root.group(top) or ())
    groups = _collect(((name, _variables(root, top, name)) for name in sorted(names)), len(weights), where)
    return KerasFile(config, major, groups, by_name=False, sparse=sparse)


def _member(
    archive: zipfile.ZipFile, members: dict[str, zipfile.ZipInfo], name: str, limit_bytes: int, where: str
) -> bytes:
    where = f"{where}: {name}"
    info = members.get(name)
    if info is None:
        raise BadInput("missing from the archive", where, SAVE_AGAIN)
    if info.flag_bits & 1:
        raise BadInput("encrypted", where, SAVE_AGAIN)
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise BadInput(f"packed by method {info.compress_type}, which Keras never writes", where, SAVE_AGAIN)
    if info.file_size > limit_bytes:
        raise BadInput(f"{info.file_size} bytes are too many", where)
    if info.file_size > max(EXPANSION_FLOOR_BYTES, MAX_EXPANSION * info.compress_size):
        raise BadInput(f"{info.compress_size} bytes claim to unpack to {info.file_size}: a zip bomb", where)
    with archive.open(info) as file:
        return file.read(limit_bytes)  # ZipExtFile stops at the declared size and checks the sum


def _variables(root: Group, top: str, name: str) -> Iterator[Tensor]:
    for part in PARTS:
        steps = (top, name, *part.split("/")) if part else (top, name)
        group = root.group(*steps, "vars") or root.group("\\".join(steps), "vars")
        if group is None:
            continue
        for key in sorted(group, key=lambda key: (len(key), key)):  # "0", "1", ... "10"
            yield _tensor(group, (key,), "/".join((*steps[1:], key)))


# --- .h5 ------------------------------------------------------------------


def _parse_h5(data: bytes, where: str) -> KerasFile:
    root = Hdf5(data, where).root
    text = root.strings("model_config")
    if not text:
        raise Unsupported("this file holds weights only, not the layers they belong to", where, SAVE_AGAIN)
    weights = root.group("model_weights")
    if weights is None:
        raise BadInput("there is no group model_weights", where, SAVE_AGAIN)
    version = root.strings("keras_version") or weights.strings("keras_version") or [""]
    layers = _list(weights, "layer_names", where)
    groups = _collect(((layer, _named(weights, layer, where)) for layer in layers), len(data), where)
    # Keras 1 and early Keras 2 left the version out.
    return KerasFile(_json(text[0], where), _major(version[0]) or 2, groups, by_name=True)


def _named(weights: Group, layer: str, where: str) -> Iterator[Tensor]:
    group = weights.group(*layer.split("/"))
    if group is None:
        raise BadInput(f"the weights of layer {layer!r} are missing", where, SAVE_AGAIN)
    for name in _list(group, "weight_names", where):
        yield _tensor(group, tuple(name.split("/")), name)


def _list(group: Group, name: str, where: str) -> list[str]:
    """A list of names, or the pieces ``name0``, ``name1``, ... that Keras splits a long one into."""
    names = group.strings(name)
    if names is not None:
        return names
    names = []
    piece = group.strings(f"{name}0")
    if piece is None:
        raise BadInput(f"the attribute {name} of {group.path!r} is missing", where, SAVE_AGAIN)
    for count in itertools.count(1):
        names += piece
        piece = group.strings(f"{name}{count}")
        if piece is None:
            break
    return names


# --- both -----------------------------------------------------------------


def _tensor(group: Group, path: tuple[str, ...], name: str) -> Tensor:
    values = group.dataset(*path)
    if values is None:
        raise BadInput(f"the weights {name!r} are missing", group.file.where, SAVE_AGAIN)
    return Tensor(name, values)


def _collect(
    groups: Iterable[tuple[str, Iterator[Tensor]]], limit_bytes: int, where: str
) -> dict[str, tuple[Tensor, ...]]:
    """All tensors, unless they claim more than the file holds: one array under many names."""
    collected: dict[str, tuple[Tensor, ...]] = {}
    total_bytes = 0
    for name, tensors in groups:
        kept = []
        for tensor in tensors:
            total_bytes += max(tensor.values.nbytes + len(tensor.name), OBJECT_BYTES)
            if total_bytes > limit_bytes:
                raise BadInput("the weights claim to be larger than the file", where, DAMAGED)
            kept.append(tensor)
        collected[name] = tuple(kept)
    return collected


# --- text -----------------------------------------------------------------


def _json(text: str | bytes, where: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BadInput(f"the configuration is not JSON: {error}", where, DAMAGED) from error
    if not isinstance(value, dict):
        raise BadInput("the configuration is not a JSON object", where, DAMAGED)
    level: list[Any] = [value]
    for _ in range(MAX_NESTING):
        inner = [parent.values() if isinstance(parent, dict) else parent for parent in level]
        level = [child for children in inner for child in children if isinstance(child, (dict, list))]
    if level:
        raise BadInput(f"the configuration is nested deeper than {MAX_NESTING} levels", where, DAMAGED)
    return value


def _major(version: object) -> int | None:
    found = re.match(r"(\d{1,3})\.", version) if isinstance(version, str) else None
    return int(found.group(1)) if found else None
