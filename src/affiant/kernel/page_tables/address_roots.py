"""Which page tables a guest's processors are on, and how the kernel halves of page tables differ.

All processes share the kernel's half: their top-level entries are those of `init_top_pgt`. A process
with entries of its own could run another kernel text than everyone else. The tables of the EFI runtime
services are the one exception that a healthy kernel has.

With page table isolation, each table is one of a pair: what user mode runs on is the page behind, which
maps nothing of the kernel but the way into it, the same for all (clone_pgd_range() in
arch/x86/include/asm/pgtable.h). Whether a kernel isolates, its own pair tells: data of the guest, but whoever
forges it has what it maps looked at, and what it told once is not taken back. Its text tells as well, as it
was patched at boot for a processor that needs isolation: whoever empties that pair hides nothing.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from affiant.kernel.machine.cpu import CpuState
from affiant.kernel.machine.leaves import Leaves
from affiant.kernel.machine.memory import PAGE_SIZE
from affiant.kernel.machine.paging import AddressSpace
from affiant.kernel.objects.program import KernelProgram
from affiant.kernel.objects.slide import address_spaces
from affiant.kernel.page_tables.table_owners import Root
from affiant.model.errors import AffiantError, MalformedError

__all__ = [
    "EFI_AREA",
    "KernelHalf",
    "compared_roots",
    "cpu_roots",
    "kernel_halves",
    "leads_to",
    "own_user_half",
    "sharing",
    "switching_cpus",
    "user_half_of",
]

_RIGHTS: Final = ("writable", "executable", "user")
_MOST_SAMPLED: Final = 512
"""Tables of processes that are compared in one look; of more, as many are drawn by lot."""

EFI_AREA: Final = (0xFFFF_FFEF_0000_0000, 0xFFFF_FFFF_0000_0000)
"""Where EFI runtime services are mapped (Documentation/arch/x86/x86_64/mm.rst), first and end."""

# arch/x86/mm/tlb.c; what they call is inlined but for these.
_SWITCHES: Final = frozenset({"switch_mm_irqs_off", "load_new_mm_cr3", "choose_new_asid", "native_write_cr3"})
_ACCESSED_DIRTY = np.uint64(0x60)
_HALF = 256
_ALL = (1 << 64) - 1


@dataclass(frozen=True, slots=True)
class KernelHalf:
    """A root whose kernel half has top-level entries of its own.

    `slots` are the first addresses of what these entries map. `leaves` are the pages mapped there that
    the kernel's own tables do not map in the same way; none if the tables are mere copies.
    `unreadable_tables` counts tables outside RAM. With `endless`, there are too many to be walked: then
    nothing is known of them.
    """

    root: Root
    slots: tuple[int, ...]
    leaves: Leaves
    unreadable_tables: int
    endless: bool = False


def compared_roots(tasks: Sequence[Root], cpus: Sequence[Root], draw: random.Random) -> list[Root]:
    """Return the tables of tasks to compare in one look: those that vCPUs are on, of the others a draw."""
    if len(tasks) <= _MOST_SAMPLED:
        return list(tasks)
    used = {cpu.physical for cpu in cpus}
    return [*(task for task in tasks if task.physical in used), *draw.sample(tasks, _MOST_SAMPLED)]


def own_user_half(program: KernelProgram, kernel: AddressSpace, *, patched: bool = False) -> Root | None:
    """Return the kernel's own user half, whose entries all others share; None if it does not isolate.

    A kernel that does without isolation leaves the page behind `init_top_pgt` empty. One that was seen to
    isolate, or whose code was `patched` to, does so for good: whoever empties that page, at whatever time,
    has all other halves differ from it.
    """
    behind = Root(kernel.root + PAGE_SIZE, "user mode", user_half=True)
    if kernel.root & PAGE_SIZE:
        return None
    entries, readable = _top(kernel, [behind])
    program.isolates |= patched or bool(readable[0] and (entries[0] & np.uint64(1)).any())
    return behind if program.isolates else None


def user_half_of(root: Root) -> Root:
    """Return the other table of a pair, where there are pairs."""
    return Root(root.physical + PAGE_SIZE, f"user half of {root.user}", root.task, user_half=True)


def cpu_roots(cpus: Sequence[CpuState], kernel: AddressSpace, user_half: Root | None) -> Iterator[Root]:
    """Yield the tables that vCPUs are on; where the kernel isolates, those of the kernel.

    A table at an odd page is the user half of a pair if it has none but the entries of `user_half`.
    Anything else stands for itself: that of a kernel that makes no pairs (seen in 7.2), or one of nobody's
    that was put behind somebody's.
    """
    for cpu in cpus:
        spaces = [space for space in address_spaces(kernel.memory, cpu) if space.levels == kernel.levels]
        if spaces:
            isolated = len(spaces) > 1 and user_half is not None and _is_half(kernel, spaces[0], user_half)
            yield Root(spaces[-1 if isolated else 0].root, f"cpu {cpu.index}")


def switching_cpus(program: KernelProgram, kernel: AddressSpace, cpus: Sequence[CpuState]) -> frozenset[int]:
    """Return which vCPUs are just loading other tables, by the kernel's code that they run.

    Then neither the kernel nor a process has what CR3 names: on the way in, it is of a process that may have
    exited; on the way out, what the CPU says that it has loaded is not written yet.
    """
    return frozenset(
        cpu.index
        for cpu in cpus
        if program.describe(cpu.instruction_pointer).partition("+")[0] in _SWITCHES
        and leads_to(
            kernel,
            cpu.page_table,
            cpu.instruction_pointer,
            program.location.physical(cpu.instruction_pointer),
        )
    )


def leads_to(kernel: AddressSpace, table: int, address: int, physical: int) -> bool:
    """Tell whether a page table, of whomever, maps an address as executable at this physical one.

    What a vCPU runs, its instruction pointer alone does not tell: tables of its own may map other code there.
    """
    try:
        page = AddressSpace(kernel.memory, table, kernel.levels).translate(address)
    except AffiantError:
        return False
    return page.physical == physical and page.executable


def _is_half(kernel: AddressSpace, space: AddressSpace, user_half: Root) -> bool:
    entries, readable = _top(kernel, [user_half, Root(space.root, "")])
    there = (entries[1] & np.uint64(1)) != 0
    return bool(readable.all() and (entries[0] == entries[1])[there].all())


def kernel_halves(
    kernel: AddressSpace,
    leaves: Leaves,
    roots: Sequence[Root],
    *,
    own: Root | None = None,
    maximum_tables: int = 1 << 14,
    maximum_leaves: int = 1 << 20,
) -> tuple[list[KernelHalf], int]:
    """Compare the kernel half of each root with the kernel's own; `leaves` are those of the kernel half.

    `own`: with that of this root, in place of the kernel's; then `leaves` are those of this root.

    Returns the roots that differ in an entry that they have, and how many tables could not be read.
    Entries that a root lacks are no difference: the kernel fills them in when they are needed.
    What differs in all of them is walked up to `maximum_tables` tables and `maximum_leaves` pages; whose turn
    comes then is `endless`.
    """
    if not roots:
        return [], 0
    differs, readable = _differing(kernel, roots, own)
    halves: list[KernelHalf] = []
    left = maximum_tables, maximum_leaves
    for row in np.flatnonzero(differs.any(axis=1)).tolist():
        half, left = _compare(kernel, leaves, roots[row], np.flatnonzero(differs[row]), left)
        halves.append(half)
    return halves, int(np.count_nonzero(~readable))


def sharing(kernel: AddressSpace, roots: Sequence[Root], *, own: Root | None = None) -> list[Root]:
    """Return the roots whose kernel half has no entry but the kernel's, or but those of `own`."""
    if not roots:
        return []
    differs, readable = _differing(kernel, roots, own)
    shares = readable & ~differs.any(axis=1)
    return [root for root, same in zip(roots, shares.tolist(), strict=True) if same]


