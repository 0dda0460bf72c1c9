"""Rights in the page tables: each wrong one is found by the walk alone, whatever lists say."""

from __future__ import annotations

import tracemalloc
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from affiant.kernel.facts.registry import collect
from affiant.kernel.guest import Guest
from affiant.kernel.machine.cpu import CpuState
from affiant.kernel.page_tables import page_rights, rights_findings
from affiant.kernel.page_tables.fixed_code import VSYSCALL
from tests.unit.kernel.site_world import FEATURE, PLACES, SiteWorld
from tests.unit.kernel.synthetic_guest import (
    DATA,
    DIRECT_MAP,
    KERNEL_PHYSICAL,
    LINK,
    MODULE_AREA,
    MODULE_PHYSICAL,
    PROCESS_ROOT,
    RODATA,
    SYMBOLS,
    TEXT_SIZE,
    SyntheticGuest,
    make_reference,
)

STRAY = MODULE_AREA + 0x10_0000


def look(seen: Guest, now: float = 0.0) -> dict[str, Any]:
    fact = collect(seen, ["page_rights"], now=now)["page_rights"].to_json()
    assert "unavailable" not in fact, fact
    return fact


@pytest.fixture
def guest() -> SyntheticGuest:
    """A guest as healthy kernels are: the direct map shows code read-only, nothing behind text executes."""
    guest = SyntheticGuest()
    table = guest.root
    for level in range(guest.levels, 2, -1):
        place = table + 8 * (guest.running("_text") >> 12 + 9 * (level - 1) & 511)
        table = int.from_bytes(guest.ram[place : place + 8], "little") & 0x000F_FFFF_FFFF_F000
    guest.word(table + 8 * (guest.running("_text") >> 21 & 511), 0)
    for offset in range(0, TEXT_SIZE, 4096):
        guest.map(guest.running("_text") + offset, KERNEL_PHYSICAL + offset, 4096, executable=True)
    for physical in (KERNEL_PHYSICAL, guest.physical(RODATA), MODULE_PHYSICAL):
        start = physical // 0x20_0000 * 0x20_0000
        guest.map(DIRECT_MAP + start, start, 1 << 21)
    guest.ram[PROCESS_ROOT : PROCESS_ROOT + 4096] = guest.ram[guest.root : guest.root + 4096]
    return guest


def test_a_healthy_guest_has_no_wrong_rights_and_says_what_was_looked_at(guest: SyntheticGuest) -> None:
    fact = look(guest.open())
    assert fact["findings"] == [] and fact["unread_tables"] == 0
    assert fact["executable_pages"]["module area"] == 1
    assert fact["executable_pages"]["kernel text"] >= 16
    assert fact["protected_pages"] > 16
    assert fact["roots"]["cpus"] == 1


def test_a_page_both_writable_and_executable_is_found(guest: SyntheticGuest) -> None:
    guest.map(STRAY, MODULE_PHYSICAL, 4096, writable=True, executable=True)
    found = [finding for finding in look(guest.open())["findings"] if finding["address"] == hex(STRAY)]
    assert [finding["what"] for finding in found] == ["writable and executable"]
    assert found[0]["physical"] == hex(MODULE_PHYSICAL)


def test_a_writable_view_of_text_or_read_only_data_is_found(guest: SyntheticGuest) -> None:
    for name in ("victim", "linux_banner"):
        page = guest.physical(SYMBOLS[name]) // 4096 * 4096
        guest.map(STRAY, page, 4096, writable=True)
        (finding,) = look(guest.open())["findings"]
        assert (finding["what"], finding["address"], finding["physical"]) == (
            "writable alias",
            hex(STRAY),
            hex(page),
        )
        assert finding["meaning"]


def test_a_writable_view_of_any_executable_page_is_found(guest: SyntheticGuest) -> None:
    guest.map(STRAY, MODULE_PHYSICAL, 4096, writable=True)
    (finding,) = look(guest.open())["findings"]
    assert finding["what"] == "writable alias"


def test_executable_memory_outside_of_its_places_is_found(guest: SyntheticGuest) -> None:
    guest.map(DIRECT_MAP + (1 << 40), 0x180_0000, 4096, executable=True)
    kinds = look(guest.open())["findings_by_kind"]
    assert kinds["stray executable"] == 1


