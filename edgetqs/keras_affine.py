"""Keras layers that are y = x * scale + shift, on their way into a channel or a kernel."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from edgetqs.errors import BadInput, Unsupported
from edgetqs.keras_files import SAVE_AGAIN, Tensor
from edgetqs.keras_layers import MAX_NUMBER, Node, Shape, expect, last_axis, short, weight
from edgetqs.model import Dense, Recurrent, frozen
from edgetqs.stepwise import Bidirectional, Convolution

_OneKernel = TypeVar("_OneKernel", bound=Dense | Recurrent)
WithKernel = TypeVar("WithKernel", bound=Dense | Recurrent | Bidirectional | Convolution)


@dataclass(frozen=True, slots=True)
class Affine:
    """y = x * scale + shift along the last axis, on its way into a channel or a kernel."""

    layer: Node
    scale: NDArray[np.float64]
    shift: NDArray[np.float64]

    def __post_init__(self) -> None:
        used = np.abs(self.scale[self.scale != 0])
        if not (
            (used >= 1 / MAX_NUMBER).all() and (used <= MAX_NUMBER).all() and (abs(self.shift) <= MAX_NUMBER).all()
        ):
            raise BadInput(f"its scale or offset is not between {1 / MAX_NUMBER} and {MAX_NUMBER}", self.layer.where)

    def after(self, first: Affine | None) -> Affine:
        """This one applied to the result of ``first``."""
        if first is None:
            return self
        return replace(self, scale=first.scale * self.scale, shift=first.shift * self.scale + self.shift)

    def ahead_of(self, layer: WithKernel) -> WithKernel:
        """``layer`` with this folded into its inputs; zeros that it pads with must stay what they are."""
        if isinstance(layer, Convolution):
            spread = replace(self, scale=np.tile(self.scale, layer.taps), shift=np.tile(self.shift, layer.taps))
            return replace(layer, dense=spread.ahead_of(layer.dense))
        if isinstance(layer, Bidirectional):
            return replace(layer, forward=self.ahead_of(layer.forward), backward=self.ahead_of(layer.backward))
        kernel = layer.kernel.astype(np.float64)
        return self._refolded(layer, kernel * self.scale, layer.bias + kernel @ self.shift)

    def behind(self, layer: Dense) -> Dense:
        """``layer``, which must be linear, with this folded into its outputs."""
        kernel = layer.kernel.astype(np.float64)
        return self._refolded(layer, kernel * self.scale[:, None], layer.bias * self.scale + self.shift)

    def _refolded(self, layer: _OneKernel, kernel: NDArray[np.float64], bias: NDArray[np.float64]) -> _OneKernel:
        with np.errstate(over="ignore"):
            folded = replace(layer, kernel=frozen(kernel), bias=frozen(bias))
        if not (np.isfinite(folded.kernel).all() and np.isfinite(folded.bias).all()):
            raise BadInput(f"folded into {layer.name!r} it leaves the range of float32", self.layer.where)
        return folded


def rescaling(layer: Node, features: int) -> Affine:
    return Affine(layer, _numbers(layer, "scale", features), _numbers(layer, "offset", features))


def normalization(layer: Node, tensors: Sequence[Tensor], shape: Shape, features: int) -> Affine:
    """Keras: (x - mean) / max(sqrt(variance), 1e-7)."""
    shared = last_axis(layer, shape) is None
    if layer.config.get("mean") is not None:
        mean, variance = _numbers(layer, "mean", features), _numbers(layer, "variance", features)
    else:
        if len(tensors) != 2:  # the third, where it is there, counts samples
            expect(layer, tensors, 3)
        stored = () if shared else (features,)
        mean, variance = (np.broadcast_to(weight(layer, tensor, stored), (features,)) for tensor in tensors[:2])
    if (variance < 0).any():
        raise BadInput("a variance is negative", layer.where, SAVE_AGAIN)
    deviation = np.maximum(np.sqrt(variance), 1e-7)
    if layer.option(bool, "invert", default=False):
        return Affine(layer, deviation, mean)
    return Affine(layer, 1 / deviation, -mean / deviation)


def batch_normalization(layer: Node, tensors: Sequence[Tensor], shape: Shape, features: int) -> Affine:
    """At inference: gamma * (x - mean) / sqrt(variance + epsilon) + beta."""
    last_axis(layer, shape)
    if layer.config.get("mode", 0) != 0:
        raise Unsupported(f"mode={short(layer.config['mode'])} of Keras 1", layer.where, "Use mode=0.")
    scale, center = (layer.option(bool, option, default=True) for option in ("scale", "center"))
    expect(layer, tensors, 2 + scale + center)
    values = [weight(layer, tensor, (features,)) for tensor in tensors]
    gamma = values.pop(0) if scale else np.ones(features)
    beta = values.pop(0) if center else np.zeros(features)
    mean, variance = values
    spread = variance + layer.option(float, "epsilon")
    if (spread <= 0).any():
        raise BadInput("a variance is negative", layer.where, SAVE_AGAIN)
    gain = gamma / np.sqrt(spread)
    return Affine(layer, gain, beta - mean * gain)


def _numbers(layer: Node, option: str, features: int) -> NDArray[np.float64]:
    """A number or a vector of the configuration, one value a feature."""
    value = layer.config.get(option)
    if isinstance(value, dict) and value.get("class_name") in ("__numpy__", "__tensor__"):
        value = value["config"].get("value") if isinstance(value.get("config"), dict) else None
    try:
        values = np.asarray(value)
    except (ValueError, RecursionError):
        values = np.asarray(None)
    if (
        values.dtype.kind not in "fiu"
        or values.size not in (1, features)
        or values.shape[-1:] not in ((), (1,), (features,))
    ):
        raise BadInput(f"{option} is not a number or {features} numbers: {short(value)}", layer.where, SAVE_AGAIN)
    numbers = values.astype(np.float64).ravel()
    if not (np.abs(numbers) <= MAX_NUMBER).all():
        raise BadInput(f"{option} is not finite or beyond {MAX_NUMBER}", layer.where, SAVE_AGAIN)
    return np.broadcast_to(numbers, (features,))
