"""What the kernel's lists say of BPF code: packs with their bitmaps, symbols, programs.

All of it is guest memory: it tells what the kernel believes to be there, and is held against the code.
kernel/bpf/core.c, kernel/bpf/syscall.c. Classic filters (sockets, seccomp) have memory in a pack and are
on no list.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

from affiant.kernel.machine.memory import PAGE_SIZE
from affiant.kernel.objects.program import KernelProgram
from affiant.kernel.objects.slide import KERNEL_MAP
from affiant.kernel.page_content.bpf_trampolines import trampolines_in_use
from affiant.kernel.page_tables.executable_pages import LAST_CODE_ADDRESS, bpf_pack_size
from affiant.kernel.walks.lists import list_entries, xarray_entries
from affiant.model.errors import MalformedError

__all__ = [
    "CHUNK",
    "BpfLists",
    "BpfPack",
    "BpfProgram",
    "BpfSymbol",
    "program_functions",
    "read_bpf_lists",
    "read_bpf_symbols",
]

CHUNK: Final = 64
"""BPF_PROG_CHUNK_SIZE: one bit of a pack's bitmap."""

_PACK: Final = "struct bpf_prog_pack"
_SYMBOL: Final = "struct bpf_ksym"
_PROGRAM: Final = "struct bpf_prog"
_AUX: Final = "struct bpf_prog_aux"
_MOST_PACKS: Final = 1024  # more do not fit into the module area
_MOST_IMAGES: Final = 65536
_MOST_FUNCTIONS: Final = 4096  # BPF_MAX_SUBPROGS is 256
_LARGEST_IMAGE: Final = 0x20_0000


@dataclass(frozen=True, slots=True)
class BpfPack:
    """[start, end) is shared by programs; a bit of `bitmap` is set for each chunk of 64 bytes in use."""

    start: int
    end: int
    bitmap: bytes


@dataclass(frozen=True, slots=True)
class BpfSymbol:
    """A symbol of generated code: a program's, or (`program` False) of a trampoline or dispatcher."""

    start: int
    end: int
    name: str
    program: bool
    structure: int


@dataclass(frozen=True, slots=True)
class BpfProgram:
    """One function of a loaded program: `exceptions` entries of its exception table stand at `table`.

    `structure` is the `struct bpf_prog` of the whole program.
    """

    start: int
    size: int
    name: str
    table: int
    exceptions: int
    structure: int = 0