def test_code_that_users_may_run_is_found_and_the_vsyscall_address_alone_excuses_nothing(
    guest: SyntheticGuest,
) -> None:
    for address in (STRAY, VSYSCALL):
        open_to_users(guest, address, 0x180_0000)
    found = look(guest.open())["findings"]
    assert {(finding["what"], finding["address"]) for finding in found if finding["pages"] == 1} >= {
        ("executable for user mode", hex(STRAY)),
        ("stray executable", hex(VSYSCALL)),  # not the page that the reference has for it
    }


def open_to_users(
    guest: SyntheticGuest, address: int, physical: int, *, executable: bool = True, root: int = 0
) -> None:
    guest.map(address, physical, 4096, executable=executable, root=root)
    table = root or guest.root
    for level in range(guest.levels, 0, -1):
        place = table + 8 * (address >> 12 + 9 * (level - 1) & 511)
        entry = int.from_bytes(guest.ram[place : place + 8], "little") | 4
        guest.word(place, entry)
        table = entry & 0x000F_FFFF_FFFF_F000


def test_a_processor_on_tables_of_its_own_is_found_by_what_they_map(guest: SyntheticGuest) -> None:
    """Its kernel half leads to a copy of the kernel's tables with one page changed."""
    address = guest.running("_text")
    table = PROCESS_ROOT
    for level in range(guest.levels, 1, -1):
        place = table + 8 * (address >> 12 + 9 * (level - 1) & 511)
        below = int.from_bytes(guest.ram[place : place + 8], "little") & 0x000F_FFFF_FFFF_F000
        table = 0x190_0000 + 4096 * level
        guest.poke(table, bytes(guest.ram[below : below + 4096]))
        guest.word(place, table | 3)
    place = table + 8 * (address >> 12 & 511)
    guest.word(place, int.from_bytes(guest.ram[place : place + 8], "little") | 2)
    found = look(guest.open())["findings"]
    assert [(finding["what"], finding["root"]) for finding in found] == [
        ("differs from the kernel's own", "task 1 (init)")
    ]
    guest.word(place, int.from_bytes(guest.ram[place : place + 8], "little") & ~2)
    (copied,) = look(guest.open())["findings"]
    assert copied["what"] == "copied page tables"


def test_a_table_outside_of_ram_is_counted_and_nothing_is_guessed(guest: SyntheticGuest) -> None:
    place = guest.root + 8 * 300
    guest.word(place, 1 << 40 | 3)
    assert look(guest.open())["unread_tables"] == 1


def test_tables_that_lead_to_themselves_end_at_the_bound(guest: SyntheticGuest) -> None:
    for slot in range(257, 300):
        guest.word(guest.root + 8 * slot, guest.root | 3)
    fact = collect(guest.open(), ["page_rights"], now=0)["page_rights"].to_json()
    assert "more than" in fact["unavailable"]


def test_the_excuse_of_booting_is_believed_for_two_minutes_only(guest: SyntheticGuest) -> None:
    seen = guest.open()
    assert look(seen)["booting"] is False
    guest.word(guest.physical(SYMBOLS["system_state"]), 0)
    said = [look(seen, float(now))["booting"] for now in (0, 60, 119, 121)]
    assert said == [True, True, True, False]


def test_a_list_of_tasks_without_end_is_no_look(guest: SyntheticGuest) -> None:
    first = guest.running("init_task") + 0x20
    entry = int.from_bytes(guest.ram[guest.resolve(first) : guest.resolve(first) + 8], "little")
    guest.word(guest.resolve(entry), entry)
    fact = collect(guest.open(), ["page_rights"], now=0)["page_rights"].to_json()
    assert "circle" in fact["unavailable"]


def isolate(guest: SyntheticGuest) -> None:
    """Give the kernel and its process the page behind their tables, which maps the way into the kernel."""
    entry = 8 * 511
    for root in (guest.root, PROCESS_ROOT):
        guest.poke(root + 0x1000 + entry, bytes(guest.ram[guest.root + entry : guest.root + entry + 8]))


