"""The part of HDF5 that Keras writes, read from bytes.

Why not libhdf5: it trusts its input. Among 16,000 copies of a small model with
a few bytes changed, HDF5 1.14.6 looped for ever on one in some thousands (a
global heap object of size 0) and on others asked for 4 GB before it noticed.
Here every offset is checked against the file, every walk ends, and nothing is
allocated but views of the bytes.

Read: superblock version 0, object headers version 1, symbol table groups,
attributes, contiguous and compact datasets: all that h5py writes by default.
Links, chunks, filters, external storage and later structures are refused.
Source: "HDF5 File Format Specification Version 3.0", sections named below.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgetqs.errors import BadInput

SIGNATURE = b"\x89HDF\r\n\x1a\n"

_DATASPACE, _DATATYPE, _EXTERNAL, _LAYOUT, _ATTRIBUTE, _CONTINUATION, _SYMBOL_TABLE = 1, 3, 7, 8, 12, 16, 17
_FIXED_POINT, _FLOATING_POINT, _STRING, _VARIABLE_LENGTH = 0, 1, 3, 9
_COMPACT, _CONTIGUOUS = 0, 1
_SOFT_LINK = 2
_SHARED = 2
_MAX_RANK = 32
_MAX_NAME = 1 << 16

#: A model of a hundred layers takes some ten thousand.
MAX_STEPS = 2_000_000

#: (bit offset, precision, exponent location and size, mantissa location and size, bias)
_IEEE = {
    (0, 16, 10, 5, 0, 10, 15): "f2",
    (0, 32, 23, 8, 0, 23, 127): "f4",
    (0, 64, 52, 11, 0, 52, 1023): "f8",
}


class Hdf5:
    """An HDF5 file in memory. ``where`` names it in errors."""

    def __init__(self, data: bytes, where: str) -> None:
        self.data = data
        self.where = where
        self._steps = 0

    @property
    def root(self) -> Group:
        if not self.data.startswith(SIGNATURE):
            raise self.damaged("the signature of HDF5 is missing")
        superblock, _, table, _, _, offsets, lengths = self.unpack("<7B", 8)  # II.A
        (base,) = self.unpack("<Q", 24)
        if (superblock, table, offsets, lengths, base) != (0, 0, 8, 8, 0):
            raise self.foreign(f"superblock version {superblock}")
        (header,) = self.unpack("<Q", 64)
        return Group(self, header, "")

    def unpack(self, layout: str, offset: int) -> tuple[Any, ...]:
        self._steps += 1
        if self._steps > MAX_STEPS:
            raise self.damaged("its structures refer to each other without end")
        if offset + struct.calcsize(layout) > len(self.data):
            raise self.damaged(f"it ends before offset {offset}")
        return struct.unpack_from(layout, self.data, offset)

    def read(self, offset: int, size: int) -> bytes:
        if offset + size > len(self.data):
            raise self.damaged(f"it ends before offset {offset + size}")
        return self.data[offset : offset + size]

    def expect(self, signature: bytes, offset: int) -> None:
        if self.read(offset, len(signature)) != signature:
            raise self.damaged(f"{signature[:4].decode()} is missing at offset {offset}")

    def messages(self, header: int) -> Iterator[tuple[int, int, bytes]]:
        """(type, flags, content) of an object header's messages (IV.A.1.a)."""
        version, _, count, _, size = self.unpack("<BBHII", header)
        if version != 1:
            raise self.foreign(f"object header version {version}")
        blocks = [(header + 16, size)]
        for start, length in blocks:  # grows with each continuation, by one a message at most
            end = start + length
            while start + 8 <= end and count > 0:
                kind, size, flags = self.unpack("<HHB", start)
                content = self.read(start + 8, size)
                if kind == _CONTINUATION:
                    blocks.append(_unpack(self, "<QQ", content))
                yield kind, flags, content
                start += 8 + size
                count -= 1

    def heap_object(self, collection: int, wanted: int, length: int) -> bytes:
        """The first bytes of an object in a global heap collection (III.E)."""
        self.expect(b"GCOL\x01", collection)
        (size,) = self.unpack("<Q", collection + 8)
        offset, end = collection + 16, collection + size
        while offset + 16 <= end:
            index, _, _, size = self.unpack("<HHIQ", offset)
            if index == wanted and length <= size:
                return self.read(offset + 16, length)
            if index == 0:  # the free space at the end
                break
            offset += 16 + _padded(size)
        raise self.damaged(f"object {wanted} of the global heap at offset {collection} is missing")

    def damaged(self, what: str) -> BadInput:
        todo = "The file is damaged or was cut short. Save the model again."
        return BadInput(f"this HDF5 file cannot be read: {what}", self.where, todo)

    def foreign(self, what: str) -> BadInput:
        todo = "Load it in Keras and save it again with model.save('model.keras')."
        return BadInput(f"this HDF5 file holds what Keras never writes: {what}", self.where, todo)


