"""Kernel objects: types from BTF, copies of structures, and lists that lie."""

from __future__ import annotations

import contextlib
import struct
from dataclasses import replace

import drgn
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from affiant.kernel.facts.registry import collect
from affiant.kernel.machine.memory import MemoryFault
from affiant.kernel.objects.btf_types import BtfTypes
from affiant.kernel.objects.program import KernelProgram
from affiant.kernel.processes.tasks import read_tasks
from affiant.kernel.walks.lists import list_entries, tree_nodes
from affiant.model.errors import AffiantError, MalformedError, UnavailableError
from tests.unit.kernel.btf_builder import BtfBuilder
from tests.unit.kernel.synthetic_guest import DIRECT_MAP, TASK_SIZE, SyntheticGuest, kernel_types


def types_of(data: bytes) -> BtfTypes:
    return BtfTypes(drgn.Program(drgn.Platform(drgn.Architecture.X86_64)), data)


def program(guest: SyntheticGuest | None = None) -> KernelProgram:
    return (guest or SyntheticGuest()).open().program


class TestTypes:
    def test_structures_with_bit_fields_arrays_and_unnamed_members(self) -> None:
        btf = BtfBuilder()
        uint, byte = btf.integer("unsigned int", 4), btf.integer("unsigned char", 1)
        inner = btf.union("", 4, ("whole", uint, 0), ("first", byte, 0))
        btf.bit_struct(
            "thing",
            24,
            ("low", uint, 0, 3),
            ("high", uint, 3, 29),
            ("", inner, 32, 0),
            ("tail", btf.array(byte, 4), 64, 0),
        )
        prog = drgn.Program(drgn.Platform(drgn.Architecture.X86_64))
        prog.register_type_finder("btf", BtfTypes(prog, btf.build()).find_type, enable_index=0)
        thing = prog.type("struct thing")
        assert drgn.sizeof(thing) == 24
        assert thing.member("high").bit_field_size == 29
        assert thing.member("high").bit_offset == 3
        assert thing.member("first").offset == 4
        assert thing.member("tail").type.length == 4

    def test_types_that_refer_to_each_other(self) -> None:
        prog = drgn.Program(drgn.Platform(drgn.Architecture.X86_64))
        prog.register_type_finder("btf", BtfTypes(prog, kernel_types()).find_type, enable_index=0)
        assert prog.type("struct list_head").member("next").offset == 0
        assert prog.type("kuid_t").type.member("val").offset == 0
        with pytest.raises(LookupError):
            prog.type("struct nothing")

    def test_enumerators_are_constants(self) -> None:
        found = types_of(kernel_types()).enumerator("MODULE_STATE_GOING")
        assert found is not None
        assert found.value_() == 2

    def test_signed_and_64_bit_enumerators(self) -> None:
        btf = BtfBuilder()
        btf.raw("big", 19, 8, struct.pack("<III", 0, 1, 2), 1)
        values = types_of(btf.build())
        assert values.type(1).enumerators is not None
        assert values.type(1).enumerators[0].value == 2 << 32 | 1  # type: ignore[index]  # asserted above

    @pytest.mark.parametrize(
        ("kind", "argument"),
        [(10, 1), (8, 1), (2, 99)],
        ids=["const of itself", "typedef of itself", "nowhere"],
    )
    def test_types_in_a_circle_or_nowhere_are_refused(self, kind: int, argument: int) -> None:
        btf = BtfBuilder()
        btf.raw("loop" if kind == 8 else "", kind, argument)
        with pytest.raises(MalformedError):
            types_of(btf.build()).type(1)

    @pytest.mark.parametrize("cut", [0, 10, 23, 30, 100])
    def test_truncated_types_are_refused(self, cut: int) -> None:
        with pytest.raises(MalformedError):
            types_of(kernel_types()[:cut])

    def test_unknown_kinds_are_refused(self) -> None:
        btf = BtfBuilder()
        btf.raw("", 31, 0)
        with pytest.raises(MalformedError, match="unknown kind"):
            types_of(btf.build())

    @settings(max_examples=150, deadline=None)
    @given(st.data())
    def test_flipped_bits_are_read_or_refused(self, data: st.DataObject) -> None:
        raw = bytearray(kernel_types())
        for _ in range(data.draw(st.integers(1, 4))):
            raw[data.draw(st.integers(0, len(raw) - 1))] ^= 1 << data.draw(st.integers(0, 7))
        with contextlib.suppress(MalformedError):
            types = types_of(bytes(raw))
            for number in range(1, len(types)):
                with contextlib.suppress(MalformedError, ValueError):
                    types.type(number)


