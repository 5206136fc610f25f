"""The models that kernels are measured on: random weights of sensible size from fixed seeds, no training."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

from edgetqs.integer import IntegerModel
from edgetqs.model import Channel, Dense, Feedback, Forecaster, Gru, Lstm, frozen
from edgetqs.quantizer import quantize
from edgetqs.units import Block, blocks

Cell = Literal["lstm", "gru"]
Widths = Literal["int8", "int4", "mix"]

UNITS, FEATURES, STEPS = 32, 8, 48
CELLS: tuple[Cell, ...] = ("lstm", "gru")
WIDTHS: tuple[Widths, ...] = ("int8", "int4", "mix")
_CANDIDATE = 2  # place of the candidate gate: i f c o, z r h
_SEEDS = {"lstm": 1, "gru": 2}


@dataclass(frozen=True, slots=True)
class Subject:
    """One benchmark model; ``macs`` of all its STEPS steps, the dense layer counted in each."""

    name: str  # such as "lstm32-int8"
    cell: Cell
    widths: Widths
    macs: int
    model: IntegerModel


def subject(cell: Cell, widths: Widths) -> Subject:
    """The model ``cell`` with weights of ``widths``; mix: candidate gate and dense int8, all others int4."""
    made = forecaster(cell)
    chosen = {block: _width(made, block, widths) for block in blocks(made)}
    macs = STEPS * (len(made.layers[0].bias) * UNITS * (FEATURES + UNITS) + UNITS)
    return Subject(f"{cell}{UNITS}-{widths}", cell, widths, macs, quantize(made, chosen, "nearest"))


def names() -> list[str]:
    """Of all subjects."""
    return [f"{cell}{UNITS}-{widths}" for cell in CELLS for widths in WIDTHS]


def by_name(name: str) -> Subject:
    """The subject called so."""
    cell, widths = next(
        pair for pair in ((c, w) for c in CELLS for w in WIDTHS) if name == f"{pair[0]}{UNITS}-{pair[1]}"
    )
    return subject(cell, widths)


def forecaster(cell: Cell) -> Forecaster:
    """Glorot-uniform kernels, orthogonal recurrent kernels; the output is fed back to the first input."""
    rng = np.random.default_rng(_SEEDS[cell])
    gates = 4 if cell == "lstm" else 3
    kernel = frozen(_glorot(rng, (gates, UNITS, FEATURES)))
    recurrent = frozen(np.stack([np.linalg.qr(rng.normal(size=(UNITS, UNITS)))[0] for _ in range(gates)]))
    bias = rng.normal(0, 0.1, (gates, UNITS))
    layer: Lstm | Gru
    if cell == "lstm":
        bias[1] += 1
        layer = Lstm("lstm", kernel, recurrent, frozen(bias))
    else:
        layer = Gru("gru", kernel, recurrent, frozen(bias), frozen(rng.normal(0, 0.1, (gates, UNITS))))
    dense = Dense("dense", frozen(_glorot(rng, (1, 1, UNITS))), frozen(np.zeros((1, 1))))
    inputs = tuple(Channel(f"x{k}") for k in range(FEATURES))
    return Forecaster(f"bench_{cell}", (layer, dense), inputs, (Channel("y"),), STEPS, Feedback(((0, 0),)))


def _glorot(rng: np.random.Generator, shape: tuple[int, int, int]) -> np.ndarray:
    limit = math.sqrt(6 / (shape[1] + shape[2]))
    return rng.uniform(-limit, limit, shape)


def _width(made: Forecaster, block: Block, widths: Widths) -> int:
    if widths == "mix":
        return 8 if isinstance(made.layers[block.layer], Dense) or block.gate == _CANDIDATE else 4
    return int(widths.removeprefix("int"))
