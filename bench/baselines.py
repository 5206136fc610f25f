"""What plans are compared with: other ways to say what an error in a unit costs.

Each returns the cost (units, 2) of int4 and int8 per unit; the same exact
optimisation then makes a plan of it. Those that need data get the held-out
series' windows, which flatters them.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from edgetqs.bptt import Parameters, Tape
from edgetqs.lesson import Lesson
from edgetqs.model import RECURRENT, Forecaster, frozen
from edgetqs.planner import WIDTHS
from edgetqs.rollout import Cell, Values, cells, step, step_cell, zero_state
from edgetqs.trajectories import synthesise
from edgetqs.units import Block, Unit, blocks, weights

#: Random vectors of the trace, and the size of the step that stands for a derivative.
HUTCHINSON, SHIFT = 96, 1e-4


def nearest_blocks(forecaster: Forecaster, rounded: dict[int, Forecaster]) -> dict[tuple[Block, int], Values]:
    """Rounding errors Q(W) - W of every block and width."""
    return {
        (block, width): np.asarray(weights(rounded[width], block) - weights(forecaster, block), np.float64)
        for block in blocks(forecaster)
        for width in WIDTHS
    }


def alone(forecaster: Forecaster, unit: Unit, width: int, errors: dict[tuple[Block, int], Values]) -> Forecaster:
    """The forecaster with one unit quantized and everything else float."""
    layers = list(forecaster.layers)
    for block in unit.blocks:
        tensor = np.array(getattr(layers[block.layer], block.tensor), np.float64)
        tensor[block.gate] += errors[block, width]
        layers[block.layer] = replace(layers[block.layer], **{block.tensor: frozen(tensor, np.float64)})  # type: ignore[arg-type]
    return replace(forecaster, layers=tuple(layers))


def weight_mse(units: tuple[Unit, ...], errors: dict[tuple[Block, int], Values]) -> Values:
    """Squared weight errors."""
    return np.array([[sum(np.sum(errors[b, w] ** 2) for b in unit.blocks) for w in WIDTHS] for unit in units])


def leave_one_out(
    forecaster: Forecaster, units: tuple[Unit, ...], errors: dict[tuple[Block, int], Values], lesson: Lesson
) -> Values:
    """Measured squared deviation of the rollout with one unit quantized."""
    return np.array([[lesson.error(alone(forecaster, u, w, errors)) for w in WIDTHS] for u in units])


def one_step(forecaster: Forecaster, units: tuple[Unit, ...], errors: dict[tuple[Block, int], Values]) -> Values:
    """Squared error of the output after one step of the quantized unit, from states of the float model."""
    closed = bool(forecaster.feedback.pairs)
    start = synthesise(forecaster, 24 if closed else forecaster.window)
    stack, state, x = start.stack, start.state, start.x
    if not closed:
        for t in range(start.future.shape[1] - 1):
            _, state = step(stack, state, start.future[:, t])
        x = start.future[:, -1]
    answer = step(stack, state, x)[0]

    def cost(unit: Unit, width: int) -> float:
        moved = step(cells(alone(forecaster, unit, width, errors)), state, x)[0]
        return float(np.mean(((moved - answer) / start.spread) ** 2))

    return np.array([[cost(unit, width) for width in WIDTHS] for unit in units])


def signal_to_noise(
    forecaster: Forecaster, units: tuple[Unit, ...], errors: dict[tuple[Block, int], Values], history: Values
) -> Values:
    """Noise over signal of what a unit's rows give, on data (the inverse of SQNR)."""
    seen = _inputs(cells(forecaster), forecaster, history)

    def power(block: Block, matrix: Values) -> float:
        return float(np.mean((seen[block.layer, block.tensor] @ matrix.T) ** 2))

    return np.array(
        [
            [
                sum(power(b, errors[b, w]) for b in unit.blocks)
                / max(sum(power(b, weights(forecaster, b).astype(np.float64)) for b in unit.blocks), 1e-30)
                for w in WIDTHS
            ]
            for unit in units
        ]
    )


def _inputs(stack: tuple[Cell, ...], forecaster: Forecaster, history: Values) -> dict[tuple[int, str], Values]:
    """What each tensor is multiplied with along the histories, (steps, columns)."""
    state = zero_state(stack, (len(history),))
    seen: dict[tuple[int, str], list[Values]] = {}
    for t in range(history.shape[1]):
        x, after = history[:, t], []
        for index, (one, own) in enumerate(zip(stack, state, strict=True)):
            seen.setdefault((index, "kernel"), []).append(x)
            if isinstance(one.layer, RECURRENT):
                seen.setdefault((index, "recurrent_kernel"), []).append(own[0])
            x, own = step_cell(one, own, x)
            after.append(own)
        state = tuple(after)
    return {key: np.concatenate(values).astype(np.float64) for key, values in seen.items()}


def hessian_traces(forecaster: Forecaster, history: Values, truth: Values, *, seed: int = 0) -> dict[Block, float]:
    """Trace of the Hessian of the one-step loss on data, by block (HAWQ-V2).

    history (B, W, inputs), truth (B, outputs) of the next step, normalised.
    Hutchinson's estimate with Rademacher vectors over all weights at once; a
    Hessian-vector product is the difference of two gradients.
    """
    rng = np.random.default_rng(seed)
    every = blocks(forecaster)
    traces = dict.fromkeys(every, 0.0)
    whole = Unit("all", "", "", "", tuple(every))
    for _ in range(HUTCHINSON):
        signs = {(b, 8): rng.choice([-1.0, 1.0], weights(forecaster, b).shape) for b in every}
        ends = [
            _gradients(alone(forecaster, whole, 8, {key: side * v for key, v in signs.items()}), history, truth)
            for side in (SHIFT, -SHIFT)
        ]
        for block in every:
            change = ends[0][block.layer, block.tensor] - ends[1][block.layer, block.tensor]
            traces[block] += float(np.sum(signs[block, 8] * change[block.gate])) / (2 * SHIFT) / HUTCHINSON
    return traces


def hessian_cost(
    forecaster: Forecaster,
    units: tuple[Unit, ...],
    errors: dict[tuple[Block, int], Values],
    traces: dict[Block, float],
) -> Values:
    """Mean trace of each unit times its squared weight errors."""
    mean = [
        sum(traces[b] for b in unit.blocks) / sum(weights(forecaster, b).size for b in unit.blocks) for unit in units
    ]
    return np.maximum(np.array(mean), 0)[:, None] * weight_mse(units, errors)


def _gradients(forecaster: Forecaster, history: Values, truth: Values) -> Parameters:
    """Of the mean squared error after the last step."""
    plain = replace(forecaster, feedback=replace(forecaster.feedback, pairs=()))
    tape = Tape(plain, cells(plain))
    outputs = tape.forecast(history, history[:, :0])
    gradient = np.zeros_like(outputs)
    gradient[:, -1] = 2 * (outputs[:, -1] - truth) / truth.size
    return tape.backward(gradient)
