"""The fact `tasks`, as assertion scripts read it."""

from __future__ import annotations

from dataclasses import dataclass

from affiant.kernel.facts.as_json import LONGEST_INVENTORY, Json, bounded
from affiant.kernel.guest import Guest
from affiant.kernel.processes.process_ids import ProcessId
from affiant.kernel.processes.tasks import Task, TaskView, read_task_view

__all__ = ["TASKS_FIELDS", "Tasks", "tasks"]

TASKS_FIELDS = {
    "count": "tasks on the list, the idle task left out",
    "kernel_threads": "those that are kernel threads",
    "ids": "processes by the ids that the kernel has given out; null where these were not seen",
    "ids_unseen": "why not",
    "unlisted": "pid, name, task of each process that has been off the list for a while",
    "settling": "the same, not seen for long enough to be sure",
    "unlisted_left_out": "entries beyond the first 256",
    "settling_left_out": "entries beyond the first 256",
    "listed": "pid, name, uid (null: unreadable), flags, kernel_thread, user_memory, address",
    "listed_left_out": "tasks beyond the first 8192",
}


@dataclass(frozen=True, slots=True)
class Tasks:
    """The tasks on the kernel's list, and processes that are not on it."""

    view: TaskView

    def to_json(self) -> dict[str, Json]:
        """Return the fact `tasks`; `listed` is there up to 8192 tasks, with `listed_left_out`."""
        tasks = self.view.listed
        return {
            "count": len(tasks),
            "kernel_threads": sum(task.kernel_thread for task in tasks),
            "ids": self.view.ids,
            "ids_unseen": self.view.ids_unseen,
            **bounded("unlisted", self.view.unlisted, _process),
            **bounded("settling", self.view.settling, _process),
            **bounded("listed", tasks, _task, most=LONGEST_INVENTORY),
        }


def tasks(guest: Guest, now: float) -> Tasks:
    """Read the fact `tasks`."""
    return Tasks(read_task_view(guest.program, guest.patience, now=now))


def _task(task: Task) -> dict[str, Json]:
    return {
        "pid": task.pid,
        "name": task.name,
        "uid": task.uid,
        "flags": hex(task.flags),
        "kernel_thread": task.kernel_thread,
        "user_memory": task.user_memory,
        "address": hex(task.address),
    }


def _process(process: ProcessId) -> dict[str, Json]:
    return {"pid": process.number, "name": process.name, "task": hex(process.task)}