class TestCopies:
    def test_a_structure_is_read_once_and_parsed_from_the_copy(self) -> None:
        guest = SyntheticGuest()
        objects = program(guest)
        copy = objects.copy("struct task_struct", DIRECT_MAP + guest.tasks[0])
        guest.poke(guest.tasks[0], bytes(0x100))
        assert (copy.integer("pid"), copy.text("comm")) == (1, "init")
        assert copy.at("tasks") == copy.address + 0x20

    def test_unterminated_text_ends_with_its_array(self) -> None:
        guest = SyntheticGuest()
        guest.poke(guest.tasks[0] + 0x50, b"A" * 64)
        assert program(guest).copy("struct task_struct", DIRECT_MAP + guest.tasks[0]).text("comm") == "A" * 16

    def test_negative_integers_are_negative(self) -> None:
        guest = SyntheticGuest()
        guest.poke(guest.tasks[0] + 0x40, b"\xff" * 4)
        assert program(guest).copy("struct task_struct", DIRECT_MAP + guest.tasks[0]).integer("pid") == -1

    def test_members_are_asked_for_and_missing_ones_said(self) -> None:
        objects = program()
        assert objects.has("struct module", "core_layout.text_size")
        assert objects.has("struct latch_tree_root", "tree[1].rb_node")
        assert not objects.has("struct module", "mem[0].base")
        with pytest.raises(UnavailableError, match="no member"):
            objects.offset("struct module", "mem")
        with pytest.raises(UnavailableError):
            objects.copy("struct nothing", DIRECT_MAP)
        with pytest.raises(UnavailableError):
            objects.constant("NOTHING")
        with pytest.raises(UnavailableError):
            objects.address("nothing")

    @pytest.mark.parametrize(
        "address", [0, 0xFFFF_C000_0000_0000, 1 << 63, (1 << 64) - 4, DIRECT_MAP + (32 << 20)]
    )
    def test_wild_pointers_are_faults(self, address: int) -> None:
        with pytest.raises(MemoryFault):
            program().copy("struct task_struct", address)

    def test_reads_are_bounded(self) -> None:
        with pytest.raises(MalformedError):
            program().read(DIRECT_MAP, 1 << 20)

    def test_addresses_are_told_by_symbol(self) -> None:
        guest = SyntheticGuest()
        objects = program(guest)
        assert objects.describe(guest.running("victim") + 3) == "victim+0x3"
        for elsewhere in (0, DIRECT_MAP, 0xFFFF_FFFF_C000_0000, (1 << 64) - 1):
            assert objects.describe(elsewhere) == ""
        assert objects.drgn.symbol(guest.running("victim") + 3).name == "victim"
        assert objects.drgn["init_task"].pid.value_() == 0


