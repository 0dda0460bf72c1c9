"""The interrupt descriptor table: each gate leads to the handler that its vector was built for.

The kernel fills its table from arrays of `struct idt_data` in its init data, then with stubs for
device interrupts (idt_setup_*() in arch/x86/kernel/idt.c). The arrays come from the reference. A gate is
compared whole: handler, segment, stack, type and privilege (SDM vol. 3A, 6.14.1).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from affiant.kernel.cpu_state.deviation import Deviation
from affiant.kernel.machine.cpu import CpuState
from affiant.kernel.machine.paging import AddressSpace
from affiant.kernel.objects.program import KernelProgram
from affiant.model.errors import MalformedError, UnavailableError

__all__ = ["ExpectedGates", "expected_gates", "interrupt_deviations"]

_GATES: Final = 256
_SIZE: Final = 16
_ENTRY: Final = "struct idt_data"
_ARRAYS: Final = ("early_idts", "early_pf_idts", "def_idts", "apic_idts")  # in the order of their use
_OPTIONAL: Final = ("ia32_idt",)  # since 6.7, when 32-bit system calls are on
_EXCEPTIONS: Final = 32
_KERNEL_SEGMENT: Final = 0x10
_INTERRUPT_GATE: Final = 0x8E00  # present, privilege 0, 64-bit interrupt gate, no stack of its own
# What a kernel installs when it finds that it is the guest of such a hypervisor.
_HYPERVISOR_HANDLERS: Final = (
    "asm_sysvec_acrn_hv_callback",
    "asm_sysvec_hyperv_callback",
    "asm_sysvec_hyperv_reenlightenment",
    "asm_sysvec_hyperv_stimer0",
    "asm_sysvec_kvm_asyncpf_interrupt",
    "asm_sysvec_xen_hvm_callback",
)


@dataclass(frozen=True, slots=True)
class ExpectedGates:
    """For each vector the gates that may stand there, as 16 bytes each, and where the table lies."""

    gates: tuple[frozenset[bytes], ...]
    physical: int
    symbols: Mapping[bytes, str]


def expected_gates(program: KernelProgram) -> ExpectedGates:
    """Return what the table of this kernel must hold at this slide.

    Raises UnavailableError or MalformedError if the reference does not tell.
    """
    fixed: dict[int, bytes] = {}
    for name in _ARRAYS:
        fixed |= dict(_array(program, name))
    optional = {vector: gate for name in _OPTIONAL for vector, gate in _array(program, name)}
    if not fixed:
        raise UnavailableError("the reference does not tell what the interrupt table holds")
    irq, spurious, early = (
        _symbol(program, name)
        for name in ("irq_entries_start", "spurious_entries_start", "early_idt_handler_array")
    )
    stub = (irq[1] + spurious[1]) // (_GATES - _EXCEPTIONS)
    first_system = _EXCEPTIONS + irq[1] // stub if stub else 0
    if (
        stub not in (8, 16)
        or not _EXCEPTIONS < first_system < _GATES
        or early[1] // _EXCEPTIONS not in (9, 13)
    ):
        raise UnavailableError("the reference's interrupt stubs have an unknown form")
    handlers = (program.find(name) for name in _HYPERVISOR_HANDLERS)
    system = frozenset(_gate(handler) for handler in handlers if handler is not None)
    gates: list[frozenset[bytes]] = []
    for vector in range(_GATES):
        if vector in fixed:
            allowed = frozenset({fixed[vector]})
        elif vector < _EXCEPTIONS:
            allowed = frozenset({_gate(early[0] + early[1] // _EXCEPTIONS * vector)})
        elif vector < first_system:
            allowed = frozenset({_gate(irq[0] + stub * (vector - _EXCEPTIONS))})
        else:
            allowed = frozenset({_gate(spurious[0] + stub * (vector - first_system))}) | system
        gates.append(allowed | {optional[vector]} if vector in optional else allowed)
    table = program.location.physical(program.address("idt_table"))
    names = {gate: program.describe(_handler(gate)) for allowed in gates for gate in allowed}
    return ExpectedGates(tuple(gates), table, names)


def interrupt_deviations(cpu: CpuState, space: AddressSpace, expected: ExpectedGates) -> Iterator[Deviation]:
    """Yield what is wrong with one vCPU's interrupt table.

    Raises MemoryFault if the table cannot be read.
    """
    where = f"CPU {cpu.index}"
    if cpu.idt.limit != _GATES * _SIZE - 1:
        yield _deviation(cpu, f"IDTR limit of {where}", f"{_GATES * _SIZE - 1:#x}", f"{cpu.idt.limit:#x}")
    page = space.translate(cpu.idt.base)
    if page.physical != expected.physical:
        yield _deviation(
            cpu, f"IDTR of {where}", f"idt_table at {expected.physical:#x}", f"{page.physical:#x}"
        )
    if page.writable:
        yield _deviation(cpu, f"IDT mapping of {where}", "read-only", f"writable at {cpu.idt.base:#x}")
    table = space.read(cpu.idt.base, _GATES * _SIZE)
    for vector in range(_GATES):
        gate = table[_SIZE * vector : _SIZE * vector + _SIZE]
        if gate not in expected.gates[vector]:
            allowed = sorted(expected.gates[vector])
            wanted = " or ".join(expected.symbols[one] or f"{_handler(one):#x}" for one in allowed[:2])
            yield _deviation(
                cpu,
                f"IDT gate {vector:#x} of {where}",
                f"{wanted} ({allowed[0].hex()})" if allowed else "none",
                f"{_handler(gate):#x} ({gate.hex()})",
            )


def _deviation(cpu: CpuState, subject: str, expected: str, found: str) -> Deviation:
    return Deviation(cpu.index, "interrupts", subject, expected, found)


def _array(program: KernelProgram, name: str) -> Iterator[tuple[int, bytes]]:
    """Yield (vector, gate) of an array of `struct idt_data`, as linked and relocated."""
    found = program.reference.symbols.unique(name)
    if found is None:
        return
    offsets = {field: program.offset(_ENTRY, field) for field in ("vector", "segment", "bits", "addr")}
    size = program.size(_ENTRY)
    section = next((part for part in program.reference.sections if part.holds(found.address)), None)
    if section is None or found.size > 1 << 14:
        raise MalformedError(f"the reference's {name} is no table of interrupt gates")
    data = program.reference.relocated_section(section.name, program.location.slide)
    start = found.address - section.load_address
    table = data[start : start + found.size].tobytes()
    for at in range(0, len(table) - size + 1, size):
        entry = table[at : at + size]
        vector, segment, bits, address = (
            int.from_bytes(entry[offsets[field] : offsets[field] + width], "little")
            for field, width in (("vector", 4), ("segment", 4), ("bits", 2), ("addr", 8))
        )
        if address:
            if vector >= _GATES:
                raise MalformedError(f"the reference's {name} names vector {vector}")
            yield vector, _gate(address, segment=segment, bits=bits)


def _symbol(program: KernelProgram, name: str) -> tuple[int, int]:
    found = program.reference.symbols.unique(name)
    if found is None:
        raise UnavailableError(f"the kernel has no single symbol {name}")
    return program.running(found.address), found.size


def _gate(handler: int, *, segment: int = _KERNEL_SEGMENT, bits: int = _INTERRUPT_GATE) -> bytes:
    parts = (
        (handler & 0xFFFF, 2),
        (segment, 2),
        (bits, 2),
        (handler >> 16 & 0xFFFF, 2),
        (handler >> 32, 4),
        (0, 4),
    )
    return b"".join((value & (1 << 8 * width) - 1).to_bytes(width, "little") for value, width in parts)


def _handler(gate: bytes) -> int:
    value = int.from_bytes(gate, "little")
    return (value & 0xFFFF) | (value >> 32 & 0xFFFF_0000) | (value >> 64 & 0xFFFF_FFFF) << 32
