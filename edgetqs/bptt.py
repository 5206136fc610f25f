"""The rollout back to front: gradients of a loss on its outputs with respect to weights and biases.

Back-propagation through the open-loop history and the closed loop after it,
for LSTM, GRU (both kinds), SimpleRNN and Dense.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from edgetqs.model import RECURRENT, Dense, Forecaster, Gru, Lstm, SimpleRnn
from edgetqs.rollout import FUNCTIONS, Cell, Values, feedback_affine, zero_state

#: Gradients by (layer index, field name), shaped as the field.
Parameters = dict[tuple[int, str], Values]
#: By field name, the factors whose products over all steps are its gradient.
_Products = dict[str, tuple[Values, ...]]

#: Derivatives of the elementwise functions, from their values.
_SLOPES: dict[str, Callable[[Values], Values]] = {
    "linear": np.ones_like,
    "tanh": lambda y: 1 - y * y,
    "sigmoid": lambda y: y * (1 - y),
    "relu": lambda y: (y > 0).astype(y.dtype),
    "hard_sigmoid_keras2": lambda y: 0.2 * ((y > 0) & (y < 1)).astype(y.dtype),
    "hard_sigmoid_keras3": lambda y: ((y > 0) & (y < 1)).astype(y.dtype) / 6,
}


class Tape:
    """One rollout, written down step by step, and the way back."""

    def __init__(self, forecaster: Forecaster, stack: tuple[Cell, ...]) -> None:
        self.forecaster, self.stack = forecaster, stack
        self.steps: list[list[tuple]] = []  # per step, per layer: what its backward pass needs
        self.history = 0

    def forecast(self, history: Values, future: Values) -> Values:
        state = [list(own) for own in zero_state(self.stack, (len(history),))]
        outputs, x = [], history[:, 0]
        self.history = history.shape[1]
        feedback = self.forecaster.feedback
        for t in range(self.history):
            x = history[:, t]
            y = self._step(state, x)
            outputs.append(y)
        if not feedback.pairs:
            return np.stack(outputs, axis=1)
        outputs = outputs[-1:]
        for k in range(1, future.shape[1]):
            x = x.copy()
            x[:, list(feedback.known)] = future[:, k - 1, list(feedback.known)]
            for source, target in feedback.pairs:
                gain, offset = feedback_affine(self.forecaster, source, target)
                x[:, target] = outputs[-1][:, source] * gain + offset
            outputs.append(self._step(state, x))
        return np.stack(outputs, axis=1)

    def _step(self, state: list[list[Values]], x: Values) -> Values:
        tape = []
        for index, one in enumerate(self.stack):
            layer = one.layer
            if isinstance(layer, Dense):
                y = FUNCTIONS[layer.activation](x @ one.kernel + one.bias)
                tape.append((x, y))
                x = y
            else:
                x, entry = _FORWARD[type(layer)](one, state[index], x)
                tape.append(entry)
        self.steps.append(tape)
        return x

    def backward(self, gradient: Values, *, apart: bool = False) -> Parameters:
        """``gradient`` (B, T, outputs) of the forecasts; parameter gradients, summed over the trajectories.

        ``apart`` keeps those of each trajectory apart, on a leading axis.
        """
        closed = bool(self.forecaster.feedback.pairs)
        ahead: list[list[Values]] = [[] for _ in self.stack]  # gradients of each layer's state after the step
        products: list[list[_Products]] = [[] for _ in self.stack]
        from_input: Values | None = None
        total = len(self.steps)
        for t in reversed(range(total)):
            position = t - self.history + 1 if closed else t
            y_gradient = gradient[:, position] if position >= 0 else np.zeros_like(gradient[:, 0])
            if from_input is not None and position >= 0:
                y_gradient = y_gradient.copy()
                for source, target in self.forecaster.feedback.pairs:
                    gain, _ = feedback_affine(self.forecaster, source, target)
                    y_gradient[:, source] += gain * from_input[:, target]
            x_gradient = y_gradient
            for index in reversed(range(len(self.stack))):
                x_gradient = self._layer_backward(index, self.steps[t][index], x_gradient, ahead, products[index])
            from_input = x_gradient if closed and t >= self.history else None
        found: Parameters = {}
        for index, steps in enumerate(products):
            for name in steps[0]:
                factors = [np.stack(parts, axis=1) for parts in zip(*(step[name] for step in steps), strict=True)]
                value = _summed(factors, apart)
                shape = getattr(self.stack[index].layer, name).shape
                lead = value.shape[:1] if apart else ()
                found[index, name] = value.reshape(*lead, *shape)
        return found

    def _layer_backward(
        self, index: int, entry: tuple, gradient: Values, ahead: list[list[Values]], products: list[_Products]
    ) -> Values:
        one = self.stack[index]
        layer = one.layer
        if isinstance(layer, Dense):
            x, y = entry
            z = gradient * _SLOPES[layer.activation](y)
            products.append({"kernel": (z, x), "bias": (z,)})
            return z @ one.kernel.T
        assert isinstance(layer, RECURRENT)
        h_gradient = gradient + ahead[index][0] if ahead[index] else gradient
        z_input, z_recurrent, source, rest = _BACKWARD[type(layer)](one, entry, h_gradient, ahead[index])
        x, h = entry[0], entry[1]
        step: _Products = {"kernel": (z_input, x), "bias": (z_input,), "recurrent_kernel": (z_recurrent, h)}
        if isinstance(layer, Gru):
            step["recurrent_bias"] = (z_recurrent,)
        if source is not None:  # the candidate's rows saw r * h, and ``rest`` is complete
            step["recurrent_kernel"] = (z_recurrent, h, source)
            ahead[index] = rest
        else:
            ahead[index] = [rest[0] + z_recurrent @ one.recurrent_kernel.T, *rest[1:]]
        products.append(step)
        return z_input @ one.kernel.T


def _summed(factors: list[Values], apart: bool) -> Values:
    """(B, T, ...) factors of one parameter's gradient -> rows * columns (or rows) of it, summed over time.

    One factor: a bias. Two: the outer products. Three: the last third of the rows belongs to the third factor.
    """
    rows = factors[0]
    if not apart:
        factors = [values.reshape(1, -1, values.shape[-1]) for values in factors]
        rows = factors[0]
    if len(factors) == 1:
        value = rows.sum(axis=1)
    elif len(factors) == 2:
        value = rows.swapaxes(1, 2) @ factors[1]
    else:
        first = rows.shape[-1] // 3 * 2
        parts = [rows[..., :first].swapaxes(1, 2) @ factors[1], rows[..., first:].swapaxes(1, 2) @ factors[2]]
        value = np.concatenate(parts, axis=1)
    return value if apart else value[0]


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
    gate, act = _SLOPES[layer.recurrent_activation], _SLOPES[layer.activation]
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
    gate = _SLOPES[layer.recurrent_activation]
    fresh = h_gradient * (1 - z) * _SLOPES[layer.activation](candidate)
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
    z: Values = h_gradient * _SLOPES[layer.activation](entry[2])
    return z, z, None, [np.zeros_like(h_gradient)]


_FORWARD = {Lstm: _lstm_forward, Gru: _gru_forward, SimpleRnn: _rnn_forward}
_BACKWARD = {Lstm: _lstm_backward, Gru: _gru_backward, SimpleRnn: _rnn_backward}
