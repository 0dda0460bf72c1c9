"""Processes hidden or disguised, and credentials that nobody granted."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Final

from affiant.kernel.processes.tasks import Task, read_tasks
from lab.live_guest import LiveGuest
from lab.tamper.technique import Technique

__all__ = ["PROCESS_TECHNIQUES"]

_PF_KTHREAD: Final = 0x0020_0000


@contextmanager
def _unlist_process(live: LiveGuest) -> Iterator[str]:
    """Take a sleeping process off the list of tasks; yields the subject to be found.

    As with modules, the list is changed while the guest stands still. The process is the test's own.
    """
    pid = _sleeper(live)
    program = live.guest.program
    task = _task(live, pid)
    entry = task.address + program.offset("struct task_struct", "tasks")
    following, previous = program.word(entry), program.word(entry + 8)
    try:
        with live.all_changed(
            (previous, following.to_bytes(8, "little")), (following + 8, previous.to_bytes(8, "little"))
        ):
            yield f"process {pid} (sleep)"
    finally:
        live.lab.console.run(f"kill {pid}")


@contextmanager
def _mark_as_kernel_thread(live: LiveGuest) -> Iterator[str]:
    """Mark a sleeping process as a kernel thread (PF_KTHREAD); yields the subject to be found."""
    pid = _sleeper(live)
    program = live.guest.program
    task = _task(live, pid)
    place = task.address + program.offset("struct task_struct", "flags")
    try:
        with live.changed(place, (task.flags | _PF_KTHREAD).to_bytes(4, "little")):
            yield f"kernel thread {pid} (sleep)"
    finally:
        live.lab.console.run(f"kill {pid}")


@contextmanager
def _share_first_credentials(live: LiveGuest, pid: int = 1) -> Iterator[str]:
    """Give a process the credentials that the kernel booted with; yields the subject to be found."""
    program = live.guest.program
    task = _task(live, pid)
    place = task.address + program.offset("struct task_struct", "real_cred")
    with live.changed(place, program.address("init_cred").to_bytes(8, "little")):
        yield f"task {pid} "


@contextmanager
def _overwrite_ids(live: LiveGuest) -> Iterator[str]:
    """Overwrite the real uid of process 1 in its credentials; yields the subject to be found."""
    program = live.guest.program
    task = _task(live, 1)
    credentials = program.copy("struct task_struct", task.address).integer("real_cred")
    with live.changed(credentials + program.offset("struct cred", "uid"), (1000).to_bytes(4, "little")):
        yield "cred of task 1 "


@contextmanager
def _fill_capabilities(live: LiveGuest) -> Iterator[str]:
    """Give process 1 an effective capability that it is not permitted; yields the subject to be found."""
    program = live.guest.program
    task = _task(live, 1)
    credentials = program.copy("struct task_struct", task.address).integer("real_cred")
    effective = credentials + program.offset("struct cred", "cap_effective")
    with live.changed(effective, b"\xff" * 8):
        yield "cred of task 1 "


def _sleeper(live: LiveGuest) -> int:
    """Start a process that only sleeps, and return its number once it does."""
    run = live.lab.console.run
    pid = int(run("sleep 100000 & echo $!").split()[-1])
    run(f"until grep -q sleep /proc/{pid}/comm && grep -q '^State:.S' /proc/{pid}/status; do sleep 0.1; done")
    return pid


def _task(live: LiveGuest, pid: int) -> Task:
    (task,) = (task for task in read_tasks(live.guest.program) if task.pid == pid)
    return task


_process = partial(Technique, "processes")

PROCESS_TECHNIQUES: Final = (
    _process(
        "unlisted_process",
        "tasks_listed",
        "A sleeping process was taken off the list of tasks.",
        _unlist_process,
        recorded=True,
        attack="T1564",
    ),
    _process(
        "marked_process",
        "kernel_threads_genuine",
        "A sleeping process was marked as a kernel thread.",
        _mark_as_kernel_thread,
        recorded=True,
        attack="T1036.004",
    ),
    _process(
        "init_credentials",
        "first_credentials_private",
        "The real_cred of process 1 was pointed to init_cred.",
        _share_first_credentials,
        recorded=True,
        attack="T1068",
    ),
    _process(
        "overwritten_ids",
        "credentials_consistent",
        "The real uid in the credentials of process 1 was overwritten.",
        _overwrite_ids,
        recorded=True,
        attack="T1068",
    ),
    _process(
        "filled_capabilities",
        "credentials_consistent",
        "Process 1 was given an effective capability that it is not permitted.",
        _fill_capabilities,
        recorded=True,
        attack="T1068",
    ),
)
