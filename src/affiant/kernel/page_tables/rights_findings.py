"""Which pages have rights that they must not have, among those that one page table maps."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

from affiant.kernel.machine.leaves import Leaves
from affiant.kernel.machine.memory import PAGE_SIZE
from affiant.kernel.objects.slide import KERNEL_MAP
from affiant.kernel.page_tables.address_roots import EFI_AREA, KernelHalf
from affiant.kernel.page_tables.executable_pages import LAST_CODE_ADDRESS
from affiant.kernel.page_tables.firmware_map import kept_regions, within_kept
from affiant.kernel.page_tables.fixed_code import VSYSCALL, real_mode_pages
from affiant.kernel.page_tables.table_owners import Root

if TYPE_CHECKING:
    from affiant.kernel.running_kernel import RunningKernel

__all__ = ["RightsFinding", "RightsFindings"]

_MOST_RUNS: Final = 4096
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


class RightsFindings:
    """Collects the findings of one moment, and counts executable pages by their places."""

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
        """How many pages of RAM nothing may map writable."""
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
