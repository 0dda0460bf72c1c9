"""Makes device state streams as QEMU writes them, for vCPUs whose listing is given."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from affiant.kernel.machine.cpu import CpuState

__all__ = ["SystemRegisters", "cpu_section", "device_stream"]

HEAD = b"QEVM\x00\x00\x00\x03"
_SEGMENTS = ("ES", "CS", "SS", "DS", "FS", "GS", "LDT", "TR")


@dataclass(frozen=True, slots=True)
class SystemRegisters:
    """What a listing does not show."""

    star: int = 0x0023_0010_0000_0000
    lstar: int = 0
    cstar: int = 0
    syscall_mask: int = 0x25_7FD5
    kernel_gs_base: int = 0
    sysenter_cs: int = 0x10
    sysenter_esp: int = 0
    sysenter_eip: int = 0
    pat: int = 0x0407_0506_0007_0106


def cpu_section(
    cpu: CpuState,
    system: SystemRegisters,
    *,
    subsections: Mapping[str, bytes] | None = None,
    number: int = 5,
    index: int | None = None,
    vectors: bytes = bytes(256),
) -> bytes:
    """Return one vCPU's section; `vectors` is what the guest has in XMM0-XMM15."""

    def segment(name: str) -> bytes:
        register = cpu.segments[name]
        flags = register.flags | register.base >> 16 & 0xFF  # the whole word, as a processor loads it
        return struct.pack(">IQII", register.selector, register.base, register.limit, flags)

    fields = b"".join(
        (
            bytes(16 * 8),
            struct.pack(">QQI", cpu.instruction_pointer, 0x246, 0),
            bytes(8 + 80),
            *map(segment, _SEGMENTS),
            struct.pack(">IQII", 0, cpu.gdt.base, cpu.gdt.limit, 0),
            struct.pack(">IQII", 0, cpu.idt.base, cpu.idt.limit, 0),
            struct.pack(">IQQ", system.sysenter_cs, system.sysenter_esp, system.sysenter_eip),
            struct.pack(">4Q", cpu.cr0, cpu.cr2, cpu.cr3, cpu.cr4),
            struct.pack(">8Q", *cpu.debug, 0, 0, cpu.dr6, cpu.dr7),
            bytes(8),
            vectors,
            struct.pack(">4Q", cpu.efer, system.star, system.lstar, system.cstar),
            struct.pack(">QQ", system.syscall_mask, system.kernel_gs_base),
            struct.pack(">IQI", 0x30000, system.pat, 0),
            bytes(4 * 8 + 4 * 2 + 4 + 1),
            bytes((11 + 1 + 16) * 8),
            bytes(4 + 4 + 8 + 4 + 4 + 4),
            bytes((3 + 40) * 8),
            bytes(3 * 8 + 34 * 8),
        )
    )
    parts = b"".join(
        b"\x05" + bytes([len(name)]) + name.encode() + struct.pack(">I", 1) + content
        for name, content in (subsections or {}).items()
    )
    instance = cpu.index if index is None else index
    head = b"\x04" + struct.pack(">I", number) + b"\x03cpu" + struct.pack(">II", instance, 12)
    return head + fields + parts + b"\x7e" + struct.pack(">I", number)


def device_stream(cpus: Sequence[CpuState], system: Sequence[SystemRegisters]) -> bytes:
    """Return a stream with a timer before the vCPUs and a device behind them."""
    timer = b"\x04" + struct.pack(">I", 0) + b"\x05timer" + struct.pack(">II", 0, 2) + bytes(24)
    sections = [
        cpu_section(cpu, registers, number=5 + 4 * place)
        for place, (cpu, registers) in enumerate(zip(cpus, system, strict=True))
    ]
    return HEAD + timer + b"\x7e" + bytes(4) + b"".join(sections) + bytes(100) + b"\x00"