@pytest.mark.parametrize("isolated", [True, False])
def test_tables_at_an_odd_page_are_a_half_only_where_there_are_two(
    guest: SyntheticGuest, isolated: bool
) -> None:
    """Isolation keeps the user half in the page behind; a kernel without it uses odd pages, too."""
    odd = PROCESS_ROOT + 0x1000
    if isolated:
        isolate(guest)
    else:
        guest.poke(odd, bytes(guest.ram[PROCESS_ROOT : PROCESS_ROOT + 4096]))
        guest.poke(PROCESS_ROOT, bytes(4096))
        guest.word(guest.resolve(guest.process_memory + 8), DIRECT_MAP + odd)
    guest.cpus = [guest.cpu(odd)]
    fact = look(guest.open())
    assert fact["cpu_tables"] == {"cpu 0": "task 1 (init)"}
    assert fact["findings"] == []
    assert fact["roots"]["user halves"] == 2 * isolated


def test_an_empty_table_behind_that_of_a_process_is_no_user_half_without_isolation(
    guest: SyntheticGuest,
) -> None:
    """It lacks the kernel's data as a user half does; but this kernel has no such halves."""
    assert look(guest.open().refresh([guest.cpu(PROCESS_ROOT + 0x1000)]))["cpu_tables"] == {"cpu 0": ""}


def test_a_user_half_with_more_than_the_way_into_the_kernel_is_found(guest: SyntheticGuest) -> None:
    isolate(guest)
    own = PROCESS_ROOT + 0x1000 + 8 * 300
    guest.word(own, int.from_bytes(guest.ram[guest.root + 8 * 511 : guest.root + 4096], "little"))
    found = look(guest.open())["findings"]
    assert {each["root"] for each in found} == {"user half of task 1 (init)"}
    assert {each["what"] for each in found} == {"differs from the kernel's own"}


def test_a_kernel_that_was_seen_to_isolate_cannot_take_it_back(guest: SyntheticGuest) -> None:
    """To empty the page behind the kernel's own tables spares no user half: all of them differ from it."""
    isolate(guest)
    seen = guest.open()
    assert look(seen)["findings"] == []
    guest.poke(guest.root + 0x1000, bytes(4096))
    fact = look(seen.refresh(guest.cpus))
    assert fact["roots"]["user halves"] == 2
    assert {each["root"] for each in fact["findings"]} == {"user half of task 1 (init)"}


def test_an_own_user_half_emptied_before_the_first_look_hides_no_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The kernel's text was patched at boot as that of one that isolates, whatever its tables look like."""
    monkeypatch.setattr(page_rights, "ISOLATION", FEATURE)
    world = SiteWorld()
    isolate(world.guest)
    emptied = world.guest.poke(world.guest.root + 0x1000, bytes(4096))
    assert look(world.guest.open())["roots"]["user halves"] == 0
    for name in ("alternative_1", "alternative_2", "alternative_3"):
        world.write(PLACES[name], bytes.fromhex("0f01ca"))
    fact = look(world.guest.open())
    assert fact["roots"]["user halves"] == 2
    assert "user half of task 1 (init)" in {each["root"] for each in fact["findings"]}
    world.guest.poke(world.guest.root + 0x1000, emptied)
    roots = {each["root"] for each in look(world.guest.open())["findings"]}
    assert not any(root.startswith("user half") for root in roots)


def test_a_user_half_with_copied_tables_is_found_whoever_calls_itself_user_mode(
    guest: SyntheticGuest,
) -> None:
    """The kernel's own differs from the kernel by right, another one from that one does not."""
    isolate(guest)
    place = PROCESS_ROOT + 0x1000 + 8 * 511
    entry = int.from_bytes(guest.ram[place : place + 8], "little")
    guest.poke(0x1A0_0000, bytes(guest.ram[entry & ~0xFFF : (entry & ~0xFFF) + 4096]))
    guest.word(place, 0x1A0_0000 | entry & 0xFFF)
    guest.poke(guest.tasks[0] + 0x50, b"user mode".ljust(16, b"\0"))
    (found,) = look(guest.open())["findings"]
    assert (found["what"], found["root"]) == ("copied page tables", "user half of task 1 (user mode)")


