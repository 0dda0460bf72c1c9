"""Which BPF programs the kernel is about to free: code that is on no list any more, and stays for a while.

kernel/bpf/syscall.c (`__bpf_prog_put()`), kernel/bpf/core.c (`bpf_prog_free()`). A program is taken off the
lists first. Its `struct bpf_prog_aux` then waits for RCU's grace period in its queues, and after that for a
worker in a queue of work, which frees its code under the lock of code changes. It waits there by members of
its own, so that what waits leads to the program, and to each of its functions.

All of it is guest memory: an excuse for a while, and for nothing else.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from affiant.kernel.lists import list_entries
from affiant.kernel.memory import MemoryFault
from affiant.kernel.queries.snapshot import Budget, Snapshot
from affiant.kernel.queries.walks import processors
from affiant.model.errors import AffiantError, MalformedError, UnavailableError

if TYPE_CHECKING:
    from affiant.kernel.program import KernelProgram
    from affiant.kernel.running_kernel import RunningKernel

__all__ = ["functions_being_freed"]

_AUX: Final = "struct bpf_prog_aux"
_PROGRAM: Final = "struct bpf_prog"
_HEAD: Final = "struct callback_head"
_WORK: Final = "struct work_struct"
_POOL: Final = "struct worker_pool"
_WORKER: Final = "struct worker"
_QUEUE: Final = "struct workqueue_struct"
_POOL_QUEUE: Final = "struct pool_workqueue"
_RCU: Final = "struct rcu_data"
_TASKS: Final = "struct rcu_tasks"
_TASKS_CPU: Final = "struct rcu_tasks_percpu"
_SRCU: Final = "struct srcu_struct"
_SRCU_CPU: Final = "struct srcu_data"
_CALLBACKS: Final = ("__bpf_prog_put_rcu",)
_WORKS: Final = ("bpf_prog_put_deferred", "bpf_prog_free_deferred")
_QUEUES: Final = ("system_wq", "system_percpu_wq")  # the second since Linux 6.17, commit 128ea9f6ccfb
_MOST: Final = 1 << 16  # of each list
_MOST_FUNCTIONS: Final = 4096
_SECONDS: Final = 0.5  # of this thread's processor time
_ATTEMPTS: Final = 3
_WORD: Final = 8
_ALL: Final = (1 << 64) - 1


def functions_being_freed(guest: RunningKernel) -> frozenset[int] | None:
    """Return where the code starts of each function that waits to be freed; None where nobody can tell."""
    budget = Budget(seconds=_SECONDS, clock=time.thread_time)
    for _ in range(_ATTEMPTS):
        try:
            return frozenset(_Queues(guest, Snapshot(guest.program, budget)).functions())
        except (MemoryFault, MalformedError):
            continue  # queues move while they are read
        except AffiantError:
            break
    return None


class _Queues:
    """What waits in one guest: for RCU, and for workers."""

    def __init__(self, guest: RunningKernel, memory: Snapshot) -> None:
        self._program: KernelProgram = guest.program
        self._memory = memory
        self._vcpus = len(guest.cpus)

    def functions(self) -> Iterator[int]:
        program = self._program
        for names, member, queue in (
            (_CALLBACKS, "rcu", self._callbacks),
            (_WORKS, "work", self._works),
        ):
            wanted = {program.find(name) for name in names}
            if None in wanted:
                raise UnavailableError("the kernel frees BPF programs in another way")
            place = program.offset(_AUX, member)
            for node, function in queue():
                if function in wanted:
                    yield from self._functions_of((node - place) & _ALL)

    def _functions_of(self, auxiliary: int) -> Iterator[int]:
        """Yield where the code of a program's functions starts; some may be freed already."""
        program, word = self._program, self._memory.word
        count = program.member(_AUX, "real_func_cnt" if program.has(_AUX, "real_func_cnt") else "func_cnt")
        with suppress(MemoryFault):
            yield word(word(auxiliary + program.offset(_AUX, "prog")) + program.offset(_PROGRAM, "bpf_func"))
        with suppress(MemoryFault):
            number = int.from_bytes(self._memory.read(auxiliary + count.offset, count.size), "little")
            first = word(auxiliary + program.offset(_AUX, "func"))
            for place in range(first, first + _WORD * min(number, _MOST_FUNCTIONS), _WORD):
                self._memory.budget.step()
                with suppress(MemoryFault):
                    yield word(word(place) + program.offset(_PROGRAM, "bpf_func"))

    def _callbacks(self) -> Iterator[tuple[int, int]]:
        """Yield what waits for RCU, with the function that is to be called."""
        program = self._program
        for queue in self._per_cpu(program.find("rcu_data")):
            yield from self._chain(queue + program.offset(_RCU, "cblist.head"))
            if program.has(_RCU, "nocb_bypass.head"):
                yield from self._chain(queue + program.offset(_RCU, "nocb_bypass.head"))
        # Programs that may sleep wait for tasks; by sleepable RCU since Linux 7.0.
        for symbol, common, pointer, instance, head in (
            ("rcu_tasks_trace", _TASKS, "rtpcpu", _TASKS_CPU, "cblist.head"),
            ("rcu_tasks_trace_srcu_struct", _SRCU, "sda", _SRCU_CPU, "srcu_cblist.head"),
        ):
            base = program.find(symbol)
            if base is None or not program.has_type(instance):
                continue
            for queue in self._per_cpu(self._memory.word(base + program.offset(common, pointer))):
                yield from self._chain(queue + program.offset(instance, head))

    def _works(self) -> Iterator[tuple[int, int]]:
        """Yield what waits for workers of each processor, or is at work, with the function."""
        program, word = self._program, self._memory.word
        entry, function = program.offset(_WORK, "entry"), program.offset(_WORK, "func")

        def listed(head: int) -> Iterator[tuple[int, int]]:
            for work in self._list(head, entry):
                yield work, word(work + function)

        for pool in self._per_cpu(program.find("cpu_worker_pools")):  # the first is of common priority
            yield from listed(pool + program.offset(_POOL, "worklist"))
            workers = pool + program.offset(_POOL, "workers")
            for worker in self._list(workers, program.offset(_WORKER, "node")):
                current = word(worker + program.offset(_WORKER, "current_work"))
                if current:
                    yield current, word(worker + program.offset(_WORKER, "current_func"))
                yield from listed(worker + program.offset(_WORKER, "scheduled"))
        for name in _QUEUES:
            queue = program.find(name)
            if queue is None or not program.has(_POOL_QUEUE, "inactive_works"):
                continue
            queues = word(queue) + program.offset(_QUEUE, "pwqs")
            for each in self._list(queues, program.offset(_POOL_QUEUE, "pwqs_node")):
                yield from listed(each + program.offset(_POOL_QUEUE, "inactive_works"))

    def _per_cpu(self, symbol: int | None) -> Iterator[int]:
        if symbol is None:
            raise UnavailableError("the kernel has no such queue")
        offsets = self._program.address("__per_cpu_offset")
        for number in processors(self._program, self._memory, vcpus=self._vcpus):
            yield (symbol + self._memory.word(offsets + _WORD * number)) & _ALL

    def _chain(self, head: int) -> Iterator[tuple[int, int]]:
        """Yield what a singly linked list of RCU's holds, from the pointer to its first."""
        following = self._program.offset(_HEAD, "next")
        function = self._program.offset(_HEAD, "func")
        node = self._memory.word(head)
        for _ in range(_MOST):
            if not node:
                return
            self._memory.budget.step()
            yield node, self._memory.word(node + function)
            node = self._memory.word(node + following)
        raise MalformedError("a queue of RCU's has no end")

    def _list(self, head: int, offset: int) -> Iterator[int]:
        for node in list_entries(self._memory, head, offset=offset, maximum=_MOST):
            self._memory.budget.step()
            yield node
