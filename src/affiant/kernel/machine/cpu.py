"""The state of one vCPU, from the text of QEMU's `info registers`.

The text comes from QEMU, not from the guest, but the guest chose most of the numbers in it: they
are where the monitor starts to look, never what it believes. LSTAR and the other system call registers
are not in this listing: see `affiant.kernel.machine.device_stream`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TypeVar

from affiant.model.errors import MalformedError

__all__ = ["CpuState", "DescriptorTable", "SegmentRegister", "parse_registers"]

_T = TypeVar("_T")

_LONGEST_LISTING = 64 << 10
_CR0_PE, _CR0_WP, _CR0_PG = 1 << 0, 1 << 16, 1 << 31
_CR4_LA57 = 1 << 12
_EFER_LMA = 1 << 10
_ADDRESS_BITS = 0x000F_FFFF_FFFF_F000

_VALUE = re.compile(r"\b([A-Z][A-Z0-9]{1,4}) ?=([0-9a-f]+)\b")
_SEGMENT = re.compile(
    r"^(ES|CS|SS|DS|FS|GS|LDT|TR) ?=([0-9a-f]{4}) ([0-9a-f]{8,16}) ([0-9a-f]{8}) ([0-9a-f]{8})"
)
_TABLE = re.compile(r"^(GDT|IDT)= +([0-9a-f]{8,16}) ([0-9a-f]{8})$")
_HEADER = re.compile(r"^CPU#(\d{1,5})$")
# Lines that hold `NAME=value` pairs we read; everything else (FPU, vectors) is none of our business.
_PAIR_LINES = (
    "RAX=",
    "RSI=",
    "R8 =",
    "R12=",
    "EAX=",
    "ESI=",
    "RIP=",
    "EIP=",
    "CR0=",
    "DR0=",
    "DR6=",
    "EFER=",
)


@dataclass(frozen=True, slots=True)
class SegmentRegister:
    """A segment register with its hidden part; `flags` is QEMU's descriptor word."""

    selector: int
    base: int
    limit: int
    flags: int


@dataclass(frozen=True, slots=True)
class DescriptorTable:
    """GDTR or IDTR."""

    base: int
    limit: int


@dataclass(frozen=True, slots=True)
class CpuState:
    """Unverified registers of one vCPU at one moment.

    `segments` maps ES, CS, SS, DS, FS, GS, LDT and TR. `debug` holds DR0-DR3, `dr6`, `dr7` the
    rest.
    """

    index: int
    instruction_pointer: int
    flags: int
    privilege: int
    halted: bool
    in_system_management: bool
    cr0: int
    cr2: int
    cr3: int
    cr4: int
    efer: int
    gdt: DescriptorTable
    idt: DescriptorTable
    segments: dict[str, SegmentRegister]
    debug: tuple[int, int, int, int]
    dr6: int
    dr7: int

    @property
    def paging_levels(self) -> int:
        """5 or 4 when the CPU runs with IA-32e paging (SDM vol. 3A, 4.1.1), else 0."""
        if not (self.cr0 & _CR0_PE and self.cr0 & _CR0_PG and self.efer & _EFER_LMA):
            return 0
        return 5 if self.cr4 & _CR4_LA57 else 4

    @property
    def page_table(self) -> int:
        """Physical address of the top-level table: CR3 without PCID and cache bits."""
        return self.cr3 & _ADDRESS_BITS

    @property
    def write_protect(self) -> bool:
        """CR0.WP: whether read-only pages are read-only to the kernel as well."""
        return bool(self.cr0 & _CR0_WP)


def parse_registers(text: str, *, index: int = 0) -> CpuState:
    """Return the vCPU's state from one `info registers` listing of an x86 guest.

    `index` numbers the CPU when the listing has no `CPU#n` line. Raises MalformedError if a
    register is missing, appears twice, or the text is longer than 64 KiB. Listings of real-mode
    and 32-bit CPUs (EIP instead of RIP) are read as well.
    """
    if len(text) > _LONGEST_LISTING:
        raise MalformedError(f"a register listing of {len(text)} characters exceeds {_LONGEST_LISTING}")
    values: dict[str, int] = {}
    segments: dict[str, SegmentRegister] = {}
    tables: dict[str, DescriptorTable] = {}
    for line in text.splitlines():
        line = line.strip()
        if header := _HEADER.match(line):
            _once(values, "CPU", int(header[1]))
            index = int(header[1])
        elif segment := _SEGMENT.match(line):
            _once(segments, segment[1], SegmentRegister(*(int(part, 16) for part in segment.groups()[1:])))
        elif table := _TABLE.match(line):
            _once(tables, table[1], DescriptorTable(int(table[2], 16), int(table[3], 16)))
        elif line.startswith(_PAIR_LINES):
            for name, value in _VALUE.findall(line):
                if len(value) > 16:
                    raise MalformedError(f"register {name} is wider than 64 bits")
                _once(values, name, int(value, 16))
    try:
        return _state(index, values, segments, tables)
    except KeyError as error:
        raise MalformedError(f"a register listing without {error.args[0]}") from error


def _once(into: dict[str, _T], name: str, value: _T) -> None:
    if name in into:
        raise MalformedError(f"register {name} is listed twice")
    into[name] = value


def _state(
    index: int,
    values: dict[str, int],
    segments: dict[str, SegmentRegister],
    tables: dict[str, DescriptorTable],
) -> CpuState:
    for name in ("ES", "CS", "SS", "DS", "FS", "GS", "LDT", "TR"):
        if name not in segments:
            raise KeyError(name)
    return CpuState(
        index=index,
        instruction_pointer=values["RIP"] if "RIP" in values else values["EIP"],
        flags=values["RFL"] if "RFL" in values else values["EFL"],
        privilege=values["CPL"],
        halted=bool(values["HLT"]),
        in_system_management=bool(values["SMM"]),
        cr0=values["CR0"],
        cr2=values["CR2"],
        cr3=values["CR3"],
        cr4=values["CR4"],
        efer=values["EFER"],
        gdt=tables["GDT"],
        idt=tables["IDT"],
        segments=segments,
        debug=(values["DR0"], values["DR1"], values["DR2"], values["DR3"]),
        dr6=values["DR6"],
        dr7=values["DR7"],
    )
