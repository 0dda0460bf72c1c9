"""Lists of BPF in hostile memory: every walk ends, and what is no list raises."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from affiant.kernel.machine.memory import MemoryFault
from affiant.kernel.objects.program import KernelProgram
from affiant.kernel.page_content import bpf_pages
from affiant.kernel.page_content.bpf_lists import BpfLists, BpfSymbol, read_bpf_lists
from affiant.kernel.page_content.bpf_trampolines import trampolines_in_use
from affiant.kernel.walks.lists import xarray_entries
from affiant.model.errors import AffiantError, MalformedError, UnavailableError
from tests.unit.kernel.bpf_world import AUX, CODE, HEADS, NODE, PACK, PROGRAM, SLOTS, TRAMPOLINE, BpfWorld
from tests.unit.kernel.btf_builder import BtfBuilder
from tests.unit.kernel.synthetic_guest import (
    DATA,
    MODULE_AREA,
    SLIDE,
    SyntheticGuest,
    kernel_types,
    make_reference,
)


def read(world: BpfWorld) -> BpfLists:
    return read_bpf_lists(world.open().program)


def test_a_program_is_found_on_every_list() -> None:
    lists = read(BpfWorld())
    ((pack,), symbols, programs) = (lists.packs, lists.symbols, lists.programs)
    assert (pack.start, pack.end - pack.start, pack.bitmap[0]) == (PACK, 0x20_0000, 0b10001)
    assert (symbols[CODE].end - CODE, symbols[CODE].program) == (programs[CODE].size, True)
    assert (programs[CODE].structure, programs[CODE].exceptions) == (lists.loaded[0], 0)


def test_a_function_that_the_verifier_added_is_the_program_s_as_well() -> None:
    """What catches exceptions is not among those that a program says it has; its symbol is on the list."""
    lists = BpfWorld()
    hidden = lists.add(PROGRAM, {0: 1 | 4 << 32, 8: PACK + 0x48, 16: lists.aux})
    lists.word(lists.aux, 1 | 2 << 32)
    lists.word(lists.aux + 8, lists.add(16, {0: lists.program, 8: hidden}))
    assert set(read(lists).programs) == {CODE, PACK + 0x48}


@pytest.mark.parametrize("shift", [3, 6, 9, 255])
def test_a_node_that_leads_to_itself_or_upwards_is_refused(shift: int) -> None:
    lists = BpfWorld()
    physical, address = lists.guest.allocate(NODE)
    lists.guest.word(physical, shift)
    lists.guest.word(physical + 8, address | 2)
    program = lists.open().program
    with pytest.raises(MalformedError):
        list(xarray_entries(program, address | 2, maximum=100))


def test_more_entries_than_may_be_are_refused() -> None:
    lists = BpfWorld()
    physical, address = lists.guest.allocate(NODE)
    for slot in range(SLOTS):
        lists.guest.word(physical + 8 + 8 * slot, address)
    program = lists.open().program
    assert len(list(xarray_entries(program, address | 2, maximum=SLOTS))) == SLOTS
    with pytest.raises(MalformedError):
        list(xarray_entries(program, address | 2, maximum=SLOTS - 1))


def test_functions_are_counted_though_they_are_not_compiled() -> None:
    """Few structures of a guest may stand for many: each program has the same thousands of functions."""
    lists = BpfWorld()
    function = lists.add(PROGRAM, {16: lists.aux})
    lists.word(lists.aux, 4096)
    lists.word(lists.aux + 8, lists.add(8 * 4096, {8 * index: function for index in range(4096)}))
    node = lists.program
    for shift in (0, 3):
        slots = {8 + 8 * slot: node for slot in range(SLOTS)}
        node = lists.add(NODE, {0: shift} | slots) | 2
    lists.word(HEADS["prog_idr"] + SLIDE, node)
    with pytest.raises(MalformedError, match="more than 65536"):
        read(lists)


def test_the_longest_of_what_starts_at_one_place_counts() -> None:
    lists = BpfWorld()
    aux = lists.add(AUX, {128: CODE, 136: CODE + 4, 176: 1})
    lists.guest.word(lists.slot + 8, lists.add(PROGRAM, {0: 1 | 4 << 32, 8: CODE, 16: aux}))
    lists.guest.link(HEADS["bpf_kallsyms"] + SLIDE, aux + 128 + 32)
    found = read(lists)
    assert [each.size for each in found.functions] == [len(lists.code), 4]
    assert (found.programs[CODE].size, found.symbols[CODE].end) == (len(lists.code), CODE + len(lists.code))


def trampoline_types(link: str) -> bytes:
    def types(btf: BtfBuilder) -> None:
        address = btf.pointer(0)
        node = btf.struct("hlist_node", 16, ("next", address, 0), ("pprev", address, 8))
        btf.struct("bpf_tramp_image", 32, ("image", address, 16))
        btf.struct("bpf_trampoline", 48, (link, node, 8), ("cur_image", address, 32))

    return kernel_types(types)


class Trampolines:
    """A table with two trampolines in one bucket: one with code, one without."""

    def __init__(self, *, table: str = "trampoline_table", link: str = "hlist") -> None:
        types = trampoline_types(link)
        self.table = DATA + 0x3000
        self.guest = SyntheticGuest(
            reference=make_reference(types, {table: self.table, "behind_table": self.table + 8 * 16})
        )
        self.nodes = [self.guest.allocate(48) for _ in range(2)]
        code, code_address = self.guest.allocate(32)
        self.guest.word(code + 16, CODE)
        self.guest.word(self.nodes[0][0] + 32, code_address)
        self.guest.word(self.guest.physical(self.table) + 8 * 5, self.nodes[0][1] + 8)
        self.guest.word(self.nodes[0][0] + 8, self.nodes[1][1] + 8)

    def read(self) -> frozenset[int] | None:
        return trampolines_in_use(self.guest.open().program)


@pytest.mark.parametrize(
    ("table", "link"), [("trampoline_table", "hlist"), ("trampoline_key_table", "hlist_key")]
)
def test_the_code_that_trampolines_have_now_is_told(table: str, link: str) -> None:
    assert Trampolines(table=table, link=link).read() == {CODE}


@pytest.mark.parametrize(("table", "link"), [("another_table", "hlist"), ("trampoline_table", "other")])
def test_a_kernel_that_keeps_trampolines_otherwise_tells_nothing(table: str, link: str) -> None:
    assert Trampolines(table=table, link=link).read() is None


def test_a_table_of_trampolines_without_end_is_refused() -> None:
    trampolines = Trampolines()
    trampolines.guest.word(trampolines.nodes[1][0] + 8, trampolines.nodes[0][1] + 8)
    with pytest.raises(MalformedError):
        trampolines.read()


def test_a_wild_trampoline_is_refused() -> None:
    trampolines = Trampolines()
    trampolines.guest.word(trampolines.nodes[0][0] + 32, 1 << 62)
    with pytest.raises(MemoryFault):
        trampolines.read()


def test_packs_that_overlap_are_refused() -> None:
    lists = BpfWorld()
    other = lists.add(24 + (0x20_0000 // 64 // 8), {16: PACK + 4096})
    lists.guest.link(HEADS["pack_list"] + SLIDE, other)
    with pytest.raises(MalformedError):
        read(lists)


def test_of_many_places_that_are_called_the_list_of_trampolines_is_read_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It may have tens of thousands of symbols, and each function of the kernel may call another place."""
    world = BpfWorld()
    world.generate(CODE)
    gone = world.add(64, {0: MODULE_AREA + 0x80_0000, 8: MODULE_AREA + 0x80_0040})
    world.guest.link(HEADS["bpf_kallsyms"] + SLIDE, gone + 32)
    seen = world.open()
    reads: list[object] = []
    real = bpf_pages.read_bpf_symbols

    def counted(program: KernelProgram) -> dict[int, BpfSymbol]:
        reads.append(program)
        return real(program)

    monkeypatch.setattr(bpf_pages, "read_bpf_symbols", counted)
    asked = {CODE, TRAMPOLINE, TRAMPOLINE + 1, MODULE_AREA + 0x80_0000, PACK - 1}
    assert seen.outside.generated_among(asked) == {TRAMPOLINE}
    assert len(reads) == 1


