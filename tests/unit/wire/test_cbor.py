"""Deterministic CBOR accepts one encoding of each item and no other bytes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from affiant.model.errors import MalformedError
from affiant.wire import cbor
from affiant.wire.cbor import MAX_DEPTH, MAX_ITEMS, Item, Tagged

# RFC 8949, Appendix A: the examples that deterministic CBOR without floats and tags can express.
ACCEPTED: list[tuple[str, Item]] = [
    ("00", 0),
    ("01", 1),
    ("0a", 10),
    ("17", 23),
    ("1818", 24),
    ("1819", 25),
    ("1864", 100),
    ("1903e8", 1000),
    ("1a000f4240", 1000000),
    ("1b000000e8d4a51000", 1000000000000),
    ("1bffffffffffffffff", 18446744073709551615),
    ("3bffffffffffffffff", -18446744073709551616),
    ("20", -1),
    ("29", -10),
    ("3863", -100),
    ("3903e7", -1000),
    ("f4", False),
    ("f5", True),
    ("f6", None),
    ("40", b""),
    ("4401020304", bytes([1, 2, 3, 4])),
    ("60", ""),
    ("6161", "a"),
    ("6449455446", "IETF"),
    ("62225c", '"\\'),
    ("62c3bc", "\u00fc"),
    ("63e6b0b4", "\u6c34"),
    ("64f0908591", "\U00010151"),
    ("80", []),
    ("83010203", [1, 2, 3]),
    ("8301820203820405", [1, [2, 3], [4, 5]]),
    ("98190102030405060708090a0b0c0d0e0f101112131415161718181819", list(range(1, 26))),
    ("a0", {}),
    ("a201020304", {1: 2, 3: 4}),
    ("a26161016162820203", {"a": 1, "b": [2, 3]}),
    ("826161a161626163", ["a", {"b": "c"}]),
    ("a56161614161626142616361436164614461656145", {"a": "A", "b": "B", "c": "C", "d": "D", "e": "E"}),
    # Section 4.2.1: the order of keys is that of their encodings' bytes, not of their lengths.
    # The section's own example, without its bool and array keys.
    ("a50a001864002000617a0062616100", {10: 0, 100: 0, -1: 0, "z": 0, "aa": 0}),
]

# Encodings, valid CBOR or not, that have no room here, with the reason told. From Appendix A where
# marked A, else made by hand after the section named.
REFUSED: list[tuple[str, str]] = [
    ("c249010000000000000000", "tag 2"),  # A: bignum
    ("f90000", "float or simple"),  # A: 0.0
    ("f97e00", "float or simple"),  # A: NaN
    ("fa47c35000", "float or simple"),  # A: 100000.0
    ("fb3ff199999999999a", "float or simple"),  # A: 1.1
    ("f7", "float or simple"),  # A: undefined
    ("f0", "float or simple"),  # A: simple(16)
    ("f8ff", "float or simple"),  # A: simple(255)
    ("c11a514b67b0", "tag 1"),  # A: epoch time
    ("d818456449455446", "tag 24"),  # A: encoded item
    ("5f42010243030405ff", "indefinite"),  # A
    ("7f657374726561646d696e67ff", "indefinite"),  # A
    ("9fff", "indefinite"),  # A
    ("bf61610161629f0203ffff", "indefinite"),  # A
    ("ff", "float or simple"),  # section 3.2.1: a break outside
    ("1800", "shortest"),  # section 4.2.1, each of the four lengths
    ("1817", "shortest"),
    ("190018", "shortest"),
    ("1900ff", "shortest"),
    ("1a0000ffff", "shortest"),
    ("1b00000000ffffffff", "shortest"),
    ("3817", "shortest"),
    ("5801aa", "shortest"),
    ("780161", "shortest"),
    ("980100", "shortest"),
    ("b8010000", "shortest"),
    ("1c", "reserved"),  # section 3: reserved additional information
    ("1d", "reserved"),
    ("1e", "reserved"),
    ("a201000100", "twice"),  # section 5.6: a key twice
    ("a202000100", "order"),  # section 4.2.1: keys out of order
    ("a2616200616100", "order"),
    ("a262616100617a00", "order"),  # aa before z: alphabetic, not bytewise
    ("a1f500", "map key"),
    ("a18000", "map key"),
    ("a1f600", "map key"),
    ("62c328", "UTF-8"),  # section 3.1: invalid UTF-8
    ("62c080", "UTF-8"),  # overlong NUL
    ("63eda080", "UTF-8"),  # a surrogate
    ("0000", "after the end"),
    ("", "truncated"),
    ("18", "truncated"),
    ("19ff", "truncated"),
    ("44010203", "truncated"),
    ("6261", "truncated"),
    ("8301", "truncated"),
    ("a101", "truncated"),
    ("9bffffffffffffffff", "truncated"),  # a length that promises more than there is
    ("5bffffffffffffffff00", "truncated"),
    ("bbffffffffffffffff", "truncated"),
]

_SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(min_value=-(1 << 64), max_value=(1 << 64) - 1)
    | st.binary(max_size=300)
    | st.text(max_size=300)
)
_KEYS = (
    st.integers(min_value=-(1 << 64), max_value=(1 << 64) - 1) | st.text(max_size=20) | st.binary(max_size=20)
)
ITEMS = st.recursive(_SCALARS, lambda inner: st.lists(inner) | st.dictionaries(_KEYS, inner), max_leaves=20)


def decode(data: bytes) -> Item:
    return cbor.decode(data, max_size=1 << 20)


@pytest.mark.parametrize(("encoding", "item"), ACCEPTED)
def test_the_rfc_examples_encode_and_decode(encoding: str, item: Item) -> None:
    assert cbor.encode(item) == bytes.fromhex(encoding)
    decoded = decode(bytes.fromhex(encoding))
    assert decoded == item
    assert type(decoded) is type(item)


@pytest.mark.parametrize(("encoding", "reason"), REFUSED)
def test_other_encodings_are_refused(encoding: str, reason: str) -> None:
    with pytest.raises(MalformedError, match=reason):
        decode(bytes.fromhex(encoding))


@given(ITEMS)
def test_items_round_trip(item: Item) -> None:
    assert decode(cbor.encode(item)) == item


@given(st.binary(max_size=200))
def test_whatever_decodes_encodes_to_the_same_bytes(data: bytes) -> None:
    """No two encodings of one item exist; random bytes raise nothing but MalformedError."""
    try:
        item = decode(data)
    except MalformedError:
        return
    assert cbor.encode(item) == data


@given(ITEMS, st.data())
def test_bent_encodings_are_refused_or_canonical(item: Item, data: st.DataObject) -> None:
    encoding = bytearray(cbor.encode(item))
    position = data.draw(st.integers(0, len(encoding) - 1))
    encoding[position] ^= 1 << data.draw(st.integers(0, 7))
    try:
        bent = decode(bytes(encoding))
    except MalformedError:
        return
    assert cbor.encode(bent) == bytes(encoding)


@given(ITEMS)
def test_truncations_are_refused(item: Item) -> None:
    encoding = cbor.encode(item)
    for end in range(len(encoding)):
        with pytest.raises(MalformedError):
            decode(encoding[:end])


def test_depth_is_bounded_both_ways() -> None:
    deep: Item = 0
    for _ in range(MAX_DEPTH):
        deep = [deep]
    assert decode(cbor.encode(deep)) == deep
    with pytest.raises(ValueError, match="nesting"):
        cbor.encode([deep])
    with pytest.raises(MalformedError, match="nesting"):
        decode(b"\x81" * (MAX_DEPTH + 1) + b"\x00")
    with pytest.raises(MalformedError, match="nesting"):
        decode(b"\xa1\x00" * (MAX_DEPTH + 1) + b"\x00")


def test_a_thousand_nested_tags_do_not_exhaust_the_stack() -> None:
    with pytest.raises(MalformedError, match="nesting"):
        cbor.decode(b"\xd2" * 100_000 + b"\x00", max_size=1 << 20, tags=(18,))


def test_size_is_checked_before_anything_else() -> None:
    with pytest.raises(MalformedError, match="at most 3"):
        cbor.decode(b"\xff" * 4, max_size=3)


def test_many_small_items_are_refused() -> None:
    count = MAX_ITEMS + 1
    with pytest.raises(MalformedError, match="items"):
        decode(b"\x9a" + count.to_bytes(4, "big") + bytes(count))


def test_tags_are_refused_unless_named() -> None:
    encoding = cbor.encode(Tagged(18, [1]))
    assert cbor.decode(encoding, max_size=10, tags=(18,)) == Tagged(18, [1])
    with pytest.raises(MalformedError, match="tag 18"):
        cbor.decode(encoding, max_size=10, tags=(17,))


def test_errors_name_the_message_and_the_offset() -> None:
    with pytest.raises(MalformedError, match="challenge: tag 0 at offset 1"):
        cbor.decode(b"\xc0\x00", max_size=10, name="challenge")


@pytest.mark.parametrize(
    "item", [1.0, 1 << 64, -(1 << 64) - 1, {True: 1}, {1.5: 1}, {(1,): 1}, "\ud800", object(), {1, 2}, [2.5]]
)
def test_items_without_an_encoding_are_misuse(item: object) -> None:
    with pytest.raises(ValueError):
        cbor.encode(item)  # type: ignore[arg-type]
