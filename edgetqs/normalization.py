"""LayerNormalization of one vector of int16 values in integers alone, in NumPy.

With n values x, P the power of two that takes N = n P into (256, 512], and
d = N x - P sum(x), an integer, the normalized values are
d sqrt(n) / sqrt(sum(d^2) + E), where E = n N^2 epsilon / scale^2. Both d and
the root are shifted left until the sum has 59 or 60 bits, so that all that
follows are products of which the upper word is kept. ``write_normalization``
writes the same steps as operators, ``runtime/edgetqs_normalize.c`` is the same
in C.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from importlib import resources

import numpy as np
from numpy.typing import NDArray

from edgetqs.fixedpoint import Integers, saturate

#: 2^19 / sqrt(k) for k = 64..256, at most 65535. The firmware includes the same file.
RSQRT_TABLE: Integers = np.array(
    resources.files("edgetqs").joinpath("runtime/rsqrt_table.inc").read_text().replace(",", " ").split(), np.int64
)
FEATURES_MAX = 512
#: Bits, in pairs, that the sum of squares may be shifted.
PAIRS = 29


@dataclass(frozen=True, slots=True)
class Normalization:
    """The integers of one layer.

    gamma (n,) is 16 sqrt(n) gamma / output_scale, beta (n,) is in steps of
    2^-16 of the output, both int32; factor is P and epsilon E above.
    """

    gamma: Integers
    beta: Integers
    factor: int
    epsilon: int
    output_scale: float

    @property
    def features(self) -> int:
        return len(self.gamma)


def quantize_normalization(
    gamma: NDArray[np.float64], beta: NDArray[np.float64], epsilon: float, input_scale: float, output_scale: float
) -> Normalization:
    """The integers for gamma and beta (n,) and values at ``input_scale``, n from 1 to 512.

    Any scales do. Raises ValueError for other n, for an ``epsilon`` past 2^32
    squares of ``input_scale``, for a beta that is no int16 at ``output_scale``
    and for a gamma past 2^27 / sqrt(n) times that scale.
    """
    features = len(gamma)
    if not 1 <= features <= FEATURES_MAX:
        raise ValueError(f"LayerNormalization over {features} features: 1 to {FEATURES_MAX} are supported")
    factor = 1 << ((FEATURES_MAX // features).bit_length() - 1)
    scaled = epsilon / input_scale**2 * features * (features * factor) ** 2
    if not scaled < 2.0**59:
        raise ValueError(f"LayerNormalization with epsilon {epsilon:g} of values at scale {input_scale:g}")
    gains = np.rint(gamma * (16 * math.sqrt(features) / output_scale))
    offsets = np.rint(beta * (65536 / output_scale))
    for name, values in (("gamma", gains), ("beta", offsets)):
        if not (np.abs(values) < 2**31).all():
            raise ValueError(f"LayerNormalization's {name} is too large for an output at scale {output_scale:g}")
    return Normalization(gains.astype(np.int64), offsets.astype(np.int64), factor, max(round(scaled), 1), output_scale)


def layer_normalize(values: Integers, layer: Normalization, *, clip: bool = True) -> Integers:
    """int16 ``values`` (..., n) normalized over the last axis: int16 at ``layer.output_scale``.

    Without ``clip`` they are not saturated.
    """
    n = layer.features
    centred = n * layer.factor * values - layer.factor * values.sum(axis=-1, keepdims=True)
    power = (centred * centred).sum(axis=-1, keepdims=True) + layer.epsilon
    shift = PAIRS - (power[..., None] >= power_steps()).sum(axis=-1)
    root = reciprocal_root((power << (2 * shift)) >> 32)
    normalized = ((centred << shift) * root) >> 32
    result = (normalized * layer.gamma + (layer.beta << 16) + (1 << 31)) >> 32
    return saturate(result) if clip else result


def power_steps() -> Integers:
    """4, 16, ... 4^29."""
    return np.int64(4) ** np.arange(1, PAIRS + 1)


def reciprocal_root(mantissa: Integers) -> Integers:
    """2^44 / sqrt(mantissa) for 2^26 <= mantissa < 2^28, by table, within 2^-15 of it."""
    place, fraction = (mantissa >> 20) - 64, (mantissa >> 5) & 0x7FFF
    start = RSQRT_TABLE[place]
    return (start << 15) - (start - RSQRT_TABLE[place + 1]) * fraction
