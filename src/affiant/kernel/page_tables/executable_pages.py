"""Who owns each executable page above the kernel image: module text, BPF, ftrace, kprobes, thunks.

Code must be mapped to run, so a sweep of the page tables finds what no list shows. Owners come from
lists in guest memory: they tell what the kernel itself believes, not that an owner is genuine. A forged
`struct module` owns whatever it likes; only a comparison of content settles that. A page that holds
nothing but INT3 (free parts of execmem's and BPF's large pages) needs no owner: no code is there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from affiant.kernel.machine.kept_ranges import KeptRanges
from affiant.kernel.machine.leaves import Leaves
from affiant.kernel.machine.memory import PAGE_SIZE, GuestMemory, MemoryFault
from affiant.kernel.machine.paging import AddressSpace
from affiant.kernel.objects.program import KernelProgram
from affiant.kernel.objects.slide import KERNEL_MAP
from affiant.kernel.walks.lists import list_entries
from affiant.model.errors import MalformedError, UnavailableError

__all__ = [
    "LAST_CODE_ADDRESS",
    "ExecutablePages",
    "OwnedRange",
    "UnownedRange",
    "attribute",
    "bpf_pack_size",
    "named_owners",
    "page_runs",
    "read_executable_pages",
]

LAST_CODE_ADDRESS: Final = 0xFFFF_FFFF_FEFF_FFFF
"""MODULES_END - 1: the vsyscall page and the fixmap lie above."""

_MOST_OWNERS = 65536
_LARGE_PAGE: Final = 0x20_0000
_MOST_NODES: Final = 64
_TRAPS: Final = np.uint64(0xCCCC_CCCC_CCCC_CCCC)
_NO_CODE: Final = b"\xcc" * PAGE_SIZE
_MOST_PAGES = 1 << 18
_MOST_KEPT = 4096  # pages without code whose content is kept: 16 MiB
_CHUNK = 64  # 256 KiB, which a processor's cache holds
_ATTEMPTS = 3
_UNOWNED: Final = ("none", "traps")
_NOBODY: Final = _UNOWNED.index("none")
_TRAPPED: Final = _UNOWNED.index("traps")


@dataclass(frozen=True, slots=True)
class OwnedRange:
    """[start, end) belongs to `owner`, which is a `kind` of owner."""

    start: int
    end: int
    kind: str
    owner: str


@dataclass(frozen=True, slots=True)
class UnownedRange:
    """Executable pages in a row that nobody owns."""

    address: int
    pages: int


@dataclass(frozen=True, slots=True, eq=False)
class ExecutablePages:
    """All executable 4 KiB pages above the kernel image, by address: parallel arrays.

    `owner` is the index of the owner's kind in `kinds`. A page that is owned in part counts as owned.
    """

    addresses: NDArray[np.uint64]
    frames: NDArray[np.uint64]
    owner: NDArray[np.int64]
    kinds: tuple[str, ...] = _UNOWNED

    def by_kind(self) -> dict[str, int]:
        """Return how many pages each kind of owner has; those of nobody are `none`."""
        counts = np.bincount(self.owner, minlength=len(self.kinds)).tolist()
        return {kind: count for kind, count in zip(self.kinds, counts, strict=True) if count}

    def unowned(self) -> set[tuple[int, int]]:
        """Return (address, frame) of each page that nobody owns."""
        free = self.owner == _NOBODY
        return set(zip(self.addresses[free].tolist(), self.frames[free].tolist(), strict=True))

    def inside(self, ranges: Iterable[OwnedRange]) -> set[int]:
        """Return the addresses of the pages in these ranges that hold code."""
        code = self.owner != _TRAPPED
        found: set[int] = set()
        for each in ranges:
            start = each.start // PAGE_SIZE * PAGE_SIZE
            first, last = np.searchsorted(self.addresses, np.array([start, each.end], dtype=np.uint64))
            found.update(self.addresses[first:last][code[first:last]].tolist())
        return found


def read_executable_pages(
    memory: GuestMemory, space: AddressSpace, program: KernelProgram
) -> ExecutablePages:
    """Sweep the page tables for executable pages above the kernel image; none is owned yet.

    Raises UnavailableError when a table lies outside RAM or there are more than 2^18 pages: such a
    sweep would not be whole.
    """
    leaves = space.leaves(KERNEL_MAP, LAST_CODE_ADDRESS)
    if leaves.unreadable_tables:
        raise UnavailableError(f"{leaves.unreadable_tables} page tables of the module area lie outside RAM")
    known = program.walks.get(read_executable_pages)
    if isinstance(known, _KnownSweep) and known.leaves is leaves and known.still_holds(memory):
        return known.pages
    image_end = np.uint64(program.address("_end"))
    code = leaves.select(leaves.executable & (leaves.address >= image_end))
    counts = (code.size // PAGE_SIZE).astype(np.int64)
    total = int(counts.sum())
    if total > _MOST_PAGES:
        raise UnavailableError(f"{total} executable pages above the kernel image exceed {_MOST_PAGES}")
    steps = (np.arange(total) - np.repeat(np.cumsum(counts) - counts, counts)).astype(np.uint64)
    steps *= np.uint64(PAGE_SIZE)
    frames = (np.repeat(code.physical, counts) + steps) >> np.uint64(12)
    pages = _without_traps(memory, np.repeat(code.address, counts) + steps, frames)
    program.walks[read_executable_pages] = _KnownSweep.of(memory, leaves, pages)
    return pages


@dataclass(frozen=True, slots=True, eq=False)
class _KnownSweep:
    """Pages that were found, and what has to be so for another sweep to find the same."""

    leaves: Leaves
    pages: ExecutablePages
    trapped: NDArray[np.bool_]
    held: KeptRanges

    @classmethod
    def of(cls, memory: GuestMemory, leaves: Leaves, pages: ExecutablePages) -> _KnownSweep | None:
        """Return what is to be compared; None if that is too much to be kept."""
        trapped = pages.owner == _TRAPPED
        if np.count_nonzero(trapped) > _MOST_KEPT:
            return None
        places = (pages.frames[trapped] << np.uint64(12)).tolist()
        return cls(leaves, pages, trapped, memory.keep((place, _NO_CODE) for place in places))

    def still_holds(self, memory: GuestMemory) -> bool:
        """Tell whether all pages without code are so still, and no other begins as one."""
        return np.array_equal(_seem_trapped(memory, self.pages.frames), self.trapped) and (
            memory.still_holds(self.held)
        )


def named_owners(program: KernelProgram) -> list[OwnedRange]:
    """Return the ranges that the kernel's own lists name, those of modules aside.

    A list that this kernel does not have owns nothing. Raises MemoryFault or MalformedError when one
    that it has cannot be followed in three attempts: without its owners, what is unowned is unknown.
    """
    return [owned for reader in _OWNERS for owned in _attempt(reader, program)]


def attribute(pages: ExecutablePages, owners: list[OwnedRange]) -> ExecutablePages:
    """Return the pages with the kind of owner of each; ranges outside the module area own nothing."""
    inside = [each for each in owners if KERNEL_MAP <= each.start < each.end <= LAST_CODE_ADDRESS + 1]
    kinds = tuple(dict.fromkeys((*pages.kinds, *(each.kind for each in inside))))
    number = {kind: index for index, kind in enumerate(kinds)}
    starts = np.array([each.start // PAGE_SIZE * PAGE_SIZE for each in inside], dtype=np.uint64)
    ends = np.array([each.end for each in inside], dtype=np.uint64)
    first, last = np.searchsorted(pages.addresses, starts), np.searchsorted(pages.addresses, ends)
    owner = np.full(len(pages.owner), _NOBODY)
    for each, begin, end in zip(inside, first.tolist(), last.tolist(), strict=True):
        owner[begin:end] = number[each.kind]
    # What was told of a page before stays: one that holds nothing but INT3 needs no owner.
    return ExecutablePages(
        pages.addresses, pages.frames, np.where(pages.owner == _NOBODY, owner, pages.owner), kinds
    )


def page_runs(pages: set[tuple[int, int]]) -> tuple[UnownedRange, ...]:
    """Return pages, given as (address, frame), as runs of neighbouring addresses."""
    if not pages:
        return ()
    addresses = np.array(sorted(address for address, _ in pages), dtype=np.uint64)
    breaks = np.flatnonzero(np.diff(addresses) != PAGE_SIZE) + 1
    return tuple(UnownedRange(int(run[0]), len(run)) for run in np.split(addresses, breaks))


def _without_traps(
    memory: GuestMemory, addresses: NDArray[np.uint64], frames: NDArray[np.uint64]
) -> ExecutablePages:
    """Mark the pages that hold nothing but INT3."""
    owner = np.full(len(addresses), _NOBODY)
    # Few pages begin with INT3: only these are read whole.
    candidates = np.flatnonzero(_seem_trapped(memory, frames))
    for start in range(0, len(candidates), _CHUNK):
        pages = candidates[start : start + _CHUNK]
        held, readable = memory.tables(frames[pages])
        owner[pages[readable & (held == _TRAPS).all(axis=1)]] = _TRAPPED
    return ExecutablePages(addresses, frames, owner)


def _seem_trapped(memory: GuestMemory, frames: NDArray[np.uint64]) -> NDArray[np.bool_]:
    words, _ = memory.integers(frames << np.uint64(12), 8)
    return np.asarray(words == _TRAPS)


def _attempt(
    reader: Callable[[KernelProgram], Iterator[OwnedRange]], program: KernelProgram
) -> list[OwnedRange]:
    for attempt in range(_ATTEMPTS):
        try:
            return list(reader(program))
        except (MemoryFault, MalformedError):
            if attempt + 1 == _ATTEMPTS:
                raise
        except UnavailableError:
            break  # no such symbol, type or member in this kernel
    return []


def bpf_pack_size(program: KernelProgram) -> int:
    """Return how large the kernel makes a pack of BPF programs: a large page for each memory node.

    kernel/bpf/core.c, BPF_PROG_PACK_SIZE. Raises MalformedError for more nodes than any machine has.
    """
    nodes = program.find("nr_node_ids")
    count = 1 if nodes is None else int.from_bytes(program.read(nodes, 4), "little")
    if not 0 < count <= _MOST_NODES:
        raise MalformedError(f"a machine of {count} memory nodes")
    return count * _LARGE_PAGE


def _bpf_packs(program: KernelProgram) -> Iterator[OwnedRange]:
    pack = "struct bpf_prog_pack"
    size = bpf_pack_size(program)
    head, offset = program.address("pack_list"), program.offset(pack, "list")
    for address in list_entries(program, head, offset=offset, maximum=_MOST_OWNERS):
        start = program.copy(pack, address).integer("ptr")
        yield OwnedRange(start, start + size, "bpf", "bpf_prog_pack")


def _bpf_symbols(program: KernelProgram) -> Iterator[OwnedRange]:
    symbol = "struct bpf_ksym"
    head, offset = program.address("bpf_kallsyms"), program.offset(symbol, "lnode")
    for address in list_entries(program, head, offset=offset, maximum=_MOST_OWNERS):
        copy = program.copy(symbol, address)
        yield OwnedRange(copy.integer("start"), copy.integer("end"), "bpf", copy.text("name"))


def _ftrace_trampolines(program: KernelProgram) -> Iterator[OwnedRange]:
    ops = "struct ftrace_ops"
    head, offset = program.address("ftrace_ops_trampoline_list"), program.offset(ops, "list")
    for address in list_entries(program, head, offset=offset, maximum=_MOST_OWNERS):
        copy = program.copy(ops, address)
        start = copy.integer("trampoline")
        yield OwnedRange(
            start, start + copy.integer("trampoline_size"), "ftrace", program.describe(copy.integer("func"))
        )


def _kprobe_slots(program: KernelProgram) -> Iterator[OwnedRange]:
    page, cache = "struct kprobe_insn_page", "struct kprobe_insn_cache"
    for symbol in ("kprobe_insn_slots", "kprobe_optinsn_slots"):
        if program.find(symbol) is None:
            continue
        head = program.address(symbol) + program.offset(cache, "pages")
        offset = program.offset(page, "list")
        for address in list_entries(program, head, offset=offset, maximum=_MOST_OWNERS):
            start = program.copy(page, address).integer("insns")
            yield OwnedRange(start, start + PAGE_SIZE, "kprobe", symbol)


_OWNERS: Final = (_bpf_symbols, _bpf_packs, _ftrace_trampolines, _kprobe_slots)
