"""Processors: each protection that is off and each table that leads elsewhere is named."""

from __future__ import annotations

import struct
from dataclasses import replace
from typing import Any

import pytest

from affiant.kernel.cpu_state.control import ControlMemory, control_deviations, debug_deviations
from affiant.kernel.cpu_state.deviation import Deviation
from affiant.kernel.cpu_state.interrupts import ExpectedGates, interrupt_deviations
from affiant.kernel.cpu_state.segments import ExpectedSegments, segment_deviations
from affiant.kernel.facts.registry import collect
from affiant.kernel.machine.cpu import CpuState, DescriptorTable
from affiant.kernel.machine.memory import MemoryFault
from tests.unit.kernel.synthetic_guest import IDT, IDT_PHYSICAL, SLIDE, SYMBOLS, SyntheticGuest

WP, SMEP, SMAP, NXE = 1 << 16, 1 << 20, 1 << 21, 1 << 11
AREA, GDT_PHYSICAL = 0xFFFF_FE00_0000_1000, 0x1B0_0000
TSS = AREA + 0x2000
STACKS = (0x7000, 0x9000, 0xB000, 0xD000, 0xF000)
KERNEL_CODE, USER_DATA = 0x00AF_9B00_0000_FFFF, 0x00CF_F300_0000_FFFF


@pytest.fixture
def guest() -> SyntheticGuest:
    guest = SyntheticGuest()
    for page in range(3):
        guest.map(AREA + 4096 * page, GDT_PHYSICAL + 4096 * page, 4096)
    tss_low = 0x87 | (TSS & 0xFF_FFFF) << 16 | 0x8B << 40 | (TSS >> 24 & 0xFF) << 56
    words = [0, KERNEL_CODE, KERNEL_CODE, USER_DATA, 0, 0, 0, 0, tss_low, TSS >> 32, 0, 0, USER_DATA, 0, 0, 0]
    guest.poke(GDT_PHYSICAL, struct.pack("<16Q", *words))
    state = struct.pack("<IQQQQ7Q", 0, AREA + 0x2000, 1, 2, 0, *(AREA + top for top in STACKS), 0, 0)
    guest.poke(GDT_PHYSICAL + 0x2000, state)
    # One CPU, whose per-CPU area is where GDT and task state are.
    guest.word(guest.physical(SYMBOLS["__per_cpu_offset"]), AREA)
    return guest


def expected_segments() -> ExpectedSegments:
    constants = (0, KERNEL_CODE, KERNEL_CODE, USER_DATA, 0, 0, 0, 0)
    return ExpectedSegments(
        constants=tuple(word & ~(1 << 40) for word in constants),
        tss=0x2000,
        entry_stack_top=0x2000,
        stacks=STACKS,
        gdt_page=0,
        tss_page=0x2000,
    )


def segments_of(guest: SyntheticGuest, cpu: CpuState | None = None) -> list[str]:
    seen = guest.open()
    return [
        deviation.subject
        for deviation in segment_deviations(
            cpu or cpu_of(guest), seen.kernel_space, seen.program, expected_segments()
        )
    ]


def cpu_of(guest: SyntheticGuest, **changes: Any) -> CpuState:
    cpu = guest.cpus[0]
    task = replace(cpu.segments["TR"], base=TSS)
    return replace(
        cpu, **{"gdt": DescriptorTable(AREA, 127), "segments": cpu.segments | {"TR": task}} | changes
    )


def controls(guest: SyntheticGuest, memory: ControlMemory, *cpus: CpuState) -> list[str]:
    return [deviation.subject for deviation in control_deviations(cpus, guest.open().program, memory)]


def test_each_protection_that_is_off_is_named(guest: SyntheticGuest) -> None:
    healthy = replace(cpu_of(guest), cr4=0x1020 | SMEP | SMAP)
    for name, value, subject in (
        ("cr0", healthy.cr0 & ~WP, "CR0.WP of CPU 0"),
        ("efer", healthy.efer & ~NXE, "EFER.NXE of CPU 0"),
    ):
        assert controls(guest, ControlMemory(), replace(healthy, **{name: value})) == [subject]
    assert controls(guest, ControlMemory(), healthy) == []


def test_a_bit_that_another_processor_has_is_missed(guest: SyntheticGuest) -> None:
    full = replace(cpu_of(guest), cr4=0x1020 | SMEP | SMAP)
    bare = replace(full, index=1, cr4=0x1020 | SMAP)
    assert controls(guest, ControlMemory(), full, bare) == ["CR4.SMEP of CPU 1"]


def test_a_bit_that_was_seen_before_is_missed_on_all(guest: SyntheticGuest) -> None:
    memory = ControlMemory()
    full = replace(cpu_of(guest), cr4=0x1020 | SMEP | SMAP)
    assert controls(guest, memory, full) == []
    assert controls(guest, memory, replace(full, cr4=0x1020)) == ["CR4.SMEP of CPU 0", "CR4.SMAP of CPU 0"]


def test_a_processor_that_runs_no_kernel_code_is_left_out(guest: SyntheticGuest) -> None:
    parked = replace(cpu_of(guest), cr0=0x10, efer=0)
    assert controls(guest, ControlMemory(), parked) == []


