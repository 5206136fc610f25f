"""The serving firmware as a program of this computer: requests, sessions, bad cables, random bytes."""

import random
import shutil
import socket
import subprocess

import numpy as np
import pytest
from linked import INPUTS, OUTPUTS, Linked, Tapped, linked, play

from edgetqs import chain, reference
from edgetqs.dut import DeviceError, DeviceRestarted, DeviceSilent, Dut
from edgetqs.errors import BadInput, ToolMissing
from edgetqs.faults import Faulty, Rates
from edgetqs.protocol import Code, Fault, Frame, Kind, Reader, encode
from edgetqs.transport import connect

if shutil.which("gcc") is None:
    pytest.skip("gcc is not installed", allow_module_level=True)


@pytest.fixture(scope="module")
def built() -> Linked:
    return linked("x86")


@pytest.fixture
def dut(built):
    with Dut(connect("qemu", built.target, built.image)) as device:
        yield device


@pytest.fixture
def tapped(built):
    """A device, and what was written to it."""
    transport = Tapped(connect("qemu", built.target, built.image))
    with Dut(transport) as device:
        yield device, transport


def known_of(built: Linked) -> list[int]:
    return list(built.model.feedback.known)


def ask(dut: Dut, *frames: Frame) -> list[Frame]:
    """Send frames as they are; what comes back within a moment."""
    dut.transport.write(b"".join(map(encode, frames)))
    reader, found = Reader(), []
    while data := dut.transport.read(0.3):
        found += reader.feed(data)
    return found


def errors(frames: list[Frame]) -> list[Code]:
    return [Code(Fault.parse(frame.body).code) for frame in frames if frame.kind == Kind.ERROR]


