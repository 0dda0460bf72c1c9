"""Where a reader stands in octets from outside; what the readers of both byte orders have in common."""

from __future__ import annotations

from affiant.model.errors import MalformedError

__all__ = ["Cursor"]


class Cursor:
    """A cursor over unverified octets; every read is bounded, and none reads past the end.

    `subject` names what is read, for messages. All reads raise `MalformedError` when the octets
    end early; `finish` raises it when some are left over.
    """

    __slots__ = ("_data", "_offset", "_subject")

    def __init__(self, data: bytes, subject: str) -> None:
        self._data = data
        self._offset = 0
        self._subject = subject

    @property
    def offset(self) -> int:
        """How many octets were read so far."""
        return self._offset

    @property
    def remaining(self) -> int:
        """How many octets are left."""
        return len(self._data) - self._offset

    def take(self, size: int) -> bytes:
        """The next `size` octets."""
        start = self._advance(size)
        return self._data[start : start + size]

    def finish(self) -> None:
        """Refuse octets after the end: two readers must never see two different structures."""
        if self.remaining:
            raise MalformedError(f"{self._subject}: {self.remaining} octets after its end")

    def _advance(self, size: int) -> int:
        start = self._offset
        if not 0 <= size <= len(self._data) - start:
            raise MalformedError(
                f"{self._subject} ends early: {size} octets wanted at offset {start}, "
                f"{len(self._data) - start} left"
            )
        self._offset = start + size
        return start
