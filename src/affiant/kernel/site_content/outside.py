"""Who vouches for code outside of the image that its patch sites may lead to."""

from __future__ import annotations

from typing import Protocol

__all__ = ["NOBODY", "Outside"]


class Outside(Protocol):
    """Tells of addresses outside of the image. What it says of one, it has established from content."""

    def is_function(self, address: int) -> bool:
        """Tell whether a function starts there, of a module whose code is what its package holds."""
        ...

    def is_generated(self, address: int) -> bool:
        """Tell whether a trampoline or dispatcher starts there that BPF made, and is one by its content."""
        ...


class _Nobody:
    def is_function(self, address: int) -> bool:
        return False

    def is_generated(self, address: int) -> bool:
        return False


NOBODY: Outside = _Nobody()
"""Vouches for nothing."""
