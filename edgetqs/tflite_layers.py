"""The expressions of a ``.tflite``'s outputs -> layers, from the outputs back to the inputs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

import numpy as np

from edgetqs.errors import Unsupported
from edgetqs.model import Activation, Dense, Gru, Lstm, Recurrent, SimpleRnn, frozen
from edgetqs.stepwise import Bidirectional, RepeatVector, Reshape, Trained
from edgetqs.tflite_cells import Step, alike, ordered, step, terms
from edgetqs.tflite_patterns import arguments, pre_activation, same
from edgetqs.tflite_symbols import Leaf, Stretch, Vector, joined, only, source
from edgetqs.tflite_windows import convolution, normalization, pooling

#: Layers of a model.
MOST_LAYERS = 64

_WithKernel = TypeVar("_WithKernel", bound=Dense | Recurrent)


@dataclass(slots=True)
class Chain:
    """Layers in order, what the first one reads at each step, and whether it reads the steps from last to first."""

    layers: list[Trained]
    inputs: list[Vector]
    backwards: bool = False
    halves: tuple[int, int] = (0, 0)  # where the last layer gives its halves the other way round: their sizes as asked

    def behind(self, layer: _WithKernel) -> Chain:
        """The chain with one more layer, whose columns follow the halves."""
        first, second = self.halves
        if first:
            columns = np.r_[first : first + second, :first]
            layer = replace(layer, kernel=frozen(layer.kernel[..., columns]))
        return Chain([*self.layers, layer], self.inputs, self.backwards)


@dataclass(slots=True)
class Reader:
    """``states`` collects inputs of the model that are states (h, c, step), from the last layer to the first;
    ``slack`` is what biases may differ by between steps, ``spread`` what they do; ``ports`` are the inputs that may be
    states, ``inputs`` the leaves of all inputs."""

    where: str
    slack: float = 1e-6
    ports: frozenset[int] = frozenset()
    spread: float = 0.0
    states: list[tuple[Vector, Vector | None, Step]] = field(default_factory=list)
    depth: int = 0
    inputs: Sequence[Leaf] = ()

    def follow(self, values: Sequence[Vector], sequence: bool) -> Chain:
        """The layers whose outputs are ``values``: one a step of a sequence, or a single one."""
        if all(_is_input(value) for value in values):
            backwards = _runs_backwards(values)
            return Chain([], list(values[::-1] if backwards else values), backwards)
        self.depth += 1
        if self.depth > MOST_LAYERS:
            raise Unsupported("has more layers than a forecaster", self.where)
        if sequence and len(values) > 1 and all(same(value, values[0]) for value in values[1:]):
            chain = self._straight(values[:1], False)
            return Chain([*chain.layers, RepeatVector("repeat_vector", len(values))], chain.inputs, chain.backwards)
        for attempt in (
            self._normalization,
            self._recurrent,
            self._bidirectional,
            self._framed,
            self._dense,
            self._activation,
        ):
            found = attempt(values, sequence)
            if found is not None:
                return found
        raise Unsupported(self._story(values), self.where)

    def _straight(self, values: Sequence[Vector], sequence: bool) -> Chain:
        """Layers for one that has no columns to exchange."""
        chain = self.follow(values, sequence)
        if chain.halves != (0, 0):
            raise Unsupported("puts the backward half of a Bidirectional layer first", self.where)
        return chain

    def _story(self, values: Sequence[Vector]) -> str:
        part = values[-1][0]
        keys = [part] if isinstance(part, Stretch) else ordered(set(terms(part)))
        kinds = ", ".join(sorted({key.leaf.kind for key in keys})) or "constants"
        return f"holds no layer that is known behind {len(values)} step(s) of what is made of: {kinds}"

    def _normalization(self, values: Sequence[Vector], sequence: bool) -> Chain | None:
        found = normalization(values)
        if found is None:
            return None
        chain = self._straight(found[1], sequence)
        return Chain([*chain.layers, found[0]], chain.inputs, chain.backwards)

    def _framed(self, values: Sequence[Vector], sequence: bool) -> Chain | None:
        """A pooling or a convolution."""
        found = pooling(values, sequence, self.inputs) or (convolution(values, self.inputs) if sequence else None)
        if found is None:
            return None
        chain = self._straight(found[1], True)
        return None if chain.backwards else Chain([*chain.layers, found[0]], chain.inputs)

    # --- recurrent layers ---------------------------------------------------------------

    def _steps(self, last: Vector) -> list[Step]:
        """The steps that lead to the state ``last``, in order; none where it is no state."""
        for found in step(last, self.slack, self.ports):
            if found.before is None and found.kind == "SimpleRNN":
                continue  # a Dense layer
            steps = [found]
            while steps is not None and _goes_on(steps[-1]):
                candidates = step(steps[-1].before or (), self.slack, self.ports)
                earlier = [one for one in candidates if steps[0].follows(one, self.slack)]
                if not earlier or len(steps) > 1 << 14:
                    steps = []
                    break
                one = earlier[0]
                self.spread = max(self.spread, *(abs(one.bias[k] - found.bias[k]).max() for k in one.present))
                steps.append(replace(one, kernel=found.kernel, recurrent_kernel=found.recurrent_kernel))
            if steps:
                return steps[::-1]
        return []

    def _recurrent(self, values: Sequence[Vector], sequence: bool) -> Chain | None:
        steps, flipped = self._steps(values[-1]), False
        if sequence and len(values) > 1 and len(steps) != len(values):
            steps, flipped = self._steps(values[0]), True
        if not steps or (sequence and len(steps) != len(values)):
            return None
        if sequence:
            states = [*(one.before for one in steps[1:]), values[0] if flipped else values[-1]]
            wanted = values[::-1] if flipped else values
            if not all(state is not None and same(state, value) for state, value in zip(states, wanted, strict=True)):
                return None
        layer = self._layer(steps, sequence)
        start = only(steps[0].before) if steps[0].before else None
        if start is not None and start.leaf.kind == "input":
            self.states.append((steps[0].before or (), steps[0].cell_before, steps[0]))
        chain = self.follow([joined([one.x]) for one in steps], True)
        return replace(chain.behind(replace(layer, go_backwards=chain.backwards)), backwards=flipped)

    def _layer(self, steps: list[Step], sequence: bool) -> Recurrent:
        last = steps[-1]
        if last.recurrent_kernel is None:
            todo = "a window of one step needs none; convert a longer window, or give edgetqs the Keras model"
            raise Unsupported("holds no recurrent weights", self.where, todo)
        kernel, recurrent, bias = (frozen(v) for v in (last.kernel, last.recurrent_kernel, last.bias))
        common = {"return_sequences": sequence, "activation": last.activation}
        if last.kind == "LSTM":
            return Lstm("lstm", kernel, recurrent, bias, recurrent_activation=last.gate_function,
                        cell_clip=last.clip, **common)  # type: ignore[arg-type]  # fmt: skip
        if last.kind == "GRU":
            after = last.recurrent_bias
            extra = frozen(np.zeros_like(bias) if after is None else after)
            return Gru("gru", kernel, recurrent, bias, extra, after is not None,
                       recurrent_activation=last.gate_function, **common)  # type: ignore[arg-type]  # fmt: skip
        return SimpleRnn("simple_rnn", kernel, recurrent, bias, **common)  # type: ignore[arg-type]

    def _bidirectional(self, values: Sequence[Vector], sequence: bool) -> Chain | None:
        """Two layers over the same steps from both sides; which of both halves is the forward one must be tried."""
        stretches = [only(value) for value in values]
        halves, mode = [list(value) for value in values], "concat"
        for kind, name in (("sum", "sum"), ("product", "mul")):
            if all(one is not None and one.leaf.kind == kind for one in stretches):
                found = [[only(arg) for arg in arguments(one)] for one in stretches if one is not None]
                halves, mode = [[part for part in pair if part is not None] for pair in found], name
        if any(len(pair) != 2 for pair in halves):
            return None
        refusal: Unsupported | None = None
        for order in (1, -1):
            ahead, back = ([pair[::order][side] for pair in halves] for side in (0, 1))
            try:
                chain = self._both([(one,) for one in ahead], [(one,) for one in back], sequence, mode)
            except Unsupported as error:
                refusal = refusal or error
                continue
            if chain is not None:
                sizes = (halves[0][0].size, halves[0][1].size) if order < 0 and mode == "concat" else (0, 0)
                return replace(chain, halves=sizes)
        if refusal is not None:
            raise refusal
        return None

    def _both(self, ahead: list[Vector], back: list[Vector], sequence: bool, mode: str) -> Chain | None:
        forward = self._steps(ahead[-1])
        backward = self._steps(back[0]) if sequence else self._steps(back[-1])
        if not forward or len(forward) != len(backward):
            return None
        for steps, outputs in ((forward, ahead), (backward, back[::-1])) if sequence else ():
            states = [*(one.before for one in steps[1:]), outputs[-1]]
            if len(states) != len(outputs) or not all(
                state is not None and same(state, value) for state, value in zip(states, outputs, strict=True)
            ):
                return None
        read = [joined([one.x]) for one in forward]
        if not all(same(a, joined([b.x])) for a, b in zip(read, backward[::-1], strict=True)):
            return None
        chain = self.follow(read, True)
        if chain.backwards:
            return None
        *_, one = chain.behind(self._layer(forward, sequence)).layers
        *_, other = chain.behind(replace(self._layer(backward, sequence), go_backwards=True)).layers
        layer = Bidirectional("bidirectional", one, other, mode)  # type: ignore[arg-type]
        return Chain([*chain.layers, layer], chain.inputs)

    # --- dense layers ---------------------------------------------------------------------

    def _dense(self, values: Sequence[Vector], sequence: bool) -> Chain | None:
        found = [pre_activation(value) for value in values]
        if any(one is None for one in found):
            return None
        functions, affines = zip(*(one for one in found if one is not None), strict=True)
        parts = [terms(affine) for affine in affines]
        keys = [ordered(set(part)) for part in parts]
        if len(set(functions)) != 1 or not all(keys) or any(key.leaf.kind == "zero" for row in keys for key in row):
            return None
        kernels = [np.concatenate([part[key] for key in row], axis=1) for part, row in zip(parts, keys, strict=True)]
        if not all(alike(kernels[0], one) for one in kernels[1:]):
            return None
        if not all(alike(affines[0].bias, one.bias) for one in affines[1:]):
            return None
        layer = Dense("dense", frozen(kernels[0][None]), frozen(affines[0].bias[None]), functions[0])
        inputs: list[Vector] = [joined([tuple(row)]) for row in keys]
        if len(keys[0]) == 1 or sequence or _is_input(inputs[0]):
            return self.follow(inputs, sequence).behind(layer)
        pair = self._bidirectional(inputs, False)
        if pair is not None:
            return pair.behind(layer)
        if len({key.size for key in keys[0]}) != 1:
            return None
        chain = self._straight([(key,) for key in keys[0]], True)  # every step of a sequence: Flatten
        if chain.backwards:
            return None
        shape = Reshape("flatten", (kernels[0].shape[1],))
        return Chain([*chain.layers, shape, layer], chain.inputs)

    def _activation(self, values: Sequence[Vector], sequence: bool) -> Chain | None:
        stretches = [only(value) for value in values]
        if any(one is None or one.leaf.kind not in ("tanh", "relu", "sigmoid") for one in stretches):
            return None
        known = [one for one in stretches if one is not None]
        if len({one.leaf.kind for one in known}) != 1:
            return None
        chain = self._straight([arguments(one)[0] for one in known], sequence)
        return Chain([*chain.layers, Activation("activation", known[0].leaf.kind)], chain.inputs, chain.backwards)


def _goes_on(one: Step) -> bool:
    before = only(one.before) if one.before else None
    return before is not None and before.leaf.kind not in ("zero", "input")


def _is_input(vector: Vector) -> bool:
    return bool(vector) and all(isinstance(p, Stretch) and p.leaf.kind in ("input", "scaled") for p in vector)


def _place(vector: Vector) -> tuple[int, int]:
    part = vector[0]
    assert isinstance(part, Stretch)
    return (source(part.leaf).data[1], part.start)


def _runs_backwards(values: Sequence[Vector]) -> bool:
    places = [_place(value) for value in values]
    return len(places) > 1 and places[0] > places[-1]
