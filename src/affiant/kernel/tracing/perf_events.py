"""Perf events: counters and tracing events with the functions and programs that they enter.

kernel/events/core.c. Each event is on the list of a context: of a processor, or of a task. Tasks have none
unless the kernel's switch for events of tasks is on, which its code agrees with (a jump label).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from affiant.kernel.objects.program import KernelProgram
from affiant.kernel.walks.elements import processors
from affiant.kernel.walks.idr import idr_elements
from affiant.kernel.walks.known_walks import looked_through
from affiant.kernel.walks.lists import list_entries
from affiant.kernel.walks.snapshot import Snapshot
from affiant.model.errors import MalformedError
from affiant.model.query import Path

if TYPE_CHECKING:
    from affiant.kernel.running_kernel import RunningKernel

__all__ = ["PerfEvent", "PerfLook", "read_perf_events"]

_EVENT: Final = "struct perf_event"
_CONTEXT: Final = "struct perf_event_context"
_CPU_CONTEXT: Final = "struct perf_cpu_context"
_PMU: Final = "struct pmu"
_TASK: Final = "struct task_struct"
_SIGNALS: Final = "struct signal_struct"
_PMUS: Final = Path("pmu_idr", (), "struct idr")
_MOST_PMUS: Final = 1024
_MOST_EVENTS: Final = 1 << 16
_MOST_TASKS: Final = 1 << 16


@dataclass(frozen=True, slots=True)
class PerfEvent:
    """An event calls `handler` when it overflows; `program` is its own, `call` the trace event it is for.

    `where` says whose it is. Addresses; 0 for none.
    """

    where: str
    address: int
    handler: int
    program: int
    call: int


@dataclass(frozen=True, slots=True)
class PerfLook:
    """All events of one moment; `contexts` counts the lists that they hang on."""

    contexts: int
    events: tuple[PerfEvent, ...]


def read_perf_events(kernel: RunningKernel, memory: Snapshot) -> PerfLook:
    """Return the events of all processors and tasks; a kernel without perf has none.

    Raises MemoryFault or MalformedError where a list cannot be followed, and what `Snapshot` raises.
    """
    program = kernel.program
    if not program.has_type(_EVENT) or program.find("perf_sched_events") is None:
        return PerfLook(0, ())
    return looked_through(memory, _every_event, vcpus=len(kernel.cpus))


def _every_event(program: KernelProgram, memory: Snapshot, *, vcpus: int) -> PerfLook:
    contexts = dict(_of_processors(program, memory, vcpus))
    contexts |= dict(_of_tasks(program, memory))
    events: dict[int, PerfEvent] = {}
    for context, where in contexts.items():
        head = context + program.offset(_CONTEXT, "event_list")
        link = program.offset(_EVENT, "event_entry")
        for address in list_entries(memory, head, offset=link, maximum=_MOST_EVENTS):
            memory.budget.step()
            if len(events) >= _MOST_EVENTS:
                raise MalformedError(f"there are more than {_MOST_EVENTS} perf events")
            events[address] = _event(program, memory, address, where)
    return PerfLook(len(contexts), tuple(events.values()))


def _event(program: KernelProgram, memory: Snapshot, address: int, where: str) -> PerfEvent:
    handler, held, call = (
        memory.word(address + program.offset(_EVENT, member)) if program.has(_EVENT, member) else 0
        for member in ("overflow_handler", "prog", "tp_event")
    )
    return PerfEvent(where, address, handler, held, call)


def _of_processors(program: KernelProgram, memory: Snapshot, vcpus: int) -> Iterator[tuple[int, str]]:
    inner = program.offset(_CPU_CONTEXT, "ctx")
    common = program.find("perf_cpu_context")
    # One context for each kind of counter until Linux 6.2 (commit bd2756811766).
    instances = _of_pmus(program, memory) if common is None else {common}
    offsets = program.address("__per_cpu_offset")
    for number in processors(program, memory, vcpus=vcpus):
        distance = memory.word(offsets + 8 * number)
        for instance in instances:
            yield (instance + distance) % (1 << 64) + inner, f"CPU {number}"


def _of_pmus(program: KernelProgram, memory: Snapshot) -> set[int]:
    """Return the per-CPU contexts of all kinds of counters; those of software share theirs."""
    kinds = [address for _, address in idr_elements(program, memory, _PMUS, _PMU, most=_MOST_PMUS)]
    software = program.find("perf_swevent")
    if software is not None:
        kinds.append(software)
    place = program.offset(_PMU, "pmu_cpu_context")
    return {memory.word(kind + place) for kind in kinds} - {0}


def _of_tasks(program: KernelProgram, memory: Snapshot) -> Iterator[tuple[int, str]]:
    enabled = program.member("struct static_key", "enabled")
    switch = program.address("perf_sched_events") + enabled.offset
    if not int.from_bytes(memory.read(switch, enabled.size), "little"):
        return
    # An array of two until Linux 6.2.
    member = program.member(_TASK, "perf_event_ctxp")
    pid = program.member(_TASK, "pid")
    for thread in _threads(program, memory):
        for place in range(0, member.size, 8):
            context = memory.word(thread + member.offset + place)
            if context:
                number = int.from_bytes(memory.read(thread + pid.offset, pid.size), "little")
                yield context, f"task {number}"


def _threads(program: KernelProgram, memory: Snapshot) -> Iterator[int]:
    link, node = program.offset(_TASK, "tasks"), program.offset(_TASK, "thread_node")
    head = program.address("init_task") + link
    seen = 0
    for leader in list_entries(memory, head, offset=link, maximum=_MOST_TASKS):
        signals = memory.word(leader + program.offset(_TASK, "signal"))
        threads = signals + program.offset(_SIGNALS, "thread_head")
        for thread in list_entries(memory, threads, offset=node, maximum=_MOST_TASKS):
            memory.budget.step()
            seen += 1
            if seen > _MOST_TASKS:
                raise MalformedError(f"there are more than {_MOST_TASKS} threads")
            yield thread
