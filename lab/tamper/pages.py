"""Page tables: rights that code and data must not have, and tables that nobody else has.

Rights are widened, never narrowed, and copies lead to the same memory: the guest lives on.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from itertools import pairwise
from typing import Final

from affiant.kernel.machine.memory import PAGE_SIZE
from affiant.kernel.machine.paging import AddressSpace
from affiant.kernel.page_tables.table_owners import known_roots
from lab.live_guest import LiveGuest
from lab.tamper.loaded import loaded
from lab.tamper.technique import Technique

__all__ = ["PAGE_TECHNIQUES", "entries_of", "make_code_writable"]

_WRITABLE, _USER, _LARGE, _NO_EXECUTE = 1 << 1, 1 << 2, 1 << 7, 1 << 63
_LARGE_SIZE = 1 << 21
_ADDRESS = 0x000F_FFFF_FFFF_F000
# The kernel reserves the first 64 KiB of RAM (CONFIG_X86_RESERVE_LOW) and leaves it alone.
_SPARE_PAGES = (0x2000, 0x3000, 0x4000, 0x5000)


def entries_of(live: LiveGuest, space: AddressSpace, address: int) -> list[int]:
    """Return the physical addresses of the entries that map an address, from the top level down."""
    table, found = space.root, []
    for level in range(space.levels, 0, -1):
        place = table + 8 * (address >> 12 + 9 * (level - 1) & 511)
        found.append(place)
        entry = _word(live, place)
        assert entry & 1, f"{address:#x} is not mapped"
        if level == 1 or entry & _LARGE:
            break
        table = entry & _ADDRESS
    return found


def _word(live: LiveGuest, physical: int) -> int:
    return int.from_bytes(live.memory.read(physical, 8), "little")


def _entry(live: LiveGuest, place: int, *, add: int = 0, remove: int = 0) -> bytes:
    return ((_word(live, place) | add) & ~remove).to_bytes(8, "little")


def _code_page(live: LiveGuest) -> int:
    """Return the address of an executable page of the module area."""
    area = live.guest.program.address("_end")
    leaves = live.guest.kernel_space.leaves(area, 0xFFFF_FFFF_FEFF_FFFF)
    pages = leaves.select(leaves.executable & (leaves.size == PAGE_SIZE))
    assert len(pages), "nothing in the module area is executable"
    return int(pages.address[-1])


@contextmanager
def make_code_writable(live: LiveGuest) -> Iterator[str]:
    """Set the writable bit of an executable page."""
    address = _code_page(live)
    place = entries_of(live, live.guest.kernel_space, address)[-1]
    with live.physically_changed(place, _entry(live, place, add=_WRITABLE)):
        yield f"1 pages at {address:#x}"


@contextmanager
def _open_code_to_users(live: LiveGuest) -> Iterator[str]:
    """Set the user bit on every level above an executable page."""
    address = _code_page(live)
    with ExitStack() as stack:
        for place in entries_of(live, live.guest.kernel_space, address):
            stack.enter_context(live.physically_changed(place, _entry(live, place, add=_USER)))
        yield f"1 pages at {address:#x}"


@contextmanager
def _make_text_alias_writable(live: LiveGuest) -> Iterator[str]:
    """Set the writable bit of the direct map's view of kernel text."""
    program = live.guest.program
    base = program.word(program.address("page_offset_base"))
    address = base + live.guest.location.physical(live.guest.text.start)
    place = entries_of(live, live.guest.kernel_space, address)[-1]
    with live.physically_changed(place, _entry(live, place, add=_WRITABLE)):
        yield f"512 pages at {address // 0x20_0000 * 0x20_0000:#x}"


