"""A ``.tflite`` -> Forecaster, where its graph is one of the cells that edgetqs knows.

The graph is run once on unknowns (``tflite_trace``), so fused operators,
loops and unrolled steps all become the same expressions; ``tflite_patterns``
knows what a step of a cell looks like in them, ``tflite_layers`` finds the
layers. What was found is then computed beside the graph on random windows:
a file that was misunderstood is refused.
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from edgetqs.errors import LOGITS, BadInput, Unsupported
from edgetqs.model import RECURRENT, Channel, Dense, Forecaster
from edgetqs.names import module_name
from edgetqs.read_keras import DEFAULT_WINDOW
from edgetqs.rollout import Values
from edgetqs.rollout import cells as stack_of
from edgetqs.rollout import step as run_step
from edgetqs.rollout import window as run_window
from edgetqs.stepwise import Bidirectional, Convolution, Reshape, Trained, output_channels, stepwise
from edgetqs.tflite_graph import DAMAGED, MOST_BYTES, Floats, Graphs, read_bytes
from edgetqs.tflite_layers import Chain, Reader
from edgetqs.tflite_operators import OPERATORS
from edgetqs.tflite_origins import Watched, found_in
from edgetqs.tflite_symbols import Affine, Stretch, Vector, joined, only, size, source, value_of
from edgetqs.tflite_trace import Trace, Unknown

#: What a file computes and what was found in it must agree, in float64 with float32 weights.
AGREEMENT = 2e-5
AGAIN = "convert the model again"
BLACK_BOX = "`edgetqs score` and `edgetqs plan` take any .tflite with --black-box"
_LIMITS = {"int8": (-128, 127), "uint8": (0, 255), "int16": (-32768, 32767)}


def read_tflite(path: str | os.PathLike[str], *, logits: bool = False) -> Forecaster:
    """The forecaster in a ``.tflite``, with dequantized weights.

    ``logits`` takes what a softmax at the end is applied to as the output.
    Raises BadInput for a file that is
    damaged or hostile, Unsupported for one without a known recurrent pattern.
    """
    path = Path(path)
    return read_content(read_bytes(path), str(path), path.stem, logits=logits)


def read_content(content: bytes, where: str, name: str, *, logits: bool = False) -> Forecaster:
    """The same for the bytes of a file; ``where`` and ``name`` are told of them."""
    return read_with_origins(content, where, name, logits=logits)[0]


def read_with_origins(
    content: bytes, where: str, name: str, *, logits: bool = False
) -> tuple[Forecaster, dict[str, str]]:
    """The forecaster, and the operators that each layer was found in by the layer's name."""
    if not 8 < len(content) <= MOST_BYTES or content[4:8] != b"TFL3":
        raise BadInput("not a .tflite file", where, AGAIN)
    try:
        graphs = Graphs(content, where)
        with np.errstate(all="ignore"):
            forecaster, origins = _read(graphs, logits)
    except DAMAGED as error:
        raise BadInput(f"a damaged .tflite file: {error}", where, AGAIN) from error
    except (RecursionError, MemoryError) as error:
        raise BadInput("a .tflite file that is nested too deep or too large", where, AGAIN) from error
    except Unsupported as error:
        if error.todo:
            raise
        raise Unsupported(error.what, error.where, f"operators: {_operators(graphs)}; {BLACK_BOX}") from error
    return replace(forecaster, name=module_name(name), sha256=hashlib.sha256(content).hexdigest()), origins


def _operators(graphs: Graphs) -> str:
    counts = Counter(one.custom or one.name for graph in graphs.read.values() for one in graph.operators)
    shown = [f"{count} {name}" for name, count in counts.most_common(12)]
    return ", ".join([*shown, "..."] if len(counts) > len(shown) else shown)


