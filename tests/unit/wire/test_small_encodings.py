"""Launch record, passport and CMW collections."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from affiant.model.errors import MalformedError
from affiant.wire import cbor
from affiant.wire.cmw import EVIDENCE, RecordKind, encode_collection, open_collection
from affiant.wire.launch_record import decode_launch_record, encode_launch_record
from affiant.wire.passport import (
    MAX_PASSPORT,
    decode_passport,
    decode_passport_text,
    encode_passport,
    encode_passport_text,
)
from tests.unit.wire import world

RECORD = encode_launch_record(world.LAUNCH_RECORD)


def test_the_launch_record_round_trips_to_fixed_bytes() -> None:
    """PCR 17 depends on every byte: a change here is a change of format, not of code."""
    assert decode_launch_record(RECORD) == world.LAUNCH_RECORD
    identity_key = world.LAUNCH_RECORD.identity_key.hex()
    service_root = world.LAUNCH_RECORD.service_root.hex()
    assert RECORD.hex() == (
        "a7"
        "0070" + b"affiant/1/launch".hex() + "015820" + "11" * 32 + "0265" + b"0.1.0".hex() + "0303"
        "04f4"
        "055820" + service_root + "065841" + identity_key
    )


def test_pinned_rules_are_two_more_fields_and_none_are_none() -> None:
    """A monitor that takes no published rules has a record without the fields, not one with empty values."""
    pinned = encode_launch_record(replace(world.LAUNCH_RECORD, rules_root=b"\x77" * 32, fleet="web"))
    root, fleet = b"\x07\x58\x20" + b"\x77" * 32, b"\x08\x63web"
    assert pinned == b"\xa9" + RECORD[1:] + root + fleet
    record = decode_launch_record(pinned)
    assert (record.rules_root, record.fleet) == (b"\x77" * 32, "web")
    with pytest.raises(MalformedError, match="rules root"):
        decode_launch_record(b"\xa9" + RECORD[1:] + b"\x07\xf6" + fleet)
    for alone in (root, fleet):
        with pytest.raises(MalformedError, match="stand together"):
            decode_launch_record(b"\xa8" + RECORD[1:] + alone)
    for name in ("", "Web", "-web", "w" * 64, "web\n"):
        bent = b"\x08" + (bytes([0x60 + len(name)]) if len(name) < 24 else b"\x78\x40") + name.encode()
        with pytest.raises(MalformedError, match=r"fleet: (not the name of one|a control character)"):
            decode_launch_record(b"\xa9" + RECORD[1:] + root + bent)


def test_bent_launch_records_are_malformed_or_other_records() -> None:
    for end in range(len(RECORD)):
        with pytest.raises(MalformedError):
            decode_launch_record(RECORD[:end])
    for bit in range(len(RECORD) * 8):
        bent = bytearray(RECORD)
        bent[bit // 8] ^= 1 << bit % 8
        try:
            record = decode_launch_record(bytes(bent))
        except MalformedError:
            continue
        assert record != world.LAUNCH_RECORD
        assert encode_launch_record(record) == bytes(bent)


@pytest.mark.parametrize(
    "bend",
    [
        {"monitor_image": b""},
        {"monitor_version": ""},
        {"security_version": -1},
        {"debug": 1},
        {"service_root": bytes(33)},
        {"rules_root": b"", "fleet": "web"},
        {"identity_key": b"\x04" + bytes(64)},
    ],
)
def test_launch_records_out_of_bounds_are_misuse(bend: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="launch record"):
        encode_launch_record(replace(world.LAUNCH_RECORD, **bend))


def test_the_passport_round_trips_in_both_forms() -> None:
    assert decode_passport(world.PASSPORT_BYTES) == world.PASSPORT
    text = encode_passport_text(world.PASSPORT_BYTES)
    assert set(text) <= set("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_")
    assert decode_passport_text(text) == world.PASSPORT_BYTES


def test_the_passport_fits_one_header() -> None:
    """The buffers of common proxies hold 8 kB."""
    assert len(encode_passport_text(world.PASSPORT_BYTES)) < 4096


@given(st.binary(max_size=100))
def test_text_forms_round_trip(data: bytes) -> None:
    assert decode_passport_text(encode_passport_text(data)) == data


@given(st.text(max_size=40))
def test_a_text_that_decodes_is_the_one_form(text: str) -> None:
    try:
        data = decode_passport_text(text)
    except MalformedError:
        return
    assert encode_passport_text(data) == text


@pytest.mark.parametrize("text", ["A", "QQ==", "QR", "Q+8", "Q/8", "Q Q", "QUI\n", "ü", "A" * (2 << 20)])
def test_other_texts_are_malformed(text: str) -> None:
    with pytest.raises(MalformedError, match="passport"):
        decode_passport_text(text)


@pytest.mark.parametrize(
    "bend",
    [
        {"__cmwc_t": "tag:affiant.dev,2026:affiant/evidence#1"},
        {"session": ["application/eat+cwt", b"x", 4]},
        {"session": ["application/cwt", b"x", 8]},
        {"session": [263, b"x", 8]},
        {"session": ["application/eat+cwt", b"x"]},
        {"session": ["application/eat+cwt", b"", 8]},
        {"session": ["application/eat+cwt", "x", 8]},
        {"runtime": None},
        {"more": ["application/eat+cwt", b"x", 4]},
        {1: ["application/eat+cwt", b"x", 4]},
    ],
)
def test_bent_collections_are_malformed(bend: dict[Any, Any]) -> None:
    item = cbor.decode(encode_passport(world.PASSPORT), max_size=MAX_PASSPORT)
    assert isinstance(item, dict)
    with pytest.raises(MalformedError, match="passport"):
        decode_passport(cbor.encode(item | bend))


def test_each_record_must_be_there() -> None:
    for key in ("__cmwc_t", "session", "runtime"):
        item = cbor.decode(world.PASSPORT_BYTES, max_size=MAX_PASSPORT)
        assert isinstance(item, dict)
        del item[key]
        with pytest.raises(MalformedError, match="missing"):
            decode_passport(cbor.encode(item))


def test_records_are_bounded_both_ways() -> None:
    small = RecordKind("small", "text/plain", EVIDENCE, 3)
    large = replace(small, max_size=10)
    with pytest.raises(ValueError, match="small"):
        encode_collection("tag:test", [(small, b"1234")])
    data = encode_collection("tag:test", [(large, b"1234")])
    collection = open_collection(data, collection_type="tag:test", name="test", max_size=100)
    assert large.read(collection) == b"1234"
    with pytest.raises(MalformedError, match="value"):
        small.read(collection)
