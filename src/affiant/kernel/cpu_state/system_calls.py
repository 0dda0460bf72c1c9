"""System call registers: where SYSCALL and SYSENTER enter the kernel, and with which flags and segments.

The kernel writes them once on each CPU (syscall_init() in arch/x86/kernel/cpu/common.c) and never again:
whatever else stands there was put there by somebody else. Entries are symbols of the reference;
selectors and mask are constants in the code of syscall_init(). With FRED (since 6.9, CR4.FRED) none of
them is used: events enter at the page that IA32_FRED_CONFIG names, which QEMU's stream does not tell.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from affiant.kernel.cpu_state.deviation import Deviation
from affiant.kernel.cpu_state.segments import ExpectedSegments
from affiant.kernel.machine.saved_cpu import SavedCpu
from affiant.kernel.objects.program import KernelProgram
from affiant.model.errors import UnavailableError

__all__ = ["REGISTERS", "ExpectedEntries", "expected_entries", "system_call_deviations"]

REGISTERS: Final = 7
"""STAR, LSTAR, CSTAR, SYSCALL_MASK, SYSENTER_CS, SYSENTER_ESP and SYSENTER_EIP."""

_KERNEL_CODE, _USER_CODE_32 = 0x10, 0x23
_SELECTORS: Final = _USER_CODE_32 << 16 | _KERNEL_CODE
# All flags that SYSCALL clears since 5.12 (commit 6afbb58cc249); TF, DF, IF, IOPL, AC and NT before that.
_MASKS: Final = (0x257FD5, 0x47700)
_LONGEST_FUNCTION: Final = 1 << 12
# Where 32-bit system calls go when there are none; the name changed with 6.7 (commit 370dcd58548b).
_IGNORING: Final = ("entry_SYSCALL32_ignore", "ignore_sysret")


@dataclass(frozen=True, slots=True)
class ExpectedEntries:
    """What each register may hold on every CPU; SYSENTER_ESP is counted from the CPU's entry area."""

    star: int
    lstar: int
    cstar: frozenset[int]
    syscall_mask: int
    sysenter_eip: int
    sysenter_stack: int


def expected_entries(program: KernelProgram, segments: ExpectedSegments | None) -> ExpectedEntries:
    """Return what this kernel writes; raises UnavailableError if the reference does not tell."""
    if segments is None:
        raise UnavailableError("the reference does not tell the stack that SYSENTER enters with")
    code = _code(program, "syscall_init")
    mask = next((mask for mask in _MASKS if mask.to_bytes(4, "little") in code), None)
    if mask is None or _SELECTORS.to_bytes(4, "little") not in code:
        raise UnavailableError("the reference's syscall_init has an unknown form")
    compat = program.find("entry_SYSCALL_compat")
    return ExpectedEntries(
        star=_SELECTORS << 32,
        lstar=program.address("entry_SYSCALL_64"),
        # Intel's processors ignore CSTAR, and the kernel leaves it at 0 there (commit 8bcd8db6e3a5).
        cstar=frozenset(
            {0, *(place for place in (compat, *map(program.find, _IGNORING)) if place is not None)}
        ),
        syscall_mask=mask,
        sysenter_eip=program.address("entry_SYSENTER_compat") if compat is not None else 0,
        sysenter_stack=segments.entry_stack_top,
    )


def system_call_deviations(
    cpu: SavedCpu, program: KernelProgram, expected: ExpectedEntries
) -> Iterator[Deviation]:
    """Yield each register that leads elsewhere. Raises UnavailableError for a CPU that uses others."""
    if cpu.delivers_events_by_fred:
        raise UnavailableError("events enter by FRED, whose registers QEMU's device state does not tell")
    for name, found, right in (
        ("STAR", cpu.star, expected.star),
        ("SYSCALL_MASK", cpu.syscall_mask, expected.syscall_mask),
    ):
        if found != right:
            yield _deviation(cpu, name, f"{right:#x}", f"{found:#x}")
    yield from _entry(cpu, program, "LSTAR", cpu.lstar, frozenset({expected.lstar}))
    yield from _entry(cpu, program, "CSTAR", cpu.cstar, expected.cstar)
    # With 32-bit system calls switched off, SYSENTER faults on a null selector, wherever it leads.
    if cpu.sysenter_cs == 0:
        return
    if cpu.sysenter_cs != _KERNEL_CODE:
        yield _deviation(cpu, "SYSENTER_CS", f"{_KERNEL_CODE:#x} or 0", f"{cpu.sysenter_cs:#x}")
    yield from _entry(cpu, program, "SYSENTER_EIP", cpu.sysenter_eip, frozenset({expected.sysenter_eip}))
    stack = cpu.gdt.base + expected.sysenter_stack
    if cpu.sysenter_esp != stack:
        yield _deviation(cpu, "SYSENTER_ESP", f"{stack:#x}", f"{cpu.sysenter_esp:#x}")


def _entry(
    cpu: SavedCpu, program: KernelProgram, register: str, found: int, allowed: frozenset[int]
) -> Iterator[Deviation]:
    if found not in allowed:
        wanted = " or ".join(_place(program, address) for address in sorted(allowed, reverse=True))
        yield _deviation(cpu, register, wanted, _place(program, found))


def _code(program: KernelProgram, name: str) -> bytes:
    found = program.reference.symbols.unique(name)
    if found is None:
        raise UnavailableError(f"the kernel has no single function {name}")
    try:
        return bytes(program.reference.read(found.address, min(found.size, _LONGEST_FUNCTION)))
    except KeyError:
        raise UnavailableError(f"the reference does not store {name}") from None


def _place(program: KernelProgram, address: int) -> str:
    return f"{program.describe(address) or 'outside the kernel image'} ({address:#x})" if address else "0"


def _deviation(cpu: SavedCpu, register: str, expected: str, found: str) -> Deviation:
    return Deviation(cpu.index, "system calls", f"{register} of CPU {cpu.index}", expected, found)