def test_what_lies_behind_the_first_tables_of_a_processor_is_no_user_half() -> None:
    starter = 0x9_8000
    guest = SyntheticGuest(
        reference=make_reference(
            further_symbols={
                "real_mode_header": DATA + 0x980,
                "real_mode_blob": DATA + 0x1000,
                "real_mode_blob_end": DATA + 0x4000,
            }
        )
    )
    isolate(guest)
    guest.word(guest.physical(DATA + 0x980), DIRECT_MAP + starter)
    guest.poke(starter, bytes(guest.ram[guest.root : guest.root + 4096]))
    guest.poke(starter + 0x1000, b"\x67" * 4096)
    fact = look(guest.open().refresh([guest.cpu(starter)]))
    assert fact["cpu_tables"] == {"cpu 0": "processors that start"}
    assert not any(each["root"].startswith("user half of") for each in fact["findings"])


def test_isolation_that_maps_what_the_kernel_does_not_is_found(guest: SyntheticGuest) -> None:
    """Whoever writes the kernel's own user half, to have another table taken for one, is told of."""
    isolate(guest)
    guest.map(0xFF20_0000_0000_0000, MODULE_PHYSICAL, 4096, writable=True, root=guest.root + 0x1000)
    (found,) = look(guest.open())["findings"]
    assert (found["root"], found["what"]) == ("user mode", "differs from the kernel's own")


@pytest.mark.parametrize("whole", [False, True], ids=["part of a large page", "large page of small ones"])
def test_isolation_may_map_the_way_into_the_kernel_in_pages_of_another_size(
    guest: SyntheticGuest, whole: bool
) -> None:
    """The kernel shares single pages of its data, and where it enters the kernel whole large ones."""
    address, physical = 0xFF20_0000_0000_0000, 0x20_0000
    behind = guest.root + 0x1000
    own = 4096 if whole else 1 << 21
    for offset in range(0, 1 << 21, own):
        guest.map(address + offset, physical + offset, own)
    guest.ram[PROCESS_ROOT : PROCESS_ROOT + 4096] = guest.ram[guest.root : guest.root + 4096]
    isolate(guest)
    offset, size = (0, 1 << 21) if whole else (0x5000, 4096)
    guest.map(address + offset, physical + offset, size, root=behind)
    assert look(guest.open())["findings"] == []


@pytest.mark.parametrize(
    ("size", "changes"),
    [
        (4096, {"writable": True}),
        (4096, {"executable": True}),
        (4096, {"physical": 0x20_6000}),
        (1 << 21, {}),
    ],
    ids=["writable", "executable", "elsewhere", "beyond"],
)
def test_isolation_that_maps_the_way_into_the_kernel_otherwise_is_found(
    guest: SyntheticGuest, size: int, changes: dict[str, Any]
) -> None:
    """`beyond`: a large page, of which the kernel maps all but the last small one."""
    address, physical = 0xFF20_0000_0000_0000, 0x20_0000
    for offset in range(0, (1 << 21) - 4096, 4096):
        guest.map(address + offset, physical + offset, 4096)
    guest.ram[PROCESS_ROOT : PROCESS_ROOT + 4096] = guest.ram[guest.root : guest.root + 4096]
    isolate(guest)
    place = {"physical": physical + 0x5000} if size == 4096 else {"physical": physical}
    address += 0x5000 if size == 4096 else 0
    guest.map(address, size=size, root=guest.root + 0x1000, **(place | changes))
    found = look(guest.open())["findings"]
    assert [(one["root"], one["what"]) for one in found] == [("user mode", "differs from the kernel's own")]


def test_tables_of_their_own_behind_those_of_a_process_are_no_user_half(guest: SyntheticGuest) -> None:
    seen = guest.open()
    own, below = PROCESS_ROOT + 0x1000, PROCESS_ROOT + 0x2000
    guest.poke(own, bytes(guest.ram[PROCESS_ROOT : PROCESS_ROOT + 4096]))
    entry = own + 8 * 511
    table = int.from_bytes(guest.ram[entry : entry + 8], "little") & 0x000F_FFFF_FFFF_F000
    guest.poke(below, bytes(guest.ram[table : table + 4096]))
    guest.word(entry, below | 3)
    assert look(seen.refresh([guest.cpu(own)]))["cpu_tables"] == {"cpu 0": ""}


