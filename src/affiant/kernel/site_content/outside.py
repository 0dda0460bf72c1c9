"""Who vouches for code outside of the image that its patch sites may lead to."""

from __future__ import annotations

from collections.abc import Set
from typing import Protocol

__all__ = ["NOBODY", "Outside"]


class Outside(Protocol):
    """Tells of addresses outside of the image. What it says of one, it has established from content.

    It is asked about many at once: a guest may have each of 50,000 functions lead to a place of its own.
    """

    def functions_among(self, addresses: Set[int]) -> frozenset[int]:
        """Return those where a function starts, of a module whose code is what its package holds."""
        ...

    def generated_among(self, addresses: Set[int]) -> frozenset[int]:
        """Return those where a trampoline or dispatcher starts that BPF made, and is one by its content.

        Raises UnavailableError if that is more code than one look reads.
        """
        ...

    def left_among(self, pages: Set[int]) -> frozenset[int]:
        """Return those pages that hold text of a module that comes or goes, as its package has it.

        Raises UnavailableError if nobody knows what packages have.
        """
        ...


class _Nobody:
    def functions_among(self, addresses: Set[int]) -> frozenset[int]:
        return frozenset()

    def generated_among(self, addresses: Set[int]) -> frozenset[int]:
        return frozenset()

    def left_among(self, pages: Set[int]) -> frozenset[int]:
        return frozenset()


NOBODY: Outside = _Nobody()
"""Vouches for nothing."""