class Cut:
    """A transport whose connection breaks at every so many requests, in the middle of one."""

    can_power_cycle = False

    def __init__(self, transport, every: int, *, mends: bool = True) -> None:
        self.inner, self.every, self.mends = transport, every, mends
        self.written = self.cuts = 0
        self.open = True
        self.close = transport.close

    def write(self, data):
        if not self.open:
            raise BrokenPipeError("broken pipe")
        self.written += 1
        if self.written % self.every == 0:
            self.open, self.cuts = False, self.cuts + 1
            data = data[: len(data) // 2]
        self.inner.write(data)

    def read(self, timeout_s):
        if not self.open:
            raise ConnectionResetError("the device closed the connection")
        return self.inner.read(timeout_s)

    def reconnect(self):
        if not self.mends:
            raise ToolMissing("cannot connect: refused", "tcp:desk:1", "is it on?")
        self.open = True


def test_a_connection_that_breaks_is_made_again(built):
    transport = Cut(connect("qemu", built.target, built.image), 7)
    with Dut(transport) as dut:
        assert play(dut, built, 60) == []
        assert dut.stats().steps == 60
    assert transport.cuts > 8


def test_a_connection_that_stays_broken_is_told(built):
    transport = Cut(connect("qemu", built.target, built.image), 5, mends=False)
    with Dut(transport, patience_s=0.3) as dut, pytest.raises(DeviceSilent, match=r"is cut: .*\n.*refused"):
        play(dut, built, 10)


def test_a_program_that_ended_is_told(built):
    transport = connect("qemu", built.target, built.image)
    with Dut(transport) as dut:
        transport._socket.shutdown(socket.SHUT_RDWR)
        with pytest.raises(DeviceSilent, match=r"STATS: the connection is cut.*\n.*its program has ended"):
            dut.stats()


# --- requests -------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["lstm", "gru", "gru_reset_before", "rnn"])
def test_golden_vectors_bit_for_bit(kind):
    own = linked("x86", kind)
    with Dut(connect("qemu", own.target, own.image)) as dut:
        assert play(dut, own) == []
        assert dut.stats().clipped == own.golden.clipped[-1]


def test_hello_tells_what_was_built(dut, built):
    hello = dut.hello
    assert (hello.inputs, hello.outputs, hello.known, hello.horizon) == (INPUTS, OUTPUTS, len(known_of(built)), 6)
    assert (hello.version, hello.target, hello.name, hello.cause) == (1, "x86", built.model.name, "power-up")
    assert (hello.closed_loop, hello.image_intact, hello.stack_intact) == (True, True, True)
    assert (hello.tool, hello.plan_hash) == ("edgetqs 0", "0" * 16)


@pytest.mark.parametrize("horizon", [1, 2, 40, 300])
def test_a_forecast_of_any_length_equals_the_reference_and_leaves_the_stream_alone(dut, built, horizon):
    model, inputs = built.model, built.golden.inputs[:7]
    future = np.zeros((horizon, INPUTS), np.int64)
    future[:, known_of(built)] = np.random.default_rng(1).integers(-9000, 9000, (horizon, len(known_of(built))))
    outputs, state = reference.run(model, reference.zero_state(model), inputs)
    ahead, _ = reference.closed_loop(model, state, inputs[-1], outputs[-1], horizon, future)
    for x in inputs:
        dut.step(x)
    before, steps = dut.state(), dut.stats().steps
    assert dut.forecast(horizon, future[:, known_of(built)]).tolist() == ahead.tolist()
    assert (dut.state(), dut.stats().steps) == (before, steps)


def test_physical_values(dut, built):
    vectors = built.golden
    for sample, status, expected in zip(vectors.physical, vectors.statuses, vectors.physical_outputs, strict=True):
        if status:
            before = dut.state()
            with pytest.raises(DeviceError, match="BAD_INPUT"):
                dut.step_float(sample)
            assert dut.state() == before
        else:
            assert dut.step_float(sample).tobytes() == expected.tobytes()


def test_a_saved_state_goes_on_after_a_power_cycle(dut, built):
    vectors = built.golden
    for k in range(10):
        dut.step(vectors.inputs[k])
    saved = dut.state()
    assert dut.power_cycle().cause == "power-up"
    assert dut.stats().steps == 0
    dut.restore(saved)
    assert [dut.step(vectors.inputs[k]).tolist() for k in (10, 11)] == vectors.outputs[10:12].tolist()


def test_a_model_without_a_closed_loop_has_no_forecast():
    own = linked("x86", closed=False)
    with Dut(connect("qemu", own.target, own.image)) as dut:
        assert play(dut, own, 20) == []
        for kind, body in ((Kind.FORECAST, b"\1\0"), (Kind.ADVANCE, b"")):
            with pytest.raises(DeviceError) as error:
                dut.request(kind, body)
            assert error.value.code == Code.UNKNOWN_KIND


@pytest.mark.parametrize(
    "kind, body, code",
    [
        (0x7F, b"", Code.UNKNOWN_KIND),
        (0, b"", Code.UNKNOWN_KIND),
        (12, b"", Code.UNKNOWN_KIND),
        (Kind.HELLO, b"", Code.BAD_LENGTH),
        (Kind.HELLO, b"\x63", Code.BAD_VERSION),
        (Kind.RESET, b"\0", Code.BAD_LENGTH),
        (Kind.STEP, bytes(2 * INPUTS - 1), Code.BAD_LENGTH),
        (Kind.STEP, bytes(2 * INPUTS + 2), Code.BAD_LENGTH),
        (Kind.FORECAST, b"\1", Code.BAD_LENGTH),
        (Kind.FORECAST, b"\1\3\0\0", Code.BAD_LENGTH),
        (Kind.FORECAST, b"\1\x3f" + bytes(2 * 63), Code.OVERSIZED),
        (Kind.FORECAST, b"\1\1\0\0", Code.NOT_READY),
        (Kind.FORECAST, b"\0\1\0\0", Code.NOT_READY),
        (Kind.ADVANCE, b"\0\0", Code.NOT_READY),
        (Kind.GET_STATE, b"\0\0\xff\xff", Code.OUT_OF_RANGE),
        (Kind.GET_STATE, b"\xff\xff\1\0", Code.OUT_OF_RANGE),
        (Kind.SET_STATE, b"\0", Code.BAD_LENGTH),
        (Kind.SET_STATE, b"\xff\xff\1\0", Code.OUT_OF_RANGE),
    ],
)
def test_what_cannot_be_done_is_an_error_and_changes_nothing(dut, kind, body, code):
    before = dut.state()
    answer = ask(dut, Frame(kind, dut._session, dut._number + 1 & 0xFFFF, body))
    assert errors(answer) == [code] and len(answer) == 1
    dut._number = dut._number + 1 & 0xFFFF
    assert dut.state() == before


def test_a_body_longer_than_the_firmware_takes(dut):
    with pytest.raises(BadInput, match="more than the firmware takes"):
        dut.request(Kind.SET_STATE, bytes(dut.hello.max_body + 1))
    answer = ask(dut, Frame(Kind.SET_STATE, dut._session, 1, bytes(dut.hello.max_body + 1)))
    assert errors(answer) == [Code.OVERSIZED]
    assert dut.stats().bad_frames == 1


# --- sessions -------------------------------------------------------------------------


def test_a_request_that_comes_again_is_answered_alike_and_not_carried_out(dut, built):
    x = built.golden.inputs[0]
    y = dut.step(x)
    last = Frame(Kind.STEP, dut._session, dut._number, x.astype("<i2").tobytes())
    answers = ask(dut, last, last, last)
    assert len(answers) == 3 and {answer.body for answer in answers} == {y.astype("<i2").tobytes()}
    assert dut.stats().steps == 1 and dut.stats().repeated == 3


def test_a_reply_that_comes_again_with_the_next_is_not_taken_for_it(built):
    class Stale(Tapped):
        def __init__(self, transport) -> None:
            super().__init__(transport)
            self.before = b""
            self.read = self.again

        def again(self, timeout_s: float) -> bytes:
            data = self.inner.read(timeout_s)
            before, self.before = self.before, data or self.before
            return before + data if data else b""

    with Dut(Stale(connect("qemu", built.target, built.image))) as dut:
        assert play(dut, built, 30) == []


def test_an_old_request_is_refused(tapped, built):
    dut, transport = tapped
    for k in range(3):
        dut.step(built.golden.inputs[k])
    for late in transport.written[1:-1]:  # two steps; the first frame is HELLO
        transport.write(late)
    assert dut.step(built.golden.inputs[3]).tolist() == built.golden.outputs[3].tolist()
    assert dut.stats().steps == 4


def test_another_session_takes_over_and_the_old_one_hears_of_it(tapped, built):
    dut, transport = tapped
    greeting = transport.written[0]
    dut.step(built.golden.inputs[0])
    old = dut._session, dut._number
    dut.greet()
    transport.write(greeting)  # a greeting of the old session, late: it must not take over again
    assert dut.step(built.golden.inputs[1]).tolist() == built.golden.outputs[1].tolist()
    dut._session, dut._number = old
    with pytest.raises(DeviceRestarted):
        dut.step(built.golden.inputs[2])


def test_a_restart_is_noticed(tapped, built):
    dut, _ = tapped
    dut.step(built.golden.inputs[0])
    dut.request(Kind.RESTART)
    with pytest.raises(DeviceRestarted):
        dut.step(built.golden.inputs[1])
    assert dut.notices == [Fault(Code.RESTARTED, 0, 1)]
    assert dut.greet().cause == "requested" and dut.stats().steps == 0


def test_numbers_wrap_around(dut, built):
    dut._number = 0xFFFD
    dut._session = dut._session % 0xFFFF + 1
    dut.request(Kind.HELLO, b"\1")
    assert play(dut, built, 8) == []
    assert dut.stats().repeated == 0


def test_a_device_that_says_nothing(built):
    class Deaf:
        can_power_cycle = False

        def read(self, timeout_s: float) -> bytes:
            return b"\0no frame\0"

        def write(self, data: bytes) -> None:
            pass

    with pytest.raises(DeviceSilent, match="does not answer"):
        Dut(Deaf(), patience_s=0.2)


# --- bad cables -----------------------------------------------------------------------

CABLES = {
    "drops": Rates(drop=0.02),
    "doubles": Rates(double=0.02),
    "flips": Rates(flip=0.02),
    "delays": Rates(delay=0.01, longest_s=0.1),
    "late": Rates(late=0.3, longest_s=0.1),
    "all": Rates(0.01, 0.01, 0.01, 0.005, 0.1),
}


@pytest.mark.parametrize("name", CABLES)
def test_golden_vectors_over_a_bad_cable(built, name):
    transport = Faulty(connect("qemu", built.target, built.image), CABLES[name], seed=7)
    with Dut(transport) as dut:
        assert play(dut, built, 120) == []
        transport.rates = Rates()
        stats = dut.stats()
        assert stats.steps == 120
        assert dut.repeats + stats.repeated + stats.bad_frames > 0 or name == "late"


def test_a_cable_spoils_as_often_as_it_says():
    class Loop:
        can_power_cycle = False

        def __init__(self) -> None:
            self.held = b""

        def write(self, data: bytes) -> None:
            self.held += data

        def read(self, timeout_s: float) -> bytes:
            held, self.held = self.held, b""
            return held

    def through(rates: Rates) -> bytes:
        loop = Loop()
        Faulty(loop, rates, seed=3).write(bytes([0x55]) * 20000)
        return loop.held

    assert through(Rates()) == bytes([0x55]) * 20000
    assert len(through(Rates(drop=0.1))) == pytest.approx(18000, rel=0.02)
    assert len(through(Rates(double=0.1))) == pytest.approx(22000, rel=0.02)
    assert sum(byte != 0x55 for byte in through(Rates(flip=0.1))) == pytest.approx(2000, rel=0.1)


# --- random bytes ---------------------------------------------------------------------


def noise(seed: int) -> bytes:
    """Frames of every kind with any body, cut, spoiled and mixed with garbage."""
    rng = random.Random(seed)
    made, number = encode(Frame(Kind.HELLO, 7, 0, b"\1")), 0
    kinds = [kind for kind in (*range(0, 14), 0x7F, 0xFF) if kind != Kind.RESTART]
    for _ in range(400):
        number += rng.choice((0, 1, 1, 1, 5, 40000))
        size = rng.choice((0, 1, 2, 4, 2 * INPUTS, 4 * INPUTS, rng.randrange(160)))
        body = rng.choice((rng.randbytes(size), bytes(size), b"\1" + bytes([size % 64]) + bytes(2 * (size % 64))))
        frame = bytearray(encode(Frame(rng.choice(kinds), rng.choice((7, 7, 7, 8)), number & 0xFFFF, body)))
        if rng.random() < 0.2:
            frame[rng.randrange(len(frame))] ^= 1 << rng.randrange(8)
        if rng.random() < 0.1:
            frame = frame[: rng.randrange(len(frame))]
        made += bytes(frame) + (rng.randbytes(rng.randrange(40)) if rng.random() < 0.1 else b"")
    return made


@pytest.fixture(scope="module")
def hardened(built):
    """The program with sanitizers, which end it at the first error."""
    return built.link("hardened", sanitizers=True)


@pytest.mark.parametrize("seed", range(12))
def test_no_bytes_hurt_the_firmware(hardened, built, seed):
    last = encode(Frame(Kind.HELLO, 99, 5, b"\1")) + encode(Frame(Kind.RESET, 99, 6))
    last += encode(Frame(Kind.STEP, 99, 7, built.golden.inputs[0].astype("<i2").tobytes()))
    done = subprocess.run([hardened], input=noise(seed) + last, capture_output=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, b"")
    *_, answer = Reader().feed(done.stdout)
    assert (answer.session, answer.number, answer.kind) == (99, 7, Kind.STEP | 0x80)
    assert answer.body == built.golden.outputs[0].astype("<i2").tobytes()


# --- damage ---------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["flipped", "cut"])
def test_a_damaged_program_gives_no_numbers(built, how):
    whole = built.image.read_bytes()
    weights = np.frombuffer(whole, np.uint8)
    table = next(iter(built.sources.folder.glob("lstm9.c"))).read_text()
    word = int(table.split("_stored[")[1].split("0x")[1][:8], 16).to_bytes(4, "little")
    place = whole.index(word)
    assert len(weights) > place
    damaged = built.folder / f"{how}.elf"
    damaged.write_bytes(whole[:-1] if how == "cut" else whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :])
    damaged.chmod(0o755)
    with Dut(connect("qemu", built.target, damaged)) as dut:
        assert not dut.hello.image_intact
        assert [fault.code for fault in dut.notices] == [Code.IMAGE_DAMAGED]
        for request in (dut.check, dut.reset, dut.state, lambda: dut.step(built.golden.inputs[0])):
            with pytest.raises(DeviceError, match="IMAGE_DAMAGED"):
                request()
        assert dut.stats().steps == 0


