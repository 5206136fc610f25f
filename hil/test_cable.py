"""Bad cables: whatever is dropped, doubled, flipped, late or cut, every sample is stepped once."""

import random
from dataclasses import replace

import numpy as np
import pytest

from edgetqs import chain
from edgetqs.dut import DeviceRestarted
from edgetqs.errors import BadInput
from edgetqs.faults import Rates
from edgetqs.protocol import Frame, Kind, encode

STEPS = 40


@pytest.fixture(scope="module")
def vectors(build):
    return chain.golden(build.model, loop_steps=STEPS)


def steps_are_right(dut, vectors, first: int = 0, count: int = STEPS) -> None:
    for step in range(first, first + count):
        y = dut.step(vectors.inputs[step])
        assert np.array_equal(y, vectors.outputs[step]), f"step {step}"


def per_exchange(rates: Rates, build) -> Rates:
    """The rates for steps of up to 40 bytes both ways; lower ones for longer steps, so that as many are hit."""
    part = min(1.0, 40 / (24 + 2 * len(build.model.inputs) + 2 * len(build.model.outputs)))
    return replace(rates, **{name: getattr(rates, name) * part for name in ("drop", "double", "flip", "delay")})


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize(
    "rates",
    [
        Rates(drop=0.01),
        Rates(double=0.01),
        Rates(flip=0.01),
        Rates(delay=0.005, longest_s=0.1),
        Rates(late=0.3, longest_s=0.1),
        Rates(0.003, 0.003, 0.003, 0.002, 0.1),
    ],
    ids=["drops", "doubles", "flips", "delays", "late", "all"],
)
def test_every_sample_is_stepped_once(cable, build, vectors, rates, seed, figures):
    dut = cable(per_exchange(rates, build), seed)
    steps_are_right(dut, vectors)
    assert dut.stats().steps == STEPS
    figures["repeats"] = figures.get("repeats", 0) + dut.repeats


@pytest.mark.parametrize(
    "garbage",
    [b"\0" * 300, b"\xff" * 300, b"\x01" * 300 + b"\0", random.Random(1).randbytes(2000), b"edgetqs\r\n" * 20],
    ids=["zeros", "ones", "empty blocks", "anything", "text"],
)
def test_garbage_does_no_harm(dut, vectors, garbage):
    steps_are_right(dut, vectors, 0, 5)
    dut.transport.write(garbage)
    steps_are_right(dut, vectors, 5, 5)
    assert dut.stats().steps == 10


def test_half_frames_do_no_harm(dut, vectors):
    whole = encode(Frame(Kind.STEP, 1, 1, vectors.inputs[0].astype("<i2").tobytes()))
    for step in range(8):
        dut.transport.write(whole[: 2 + step])
        steps_are_right(dut, vectors, step, 1)
    assert dut.stats().steps == 8


def test_a_flood_of_one_request_is_one_step(dut, vectors):
    steps_are_right(dut, vectors, 0, 1)
    again = encode(Frame(Kind.STEP, dut._session, dut._number, vectors.inputs[0].astype("<i2").tobytes()))
    for _ in range(50):
        dut.transport.write(again)
    steps_are_right(dut, vectors, 1, 4)
    assert dut.stats().steps == 5


def test_a_frame_that_is_too_long_is_refused(dut, vectors):
    steps_are_right(dut, vectors, 0, 2)
    before = dut.stats().bad_frames
    dut.transport.write(encode(Frame(Kind.STEP, dut._session, dut._number, b"\1" * (dut.hello.max_body + 50))))
    steps_are_right(dut, vectors, 2, 2)
    assert dut.stats().bad_frames > before


def test_a_cut_cable(dut, vectors):
    steps_are_right(dut, vectors, 0, 5)
    dut.transport.write(b"\0\x0b\x03cut")
    try:
        dut.transport.reconnect()
    except BadInput as error:
        pytest.skip(error.what)
    try:
        steps_are_right(dut, vectors, 5, 5)
        assert dut.stats().steps == 10
    except DeviceRestarted:  # boards that are reset when their port is opened
        dut.greet()
        dut.reset()
        steps_are_right(dut, vectors, 0, 5)


def test_a_session_that_was_taken_over_is_told(dut, vectors):
    steps_are_right(dut, vectors, 0, 2)
    old = dut._session, dut._number
    dut.greet()
    steps_are_right(dut, vectors, 2, 1)
    dut._session, dut._number = old
    with pytest.raises(DeviceRestarted):
        dut.step(vectors.inputs[3])
