"""A compact writer for the ``.tflite`` object model.

The generated object API writes every vector and table anew. ``SharingBuilder``
writes equal vectors and strings once and aligns buffer data to 16 bytes (so
that int64 biases can be read in place); the ``Shared*`` tables below write
equal tables once.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema

ALIGNMENT = 16


class SharingBuilder(flatbuffers.Builder):
    """A builder that remembers the offset of everything it wrote."""

    def __init__(self) -> None:
        super().__init__(4096)
        self._written: dict[Hashable, int] = {}

    def once(self, key: Hashable, write: Callable[[], int]) -> int:
        if key not in self._written:
            self._written[key] = write()
        return self._written[key]

    def CreateNumpyVector(self, x: np.ndarray) -> int:
        x = np.ascontiguousarray(x)
        write = super().CreateNumpyVector
        return self.once(("vector", x.dtype.str, x.tobytes()), lambda: write(x))

    def CreateString(self, s: Any, *args: Any, **kwargs: Any) -> int:
        write = super().CreateString
        return self.once(("string", s), lambda: write(s, *args, **kwargs))

    def aligned_bytes(self, data: bytes) -> int:
        def write() -> int:
            self.StartVector(1, len(data), ALIGNMENT)
            self.head -= len(data)
            self.Bytes[self.head : self.head + len(data)] = data
            return self.EndVector()

        return self.once(("bytes", data), write)


class SharedQuantization(schema.QuantizationParametersT):
    """Symmetric quantization by one scale or one a row, written once for equal scales."""

    def __init__(self, scales: np.ndarray) -> None:
        super().__init__()
        self.scale = np.atleast_1d(np.asarray(scales, np.float32))
        self.zeroPoint = np.zeros(len(self.scale), np.int64)
        self.quantizedDimension = 0

    def Pack(self, builder: SharingBuilder) -> int:
        return builder.once(
            ("quantization", self.scale.tobytes()), lambda: super(SharedQuantization, self).Pack(builder)
        )


class AlignedBuffer(schema.BufferT):
    """Constant data, aligned."""

    def __init__(self, data: bytes) -> None:
        super().__init__()
        self.data = data

    def Pack(self, builder: SharingBuilder) -> int:
        offset = builder.aligned_bytes(self.data)
        schema.BufferStart(builder)
        schema.BufferAddData(builder, offset)
        return schema.BufferEnd(builder)


def pack(model: schema.ModelT) -> bytes:
    """The finished file."""
    builder = SharingBuilder()
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())