@dataclass(frozen=True, slots=True)
class BpfLists:
    """All lists of one moment; symbols and programs by where their code starts.

    Of several that start at one place, whatever the reason, the longest counts there: a short one hides
    nothing. `functions` are all of them. `trampolines` are where the code of trampolines starts that they
    have now, None if nobody tells. `loaded` are the programs on `prog_idr`, compiled or not.
    """

    packs: tuple[BpfPack, ...]
    symbols: Mapping[int, BpfSymbol]
    programs: Mapping[int, BpfProgram]
    trampolines: frozenset[int] | None = None
    loaded: tuple[int, ...] = ()
    functions: tuple[BpfProgram, ...] = ()

    def pack_at(self, address: int) -> BpfPack | None:
        """Return the pack that an address lies in, None if it lies in none."""
        place = bisect_right(self.packs, address, key=lambda pack: pack.start)
        return self.packs[place - 1] if place and address < self.packs[place - 1].end else None

    def is_free(self, address: int) -> bool:
        """Tell whether an address lies in memory of a pack that is free, and so holds nothing but INT3."""
        pack = self.pack_at(address)
        if pack is None:
            return False
        chunk = (address - pack.start) // CHUNK
        return not pack.bitmap[chunk // 8] >> chunk % 8 & 1


def read_bpf_lists(program: KernelProgram, step: Callable[[], None] = lambda: None) -> BpfLists:
    """Read the lists of BPF code. A kernel without BPF has none.

    `step` is called for each thing on them, and may raise when there were enough. Raises MemoryFault or
    MalformedError when one of them cannot be followed to its end.
    """
    if program.find("pack_list") is None or program.find("prog_idr") is None:
        return BpfLists((), {}, {})
    symbols = read_bpf_symbols(program, step)
    loaded = tuple(_loaded(program))
    functions = tuple(_functions(program, loaded, step))
    programs: dict[int, BpfProgram] = {}
    for each in functions:
        if each.start not in programs or programs[each.start].size < each.size:
            programs[each.start] = each
    packs = sorted(_packs(program), key=lambda pack: pack.start)
    if any(before.end > after.start for before, after in pairwise(packs)):
        raise MalformedError("packs of BPF programs overlap")
    return BpfLists(tuple(packs), symbols, programs, trampolines_in_use(program), loaded, functions)


def read_bpf_symbols(program: KernelProgram, step: Callable[[], None] = lambda: None) -> dict[int, BpfSymbol]:
    """Read the list of symbols of generated code, by where it starts; raises what `read_bpf_lists` raises."""
    if program.find("bpf_kallsyms") is None:
        return {}
    symbols: dict[int, BpfSymbol] = {}
    for each in _symbols(program):
        step()
        if each.start not in symbols or symbols[each.start].end < each.end:
            symbols[each.start] = each
    return symbols


def _packs(program: KernelProgram) -> Iterator[BpfPack]:
    size = bpf_pack_size(program)
    head, offset = program.address("pack_list"), program.offset(_PACK, "list")
    for address in list_entries(program, head, offset=offset, maximum=_MOST_PACKS):
        start = program.copy(_PACK, address).integer("ptr")
        _check_place(start, start + size, "pack")
        bits = address + program.offset(_PACK, "bitmap")
        yield BpfPack(start, start + size, _copied(program, bits, size // CHUNK // 8))


def _copied(program: KernelProgram, address: int, size: int) -> bytes:
    """Copy memory page by page: on a machine of many nodes, a bitmap is longer than any other structure."""
    parts = (program.read(address + at, min(PAGE_SIZE, size - at)) for at in range(0, size, PAGE_SIZE))
    return b"".join(parts)


def _symbols(program: KernelProgram) -> Iterator[BpfSymbol]:
    head, offset = program.address("bpf_kallsyms"), program.offset(_SYMBOL, "lnode")
    for address in list_entries(program, head, offset=offset, maximum=_MOST_IMAGES):
        copy = program.copy(_SYMBOL, address)
        start, end = copy.integer("start"), copy.integer("end")
        _check_place(start, end, "symbol")
        yield BpfSymbol(start, end, copy.text("name"), bool(copy.integer("prog")), address)


def _loaded(program: KernelProgram) -> Iterator[int]:
    place = program.offset("struct idr", "idr_rt") + program.offset("struct xarray", "xa_head")
    root = program.word(program.address("prog_idr") + place)
    return xarray_entries(program, root, maximum=_MOST_IMAGES)


def _functions(
    program: KernelProgram, loaded: Iterable[int], step: Callable[[], None]
) -> Iterator[BpfProgram]:
    seen = 0

    def count() -> None:
        nonlocal seen
        seen += 1
        if seen > _MOST_IMAGES:
            raise MalformedError(f"more than {_MOST_IMAGES} BPF functions")
        step()

    for address in loaded:
        yield from program_functions(program, address, count)


def program_functions(
    program: KernelProgram, address: int, step: Callable[[], None] = lambda: None
) -> list[BpfProgram]:
    """Return the compiled functions of the `struct bpf_prog` at an address; none of one that is interpreted.

    `step` is called for each function, compiled or not. Raises MemoryFault or MalformedError where there is
    no program.
    """
    auxiliary = program.copy(_AUX, program.copy(_PROGRAM, address).integer("aux"))
    name = auxiliary.text("name")
    count = auxiliary.integer("func_cnt")
    if "real_func_cnt" in auxiliary:
        # What catches exceptions, the verifier may add without telling (Linux 6.7 and later).
        count = max(count, auxiliary.integer("real_func_cnt"))
    if not 0 <= count <= _MOST_FUNCTIONS:
        raise MalformedError(f"the BPF program at {address:#x} has {count} functions")
    functions = auxiliary.integer("func")
    found = []
    for part in [program.word(functions + 8 * index) for index in range(count)] or [address]:
        step()
        function = program.copy(_PROGRAM, part)
        if not function.integer("jited"):
            continue
        own = program.copy(_AUX, function.integer("aux"))
        start, size = function.integer("bpf_func"), function.integer("jited_len")
        _check_place(start, start + size, "program")
        found.append(
            BpfProgram(start, size, name, own.integer("extable"), own.integer("num_exentries"), address)
        )
    return found


def _check_place(start: int, end: int, what: str) -> None:
    whole = what == "pack" or end - start <= _LARGEST_IMAGE
    if not (KERNEL_MAP <= start < end <= LAST_CODE_ADDRESS + 1 and whole):
        raise MalformedError(f"a BPF {what} at {start:#x} to {end:#x}")
