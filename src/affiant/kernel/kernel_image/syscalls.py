"""The system call tables against the relocated reference, entry by entry.

Since Linux 6.9 (commit 1e3ad78334a6, also in stable kernels from 6.1.86 on) x86 dispatches through a
switch in text, `x64_sys_call`, and `sys_call_table` is read by tracing alone. The table is checked all
the same, because tools and older kernels use it, and the switch is text. `dispatch` tells which it is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from affiant.kernel.machine.memory import MemoryFault
from affiant.kernel.machine.paging import AddressSpace
from affiant.kernel.objects.program import KernelProgram

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["SyscallTable", "WrongEntry", "expected_tables", "read_syscall_tables"]

# Table, and the function with the switch that took its place.
_TABLES: Final = (
    ("sys_call_table", "x64_sys_call"),
    ("ia32_sys_call_table", "ia32_sys_call"),
    ("x32_sys_call_table", "x32_sys_call"),
)
_MOST_ENTRIES = 1024


@dataclass(frozen=True, slots=True)
class WrongEntry:
    """An entry that is not the function it must be; `found_symbol` is "" outside the kernel image."""

    index: int
    symbol: str
    expected: int
    found: int
    found_symbol: str


@dataclass(frozen=True, slots=True)
class SyscallTable:
    """One table as seen live: `entries` compared, `unread` not readable, `wrong` those that differ."""

    name: str
    dispatch: str
    entries: int
    unread: int
    wrong: tuple[WrongEntry, ...]


@dataclass(frozen=True, slots=True, eq=False)
class ExpectedTable:
    """A table as it must stand in this guest."""

    name: str
    dispatch: str
    address: int
    entries: NDArray[np.uint64]


def expected_tables(program: KernelProgram) -> tuple[ExpectedTable, ...]:
    """Return the tables that this kernel has, relocated: once for each slide.

    A table ends at its symbol's size or at the first word that is not the start of a function:
    what follows the last entry is padding.
    """
    reference, slide = program.reference, program.location.slide
    found: list[ExpectedTable] = []
    base, _ = reference.section(".rodata")
    rodata = reference.relocated_section(".rodata", slide)
    for name, switch in _TABLES:
        symbol = reference.symbols.unique(name)
        if symbol is None or not base <= symbol.address < base + len(rodata):
            continue
        size = min(symbol.size, 8 * _MOST_ENTRIES) // 8 * 8
        offset = symbol.address - base
        words = rodata[offset : offset + size].copy().view(np.uint64)
        count = next(
            (i for i, word in enumerate(words.tolist()) if not _is_function(program, word)), len(words)
        )
        if count:
            dispatch = "table" if program.find(switch) is None else "switch"
            found.append(ExpectedTable(name, dispatch, symbol.address + slide, words[:count]))
    return tuple(found)


def read_syscall_tables(
    space: AddressSpace, program: KernelProgram, tables: tuple[ExpectedTable, ...]
) -> tuple[SyscallTable, ...]:
    """Compare each table as `space` maps it; a page that cannot be read makes its entries `unread`."""
    return tuple(_compare(space, program, table) for table in tables)


def _compare(space: AddressSpace, program: KernelProgram, table: ExpectedTable) -> SyscallTable:
    try:
        live = np.frombuffer(space.read(table.address, 8 * len(table.entries)), dtype=np.uint64)
    except MemoryFault:
        return SyscallTable(table.name, table.dispatch, 0, len(table.entries), ())
    wrong = [
        WrongEntry(
            index,
            program.describe(int(table.entries[index])).split("+")[0],
            int(table.entries[index]),
            int(live[index]),
            program.describe(int(live[index])),
        )
        for index in np.flatnonzero(live != table.entries).tolist()
    ]
    return SyscallTable(table.name, table.dispatch, len(table.entries), 0, tuple(wrong))


def _is_function(program: KernelProgram, address: int) -> bool:
    start, code = program.reference.section(".text")
    linked = address - program.location.slide
    if not start <= linked < start + len(code):
        return False
    found = program.reference.symbols.at(linked)
    return found is not None and found[1] == 0