@dataclass(frozen=True)
class Group:
    """A group: children by name, attributes by name."""

    file: Hdf5
    header: int
    path: str

    @cached_property
    def _children(self) -> dict[str, int | None]:
        """Object header addresses; None for a soft link."""
        for kind, _, content in self.file.messages(self.header):
            if kind == _SYMBOL_TABLE:
                tree, heap = _unpack(self.file, "<QQ", content)
                return dict(self._entries(tree, heap))
        return {}

    def __iter__(self) -> Iterator[str]:
        return iter(self._children)

    def group(self, *names: str) -> Group | None:
        """The group below this one; None where there is none."""
        group: Group = self
        for name in names:
            header = group._child(name)
            if header is None:
                return None
            group = Group(self.file, header, f"{group.path}/{name}")
        return group

    def dataset(self, *names: str) -> NDArray[Any] | None:
        """A read-only view of the dataset's values; None where there is none."""
        parent = self.group(*names[:-1])
        header = parent._child(names[-1]) if parent else None
        if header is None:
            return None
        return _dataset(self.file, header, "/".join((self.path, *names)))

    def strings(self, name: str) -> list[str] | None:
        """A text attribute as a list, of one where it is a scalar; None where there is none."""
        for kind, flags, content in self.file.messages(self.header):
            if kind == _ATTRIBUTE:
                if flags & _SHARED:
                    raise self.file.foreign("a shared attribute")
                stored, datatype, shape, values = _attribute(self.file, content)
                if stored == name:
                    return _strings(self.file, datatype, shape, values, f"{self.path}@{name}")
        return None

    def _child(self, name: str) -> int | None:
        children = self._children
        if name in children and children[name] is None:
            raise self.file.foreign(f"a link, {self.path + '/' + name!r}")
        return children.get(name)

    def _entries(self, tree: int, heap: int) -> Iterator[tuple[str, int | None]]:
        """The symbol table: a B-tree of nodes of entries, names in a local heap (III.A.1, III.B, III.D)."""
        file = self.file
        file.expect(b"HEAP", heap)
        size, _, start = file.unpack("<QQQ", heap + 8)
        for node in self._leaves(tree):
            file.expect(b"SNOD", node)
            (count,) = file.unpack("<H", node + 6)
            for entry in range(node + 8, node + 8 + 40 * count, 40):
                offset, header, cache = file.unpack("<QQI", entry)
                first = start + offset
                end = file.data.find(b"\0", first, min(start + size, first + _MAX_NAME))
                if end < 0:
                    raise file.damaged("a name without an end")
                yield file.data[first:end].decode("utf-8", "replace"), None if cache == _SOFT_LINK else header

    def _leaves(self, tree: int) -> Iterator[int]:
        level = [tree]
        while level:  # a tree that runs in a circle runs into MAX_STEPS
            below = []
            for node in level:
                self.file.expect(b"TREE\0", node)
                depth, count = self.file.unpack("<BH", node + 5)
                children = [self.file.unpack("<Q", node + 32 + 16 * i)[0] for i in range(count)]
                if depth:
                    below.extend(children)
                else:
                    yield from children
            level = below


