"""The rollout back to front: gradients of a loss on its outputs with respect to weights and biases.

Back-propagation through the open-loop history and the closed loop after it,
and through the frames of layers that run over a time axis within a step.
"""

from __future__ import annotations

import numpy as np

from edgetqs.bptt_cells import BACKWARD, FORWARD, SLOPES
from edgetqs.model import (
    RECURRENT,
    Activation,
    Dense,
    Forecaster,
    Frames,
    Gru,
    LayerNormalization,
    Merge,
    Pool,
    Window,
)
from edgetqs.rollout import (
    FUNCTIONS,
    Cell,
    Values,
    feedback_affine,
    listen,
    next_input,
    remembering,
    step_cell,
    taken,
    zero_cell,
    zero_state,
)

#: Gradients by (layer index, field name), shaped as the field.
Parameters = dict[tuple[int, str], Values]
#: By field name, the factors whose products over all steps are its gradient.
_Products = dict[str, tuple[Values, ...]]


class Tape:
    """One rollout, written down step by step, and the way back."""

    def __init__(self, forecaster: Forecaster, stack: tuple[Cell, ...]) -> None:
        self.forecaster, self.stack = forecaster, stack
        self.steps: list[list[tuple]] = []  # per step, per layer: what its backward pass needs
        self.widths: list[int] = []  # of what the last layer of each step gave
        self.forecasts = 0  # the last steps, whose outputs were returned

    def forecast(self, history: Values, future: Values) -> Values:
        """As ``lesson.forecast``: before the first output, layers that only serve it are not run.

        Steps of a windowed model that only fill the window are not written down.
        """
        forecaster = self.forecaster
        closed = bool(forecaster.feedback.pairs)
        heard = history.shape[1] - 1 if closed else forecaster.lead
        silent = heard if forecaster.windowed else 0
        start = listen(self.stack, zero_state(self.stack, (len(history),)), history[:, :silent])
        state = [list(own) for own in start]
        for t in range(silent, heard):
            self._step(state, history[:, t], remembering(self.stack))
        outputs = [self._step(state, history[:, t]) for t in range(heard, history.shape[1])]
        if closed:
            x = history[:, -1]
            for k in range(1, future.shape[1]):
                x = next_input(forecaster, x, outputs[-1], future[:, k - 1])
                outputs.append(self._step(state, x))
        self.forecasts = len(outputs)
        return np.stack(outputs, axis=1)

    def _step(self, state: list[list[Values]], x: Values, part: int | None = None) -> Values:
        """Of the first ``part`` layers, or of all."""
        tape: list[tuple] = []
        values = [x]
        for index, one in enumerate(self.stack[:part]):
            y, entry = _forward(one, state[index], taken(one.layer, values))
            tape.append((values[-2:],) if isinstance(one.layer, Merge) else entry)
            values.append(y)
        self.steps.append(tape)
        self.widths.append(values[-1].shape[-1])
        return values[-1]

    def backward(self, gradient: Values, *, apart: bool = False) -> Parameters:
        """``gradient`` (B, T, outputs) of the forecasts; parameter gradients, summed over the trajectories.

        ``apart`` keeps those of each trajectory apart, on a leading axis.
        """
        closed = bool(self.forecaster.feedback.pairs)
        ahead: list[list[Values]] = [[] for _ in self.stack]  # gradients of each layer's state after the step
        products: list[list[_Products]] = [[] for _ in self.stack]
        from_input: Values | None = None
        for t in reversed(range(len(self.steps))):
            position = t - len(self.steps) + self.forecasts
            if position >= 0:
                y_gradient = gradient[:, position]
            else:
                y_gradient = np.zeros((len(gradient), self.widths[t]), gradient.dtype)
            if from_input is not None and position >= 0:
                y_gradient = y_gradient.copy()
                for source, target in self.forecaster.feedback.pairs:
                    gain, _ = feedback_affine(self.forecaster, source, target)
                    y_gradient[:, source] += gain * from_input[:, target]
            x_gradient = self._step_backward(self.steps[t], y_gradient, ahead, products)
            from_input = x_gradient if closed and position > 0 else None
        found: Parameters = {}
        for index, steps in enumerate(products):
            for name in steps[0] if steps else ():
                factors = [np.concatenate(parts, axis=1) for parts in zip(*(step[name] for step in steps), strict=True)]
                value = _summed(factors, apart)
                shape = getattr(self.stack[index].layer, name).shape
                lead = value.shape[:1] if apart else ()
                found[index, name] = value.reshape(*lead, *shape)
        return found

    def _step_backward(
        self, tape: list[tuple], gradient: Values, ahead: list[list[Values]], products: list[list[_Products]]
    ) -> Values:
        """The gradient of the step's input; values that two layers read have two gradients, which are summed."""
        of_value: dict[int, Values] = {len(tape): gradient}  # value k is what layer k - 1 gave
        for index in reversed(range(len(tape))):
            layer = self.stack[index].layer
            own = of_value.pop(index + 1)
            if isinstance(layer, Merge):
                if layer.mode == "mul":
                    first, second = tape[index][0]
                    of_value[index - 1], of_value[index] = own * second, own * first
                    continue
                parts = np.split(own.reshape(len(own), layer.count, -1), layer.features[:1], axis=2)
                of_value[index - 1], of_value[index] = (part.reshape(len(own), -1) for part in parts)
                continue
            own = _backward(self.stack[index], tape[index], own, ahead[index], products[index])
            source = index + 1 + getattr(layer, "source", -1)
            of_value[source] = own + of_value[source] if source in of_value else own
        return of_value[0]


