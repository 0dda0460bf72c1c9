"""The relocation table behind a compressed kernel: what to add the KASLR slide to.

The kernel's build (arch/x86/tools/relocs.c) writes 32-bit words, and the decompressor (handle_relocations()
in arch/x86/boot/compressed/misc.c) reads them from the end: 32-bit relocations until a zero, then, on
kernels whose per-CPU section is linked at zero, inverse 32-bit ones until a zero (the slide is
subtracted: these are differences to per-CPU offsets), then 64-bit ones until a zero. Kernel commit
9d7de2aa8b41 ("x86/percpu/64: Use relative percpu offsets", 6.15) ended the inverse table, so the number
of zeros tells the layout. A word is the low half of an address in the upper 2 GiB.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from affiant.model.errors import MalformedError

__all__ = ["Relocations", "relocate", "split_relocations"]

_MAX_WORDS = 1 << 22
_UPPER_HALF = 0xFFFFFFFF_00000000


@dataclass(frozen=True, slots=True, eq=False)
class Relocations:
    """Sorted link addresses (uint64) of the places that move with the kernel.

    `absolute64`: 8-byte places, the slide is added. `absolute32`: 4-byte places, the slide is added.
    `inverse32`: 4-byte places, the slide is subtracted (empty since 6.15).
    """

    absolute64: NDArray[np.uint64]
    absolute32: NDArray[np.uint64]
    inverse32: NDArray[np.uint64]


def split_relocations(tail: bytes | memoryview) -> Relocations:
    """Return the tables that follow the ELF file in a kernel's payload.

    Guaranteed: two or three tables, each ended by a zero word, at most 4 Mi entries, strictly ascending
    within a table after sorting (no place is relocated twice by the same table).

    Raises `MalformedError` otherwise.
    """
    if len(tail) % 4 or not 8 <= len(tail) <= 4 * _MAX_WORDS:
        raise MalformedError(f"relocation table of {len(tail)} bytes")
    words = np.frombuffer(tail, dtype="<u4")
    ends = np.flatnonzero(words == 0)
    if ends.size not in (2, 3) or ends[0] != 0:
        raise MalformedError("relocation table has neither two nor three parts")
    parts = [_addresses(part[1:]) for part in np.split(words, ends[1:])]
    inverse = parts[1] if len(parts) == 3 else np.empty(0, dtype=np.uint64)
    return Relocations(absolute64=parts[0], absolute32=parts[-1], inverse32=inverse)


def _addresses(words: NDArray[np.uint32]) -> NDArray[np.uint64]:
    addresses = np.sort(words.astype(np.uint64) | np.uint64(_UPPER_HALF))
    if np.any(addresses[1:] == addresses[:-1]) or np.any(addresses < 0xFFFFFFFF_80000000):
        raise MalformedError("relocation table names a place twice or outside the kernel's 2 GiB")
    return addresses


def relocate(data: NDArray[np.uint8], address: int, slide: int, relocations: Relocations) -> None:
    """Add `slide` to every place inside `data`, the bytes linked at `address`; changes `data`.

    A place that is only partly inside is left alone, as a section never ends in the middle of one.
    """
    if slide == 0:
        return
    for places, width, delta in (
        (relocations.absolute64, 8, slide),
        (relocations.absolute32, 4, slide),
        (relocations.inverse32, 4, -slide),
    ):
        first, last = np.searchsorted(places, [np.uint64(address), np.uint64(address + len(data))])
        offsets = (places[first:last] - np.uint64(address)).astype(np.int64)
        offsets = offsets[offsets + width <= len(data)]
        # Places are not aligned: gather their bytes, add as integers, scatter them back.
        index = offsets[:, None] + np.arange(width)
        values = data[index].view(f"<u{width}")
        data[index] = (values + np.array(delta & (1 << 8 * width) - 1, dtype=f"<u{width}")).view(np.uint8)
