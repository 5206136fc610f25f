"""Units of the plan: names, blocks and norms."""

from dataclasses import replace

import numpy as np
import pytest
from models import random_forecaster

from edgetqs.errors import BadInput
from edgetqs.model import Activation, Forecaster
from edgetqs.units import GRANULARITIES, Block, blocks, norm, units, weights


@pytest.fixture
def forecaster() -> Forecaster:
    return random_forecaster("gru", 3, 2, 1)


@pytest.mark.parametrize(
    ("granularity", "names"),
    [
        ("layer", ["gru_0", "gru_1", "dense"]),
        ("tensor", [f"gru_{k}/{t}" for k in (0, 1) for t in ("kernel", "recurrent_kernel")] + ["dense/kernel"]),
        (
            "gate",
            [f"gru_{k}/{t}/{g}" for k in (0, 1) for t in ("kernel", "recurrent_kernel") for g in "zrh"]
            + ["dense/kernel"],
        ),
    ],
)
def test_names(forecaster, granularity, names):
    assert [unit.name for unit in units(forecaster, granularity)] == names


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("kind", ["lstm", "gru", "rnn"])
def test_units_share_out_all_blocks(kind, granularity):
    forecaster = random_forecaster(kind, 3, 2, 1)
    members = [block for unit in units(forecaster, granularity) for block in unit.blocks]
    assert members == blocks(forecaster)
    assert len(set(members)) == len(members)


def test_weights_are_one_gates_rows(forecaster):
    assert np.array_equal(
        weights(forecaster, Block(1, "recurrent_kernel", 2)), forecaster.layers[1].recurrent_kernel[2]
    )


def test_unit_tells_layer_tensor_and_gate(forecaster):
    unit = units(forecaster)[4]
    assert (unit.layer, unit.tensor, unit.gate) == ("gru_0", "recurrent_kernel", "r")
    assert unit.blocks == (Block(0, "recurrent_kernel", 1),)


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_norms_add_up(forecaster, granularity):
    total = sum(np.sum(weights(forecaster, block).astype(float) ** 2) for block in blocks(forecaster))
    assert sum(norm(forecaster, unit) ** 2 for unit in units(forecaster, granularity)) == pytest.approx(total)


def test_layers_without_weights_have_no_units(forecaster):
    more = replace(forecaster, layers=(*forecaster.layers, Activation("a", "relu")))
    for granularity in GRANULARITIES:
        assert units(more, granularity) == units(forecaster, granularity)


def test_unknown_granularity(forecaster):
    with pytest.raises(BadInput, match="neuron"):
        units(forecaster, "neuron")
