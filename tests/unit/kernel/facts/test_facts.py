"""Facts: values for scripts, unavailable rather than empty, whatever the guest does."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from affiant.kernel.facts.registry import FACTS, Unavailable, collect
from affiant.kernel.machine.device_stream import parse_device_stream
from affiant.kernel.machine.saved_cpu import SavedCpus
from affiant.kernel.reference.module_files import module_files_beside, pack_module_files
from affiant.model.errors import UnavailableError
from tests.unit.kernel.device_stream_builder import SystemRegisters, device_stream
from tests.unit.kernel.synthetic_guest import PROCESS_ROOT, RAM_SIZE, SYMBOLS, SyntheticGuest, make_reference


def walk(value: Any) -> Any:
    yield value
    children = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    for child in children:
        yield from walk(child)


def test_every_fact_is_json_with_documented_fields(tmp_path: Path) -> None:
    reference = make_reference()
    reference.path = tmp_path / "kernel.reference"
    module_files_beside(reference.path).write_bytes(pack_module_files([]))
    guest = SyntheticGuest(reference=reference)
    saved = parse_device_stream(device_stream(guest.cpus, [SystemRegisters()]), guest.cpus)
    facts = collect(guest.open().with_saved(SavedCpus(0.0, saved)), FACTS, now=0)
    for name, definition in FACTS.items():
        document = facts[name].to_json()
        assert json.loads(json.dumps(document)) == document
        assert set(document) == set(definition.fields), name
        for value in walk(document):
            assert value is None or isinstance(value, str | int | bool | list | dict)
            assert not isinstance(value, int) or abs(value) < 1 << 53, name
        assert definition.version >= 1
        assert definition.description.endswith(".")


def test_the_identity_names_kernel_reference_and_place() -> None:
    guest = SyntheticGuest()
    fact = collect(guest.open(), ["kernel_identity"])["kernel_identity"].to_json()
    assert fact["release"] == "6.1.0-synthetic"
    assert fact["slide"] == hex(guest.slide)
    assert fact["banner_matches"] is True
    guest.poke(guest.physical(SYMBOLS["linux_banner"]) + 14, b"9.9.9")
    fact = collect(guest.open(), ["kernel_identity"])["kernel_identity"].to_json()
    assert fact["banner_matches"] is False
    assert "9.9.9" in fact["banner_found"]


def test_registers_are_facts() -> None:
    fact = collect(SyntheticGuest().open(), ["cpus"])["cpus"].to_json()
    assert fact["count"] == 1
    assert fact["cpus"][0]["symbol"] == "_text+0x0"
    assert fact["cpus"][0]["write_protect"] is True


def test_a_fact_that_nobody_knows_is_unavailable() -> None:
    assert collect(SyntheticGuest().open(), ["weather"])["weather"] == Unavailable(
        "this monitor knows no fact weather"
    )
    assert Unavailable("why").to_json() == {"unavailable": "why"}


def test_long_lists_are_cut_and_counted() -> None:
    guest = SyntheticGuest()
    noise = random.Random(3)
    for index in range(300):
        physical = 0x180_0000 + 8192 * index
        guest.poke(physical % (1 << 24) + (1 << 24), noise.randbytes(64))
        guest.map(
            0xFFFF_FFFF_D000_0000 + 8192 * index, physical % (1 << 24) + (1 << 24), 4096, executable=True
        )
    fact = collect(guest.open(), ["modules"], now=0)["modules"].to_json()
    assert (len(fact["settling"]), fact["settling_left_out"]) == (256, 44)


def test_time_is_the_monotonic_clock_unless_said() -> None:
    assert "unavailable" not in collect(SyntheticGuest().open(), ["modules"])["modules"].to_json()


@pytest.mark.parametrize("name", ["kernel_text", "kernel_rodata", "syscall_table", "modules", "tasks"])
def test_a_guest_whose_tables_are_gone_has_no_facts_rather_than_healthy_ones(name: str) -> None:
    guest = SyntheticGuest()
    seen = guest.open()
    for root in (guest.root, PROCESS_ROOT):
        guest.poke(root, bytes(4096))
    document = collect(seen, [name], now=0)[name].to_json()
    if name == "syscall_table":
        assert (document["tables"][0]["entries"], document["tables"][0]["unread"]) == (0, 6)
    else:
        assert list(document) == ["unavailable"]


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 1 << 32))
def test_whatever_ram_holds_a_look_ends_in_values(seed: int) -> None:
    """Words all over RAM are overwritten, page tables among them: facts, or unavailable, and no exception."""
    noise = random.Random(seed)
    guest = SyntheticGuest()
    seen = guest.open()
    for _ in range(400):
        region = noise.choice(
            [(0x10_0000, 0x11_0000), (0x40_0000, 0xA0_0000), (0x100_0000, 0x100_1000), (0, RAM_SIZE)]
        )
        place = noise.randrange(*region) & ~7
        value = noise.choice(
            [noise.getrandbits(64), noise.randrange(RAM_SIZE) & ~0xFFF | 0x63, 0, (1 << 64) - 1]
        )
        guest.word(place, value)
    for fact in collect(seen, FACTS, now=0).values():
        json.dumps(fact.to_json())
    try:
        collect(seen.refresh(guest.cpus), FACTS, now=0)
    except UnavailableError as error:
        assert str(error)
