"""Lessons: what the teacher shows, and how a student's error is measured."""

from dataclasses import replace

import numpy as np
import pytest
from models import KINDS, random_forecaster, uniform

from edgetqs.lesson import MOST_STEPS, Lesson, forecast
from edgetqs.quantizer import quantize
from edgetqs.rollout import cells


@pytest.mark.parametrize("kind", KINDS)
def test_the_teacher_makes_no_error_and_a_diverging_student_an_infinite_one(kind):
    forecaster = random_forecaster(kind, 4, 3, 2)
    lesson = Lesson.of(forecaster, 10, 24, 0)
    assert lesson.error(forecaster) < 1e-29
    stack = cells(forecaster)
    broken = (*stack[:-1], replace(stack[-1], bias=stack[-1].bias + np.inf))
    assert lesson.errors(forecaster, broken) == np.inf


def test_error_is_the_geometric_mean_over_the_kinds():
    forecaster = random_forecaster("gru", 4, 3, 2)
    lesson = Lesson.of(forecaster, 10, 24, 0)
    assert lesson.kinds == ((0, 8), (8, 16), (16, 24))
    other = random_forecaster("gru", 4, 3, 2, seed=1)
    off = (forecast(other, cells(other), lesson.history, lesson.future) - lesson.answers) / lesson.spread
    single = [np.mean(off[first:last] ** 2) for first, last in lesson.kinds]
    assert lesson.error(other) == pytest.approx(np.prod(single) ** (1 / 3))


def test_each_kind_has_its_own_spread():
    forecaster = random_forecaster("lstm", 4, 3, 2)
    lesson = Lesson.of(forecaster, 10, 24, 0)
    for first, last in lesson.kinds:
        spread = lesson.answers[first:last].std(axis=(0, 1))
        np.testing.assert_allclose(lesson.spread[first:last, 0], np.broadcast_to(spread, (last - first, 2)))


def test_own_histories_are_what_the_closed_loop_took():
    forecaster = random_forecaster("lstm", 4, 3, 2, known=False, window=16)
    history = Lesson.of(forecaster, 10, 24, 0).history[8:]
    # Outputs 0 and 1 are fed back, input 2 is held.
    assert np.ptp(history[:, :, 2], axis=1).max() == 0
    assert np.ptp(history[:, :, :2], axis=1).min() > 0


def test_direct_forecasters_have_one_kind():
    forecaster = random_forecaster("gru", 4, 3, 2, feedback=False)
    lesson = Lesson.of(forecaster, 10, 12, 0)
    assert lesson.kinds == ((0, 12),)
    assert lesson.answers.shape == (12, 10, 2)


def test_same_seed_same_lesson():
    forecaster = random_forecaster("rnn", 4, 3, 2)
    first, second, other = (Lesson.of(forecaster, 10, 24, seed) for seed in (0, 0, 1))
    assert np.array_equal(first.history, second.history)
    assert not np.array_equal(first.history, other.history)


def test_steps_follow_the_horizon():
    closed, direct = (random_forecaster("rnn", 4, 2, 1, feedback=feedback, window=30) for feedback in (True, False))
    assert [Lesson.steps(closed, horizon) for horizon in (None, 7, 1000)] == [24, 7, MOST_STEPS]
    assert {Lesson.steps(direct, horizon) for horizon in (None, 7, 1000)} == {30}


@pytest.mark.parametrize("horizon", [None, 7])
def test_rounding_looks_as_far_ahead_as_asked(monkeypatch, horizon):
    seen = []
    of = Lesson.of

    def noted(teacher, steps, *options):
        seen.append(steps)
        return of(teacher, steps, *options)

    monkeypatch.setattr(Lesson, "of", staticmethod(noted))
    forecaster = random_forecaster("rnn", 3, 2, 1, layers=1)
    quantize(forecaster, uniform(forecaster, 4), "learned", horizon=horizon)
    assert seen == [horizon or 24] * 4  # the metrics', the styles', and two to learn from
