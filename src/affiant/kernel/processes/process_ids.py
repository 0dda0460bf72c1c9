"""The process ids that the kernel has given out, and the process that each leads to.

This is what `kill` and /proc go by, independent of the list of tasks: a process that was taken off the
list to hide it is still found here, unless its id was taken away too, and then nobody can signal it.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from affiant.kernel.machine.memory import MemoryFault
from affiant.kernel.objects.program import KernelProgram
from affiant.kernel.walks.idr import idr_elements
from affiant.kernel.walks.known_walks import looked_through
from affiant.kernel.walks.snapshot import Budget, Snapshot
from affiant.model.errors import MalformedError
from affiant.model.query import Path

__all__ = ["ProcessId", "read_process_ids"]

_IDS: Final = Path("init_pid_ns", ("idr",), "struct pid_namespace")
_MOST_IDS: Final = 1 << 16
_SECONDS: Final = 1.0  # of this thread's processor time
_ATTEMPTS: Final = 3
_PID: Final = "struct pid"
_HLIST_NODE: Final = "struct hlist_node"


@dataclass(frozen=True, slots=True)
class ProcessId:
    """An id that a process has; `task` is the address of its first thread, `name` what that calls itself."""

    number: int
    task: int
    name: str


def read_process_ids(program: KernelProgram) -> tuple[ProcessId, ...]:
    """Return every process id of the first namespace, which all processes have.

    Ids of single threads, groups and sessions are left out. Raises UnavailableError where this kernel has
    no such tree or it takes too long, MalformedError or MemoryFault when it cannot be followed to its end
    three times in a row.
    """
    budget = Budget(seconds=_SECONDS, clock=time.thread_time)
    for attempt in range(_ATTEMPTS):
        budget.again()
        try:
            return looked_through(Snapshot(program, budget), _every_process)
        except (MemoryFault, MalformedError):
            if attempt + 1 == _ATTEMPTS:
                raise
    raise AssertionError("unreachable")  # pragma: no cover


def _every_process(program: KernelProgram, memory: Snapshot) -> tuple[ProcessId, ...]:
    return tuple(_processes(program, memory))


def _processes(program: KernelProgram, memory: Snapshot) -> Iterator[ProcessId]:
    ids = idr_elements(program, memory, _IDS, _PID, most=_MOST_IDS)
    # struct pid.tasks[PIDTYPE_TGID] heads the list of processes that have this id: one, or none.
    kind = program.constant("PIDTYPE_TGID")
    head = program.offset(_PID, "tasks") + 8 * kind
    link = program.offset("struct task_struct", "pid_links") + program.size(_HLIST_NODE) * kind
    name = program.offset("struct task_struct", "comm")
    for number, address in ids:
        first = memory.word(address + head)
        if first:
            task = (first - link) % (1 << 64)
            told = memory.text((task + name) % (1 << 64), 16).decode("utf-8", "backslashreplace")
            yield ProcessId(number, task, told)