def test_tables_of_nobody_are_told_apart(guest: SyntheticGuest) -> None:
    assert look(guest.open())["cpu_tables"] == {"cpu 0": "task 1 (init)"}
    stranger = 0x1A0_0000
    guest.poke(stranger, bytes(guest.ram[guest.root : guest.root + 4096]))
    guest.cpus = [guest.cpu(stranger)]
    assert look(guest.open())["cpu_tables"] == {"cpu 0": ""}


@pytest.mark.parametrize("isolated", [False, True])
def test_tables_that_were_in_order_before_the_registers_were_read_may_be_gone_after(
    guest: SyntheticGuest, isolated: bool
) -> None:
    """A process that ends between the two readings leaves anything at all where its tables were."""
    on = PROCESS_ROOT + 0x1000 * isolated
    if isolated:
        isolate(guest)
    seen = guest.open()
    before = seen.tables_in_order()
    exit_process(guest)
    guest.poke(PROCESS_ROOT, b"\x67" * 8192)
    there = seen.refresh([guest.cpu(on)])
    assert look(there)["cpu_tables"] == {"cpu 0": ""}
    fact = look(there.with_tables(before))
    assert fact["cpu_tables"] == {"cpu 0": "gone"} and fact["findings"] == []
    assert look(there.with_tables(seen.tables_in_order()))["cpu_tables"] == {"cpu 0": ""}


@pytest.mark.parametrize("isolated", [False, True])
def test_tables_that_were_not_in_order_before_are_nobodys_after(
    guest: SyntheticGuest, isolated: bool
) -> None:
    """To take one's process off the list in between hides no kernel half of its own, and no user half."""
    on = PROCESS_ROOT + 0x1000 * isolated
    if isolated:
        isolate(guest)
    guest.word(on + 8 * 300, 0x1A0_0000 | 3)
    seen = guest.open()
    before = seen.tables_in_order()
    exit_process(guest)
    assert look(seen.refresh([guest.cpu(on)]).with_tables(before))["cpu_tables"] == {"cpu 0": ""}


def test_tables_of_a_process_that_is_made_as_the_registers_are_read_may_be_gone_after(
    guest: SyntheticGuest,
) -> None:
    """It is on the lists neither before nor when the look comes to them; but on those of just after."""
    seen = guest.open()
    before = seen.tables_in_order()
    made = 0x1A0_0000
    guest.poke(made, bytes(guest.ram[guest.root : guest.root + 4096]))
    memory, address = guest.allocate(16)
    guest.word(memory + 8, DIRECT_MAP + made)
    shell = guest.tasks[1]
    guest.word(shell + 0x38, address)
    there = seen.refresh([guest.cpu(made)]).with_tables(before)
    guest.word(shell + 0x38, 0)
    assert look(there)["cpu_tables"] == {"cpu 0": "gone"}
    assert look(seen.refresh([guest.cpu(made)]).with_tables(before))["cpu_tables"] == {"cpu 0": ""}


def test_tables_that_somebody_has_are_compared_whatever_they_were_before(guest: SyntheticGuest) -> None:
    seen = guest.open()
    before = seen.tables_in_order()
    assert PROCESS_ROOT in before
    guest.poke(0x1A0_0000, bytes(guest.ram[guest.root : guest.root + 4096]))
    guest.word(PROCESS_ROOT + 8 * 300, 0x1A0_0000 | 3)
    fact = look(seen.refresh(guest.cpus).with_tables(before))
    assert {each["root"] for each in fact["findings"]} == {"task 1 (init)"}


def test_of_lists_that_cannot_be_followed_no_tables_were_in_order(guest: SyntheticGuest) -> None:
    seen = guest.open()
    guest.word(guest.tasks[0] + 0x20, 0xDEAD)
    assert seen.tables_in_order() == frozenset()


def exit_process(guest: SyntheticGuest) -> None:
    """Both tasks share page tables, and lose them as those do that exit."""
    for task in guest.tasks:
        guest.word(task + 0x38, 0)