@contextmanager
def _make_data_executable(live: LiveGuest) -> Iterator[str]:
    """Make the last pages of RAM executable in the direct map: memory that no list names."""
    program = live.guest.program
    base = program.word(program.address("page_offset_base"))
    leaves = live.guest.kernel_space.leaves(base, base + len(live.ram) - 1)
    plain = leaves.select(leaves.writable & ~leaves.executable)
    address = int(plain.address[-1])
    place = entries_of(live, live.guest.kernel_space, address)[-1]
    with live.physically_changed(place, _entry(live, place, remove=_NO_EXECUTE | _WRITABLE)):
        yield f"{int(plain.size[-1]) // PAGE_SIZE} pages at {address:#x}"


@contextmanager
def _give_process_its_own_kernel(live: LiveGuest) -> Iterator[str]:
    """Copy the tables of kernel text for one process, and make its first 2 MiB writable there."""
    space = live.guest.kernel_space
    roots, _ = known_roots(live.guest.program, space, space.leaves())
    root = roots[0]
    text = live.guest.text.start
    with ExitStack() as stack:
        places = entries_of(live, space, text)
        copies = []
        for place, spare in zip(places[1:], _SPARE_PAGES, strict=False):
            page = place // PAGE_SIZE * PAGE_SIZE
            stack.enter_context(live.physically_changed(spare, live.memory.read(page, PAGE_SIZE)))
            copies.append((spare, place % PAGE_SIZE))
        for (spare, offset), (below, _) in pairwise(copies):
            flags = _word(live, spare + offset) & ~_ADDRESS
            stack.enter_context(
                live.physically_changed(spare + offset, (below | flags).to_bytes(8, "little"))
            )
        leaf = sum(copies[-1])
        stack.enter_context(live.physically_changed(leaf, _entry(live, leaf, add=_WRITABLE)))
        # Last, and in one write: the process may run meanwhile, on tables that are whole at any moment.
        top = root.physical + places[0] % PAGE_SIZE
        flags = _word(live, top) & ~_ADDRESS
        stack.enter_context(live.physically_changed(top, (copies[0][0] | flags).to_bytes(8, "little")))
        yield f"kernel half of {root.user}"


@contextmanager
def _remap_text(live: LiveGuest) -> Iterator[str]:
    """Let the first 2 MiB of kernel text lie in a copy of them, which is then the text that runs."""
    with loaded(live, "spare"):
        said = live.lab.console.run("dmesg | grep lab_spare: | tail -1")
        spare = live.guest.kernel_space.translate(int(said.split()[-1], 16)).physical
        aligned = (spare + _LARGE_SIZE - 1) // _LARGE_SIZE * _LARGE_SIZE
        start = live.guest.text.start
        assert start % _LARGE_SIZE == 0
        place = entries_of(live, live.guest.kernel_space, start)[-1]
        assert _word(live, place) & _LARGE, "kernel text is mapped in small pages"
        flags = _word(live, place) & ~_ADDRESS
        text = live.memory.read(live.guest.location.physical(start), _LARGE_SIZE)
        # The copy stays: processors may have its translation until the module has it forgotten.
        live.ram[aligned : aligned + _LARGE_SIZE] = text
        with live.physically_changed(place, (aligned | flags).to_bytes(8, "little")):
            yield f"512 pages of kernel text at {start:#x}"


_pages = partial(Technique, "page tables")

PAGE_TECHNIQUES: Final = (
    _pages(
        "writable_code",
        "pages_protected",
        "A page of code was made writable.",
        make_code_writable,
        recorded=True,
    ),
    _pages(
        "user_code",
        "pages_protected",
        "A page of code was opened to user mode.",
        _open_code_to_users,
        recorded=True,
    ),
    _pages(
        "writable_alias",
        "pages_protected",
        "The direct map's view of kernel text was made writable.",
        _make_text_alias_writable,
        recorded=True,
    ),
    _pages(
        "executable_data",
        "pages_protected",
        "Data was made executable in the direct map.",
        _make_data_executable,
        recorded=True,
    ),
    _pages(
        "own_kernel",
        "page_tables_shared",
        "A process was given tables of its own for kernel text.",
        _give_process_its_own_kernel,
        recorded=True,
    ),
    _pages("remapped_text", "kernel_text_intact", "2 MiB of kernel text lie elsewhere.", _remap_text),
)
