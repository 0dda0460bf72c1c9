"""Memory of the firmware's boot services that the kernel goes on mapping for the firmware, and uses itself.

arch/x86/platform/efi/quirks.c, efi_reserve_boot_services(): where a part of such a region is reserved already
(a table of the firmware lies in it), the kernel marks the whole region as needed at run time and keeps it
mapped writable in the tables of EFI services, but reserves no more of it. The rest becomes ordinary memory,
which may come to hold code of modules or of BPF.

The map is data of the guest. What it excuses is therefore narrow: an alias in the tables of EFI services
alone, at the very address that the map names for that memory.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from affiant.kernel.machine.leaves import Leaves
from affiant.kernel.machine.memory import PAGE_SIZE
from affiant.kernel.objects.program import KernelProgram
from affiant.model.errors import AffiantError

__all__ = ["KeptRegion", "kept_regions", "within_kept"]

_EFI: Final = "struct efi"
_DESCRIPTOR: Final = "efi_memory_desc_t"
_BOOT_SERVICES: Final = (3, 4)  # EFI_BOOT_SERVICES_CODE, EFI_BOOT_SERVICES_DATA
_RUNTIME: Final = 1 << 63
_MOST_REGIONS: Final = 1024
_LARGEST_DESCRIPTOR: Final = 256


@dataclass(frozen=True, slots=True)
class KeptRegion:
    """`size` bytes of boot services at `physical`, which the kernel maps at `address` for the firmware."""

    address: int
    physical: int
    size: int


def kept_regions(program: KernelProgram) -> tuple[KeptRegion, ...]:
    """Return the regions that the kernel's map names; none if it has no map or one that cannot be read."""
    try:
        if not program.has(_EFI, "memmap.map"):
            return ()
        efi = program.copy(_EFI, program.address("efi"))
        start, count = efi.integer("memmap.map"), efi.integer("memmap.nr_map")
        step = efi.integer("memmap.desc_size")
        if not start or not 0 <= count <= _MOST_REGIONS or not 0 < step <= _LARGEST_DESCRIPTOR:
            return ()
        found: list[KeptRegion] = []
        for index in range(count):
            copy = program.copy(_DESCRIPTOR, start + step * index)
            kept = copy.integer("attribute") & _RUNTIME and copy.integer("type") in _BOOT_SERVICES
            if kept:
                size = copy.integer("num_pages") * PAGE_SIZE
                found.append(KeptRegion(copy.integer("virt_addr"), copy.integer("phys_addr"), size))
    except AffiantError:
        return ()  # then nothing excuses an alias
    return tuple(found)


def within_kept(leaves: Leaves, regions: tuple[KeptRegion, ...]) -> NDArray[np.bool_]:
    """Tell which leaves map a part of one of the regions, at the address that the map names for it."""
    held = np.zeros(len(leaves), dtype=bool)
    for region in regions:
        if not 0 < region.size < 1 << 52 or not 0 <= region.address < 1 << 64:
            continue
        offset = leaves.address - np.uint64(region.address)
        inside = (leaves.address >= np.uint64(region.address)) & (
            offset + leaves.size <= np.uint64(region.size)
        )
        held |= inside & (leaves.physical - np.uint64(region.physical & (1 << 64) - 1) == offset)
    return held
