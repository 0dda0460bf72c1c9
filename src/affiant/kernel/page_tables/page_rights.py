"""What the page tables allow, over the whole kernel half: pages both writable and executable, kernel
code that user mode may reach, and second, writable mappings of what must not change.

Nothing here depends on a list that the guest keeps. Executable is what a page table entry says is
executable; a page so mapped must not be writable, there or anywhere else in the kernel half. Who a
page belongs to, and what it holds, is decided elsewhere (`executable_pages`, `page_content`).

A kernel protects its code late while it boots. `booting` says that it claims not to have got there; a
rule must not take that for health.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from affiant.kernel.machine.leaves import Leaves
from affiant.kernel.machine.memory import PAGE_SIZE
from affiant.kernel.machine.paging import AddressSpace
from affiant.kernel.objects.program import KernelProgram
from affiant.kernel.page_tables.address_roots import (
    KernelHalf,
    compared_roots,
    cpu_roots,
    kernel_halves,
    own_user_half,
    switching_cpus,
    user_half_of,
)
from affiant.kernel.page_tables.fixed_code import real_mode_pages
from affiant.kernel.page_tables.rights_findings import RightsFinding, RightsFindings
from affiant.kernel.page_tables.table_owners import Root, borrowed_roots, efi_root, known_roots, named_root
from affiant.kernel.transient.booting import is_booting
from affiant.model.errors import MalformedError

if TYPE_CHECKING:
    from affiant.kernel.running_kernel import RunningKernel

__all__ = ["ISOLATION", "PageRights", "read_page_rights"]

ISOLATION: Final = 7 * 32 + 11
"""The feature by which a kernel's text is patched to isolate page tables: X86_FEATURE_PTI (cpufeatures.h)."""


@dataclass(frozen=True, slots=True)
class PageRights:
    """The rights of all pages of the kernel half at one moment.

    `roots` counts page tables looked at by their users; those that share the kernel's half cost no
    walk. `cpu_tables` tells whose tables each vCPU is on, "switching" for one that is just loading others,
    "gone" for those that somebody had, and that were in order, just as the registers were read, and that
    nobody has any more, "" for nobody's. `executable_pages` counts 4 KiB by place. `protected_pages` are
    pages of RAM that nothing may map writable. `unread_tables` lay outside RAM: what they map is not known.
    `left_out` counts findings beyond the first 4096 of each kind.
    """

    booting: bool
    roots: Mapping[str, int]
    cpu_tables: Mapping[str, str]
    tasks: int
    tables: int
    leaves: int
    unread_tables: int
    executable_pages: Mapping[str, int]
    protected_pages: int
    findings: tuple[RightsFinding, ...]
    left_out: int