def _forward(one: Cell, state: list[Values], x: Values) -> tuple[Values, tuple]:
    """One step of one layer, its state moved on: (output, what the way back needs)."""
    layer = one.layer
    if isinstance(layer, Dense):
        frames = _framed(one, x)
        y = FUNCTIONS[layer.activation](frames @ one.kernel + one.bias)
        return y.reshape(len(x), -1), (frames, y, x.shape)
    if isinstance(layer, RECURRENT):
        return FORWARD[type(layer)](one, state, x) if layer.frames is None else _frames_forward(one, x)
    y, after = step_cell(one, tuple(state), x)
    state[:] = after
    if isinstance(layer, Pool):
        return y, (layer.taps(x), x.shape)
    return y, (y, x)


def _backward(one: Cell, entry: tuple, gradient: Values, ahead: list[Values], products: list[_Products]) -> Values:
    """The gradient of a layer's input from that of its output; its parameters' go into ``products``."""
    layer = one.layer
    if isinstance(layer, Dense):
        frames, y, shape = entry
        z = _through(layer.activation, gradient.reshape(y.shape), y)
        products.append({"kernel": (z, frames), "bias": (z,)})
        return _unframed(layer.frames, z @ one.kernel.T, shape)
    if isinstance(layer, Activation):
        return _through(layer.function, gradient, entry[0])
    if isinstance(layer, LayerNormalization):
        return _through_normalization(layer, gradient, entry[1])
    if isinstance(layer, Window):
        whole = gradient + ahead[0] if ahead else gradient
        older = whole[:, : -layer.features]
        ahead[:] = [np.concatenate([np.zeros_like(whole[:, : layer.features]), older], axis=1)]
        return whole[:, -layer.features :]
    if isinstance(layer, Pool):
        taps, shape = entry
        largest = np.argmax(taps, axis=2)[:, :, None] == np.arange(layer.frames.taps)[:, None]
        share = np.full_like(taps, 1 / layer.frames.taps) if layer.mean else largest
        spread = share * gradient.reshape(len(taps), layer.frames.count, 1, layer.features)
        return _unframed(layer.frames, spread.reshape(*taps.shape[:2], -1), shape)
    assert isinstance(layer, RECURRENT)
    if layer.frames is None:
        step, own = _recurrent_backward(one, entry, gradient, ahead)
        products.append({name: tuple(factor[:, None] for factor in factors) for name, factors in step.items()})
        return own
    return _frames_backward(one, entry, gradient, products)


