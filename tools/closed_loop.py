"""Training of recurrent forecasters in closed loop, shared by train_sample.py and bench/train.py.

Rows are (batch, time, inputs), normalised, inputs in the order feedback, held, known, so
that output i feeds input i. A forecast starts from a zero state.
"""

from __future__ import annotations

from collections.abc import Callable

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

BURN_IN = 4  # steps from the zero state whose forecasts are not trained


def one_thread() -> None:
    """Makes TensorFlow compute the same bits every time; call it before anything else of TensorFlow."""
    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    tf.config.experimental.enable_op_determinism()


def windows(rows: NDArray, length: int) -> NDArray[np.float32]:
    """Every stretch of ``length`` rows, shape (windows, length, columns)."""
    view = np.lib.stride_tricks.sliding_window_view(rows, length, axis=0)
    return np.ascontiguousarray(view.transpose(0, 2, 1), dtype=np.float32)


def forecast(model: keras.Model, rows: tf.Tensor, warm_up: int, held: int) -> tf.Tensor:
    """Forecasts of rows 1, 2, ...: from ``warm_up`` true rows, then in closed loop.

    Past the warm-up only known inputs of ``rows`` are read; ``held`` counts the inputs that
    keep their last value. Returns (batch, time - 1, outputs).
    """
    fed = model.output_shape[-1]
    batch = tf.shape(rows)[0]
    states = {m.name: m.get_initial_state(batch_size=batch) for m in model.layers if isinstance(m, keras.layers.RNN)}
    outputs: list[tf.Tensor] = []
    for t in range(rows.shape[1] - 1):
        x = rows[:, t]
        if t >= warm_up:
            x = tf.concat([outputs[-1], rows[:, warm_up - 1, fed : fed + held], x[:, fed + held :]], axis=1)
        for layer in model.layers:
            if layer.name in states:
                x, states[layer.name] = layer.cell(x, states[layer.name])
            else:
                x = layer(x)
        outputs.append(x)
    return tf.stack(outputs, axis=1)


def closed_loop_loss(model: keras.Model, warm_up: int, held: int) -> Callable[[tf.Tensor], tf.Tensor]:
    """Mean squared error of ``forecast``, as a function of the rows."""

    def loss(rows: tf.Tensor) -> tf.Tensor:
        error = forecast(model, rows, warm_up, held) - rows[:, 1:, : model.output_shape[-1]]
        return tf.reduce_mean(tf.square(error[:, BURN_IN:]))

    return loss


def train(
    model: keras.Model,
    batch: Callable[[], NDArray],
    updates: int,
    rate: float,
    loss: Callable[[tf.Tensor], tf.Tensor],
) -> None:
    """Minimises ``loss`` of the rows that ``batch`` draws, in place; the learning rate falls from ``rate`` to 0."""
    optimizer = keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(rate, updates), global_clipnorm=1.0)

    @tf.function
    def update(rows: tf.Tensor) -> tf.Tensor:
        with tf.GradientTape() as tape:
            value = loss(rows)
        optimizer.apply(tape.gradient(value, model.trainable_variables), model.trainable_variables)
        return value

    losses = [float(update(batch())) for _ in range(updates)]
    print(f"{updates} updates: mean squared error {np.mean(losses[-100:]):.4f}", flush=True)