def read_page_rights(guest: RunningKernel, *, now: float, draw: random.Random | None = None) -> PageRights:
    """Walk the kernel half of the kernel's own page tables, and what other tables have differently.

    Raises MemoryFault or MalformedError when the tables or the list of tasks have no end.
    """
    program, space = guest.program, guest.kernel_space
    leaves = space.leaves()
    draw = draw or random.Random()  # noqa: S311  a sample that the guest need not be unable to guess
    tasks, listed = known_roots(program, space, leaves)
    efi = efi_root(program, space)
    user = own_user_half(program, space, patched=_is_patched_to_isolate(guest))
    cpus = list(cpu_roots(guest.cpus, space, user))
    known = {root.physical: root for root in borrowed_roots(program, space, leaves)}
    known |= {root.physical: root for root in [*tasks, *([efi] if efi else []), Root(space.root, "kernel")]}
    starter = _starter_pages(program, space)
    known |= {page: Root(page, "processors that start") for page in starter}
    compared = compared_roots(tasks, cpus, draw)
    # A table that a processor and a process share is looked at once, and told as the process's.
    # One that nobody has is told of as such and not walked: the process that a vCPU was on may have exited
    # since the registers were read, and what its tables hold by now leads anywhere.
    switching = {f"cpu {index}" for index in switching_cpus(program, space, guest.cpus)}
    # In the middle of switching, the tables that a vCPU is on are whole, though no process may have them.
    used = [cpu for cpu in cpus if cpu.physical in known or (guest.paused and cpu.user in switching)]
    # Firmware's tables always differ and come first: what a process left must not use up their walk.
    roots = {root.physical: root for root in [*([efi] if efi else []), *used, *compared]}
    halves, unread = kernel_halves(space, leaves, list(roots.values()))
    pairs: list[Root] = []
    if user is not None:
        # The first tables of a processor that starts are no pair: behind them lies what else it starts with.
        paired = (root for root in roots.values() if root.physical not in starter)
        pairs = [user_half_of(root) for root in paired if not root.physical & PAGE_SIZE]
        own, _ = kernel_halves(space, leaves, [user])
        mapped = AddressSpace(space.memory, user.physical, space.levels).leaves()
        others, unread_pairs = kernel_halves(space, mapped, pairs, own=user)
        halves, unread = [*halves, *own, *others], unread + unread_pairs + mapped.unreadable_tables
    halves = [
        replace(half, root=named_root(program, half.root))
        for half in _of_the_living(halves, space, leaves, program)
    ]

    for half in halves:
        if half.endless:
            raise MalformedError(f"the page tables of {half.root.user} have no end")

    look = RightsFindings(guest, leaves)
    look.whole("kernel", leaves)
    for half in halves:
        look.other(half, efi, user)
    return PageRights(
        booting=is_booting(program, guest.patience, now),
        roots={
            "kernel": 1,
            "cpus": len(cpus),
            "tasks": len({root.physical for root in compared}),
            "efi": int(efi is not None),
            "user halves": len(pairs) + (user is not None),
        },
        cpu_tables={cpu.user: _owner(guest, cpu, known, switching) for cpu in cpus},
        tasks=listed,
        tables=leaves.tables + sum(half.leaves.tables for half in halves),
        leaves=len(leaves) + sum(len(half.leaves) for half in halves),
        unread_tables=leaves.unreadable_tables + unread + sum(half.unreadable_tables for half in halves),
        executable_pages=look.executable,
        protected_pages=look.protected_pages,
        findings=tuple(look.findings),
        left_out=look.left_out,
    )


def _is_patched_to_isolate(guest: RunningKernel) -> bool:
    """Tell whether the kernel's text, as it was last judged, is that of a kernel that isolates page tables.

    On the way in and out, alternatives switch tables for processors that need it (arch/x86/entry/calling.h).
    """
    votes = [rule.votes().get(ISOLATION, (0, 0)) for rule in guest.text_content.voters]
    return sum(there for _, there in votes) > sum(missing for missing, _ in votes)


def _owner(guest: RunningKernel, cpu: Root, known: Mapping[int, Root], switching: set[str]) -> str:
    if cpu.physical in known:
        return named_root(guest.program, known[cpu.physical]).user
    if cpu.user in switching:
        return "switching"
    return "gone" if cpu.physical in guest.tables_around else ""


def _starter_pages(program: KernelProgram, space: AddressSpace) -> range:
    """Return the pages of the code that starts other CPUs: they hold the first tables that those are on."""
    start, size = real_mode_pages(program, space) or (0, 0)
    return range(start, start + size, PAGE_SIZE)


def _of_the_living(
    halves: Sequence[KernelHalf], space: AddressSpace, leaves: Leaves, program: KernelProgram
) -> list[KernelHalf]:
    """Leave out tasks that have exited since their tables were named: they now hold anything at all."""
    if not any(half.root.task for half in halves):
        return list(halves)
    again, _ = known_roots(program, space, leaves)
    tables = {root.physical for root in again}
    return [
        half
        for half in halves
        if not half.root.task or half.root.physical - PAGE_SIZE * half.root.user_half in tables
    ]
