"""Which operators of a ``.tflite`` a layer was found in.

A layer's operators are those that its outputs depend on and the outputs of
the layers before it do not.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from edgetqs.tflite_layers import Chain, Reader
from edgetqs.tflite_symbols import Stretch, Vector
from edgetqs.tflite_trace import Run, Trace

#: Kinds of operators that are told by name.
SHOWN = 6


@dataclass(slots=True)
class Watched(Reader):
    """A reader that keeps the outputs of each layer that it finds, by the layer's place among the layers."""

    outputs: dict[int, Sequence[Vector]] = field(default_factory=dict)
    below: int = 0  # layers of the chain that was found last

    def follow(self, values: Sequence[Vector], sequence: bool) -> Chain:
        chain = Reader.follow(self, values, sequence)
        self._keep(chain, values)
        return chain

    def _bidirectional(self, values: Sequence[Vector], sequence: bool) -> Chain | None:
        chain = Reader._bidirectional(self, values, sequence)
        if chain is not None:
            self._keep(chain, values)
        return chain

    def _keep(self, chain: Chain, values: Sequence[Vector]) -> None:
        for place in range(self.below, len(chain.layers)):
            self.outputs[place] = values
        self.below = len(chain.layers)


def found_in(trace: Trace, names: Sequence[str], watched: Watched, last: set[int]) -> dict[str, str]:
    """By layer name: the operators in words. ``last`` are the runs that made the outputs of the model."""
    told: dict[str, str] = {}
    known: set[int] = set()
    loops: set[int] = set()
    for place, name in enumerate(names):
        made = last if place == len(names) - 1 else _makers(watched.outputs.get(place, ()))
        reached = _ancestors(trace.runs, made)
        own = sorted(reached - known)
        told[name] = _words(trace.runs, own, loops)
        known |= reached
        loops |= {trace.runs[number].loop for number in own}
    return told


def _makers(values: Sequence[Vector]) -> set[int]:
    parts = [part for vector in values for part in vector]
    return {part.leaf.made for part in parts if isinstance(part, Stretch)} - {-1}


def _ancestors(runs: Sequence[Run], made: Iterable[int]) -> set[int]:
    found: set[int] = set()
    pending = list(made)
    while pending:
        number = pending.pop()
        if number not in found and number >= 0:
            found.add(number)
            pending += runs[number].sources
    return found


def _words(runs: Sequence[Run], numbers: Sequence[int], told: set[int]) -> str:
    """ "48 FULLY_CONNECTED, 24 TANH"; of a loop "WHILE of 24 steps: 2 FULLY_CONNECTED, TANH", unless it is ``told``."""
    plain: Counter[str] = Counter()
    loops: dict[int, list[Run]] = {}
    for number in numbers:
        loops.setdefault(runs[number].loop, []).append(runs[number])
    words = []
    for loop, within in sorted(loops.items()):
        rounds = Counter(run.place for run in within)
        names = {run.place: run.name for run in within}
        if loop < 0 or loop in told:
            plain.update([run.name for run in within] if loop < 0 else names.values())
            continue
        steps = max(rounds.values())
        words.append(f"{runs[loop].name} of {steps} step{'s' * (steps > 1)}: {_counted(Counter(names.values()))}")
    return "; ".join([*words, *([_counted(plain)] if plain else [])])


def _counted(counts: Counter[str]) -> str:
    shown = [f"{count} {name}" if count > 1 else name for name, count in counts.most_common(SHOWN)]
    return ", ".join([*shown, "..."] if len(counts) > SHOWN else shown)
