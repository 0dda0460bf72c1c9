"""QEMU's device state: each vCPU's own section is found and read, and nothing else is taken for it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as some

from affiant.kernel.machine.cpu import CpuState, DescriptorTable, parse_registers
from affiant.kernel.machine.device_stream import parse_device_stream
from affiant.model.errors import AffiantError, MalformedError, UnavailableError
from tests.unit.kernel.device_stream_builder import HEAD, SystemRegisters, cpu_section, device_stream
from tests.unit.kernel.synthetic_guest import registers

VECTORS = Path(__file__).parents[3] / "vectors/device_state"
SYSTEM = SystemRegisters(lstar=0xFFFF_FFFF_81E0_0080, kernel_gs_base=0x1234)


def cpu(index: int = 0, **changes: object) -> CpuState:
    one = parse_registers(registers(cr3=0x1000 + 4096 * index, rip=0xFFFF_FFFF_8100_0000 + index))
    gdt = DescriptorTable(0xFFFF_FE00_0000_1000 + 0x3B000 * index, 127)
    return replace(one, index=index, gdt=gdt, **changes)


def test_each_vcpu_is_read_from_its_own_section() -> None:
    cpus = [cpu(0), cpu(1)]
    systems = [SYSTEM, replace(SYSTEM, lstar=0x1111, pat=7, sysenter_eip=3)]
    first, second = parse_device_stream(device_stream(cpus, systems), cpus)
    assert (first.index, second.index) == (0, 1)
    assert (first.lstar, first.kernel_gs_base) == (SYSTEM.lstar, 0x1234)
    assert (first.star, first.syscall_mask, first.pat) == (SYSTEM.star, SYSTEM.syscall_mask, SYSTEM.pat)
    assert (second.lstar, second.pat, second.sysenter_eip) == (0x1111, 7, 3)
    assert first.gdt == cpus[0].gdt
    assert first.spec_ctrl == 0


def test_a_recorded_stream_holds_the_entries_that_the_guest_named() -> None:
    expected = json.loads((VECTORS / "qemu-7.2.json").read_text())
    texts = (VECTORS / "qemu-7.2.registers").read_text().split("CPU#")[1:]
    cpus = [parse_registers(f"CPU#{text}", index=index) for index, text in enumerate(texts)]
    saved = parse_device_stream((VECTORS / "qemu-7.2.bin").read_bytes(), cpus)
    assert len(saved) == 2
    for one in saved:
        for name in ("lstar", "cstar", "sysenter_eip"):
            assert hex(getattr(one, name)) == expected[name]
    assert saved[0].segments["GS"].base != saved[1].segments["GS"].base


def test_registers_in_subsections_are_read_and_others_passed_over() -> None:
    subsections = {
        "cpu/poll_control_msr": bytes(8),
        "cpu/avx512": bytes(1600),
        "cpu/spec_ctrl": (5).to_bytes(8, "big"),
    }
    stream = HEAD + cpu_section(cpu(), SYSTEM, subsections=subsections)
    (saved,) = parse_device_stream(stream, [cpu()])
    assert saved.spec_ctrl == 5


def test_an_unknown_subsection_hides_what_follows_and_nothing_before() -> None:
    subsections = {"cpu/of_tomorrow": bytes(77), "cpu/spec_ctrl": (5).to_bytes(8, "big")}
    stream = HEAD + cpu_section(cpu(), SYSTEM, subsections=subsections)
    (saved,) = parse_device_stream(stream, [cpu()])
    assert saved.spec_ctrl is None
    assert saved.lstar == SYSTEM.lstar


@pytest.mark.parametrize(
    ("bent", "register"),
    [
        (cpu(cr3=0x2000), "CR3"),
        (cpu(cr0=0x8004_0033), "CR0"),
        (cpu(efer=0xD00), "EFER"),
        (cpu(dr7=0x401), "DR7"),
        (cpu(instruction_pointer=1), "RIP"),
        (cpu(idt=DescriptorTable(1, 4095)), "IDTR"),
        (cpu(segments=cpu().segments | {"TR": cpu().segments["ES"]}), "TR"),
    ],
)
def test_a_section_that_disagrees_with_the_listing_is_not_believed(bent: CpuState, register: str) -> None:
    with pytest.raises(UnavailableError, match=f"differ in {register}"):
        parse_device_stream(device_stream([cpu()], [SYSTEM]), [bent])


def test_a_forged_header_in_vector_registers_is_passed_over() -> None:
    """The guest fills XMM registers, and what they hold stands before the next vCPU's own section."""
    forged = cpu_section(cpu(1), replace(SYSTEM, lstar=0xBAD))[:256]
    cpus = [cpu(0), cpu(1)]
    stream = (
        HEAD + cpu_section(cpus[0], SYSTEM, vectors=forged, number=5) + cpu_section(cpus[1], SYSTEM, number=9)
    )
    assert [saved.lstar for saved in parse_device_stream(stream, cpus)] == [SYSTEM.lstar, SYSTEM.lstar]