def test_a_breakpoint_on_kernel_code_is_named_and_one_of_a_debugger_is_not(guest: SyntheticGuest) -> None:
    program = guest.open().program
    hook, user = SYMBOLS["victim"] + SLIDE, 0x5555_0000

    def found(dr7: int) -> list[Deviation]:
        cpu = replace(cpu_of(guest), debug=(user, hook, 0, 0), dr7=dr7)
        return list(debug_deviations([cpu], program))

    assert found(0x400) == found(0x401) == []
    (deviation,) = found(0x404)
    assert deviation.subject == "DR1 of CPU 0"
    assert "victim+0x0" in deviation.found
    assert [each.subject for each in found(0x2400)] == ["DR7.GD of CPU 0"]


def gates(guest: SyntheticGuest) -> ExpectedGates:
    table = bytes(guest.ram[IDT_PHYSICAL : IDT_PHYSICAL + 4096])
    each = tuple(frozenset({table[16 * vector : 16 * vector + 16]}) for vector in range(256))
    return ExpectedGates(each, IDT_PHYSICAL, {gate: "" for allowed in each for gate in allowed})


def test_every_changed_gate_is_named_whatever_it_leads_to(guest: SyntheticGuest) -> None:
    expected, space = gates(guest), guest.open().kernel_space
    cpu = cpu_of(guest)
    assert list(interrupt_deviations(cpu, space, expected)) == []
    for vector, offset, byte in ((0, 0, 0x40), (14, 5, 0xEE), (255, 4, 1)):
        before = guest.poke(IDT_PHYSICAL + 16 * vector + offset, bytes([byte]))
        found = [deviation.subject for deviation in interrupt_deviations(cpu, space, expected)]
        assert found == [f"IDT gate {vector:#x} of CPU 0"]
        guest.poke(IDT_PHYSICAL + 16 * vector + offset, before)


def test_an_interrupt_table_elsewhere_or_shorter_or_writable_is_named(guest: SyntheticGuest) -> None:
    expected = gates(guest)
    copy = 0x1C0_0000
    guest.poke(copy, bytes(guest.ram[IDT_PHYSICAL : IDT_PHYSICAL + 4096]))
    guest.map(IDT + 0x10_0000, copy, 4096, writable=True)
    space = guest.open().kernel_space
    moved = cpu_of(guest, idt=DescriptorTable(IDT + 0x10_0000, 0xFFF))
    assert [each.subject for each in interrupt_deviations(moved, space, expected)] == [
        "IDTR of CPU 0",
        "IDT mapping of CPU 0",
    ]
    short = cpu_of(guest, idt=DescriptorTable(IDT, 0x7F))
    assert [each.subject for each in interrupt_deviations(short, space, expected)] == ["IDTR limit of CPU 0"]
    nowhere = cpu_of(guest, idt=DescriptorTable(0xFFFF_8888_0000_0000, 0xFFF))
    with pytest.raises(MemoryFault):
        list(interrupt_deviations(nowhere, space, expected))


def test_healthy_segments_are_clean(guest: SyntheticGuest) -> None:
    assert segments_of(guest) == []


@pytest.mark.parametrize(
    ("index", "word"),
    [
        (2, 0x00AF_FB00_0000_FFFF),  # kernel code for user mode
        (7, 0x0000_EC00_0010_1000),  # a call gate
        (10, 0x00AF_9B00_0000_FFFF),  # a code segment where a local table belongs
        (12, 0x0000_EC00_0010_1000),  # a call gate where thread-local segments are
        (13, 0x00AF_FB00_0000_FFFF),  # 64-bit code in a thread-local segment
        (15, 0x00CF_9300_0000_FFFF),  # a kernel segment where the CPU's number is
    ],
)
def test_a_descriptor_that_the_build_does_not_have_is_named(
    guest: SyntheticGuest, index: int, word: int
) -> None:
    guest.word(GDT_PHYSICAL + 8 * index, word)
    assert segments_of(guest) == [f"GDT entry {index} of CPU 0"]


def test_a_changed_stack_is_named(guest: SyntheticGuest) -> None:
    guest.word(GDT_PHYSICAL + 0x2000 + 4, AREA)
    guest.word(GDT_PHYSICAL + 0x2000 + 36 + 8, AREA)
    guest.word(GDT_PHYSICAL + 0x2000 + 36 + 48, AREA)
    assert segments_of(guest) == ["sp0 of CPU 0", "exception stack 2 of CPU 0", "exception stack 7 of CPU 0"]


def test_a_table_outside_of_the_per_cpu_area_is_named(guest: SyntheticGuest) -> None:
    guest.word(guest.physical(SYMBOLS["__per_cpu_offset"]), AREA + 4096)
    assert segments_of(guest) == ["GDTR of CPU 0"]


def test_a_longer_table_and_another_task_register_are_named(guest: SyntheticGuest) -> None:
    task = replace(guest.cpus[0].segments["TR"], base=AREA + 0x1000)
    cpu = cpu_of(guest, gdt=DescriptorTable(AREA, 255), segments=guest.cpus[0].segments | {"TR": task})
    found = segments_of(guest, cpu)
    assert found[:3] == ["GDTR limit of CPU 0", "GDT entry 8 of CPU 0", "TR of CPU 0"]
    assert "task state of CPU 0" in found


def test_what_the_reference_does_not_tell_is_said_and_the_rest_is_looked_at(guest: SyntheticGuest) -> None:
    fact = collect(guest.open(), ["cpu_state"], now=0)["cpu_state"].to_json()
    assert set(fact["unread"]) == {"interrupts", "segments"}
    assert fact["checked"]["control"] == 1
    assert (fact["count"], fact["running"]) == (1, 1)