def _read(graphs: Graphs, logits: bool) -> tuple[Forecaster, dict[str, str]]:
    graph = graphs.subgraph(0)
    names = {graphs.root.SignatureDefs(k).SignatureKey() for k in graphs.count(graphs.root.SignatureDefsLength())}
    if names & {b"step", b"sequence"} and all(graph.tensors[k].kind == "int16" for k in graph.inputs):
        what, todo = "is a file that edgetqs wrote", "give it the float model that this one was made of"
        raise Unsupported(what, graphs.where, todo)
    trace = Trace(graphs, OPERATORS, DEFAULT_WINDOW)
    outputs = trace.main()
    vectors: list[list[Vector]] = []
    squashed = False
    for k, value in zip(graph.outputs, outputs, strict=True):
        where = f"{graphs.where}: output {graph.tensors[k].name[-60:]!r}"
        if not isinstance(value, Unknown):
            raise Unsupported("does not depend on the inputs", where, "export the trained model")
        if len(value.shape) not in (2, 3) or value.shape[0] != 1:
            raise Unsupported(f"has shape {list(value.shape)}", where, "export (batch, outputs) or (batch, T, outputs)")
        vectors.append([_without_softmax(one) for one in value.cells.ravel()])
        squashed = squashed or any(a is not b for a, b in zip(vectors[-1], value.cells.ravel(), strict=True))
    sequences = [len(value.shape) == 3 for value in outputs if isinstance(value, Unknown)]
    found = _Found(trace, vectors, sequences)
    forecaster = found.forecaster()
    if squashed and not logits:
        forecaster = _with_softmax(forecaster, graphs.where)
    last = {value.made for value in outputs if isinstance(value, Unknown)}
    return forecaster, found_in(trace, found.names, found.watched, last)


def _with_softmax(forecaster: Forecaster, where: str) -> Forecaster:
    last = forecaster.layers[-1]
    plain = all(channel.std == 1 and channel.mean == 0 for channel in forecaster.outputs)
    if not isinstance(last, Dense) or last.activation != "linear" or not plain:
        raise Unsupported("ends in a softmax of what is no dense layer's output", where, LOGITS)
    return replace(forecaster, layers=(*forecaster.layers[:-1], replace(last, activation="softmax")))


def _without_softmax(vector: Vector) -> Vector:
    stretch = only(vector)
    if stretch is None or stretch.leaf.kind != "softmax":
        return vector
    return stretch.leaf.args[0]