def test_a_whole_forged_section_is_not_that_of_another_vcpu() -> None:
    """A device's buffer may hold any bytes: without the registers of this very moment they are of no use."""
    forged = cpu_section(cpu(0, cr3=0x66000), replace(SYSTEM, lstar=0xBAD))
    (saved,) = parse_device_stream(HEAD + forged + cpu_section(cpu(), SYSTEM, number=9), [cpu()])
    assert saved.lstar == SYSTEM.lstar
    with pytest.raises(UnavailableError):
        parse_device_stream(HEAD + forged, [cpu()])


def test_of_two_sections_that_agree_none_is_believed() -> None:
    """A guest that knows its registers of the next moment may have a device hold a section of its own."""
    forged = cpu_section(cpu(), replace(SYSTEM, lstar=0xBAD), number=77)
    with pytest.raises(UnavailableError, match="more than one"):
        parse_device_stream(device_stream([cpu()], [SYSTEM]) + forged, [cpu()])


def test_a_section_that_does_not_end_where_it_must_is_not_believed() -> None:
    section = cpu_section(cpu(), SYSTEM)
    for bent in (section[:-5] + b"\x7e\x00\x00\x00\x06", section[:-5] + b"\x05\x03foo" + bytes(12)):
        with pytest.raises(UnavailableError, match="does not end"):
            parse_device_stream(HEAD + bent, [cpu()])
    with pytest.raises(UnavailableError, match="too many"):
        many = b"\x05\x12cpu/steal_time_msr" + bytes(12)
        parse_device_stream(HEAD + section[:-5] + 64 * many + section[-5:], [cpu()])


def test_a_vcpu_without_section_makes_all_of_it_unavailable() -> None:
    stream = device_stream([cpu(0)], [SYSTEM])
    with pytest.raises(UnavailableError, match="CPU 1 are not known"):
        parse_device_stream(stream, [cpu(0), cpu(1)])


def test_another_version_is_not_read() -> None:
    stream = device_stream([cpu()], [SYSTEM])
    with pytest.raises(UnavailableError, match="no section"):
        parse_device_stream(stream.replace(b"\x00\x00\x00\x0c", b"\x00\x00\x00\x0d"), [cpu()])
    with pytest.raises(MalformedError, match="known version"):
        parse_device_stream(stream.replace(b"QEVM\x00\x00\x00\x03", b"QEVM\x00\x00\x00\x04"), [cpu()])
    with pytest.raises(MalformedError, match="at most"):
        parse_device_stream(HEAD + bytes(4 << 20), [cpu()])


def test_thousands_of_headers_are_not_tried() -> None:
    header = cpu_section(cpu(), SYSTEM)[:17]
    with pytest.raises(UnavailableError, match="too much"):
        parse_device_stream(HEAD + header * 50_000 + cpu_section(cpu(), SYSTEM), [cpu()])


@given(some.data())
def test_a_bent_stream_is_read_as_it_was_or_not_at_all(data: some.DataObject) -> None:
    """Where a byte is bent, it is refused, or the byte is in a register that nothing else shows."""
    stream = bytearray(device_stream([cpu()], [SYSTEM]))
    place = data.draw(some.integers(0, len(stream) - 1))
    stream[place] ^= data.draw(some.integers(1, 255))
    end = data.draw(some.integers(0, len(stream)))
    for bent in (bytes(stream), bytes(stream[:end])):
        try:
            (saved,) = parse_device_stream(bent, [cpu()])
        except AffiantError:
            continue
        assert saved.gdt == cpu().gdt
        assert saved.instruction_pointer == cpu().instruction_pointer
