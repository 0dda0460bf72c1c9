"""Where RAM of a q35 machine lies: physical addresses, and the offsets of the RAM file that answer to them.

With more memory than fits below the PCI hole, offsets from `below_4g_bytes` on appear at physical 4 GiB. No
RAM answers in the hole, in device memory and in the legacy video window.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

__all__ = ["PhysicalSegment", "RamLayout", "q35_below_4g_bytes"]

_FOUR_GIB: Final = 1 << 32
# The CPU sees the VGA window (or SMRAM) here, not the RAM behind it.
_VIDEO_WINDOW: Final = (0xA0000, 0xC0000)


@dataclass(frozen=True, slots=True)
class PhysicalSegment:
    """`size` bytes of RAM at physical `address`, found at `offset` of the RAM file."""

    address: int
    size: int
    offset: int


def q35_below_4g_bytes(memory_bytes: int) -> int:
    """Return how much RAM QEMU's q35 machine puts below 4 GiB by default.

    QEMU, hw/i386/pc_q35.c, pc_q35_init: 2 GiB if the guest has at least 2.75 GiB, else everything.
    A machine started with `max-ram-below-4g` differs and must say so.
    """
    return 0x8000_0000 if memory_bytes >= 0xB000_0000 else memory_bytes


class RamLayout:
    """The segments of RAM of one machine, in ascending order."""

    def __init__(self, size: int, below_4g_bytes: int) -> None:
        if not 0 < below_4g_bytes <= size:
            raise ValueError("guest memory begins below 4 GiB, and is no shorter than what lies there")
        if below_4g_bytes > _FOUR_GIB:
            raise ValueError("guest memory below 4 GiB is more than fits there")
        self.size = size
        self.below_4g_bytes = below_4g_bytes
        self.segments = _segments(size, below_4g_bytes)

    def offset(self, address: int, size: int) -> int | None:
        """Return where [address, address + size) lies in the RAM file; None unless one segment holds it."""
        if size < 0 or address < 0:
            return None
        for segment in self.segments:
            if segment.address <= address and address + size <= segment.address + segment.size:
                return segment.offset + address - segment.address
        return None

    def offsets(
        self, addresses: NDArray[np.uint64], *, unit: int = 1
    ) -> tuple[NDArray[np.uint64], NDArray[np.bool_]]:
        """Return where each address lies in the RAM file, both in units of so many bytes, and which do.

        What is not RAM has the offset 0.
        """
        window = (addresses >= _VIDEO_WINDOW[0] // unit) & (addresses < _VIDEO_WINDOW[1] // unit)
        low = (addresses < self.below_4g_bytes // unit) & ~window
        moved = addresses - np.uint64((_FOUR_GIB - self.below_4g_bytes) // unit)
        high = (addresses >= _FOUR_GIB // unit) & (moved < self.size // unit)
        there = low | high
        return np.where(there, np.where(high, moved, addresses), np.uint64(0)), there


def _segments(size: int, below_4g_bytes: int) -> tuple[PhysicalSegment, ...]:
    window_start, window_end = _VIDEO_WINDOW
    parts: list[tuple[int, int, int]] = []
    if below_4g_bytes > window_end:
        parts += [(0, window_start, 0), (window_end, below_4g_bytes - window_end, window_end)]
    else:
        parts.append((0, min(below_4g_bytes, window_start), 0))
    if size > below_4g_bytes:
        parts.append((_FOUR_GIB, size - below_4g_bytes, below_4g_bytes))
    return tuple(PhysicalSegment(*part) for part in parts)
