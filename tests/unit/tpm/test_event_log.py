"""Reading event logs: both formats, their bounds, and everything that must not be read."""

from __future__ import annotations

import contextlib
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from affiant.model.errors import EvidenceError, MalformedError
from affiant.tpm.algorithms import HashAlgorithm
from affiant.tpm.event_log import MAXIMUM_EVENTS, MAXIMUM_LOG, parse_event_log
from affiant.tpm.event_types import EventType
from tests.unit.tpm.firmware import Entry, Firmware

FIRMWARE = Firmware.healthy()
LOG = FIRMWARE.log()
SHA1, SHA256, SHA384 = HashAlgorithm.SHA1, HashAlgorithm.SHA256, HashAlgorithm.SHA384


def test_a_crypto_agile_log_is_read_whole() -> None:
    log = parse_event_log(LOG)
    assert log.crypto_agile
    assert not log.truncated
    assert log.algorithms == {SHA1: 20, SHA256: 32}
    assert len(log.events) == 1 + len(FIRMWARE.entries)
    for event, entry in zip(log.events[1:], FIRMWARE.entries, strict=True):
        assert (event.pcr, event.type, event.data) == (entry.pcr, entry.type, entry.data)
        assert event.digests == {SHA1: entry.digest(SHA1), SHA256: entry.digest(SHA256)}


def test_a_sha1_log_is_read_whole() -> None:
    log = parse_event_log(FIRMWARE.legacy_log())
    assert not log.crypto_agile
    assert log.algorithms == {SHA1: 20}
    assert [event.digests[SHA1] for event in log.events] == [entry.digest(SHA1) for entry in FIRMWARE.entries]


def test_unknown_algorithms_are_carried_along() -> None:
    sm3 = struct.pack("<HH", 0x12, 32)
    head = Firmware().head([SHA256])
    spec_size = struct.unpack_from("<I", head, 28)[0]
    spec = bytearray(head[32:])
    spec[24:28] = struct.pack("<I", 2)
    spec[-1:-1] = sm3
    log = head[:28] + struct.pack("<I", spec_size + 4) + bytes(spec)
    log += struct.pack("<III", 1, EventType.POST_CODE, 2) + b"\x0b\0" + bytes(32) + b"\x12\0" + b"s" * 32
    log += struct.pack("<I", 0)
    assert parse_event_log(log).events[1].digests == {SHA256: bytes(32), 0x12: b"s" * 32}


