"""Nested events: bounded, and never anything but evidence."""

from __future__ import annotations

import contextlib
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from affiant.model.errors import EvidenceError, MalformedError
from affiant.tpm.windows.identity_key import read_identity_key
from affiant.tpm.windows.modules import read_module
from affiant.tpm.windows.policies import (
    read_code_integrity_policy,
    read_revocation_list,
    read_secure_boot_policy,
)
from affiant.tpm.windows.sipa import MAXIMUM_DEPTH, MAXIMUM_NODES, Sipa, SipaEvent, read_sipa_events
from tests.unit.tpm.windows.machine import PRIVATE_KEY, key_payload, sipa


def nested(depth: int) -> bytes:
    data = b""
    for _ in range(depth):
        data = sipa(Sipa.TRUST_BOUNDARY, data)
    return data


def test_events_are_read_in_order_with_what_they_hold() -> None:
    inner = sipa(Sipa.TEST_SIGNING, b"\0") + sipa(0x1234, b"unknown")
    first, second = read_sipa_events(sipa(Sipa.TRUST_BOUNDARY, inner) + sipa(Sipa.WINPE, b"\x01"))
    assert [child.name for child in first.children] == ["TEST_SIGNING", "0x00001234"]
    assert first.children[1].payload == b"unknown"
    assert (second.name, second.number) == ("WINPE", 1)
    assert [event.name for event in first.walk()] == ["TRUST_BOUNDARY", "TEST_SIGNING", "0x00001234"]


def test_an_unknown_aggregation_is_skipped_whole() -> None:
    (event,) = read_sipa_events(sipa(0x4001FFFF, b"not events"))
    assert event.children == ()


@pytest.mark.parametrize(
    ("payload", "number"), [(b"\x02", 2), (b"\x01\x01", 257), (bytes(4), 0), (b"", None)]
)
def test_numbers_are_little_endian_and_of_a_usual_size(payload: bytes, number: int | None) -> None:
    assert SipaEvent(1, payload).number == number


@pytest.mark.parametrize(
    "data",
    [
        b"\0",
        bytes(7),
        struct.pack("<II", 1, 1),
        struct.pack("<II", 1, 0xFFFFFFFF),
        sipa(Sipa.TRUST_BOUNDARY, b"\0"),
        sipa(1, b"x") + b"\0",
        nested(MAXIMUM_DEPTH + 1),
        bytes(8) * (MAXIMUM_NODES + 1),
        sipa(Sipa.TRUST_BOUNDARY, bytes(8) * MAXIMUM_NODES),
    ],
)
def test_what_breaks_the_format_or_a_bound_is_malformed(data: bytes) -> None:
    with pytest.raises(MalformedError, match="Windows event"):
        read_sipa_events(data)


def test_bounds_are_reached_and_not_crossed() -> None:
    assert len(read_sipa_events(bytes(8) * MAXIMUM_NODES)) == MAXIMUM_NODES
    (event,) = read_sipa_events(nested(MAXIMUM_DEPTH - 1))
    assert len(list(event.walk())) == MAXIMUM_DEPTH - 1


def test_a_module_is_read_from_a_module_only() -> None:
    with pytest.raises(ValueError, match="no loaded module"):
        read_module(SipaEvent(Sipa.TRUST_BOUNDARY, b""))


@pytest.mark.parametrize(
    ("identifier", "payload"),
    [
        (Sipa.FILE_PATH, b"x" * 5000),
        (Sipa.FILE_PATH, b"\x00\xd8"),
        (Sipa.AUTHENTICODE_HASH, bytes(65)),
    ],
)
def test_a_module_with_an_absurd_part_is_malformed(identifier: int, payload: bytes) -> None:
    (event,) = read_sipa_events(sipa(Sipa.LOADED_MODULE_AGGREGATION, sipa(identifier, payload)))
    with pytest.raises(MalformedError, match="loaded module"):
        read_module(event)


KEY = key_payload(PRIVATE_KEY.public_key())


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        KEY[:-1],
        KEY + b"\0",
        struct.pack("<I", 2) + KEY[4:],
        KEY[:4] + struct.pack("<I", 1024) + KEY[8:],
        KEY[:8] + struct.pack("<I", 0) + KEY[12:],
        KEY[:8] + struct.pack("<I", 9) + KEY[12:],
        KEY[:12] + struct.pack("<I", 0xFFFFFFFF) + KEY[16:],
        KEY[:16] + b"\0\0\0" + KEY[19:],
        struct.pack("<4I", 1, 1024, 3, 128) + b"\x01\0\x01" + b"\xff" * 128,
    ],
)
def test_what_is_no_identity_key_is_malformed(payload: bytes) -> None:
    with pytest.raises(MalformedError, match="VSM identity key"):
        read_identity_key(payload)


DIGEST = bytes(32)


@pytest.mark.parametrize(
    ("read", "payload"),
    [
        (read_revocation_list, struct.pack("<qIH", 1, 33, 11) + DIGEST),
        (read_revocation_list, struct.pack("<qIH", 1, 31, 11) + DIGEST),
        (read_revocation_list, struct.pack("<qIH", 1, 0, 11)),
        (read_revocation_list, struct.pack("<qIH", 1, 65, 11) + bytes(65)),
        (read_code_integrity_policy, struct.pack("<QHHI", 1, 2, 11, 32) + b"\x00\xd8" + DIGEST),
        (read_code_integrity_policy, struct.pack("<QHHI", 1, 2000, 11, 32) + bytes(2000) + DIGEST),
        (read_code_integrity_policy, struct.pack("<QHHI", 1, 0, 11, 32) + DIGEST + b"\0"),
        (read_secure_boot_policy, struct.pack("<IIHHII", 2, 20, 11, 32, 0, 0) + DIGEST),
        (read_secure_boot_policy, struct.pack("<IIHHII", 1, 19, 11, 32, 0, 0) + DIGEST),
        (read_secure_boot_policy, struct.pack("<IIHHII", 1, 21, 11, 32, 0, 0) + DIGEST),
    ],
)
def test_what_is_no_policy_is_malformed(read: object, payload: bytes) -> None:
    with pytest.raises(MalformedError):
        read(payload)  # type: ignore[operator]


@given(st.binary(max_size=400))
def test_arbitrary_octets_are_evidence_at_most(data: bytes) -> None:
    for read in (
        read_sipa_events,
        read_identity_key,
        read_revocation_list,
        read_code_integrity_policy,
        read_secure_boot_policy,
    ):
        with contextlib.suppress(EvidenceError):
            read(data)
