"""Saved Keras models as containers: what stands in the file, safely.

A ``.keras`` file is a zip of two JSON documents and an HDF5 file; a ``.h5``
file is HDF5 with the configuration in an attribute. Files come from strangers,
so nothing here runs code, follows a link or trusts a size: HDF5 sees bytes in
memory only, and every declared size is held against what is really stored.
"""

from __future__ import annotations

import io
import json
import math
import re
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edgetqs.errors import BadInput, Unsupported

if TYPE_CHECKING:
    import h5py

MAX_FILE_BYTES = 512 << 20
MAX_CONFIG_BYTES = 16 << 20
MAX_NESTING = 64
MAX_NAMES = 100_000

#: Keras stores without compression; a zip that was packed again stays below this ratio.
MAX_EXPANSION = 100
EXPANSION_FLOOR_BYTES = 1 << 20

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
    if data.startswith(b"\x89HDF\r\n\x1a\n"):
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
    with _hdf5(weights, f"{where}: model.weights.h5") as root:
        # Keras 2.12 on Windows wrote whole paths with backslashes into one name.
        sparse = any(name.startswith("_layer_checkpoint_dependencies") for name in root)
        top = "_layer_checkpoint_dependencies" if sparse else "layers"
        names = {re.split(r"[/\\]", name)[1] for name in root if re.match(rf"{top}\\.", name)}
        names.update(_group(root, (top,)) or ())
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


def _variables(root: h5py.Group, top: str, name: str) -> Iterator[Tensor]:
    for part in PARTS:
        steps = (top, name, *part.split("/")) if part else (top, name)
        group = _group(root, (*steps, "vars")) or _group(root, ("\\".join(steps), "vars"))
        if group is not None:
            for key in sorted(group, key=lambda key: (len(key), key)):  # "0", "1", ... "10"
                yield _tensor(group, key, "/".join((*steps[1:], key)))


# --- .h5 ------------------------------------------------------------------


def _parse_h5(data: bytes, where: str) -> KerasFile:
    with _hdf5(data, where) as root:
        if "model_config" not in root.attrs:
            raise Unsupported("this file holds weights only, not the layers they belong to", where, SAVE_AGAIN)
        (text,) = _strings(root, "model_config", where)
        config = _json(text, where)
        weights = _group(root, ("model_weights",))
        if weights is None:
            raise BadInput("there is no group model_weights", where, SAVE_AGAIN)
        version = None
        for holder in (root, weights):
            if version is None and "keras_version" in holder.attrs:
                (version,) = _strings(holder, "keras_version", where)
        layers = _strings(weights, "layer_names", where)
        groups = _collect(((layer, _named(weights, layer, where)) for layer in layers), len(data), where)
    # Keras 1 and early Keras 2 left the version out.
    return KerasFile(config, _major(version) or 2, groups, by_name=True)


def _named(weights: h5py.Group, layer: str, where: str) -> Iterator[Tensor]:
    group = _group(weights, layer.split("/"))
    if group is None:
        raise BadInput(f"the weights of layer {layer!r} are missing", where, SAVE_AGAIN)
    for name in _strings(group, "weight_names", where):
        yield _tensor(group, name, name)


def _strings(holder: h5py.Group, name: str, where: str) -> list[str]:
    """A text attribute, or the pieces ``name0``, ``name1``, ... that Keras splits a long list into."""
    import h5py

    names = [name] if name in holder.attrs else []
    while f"{name}{len(names)}" in holder.attrs and names != [name]:
        names.append(f"{name}{len(names)}")
    if not names:
        raise BadInput(f"the attribute {name} is missing", where, SAVE_AGAIN)
    strings: list[str] = []
    for piece in names:
        stored = holder.attrs.get_id(piece)
        count = math.prod(stored.shape or ())
        if count == 0:
            continue
        is_text = h5py.check_string_dtype(stored.dtype) is not None
        if not is_text or count > MAX_NAMES or count * stored.dtype.itemsize > MAX_CONFIG_BYTES:
            raise BadInput(f"the attribute {piece} is not text of a sensible size", where, DAMAGED)
        for item in np.asarray(holder.attrs[piece]).ravel().tolist():
            strings.append(item.decode() if isinstance(item, bytes) else str(item))
    if name in ("model_config", "keras_version") and len(strings) != 1:
        raise BadInput(f"the attribute {name} holds {len(strings)} texts", where, DAMAGED)
    return strings


# --- HDF5 -----------------------------------------------------------------


@contextmanager
def _hdf5(data: bytes, where: str) -> Iterator[h5py.File]:
    """An open HDF5 file over ``data``; whatever HDF5 trips over becomes BadInput."""
    import h5py  # 0.15 s that a command without a model need not pay

    try:
        with h5py.File(h5py.h5f.open_file_image(data)) as root:
            yield root
    except (KeyError, OSError, RuntimeError, ValueError, TypeError, OverflowError, MemoryError) as error:
        raise BadInput(f"HDF5 cannot read it: {error}", where, DAMAGED) from error


def _collect(
    groups: Iterable[tuple[str, Iterator[Tensor]]], limit_bytes: int, where: str
) -> dict[str, tuple[Tensor, ...]]:
    """All tensors, unless they are more than the file itself: one array under many names."""
    collected: dict[str, tuple[Tensor, ...]] = {}
    total_bytes = 0
    for name, tensors in groups:
        kept = []
        for tensor in tensors:
            total_bytes += tensor.values.nbytes
            if total_bytes > limit_bytes:
                raise BadInput("the weights claim to be larger than the file", where, DAMAGED)
            kept.append(tensor)
        collected[name] = tuple(kept)
    return collected


def _group(root: h5py.Group, steps: tuple[str, ...] | list[str]) -> h5py.Group | None:
    """The group below ``root``, reached by hard links only; None where there is none."""
    import h5py

    for step in steps:
        child = _child(root, step)
        if not isinstance(child, h5py.Group):
            return None
        root = child
    return root


def _child(group: h5py.Group, name: str) -> h5py.Group | h5py.Dataset | None:
    import h5py

    links, key = group.id.links, name.encode()
    if name in ("", ".") or not links.exists(key):
        return None
    # Asked of the link itself: ``name in group`` would already open an external file.
    if links.get_info(key).type != h5py.h5l.TYPE_HARD:
        raise BadInput(f"{name!r} is a link out of its place, which Keras never writes", group.name, SAVE_AGAIN)
    return group[name]


def _tensor(group: h5py.Group, path: str, name: str) -> Tensor:
    import h5py

    *steps, last = path.split("/")
    parent = _group(group, steps)
    dataset = None if parent is None else _child(parent, last)
    if not isinstance(dataset, h5py.Dataset):
        raise BadInput("the weights are missing", f"{group.name}/{path}", SAVE_AGAIN)
    layout = dataset.id.get_create_plist()
    plain = layout.get_layout() in (h5py.h5d.CONTIGUOUS, h5py.h5d.COMPACT) and layout.get_external_count() == 0
    if not plain or dataset.dtype.kind not in "fiuV" or dataset.shape is None:
        raise BadInput("stored in a way that Keras never writes", dataset.name, SAVE_AGAIN)
    size_bytes = math.prod(dataset.shape) * dataset.dtype.itemsize
    if size_bytes != dataset.id.get_storage_size() or size_bytes > group.file.id.get_filesize():
        raise BadInput(f"shape {dataset.shape} does not fit what is stored", dataset.name, DAMAGED)
    return Tensor(name, dataset[()])


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
