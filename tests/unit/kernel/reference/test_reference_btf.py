"""Type information: names, members and sizes, and what bent types lead to."""

from __future__ import annotations

import struct

import pytest

from affiant.kernel.reference import BtfIndex, BtfKind
from affiant.model.errors import MalformedError
from tests.unit.kernel.reference import tiny_kernel


def test_types_members_and_sizes() -> None:
    index = BtfIndex(tiny_kernel.tiny_btf())
    assert len(index) == 7
    tiny = index.find("tiny", BtfKind.STRUCT)
    assert tiny is not None and index.size(tiny.id) == 12
    assert index.size(7) == 60
    assert [(m.name, m.bit_offset) for m in index.members(tiny)] == [("a", 0), ("", 32), ("e", 64)]
    unnamed = index.member("tiny", "b")
    assert unnamed is not None and unnamed.offset == 4
    bits = index.member("tiny", "c")
    assert bits is not None and (bits.bit_offset, bits.bit_size) == (32, 3)
    through_typedef = index.member("tiny", "e.d")
    assert through_typedef is not None and through_typedef.offset == 8
    assert index.member("tiny", "a.d") is None and index.member("tiny", "z") is None
    assert index.member("absent", "a") is None and index.find("int", BtfKind.STRUCT) is None
    with pytest.raises(ValueError, match="no structure"):
        index.members(index.type(1))


def _btf(types: bytes, strings: bytes = b"\0a\0") -> bytes:
    header = struct.pack("<HBBIIIII", 0xEB9F, 1, 0, 24, 0, len(types), len(types), len(strings))
    return header + types + strings


def test_types_that_refer_to_each_other_in_a_circle_are_refused() -> None:
    typedef = struct.pack("<III", 1, 8 << 24, 2) + struct.pack("<III", 1, 8 << 24, 1)
    with pytest.raises(MalformedError, match="circle"):
        BtfIndex(_btf(typedef)).resolve(1)


def test_structures_that_contain_each_other_end() -> None:
    both = b"".join(
        struct.pack("<III", 1 if n == 0 else 0, 4 << 24 | 2, 8) + struct.pack("<III", 0, 2 - n, 0) * 2
        for n in range(2)
    )
    assert BtfIndex(_btf(both)).member("a", "x") is None


@pytest.mark.parametrize(
    "data",
    [
        b"",
        tiny_kernel.tiny_btf()[:20],
        tiny_kernel.tiny_btf()[:-1],
        b"\x00" + tiny_kernel.tiny_btf()[1:],
        _btf(struct.pack("<III", 1, 30 << 24, 0)),
        _btf(struct.pack("<III", 1, 4 << 24 | 5, 0)),
        _btf(struct.pack("<II", 1, 4 << 24)),
        _btf(b"", b"a\0"),
        _btf(b"", b"\0a"),
    ],
)
def test_bogus_types_are_refused(data: bytes) -> None:
    with pytest.raises(MalformedError):
        BtfIndex(data)


def test_type_and_name_out_of_range_are_refused() -> None:
    index = BtfIndex(_btf(struct.pack("<III", 50, 8 << 24, 9)))
    with pytest.raises(MalformedError):
        index.type(1)
    with pytest.raises(MalformedError):
        index.type(2)
