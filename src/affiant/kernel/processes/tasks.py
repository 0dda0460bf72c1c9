"""The tasks on the kernel's list, and processes that only their id still leads to.

A process that is off the list is told as hidden when
it has been so for a while: one that ends is taken off the list and out of the ids one after the other.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from affiant.kernel.machine.memory import MemoryFault
from affiant.kernel.objects.program import KernelProgram
from affiant.kernel.processes.process_ids import ProcessId, read_process_ids
from affiant.kernel.transient.patience import Patience
from affiant.kernel.walks.lists import list_entries
from affiant.kernel.walks.struct_columns import StructColumns
from affiant.model.errors import AffiantError, MalformedError

__all__ = ["Task", "TaskView", "read_task_view", "read_tasks"]

_TASK = "struct task_struct"
_CREDENTIALS = "struct cred"
_MEMBERS = ("tasks.next", "pid", "comm", "flags", "mm", "real_cred")
_MOST_TASKS = 1 << 16
_ATTEMPTS = 3
_PF_KTHREAD = 0x0020_0000


@dataclass(frozen=True, slots=True)
class Task:
    """A process, by its thread group leader.

    `uid` is the real one, None where its credentials could not be read; `flags` are PF_*. `user_memory`
    tells whether it has the memory of a program.
    """

    pid: int
    name: str
    uid: int | None
    flags: int
    user_memory: bool
    address: int

    @property
    def kernel_thread(self) -> bool:
        """PF_KTHREAD, as the task itself says."""
        return bool(self.flags & _PF_KTHREAD)


@dataclass(frozen=True, slots=True)
class TaskView:
    """Processes at one moment, in two views: the list, and the ids that the kernel has given out.

    `ids` counts the latter; None where they could not be followed, and `ids_unseen` says why. `unlisted` have
    an id and have been off the list for a while; `settling` not long enough to be sure.
    """

    listed: tuple[Task, ...]
    ids: int | None
    ids_unseen: str
    unlisted: tuple[ProcessId, ...]
    settling: tuple[ProcessId, ...]


def read_task_view(program: KernelProgram, patience: Patience, *, now: float) -> TaskView:
    """Look at the ids and then at the list, which has every process that came before.

    Raises MalformedError or MemoryFault when the list does not come to its end.
    """
    ids: tuple[ProcessId, ...] | None = None
    unseen = ""
    try:
        ids = read_process_ids(program)
    except AffiantError as error:
        unseen = str(error)
    listed = read_tasks(program)
    known = {task.pid for task in listed}
    strangers = {
        (process.number, process.task): process for process in ids or () if process.number not in known
    }
    # Not by their names: a process may give itself another one whenever it likes.
    lasting = patience.settled("tasks", set(strangers), now, unseen=lambda _: ids is None)
    return TaskView(
        listed=listed,
        ids=None if ids is None else len(ids),
        ids_unseen=unseen,
        unlisted=_in_order(strangers[key] for key in lasting),
        settling=_in_order(strangers[key] for key in strangers.keys() - lasting),
    )


def read_tasks(program: KernelProgram) -> tuple[Task, ...]:
    """Return the tasks on `init_task.tasks`, in the kernel's order, the idle task left out.

    Under load the list changes while it is walked; a walk that fails is tried three times. Raises
    MalformedError or MemoryFault when even the third does not come to the list's end.
    """
    for attempt in range(_ATTEMPTS):
        try:
            return tuple(_listed(program))
        except (MemoryFault, MalformedError):
            if attempt + 1 == _ATTEMPTS:
                raise
    raise AssertionError("unreachable")  # pragma: no cover


def _listed(program: KernelProgram) -> list[Task]:
    """Read all tasks at once if the list can be read so: as it was, or as it is walked now."""
    offset = program.offset(_TASK, "tasks")
    head = program.address("init_task") + offset
    tasks = _at_once(program, head, offset)
    if tasks is None:
        nodes = list_entries(program, head, offset=0, maximum=_MOST_TASKS)
        program.lists[head] = tuple(nodes)
        tasks = _at_once(program, head, offset)
    return _one_by_one(program, head, offset) if tasks is None else tasks


def _at_once(program: KernelProgram, head: int, offset: int) -> list[Task] | None:
    """Return the tasks that the list led through when it was last walked; None unless each leads to the next.

    Then to walk it again would find the same, one after the other. None also if one cannot be read so.
    """
    nodes = program.lists.get(head, ())
    addresses = np.array(nodes, dtype=np.uint64) - np.uint64(offset)
    try:
        columns = StructColumns(program, _TASK, addresses, _MEMBERS)
        following = [program.word(head), *columns.integers("tasks.next")]
        if not columns.readable.all() or following != [*nodes, head]:
            return None
        owners = np.array(columns.integers("real_cred"), dtype=np.uint64)
        credentials = StructColumns(program, _CREDENTIALS, owners, ("uid.val",))
    except MalformedError:
        return None  # too many tables lie around them: one by one, few are read
    uids = zip(credentials.integers("uid.val"), credentials.readable.tolist(), strict=True)
    return [
        Task(pid, name, uid if known else None, flags, memory != 0, address)
        for pid, name, (uid, known), flags, memory, address in zip(
            columns.integers("pid"),
            columns.texts("comm"),
            uids,
            columns.integers("flags"),
            columns.integers("mm"),
            addresses.tolist(),
            strict=True,
        )
    ]


def _one_by_one(program: KernelProgram, head: int, offset: int) -> list[Task]:
    tasks: list[Task] = []
    for address in list_entries(program, head, offset=offset, maximum=_MOST_TASKS):
        copy = program.copy(_TASK, address)
        uid: int | None = None
        with contextlib.suppress(MemoryFault):
            uid = program.copy(_CREDENTIALS, copy.integer("real_cred")).integer("uid.val")
        tasks.append(
            Task(
                pid=copy.integer("pid"),
                name=copy.text("comm"),
                uid=uid,
                flags=copy.integer("flags"),
                user_memory=copy.integer("mm") != 0,
                address=address,
            )
        )
    return tasks


def _in_order(processes: Iterable[ProcessId]) -> tuple[ProcessId, ...]:
    return tuple(sorted(processes, key=lambda process: (process.number, process.task)))
