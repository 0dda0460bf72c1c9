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
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

from affiant.kernel.machine.memory import PAGE_SIZE
from affiant.kernel.machine.paging import AddressSpace, Leaves
from affiant.kernel.objects.program import KernelProgram
from affiant.kernel.objects.slide import KERNEL_MAP
from affiant.kernel.page_tables.address_roots import (
    EFI_AREA,
    KernelHalf,
    compared_roots,
    cpu_roots,
    kernel_halves,
    own_user_half,
    switching_cpus,
    user_half_of,
)
from affiant.kernel.page_tables.executable_pages import LAST_CODE_ADDRESS
from affiant.kernel.page_tables.firmware_map import kept_regions, within_kept
from affiant.kernel.page_tables.table_owners import Root, borrowed_roots, efi_root, known_roots, named_root
from affiant.model.errors import AffiantError, MalformedError

if TYPE_CHECKING:
    from affiant.kernel.running_kernel import RunningKernel

__all__ = [
    "ISOLATION",
    "VSYSCALL",
    "PageRights",
    "RightsFinding",
    "is_booting",
    "read_page_rights",
    "real_mode_pages",
    "says_that_it_boots",
]

VSYSCALL: Final = 0xFFFF_FFFF_FF60_0000
"""The one page of the kernel half that user mode may execute (VSYSCALL_ADDR)."""

ISOLATION: Final = 7 * 32 + 11
"""The feature by which a kernel's text is patched to isolate page tables: X86_FEATURE_PTI (cpufeatures.h)."""

_SYSTEM_RUNNING = 3  # enum system_states: SYSTEM_BOOTING, _SCHEDULING, _FREEING_INITMEM, _RUNNING
_REAL_MODE_END = 1 << 20
_BOOT_SECONDS = 120.0  # an emulated boot takes 20 s at most until init starts
_MOST_RUNS = 4096
_PLACES: Final = ("elsewhere", "module area", "kernel text", "real mode", "vsyscall")


@dataclass(frozen=True, slots=True)
class RightsFinding:
    """Neighbouring pages that one page table maps with rights that they must not have.

    `what` is `writable and executable`, `executable for user mode`, `open to user mode`, `writable
    alias`, `kept for the firmware`, `firmware code and data`, `stray executable`, `differs from the kernel's
    own` or `copied page tables`. `meaning` names what lies there.

    `kept for the firmware` is a writable alias, too: one that the kernel itself leaves in the tables of EFI
    services, of memory that it took over from the firmware's boot services (`firmware_map`). `firmware code
    and data` are pages of EFI services that are both writable and executable, in these tables: of firmware
    that does not tell the kernel which is which.
    """

    what: str
    address: int
    pages: int
    physical: int
    root: str
    meaning: str


