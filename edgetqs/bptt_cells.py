"""One frame of each recurrent cell, forwards with what the way back needs, and back."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from edgetqs.model import Gru, Lstm, SimpleRnn
from edgetqs.rollout import FUNCTIONS, Cell, Values

#: Derivatives of the elementwise functions, from their values.
SLOPES: dict[str, Callable[[Values], Values]] = {
    "linear": np.ones_like,
    "tanh": lambda y: 1 - y * y,
    "sigmoid": lambda y: y * (1 - y),
    "relu": lambda y: (y > 0).astype(y.dtype),
    "hard_sigmoid_keras2": lambda y: 0.2 * ((y > 0) & (y < 1)).astype(y.dtype),
    "hard_sigmoid_keras3": lambda y: ((y > 0) & (y < 1)).astype(y.dtype) / 6,
}


def _lstm_forward(one: Cell, state: list[Values], x: Values) -> tuple[Values, tuple]:
    h, c = state
    layer, units = one.layer, state[0].shape[1]
    assert isinstance(layer, Lstm)
    z = x @ one.kernel + one.bias + h @ one.recurrent_kernel
    gate, act = FUNCTIONS[layer.recurrent_activation], FUNCTIONS[layer.activation]
    i, f, g, o = (fn(z[:, k * units : (k + 1) * units]) for k, fn in enumerate((gate, gate, act, gate)))
    after = f * c + i * g
    squashed = act(after)
    state[0], state[1] = o * squashed, after
    return state[0], (x, h, c, i, f, g, o, squashed)


def _lstm_backward(one: Cell, entry: tuple, h_gradient: Values, ahead: list[Values]) -> tuple:
    _, _, c, i, f, g, o, squashed = entry
    layer = one.layer
    assert isinstance(layer, Lstm)
    gate, act = SLOPES[layer.recurrent_activation], SLOPES[layer.activation]
    c_gradient = h_gradient * o * act(squashed)
    if ahead:
        c_gradient = c_gradient + ahead[1]
    parts = [
        c_gradient * g * gate(i),
        c_gradient * c * gate(f),
        c_gradient * i * act(g),
        h_gradient * squashed * gate(o),
    ]
    z = np.concatenate(parts, axis=1)
    return z, z, None, [np.zeros_like(h_gradient), c_gradient * f]


def _gru_forward(one: Cell, state: list[Values], x: Values) -> tuple[Values, tuple]:
    (h,) = state
    layer, units = one.layer, state[0].shape[1]
    assert isinstance(layer, Gru)
    zr, new = slice(0, 2 * units), slice(2 * units, None)
    inputs = x @ one.kernel + one.bias
    gates = FUNCTIONS[layer.recurrent_activation](
        inputs[:, zr] + h @ one.recurrent_kernel[:, zr] + one.recurrent_bias[zr]
    )
    z, r = gates[:, :units], gates[:, units:]
    if layer.reset_after:
        product = h @ one.recurrent_kernel[:, new] + one.recurrent_bias[new]
        candidate = FUNCTIONS[layer.activation](inputs[:, new] + r * product)
    else:
        product = r * h
        candidate = FUNCTIONS[layer.activation](inputs[:, new] + product @ one.recurrent_kernel[:, new])
    state[0] = z * h + (1 - z) * candidate
    return state[0], (x, h, z, r, candidate, product)


def _gru_backward(one: Cell, entry: tuple, h_gradient: Values, ahead: list[Values]) -> tuple:
    _, h, z, r, candidate, product = entry
    layer = one.layer
    assert isinstance(layer, Gru)
    gate = SLOPES[layer.recurrent_activation]
    fresh = h_gradient * (1 - z) * SLOPES[layer.activation](candidate)
    z_part = h_gradient * (h - candidate) * gate(z)
    units = h.shape[1]
    zr, new = slice(0, 2 * units), slice(2 * units, None)
    if layer.reset_after:
        r_part = fresh * product * gate(r)
        z_input = np.concatenate([z_part, r_part, fresh], axis=1)
        z_recurrent = np.concatenate([z_part, r_part, fresh * r], axis=1)
        return z_input, z_recurrent, None, [h_gradient * z]
    through = fresh @ one.recurrent_kernel[:, new].T
    r_part = through * h * gate(r)
    z_input = np.concatenate([z_part, r_part, fresh], axis=1)
    back = h_gradient * z + through * r + z_input[:, zr] @ one.recurrent_kernel[:, zr].T
    return z_input, z_input, product, [back]


def _rnn_forward(one: Cell, state: list[Values], x: Values) -> tuple[Values, tuple]:
    (h,) = state
    layer = one.layer
    assert isinstance(layer, SimpleRnn)
    state[0] = FUNCTIONS[layer.activation](x @ one.kernel + one.bias + h @ one.recurrent_kernel)
    return state[0], (x, h, state[0])


def _rnn_backward(one: Cell, entry: tuple, h_gradient: Values, ahead: list[Values]) -> tuple:
    layer = one.layer
    assert isinstance(layer, SimpleRnn)
    z: Values = h_gradient * SLOPES[layer.activation](entry[2])
    return z, z, None, [np.zeros_like(h_gradient)]


FORWARD = {Lstm: _lstm_forward, Gru: _gru_forward, SimpleRnn: _rnn_forward}
BACKWARD = {Lstm: _lstm_backward, Gru: _gru_backward, SimpleRnn: _rnn_backward}
