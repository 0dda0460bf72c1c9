"""Typed readers of decoded maps and arrays, so that a message's decoder reads like its table.

A `Fields` remembers what it reads (`challenge`, `runtime report: violation 3`) and which keys were
asked for: each error names message and field, and `close` refuses keys that nobody asked for.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Concatenate, ParamSpec, TypeVar

from affiant.model.errors import MalformedError
from affiant.wire.cbor import Item, Key
from affiant.wire.plain_text import has_controls

__all__ = ["Fields"]

_P = ParamSpec("_P")
_T = TypeVar("_T")

_MAX_UNSIGNED = (1 << 63) - 1  # what a signed column or C integer still holds


class Fields:
    """The entries of one decoded map, or of one array with positions 0, 1, ... as keys."""

    def __init__(self, entries: dict[Key, Item], name: str) -> None:
        self._entries = entries
        self._asked: set[Key] = set()
        self.name = name

    @classmethod
    def of_map(cls, item: Item, name: str) -> Fields:
        """Read a map. Raises `MalformedError` when `item` is none."""
        if not isinstance(item, dict):
            raise MalformedError(f"{name}: not a map")
        return cls(item, name)

    @classmethod
    def of_array(cls, item: Item, name: str, *, length: int | None = None) -> Fields:
        """Read an array, of exactly `length` elements where given. Raises `MalformedError`."""
        if not isinstance(item, list):
            raise MalformedError(f"{name}: not an array")
        if length is not None and len(item) != length:
            raise MalformedError(f"{name}: {len(item)} elements instead of {length}")
        return cls(dict(enumerate(item)), name)

    def __contains__(self, key: Key) -> bool:
        return key in self._entries

    def close(self) -> None:
        """Refuse keys that no reader asked for: in our own messages nothing is optional to understand."""
        unknown = self._entries.keys() - self._asked
        if unknown:
            raise MalformedError(f"{self.name}: unknown field {sorted(map(repr, unknown))[0]}")

    def error(self, field: str, message: str) -> MalformedError:
        """Return the error that names this message and `field`, for rules of a message's own."""
        return MalformedError(f"{self.name}: {field}: {message}")

    def item(self, key: Key, field: str) -> Item:
        """Return a required entry of any type."""
        self._asked.add(key)
        try:
            return self._entries[key]
        except KeyError:
            raise MalformedError(f"{self.name}: {field} is missing") from None

    def optional(
        self, read: Callable[Concatenate[Key, _P], _T], key: Key, *args: _P.args, **kwargs: _P.kwargs
    ) -> _T | None:
        """Return what `read` makes of the entry, or None when there is no such key."""
        return read(key, *args, **kwargs) if key in self._entries else None

    def nullable(
        self, read: Callable[Concatenate[Key, _P], _T], key: Key, *args: _P.args, **kwargs: _P.kwargs
    ) -> _T | None:
        """Return what `read` makes of the entry, or None when it is null; it must be there."""
        if key in self._entries and self._entries[key] is None:
            self._asked.add(key)
            return None
        return read(key, *args, **kwargs)

    def integer(self, key: Key, field: str, *, minimum: int = 0, maximum: int = _MAX_UNSIGNED) -> int:
        """Return an integer within the bounds, both included."""
        value = self.item(key, field)
        if isinstance(value, bool) or not isinstance(value, int):
            raise self.error(field, "not an integer")
        if not minimum <= value <= maximum:
            raise self.error(field, f"{value} is not within {minimum} to {maximum}")
        return value

    def boolean(self, key: Key, field: str) -> bool:
        """Return true or false."""
        value = self.item(key, field)
        if not isinstance(value, bool):
            raise self.error(field, "neither true nor false")
        return value

    def octets(
        self, key: Key, field: str, *, size: int | None = None, minimum: int = 0, maximum: int = 1 << 20
    ) -> bytes:
        """Return bytes of exactly `size`, or of `minimum` to `maximum`."""
        value = self.item(key, field)
        if not isinstance(value, bytes):
            raise self.error(field, "not bytes")
        if size is not None and len(value) != size:
            raise self.error(field, f"{len(value)} bytes instead of {size}")
        if size is None and not minimum <= len(value) <= maximum:
            raise self.error(field, f"{len(value)} bytes, not {minimum} to {maximum}")
        return value

    def digest(self, key: Key, field: str) -> bytes:
        """Return the 32 bytes of a SHA-256 digest."""
        return self.octets(key, field, size=32)

    def text(self, key: Key, field: str, *, minimum: int = 0, maximum: int = 256) -> str:
        """Return text of `minimum` to `maximum` characters, none of them a control character."""
        value = self.lines(key, field, minimum=minimum, maximum=maximum)
        if has_controls(value):
            raise self.error(field, "a control character in it")
        return value

    def lines(self, key: Key, field: str, *, minimum: int = 0, maximum: int) -> str:
        """Return text of `minimum` to `maximum` characters of any kind: what is made of lines."""
        value = self.item(key, field)
        if not isinstance(value, str):
            raise self.error(field, "not text")
        if not minimum <= len(value) <= maximum:
            raise self.error(field, f"{len(value)} characters, not {minimum} to {maximum}")
        return value

    def constant(self, key: Key, field: str, expected: int | str | bytes) -> None:
        """Require exactly `expected`, by type and value."""
        value = self.item(key, field)
        if type(value) is not type(expected) or value != expected:
            raise self.error(field, f"not {expected!r}")

    def map(self, key: Key, field: str, *, maximum: int = 256) -> Fields:
        """Return the readers of a nested map."""
        fields = Fields.of_map(self.item(key, field), f"{self.name}: {field}")
        self._bound(field, len(fields._entries), maximum)
        return fields

    def pairs(self, key: Key, field: str, *, maximum: int) -> list[tuple[Key, Item]]:
        """Return the entries of a nested map whose keys are data, in their encoded order."""
        value = self.item(key, field)
        if not isinstance(value, dict):
            raise self.error(field, "not a map")
        self._bound(field, len(value), maximum)
        return list(value.items())

    def array(self, key: Key, field: str, *, length: int | None = None) -> Fields:
        """Return the readers of a nested array whose positions have meanings."""
        return Fields.of_array(self.item(key, field), f"{self.name}: {field}", length=length)

    def each(
        self, key: Key, field: str, read: Callable[[Fields, int], _T], *, minimum: int = 0, maximum: int
    ) -> tuple[_T, ...]:
        """Return what `read` makes of each element of a nested array of `minimum` to `maximum`.

        `read` gets the readers of the array and a position in it.
        """
        array = self.array(key, field)
        self._bound(field, len(array._entries), maximum, minimum)
        return tuple(read(array, index) for index in range(len(array._entries)))

    def _bound(self, field: str, count: int, maximum: int, minimum: int = 0) -> None:
        if not minimum <= count <= maximum:
            raise self.error(field, f"{count} entries, not {minimum} to {maximum}")
