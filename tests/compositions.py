"""Trained layers put together in ways that go sample by sample (STREAMING) or need a window (WINDOWED)."""

import itertools
from dataclasses import replace

import numpy as np
from models import KINDS, random_layer

from edgetqs.model import RECURRENT, Activation, Dense, LayerNormalization, frozen
from edgetqs.stepwise import Bidirectional, Convolution, Pooling, RepeatVector, Reshape, Trained

STEPS, FEATURES = 9, 3


def dense(units, inputs, activation="linear", seed=0, name="dense"):
    rng = np.random.default_rng(seed)
    kernel = frozen(rng.normal(size=(1, units, inputs)) / np.sqrt(inputs))
    return Dense(name, kernel, frozen(rng.normal(size=(1, units))), activation)


def recurrent(kind, units, inputs, sequence=False, seed=0, **options):
    layer = random_layer(kind, units, inputs, np.random.default_rng(seed), sequence=sequence)
    return replace(layer, name=f"{kind}_{seed}", **options)


def normalization(features, seed=0):
    rng = np.random.default_rng(seed)
    gamma, beta = rng.uniform(0.5, 1.5, features), rng.normal(size=features) / 4
    return LayerNormalization(f"norm_{features}", frozen(gamma), frozen(beta), 1e-3)


def convolution(filters, taps, inputs, activation="relu", seed=0, **options):
    inner = dense(filters, taps * inputs, activation, seed, f"conv_{seed}")
    return Convolution(inner.name, inner, taps, **options)


def both(kind, units, inputs, sequence=False, mode="concat"):
    backward = recurrent(kind, units, inputs, sequence, 2, go_backwards=True)
    return Bidirectional("both", recurrent(kind, units, inputs, sequence, 1), backward, mode)


STREAMING = {
    "stack": [recurrent("lstm", 4, 3, True), recurrent("gru", 5, 4, seed=1), dense(2, 5)],
    "sequence": [recurrent("rnn", 4, 3, True), dense(2, 4, "tanh")],
    "causal": [convolution(5, 4, 3, padding="causal"), recurrent("lstm", 4, 5), dense(1, 4)],
    "causal, dilated": [convolution(5, 3, 3, padding="causal", dilation=2), recurrent("lstm", 4, 5)],
    "normalised": [normalization(3), recurrent("lstm", 4, 3, True), normalization(4), recurrent("gru", 4, 4)],
    "classes": [recurrent("lstm", 4, 3), dense(5, 4, "softmax")],
    "classes by sample": [recurrent("rnn", 6, 3, True), Activation("a", "sigmoid"), dense(3, 6, "softmax")],
    "classes by frame": [recurrent("lstm", 4, 3), dense(8, 4), Reshape("r", (4, 2)), dense(3, 2, "softmax")],
    "causal, on top": [recurrent("gru", 4, 3, True), convolution(2, 3, 4, "linear", padding="causal")],
    "pointwise": [convolution(5, 1, 3, padding="same"), recurrent("lstm", 4, 5)],
    "repeated": [recurrent("lstm", 4, 3), RepeatVector("r", 3)],
    "decoder": [recurrent("lstm", 4, 3), RepeatVector("r", 6), recurrent("gru", 5, 4, True, 1), dense(2, 5)],
    "horizon": [recurrent("lstm", 4, 3), dense(8, 4, "tanh"), Reshape("r", (4, 2))],
    "horizon, then by frame": [recurrent("lstm", 4, 3), dense(8, 4), Reshape("r", (4, 2)), dense(3, 2, "sigmoid")],
    "convolved decoder": [recurrent("lstm", 4, 3), dense(8, 4), Reshape("r", (4, 2)), convolution(3, 2, 2, "sigmoid")],
}
WINDOWED = {
    "convolution": [convolution(5, 3, 3), recurrent("lstm", 4, 5), dense(2, 4)],
    "same": [convolution(5, 4, 3, padding="same"), recurrent("lstm", 4, 5)],
    "stride": [
        convolution(5, 3, 3, padding="same", stride=2),
        recurrent("gru", 4, 5, True),
        convolution(2, 2, 4, "tanh"),
    ],
    "causal stride": [convolution(5, 3, 3, padding="causal", stride=2), recurrent("gru", 4, 5)],
    "dilated": [convolution(5, 2, 3, dilation=3), recurrent("rnn", 4, 5)],
    "pool": [convolution(5, 3, 3, padding="same"), Pooling("p", 2, 2), recurrent("lstm", 4, 5)],
    "mean": [convolution(5, 3, 3, padding="same"), Pooling("p", 3, 2, mean=True), recurrent("lstm", 4, 5)],
    "mean of all": [recurrent("gru", 4, 3, True), Pooling("q", 0, mean=True), dense(1, 4)],
    "pool same": [Pooling("p", 4, 3, "same"), recurrent("lstm", 4, 3)],
    "pool overlapping": [Pooling("p", 3, 1), recurrent("lstm", 4, 3, True), Pooling("q", 0), dense(1, 4)],
    "flatten": [recurrent("lstm", 4, 3, True), Reshape("f", (STEPS * 4,)), dense(2, STEPS * 4)],
    "backwards": [recurrent("lstm", 4, 3, go_backwards=True), dense(2, 4)],
    "backwards alone": [recurrent("gru", 4, 3, True, go_backwards=True)],
    "backwards twice": [recurrent("lstm", 4, 3, True, go_backwards=True), recurrent("gru", 2, 4, True, 1), dense(1, 2)],
    "backwards, then again": [
        recurrent("rnn", 4, 3, True, go_backwards=True),
        recurrent("rnn", 2, 4, True, 1, go_backwards=True),
        dense(1, 2),
    ],
    "normalised convolution": [
        convolution(6, 3, 3, "tanh", padding="same"),
        normalization(6),
        Pooling("p", 2, 2),
        both("gru", 4, 6, True),
        normalization(8),
        recurrent("lstm", 4, 8),
        dense(4, 4, "softmax"),
    ],
    "mixed": [both("lstm", 4, 3, True), recurrent("gru", 5, 8, True, 3), Activation("a", "relu"), both("gru", 2, 5)],
    "autoencoder": [
        both("lstm", 4, 3),
        RepeatVector("r", STEPS),
        both("gru", 3, 8, True),
        convolution(3, 3, 6, "linear", 4, padding="same"),
    ],
} | {
    f"bidirectional {kind} {mode} {sequence}": [
        both(kind, 4, 3, sequence, mode),
        dense(2, 8 if mode == "concat" else 4),
    ]
    for kind, mode, sequence in itertools.product(KINDS, ("concat", "sum", "ave", "mul"), (True, False))
}


def with_activation(layers: list[Trained], function: str) -> list[Trained]:
    """The same with other activations in all cells."""

    def changed(layer: Trained) -> Trained:
        if isinstance(layer, Bidirectional):
            return replace(layer, forward=changed(layer.forward), backward=changed(layer.backward))
        return replace(layer, activation=function) if isinstance(layer, RECURRENT) else layer

    return [changed(layer) for layer in layers]