def test_of_very_many_processes_those_that_run_are_all_known_and_compared() -> None:
    """However many there are, tables of nobody's are told apart, and no draw spares what a processor runs."""
    guest = SyntheticGuest()
    last = 0x1A0_0000 + 4096 * 599
    for number in range(600):
        table = 0x1A0_0000 + 4096 * number
        guest.poke(table, bytes(guest.ram[guest.root : guest.root + 4096]))
        memory, guest.process_memory = guest.allocate(16)
        guest.word(memory + 8, DIRECT_MAP + table)
        guest.add_task(100 + number, "one of many", 1000)
    guest.poke(0x1D0_0000, bytes(guest.ram[guest.root : guest.root + 4096]))
    guest.word(last + 8 * 300, 0x1D0_0000 | 3)
    seen = guest.open()
    fact = look(seen.refresh([guest.cpu(0x1D0_0000)]))
    assert (fact["cpu_tables"], fact["tasks"], fact["roots"]["tasks"]) == ({"cpu 0": ""}, 602, 512)
    for _ in range(8):
        fact = look(seen.refresh([guest.cpu(last)]))
        assert fact["cpu_tables"] == {"cpu 0": "task 699 (one of many)"}
        assert {one["root"] for one in fact["findings"]} >= {"task 699 (one of many)"}


SWITCH, POKING = LINK + 0x3000, DATA + 0xC00


def switching_guest(name: str = "poking_mm") -> tuple[SyntheticGuest, int, CpuState]:
    """A guest whose processor is, in the middle of switching, on tables that no process has any more."""
    guest = SyntheticGuest(
        reference=make_reference(
            further_symbols={"switch_mm_irqs_off": SWITCH, "behind_switch": SWITCH + 0x80, name: POKING}
        )
    )
    left = 0x1A0_0000
    guest.poke(left, bytes(guest.ram[guest.root : guest.root + 4096]))
    return guest, left, replace(guest.cpu(left), instruction_pointer=SWITCH + guest.slide + 0x70)


def test_a_processor_that_is_just_switching_may_be_on_tables_of_nobody() -> None:
    guest, _, cpu = switching_guest()
    fact = look(guest.open().refresh([cpu]).at_rest())
    assert fact["cpu_tables"] == {"cpu 0": "switching"}
    assert not any(finding["root"] == "cpu 0" for finding in fact["findings"])
    beyond = replace(cpu, instruction_pointer=cpu.instruction_pointer + 0x10)
    assert look(guest.open().refresh([beyond]).at_rest())["cpu_tables"] == {"cpu 0": ""}


def test_tables_that_map_other_code_where_the_kernel_switches_excuse_nothing() -> None:
    """Whoever keeps a processor there runs what these tables say: an address is no code."""
    guest, left, cpu = switching_guest()
    guest.poke(left, bytes(4096))
    page = cpu.instruction_pointer // 4096 * 4096
    guest.map(page, guest.physical(page - guest.slide), 4096, executable=True, root=left)
    assert look(guest.open().refresh([cpu]))["cpu_tables"] == {"cpu 0": "switching"}
    for rights in ({"executable": True}, {}):
        guest.map(
            page, MODULE_PHYSICAL if rights else guest.physical(page - guest.slide), 4096, root=left, **rights
        )
        assert look(guest.open().refresh([cpu]))["cpu_tables"] == {"cpu 0": ""}


def test_the_kernel_half_of_a_processor_that_is_switching_is_compared() -> None:
    """While nothing moves; while it does, what a process left is no page table any more."""
    guest, left, cpu = switching_guest()
    seen = guest.open().refresh([cpu])
    guest.poke(0x1B0_0000, bytes(guest.ram[guest.root : guest.root + 4096]))
    guest.word(left + 8 * 300, 0x1B0_0000 | 3)
    assert any(finding["root"] == "cpu 0" for finding in look(seen.at_rest())["findings"])
    assert not any(finding["root"] == "cpu 0" for finding in look(seen)["findings"])


