"""Programs that processes hold by descriptors: whoever loaded one mostly does, or has pinned it to a file.

kernel/bpf/syscall.c. Files are found through the page tables, wherever a process says that they are.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import numpy as np
from numpy.typing import NDArray

from affiant.kernel.bpf_programs.survey import Survey
from affiant.kernel.machine.memory import MemoryFault
from affiant.kernel.objects.program import KernelProgram
from affiant.kernel.walks.known_walks import looked_through
from affiant.kernel.walks.lists import list_entries
from affiant.kernel.walks.snapshot import Snapshot
from affiant.model.errors import MalformedError

__all__ = ["survey_descriptors"]

_TASK: Final = "struct task_struct"
_FILES: Final = "struct files_struct"
_TABLE: Final = "struct fdtable"
_FILE: Final = "struct file"
_EVENT: Final = "struct perf_event"
_PROGRAMS: Final = ("bpf_prog_fops",)
_LINKS: Final = ("bpf_link_fops", "bpf_link_fops_poll")
_EVENTS: Final = ("perf_fops",)
_MOST_TASKS: Final = 1 << 16
_LONGEST_NAME: Final = 16  # TASK_COMM_LEN
_MOST_DESCRIPTORS: Final = 1 << 20  # of all processes; 8 MiB


def survey_descriptors(survey: Survey) -> None:
    """Note each program that a process holds, itself, by a link, or by a perf event."""
    program = survey.program
    lists = survey.lists
    if not (lists.symbols or lists.packs or lists.loaded):
        return  # without code of BPF, nobody holds a program
    kinds = {
        address: kind
        for kind, names in (("program", _PROGRAMS), ("link", _LINKS), ("event", _EVENTS))
        for name in names
        if (address := program.find(name)) is not None
    }
    owners, counts, every = looked_through(survey.memory, _open_files)
    if not owners:
        return
    of = np.repeat(np.arange(len(owners)), counts)
    places = every + np.uint64(program.offset(_FILE, "f_op"))
    space = survey.kernel.kernel_space
    operations, there = space.words(places, space.leaves())
    # One may be gone by now; that all are is no kernel at work.
    survey.looked = int(np.count_nonzero(there))
    if len(every) and not survey.looked:
        raise MalformedError("no open file of any process is mapped")
    wanted = there & np.isin(operations, np.array(list(kinds), dtype=np.uint64))
    for index in np.flatnonzero(wanted).tolist():
        _note(survey, kinds[int(operations[index])], int(every[index]), owners[of[index]])


def _note(survey: Survey, kind: str, file: int, owner: str) -> None:
    try:
        held = survey.integer(_FILE, file, "private_data")
        if kind == "link":
            survey.note_link("descriptor of its link", owner, held)
        elif kind == "event":
            survey.note("descriptor of its event", owner, survey.integer(_EVENT, held, "prog"))
        else:
            survey.note("descriptor", owner, held)
    except MemoryFault:
        pass  # closed meanwhile


def _open_files(
    program: KernelProgram, memory: Snapshot
) -> tuple[tuple[str, ...], tuple[int, ...], NDArray[np.uint64]]:
    """Return the names of all processes, how many open files each has, and the pointers to these files."""
    owners: list[str] = []
    files: list[NDArray[np.uint64]] = [np.empty(0, dtype=np.uint64)]
    for owner, table in _tables(program, memory):
        held = np.frombuffer(table, dtype="<u8").astype(np.uint64, copy=False)
        owners.append(owner)
        files.append(held[held != 0])
    return tuple(owners), tuple(len(held) for held in files[1:]), np.concatenate(files)


def _tables(program: KernelProgram, memory: Snapshot) -> Iterator[tuple[str, bytes]]:
    """Yield the name of each process with the pointers to its open files."""
    link = program.offset(_TASK, "tasks")
    head = program.address("init_task") + link
    left = _MOST_DESCRIPTORS
    listed = 0

    def integer(kind: str, address: int, path: str) -> int:
        member = program.member(kind, path)
        return int.from_bytes(memory.read(address + member.offset, member.size), "little")

    for task in list_entries(memory, head, offset=link, maximum=_MOST_TASKS):
        listed += 1
        memory.budget.step()
        try:
            files = integer(_TASK, task, "files")
            if not files:
                continue
            table = integer(_FILES, files, "fdt")
            count = integer(_TABLE, table, "max_fds")
            left -= count
            if left < 0:
                raise MalformedError(f"processes have more than {_MOST_DESCRIPTORS} descriptors")
            told = memory.text(task + program.offset(_TASK, "comm"), _LONGEST_NAME)
            name = told.decode("utf-8", "backslashreplace")
            pid = integer(_TASK, task, "pid")
            first = integer(_TABLE, table, "fd")
            yield f"process {pid} ({name})", memory.read(first, 8 * count)
        except MemoryFault:
            continue  # it ends meanwhile
    if not listed:
        raise MalformedError("no process is on the kernel's list")
