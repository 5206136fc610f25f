"""What a chip remembers of its watchdog is told by the start after it and forgotten: the next start is not its."""

import pytest
from installed import ready
from linked import linked

from edgetqs.dut import Dut

pytest.importorskip("unicorn")
from test_board_registers import CHIPS, Simulated

#: RP2040's REASON cannot be written to.
CLEARED = sorted(set(CHIPS) - {"rp2040-pico"})


def start(name: str, cause: int):
    """A power-up of ``name`` whose register of causes holds ``cause``: (what HELLO says, what it holds then)."""
    ready(name, runs=False)
    chip = CHIPS[name]()
    chip.stored[chip.cause[0]] = cause
    hello = Dut(Simulated(linked(name), chip), patience_s=30).hello
    return hello.cause, chip.stored[chip.cause[0]]


@pytest.mark.parametrize("name", CLEARED)
def test_the_cause_is_cleared(name):
    flag = CHIPS[name]().cause[1]
    told, left = start(name, flag)
    assert (told, left & flag) == ("watchdog", 0)
    assert start(name, left)[0] == "power-up"
