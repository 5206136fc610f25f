"""Stack and speed, measured on the device."""

import numpy as np
import pytest

from edgetqs import chain, emulate


def exercise(dut, build):
    """Every request that takes much stack."""
    vectors, known = chain.golden(build.model, loop_steps=2), list(build.model.feedback.known)
    for x in vectors.inputs[: build.model.window]:
        dut.step(x)
    dut.step_float(vectors.physical[0])
    if build.model.loop:
        dut.advance(vectors.inputs[0][known])
        dut.forecast(4, np.zeros((4, len(known)), np.int64))
    dut.check()


def test_the_stack_stays_within_its_bound(dut, build, figures):
    exercise(dut, build)
    stats = dut.stats()
    if stats.stack_bytes == 0:
        figures["stack_peak_bytes"] = 0
        pytest.skip("the operating system guards the stack")
    figures["stack_peak_bytes"] = stats.stack_peak_bytes
    link = build.record["link"]
    assert not link["stack_unknown"]
    assert 0 < stats.stack_peak_bytes <= link["stack_bytes"] <= stats.stack_bytes


def test_speed(dut, build, request, figures):
    """The slowest step of one window, in the device's ticks; QEMU's are instructions, which the build counted too."""
    for x in chain.golden(build.model, loop_steps=2).inputs[: build.model.window]:
        dut.step(x)
    stats = dut.stats()
    assert 0 < stats.least_ticks <= stats.most_ticks < (2**24 if dut.hello.clock == "SysTick" else 2**32)
    emulated = request.config.getoption("--edgetqs-device") == "qemu" and build.target.kind == "bare"
    figures["ticks_per_step"] = stats.most_ticks
    figures["ticks_are"] = "instructions, by SysTick in an emulator" if emulated else dut.hello.clock
    counted = build.record["cost"]["instructions_per_step"]
    if emulated and counted is not None:
        figures["instructions_per_step"] = emulate.instructions_of_ticks(build.target, stats.most_ticks)
        assert figures["instructions_per_step"] == pytest.approx(counted, rel=0.1, abs=100)
