"""One value: where it lies is known, now it is read and told as JSON."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import drgn

from affiant.kernel.walks.places import AbsentError, Place, plain, size_of
from affiant.kernel.walks.snapshot import Snapshot
from affiant.model.errors import UnavailableError
from affiant.model.query import Form, Reading

__all__ = ["Json", "Reader", "destination", "make_reader"]

Json = str | int | dict[str, str] | None
"""A value as scripts read it; None is where the path came to a null pointer."""

Reader = Callable[[Snapshot, int], Json]
"""Reads one value, given the address that its place is relative to."""

Owner = Callable[[Snapshot, int], dict[str, str]]

_NUMBERS: Final = (drgn.TypeKind.INT, drgn.TypeKind.BOOL, drgn.TypeKind.ENUM, drgn.TypeKind.POINTER)
_LARGEST_NUMBER: Final = 16


def make_reader(place: Place, reading: Reading, *, owner: Owner) -> Reader:
    """Return what reads a value at a place and tells it in the form that the reading asks for.

    Raises `AbsentError` if it cannot be told so on this kernel (a structure is no number), and
    `UnavailableError` if the form needs a type that nobody tells. The reader returns None where a
    pointer on the way is null, and raises what `Snapshot` raises.
    """
    if reading.form is Form.NUMBER:
        return _number(place)
    if reading.form is Form.TEXT:
        return _text(place, reading.size)
    if reading.form is Form.BYTES:
        return _bytes(place, reading.size)
    address = _address(place)
    if reading.form is Form.ADDRESS:
        return lambda memory, base: None if (value := address(memory, base)) is None else hex(value)
    return lambda memory, base: None if (value := address(memory, base)) is None else owner(memory, value)


def destination(memory: Snapshot, base: int, place: Place) -> int | None:
    """Return the address of a place, following its pointers; None if one of them is null."""
    for hop in place.hops:
        base = memory.word(base + hop)
        if base == 0:
            return None
    return (base + place.offset) % (1 << 64)


def _number(place: Place) -> Reader:
    kind = _known(place)
    if kind.kind not in _NUMBERS:
        raise AbsentError(f"a value of type {kind.type_name()} is no number")
    size = (place.shift + place.width + 7) // 8 if place.width else size_of(kind)
    if size > _LARGEST_NUMBER:
        raise AbsentError(f"a number of {size} bytes is not read")
    width, signed = place.width or 8 * size, _signed(kind)

    def read(memory: Snapshot, base: int) -> Json:
        address = destination(memory, base, place)
        if address is None:
            return None
        value = int.from_bytes(memory.read(address, size), "little") >> place.shift & (1 << width) - 1
        return value - (1 << width) if signed and value >> (width - 1) else value

    return read


def _address(place: Place) -> Callable[[Snapshot, int], int | None]:
    kind = _known(place)
    if place.width:
        raise AbsentError("a bit field has no address")
    held = kind.kind == drgn.TypeKind.POINTER or (kind.kind == drgn.TypeKind.INT and size_of(kind) == 8)

    def read(memory: Snapshot, base: int) -> int | None:
        address = destination(memory, base, place)
        return memory.word(address) if held and address is not None else address

    return read


def _text(place: Place, size: int) -> Reader:
    kind = place.type
    if place.width:
        raise AbsentError("a bit field is no text")
    if kind is not None and kind.kind == drgn.TypeKind.POINTER:
        place = Place((*place.hops, place.offset), 0, None)
    elif kind is not None and kind.kind == drgn.TypeKind.ARRAY and kind.length is not None:
        size = min(size, size_of(kind))

    def read(memory: Snapshot, base: int) -> Json:
        address = destination(memory, base, place)
        if address is None:
            return None
        return memory.text(address, size).decode("utf-8", "backslashreplace")

    return read


def _bytes(place: Place, size: int) -> Reader:
    if place.width:
        raise AbsentError("a bit field is no bytes")

    def read(memory: Snapshot, base: int) -> Json:
        address = destination(memory, base, place)
        return None if address is None else memory.read(address, size).hex()

    return read


def _known(place: Place) -> drgn.Type:
    if place.type is None:
        raise UnavailableError("nobody tells the type of the value", hint="state it in the query: 'type'")
    return place.type


def _signed(kind: drgn.Type) -> bool:
    if kind.kind == drgn.TypeKind.ENUM and kind.type is not None:
        kind = plain(kind.type)
    return kind.kind == drgn.TypeKind.INT and bool(kind.is_signed)