def _recurrent_backward(one: Cell, entry: tuple, gradient: Values, ahead: list[Values]) -> tuple[_Products, Values]:
    """Of one frame: the factors of its parameters' gradients, and its input's gradient."""
    layer = one.layer
    h_gradient = gradient + ahead[0] if ahead else gradient
    z_input, z_recurrent, source, rest = BACKWARD[type(layer)](one, entry, h_gradient, ahead)
    x, h = entry[0], entry[1]
    step: _Products = {"kernel": (z_input, x), "bias": (z_input,), "recurrent_kernel": (z_recurrent, h)}
    if isinstance(layer, Gru):
        step["recurrent_bias"] = (z_recurrent,)
    if source is not None:  # the candidate's rows saw r * h, and ``rest`` is complete
        step["recurrent_kernel"] = (z_recurrent, h, source)
        ahead[:] = rest
    else:
        ahead[:] = [rest[0] + z_recurrent @ one.recurrent_kernel.T, *rest[1:]]
    return step, z_input @ one.kernel.T


def _frames_forward(one: Cell, x: Values) -> tuple[Values, tuple]:
    layer = one.layer
    assert isinstance(layer, RECURRENT)
    frames = _framed(one, x)
    state, entries, outputs = list(zero_cell(one, (len(x),))), [], []
    assert layer.frames is not None
    for t in layer.frames.order(layer.go_backwards):
        y, entry = FORWARD[type(layer)](one, state, frames[:, t])
        entries.append(entry)
        outputs.append(y)
    if layer.return_sequences:
        y = np.concatenate(outputs[::-1] if layer.go_backwards else outputs, axis=1)
    return y, (entries, x.shape)


def _frames_backward(one: Cell, entry: tuple, gradient: Values, products: list[_Products]) -> Values:
    layer = one.layer
    assert isinstance(layer, RECURRENT) and layer.frames is not None
    entries, shape = entry
    order = layer.frames.order(layer.go_backwards)
    by_frame = gradient.reshape(len(gradient), -1, one.recurrent_kernel.shape[0])
    inputs: list[Values] = [gradient] * len(order)
    ahead: list[Values] = []
    steps: list[_Products] = []
    for entry, t in reversed(list(zip(entries, order, strict=True))):
        if layer.return_sequences:
            own = by_frame[:, t]
        else:
            own = by_frame[:, 0] if not steps else np.zeros_like(by_frame[:, 0])
        step, inputs[t] = _recurrent_backward(one, entry, own, ahead)
        steps.append(step)
    joined = {
        name: tuple(np.stack([step[name][k] for step in steps], axis=1) for k in range(len(steps[0][name])))
        for name in steps[0]
    }
    products.append(joined)
    return _unframed(layer.frames, np.stack(inputs, axis=1), shape)


def _framed(one: Cell, x: Values) -> Values:
    """(B, frames, columns) what a layer multiplies with; one frame where it has no time axis."""
    frames: Frames | None = one.layer.frames  # type: ignore[union-attr]
    return x[:, None] if frames is None else frames.gather(x, one.kernel.shape[0] // frames.taps)


def _unframed(frames: Frames | None, gradient: Values, shape: tuple[int, ...]) -> Values:
    """The gradient of a layer's input (B, ...) from that of its frames (B, count, taps * features)."""
    if frames is None:
        return gradient[:, 0]
    features = gradient.shape[-1] // frames.taps
    parts = gradient.reshape(len(gradient), frames.count * frames.taps, features)
    given = np.zeros((shape[1] // features + 1, parts.shape[1]), gradient.dtype)
    given[frames.sources.ravel(), np.arange(parts.shape[1])] = 1  # the last row takes what -1 stands for
    return (given[:-1] @ parts).reshape(shape)


def _through_normalization(layer: LayerNormalization, gradient: Values, x: Values) -> Values:
    frames = x.reshape(len(x), layer.count, -1)
    centred = frames - frames.mean(axis=-1, keepdims=True)
    root = np.sqrt(np.mean(centred**2, axis=-1, keepdims=True) + layer.epsilon)
    scaled = centred / root
    own = gradient.reshape(frames.shape) * layer.gamma
    along = np.mean(own * scaled, axis=-1, keepdims=True) * scaled
    return ((own - own.mean(axis=-1, keepdims=True) - along) / root).reshape(x.shape)


def _through(function: str, gradient: Values, y: Values) -> Values:
    """The gradient ahead of an elementwise function, or of a softmax over the last axis."""
    if function == "softmax":
        return y * (gradient - np.sum(gradient * y, axis=-1, keepdims=True))
    return gradient * SLOPES[function](y)


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