@pytest.mark.parametrize("name", ["poking_mm", "text_poke_mm"])
def test_a_processor_may_be_on_the_tables_that_text_is_changed_through(name: str) -> None:
    guest, left, _ = switching_guest(name)
    memory, address = guest.allocate(16)
    guest.word(memory + 8, DIRECT_MAP + left)
    seen = guest.open().refresh([guest.cpu(left)])
    assert look(seen)["cpu_tables"] == {"cpu 0": ""}
    guest.word(guest.physical(POKING), address)
    assert look(seen)["cpu_tables"] == {"cpu 0": "text poking"}


@pytest.mark.parametrize("entry", [0x7F_FFFF_F023, None])
def test_what_an_exited_process_left_on_a_processor_is_nobodys_and_no_gap(
    guest: SyntheticGuest, entry: int | None
) -> None:
    """Its tables are freed, and lead out of RAM or to themselves; that a processor is there is told."""
    left = 0x1A0_0000
    seen = guest.open()
    guest.poke(left + 2048, bytes(guest.ram[guest.root + 2048 : guest.root + 4096]))
    for slot in range(300, 340):
        guest.word(left + 8 * slot, left | 3 if entry is None else entry)
    fact = look(seen.refresh([guest.cpu(left)]))
    assert fact["cpu_tables"] == {"cpu 0": ""}
    assert fact["unread_tables"] == 0


def test_tables_of_a_process_without_end_are_no_look(guest: SyntheticGuest) -> None:
    for slot in range(300, 340):
        guest.word(PROCESS_ROOT + 8 * slot, PROCESS_ROOT | 3)
    fact = collect(guest.open(), ["page_rights"], now=0)["page_rights"].to_json()
    assert fact["unavailable"] == "the page tables of task 1 (init) have no end"


def test_tables_of_a_process_that_map_more_than_memory_holds_are_no_look(guest: SyntheticGuest) -> None:
    """Three tables suffice to map 16 GiB page by page, and there may be one such process after the other."""
    words = np.frombuffer(guest.ram, dtype="<u8").reshape(-1, 512)
    first = 0x1A0
    words[first, :16] = first + 1 << 12 | 3
    words[first + 1, :] = first + 2 << 12 | 3
    words[first + 2, :] = 0x1B0_0003
    guest.word(PROCESS_ROOT + 8 * 300, first - 1 << 12 | 3)
    guest.word(first - 1 << 12, first << 12 | 3)
    seen = guest.open()
    tracemalloc.start()
    try:
        fact = collect(seen, ["page_rights"], now=0)["page_rights"].to_json()
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert fact["unavailable"] == "the page tables of task 1 (init) have no end"
    assert most < 100 << 20


def test_of_one_kind_only_so_many_findings_are_told_whosever_tables_they_are_in(
    guest: SyntheticGuest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rights_findings, "_MOST_RUNS", 8)
    for number in range(4):
        table = 0x1A0_0000 + 4096 * number
        guest.poke(table, bytes(guest.ram[guest.root : guest.root + 4096]))
        guest.word(table + 8 * 300, 0)
        for page in range(6):
            address = (1 << 64) - (1 << 56) | 300 - 256 << 48 | page << 13
            guest.map(address, 0x1C0_0000 + 4096 * page, 4096, root=table)
        memory, guest.process_memory = guest.allocate(16)
        guest.word(memory + 8, DIRECT_MAP + table)
        guest.add_task(100 + number, "one of four", 1000)
    fact = look(guest.open())
    assert fact["findings_by_kind"] == {"differs from the kernel's own": 8}
    assert fact["findings_left_out"] == 4 * 6 - 8


def test_a_list_of_tasks_that_leads_below_all_memory_is_taken_for_what_it_is(guest: SyntheticGuest) -> None:
    """The kernel's own tables map address 0 here, and an element of the list lies there."""
    head, node, page = guest.running("init_task") + 0x20, 8, 0x1A0_0000
    guest.map(0, page, 4096)
    guest.word(page + node, head)
    guest.word(guest.resolve(head), node)
    fact = look(guest.open())
    assert (fact["tasks"], fact["roots"]["tasks"]) == (1, 0)