def _dataset(file: Hdf5, header: int, path: str) -> NDArray[Any]:
    parts: dict[int, bytes] = {}
    for kind, flags, content in file.messages(header):
        if kind == _EXTERNAL or (kind in (_DATASPACE, _DATATYPE, _LAYOUT) and flags & _SHARED):
            raise file.foreign(f"values of {path!r} stored elsewhere")
        parts[kind] = content
    if not parts.keys() >= {_DATASPACE, _DATATYPE, _LAYOUT}:
        raise file.damaged(f"{path!r} is not a dataset")
    shape = _shape(file, parts[_DATASPACE])
    dtype = _dtype(file, parts[_DATATYPE])
    size = math.prod(shape) * dtype.itemsize
    layout = parts[_LAYOUT]
    version, storage = _unpack(file, "<BB", layout)  # IV.A.2.i
    if version not in (3, 4) or storage not in (_COMPACT, _CONTIGUOUS):
        raise file.foreign(f"values of {path!r} in chunks, compressed or virtual")
    if storage == _COMPACT:
        (stored,) = _unpack(file, "<H", layout[2:])
        values, address = layout[4:], 0
    else:
        address, stored = _unpack(file, "<QQ", layout[2:])
        values = file.data
    if stored != size or max(shape, default=0) > len(file.data) or (size and address + size > len(values)):
        raise file.damaged(f"shape {shape} of {path!r} does not fit the {stored} bytes stored")
    if size == 0:
        return np.zeros(shape, dtype)
    return np.frombuffer(values, dtype, math.prod(shape), address).reshape(shape)


def _attribute(file: Hdf5, content: bytes) -> tuple[str, bytes, tuple[int, ...], bytes]:
    """(name, datatype message, shape, values) of an attribute message (IV.A.2.m)."""
    version, flags, *sizes = _unpack(file, "<BBHHH", content)
    if version not in (1, 2, 3) or (version > 1 and flags):
        raise file.foreign(f"attribute version {version}, flags {flags}")
    offset = 9 if version == 3 else 8
    pieces = []
    for size in sizes:
        pieces.append(content[offset : offset + size])
        offset += _padded(size) if version == 1 else size
    name = pieces[0].partition(b"\0")[0].decode("utf-8", "replace")
    return name, pieces[1], _shape(file, pieces[2]), content[offset:]


def _strings(file: Hdf5, datatype: bytes, shape: tuple[int, ...], values: bytes, where: str) -> list[str]:
    count = math.prod(shape)
    if count == 0:  # Keras writes an empty list as floats
        return []
    kind, bits, size = _unpack(file, "<BBxxI", datatype)
    variable = kind & 15 == _VARIABLE_LENGTH and bits & 15 == 1 and size == 16
    if not variable and kind & 15 != _STRING:
        raise file.damaged(f"{where!r} is not text")
    if size == 0 or count > len(values) // size:
        raise file.damaged(f"{where!r} is longer than what is stored")
    strings = []
    total = 0
    for start in range(0, count * size, size):
        text = values[start : start + size]
        if variable:
            length, collection, index = struct.unpack("<IQI", text)
            total += length
            if total > len(file.data):
                raise file.damaged(f"{where!r} is longer than the file")
            text = file.heap_object(collection, index, length) if length else b""
        try:
            strings.append(text.partition(b"\0")[0].decode())
        except UnicodeDecodeError as error:
            raise file.damaged(f"{where!r} is not UTF-8") from error
    return strings


def _shape(file: Hdf5, content: bytes) -> tuple[int, ...]:
    """A dataspace message (IV.A.2.b); a null space counts as empty."""
    version, rank, _, kind = _unpack(file, "<4B", content)
    if version not in (1, 2) or rank > _MAX_RANK:
        raise file.damaged(f"dataspace version {version} of rank {rank}")
    if version == 2 and kind == 2:
        return (0,)
    return _unpack(file, f"<{rank}Q", content[8 if version == 1 else 4 :])


def _dtype(file: Hdf5, content: bytes) -> np.dtype[Any]:
    """A datatype message (IV.A.2.d); what is no plain number comes as raw bytes."""
    kind, bits, size = _unpack(file, "<BBxxI", content)
    order = ">" if bits & 1 else "<"
    if kind & 15 == _FLOATING_POINT and not bits & 64:
        name = _IEEE.get(_unpack(file, "<HH4BI", content[8:]))
        if name and size == int(name[1]):
            return np.dtype(order + name)
    if kind & 15 == _FIXED_POINT and size in (1, 2, 4, 8):
        return np.dtype(f"{order}{'i' if bits & 8 else 'u'}{size}")
    if not 1 <= size <= len(file.data):
        raise file.damaged(f"a datatype of {size} bytes")
    return np.dtype(f"V{size}")


def _unpack(file: Hdf5, layout: str, content: bytes) -> tuple[Any, ...]:
    if len(content) < struct.calcsize(layout):
        raise file.damaged("a message that is too short")
    return struct.unpack_from(layout, content)


def _padded(size: int) -> int:
    return (size + 7) & ~7
