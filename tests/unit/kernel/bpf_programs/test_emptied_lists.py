"""Lists of places where BPF programs are entered, emptied or made long: nothing seen there proves nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from affiant.kernel.facts.registry import collect
from affiant.kernel.page_content.bpf_lists import read_bpf_lists
from affiant.kernel.page_tables.executable_pages import named_owners
from tests.unit.kernel.bpf_world import HEADS, PACK, BpfWorld
from tests.unit.kernel.synthetic_guest import SLIDE

LIST, FIRST = HEADS["net_namespace_list"] + SLIDE, HEADS["init_net"] + SLIDE


@pytest.fixture
def world() -> BpfWorld:
    return BpfWorld()


def look(world: BpfWorld) -> Any:
    return collect(world.open(), ["bpf_programs"], now=0.0)["bpf_programs"].to_json()


def empty(world: BpfWorld, head: int) -> None:
    world.guest.poke(world.guest.resolve(head), 2 * head.to_bytes(8, "little"))


def test_programs_of_network_devices_are_told(world: BpfWorld) -> None:
    fact = look(world)
    assert (fact["looked"]["network devices"], fact["unread"]) == (1, {})
    world.word(world.device + 32, world.program)
    (program,) = look(world)["programs"]
    assert {"what": "XDP", "where": "lo", "count": 1} in program["uses"]


def emptied_namespaces(world: BpfWorld) -> None:
    empty(world, LIST)


def other_namespace_alone(world: BpfWorld) -> None:
    empty(world, LIST)
    other = world.add(32, {})
    empty(world, other + 16)
    world.guest.link(LIST, other)


def emptied_devices(world: BpfWorld) -> None:
    empty(world, FIRST + 16)


def emptied_trace_events(world: BpfWorld) -> None:
    empty(world, HEADS["ftrace_events"] + SLIDE)


def emptied_processes(world: BpfWorld) -> None:
    empty(world, world.guest.running("init_task") + 0x20)


@pytest.mark.parametrize(
    ("kind", "bend"),
    [
        ("network devices", emptied_namespaces),
        ("network devices", other_namespace_alone),
        ("network devices", emptied_devices),
        ("trace events", emptied_trace_events),
        ("descriptors", emptied_processes),
    ],
)
def test_a_list_that_cannot_be_empty_and_is_was_not_looked_through(
    world: BpfWorld, kind: str, bend: Callable[[BpfWorld], None]
) -> None:
    """Whoever hides a program on a device takes the namespace off its list, and not the program."""
    bend(world)
    fact = look(world)
    assert kind in fact["unread"]
    assert kind not in fact["looked"]


def test_emptied_symbols_do_not_hide_who_holds_programs(world: BpfWorld) -> None:
    empty(world, HEADS["bpf_kallsyms"] + SLIDE)
    assert look(world)["looked"]["descriptors"] == 3


def test_a_path_without_end_is_told_by_its_last_part(world: BpfWorld) -> None:
    """A control group whose parent is itself has as many names as are read, all of them long."""
    name = world.add(64, dict.fromkeys(range(0, 64, 8), 0xFFFF_FFFF_FFFF_FFFF))
    node = world.add(16, {8: name})
    world.word(node, node)
    world.word(world.group + 48, node)
    (program,) = look(world)["programs"]
    (where,) = (use["where"] for use in program["uses"] if use["what"] == "cgroup device")
    assert len(where) == 256


@pytest.mark.parametrize("nodes", [1, 2, 16, 17, 64])
def test_packs_of_a_machine_with_many_memory_nodes_are_read(world: BpfWorld, nodes: int) -> None:
    """A pack has a large page for each node, and its bitmap a page."""
    empty(world, HEADS["pack_list"] + SLIDE)
    world.guest.link(HEADS["pack_list"] + SLIDE, world.add(24 + 4096 * nodes, {16: PACK, 24: 0b10001}))
    world.word(HEADS["nr_node_ids"] + SLIDE, nodes)
    (pack,) = read_bpf_lists(world.open().program).packs
    assert (pack.start, pack.end - pack.start) == (PACK, nodes * 0x20_0000)
    assert (len(pack.bitmap), pack.bitmap[0]) == (4096 * nodes, 0b10001)
    owners = [owned for owned in named_owners(world.open().program) if owned.owner == "bpf_prog_pack"]
    assert [(owned.start, owned.end) for owned in owners] == [(pack.start, pack.end)]