FIRMWARE = 0xFFFF_FFFE_FE00_0000
"""Where this kernel maps a region of boot services for the firmware."""
EFI_TABLE = PROCESS_ROOT + 0x1_0000


@pytest.mark.parametrize(
    ("kind", "attribute", "moved", "what"),
    [
        (4, 1 << 63, 0, "kept for the firmware"),
        (3, 1 << 63 | 15, 0, "kept for the firmware"),
        (4, 15, 0, "writable alias"),
        (7, 1 << 63, 0, "writable alias"),
        (4, 1 << 63, 0x1000, "writable alias"),
    ],
    ids=["data", "code", "not kept", "no boot services", "mapped elsewhere"],
)
def test_only_boot_services_that_the_kernel_keeps_mapped_are_the_firmwares(
    kind: int, attribute: int, moved: int, what: str
) -> None:
    """A module's code came to lie in memory that the tables of EFI services still map writable."""
    guest = efi_guest(kind=kind, attribute=attribute, moved=moved)
    found = [each for each in look(guest.open())["findings"] if each["root"] == "efi"]
    assert [each["what"] for each in found] == [what]
    assert int(found[0]["physical"], 16) == MODULE_PHYSICAL


@pytest.mark.parametrize(
    ("executable", "what"), [(False, "open to user mode"), (True, "executable for user mode")]
)
def test_what_user_mode_may_reach_among_efi_services_is_found(executable: bool, what: str) -> None:
    """Whoever has a process's tables taken for theirs maps kernel memory for it where anything may differ."""
    guest = efi_guest()
    open_to_users(guest, FIRMWARE + 0x10_0000, 0x180_0000, executable=executable, root=EFI_TABLE)
    found = [each for each in look(guest.open())["findings"] if each["physical"] == hex(0x180_0000)]
    assert [(each["what"], each["root"]) for each in found] == [(what, "efi")]


def test_what_firmware_has_both_writable_and_executable_is_told_once_and_as_what_it_is() -> None:
    guest = efi_guest()
    for page in (0, 1, 5):
        place = 0x10_0000 + 4096 * page
        guest.map(
            FIRMWARE + place, 0x180_0000 + 4096 * page, 4096, writable=True, executable=True, root=EFI_TABLE
        )
    fact = look(guest.open())
    (told,) = (each for each in fact["findings"] if each["what"] == "firmware code and data")
    assert (told["address"], told["pages"], told["root"]) == (hex(FIRMWARE + 0x10_0000), 3, "efi")
    assert fact["executable_pages"]["efi services"] == 3


def test_a_map_without_end_excuses_nothing() -> None:
    guest = efi_guest()
    guest.poke(guest.physical(SYMBOLS["efi"]) + 16 + 8, (1 << 30).to_bytes(4, "little"))
    found = [each["what"] for each in look(guest.open())["findings"] if each["root"] == "efi"]
    assert found == ["writable alias"]


def efi_guest(*, kind: int = 4, attribute: int = 1 << 63, moved: int = 0) -> SyntheticGuest:
    """Return a guest whose tables for EFI services map the page before and the first page of its module."""
    guest = SyntheticGuest(reference=make_reference(further_symbols={"efi_mm": SYMBOLS["efi"] + 0x60}))
    table = EFI_TABLE
    guest.ram[table : table + 4096] = guest.ram[guest.root : guest.root + 4096]
    slot = table + 8 * (FIRMWARE >> 48 & 511)
    guest.word(slot, 0)
    for offset in (0, 4096):
        guest.map(FIRMWARE + moved + offset, MODULE_PHYSICAL - 4096 + offset, 4096, writable=True, root=table)
    array, address = guest.allocate(40)
    fields = (kind, MODULE_PHYSICAL - 4096, FIRMWARE, 2, attribute)
    guest.poke(array, b"".join(value.to_bytes(8, "little") for value in fields))
    efi = guest.physical(SYMBOLS["efi"])
    guest.poke(
        efi + 16, address.to_bytes(8, "little") + (1).to_bytes(8, "little") + (40).to_bytes(8, "little")
    )
    guest.word(guest.physical(SYMBOLS["efi"] + 0x60) + 8, DIRECT_MAP + table)
    return guest
