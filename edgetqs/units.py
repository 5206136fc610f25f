"""Units of the plan: the blocks of weights that share one width.

A block is one gate's rows of one tensor; a unit is one block (granularity
``gate``), one tensor's blocks (``tensor``) or one layer's (``layer``).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from edgetqs.errors import BadInput
from edgetqs.model import Array, Forecaster

GRANULARITIES = ("layer", "tensor", "gate")


@dataclass(frozen=True, slots=True, order=True)
class Block:
    layer: int
    tensor: str
    gate: int


@dataclass(frozen=True, slots=True)
class Unit:
    """``name`` reads layer/tensor/gate, as far as the granularity goes."""

    name: str
    layer: str
    tensor: str  # "" at granularity layer
    gate: str  # "" unless at granularity gate
    blocks: tuple[Block, ...]


def blocks(forecaster: Forecaster) -> list[Block]:
    """Every block of weights, in the order of storage."""
    return [
        Block(index, tensor, gate)
        for index, layer in enumerate(forecaster.layers)
        for tensor in layer.tensors
        for gate in range(len(getattr(layer, tensor)))
    ]


def weights(forecaster: Forecaster, block: Block) -> Array:
    """The block's float weights (units, inputs)."""
    return getattr(forecaster.layers[block.layer], block.tensor)[block.gate]


def units(forecaster: Forecaster, granularity: str = "gate") -> tuple[Unit, ...]:
    """The forecaster's units at ``granularity``, in the order of storage."""
    if granularity not in GRANULARITIES:
        raise BadInput(f"unknown granularity {granularity!r}", todo=f"one of: {', '.join(GRANULARITIES)}")
    grouped: dict[tuple[str, str, str], list[Block]] = {}
    for block in blocks(forecaster):
        layer = forecaster.layers[block.layer]
        tensor = block.tensor if granularity != "layer" else ""
        gates = getattr(layer, "gates", ("",))
        gate = gates[block.gate] if granularity == "gate" else ""
        grouped.setdefault((layer.name, tensor, gate), []).append(block)
    return tuple(Unit("/".join(filter(None, key)), *key, tuple(members)) for key, members in grouped.items())


def norm(forecaster: Forecaster, unit: Unit) -> float:
    """Frobenius norm of the unit's weights."""
    return float(np.sqrt(sum(np.sum(weights(forecaster, block).astype(np.float64) ** 2) for block in unit.blocks)))