@dataclass(frozen=True, slots=True)
class PageRights:
    """The rights of all pages of the kernel half at one moment.

    `roots` counts page tables looked at by their users; those that share the kernel's half cost no
    walk. `cpu_tables` tells whose tables each vCPU is on, "switching" for one that is just loading others,
    "gone" for those that somebody had, and that were in order, just before the registers were read, and that
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


def says_that_it_boots(program: KernelProgram) -> bool:
    """Tell what the kernel says: data of the guest, by itself no excuse for anything."""
    state = program.find("system_state")
    if state is None:
        return False
    try:
        return int.from_bytes(program.read(state, 4), "little") < _SYSTEM_RUNNING
    except AffiantError:
        return False


def is_booting(guest: RunningKernel, now: float) -> bool:
    """Tell whether the kernel says that it still boots.

    It is believed for two minutes from when it first said so: a kernel boots once, so that what it
    says in between gives it no new ones. `now` is monotonic time in seconds.
    """
    # Asked about only while it is said: nothing is forgotten meanwhile.
    return says_that_it_boots(guest.program) and not guest.patience.settled(
        "booting", {"booting"}, now, seconds=_BOOT_SECONDS
    )


def real_mode_pages(program: KernelProgram, space: AddressSpace) -> tuple[int, int] | None:
    """Return (physical address, size) of the code that starts other CPUs; None if there is none.

    Its place is what the kernel believes (`real_mode_header`); its size is that of the reference.
    """
    header, start, end = (
        program.find("real_mode_header"),
        program.find("real_mode_blob"),
        program.find("real_mode_blob_end"),
    )
    if header is None or start is None or end is None or not start < end:
        return None
    try:
        place = space.translate(program.word(header)).physical
    except AffiantError:
        return None
    size = -(-(end - start) // PAGE_SIZE) * PAGE_SIZE
    return (place, size) if place % PAGE_SIZE == 0 and place + size <= _REAL_MODE_END else None


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

    look = _Look(guest, leaves)
    look.whole("kernel", leaves)
    for half in halves:
        look.other(half, efi, user)
    return PageRights(
        booting=is_booting(guest, now),
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
    return "gone" if cpu.physical in guest.tables_before else ""


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


class _Look:
    """Collects findings of one moment."""

    def __init__(self, guest: RunningKernel, leaves: Leaves) -> None:
        program, location = guest.program, guest.location
        self.findings: list[RightsFinding] = []
        self.executable: dict[str, int] = {}
        self.left_out = 0
        self._told: Counter[str] = Counter()
        self._describe = program.describe
        self._text = _pages(program.address("_text"), program.address("_etext"))
        self._image_end = program.address("_end")
        self._module_area = (KERNEL_MAP, LAST_CODE_ADDRESS + 1)
        self._real_mode = real_mode_pages(program, guest.kernel_space)
        vsyscall = program.find("__vsyscall_page")
        self._vsyscall = None if vsyscall is None else location.physical(vsyscall)
        self._location = location
        self._kept = kept_regions(program)
        rodata = _pages(program.address("__start_rodata"), program.address("__end_rodata"))
        fixed = [(location.physical(start), location.physical(end)) for start, end in (self._text, rodata)]
        self._starts, self._ends = self._protected(leaves, fixed)

    @property
    def protected_pages(self) -> int:
        return int((self._ends - self._starts).sum()) // PAGE_SIZE

    def whole(self, root: str, leaves: Leaves) -> None:
        """Judge all leaves of the kernel half."""
        vsyscall = leaves.address == np.uint64(VSYSCALL)
        self._add("writable and executable", root, leaves, leaves.writable & leaves.executable)
        self._add("executable for user mode", root, leaves, leaves.user & leaves.executable & ~vsyscall)
        self._add("open to user mode", root, leaves, leaves.user & ~leaves.executable)
        self._add("writable alias", root, leaves, self._aliases(leaves) & ~leaves.executable)
        places = self._places(leaves)
        self._count(leaves, places)
        self._add("stray executable", root, leaves, leaves.executable & (places == 0))

    def other(self, half: KernelHalf, efi: Root | None, user: Root | None) -> None:
        """Judge what other page tables map differently; those of EFI services may, in their area.

        Tables of `user`, the kernel's own user half, are others than the kernel's by right, if what they map
        is the same.
        """
        leaves = half.leaves
        if efi is None or half.root.physical != efi.physical:
            if len(leaves):
                self._add("differs from the kernel's own", half.root.user, leaves, np.ones(len(leaves), bool))
            elif half.root != user:
                first, root = half.slots[0], half.root
                self.findings.append(
                    RightsFinding("copied page tables", first, 0, root.physical, root.user, "")
                )
            return
        services = (leaves.address >= np.uint64(EFI_AREA[0])) & (leaves.address < np.uint64(EFI_AREA[1]))
        self._add("differs from the kernel's own", half.root.user, leaves, ~services)
        # Firmware's services run in the kernel alone; which tables are theirs is the guest's word.
        opened = services & leaves.user
        self._add("executable for user mode", half.root.user, leaves, opened & leaves.executable)
        self._add("open to user mode", half.root.user, leaves, opened & ~leaves.executable)
        aliases = services & self._aliases(leaves)
        kept = aliases & within_kept(leaves, self._kept) if aliases.any() else aliases
        self._add("writable alias", half.root.user, leaves, aliases & ~kept)
        self._add_as_one("kept for the firmware", half.root.user, leaves, kept)
        both = services & leaves.writable & leaves.executable
        self._add_as_one("firmware code and data", half.root.user, leaves, both)
        size = int(leaves.size[services & leaves.executable].sum()) // PAGE_SIZE
        self.executable["efi services"] = self.executable.get("efi services", 0) + size

    def _add_as_one(self, what: str, root: str, leaves: Leaves, mask: NDArray[np.bool_]) -> None:
        """Tell all pages by the first of them: how many runs it takes to tell them is chance."""
        found = np.flatnonzero(mask)
        if len(found):
            pages = int(leaves.size[mask].sum()) // PAGE_SIZE
            address, physical = int(leaves.address[found[0]]), int(leaves.physical[found[0]])
            meaning = self._meaning(address, physical)
            self.findings.append(RightsFinding(what, address, pages, physical, root, meaning))

    def _protected(
        self, leaves: Leaves, fixed: list[tuple[int, int]]
    ) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
        """Return the physical ranges that no page table may map writable, merged: starts and ends."""
        code = leaves.select(leaves.executable & (leaves.address != np.uint64(VSYSCALL)))
        starts = np.concatenate((code.physical, np.array([start for start, _ in fixed], dtype=np.uint64)))
        ends = np.concatenate(
            (code.physical + code.size, np.array([end for _, end in fixed], dtype=np.uint64))
        )
        order = np.argsort(starts, kind="stable")
        starts, ends = starts[order], np.maximum.accumulate(ends[order])
        first = np.concatenate(([True], starts[1:] > ends[:-1]))
        last = np.concatenate((first[1:], [True]))
        return starts[first], ends[last]

    def _aliases(self, leaves: Leaves) -> NDArray[np.bool_]:
        place = np.searchsorted(self._ends, leaves.physical, side="right")
        known = np.minimum(place, len(self._starts) - 1)
        hit = (place < len(self._starts)) & (self._starts[known] < leaves.physical + leaves.size)
        return np.asarray(leaves.writable & hit)

    def _places(self, leaves: Leaves) -> NDArray[np.int8]:
        """Return the place of each executable leaf, as its number in `_PLACES`; 0 where none belongs."""
        address, end = leaves.address, leaves.address + (leaves.size - np.uint64(1))
        places = np.zeros(len(leaves), dtype=np.int8)
        places[self._within(address, end, (self._image_end, self._module_area[1]))] = _PLACES.index(
            "module area"
        )
        places[self._within(address, end, self._text)] = _PLACES.index("kernel text")
        if self._real_mode is not None:
            start, size = self._real_mode
            physical_end = leaves.physical + (leaves.size - np.uint64(1))
            places[self._within(leaves.physical, physical_end, (start, start + size))] = _PLACES.index(
                "real mode"
            )
        if self._vsyscall is not None:
            right = (address == np.uint64(VSYSCALL)) & (leaves.physical == np.uint64(self._vsyscall))
            places[right & (leaves.size == PAGE_SIZE)] = _PLACES.index("vsyscall")
        return places

    @staticmethod
    def _within(
        first: NDArray[np.uint64], last: NDArray[np.uint64], bounds: tuple[int, int]
    ) -> NDArray[np.bool_]:
        return np.asarray((first >= np.uint64(bounds[0])) & (last < np.uint64(bounds[1])))

    def _count(self, leaves: Leaves, places: NDArray[np.int8]) -> None:
        own, sizes = places[leaves.executable], leaves.size[leaves.executable]
        for place in np.unique(own).tolist():
            self.executable[_PLACES[place]] = int(sizes[own == place].sum()) // PAGE_SIZE

    def _add(self, what: str, root: str, leaves: Leaves, mask: NDArray[np.bool_]) -> None:
        address, physical, size = leaves.address[mask], leaves.physical[mask], leaves.size[mask]
        if not len(address):
            return
        follows = (address[:-1] + size[:-1] == address[1:]) & (physical[:-1] + size[:-1] == physical[1:])
        first = np.concatenate(([0], np.flatnonzero(~follows) + 1))
        last = np.concatenate((first[1:] - 1, [len(address) - 1]))
        # Of each kind, whosever tables they are in: a thousand processes may have as many each.
        room = slice(_MOST_RUNS - self._told[what])
        self._told[what] += len(first[room])
        self.left_out += len(first) - len(first[room])
        for begin, finish in zip(first[room].tolist(), last[room].tolist(), strict=True):
            start, place = int(address[begin]), int(physical[begin])
            pages = (int(address[finish]) + int(size[finish]) - start) // PAGE_SIZE
            meaning = self._meaning(start, place)
            self.findings.append(RightsFinding(what, start, pages, place, root, meaning))

    def _meaning(self, address: int, physical: int) -> str:
        """Name what lies at a page: by its address, or by the kernel image's physical place."""
        return self._describe(address) or self._describe(physical - self._location.physical_base + KERNEL_MAP)


def _pages(start: int, end: int) -> tuple[int, int]:
    """Return the bounds of the pages that [start, end) lies in."""
    return start // PAGE_SIZE * PAGE_SIZE, -(-end // PAGE_SIZE) * PAGE_SIZE
