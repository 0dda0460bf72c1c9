"""How bytes of a repository are asked for, whoever carries them."""

from __future__ import annotations

from typing import Protocol

from affiant.model.errors import UnavailableError

__all__ = ["Fetch", "NotFoundError"]


class NotFoundError(UnavailableError):
    """The repository answered, and has no such file. Anyone on the way may have said so."""


class Fetch(Protocol):
    """Brings one file of the repository, unverified."""

    def __call__(self, path: str, maximum: int, /) -> bytes:
        """Return the file at `path` (`metadata/...` or `targets/...`, relative), at most `maximum` bytes.

        Raises `NotFoundError` where the repository has none, and `UnavailableError` where it cannot be
        asked or sends more.
        """
