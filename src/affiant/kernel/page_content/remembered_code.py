"""Code that one look remembers for the next: as much as there is room for, whatever the guest has."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final, Generic, TypeVar

__all__ = ["MOST_KEPT", "RememberedCode", "Room"]

_Key = TypeVar("_Key")
_Value = TypeVar("_Value")
_OVERHEAD: Final = 512  # bytes that remembering a piece of code takes beside it

MOST_KEPT: Final = 128 << 20
"""Bytes of code that are remembered: a guest may map one page of RAM as all of its packs."""


class Room:
    """The room that is left in one look; shared by all that it remembers."""

    def __init__(self) -> None:
        self.begin()

    def begin(self) -> None:
        """Begin a look."""
        self._left = MOST_KEPT

    def take(self, size: int) -> bool:
        """Take room for so many bytes of code, and tell whether there was any."""
        self._left -= size + _OVERHEAD
        return self._left >= 0


class RememberedCode(Generic[_Key, _Value]):
    """What was noted of pieces of code in this look, and in the one `before`.

    `size` tells how many bytes of code a note holds.
    """

    def __init__(self, room: Room, size: Callable[[_Value], int]) -> None:
        self._room, self._size = room, size
        self.now: dict[_Key, _Value] = {}
        self.before: dict[_Key, _Value] = {}

    def begin(self, *, whole: bool) -> None:
        """Begin a look. If the last one was not `whole`, what was noted before it is remembered as well."""
        self.before = self.now if whole else self._newest()
        self.now = {}

    def find(self, key: _Key) -> _Value | None:
        """Return what was noted in this look or the one before."""
        return self.now.get(key) or self.before.get(key)

    def note(self, key: _Key, value: _Value) -> None:
        """Note something, if there is room."""
        if self._room.take(self._size(value)):
            self.now[key] = value

    @contextmanager
    def apart(self) -> Iterator[dict[_Key, _Value]]:
        """Note for a while into a value of its own, which is also part of this look in the end."""
        earlier, noted = self.now, dict[_Key, _Value]()
        self.now = noted
        try:
            yield noted
        finally:
            self.now = earlier | noted

    def _newest(self) -> dict[_Key, _Value]:
        """Join two looks; of more than may be kept, what the earlier one had first is dropped."""
        joined = {key: value for key, value in self.before.items() if key not in self.now} | self.now
        excess = sum(self._size(value) + _OVERHEAD for value in joined.values()) - MOST_KEPT
        for key in list(joined):
            if excess <= 0:
                break
            excess -= self._size(joined.pop(key)) + _OVERHEAD
        return joined
