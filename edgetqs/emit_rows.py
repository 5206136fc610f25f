"""Rows of matrices -> arrays of stored words and the calls that multiply with them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from edgetqs.integer import Matrix
from edgetqs.layout import layout_name, stored


@dataclass(slots=True)
class Rows:
    """Collects the arrays and row groups that the layers' calls name."""

    kernels: str
    int8: bool  # whether int4 weights are stored so too
    arrays: list[dict[str, Any]] = field(default_factory=list)
    groups: list[dict[str, str]] = field(default_factory=list)

    def calls(
        self, layer: str, tensor: str, gates: Sequence[str], matrix: Matrix, x: str, y: str, chosen: range, *, add: bool
    ) -> list[str]:
        """Calls that put the chosen gates' rows times x into y, one a run of equal widths."""
        calls = []
        for start, stop, width in [(0, len(matrix.weights), 8)] if self.int8 else matrix.groups():
            low, high = max(start, chosen.start * matrix.gate_rows), min(stop, chosen.stop * matrix.gate_rows)
            if low >= high:
                continue
            names = "".join(gates[low // matrix.gate_rows : high // matrix.gate_rows])
            group, function = self._group("_".join(filter(None, (layer, tensor, names))), matrix, low, high, width)
            offset = low - chosen.start * matrix.gate_rows
            target = f"{y} + {offset}" if offset else y
            calls.append(f"clipped |= {function}(&{group}, {x}, {target}, {'true' if add else 'false'});")
        return calls

    def _group(self, name: str, matrix: Matrix, start: int, stop: int, width: int) -> tuple[str, str]:
        """Add one run of rows: (name of the group, function that computes it)."""
        layout = layout_name(matrix, self.kernels)
        scales, biased = matrix.scales[start:stop], bool(matrix.bias[start:stop].any())
        words = stored(matrix, start, stop, width, self.kernels)
        about = (
            f"{name}: {stop - start} x {matrix.columns}, int{width}, {layout} layout, "
            f"{'with biases, ' if biased else ''}scale {scales.min():.3g} to {scales.max():.3g} a row"
        )
        lines = [f"0x{int(word):08x}" for word in words]
        lines = [", ".join(lines[k : k + 8]) + "," for k in range(0, len(lines), 8)]
        self.arrays.append({"name": f"{name}_stored", "size": len(words), "comment": about, "lines": lines})
        fields = f"{name}_stored, {stop - start}, {matrix.columns}, {str(biased).lower()}"
        self.groups.append({"name": name, "fields": fields})
        return name, f"edgetqs_rows{width}" + ("" if layout == "portable" else f"_{layout}")
