"""The page attribute table: which kind of memory the bits in a page table entry mean (SDM vol. 3A, 12.12).

The kernel gives all CPUs the same table, one of the three that it knows (arch/x86/mm/pat/memtype.c).
Another one makes memory uncached that was cached, or the other way round, and CPUs disagree about it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

from affiant.kernel.cpu_state.deviation import Deviation
from affiant.kernel.machine.saved_cpu import SavedCpu

__all__ = ["memory_type_deviations"]

_TABLES: Final = {
    0x0407_0506_0007_0106: "with write-combining and write-through",
    0x0007_0106_0007_0106: "of processors with errata in the upper half",
    0x0007_0406_0007_0406: "of a processor after reset (nopat)",
}


def memory_type_deviations(cpus: Sequence[SavedCpu]) -> Iterator[Deviation]:
    """Yield each CPU whose table the kernel does not know, or is not that of the first CPU."""
    for cpu in cpus:
        if cpu.pat not in _TABLES or cpu.pat != cpus[0].pat:
            known = cpus[0].pat if cpus[0].pat in _TABLES else next(iter(_TABLES))
            yield Deviation(
                cpu.index, "memory types", f"PAT of CPU {cpu.index}", f"{known:#018x}", f"{cpu.pat:#018x}"
            )
