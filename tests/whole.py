"""What layers do over whole windows, as Keras runs them: written down independently of steps and frames."""

from collections.abc import Sequence

import numpy as np

from edgetqs.model import RECURRENT, Activation, Channel, Dense, Forecaster, LayerNormalization
from edgetqs.rollout import FUNCTIONS, cell, run, zero_state
from edgetqs.stepwise import Bidirectional, Convolution, Pooling, RepeatVector, Reshape, Trained, stepwise


def whole(layer: Trained, value: np.ndarray) -> np.ndarray:
    """One layer over (batch, time, features) or (batch, features), from a zero state."""
    if isinstance(layer, RECURRENT):
        one = cell(layer)
        x = value[:, ::-1] if layer.go_backwards else value
        outputs, _ = run((one,), zero_state((one,), (len(x),)), x)
        return outputs if layer.return_sequences else outputs[:, -1]
    if isinstance(layer, Bidirectional):
        forward, backward = whole(layer.forward, value), whole(layer.backward, value)
        if layer.backward.return_sequences:
            backward = backward[:, ::-1]
        if layer.merge_mode == "concat":
            return np.concatenate([forward, backward], -1)
        return {"sum": forward + backward, "ave": (forward + backward) / 2, "mul": forward * backward}[layer.merge_mode]
    if isinstance(layer, Reshape):
        return value.reshape(len(value), *layer.shape)
    if isinstance(layer, RepeatVector):
        return np.repeat(value[:, None], layer.times, axis=1)
    if isinstance(layer, Convolution):
        return _convolved(layer, value)
    if isinstance(layer, Pooling):
        return _pooled(layer, value)
    if isinstance(layer, LayerNormalization):
        spread = np.sqrt(value.var(axis=-1, keepdims=True) + layer.epsilon)
        return layer.gamma * (value - value.mean(axis=-1, keepdims=True)) / spread + layer.beta
    if isinstance(layer, Activation):
        return FUNCTIONS[layer.function](value)
    assert isinstance(layer, Dense)
    return FUNCTIONS[layer.activation](value @ layer.kernel[0].T.astype(np.float64) + layer.bias[0])


def _padded(value: np.ndarray, before: int, behind: int, fill: float) -> np.ndarray:
    return np.pad(value, ((0, 0), (before, behind), (0, 0)), constant_values=fill)


def _around(count: int, reach: int, stride: int) -> tuple[int, int]:
    total = max((-(-count // stride) - 1) * stride + reach - count, 0)
    return total // 2, total - total // 2


def _convolved(layer: Convolution, value: np.ndarray) -> np.ndarray:
    if layer.padding == "causal":
        value = _padded(value, layer.reach - 1, 0, 0)
    elif layer.padding == "same":
        value = _padded(value, *_around(value.shape[1], layer.reach, layer.stride), 0)
    starts = range(0, value.shape[1] - layer.reach + 1, layer.stride)
    taps = [value[:, s : s + layer.reach : layer.dilation].reshape(len(value), -1) for s in starts]
    return np.stack([whole(layer.dense, one) for one in taps], axis=1)


def _pooled(layer: Pooling, value: np.ndarray) -> np.ndarray:
    reduce = np.mean if layer.mean else np.max
    if layer.size == 0:
        return reduce(value, axis=1)
    if layer.padding == "same":
        value = _padded(value, *_around(value.shape[1], layer.size, layer.stride), -np.inf)
    starts = range(0, value.shape[1] - layer.size + 1, layer.stride)
    return np.stack([reduce(value[:, s : s + layer.size], axis=1) for s in starts], axis=1)


def whole_stack(layers: Sequence[Trained], value: np.ndarray) -> np.ndarray:
    for layer in layers:
        value = whole(layer, value)
    return value


def forecaster_of(layers: Sequence[Trained], steps: int, features: int, name: str = "m") -> Forecaster:
    """The stepwise forecaster of trained layers."""
    made = stepwise(layers, steps, features)
    inputs = tuple(Channel(f"x{k}") for k in range(features))
    outputs = tuple(Channel(f"y{k}") for k in range(int(np.prod(made.shape))))
    return Forecaster(name, made.layers, inputs, outputs, steps, output_frames=made.frames)