@pytest.mark.parametrize("cut", [1, 3, 10, len(LOG) // 2])
def test_a_truncated_log_is_refused_with_a_hint(cut: int) -> None:
    with pytest.raises(MalformedError, match="ends inside event") as refusal:
        parse_event_log(LOG[:-cut])
    assert "read it again" in refusal.value.hint


@pytest.mark.parametrize(
    ("octets", "hint"), [(b"", "no log"), (LOG[:20], "cut off"), (b"root:x:0:0:" * 99, "no TCG event log")]
)
def test_what_is_no_log_is_not_said_to_be_the_beginning_of_one(octets: bytes, hint: str) -> None:
    with pytest.raises(MalformedError) as refusal:
        parse_event_log(octets)
    assert hint in refusal.value.hint


@pytest.mark.parametrize("filler", [b"\0", b"\xff"])
@pytest.mark.parametrize("size", [0, 1, 11, 4096])
def test_padding_ends_a_log_from_a_buffer(filler: bytes, size: int) -> None:
    log = parse_event_log(LOG + size * filler, padded=True)
    assert len(log.events) == 1 + len(FIRMWARE.entries)
    assert not log.truncated


def test_padding_is_refused_where_none_was_announced() -> None:
    with pytest.raises(MalformedError):
        parse_event_log(LOG + bytes(7))


def test_a_buffer_that_was_too_small_is_told() -> None:
    log = parse_event_log(LOG[:-3], padded=True)
    assert log.truncated
    assert len(log.events) == len(FIRMWARE.entries)


def test_octets_behind_padding_are_not_skipped() -> None:
    """An event may not hide behind a gap: what is not filler is read as an event."""
    with pytest.raises(MalformedError):
        parse_event_log(LOG + bytes(4) + b"\x01" + bytes(4) + b"\xff\xff\xff\xff" + bytes(64), padded=True)


def spec(count: int, algorithms: bytes, *, tail: bytes = b"\0") -> bytes:
    data = struct.pack("<16sIBBBBI", b"Spec ID Event03\0", 0, 0, 2, 0, 2, count) + algorithms + tail
    return struct.pack("<II20sI", 0, EventType.NO_ACTION, bytes(20), len(data)) + data


SHA256_DECLARED = struct.pack("<HH", SHA256, 32)
HEAD = spec(1, SHA256_DECLARED)


@pytest.mark.parametrize(
    "log",
    [
        spec(0, b""),
        spec(17, SHA256_DECLARED * 17),
        spec(0xFFFFFFFF, SHA256_DECLARED),
        spec(2, SHA256_DECLARED * 2),
        spec(1, struct.pack("<HH", SHA256, 20)),
        spec(1, struct.pack("<HH", 0x1234, 0)),
        spec(1, struct.pack("<HH", 0x1234, 65)),
        spec(1, SHA256_DECLARED, tail=b""),
        spec(1, SHA256_DECLARED, tail=b"\x05"),
        spec(1, SHA256_DECLARED, tail=b"\0\0"),
        HEAD + struct.pack("<III", 24, 1, 0) + bytes(4),
        HEAD + struct.pack("<III", 0xFFFFFFFF, 1, 0) + bytes(4),
        HEAD + struct.pack("<III", 0, 1, 2) + bytes(100),
        HEAD + struct.pack("<III", 0, 1, 0xFFFFFFFF) + bytes(100),
        HEAD + struct.pack("<III", 0, 1, 1) + b"\x04\0" + bytes(100),
        HEAD + struct.pack("<III", 0, 1, 1) + b"\x0b\0" + bytes(32) + b"\xff\xff\xff\xff",
        b"",
        bytes(31),
        bytes(28) + b"\xff\xff\xff\xff",
    ],
)
def test_what_breaks_the_format_is_malformed(log: bytes) -> None:
    with pytest.raises(MalformedError):
        parse_event_log(log)


def test_one_algorithm_twice_in_an_event_is_malformed() -> None:
    event = struct.pack("<III", 0, 1, 2) + (b"\x0b\0" + bytes(32)) * 2 + bytes(4)
    two = spec(2, SHA256_DECLARED + struct.pack("<HH", SHA1, 20))
    with pytest.raises(MalformedError, match="twice"):
        parse_event_log(two + event)


def test_logs_have_bounds() -> None:
    with pytest.raises(MalformedError, match="longer"):
        parse_event_log(bytes(MAXIMUM_LOG + 1))
    event = struct.pack("<III", 1, 1, 0) + bytes(4)
    assert len(parse_event_log(HEAD + event * (MAXIMUM_EVENTS - 1)).events) == MAXIMUM_EVENTS
    with pytest.raises(MalformedError, match=str(MAXIMUM_EVENTS)):
        parse_event_log(HEAD + event * MAXIMUM_EVENTS)


def test_no_action_events_may_be_for_no_pcr() -> None:
    firmware = Firmware()
    firmware.entries.append(Entry(0xFFFFFFFF, EventType.NO_ACTION, b"trust point", b""))
    assert parse_event_log(firmware.log()).events[1].pcr == 0xFFFFFFFF


@given(st.binary(max_size=400), st.booleans())
def test_arbitrary_bytes_are_evidence_at_most(data: bytes, padded: bool) -> None:
    for log in (data, HEAD + data):
        with contextlib.suppress(EvidenceError):
            parse_event_log(log, padded=padded)


@given(st.integers(0, len(LOG) - 1), st.binary(min_size=1, max_size=8), st.booleans())
def test_spliced_logs_are_evidence_at_most(position: int, splice: bytes, padded: bool) -> None:
    with contextlib.suppress(EvidenceError):
        parse_event_log(LOG[:position] + splice + LOG[position + len(splice) :], padded=padded)
