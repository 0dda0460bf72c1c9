"""Processors: interrupt gates, descriptors and stacks that are not those of the build.

What is changed is harmless as long as nobody uses it.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, Final

from affiant.kernel.cpu_state.interrupts import expected_gates
from affiant.kernel.objects.slide import KERNEL_MAP
from lab.live_guest import LiveGuest
from lab.tamper.technique import Technique

__all__ = ["PROCESSOR_TECHNIQUES", "without_write_protection"]


@contextmanager
def _redirect_gate(live: LiveGuest, vector: int = 0xEE, target: str = "tcp4_seq_show") -> Iterator[str]:
    """Point an unused interrupt gate to another function of the kernel."""
    program = live.guest.program
    table = expected_gates(program).physical
    gate = bytearray(live.memory.read(table + 16 * vector, 16))
    handler = program.address(target)
    gate[0:2] = (handler & 0xFFFF).to_bytes(2, "little")
    gate[6:12] = (handler >> 16).to_bytes(6, "little")
    with live.physically_changed(table + 16 * vector, bytes(gate)):
        yield f"IDT gate {vector:#x} of CPU 0"


@contextmanager
def _redirect_page_fault(live: LiveGuest) -> Iterator[str]:
    """Let user mode raise a page fault by instruction: one bit pair of a gate, its handler untouched."""
    table = expected_gates(live.guest.program).physical
    gate = bytearray(live.memory.read(table + 16 * 14, 16))
    gate[5] |= 0x60
    with live.physically_changed(table + 16 * 14, bytes(gate)):
        yield "IDT gate 0xe of CPU 0"


@contextmanager
def _insert_call_gate(live: LiveGuest) -> Iterator[str]:
    """Put a call gate for user mode into the unused entry 7 of the last CPU's GDT."""
    cpu = live.guest.cpus[-1]
    physical = live.guest.kernel_space.translate(cpu.gdt.base).physical
    target = live.guest.program.address("tcp4_seq_show")
    gate = (target & 0xFFFF) | 0x10 << 16 | 0xEC << 40 | (target >> 16 & 0xFFFF) << 48
    with live.physically_changed(physical + 8 * 7, gate.to_bytes(8, "little")):
        yield f"GDT entry 7 of CPU {cpu.index}"


@contextmanager
def _change_stack_of_exceptions(live: LiveGuest) -> Iterator[str]:
    """Name a stack in the last CPU's task state that no gate uses."""
    cpu = live.guest.cpus[-1]
    state = live.guest.kernel_space.translate(cpu.segments["TR"].base).physical
    with live.physically_changed(state + 36 + 8 * 6, (KERNEL_MAP + 0x100_0000).to_bytes(8, "little")):
        yield f"exception stack 7 of CPU {cpu.index}"


def without_write_protection(cpus: dict[str, Any]) -> dict[str, Any]:
    """Return the fact `cpus` as it reads when its last processor has cleared CR0.WP.

    Registers are the hypervisor's, so nothing that is written to memory changes them.
    """
    changed = copy.deepcopy(cpus)
    last = changed["cpus"][-1]
    last |= {"cr0": hex(int(last["cr0"], 16) & ~(1 << 16)), "write_protect": False}
    return changed


_cpu = partial(Technique, "processors", rule="processors_as_built")

PROCESSOR_TECHNIQUES: Final = (
    _cpu(
        "redirected_gate",
        about="An unused interrupt gate was pointed to tcp4_seq_show.",
        tamper=_redirect_gate,
        recorded=True,
    ),
    _cpu(
        "opened_gate",
        about="User mode may raise page faults itself.",
        tamper=_redirect_page_fault,
        recorded=True,
    ),
    _cpu(
        "call_gate",
        about="A call gate was put into the last CPU's GDT.",
        tamper=_insert_call_gate,
        recorded=True,
    ),
    _cpu(
        "exception_stack",
        about="The last CPU's task state names a stack that is none.",
        tamper=_change_stack_of_exceptions,
        recorded=True,
    ),
)