class TestLists:
    def test_a_list_is_walked_in_order(self) -> None:
        guest = SyntheticGuest()
        assert [task.name for task in read_tasks(program(guest))] == ["init", "shell"]
        assert [task.uid for task in read_tasks(program(guest))] == [0, 1000]

    def test_a_circle_beside_the_head_is_refused(self) -> None:
        guest = SyntheticGuest()
        last = DIRECT_MAP + guest.tasks[1] + 0x20
        guest.word(guest.tasks[1] + 0x20, last)
        with pytest.raises(MalformedError, match="circle"):
            read_tasks(program(guest))

    def test_a_list_longer_than_its_bound_is_refused(self) -> None:
        guest = SyntheticGuest()
        objects = program(guest)
        head = guest.running("init_task") + 0x20
        with pytest.raises(MalformedError, match="more than 1"):
            list(list_entries(objects, head, offset=0x20, maximum=1))

    def test_a_wild_next_pointer_is_a_fault(self) -> None:
        guest = SyntheticGuest()
        guest.word(guest.tasks[0] + 0x20, 0xDEAD_0000_0000_0100)
        with pytest.raises(MemoryFault):
            read_tasks(program(guest))

    def test_a_task_whose_credentials_lead_nowhere_is_told_all_the_same(self) -> None:
        """A pointer that a rootkit spoilt must not take the task out of sight."""
        guest = SyntheticGuest()
        guest.word(guest.tasks[0] + 0x48, 0xDEAD_0000_0000_0000)
        assert [(task.name, task.uid) for task in read_tasks(program(guest))] == [
            ("init", None),
            ("shell", 1000),
        ]

    def test_tasks_that_cannot_be_read_at_once_are_read_one_by_one(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Both ways say the same, of a list that was walked before and of one that was not."""
        guest = SyntheticGuest()
        guest.poke(guest.tasks[0] + 0x40, b"\xff" * 4)
        guest.poke(guest.tasks[0] + 0x50, b"ab\0cd\xff".ljust(16, b"x"))
        guest.word(guest.tasks[1] + 0x48, 0xDEAD_0000_0000_0000)
        objects = program(guest)
        with monkeypatch.context() as patched:
            patched.setattr("affiant.kernel.processes.tasks._at_once", lambda *_: None)
            alone = read_tasks(objects)
        assert [(task.pid, task.name, task.uid) for task in alone] == [(-1, "ab", 0), (2, "shell", None)]
        assert read_tasks(objects) == read_tasks(program(guest)) == alone

    def test_a_task_that_is_not_aligned_is_told_all_the_same(self) -> None:
        guest = SyntheticGuest()
        before = read_tasks(program(guest))
        moved, address = guest.allocate(TASK_SIZE + 8)
        guest.poke(moved + 4, bytes(guest.ram[guest.tasks[1] : guest.tasks[1] + TASK_SIZE]))
        guest.word(guest.tasks[0] + 0x20, address + 4 + 0x20)
        after = read_tasks(program(guest))
        assert [replace(task, address=0) for task in after] == [replace(task, address=0) for task in before]

    def test_who_came_or_went_since_the_list_was_walked_is_seen(self) -> None:
        guest = SyntheticGuest()
        objects = program(guest)
        assert len(read_tasks(objects)) == 2
        guest.add_task(3, "new", 0)
        assert [task.name for task in read_tasks(objects)] == ["init", "shell", "new"]
        guest.word(guest.tasks[0] + 0x20, guest.running("init_task") + 0x20)
        assert [task.name for task in read_tasks(objects)] == ["init"]

    def test_where_ids_are_not_seen_the_list_stands_alone_and_says_so(self) -> None:
        fact = collect(SyntheticGuest().open(), ["tasks"], now=0)["tasks"].to_json()
        assert (fact["count"], fact["ids"], fact["unlisted"]) == (2, None, [])
        assert fact["ids_unseen"].startswith("this kernel has no type struct pid")

    def test_a_tree_that_is_none_is_refused(self) -> None:
        guest = SyntheticGuest()
        node, address = guest.allocate(24)
        guest.poke(node, struct.pack("<QQQ", 0, address, 0))
        with pytest.raises(MalformedError, match="no tree"):
            list(tree_nodes(program(guest), address, maximum=100))

    def test_a_tree_is_walked_whole(self) -> None:
        guest = SyntheticGuest()
        left, left_address = guest.allocate(24)
        right, right_address = guest.allocate(24)
        root, address = guest.allocate(24)
        guest.poke(root, struct.pack("<QQQ", 0, right_address, left_address))
        assert guest.ram[left] == guest.ram[right] == 0
        nodes = list(tree_nodes(program(guest), address, maximum=3))
        assert sorted(nodes) == sorted([address, left_address, right_address])
        with pytest.raises(MalformedError):
            list(tree_nodes(program(guest), address, maximum=2))


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_corrupted_lists_end_in_our_own_errors(data: st.DataObject) -> None:
    """Wherever pointers of the heap and the list heads point to, a look ends, in a value or a refusal."""
    guest = SyntheticGuest()
    seen = guest.open()
    targets = st.sampled_from(
        [DIRECT_MAP + guest.tasks[0] + 0x20, DIRECT_MAP + guest.modules[0] + 8, 0, (1 << 64) - 8, DIRECT_MAP]
    )
    places = st.one_of(
        st.integers(0, 255).map(lambda slot: 0x100_0000 + 8 * slot),
        st.integers(0, 255).map(lambda slot: guest.physical(0xFFFF_FFFF_8140_0000) + 8 * slot),
    )
    for _ in range(data.draw(st.integers(1, 5))):
        guest.word(data.draw(places), data.draw(st.one_of(targets, st.integers(0, (1 << 64) - 1))))
    facts = collect(seen, ["modules", "tasks"], now=0)
    for fact in facts.values():
        assert isinstance(fact.to_json(), dict)
    with contextlib.suppress(AffiantError):
        read_tasks(seen.program)
