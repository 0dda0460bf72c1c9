"""Ranges of a guest's RAM with what they held once."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["KeptRanges"]


@dataclass(frozen=True, slots=True, eq=False)
class KeptRanges:
    """Ranges of RAM, by their physical addresses, with what each held once, and the live bytes beside it.

    Made by `GuestMemory.keep`. Arrays of bytes, because one of them and a view are compared by memcmp.
    """

    addresses: list[int]
    contents: list[bytearray]
    live: list[memoryview]
