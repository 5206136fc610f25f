"""Simulated series, each from a fixed seed. Rows are (samples, inputs) in physical units."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from series import Stretches, cut

TRAINING, VALIDATION, TEST = 16000, 1500, 1440  # samples, in this order in time
SAMPLES = TRAINING + VALIDATION + TEST


def in_order(rows: NDArray) -> Stretches:
    """Training first, then validation, then test."""
    return cut(rows[None], slice(TRAINING, TRAINING + VALIDATION), slice(TRAINING + VALIDATION, SAMPLES))


def steps_of(rng: np.random.Generator, low: float, high: float, length: int) -> NDArray:
    """A value for every sample that changes each ``length`` samples, uniform in low..high."""
    return np.repeat(rng.uniform(low, high, SAMPLES // length + 1), length)[:SAMPLES]


def runge_kutta(rate: Callable[[float, NDArray], NDArray], t: float, x: NDArray, step: float) -> NDArray:
    """One classical step of fourth order of dx/dt = rate(t, x)."""
    a = rate(t, x)
    b = rate(t + step / 2, x + step / 2 * a)
    c = rate(t + step / 2, x + step / 2 * b)
    d = rate(t + step, x + step * c)
    return x + step / 6 * (a + 2 * b + 2 * c + d)


def lorenz() -> Stretches:
    """Lorenz 1963 (10, 28, 8/3) each 0.08: 24 samples are 1.7 Lyapunov times (exponent 0.906)."""

    def rate(_: float, x: NDArray) -> NDArray:
        return np.array([10 * (x[1] - x[0]), x[0] * (28 - x[2]) - x[1], x[0] * x[1] - 8 / 3 * x[2]])

    x, rows = np.array([1.0, 1.0, 25.0]), []
    for _ in range(SAMPLES + 100):
        for _ in range(8):
            x = runge_kutta(rate, 0.0, x, 0.01)
        rows.append(x)
    return in_order(np.array(rows[100:]))


def mackey() -> Stretches:
    """Mackey-Glass, dx/dt = 0.2 x(t - 30) / (1 + x(t - 30)^10) - 0.1 x, each 3 time units."""
    step, delay, stride = 0.1, 300, 30
    x = [1.2] * (delay + 1)
    for _ in range((SAMPLES + 200) * stride):
        old, next_old = x[-delay - 1], x[-delay]
        gain, next_gain = 0.2 * old / (1 + old**10), 0.2 * next_old / (1 + next_old**10)
        guess = x[-1] + step * (gain - 0.1 * x[-1])  # Heun's method
        x.append(x[-1] + step / 2 * (gain - 0.1 * x[-1] + next_gain - 0.1 * guess))
    return in_order(np.array(x[delay + 1 :])[::stride][200:, None])


def oscillator() -> Stretches:
    """Driven van der Pol oscillator each 0.2 s: position, velocity, damping (held), force (known).

    The damping jumps each 240 samples, the force is two sine waves whose amplitudes do. The
    force is constant within a sample; position and velocity carry noise of 0.01.
    """
    rng = np.random.default_rng(8)
    damping = steps_of(rng, 0.3, 2.0, 240)
    time = 0.2 * np.arange(SAMPLES)
    force = steps_of(rng, 0.0, 1.5, 160) * np.sin(0.7 * time) + steps_of(rng, 0.0, 1.5, 200) * np.sin(1.9 * time)
    x, rows = np.array([1.0, 0.0]), []
    for mu, push in zip(damping, force, strict=True):

        def rate(_: float, x: NDArray, mu: float = mu, push: float = push) -> NDArray:
            return np.array([x[1], mu * (1 - x[0] ** 2) * x[1] - x[0] + push])

        rows.append(x)
        for _ in range(4):
            x = runge_kutta(rate, 0.0, x, 0.05)
    noisy = np.array(rows) + rng.normal(0, 0.01, (SAMPLES, 2))
    return in_order(np.column_stack([noisy, damping, force]))


def glucose() -> Stretches:
    """A diabetic patient each 5 minutes: glucose mg/dl, basal rate U/h (held), meals g and boluses U (known).

    Bergman's minimal model with two compartments each for food and for insulin under the skin.
    Meals take 15 minutes; boluses are off by up to 40 %, as counted carbohydrates are. The sensor
    errs by 3 mg/dl, the disturbance of glucose by a slow random term.
    """
    rng = np.random.default_rng(3)
    basal = steps_of(rng, 0.6, 1.5, 96)  # a new rate each 8 hours
    meals, boluses = np.zeros(SAMPLES + 3), np.zeros(SAMPLES + 3)
    for day in range(SAMPLES // 288 + 1):
        for hour, grams in ((7.5, 45), (12.5, 65), (16, 20), (19, 70)):
            k = day * 288 + int(12 * (hour + rng.normal(0, 0.7)))
            eaten = grams * rng.uniform(0.5, 1.4)
            factor = rng.uniform(0.6, 1.4)
            if 0 <= k < SAMPLES and rng.random() < 0.9:
                meals[k : k + 3] += eaten / 3
                boluses[k] += round(eaten / 12 * factor, 1)

    g, action, insulin, drift = 120.0, 0.0, 10.0, 0.0
    gut, skin = [0.0, 0.0], [600.0, 600.0]  # g, mU
    rows = []
    for k in range(SAMPLES):
        correction = round(max(0.0, (g - 220) / 60), 1) * (k % 36 == 0)
        boluses[k] += correction
        rows.append((g + rng.normal(0, 3), basal[k], meals[k], boluses[k]))
        drift = 0.97 * drift + rng.normal(0, 0.05)
        for _ in range(5):  # minutes
            food, dose = meals[k] / 5, 1000 * (boluses[k] / 5 + basal[k] / 60)
            absorbed, entering = gut[1] / 40, skin[1] / 55
            gut = [gut[0] + food - gut[0] / 40, gut[1] + gut[0] / 40 - absorbed]
            skin = [skin[0] + dose - skin[0] / 55, skin[1] + skin[0] / 55 - entering]
            insulin += entering / 8.4 - 0.138 * insulin
            action += 0.025 * (5e-4 * insulin - action)
            appearing = 0.8 * absorbed * 1000 / 112
            g = max(30.0, g + 1.9 + drift - (0.006 + action) * g + appearing)
    return in_order(np.array(rows).round(2))


def tide() -> Stretches:
    """Hourly water level in m and the wind along the channel in m/s (held): eight harmonics and a surge."""
    rng = np.random.default_rng(12)
    hours = np.arange(SAMPLES)
    harmonics = (  # period in hours, amplitude in m
        (12.4206, 1.20), (12.0, 0.42), (12.6583, 0.25), (11.9672, 0.12),
        (23.9345, 0.18), (25.8193, 0.14), (6.2103, 0.10), (6.1033, 0.06),
    )  # fmt: skip
    level = sum(a * np.cos(2 * np.pi * hours / period + rng.uniform(0, 2 * np.pi)) for period, a in harmonics)
    wind, surge, rows = 0.0, 0.0, []
    for k in range(SAMPLES):
        wind = 0.97 * wind + rng.normal(0, 1.6)
        surge += (0.0025 * wind * abs(wind) - surge) / 8
        rows.append((level[k] + surge + rng.normal(0, 0.02), wind))
    return in_order(np.array(rows).round(3))