class _Found:
    """The forecaster in the expressions of the outputs."""

    def __init__(self, trace: Trace, outputs: list[list[Vector]], sequences: list[bool]) -> None:
        self.trace, self.outputs, self.sequences = trace, outputs, sequences
        self.where = trace.graphs.where
        self.names: list[str] = []
        self.watched = Watched(self.where)
        graph = trace.graphs.subgraph(0)
        self.ports = [graph.tensors[k] for k in graph.inputs]
        if not outputs or not self.ports:
            raise BadInput("has no inputs or no outputs", self.where, AGAIN)

    def forecaster(self) -> Forecaster:
        if len(self.outputs) == 1:
            return self._window(0)
        refusal: Unsupported | None = None
        for k in range(len(self.outputs)):
            try:
                return self._one_step(k)
            except Unsupported as error:
                refusal = refusal or error
        assert refusal is not None
        raise refusal

    # --- a window -------------------------------------------------------------------

    def _window(self, k: int) -> Forecaster:
        reader = self._reader()
        try:
            values, outputs = self._scaled_back(self.outputs[k])
            chain = reader.follow(values, self.sequences[k])
        except Unsupported:
            if not self.sequences[k]:
                raise
            # Not an output a step: one output for the whole horizon, put into this shape at the end.
            reader, outputs = self._reader(), None
            chain = reader.follow([joined(self.outputs[k])], False)
            shape = (len(self.outputs[k]), size(self.outputs[k][0]))
            chain = replace(chain, layers=[*chain.layers, Reshape("reshape", shape)])
        if reader.states:
            raise Unsupported("has a state among its inputs that is no output", self.where, "export both")
        if chain.halves != (0, 0):
            raise Unsupported("puts the backward half of a Bidirectional layer first", self.where, BLACK_BOX)
        made = self._made(chain, outputs)
        width, steps = len(made.inputs), made.window
        mean, std = (np.array([getattr(c, name) for c in made.inputs]) for name in ("mean", "std"))
        x = mean + std * np.random.default_rng(0).standard_normal((3, steps, width))
        feeds = self._feeds(chain, x)
        leaves = self.trace.symbols.evaluate(feeds, 3)
        wanted = np.stack([value_of(vector, leaves, 3) for vector in self.outputs[k]], axis=1)
        given = run_window(made, x)
        self._check(given, wanted.reshape(given.shape) if wanted.size == given.size else wanted, reader.spread)
        return made

    def _feeds(self, chain: Chain, x: Floats) -> dict[tuple[int, int], Floats]:
        """Values of all inputs of the graph: windows where the layers read them, zeros elsewhere."""
        leaves = [leaf for leaf in self.trace.symbols.leaves if leaf.kind == "input"]
        feeds = {leaf.data: np.zeros((len(x), leaf.size)) for leaf in leaves}
        for t, vector in enumerate(chain.inputs):
            column = 0
            for part in vector:
                assert isinstance(part, Stretch)
                place = slice(part.start, part.start + part.size)
                feeds[source(part.leaf).data][:, place] = x[:, t, column : column + part.size]
                column += part.size
        return feeds

    def _scaled_back(self, values: list[Vector]) -> tuple[list[Vector], tuple[Floats, Floats] | None]:
        """Values without a scaling at the end, and that scaling, for the channels."""
        found = []
        for value in values:
            part = value[0] if len(value) == 1 else None
            if not isinstance(part, Affine) or part.matrices or len(part.factors) != 1:
                return values, None
            ((key, factor),) = part.factors.items()
            if key.leaf.kind == "relu6" or not (factor > 0).all():
                return values, None
            found.append((key, factor, part.bias))
        if not all((f == found[0][1]).all() and (b == found[0][2]).all() for _, f, b in found):
            return values, None
        return [(key,) for key, _, _ in found], found[0][1:]

    # --- one step ---------------------------------------------------------------------

    def _one_step(self, k: int) -> Forecaster:
        """States as inputs and outputs: output k is the forecast, all others are states."""
        reader = self._reader()
        if any(len(vectors) != 1 for vectors in self.outputs):
            raise Unsupported("has several outputs over a window", self.where, "export the forecast alone")
        chain = reader.follow(self.outputs[k], False)
        made = self._made(chain, None)
        if len(chain.inputs) != 1 or not reader.states:
            raise Unsupported("has several outputs that are no states", self.where, "export the forecast alone")
        made = replace(made, window=DEFAULT_WINDOW)
        rng = np.random.default_rng(0)
        x = rng.standard_normal((3, len(made.inputs)))
        feeds = self._feeds(chain, x[:, None])
        state: list[tuple[Floats, ...]] = []
        known = iter(reader.states[::-1])  # the reader walks from the last layer to the first
        for layer in made.layers:
            if not isinstance(layer, RECURRENT):
                state.append(())
                continue
            h, c, _ = next(known, (None, None, None))
            if h is None:
                raise Unsupported("has states that are not all inputs", self.where, "export every state")
            own = []
            for vector in (h,) if c is None or not hasattr(layer, "cell_clip") else (h, c):
                stretch = only(vector)
                assert stretch is not None
                feeds[stretch.leaf.data] = rng.uniform(-1, 1, (3, stretch.size))
                own.append(feeds[stretch.leaf.data])
            state.append(tuple(own))
        stack = stack_of(made)
        y, after = run_step(stack, tuple(state), x)
        leaves = self.trace.symbols.evaluate(feeds, 3)
        self._check(y, value_of(self.outputs[k][0], leaves, 3), reader.spread)
        states = [value for own in after for value in own]
        for other, vectors in enumerate(self.outputs):
            given = value_of(vectors[0], leaves, 3)
            if other != k and not any(s.shape == given.shape and np.allclose(s, given, atol=1e-4) for s in states):
                raise Unsupported("has several outputs that are no states", self.where, "export the forecast alone")
        if len({id(source) for source, _, _ in reader.states}) != len(state) - state.count(()):
            raise Unsupported("has states that are not all inputs", self.where, "export every state")
        return made

    # --- both ---------------------------------------------------------------------------

    def _reader(self) -> Reader:
        """Quantizers round the bias of each step for itself, and as coarse as an activation where it stands alone."""
        graph = self.trace.graphs.subgraph(0)
        steps = [float(t.scale[0]) for t in graph.tensors if t.kind in _LIMITS and len(t.scale) == 1]
        single = Counter(leaf.data[0] for leaf in self.trace.symbols.leaves if leaf.kind == "input")
        ports = frozenset(port for port, count in single.items() if count == 1) if len(single) > 1 else frozenset()
        inputs = [leaf for leaf in self.trace.symbols.leaves if leaf.kind in ("input", "scaled")]
        self.watched = Watched(self.where, 1e-6 + max(steps, default=0.0), ports, inputs=inputs)
        return self.watched

    def _check(self, found: Values, wanted: Floats, spread: float) -> None:
        limit = (AGREEMENT + 10 * spread) * max(1.0, float(np.abs(wanted).max()))
        if found.shape != wanted.shape or not np.abs(found - wanted).max() <= limit:
            what = "does not compute what its layers would: its weights differ between steps, or a part was not seen"
            raise Unsupported(what, self.where, BLACK_BOX)

    def _made(self, chain: Chain, outputs: tuple[Floats, Floats] | None) -> Forecaster:
        layers = _named(chain.layers)
        self.names = [layer.name for layer in layers]
        if not any(isinstance(layer, (*RECURRENT, Bidirectional)) for layer in layers):
            raise Unsupported("the model has no recurrent layer", self.where)
        steps = chain.inputs
        if chain.backwards:
            raise Unsupported("reads its window from the end", self.where, "export it with the window in order")
        self._check_steps(steps)
        channels = self._channels(steps)
        found = stepwise(layers, len(steps), len(channels))
        scale, shift = outputs or (np.ones(found.shape[-1]), np.zeros(found.shape[-1]))
        named = output_channels(found.shape, scale, shift)
        made = Forecaster("model", found.layers, channels, named, len(steps), output_frames=found.frames)
        bounds = [limit for limit in (self._range(part) for part in steps[0]) if limit]
        if bounds:
            std = min(channel.std for channel in channels)
            mean = max(abs(channel.mean) for channel in channels)
            made = replace(made, input_range=float((max(bounds) + mean) / std))
        return made

    def _check_steps(self, steps: Sequence[Vector]) -> None:
        """Every step reads the same stretch of the window, one after the other, all of it."""
        first = [(p.leaf.size, p.size) for p in steps[0] if isinstance(p, Stretch)]
        places = []
        for vector in steps:
            row = [(source(p.leaf).data, p.start) for p in vector if isinstance(p, Stretch)]
            if [(p.leaf.size, p.size) for p in vector if isinstance(p, Stretch)] != first:
                raise Unsupported("reads different inputs in different steps", self.where, BLACK_BOX)
            places.append(row)
        ports = {port for row in places for (port, _), _ in row}
        read = sum(size(vector) for vector in steps)
        declared = sum(
            leaf.size for leaf in self.trace.symbols.leaves if leaf.kind == "input" and leaf.data[0] in ports
        )
        if (
            places != sorted(places)
            or read != declared
            or len({p for row in places for p in row}) != sum(map(len, places))
        ):
            raise Unsupported("does not read all of its window in order", self.where, BLACK_BOX)

    def _channels(self, steps: Sequence[Vector]) -> tuple[Channel, ...]:
        found: list[Channel] = []
        for k, part in enumerate(steps[0]):
            assert isinstance(part, Stretch)
            same_leaves = [vector[k].leaf for vector in steps]  # type: ignore[union-attr]
            kinds = {leaf.kind for leaf in same_leaves}
            if kinds == {"input"}:
                found += [Channel(f"x{len(found) + i}") for i in range(part.size)]
                continue
            factor, offset = part.leaf.data
            if len(kinds) > 1 or not all(
                np.array_equal(leaf.data[0], factor) and np.array_equal(leaf.data[1], offset) for leaf in same_leaves
            ):
                raise Unsupported("scales its inputs differently in different steps", self.where, BLACK_BOX)
            place = slice(part.start, part.start + part.size)
            for a, b in zip(factor[place], offset[place], strict=True):
                found.append(Channel(f"x{len(found)}", mean=float(-b / a), std=float(1 / a)))
        return tuple(found)

    def _range(self, part: object) -> float:
        """The largest value that a quantized input can hold."""
        assert isinstance(part, Stretch)
        tensor = self.ports[source(part.leaf).data[0]]
        if tensor.kind not in _LIMITS or len(tensor.scale) != 1:
            return 0.0
        zero = float(tensor.zero[0]) if len(tensor.zero) else 0.0
        return float(max(abs(limit - zero) for limit in _LIMITS[tensor.kind]) * tensor.scale[0])


def _named(layers: Sequence[Trained]) -> list[Trained]:
    """Layers with different names: lstm, lstm_1, ..."""
    counts: Counter[str] = Counter()
    named: list[Trained] = []
    for layer in layers:
        name = f"{layer.name}_{counts[layer.name]}" if counts[layer.name] else layer.name
        counts[layer.name] += 1
        if isinstance(layer, Bidirectional):
            forward = replace(layer.forward, name=f"{name}_forward")
            layer = replace(layer, forward=forward, backward=replace(layer.backward, name=f"{name}_backward"))
        if isinstance(layer, Convolution):
            layer = replace(layer, dense=replace(layer.dense, name=name))
        named.append(replace(layer, name=name))
    return named