def test_a_program_that_crashes_is_started_again_and_tells(built):
    hook = """
    static unsigned polls;
    int board_sample_ready(float in[MODEL_INPUTS])
    {
        (void)in;
        ++polls;
        if (polls == 30u) {
            __builtin_trap();
        }
        return 0;
    }
    """
    with Dut(connect("qemu", built.target, built.link("crashing", hook=hook))) as dut:
        with pytest.raises(DeviceRestarted):
            for _ in range(40):
                dut.reset()
        assert dut.notices[0] == Fault(Code.RESTARTED, 0, 2)
        assert dut.greet().cause == "fault"
        assert dut.stats().exception == 4  # SIGILL


def test_a_sensor_of_ones_own_steps_the_stream(built):
    hook = """
    static unsigned count;
    int board_sample_ready(float in[MODEL_INPUTS])
    {
        if (count == 12u) {
            return 0;
        }
        ++count;
        for (unsigned k = 0; k < MODEL_INPUTS; ++k) {
            in[k] = 0.25f * (float)count;
        }
        return 1;
    }
    """
    model = built.model
    samples = np.repeat(0.25 * np.arange(1, 13, dtype=np.float32)[:, None], INPUTS, axis=1)
    outputs, state = reference.run(model, reference.zero_state(model), reference.encode(model, samples))
    future = np.zeros((5, INPUTS), np.int64)
    ahead, _ = reference.closed_loop(model, state, reference.encode(model, samples)[-1], outputs[-1], 5, future)
    with Dut(connect("qemu", built.target, built.link("sensing", hook=hook))) as dut:
        assert any(dut.stats().steps == 12 for _ in range(40))
        assert dut.forecast(5, future[:, known_of(built)]).tolist() == ahead.tolist()


@pytest.mark.parametrize(
    "spec", ["ttyACM0", "serial:", "serial:/dev/ttyACM0:fast", "tcp:localhost", "tcp::1", "qemu:x"]
)
def test_a_device_that_is_none(built, spec):
    with pytest.raises(BadInput):
        connect(spec, built.target, built.image)


def test_golden_vectors_are_what_the_chain_uses(built):
    assert built.golden.steps > 200 and chain.LOOP_STEPS > 200
