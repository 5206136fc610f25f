"""Back-propagation against finite differences, and learned rounding against where it starts."""

from dataclasses import replace

import numpy as np
import pytest
from models import random_forecaster

from edgetqs import distill
from edgetqs.lesson import Lesson
from edgetqs.model import frozen
from edgetqs.quantizer import quantize
from edgetqs.units import blocks

KINDS = ["lstm", "gru", "gru_reset_before", "rnn"]


def shaken(forecaster, size=0.03, seed=1):
    """The forecaster with noise on every weight and bias, in float64."""
    rng = np.random.default_rng(seed)
    names = ("kernel", "recurrent_kernel", "bias", "recurrent_bias")

    def noisy(layer):
        values = {n: np.asarray(getattr(layer, n), np.float64) for n in names if hasattr(layer, n)}
        moved = {n: frozen(v + size * rng.standard_normal(v.shape), np.float64) for n, v in values.items()}
        return replace(layer, **moved)

    return replace(forecaster, layers=tuple(map(noisy, forecaster.layers)))


@pytest.mark.parametrize("feedback", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_gradients_equal_finite_differences(kind, feedback):
    teacher = replace(random_forecaster(kind, 5, 4, 2, feedback=feedback), window=10)
    student = shaken(teacher)
    lesson = Lesson.of(teacher, 8, 12, 0)
    lesson = replace(lesson, kinds=((0, lesson.count),))  # the plain mean, which the gradients are of
    gradients = lesson.gradients(student, np.arange(lesson.count))
    rng = np.random.default_rng(0)
    for (index, name), gradient in gradients.items():
        if kind == "gru_reset_before" and name == "recurrent_bias":
            continue  # not a parameter of this kind
        value = np.asarray(getattr(student.layers[index], name))
        place = tuple(rng.integers(0, size) for size in value.shape)

        def error(step, index=index, name=name, value=value, place=place):
            moved = value.copy()
            moved[place] += step
            layers = list(student.layers)
            layers[index] = replace(layers[index], **{name: frozen(moved, np.float64)})
            return lesson.error(replace(student, layers=tuple(layers)))

        numeric = (error(1e-5) - error(-1e-5)) / 2e-5
        assert gradient[place] == pytest.approx(numeric, rel=1e-5, abs=1e-9), (index, name)


@pytest.mark.parametrize("kind", KINDS)
def test_learned_rounding_keeps_the_grid_and_is_not_worse(kind, monkeypatch):
    monkeypatch.setattr(distill, "STEPS", 30)
    forecaster = random_forecaster(kind, 8, 4, 2)
    widths = {block: (4, 8)[k % 2] for k, block in enumerate(blocks(forecaster))}
    before, after = (quantize(forecaster, widths, rounding) for rounding in ("trajectory", "learned"))
    for (_, _, old), (_, _, new) in zip(before.matrices(), after.matrices(), strict=True):
        assert np.array_equal(old.scales, new.scales)
        assert np.array_equal(old.multiplier, new.multiplier)
        limits = np.repeat([2 ** (width - 1) - 1 for width in new.widths], new.gate_rows)
        assert (np.abs(new.weights) <= limits[:, None]).all()
    held_out = Lesson.of(forecaster, 24, distill.HELD_OUT, 4)
    errors = [held_out.error(distill.dequantized(forecaster, model)) for model in (before, after)]
    assert errors[1] <= errors[0] * (1 + 1e-3)  # biases are rounded to their steps after the choice


def test_learning_helps_an_lstm_at_int4():
    forecaster = random_forecaster("lstm", 16, 4, 2)
    widths = dict.fromkeys(blocks(forecaster), 4)
    held_out = Lesson.of(forecaster, 24, 32, 77)
    errors = {
        rounding: held_out.error(distill.dequantized(forecaster, quantize(forecaster, widths, rounding)))
        for rounding in ("nearest", "trajectory", "learned")
    }
    assert errors["trajectory"] < 0.25 * errors["nearest"]  # mean squares
    assert errors["learned"] < 0.25 * errors["nearest"]
