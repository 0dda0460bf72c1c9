"""Whose page tables are whose, as the kernel tells: of processes, of processors between two of them, of EFI.

The lists are data of the guest: they tell where to look, and what is on none of them is not looked at
(a vCPU's CR3 always is).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from affiant.kernel.machine.leaves import Leaves
from affiant.kernel.machine.memory import PAGE_SIZE
from affiant.kernel.machine.paging import AddressSpace
from affiant.kernel.objects.program import KernelProgram
from affiant.kernel.walks.lists import list_entries
from affiant.model.errors import AffiantError

__all__ = ["Root", "borrowed_roots", "efi_root", "known_roots", "named_root"]

_TASK, _MM = "struct task_struct", "struct mm_struct"
_MOST_TASKS: Final = 65536
_FEW_CPUS, _MOST_CPUS = 64, 8192  # read at first, and at most
_POKING: Final = ("text_poke_mm", "poking_mm")  # seen in 7.2; in 6.1 and 6.12
_ALL = (1 << 64) - 1


@dataclass(frozen=True, slots=True)
class Root:
    """A top-level page table (physical address) and who uses it: `cpu 1`, `task 312 (sshd)`, `efi`.

    The table of a task is that of the task_struct at `task`, and has its name once `named_root` gave it.
    A `user_half` is the one of a pair that user mode runs on.
    """

    physical: int
    user: str
    task: int = 0
    user_half: bool = False


def known_roots(program: KernelProgram, space: AddressSpace, leaves: Leaves) -> tuple[list[Root], int]:
    """Return the tables of all tasks (each once), and how many tasks are on the list.

    `leaves` are those of the kernel half, as they are now. Raises MemoryFault or MalformedError if the list
    cannot be followed.
    """
    tasks, mm, pgd = (
        program.offset(_TASK, "tasks"),
        program.offset(_TASK, "mm"),
        program.offset(_MM, "pgd"),
    )
    listed = [node - tasks for node in _task_nodes(program, space, leaves, tasks)]
    # A hostile list leads to addresses so low that what holds them would begin below 0: those wrap.
    owners = np.array([task & _ALL for task in listed], dtype=np.uint64)
    memories, there = space.words(owners + np.uint64(mm), leaves)
    # One that is exiting may have no tables any more; what a CPU runs on is looked at through CR3.
    owners, memories = owners[there & (memories != 0)], memories[there & (memories != 0)]
    _, first = np.unique(memories, return_index=True)
    first.sort()  # each once, in the order of the list
    tables, there = space.words(memories[first] + np.uint64(pgd), leaves)
    physical, mapped = leaves.locate(tables)
    whole = there & mapped & (physical % np.uint64(PAGE_SIZE) == 0)
    roots = {
        table: Root(table, "task", task)
        for table, task in zip(physical[whole].tolist(), owners[first][whole].tolist(), strict=True)
    }
    return list(roots.values()), len(listed)


def _task_nodes(program: KernelProgram, space: AddressSpace, leaves: Leaves, offset: int) -> tuple[int, ...]:
    """Return where the list of tasks goes through them; walks it, unless each still leads to the next."""
    head = program.address("init_task") + offset
    before = program.lists.get(head, ())
    following, there = space.words(np.array((head, *before), dtype=np.uint64), leaves)
    if not (there.all() and following.tolist() == [*before, head]):
        before = program.lists[head] = tuple(list_entries(program, head, offset=0, maximum=_MOST_TASKS))
    return before


def named_root(program: KernelProgram, root: Root) -> Root:
    """Return a root with its task's pid and name: few are told of, so few are asked for it."""
    return replace(root, user=f"{root.user} {_name(program, root.task)}") if root.task else root


def borrowed_roots(program: KernelProgram, space: AddressSpace, leaves: Leaves) -> list[Root]:
    """Return tables that CPUs use without a process: what they have loaded (`cpu_tlbstate`), what pokes text.

    A CPU that runs a kernel thread stays on the tables of the process before, even when that has exited.
    `leaves` are those of the kernel half, as they are now.
    """
    found: list[Root] = []
    for name in _POKING:
        try:
            table = program.word(program.word(program.address(name)) + program.offset(_MM, "pgd"))
            found.append(Root(space.translate(table).physical, "text poking"))
        except AffiantError:
            continue  # this kernel has it under another name, or not yet
    try:
        state = program.address("cpu_tlbstate") + program.offset("struct tlb_state", "loaded_mm")
        pgd, first = program.offset(_MM, "pgd"), program.address("__per_cpu_offset")
    except AffiantError:
        return found
    offsets = _per_cpu_offsets(space, leaves, first)
    memories, named = space.words(offsets + np.uint64(state), leaves)
    tables, there = space.words(memories + np.uint64(pgd), leaves)
    physical, mapped = leaves.locate(tables)
    whole = named & there & mapped & (physical % np.uint64(PAGE_SIZE) == 0)  # others are just switching
    numbers = np.flatnonzero(whole).tolist()
    found += [Root(int(physical[number]), f"last on CPU {number}") for number in numbers]
    return found


def _per_cpu_offsets(space: AddressSpace, leaves: Leaves, first: int) -> NDArray[np.uint64]:
    """Return the offsets of the CPUs' own data, up to where they repeat.

    CPUs that are not possible all have the template's offset, which is that of the first such one.
    """
    count = _FEW_CPUS
    while True:
        places = np.uint64(first) + np.arange(count, dtype=np.uint64) * np.uint64(8)
        offsets, there = space.words(places, leaves)
        offsets = offsets[: len(offsets) if there.all() else int(np.argmin(there))]
        _, at = np.unique(offsets, return_index=True)
        if len(at) < count or count >= _MOST_CPUS:
            missing = np.setdiff1d(np.arange(len(offsets)), at)
            return offsets[: int(missing[0]) if len(missing) else len(offsets)]
        count *= 2


def efi_root(program: KernelProgram, space: AddressSpace) -> Root | None:
    """Return the tables that EFI runtime services are called with, None if there are none."""
    symbol = program.find("efi_mm")
    if symbol is None:
        return None
    try:
        table = program.word(symbol + program.offset(_MM, "pgd"))
        return Root(space.translate(table).physical, "efi") if table else None
    except AffiantError:
        return None


def _name(program: KernelProgram, task: int) -> str:
    try:
        pid = int.from_bytes(program.read(task + program.offset(_TASK, "pid"), 4), "little")
        comm = program.read(task + program.offset(_TASK, "comm"), 16).split(b"\0")[0]
    except AffiantError:
        return f"{task:#x}"
    return f"{pid} ({comm.decode('utf-8', 'backslashreplace')})"
