"""Who is there: the firmware on the device is this build's, whole and sound."""

import pytest

from edgetqs import protocol
from edgetqs.dut import DeviceError
from edgetqs.protocol import Code, Kind


def test_the_device_runs_this_build(dut, build):
    hello, record = dut.hello, build.record
    assert hello.version == protocol.VERSION
    assert hello.tool == f"edgetqs {record['tool_version']}"
    assert hello.model_hash == build.model_hash
    assert hello.plan_hash == record["plan"]["hash"]
    assert hello.target == build.target.name
    assert (hello.inputs, hello.outputs) == (len(build.model.inputs), len(build.model.outputs))
    assert hello.known == len(build.model.feedback.known)
    assert hello.closed_loop == bool(build.model.loop)


def test_flash_holds_what_was_linked(dut, build):
    assert dut.hello.image_intact and dut.hello.stack_intact
    crc = dut.check()
    if build.target.kind == "bare":
        assert f"{crc:08x}" == build.record["link"]["image_crc"]


@pytest.mark.parametrize(
    "kind, body, code",
    [
        (Kind.HELLO, b"\xfe", Code.BAD_VERSION),
        (0x7E, b"", Code.UNKNOWN_KIND),
        (Kind.STEP, b"", Code.BAD_LENGTH),
        (Kind.STEP, b"\0", Code.BAD_LENGTH),
        (Kind.GET_STATE, b"\xff\xff\xff\xff", Code.OUT_OF_RANGE),
    ],
)
def test_what_cannot_be_done_is_refused(dut, kind, body, code):
    with pytest.raises(DeviceError) as error:
        dut.request(kind, body)
    assert error.value.code == code
    assert dut.stats().steps == 0


def test_a_restart_is_told(dut):
    assert dut.restart().cause == "requested"
    assert dut.stats().steps == 0
