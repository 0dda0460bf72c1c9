"""What the kernel has put off: callbacks that wait for RCU's grace period, and work that waits for workers.

kernel/rcu/rcu_segcblist.c, kernel/rcu/tasks.h, kernel/rcu/srcutree.c, kernel/workqueue.c. Of queues of work
those are looked at that serve the processors; what waits for its turn, in the kernel's common queue alone.

All of it is guest memory: an excuse for a while, and for nothing else.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

from affiant.kernel.walks.elements import processors
from affiant.kernel.walks.lists import list_entries
from affiant.kernel.walks.snapshot import Snapshot
from affiant.model.errors import MalformedError, UnavailableError

if TYPE_CHECKING:
    from affiant.kernel.objects.program import KernelProgram

__all__ = ["DeferredCalls"]

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
_QUEUES: Final = ("system_wq", "system_percpu_wq")  # the second since Linux 6.17, commit 128ea9f6ccfb
_MOST: Final = 1 << 16  # of each list
_WORD: Final = 8
_ALL: Final = (1 << 64) - 1


class DeferredCalls:
    """What waits in one guest of so many `vcpus`, as its memory says.

    Raises UnavailableError where the kernel has no such queue, MemoryFault or MalformedError where one cannot
    be followed (they move while they are read), and what the snapshot's budget raises.
    """

    def __init__(self, program: KernelProgram, memory: Snapshot, *, vcpus: int) -> None:
        self._program = program
        self._memory = memory
        self._vcpus = vcpus

    def callbacks(self) -> Iterator[tuple[int, int]]:
        """Yield where the `rcu_head` of each waits for RCU, with the function that is to be called."""
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

    def works(self) -> Iterator[tuple[int, int]]:
        """Yield each `work_struct` that waits for a processor's workers, or is at work, with its function."""
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