def test_more_trampolines_than_one_look_reads_are_vouched_for_by_nobody_and_by_no_guess(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = BpfWorld()
    world.generate(CODE)
    monkeypatch.setattr(bpf_pages, "_MOST_APART", 63)
    seen = world.open()
    with pytest.raises(UnavailableError):
        seen.outside.generated_among({TRAMPOLINE})


@settings(max_examples=150, deadline=None)
@given(
    changes=st.lists(
        st.tuples(
            st.integers(min_value=0, max_value=20),
            st.integers(min_value=0, max_value=31),
            st.one_of(
                st.integers(min_value=0, max_value=(1 << 64) - 1),
                st.sampled_from([0, 1, 2, (1 << 64) - 1, MODULE_AREA, PACK, CODE, 1 << 63]),
                st.integers(min_value=0, max_value=20).map(lambda number: -1 - number),
            ),
        ),
        max_size=6,
    )
)
def test_whatever_stands_in_the_lists_they_are_read_or_refused(changes: list[tuple[int, int, int]]) -> None:
    """Any words in any of the structures, pointers to each other among them."""
    lists = BpfWorld()
    for number, word, value in changes:
        physical, size = lists.objects[number % len(lists.objects)]
        if value < 0:
            value = lists.objects[(-1 - value) % len(lists.objects)][0] + 0xFF11_0000_0000_0000
        if 8 * word + 8 <= size:
            lists.guest.word(physical + 8 * word, value)
    try:
        found = read(lists)
    except AffiantError:
        return
    assert len(found.symbols) <= 65536
    assert all(MODULE_AREA <= symbol.start < symbol.end for symbol in found.symbols.values() if symbol.start)
