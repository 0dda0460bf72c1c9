"""The control protocol's bytes: sizes, bounds, and what QEMU and swtpm really send."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from affiant.launcher.vtpm import control_protocol as control
from affiant.launcher.vtpm.control_protocol import ControlCommand, ControlRequest
from affiant.model.errors import MalformedError, UnavailableError


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"\0\0\0\x01", ControlRequest(ControlCommand.GET_CAPABILITY, b"")),
        (b"\0\0\0\x02\0\0\0\x01", ControlRequest(ControlCommand.INIT, b"\0\0\0\x01")),
        (b"\0\0\0\x05\x04", ControlRequest(ControlCommand.SET_LOCALITY, b"\x04")),
        (b"\0\0\0\x05\x04\0\0\0", ControlRequest(ControlCommand.SET_LOCALITY, b"\x04\0\0\0")),
        (b"\0\0\0\x10", ControlRequest(ControlCommand.SET_DATAFD, b"")),
        (b"\0\0\0\x11\0\0\x0f\x80", ControlRequest(ControlCommand.SET_BUFFERSIZE, b"\0\0\x0f\x80")),
    ],
)
def test_requests_of_qemu_are_read(data: bytes, expected: ControlRequest) -> None:
    assert control.read_request(data) == expected


@pytest.mark.parametrize("data", [b"", b"\0\0\0", b"\0\0\0\x02", b"\0\0\0\x02\0\0\0", b"\0\0\0\x05"])
def test_unfinished_request_waits_for_more(data: bytes) -> None:
    assert control.read_request(data) is None


@pytest.mark.parametrize(
    "data",
    [
        b"\0\0\0\0",
        b"\0\0\0\x14",
        b"\xff\xff\xff\xff",
        b"\0\0\0\x01x",
        b"\0\0\0\x05\0\0\0\0\0",
        b"\0\0\0\x07" + bytes(5000),
    ],
)
def test_unknown_command_and_excess_are_malformed(data: bytes) -> None:
    with pytest.raises(MalformedError):
        control.read_request(data)


@given(st.binary(max_size=64))
def test_any_bytes_are_a_request_or_unfinished_or_malformed(data: bytes) -> None:
    try:
        request = control.read_request(data)
    except MalformedError:
        return
    assert request is None or control.request(request.command, request.payload) == data


def test_answers_have_the_sizes_that_qemu_reads() -> None:
    assert control.answer(9) == b"\0\0\0\x09"
    assert control.capability_answer(control.Capability.INIT) == bytes(7) + b"\x01"
    assert control.established_answer(0, established=True) == b"\0\0\0\0\x01\0\0\0"
    assert len(control.buffer_size_answer(0, size=1, smallest=2, largest=3)) == 16
    assert len(control.state_blob_answer(9)) == 16


def test_answers_of_swtpm_are_read() -> None:
    assert control.read_result(b"\0\0\0\x3d") == 0x3D
    assert control.read_established(b"\0\0\0\0\x01\0\0\0") == (0, True)
    assert control.read_buffer_size(struct.pack(">IIII", 0, 4096, 2808, 4096)) == (0, 4096, 2808, 4096)


def test_short_answer_of_swtpm_means_that_it_is_gone() -> None:
    with pytest.raises(UnavailableError):
        control.read_result(b"\0\0")


def test_request_with_a_payload_it_cannot_have_is_misuse() -> None:
    with pytest.raises(ValueError, match="INIT takes 4"):
        control.request(ControlCommand.INIT)
