"""The demo's two tamperings, on the guest that the demo itself started.

They are what the simplest rootkits do, written from outside into guest RAM: a jump over the first
bytes of a function, and one entry of the system call table pointing elsewhere. Both are put back.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from affiant.inspect.registers import read_register_listings
from affiant.kernel.guest import Guest
from affiant.kernel.machine.cpu import parse_registers
from affiant.kernel.machine.memory import GuestMemory
from affiant.kernel.reference import ReferenceImage
from affiant.model.errors import SetupError
from affiant.vm.state import VmState

__all__ = ["HOOKED", "REDIRECTED", "tampered"]

HOOKED = "tcp4_seq_show"
"""What lists TCP connections: rootkits hook it to hide theirs."""

REDIRECTED = ("__x64_sys_kill", "__x64_sys_getpid")
"""The system call whose entry is changed, and where it then leads."""

# After the call site of ftrace: movabs rax, 0x1122334455667788; jmp rax. The address leads nowhere, so
# nothing in the guest may call the function meanwhile; the demo's guest has no network.
_HOOK_OFFSET = 5
_HOOK = bytes.fromhex("48b88877665544332211ffe0")


@dataclass(frozen=True, slots=True)
class _Change:
    address: int
    content: bytes


@contextmanager
def tampered(state: VmState) -> Iterator[None]:
    """Hook one function and redirect one system call meanwhile; afterwards all is as before.

    Raises `SetupError` where the machine has no reference image, `UnavailableError` while its kernel
    does not run.
    """
    if state.reference is None:
        raise SetupError(f"no reference image is known for {state.name!r}")
    with ExitStack() as stack:
        memory = stack.enter_context(
            GuestMemory.open(state.ram, memory_bytes=state.memory_bytes, below_4g_bytes=state.below_4g_bytes)
        )
        listings = read_register_listings(state.qmp)
        cpus = [parse_registers(text, index=index) for index, text in enumerate(listings)]
        guest = Guest.open(memory, ReferenceImage.load(state.reference), cpus)
        file = stack.enter_context(state.ram.open("r+b"))
        ram = stack.enter_context(mmap.mmap(file.fileno(), 0))
        for change in (_hook(guest), _redirection(guest)):
            physical = guest.kernel_space.translate(change.address).physical
            stack.enter_context(_changed(ram, physical, change.content))
        yield


def _hook(guest: Guest) -> _Change:
    return _Change(guest.program.address(HOOKED) + _HOOK_OFFSET, _HOOK)


def _redirection(guest: Guest) -> _Change:
    """Find the entry by its content in the reference: the number of a system call is not assumed."""
    function, target = (guest.program.address(name) for name in REDIRECTED)
    table = next(table for table in guest.syscall_tables if table.name == "sys_call_table")
    index = table.entries.tolist().index(function)
    return _Change(table.address + 8 * index, target.to_bytes(8, "little"))


@contextmanager
def _changed(ram: mmap.mmap, physical: int, content: bytes) -> Iterator[None]:
    """Have `content` at a physical address below the hole under 4 GiB, where the kernel image lies."""
    before = ram[physical : physical + len(content)]
    ram[physical : physical + len(content)] = content
    try:
        yield
    finally:
        ram[physical : physical + len(content)] = before
