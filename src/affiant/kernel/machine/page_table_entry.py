"""The bits of an entry of a page table that count here (Intel SDM vol. 3A, 4.5)."""

from __future__ import annotations

from typing import Final

__all__ = ["ACCESSED_DIRTY", "ADDRESS", "ENTRIES", "LARGE", "NO_EXECUTE", "PRESENT", "USER", "WRITABLE"]

PRESENT: Final = 1 << 0
WRITABLE: Final = 1 << 1
USER: Final = 1 << 2
ACCESSED_DIRTY: Final = 0x60  # set by the CPU
LARGE: Final = 1 << 7
NO_EXECUTE: Final = 1 << 63
ADDRESS: Final = 0x000F_FFFF_FFFF_F000
ENTRIES: Final = 512
"""Entries of one table."""