def _differing(
    kernel: AddressSpace, roots: Sequence[Root], own: Root | None
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Tell for each root which entries of its kernel half differ, and which roots could be read."""
    shared = _top(kernel, [own or Root(kernel.root, "kernel")])[0][0]
    tops, readable = _top(kernel, roots)
    return (tops != shared) & ((tops & np.uint64(1)) != 0), readable


def _top(kernel: AddressSpace, roots: Sequence[Root]) -> tuple[NDArray[np.uint64], NDArray[np.bool_]]:
    frames = np.array([root.physical // PAGE_SIZE for root in roots], dtype=np.uint64)
    rows, readable = kernel.memory.tables(frames)
    return rows[:, _HALF:] & ~_ACCESSED_DIRTY, readable


def _compare(
    kernel: AddressSpace, leaves: Leaves, root: Root, slots: NDArray[np.int64], left: tuple[int, int]
) -> tuple[KernelHalf, tuple[int, int]]:
    """Compare what differs in a half; `left` are tables and pages that may be walked, and then may still."""
    space = AddressSpace(kernel.memory, root.physical, kernel.levels)
    shift = 12 + 9 * (kernel.levels - 1)
    firsts = tuple((_ALL << (shift + 9) & _ALL) | (slot + _HALF) << shift for slot in slots.tolist())
    parts: list[Leaves] = []
    tables, pages = left
    for first in firsts:
        try:
            last = first + (1 << shift) - 1
            part = space.leaves(first, last, maximum_tables=tables, maximum_leaves=pages)
        except MalformedError:
            nothing = leaves.select(np.zeros(len(leaves), bool))
            return KernelHalf(root, firsts, nothing, 0, endless=True), (0, 0)
        parts.append(part)
        tables, pages = tables - part.tables, pages - len(part)
    found = _joined(parts)
    unreadable = sum(part.unreadable_tables for part in parts)
    return KernelHalf(root, firsts, found.select(~_same(found, leaves)), unreadable), (tables, pages)


def _joined(parts: list[Leaves]) -> Leaves:
    if not parts:
        raise MalformedError("no part of the page tables differs")
    return Leaves(
        address=np.concatenate([part.address for part in parts]),
        physical=np.concatenate([part.physical for part in parts]),
        size=np.concatenate([part.size for part in parts]),
        writable=np.concatenate([part.writable for part in parts]),
        executable=np.concatenate([part.executable for part in parts]),
        user=np.concatenate([part.user for part in parts]),
        tables=sum(part.tables for part in parts),
        unreadable_tables=sum(part.unreadable_tables for part in parts),
    )


def _same(found: Leaves, leaves: Leaves) -> NDArray[np.bool_]:
    """Tell for each leaf whether the kernel's own tables map all of it to the same place, with equal rights.

    Sizes of pages play no part: the kernel maps some pages one by one that are within a large one elsewhere.
    """
    if not len(leaves):
        return np.zeros(len(found), dtype=bool)
    one = np.uint64(1)
    last = leaves.address + (leaves.size - one)
    starts = np.ones(len(leaves), dtype=bool)
    starts[1:] = leaves.address[1:] - last[:-1] != one
    starts[1:] |= np.diff(leaves.physical - leaves.address) != 0
    for name in _RIGHTS:
        starts[1:] |= np.diff(getattr(leaves, name))
    first = np.flatnonzero(starts)
    end = last[np.append(first[1:] - 1, len(leaves) - 1)]
    run = np.maximum(np.searchsorted(leaves.address[first], found.address, side="right") - 1, 0)
    first = first[run]
    same: NDArray[np.bool_] = found.address >= leaves.address[first]
    same &= found.address + (found.size - one) <= end[run]
    same &= found.physical - found.address == leaves.physical[first] - leaves.address[first]
    for name in _RIGHTS:
        same &= getattr(found, name) == getattr(leaves, name)[first]
    return same
