"""Frames survive any cut of the stream and bound what one side can make the other hold."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from affiant.model.errors import MalformedError
from affiant.wire.frames import MAX_FRAME, FrameDecoder, encode_frame

_ITEMS = [[1, "a"], {1: b"bytes"}, None, [0, b"\x00" * 300]]
_STREAM = b"".join(map(encode_frame, _ITEMS))  # type: ignore[arg-type]


def test_the_length_is_four_bytes_big_endian() -> None:
    assert encode_frame([1, 2]) == b"\x00\x00\x00\x03\x82\x01\x02"


@given(st.lists(st.integers(0, len(_STREAM)), max_size=20))
def test_items_do_not_depend_on_how_the_stream_is_cut(cuts: list[int]) -> None:
    decoder = FrameDecoder()
    bounds = [0, *sorted(cuts), len(_STREAM)]
    items = [item for start, end in pairwise(bounds) for item in decoder.feed(_STREAM[start:end])]
    decoder.end()
    assert items == _ITEMS


@pytest.mark.parametrize("length", [0, MAX_FRAME + 1, 0xFFFFFFFF])
def test_a_length_out_of_bounds_is_refused_before_its_bytes_come(length: int) -> None:
    with pytest.raises(MalformedError, match="length"):
        FrameDecoder().feed(length.to_bytes(4, "big"))


def test_a_broken_stream_stays_broken() -> None:
    decoder = FrameDecoder()
    with pytest.raises(MalformedError):
        decoder.feed(b"\x00\x00\x00\x01\xff")
    with pytest.raises(MalformedError, match="before"):
        decoder.feed(encode_frame(1))


def test_an_end_inside_a_frame_is_told() -> None:
    decoder = FrameDecoder()
    assert decoder.feed(_STREAM[:-1]) == _ITEMS[:-1]
    with pytest.raises(MalformedError, match="ended"):
        decoder.end()


def test_two_items_in_one_frame_are_refused() -> None:
    with pytest.raises(MalformedError, match="after the end"):
        FrameDecoder().feed(b"\x00\x00\x00\x02\x01\x02")


def test_an_oversized_item_is_misuse() -> None:
    with pytest.raises(ValueError, match="frame"):
        encode_frame(bytes(MAX_FRAME))
