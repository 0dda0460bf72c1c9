"""Register listings: read whole, or refused."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from affiant.kernel.machine.cpu import CpuState, parse_registers
from affiant.model.errors import MalformedError

VECTORS = Path(__file__).parents[3] / "vectors" / "registers"
HALTED = (VECTORS / "linux-6.1-halted.txt").read_text()
REAL_MODE = (VECTORS / "real-mode-reset.txt").read_text()


def test_a_kernel_vcpu_is_read() -> None:
    cpu = parse_registers(HALTED)
    assert cpu.index == 0
    assert cpu.instruction_pointer >> 40 == 0xFFFFFF
    assert (cpu.privilege, cpu.halted, cpu.in_system_management) == (0, True, False)
    assert cpu.paging_levels == 5
    assert cpu.page_table == cpu.cr3 & ~0xFFF
    assert (cpu.idt.base, cpu.idt.limit) == (0xFFFFFE0000000000, 0xFFF)
    assert cpu.gdt.limit == 0x7F
    assert cpu.segments["TR"].selector == 0x40
    assert cpu.segments["CS"].flags == 0x00AF9B00
    assert (cpu.dr6, cpu.dr7, cpu.debug) == (0xFFFF0FF0, 0x400, (0, 0, 0, 0))
    assert cpu.efer == 0xD01
    assert cpu.write_protect


def test_a_vcpu_in_real_mode_has_no_page_tables() -> None:
    cpu = parse_registers(REAL_MODE)
    assert cpu.instruction_pointer == 0xFFF0
    assert cpu.segments["CS"].base == 0xFFFF0000
    assert cpu.paging_levels == 0
    assert not cpu.write_protect


def test_pcid_bits_are_no_part_of_the_page_table() -> None:
    text = "\n".join(
        line.split("CR3=")[0] + "CR3=8000000001b0e123 CR4=00751eb0" if "CR3=" in line else line
        for line in HALTED.splitlines()
    )
    assert parse_registers(text).page_table == 0x1B0E000


def test_crlf_and_the_number_of_a_listing_without_header_are_accepted() -> None:
    body = HALTED.split("\n", 1)[1].replace("\n", "\r\n")
    assert parse_registers(body, index=3).index == 3


@pytest.mark.parametrize(
    "name", ["RIP", "RFL", "CPL", "CR0", "CR3", "CR4", "EFER", "IDT", "GDT", "TR", "DR7", "HLT"]
)
def test_a_listing_without_a_register_is_refused(name: str) -> None:
    with pytest.raises(MalformedError, match="without"):
        parse_registers(HALTED.replace(f"{name} =", "XX =").replace(f"{name}=", "xx="))


@pytest.mark.parametrize("name", ["CR3", "IDT", "CS "])
def test_a_register_listed_twice_is_refused(name: str) -> None:
    line = next(line for line in HALTED.splitlines() if f"{name}=" in line)
    with pytest.raises(MalformedError, match="twice"):
        parse_registers(HALTED + line)


def test_an_oversized_listing_is_refused() -> None:
    with pytest.raises(MalformedError, match="exceeds"):
        parse_registers(HALTED + "x" * (1 << 16))


def test_a_register_wider_than_the_machine_is_refused() -> None:
    with pytest.raises(MalformedError, match="64 bits"):
        parse_registers(HALTED.replace("RIP=", "RIP=1"))


@given(st.data())
def test_mutated_listings_are_read_or_refused(data: st.DataObject) -> None:
    start = data.draw(st.integers(0, len(HALTED)))
    end = data.draw(st.integers(start, len(HALTED)))
    text = HALTED[:start] + data.draw(st.text(max_size=20)) + HALTED[end:]
    with contextlib.suppress(MalformedError):
        assert isinstance(parse_registers(text), CpuState)
