"""Whose an address is: a part of the kernel image, a listed module, another owner of code, or nobody.

Where the kernel image lies comes from the reference. Modules and other owners come from lists in guest
memory: they tell what the kernel itself believes, and a forged `struct module` owns what it likes.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator
from typing import Final

from affiant.kernel.guest import Guest
from affiant.kernel.modules.loaded import listed_modules, module_owners
from affiant.kernel.objects.program import KernelProgram, StructCopy
from affiant.kernel.objects.slide import KERNEL_MAP
from affiant.kernel.page_tables.executable_pages import LAST_CODE_ADDRESS, OwnedRange, named_owners
from affiant.kernel.walks.lists import list_entries
from affiant.kernel.walks.snapshot import Snapshot

__all__ = ["Owners"]

_MODULE: Final = "struct module"
_MOST_MODULES: Final = 8192
_LARGEST_PART: Final = 1 << 30
_TEXT_PARTS: Final = ("MOD_TEXT", "MOD_INIT_TEXT")


class Owners:
    """Tells whose addresses are, as of the first moment that it is asked of one outside the image.

    To be made anew for each look: what the lists say is read once.
    """

    def __init__(self, guest: Guest) -> None:
        self._program = guest.program
        image = [OwnedRange(guest.text.start, guest.text.end, "text", "")]
        image += [OwnedRange(region.start, region.end, "rodata", "") for region in guest.rodata]
        self._image = _Ranges(image)
        self._modules: _Ranges | None = None
        self._others: _Ranges | None = None
        self._bounds = (guest.text.start, guest.program.find("_end") or guest.text.end)

    def tell(self, memory: Snapshot, address: int) -> dict[str, str]:
        """Return `address`, `kind`, `owner` and `symbol` of an address, all as text.

        `kind` is "text", "rodata" or "data" inside the kernel image, "module text" or "module data"
        inside a listed module, "bpf", "ftrace", "kprobe" or "thunk" inside other code that the kernel
        lists, else "none". `owner` is the module's or program's name. `symbol` is symbol+offset inside
        the kernel image, else "". Raises what reading the lists raises, and what `Budget` raises.
        """
        found = self._found(memory, address)
        kind, owner = ("none", "") if found is None else (found.kind, found.owner)
        return {
            "address": hex(address),
            "kind": kind,
            "owner": owner,
            "symbol": self._program.describe(address),
        }

    def _found(self, memory: Snapshot, address: int) -> OwnedRange | None:
        first, end = self._bounds
        if first <= address < end:
            return self._image.of(address) or OwnedRange(first, end, "data", "")
        if not KERNEL_MAP <= address <= LAST_CODE_ADDRESS:
            return None  # modules and other code lie above the image; nothing else has an owner to name
        memory.budget.step()
        if self._modules is None:
            self._modules = _Ranges(_module_ranges(self._program))
        found = self._modules.of(address)
        if found is None:
            if self._others is None:
                thunks = module_owners(self._program, listed_modules(self._program))
                self._others = _Ranges(named_owners(self._program) + thunks)
            found = self._others.of(address)
        memory.budget.step()
        return found


class _Ranges:
    """Ranges of addresses, to be looked up; of those that overlap, the one that starts last counts."""

    def __init__(self, ranges: Iterable[OwnedRange]) -> None:
        usable = (each for each in ranges if each.start < each.end)
        self._ranges = sorted(usable, key=lambda each: (each.start, -each.end, each.kind, each.owner))
        self._starts = [each.start for each in self._ranges]
        self._ends: list[int] = []
        for each in self._ranges:
            self._ends.append(max(each.end, self._ends[-1] if self._ends else 0))

    def of(self, address: int) -> OwnedRange | None:
        for index in range(bisect_right(self._starts, address) - 1, -1, -1):
            if address < self._ranges[index].end:
                return self._ranges[index]
            if address >= self._ends[index]:
                return None
        return None


def _module_ranges(program: KernelProgram) -> list[OwnedRange]:
    offset = program.offset(_MODULE, "list")
    head = program.address("modules")
    addresses = list_entries(program, head, offset=offset, maximum=_MOST_MODULES)
    return [part for address in addresses for part in _parts(program.copy(_MODULE, address))]


def _parts(module: StructCopy) -> Iterator[OwnedRange]:
    """Yield a module's parts: `mem[]` since Linux 6.4 (commit ac3b43283923), two layouts before."""
    program, name = module.program, module.text("name")
    if "mem" in module:
        text = {program.constant(kind) for kind in _TEXT_PARTS}
        for index in range(program.constant("MOD_MEM_NUM_TYPES")):
            base, size = module.integer(f"mem[{index}].base"), module.integer(f"mem[{index}].size")
            yield from _part(base, size, "module text" if index in text else "module data", name)
        return
    for layout in ("core_layout", "init_layout"):
        base, size = module.integer(f"{layout}.base"), module.integer(f"{layout}.size")
        code = module.integer(f"{layout}.text_size")
        yield from _part(base, code, "module text", name)
        yield from _part(base + code, size - code, "module data", name)


def _part(base: int, size: int, kind: str, name: str) -> Iterator[OwnedRange]:
    # What lies outside the module area, or claims more than fits there, owns nothing.
    if 0 < size <= _LARGEST_PART and KERNEL_MAP <= base <= LAST_CODE_ADDRESS:
        yield OwnedRange(base, base + size, kind, name)
