"""Random forecasters that several test files share."""

from __future__ import annotations

import numpy as np

from edgetqs.model import Channel, Dense, Feedback, Forecaster, Gru, Layer, Lstm, SimpleRnn, frozen
from edgetqs.units import blocks

KINDS = ("lstm", "gru", "gru_reset_before", "rnn")


def random_layer(
    kind: str,
    units: int,
    inputs: int,
    rng: np.random.Generator,
    *,
    name: str = "",
    gain: float = 1.0,
    sequence: bool = False,
    gate: str = "sigmoid",
) -> Layer:
    """A recurrent layer with orthogonal recurrent weights of radius 0.9 * gain; ``gate`` squashes its gates."""
    gates = {"lstm": 4, "gru": 3, "gru_reset_before": 3, "rnn": 1}[kind]
    kernel = frozen(gain * rng.normal(0, inputs**-0.5, (gates, units, inputs)))
    square = [np.linalg.qr(rng.normal(size=(units, units)))[0] for _ in range(gates)]
    recurrent = frozen(0.9 * gain * np.stack(square))
    bias = rng.normal(0, 0.15, (gates, units))
    name = name or kind
    if kind == "lstm":
        bias[1] += 1
        return Lstm(name, kernel, recurrent, frozen(bias), recurrent_activation=gate, return_sequences=sequence)
    if kind == "rnn":
        return SimpleRnn(name, kernel, recurrent, frozen(bias), return_sequences=sequence)
    after = kind == "gru"
    recurrent_bias = frozen(rng.normal(0, 0.1, (gates, units)) * after)
    return Gru(
        name,
        kernel,
        recurrent,
        frozen(bias),
        recurrent_bias,
        reset_after=after,
        recurrent_activation=gate,
        return_sequences=sequence,
    )


def random_dense(
    units: int, inputs: int, rng: np.random.Generator, *, activation: str = "linear", name: str = "dense"
) -> Dense:
    kernel = rng.normal(0, 2 * inputs**-0.5, (1, units, inputs))
    return Dense(name, frozen(kernel), frozen(rng.normal(0, 0.1, (1, units))), activation)


def random_forecaster(
    kind: str = "lstm",
    units: int = 8,
    inputs: int = 3,
    outputs: int = 1,
    *,
    layers: int = 2,
    gain: float = 1.0,
    feedback: bool = True,
    known: bool = True,
    seed: int = 0,
    sequence: bool = False,
    activation: str = "linear",
    window: int = 24,
    scaled: bool = False,
    gate: str = "sigmoid",
) -> Forecaster:
    """``layers`` recurrent layers and a dense head.

    Output k is fed back to input k, the last input is known ahead where there
    is one to spare, others are held. ``scaled`` gives every channel its own
    mean and std.
    """
    rng = np.random.default_rng(seed)
    stack: list[Layer] = []
    features = inputs
    for index in range(layers):
        last = index + 1 == layers
        name = f"{kind}_{index}"
        more = sequence or not last
        stack.append(random_layer(kind, units, features, rng, name=name, gain=gain, sequence=more, gate=gate))
        features = units
    stack.append(random_dense(outputs, features, rng, activation=activation))

    def channel(name: str, index: int) -> Channel:
        return Channel(name, "unit", 1.5 * index - 2.0, 0.7 + 0.6 * index) if scaled else Channel(name)

    pairs = tuple((k, k) for k in range(min(inputs, outputs)))
    spare = (inputs - 1,) if known and inputs > len(pairs) else ()
    return Forecaster(
        f"{kind}{units}",
        tuple(stack),
        tuple(channel(f"x{k}", k) for k in range(inputs)),
        tuple(channel(f"y{k}", k + 1) for k in range(outputs)),
        window,
        Feedback(pairs, spare) if feedback else Feedback(),
    )


def uniform(forecaster: Forecaster, width: int) -> dict:
    """Widths for ``quantize``: the same for every block."""
    return dict.fromkeys(blocks(forecaster), width)


def mixed(forecaster: Forecaster) -> dict:
    """Widths for ``quantize``: 4, 8, 4 ... by block, so that gates of one tensor differ."""
    return {block: (4, 8)[k % 2] for k, block in enumerate(blocks(forecaster))}
