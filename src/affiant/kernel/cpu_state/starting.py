"""CPUs that are being started: their registers are not yet what they will be.

A CPU that is brought up comes out of reset on the tables of the code that starts it, below 1 MiB, then
runs on the per-CPU `gdt_page` itself, which is writable, and writes one register after the other until it is
set up (start_secondary() and cpu_init() in arch/x86/kernel). Last of all it is put on `__cpu_online_mask`.

How long that takes says nothing: where the host is short of time, or whoever asked for the CPU gave up
waiting, it waits in the middle of it for ever. What it does meanwhile says all: it runs the kernel's own
code in kernel mode, with interrupts off, on the kernel's own page tables or those of its starter. Registers
tell that, and no guest can forge them; where an address leads is told by the tables that they name. No
process runs on such a CPU, and no system call enters there. Whoever has a CPU with changed registers look so
has no use for them, and is found in the first look that finds it doing anything else.

That a CPU is off line is the guest's word, and no excuse by itself: one that was taken down is parked in
`play_dead` with all that it was set up with, and is compared.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Final, Protocol

from affiant.kernel.cpu_state.segments import ExpectedSegments, per_cpu_offset
from affiant.kernel.machine.cpu import DescriptorTable
from affiant.kernel.page_tables.address_roots import leads_to
from affiant.kernel.page_tables.fixed_code import real_mode_pages
from affiant.model.errors import AffiantError

if TYPE_CHECKING:
    from affiant.kernel.running_kernel import RunningKernel

__all__ = ["starting_cpus"]

_INTERRUPTS: Final = 1 << 9
_ADDRESS: Final = (1 << 64) - 1
_MOST_SECONDS: Final = 120.0
"""For how long a CPU may be on its way, the time aside in which it waits for another."""

_WAITS: Final = frozenset({"cpu_init", "start_secondary", "cpuhp_ap_sync_alive", "check_tsc_sync_target"})
"""Where it waits for the CPU that starts it: for its turn, for the others, for the same time stamps."""

_PARKED: Final = "_play_dead"


class _Cpu(Protocol):
    @property
    def index(self) -> int: ...
    @property
    def gdt(self) -> DescriptorTable: ...
    @property
    def instruction_pointer(self) -> int: ...
    @property
    def privilege(self) -> int: ...
    @property
    def flags(self) -> int: ...
    @property
    def halted(self) -> bool: ...
    @property
    def page_table(self) -> int: ...


def starting_cpus(
    guest: RunningKernel,
    cpus: Iterable[_Cpu],
    expected: ExpectedSegments | None,
    *,
    topic: str,
    moment: float,
) -> frozenset[int]:
    """Return the numbers of CPUs that are being started; `topic` keeps looks of two kinds apart."""
    every = list(cpus)
    online = _online(guest, max((cpu.index for cpu in every), default=0))
    starter = real_mode_pages(guest.program, guest.kernel_space) or (0, 0)
    found: set[int] = set()
    waiting: set[int] = set()
    for cpu in every:
        early = not online >> cpu.index & 1 or _on_early_table(guest, cpu, expected, starter)
        if early and _sets_itself_up(guest, cpu, starter):
            found.add(cpu.index)
            if _function(guest, cpu) in _WAITS:
                waiting.add(cpu.index)
    # Who waits in between gains no time by it.
    lasting = guest.patience.settled(topic, found, moment, seconds=_MOST_SECONDS, resting=waiting)
    return frozenset(found - lasting)


def _sets_itself_up(guest: RunningKernel, cpu: _Cpu, starter: tuple[int, int]) -> bool:
    """Tell by the CPU's registers, and the tables that it is on, whether it does what a starting one does."""
    if cpu.privilege or cpu.flags & _INTERRUPTS or cpu.halted:
        return False
    if cpu.page_table != guest.location.root and not _within(cpu.page_table, starter):
        return False
    address = cpu.instruction_pointer
    if guest.text.start <= address < guest.text.end:
        place = guest.location.physical(address)
    elif _within(address, starter):
        place = address  # its tables map memory there where it is
    else:
        return False
    # The tables of the starter lie in memory that anybody in the kernel may write.
    ours = leads_to(guest.kernel_space, cpu.page_table, address, place)
    return ours and not _function(guest, cpu).endswith(_PARKED)


def _function(guest: RunningKernel, cpu: _Cpu) -> str:
    return guest.program.describe(cpu.instruction_pointer).partition("+")[0]


def _within(address: int, pages: tuple[int, int]) -> bool:
    return pages[0] <= address < pages[0] + pages[1]


def _online(guest: RunningKernel, last: int) -> int:
    try:
        mask = guest.program.read(guest.program.address("__cpu_online_mask"), 8 * (last // 64 + 1))
    except AffiantError:
        return (1 << last + 1) - 1
    return int.from_bytes(mask, "little")


def _on_early_table(
    guest: RunningKernel, cpu: _Cpu, expected: ExpectedSegments | None, starter: tuple[int, int]
) -> bool:
    if expected is None:
        return False
    if _within(cpu.gdt.base, starter):
        return True
    try:
        physical = guest.kernel_space.translate(cpu.gdt.base).physical
        own = per_cpu_offset(guest.program, guest.kernel_space, expected, physical)
    except AffiantError:
        return False
    return own is not None and cpu.gdt.base == own + expected.gdt_page & _ADDRESS
