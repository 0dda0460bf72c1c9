"""Readers name the message and the field, and refuse what they were not asked for."""

from __future__ import annotations

import pytest

from affiant.model.errors import MalformedError
from affiant.wire.cbor import Item
from affiant.wire.fields import Fields


def fields(item: Item) -> Fields:
    return Fields.of_map(item, "message")


def test_unknown_keys_are_refused_on_close() -> None:
    reader = fields({1: 5, 2: 6})
    assert reader.integer(1, "count") == 5
    with pytest.raises(MalformedError, match="message: unknown field 2"):
        reader.close()


def test_missing_fields_are_named() -> None:
    with pytest.raises(MalformedError, match="message: nonce is missing"):
        fields({}).digest(10, "nonce")


@pytest.mark.parametrize("value", [True, "1", None, b"\x01", -1, 11, [1], {}])
def test_integers_have_a_type_and_bounds(value: Item) -> None:
    with pytest.raises(MalformedError, match="message: count"):
        fields({1: value}).integer(1, "count", maximum=10)


@pytest.mark.parametrize("value", [0, 1, None, "true"])
def test_booleans_are_booleans(value: Item) -> None:
    with pytest.raises(MalformedError, match="message: debug"):
        fields({1: value}).boolean(1, "debug")


@pytest.mark.parametrize("value", [bytes(31), bytes(33), b"", "a" * 32, None, 0])
def test_digests_are_32_bytes(value: Item) -> None:
    with pytest.raises(MalformedError, match="message: nonce"):
        fields({1: value}).digest(1, "nonce")


@pytest.mark.parametrize("value", ["", "abcd", b"ab", None])
def test_texts_have_bounds(value: Item) -> None:
    with pytest.raises(MalformedError, match="message: name"):
        fields({1: value}).text(1, "name", minimum=1, maximum=3)


@pytest.mark.parametrize("value", ["a\0", "a\nb", "\t", "\x1b[2J", "\x7f", "a\x9b"])
def test_texts_hold_no_control_characters(value: str) -> None:
    """One NUL, and PostgreSQL takes no row that the text is in; a line break forges a line of a log."""
    with pytest.raises(MalformedError, match="message: trouble: a control character"):
        fields({1: value}).text(1, "trouble")
    assert fields({1: value}).lines(1, "trouble", maximum=5) == value


@pytest.mark.parametrize("value", ["na\u00efve \u2026", "\u202e", "\xa0", "\U0001f600"])
def test_texts_of_any_language_are_texts(value: str) -> None:
    assert fields({1: value}).text(1, "name") == value


@pytest.mark.parametrize("value", [1, True, "2", None])
def test_constants_are_compared_with_their_type(value: Item) -> None:
    reader = fields({1: value, 2: 0})
    expected = 1 if value is True else 2
    with pytest.raises(MalformedError, match="not"):
        reader.constant(1, "kind", expected)


def test_optional_is_absent_and_nullable_is_null() -> None:
    reader = fields({1: None, 2: 7})
    assert reader.optional(reader.integer, 3, "a") is None
    assert reader.nullable(reader.integer, 1, "b") is None
    assert reader.nullable(reader.integer, 2, "c") == 7
    reader.close()
    with pytest.raises(MalformedError, match="a: not an integer"):
        reader.optional(reader.integer, 1, "a")
    with pytest.raises(MalformedError, match="d is missing"):
        reader.nullable(reader.integer, 4, "d")


def test_arrays_are_bounded_and_their_elements_named() -> None:
    def number(row: Fields, index: int) -> int:
        return row.integer(index, str(index))

    assert fields({1: [1, 2]}).each(1, "list", number, maximum=2) == (1, 2)
    with pytest.raises(MalformedError, match="message: list: 1: not an integer"):
        fields({1: [1, "2"]}).each(1, "list", number, maximum=2)
    with pytest.raises(MalformedError, match="message: list: 3 entries"):
        fields({1: [1, 2, 3]}).each(1, "list", number, maximum=2)
    with pytest.raises(MalformedError, match="message: list: 0 entries"):
        fields({1: []}).each(1, "list", number, minimum=1, maximum=2)


def test_containers_have_their_type_and_length() -> None:
    with pytest.raises(MalformedError, match="message: not a map"):
        fields([1])
    with pytest.raises(MalformedError, match="row: not an array"):
        Fields.of_array({}, "row")
    with pytest.raises(MalformedError, match="1 elements instead of 2"):
        Fields.of_array([1], "row", length=2)
    with pytest.raises(MalformedError, match="message: inner: 2 entries"):
        fields({1: {1: 1, 2: 2}}).map(1, "inner", maximum=1)
    with pytest.raises(MalformedError, match="message: pairs: not a map"):
        fields({1: []}).pairs(1, "pairs", maximum=1)
    with pytest.raises(MalformedError, match="message: pairs: 2 entries"):
        fields({1: {1: 1, 2: 2}}).pairs(1, "pairs", maximum=1)
