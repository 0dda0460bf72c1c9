"""Processes that were taken off the list of tasks are found by their ids, once that has lasted."""

from __future__ import annotations

import struct
from typing import Any

import pytest

from affiant.kernel.facts.registry import collect
from affiant.kernel.guest import Guest
from affiant.kernel.processes.process_ids import ProcessId, read_process_ids
from tests.unit.kernel.btf_builder import BtfBuilder
from tests.unit.kernel.synthetic_guest import (
    DATA,
    DIRECT_MAP,
    SyntheticGuest,
    kernel_types,
    make_reference,
)

_AT = DATA + 0xA000
_PID_SIZE, _TASKS, _LINKS = 0x40, 0x10, 0x60


def _types(btf: BtfBuilder) -> None:
    uint, byte = btf.integer("unsigned int", 4), btf.integer("unsigned char", 1)
    address = btf.pointer(0)
    head = btf.struct("hlist_head", 8, ("first", address, 0))
    xarray = btf.struct("xarray", 16, ("xa_flags", uint, 4), ("xa_head", address, 8))
    btf.struct("xa_node", 552, ("shift", byte, 0), ("slots", btf.array(address, 64), 40))
    idr = btf.struct("idr", 24, ("idr_rt", xarray, 0), ("idr_base", uint, 16))
    btf.struct("pid_namespace", 24, ("idr", idr, 0))
    btf.enum("pid_type", 4, PIDTYPE_PID=0, PIDTYPE_TGID=1, PIDTYPE_PGID=2, PIDTYPE_SID=3)
    btf.struct("pid", _PID_SIZE, ("tasks", btf.array(head, 4), _TASKS))


_REFERENCE = make_reference(kernel_types(_types), {"init_pid_ns": _AT})


class GuestWithIds(SyntheticGuest):
    """Tasks 1 and 2 have their ids; 3 is the id of a session that has no process any more."""

    def __init__(self) -> None:
        super().__init__(reference=_REFERENCE)
        self.node, node_address = self.allocate(552)
        self.word(self.physical(_AT) + 8, node_address + 2)
        for number, task in enumerate(self.tasks, start=1):
            self.give(number, task)
        self.give(3, None)

    def give(self, number: int, task: int | None) -> None:
        pid, address = self.allocate(_PID_SIZE)
        if task is not None:
            self.word(pid + _TASKS + 8, DIRECT_MAP + task + _LINKS + 16)
        self.word(self.node + 40 + 8 * number, address)

    def unlist(self, task: int) -> None:
        following, previous = struct.unpack_from("<QQ", self.ram, task + 0x20)
        self.word(self.resolve(previous), following)
        self.word(self.resolve(following) + 8, previous)


@pytest.fixture
def guest() -> GuestWithIds:
    return GuestWithIds()


def look(seen: Guest, now: float) -> dict[str, Any]:
    return collect(seen, ["tasks"], now=now)["tasks"].to_json()


def test_ids_lead_to_processes_and_only_to_them(guest: GuestWithIds) -> None:
    first, second = guest.tasks
    assert read_process_ids(guest.open().program) == (
        ProcessId(1, DIRECT_MAP + first, "init"),
        ProcessId(2, DIRECT_MAP + second, "shell"),
    )


def test_a_healthy_guest_has_each_process_in_both_views(guest: GuestWithIds) -> None:
    fact = look(guest.open(), 0)
    assert (fact["count"], fact["ids"], fact["ids_unseen"]) == (2, 2, "")
    assert fact["unlisted"] == fact["settling"] == []


def test_a_process_taken_off_the_list_is_told_once_it_has_lasted(guest: GuestWithIds) -> None:
    seen = guest.open()
    guest.unlist(guest.tasks[1])
    told = {"pid": 2, "name": "shell", "task": hex(DIRECT_MAP + guest.tasks[1])}
    first = look(seen, 0)
    assert (first["count"], first["settling"], first["unlisted"]) == (1, [told], [])
    for second in range(1, 6):
        last = look(seen, second)
    assert (last["settling"], last["unlisted"]) == ([], [told])


def test_a_hidden_process_cannot_evade_by_another_name_in_each_look(guest: GuestWithIds) -> None:
    seen = guest.open()
    guest.unlist(guest.tasks[1])
    for second in range(6):
        guest.poke(guest.tasks[1] + 0x50, f"name{second}".encode())
        fact = look(seen, second)
    assert [each["name"] for each in fact["unlisted"]] == ["name5"]


def test_a_hidden_process_cannot_evade_by_ids_that_lead_nowhere_now_and_then(guest: GuestWithIds) -> None:
    """Each look without them says so, and is no look in which it was gone."""
    seen = guest.open()
    guest.unlist(guest.tasks[1])
    for second in range(14):
        guest.word(guest.node + 40 + 8 * 5, 0xDEAD_0000_0000_0000 if second % 2 else 0)
        fact = look(seen, second)
        assert bool(fact["ids_unseen"]) == bool(second % 2)
        if second % 2 == 0:
            assert bool(fact["unlisted"]) == (second >= 10)


def test_a_process_that_ends_meanwhile_is_none_that_hides(guest: GuestWithIds) -> None:
    """Off the list in one look and gone in the next; its number may be another's then."""
    seen = guest.open()
    guest.unlist(guest.tasks[1])
    for second in range(12):
        fact = look(seen, second)
        assert fact["unlisted"] == []
        ending = guest.add_task(2, f"next{second}", 0)
        guest.give(2, ending)
        guest.unlist(ending)


def test_ids_that_lead_nowhere_blind_that_view_alone(guest: GuestWithIds) -> None:
    seen = guest.open()
    guest.word(guest.node + 40 + 8 * 5, 0xDEAD_0000_0000_0000)
    fact = look(seen, 0)
    assert (fact["count"], fact["ids"]) == (2, None)
    assert fact["ids_unseen"]


def test_a_tree_of_ids_that_is_none_is_refused(guest: GuestWithIds) -> None:
    seen = guest.open()
    guest.word(guest.node + 40 + 8 * 5, DIRECT_MAP + guest.node + 2)
    fact = look(seen, 0)
    assert fact["ids"] is None
    assert "no node of an xarray" in fact["ids_unseen"]
