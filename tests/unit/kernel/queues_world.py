"""A guest of one processor whose queues of RCU and of work can be filled."""

from __future__ import annotations

from tests.unit.kernel.btf_builder import BtfBuilder
from tests.unit.kernel.synthetic_guest import (
    DATA,
    LINK,
    MODULE_AREA,
    SLIDE,
    SyntheticGuest,
    kernel_types,
    make_reference,
)

__all__ = [
    "FREE",
    "FREE_INIT",
    "FUNCTIONS",
    "OTHER",
    "PER_CPU",
    "PUT_LATER",
    "RCU",
    "SRCU_PER_CPU",
    "SYMBOLS",
    "TASKS_PER_CPU",
    "WORK",
    "Queues",
    "queue_types",
]

CODE = MODULE_AREA + 0x20_0000
FUNCTIONS = (CODE + 8, CODE + 0x108)
PUT, FREE, PUT_LATER, OTHER, FREE_INIT = (LINK + 0xC000 + 0x40 * number for number in range(5))
PER_CPU = {"rcu_data": 0x1000, "cpu_worker_pools": 0x1100}
SYMBOLS = PER_CPU | {
    "__bpf_prog_put_rcu": PUT,
    "bpf_prog_free_deferred": FREE,
    "bpf_prog_put_deferred": PUT_LATER,
    "something_else": OTHER,
    "do_free_init": FREE_INIT,
    "__cpu_possible_mask": DATA + 0x6000,
    "system_wq": DATA + 0x6100,
    "rcu_tasks_trace": DATA + 0x6200,
    "rcu_tasks_trace_srcu_struct": DATA + 0x6300,
}
AUX, RCU, WORK = 0x80, 0x40, 0x50
TASKS_PER_CPU, SRCU_PER_CPU = 0x1300, 0x1400


def queue_types(btf: BtfBuilder) -> None:
    long, pointer = btf.integer("freed_long", 8), btf.pointer(0)
    uint = btf.integer("freed_uint", 4)
    link = btf.struct("freed_list", 16, ("next", pointer, 0), ("prev", pointer, 8))
    head = btf.struct("callback_head", 16, ("next", pointer, 0), ("func", pointer, 8))
    work = btf.struct("work_struct", 32, ("data", long, 0), ("entry", link, 8), ("func", pointer, 24))
    queue = btf.struct("rcu_segcblist", 8, ("head", pointer, 0))
    bypass = btf.struct("rcu_cblist", 8, ("head", pointer, 0))
    btf.struct("cpumask", 8, ("bits", btf.array(long, 1), 0))
    btf.struct("rcu_data", 16, ("cblist", queue, 0), ("nocb_bypass", bypass, 8))
    btf.struct("rcu_tasks", 8, ("rtpcpu", pointer, 0))
    btf.struct("rcu_tasks_percpu", 16, ("cblist", queue, 8))
    btf.struct("srcu_struct", 16, ("sda", pointer, 8))
    btf.struct("srcu_data", 16, ("srcu_cblist", queue, 8))
    btf.struct("worker_pool", 32, ("worklist", link, 0), ("workers", link, 16))
    current = ("current_work", pointer, 16), ("current_func", pointer, 24)
    btf.struct("worker", 48, ("node", link, 0), *current, ("scheduled", link, 32))
    btf.struct("workqueue_struct", 16, ("pwqs", link, 0))
    btf.struct("pool_workqueue", 32, ("pwqs_node", link, 0), ("inactive_works", link, 16))
    counts = ("func_cnt", uint, 0), ("real_func_cnt", uint, 4)
    waits = ("rcu", head, RCU), ("work", work, WORK)
    btf.struct("bpf_prog_aux", AUX, *counts, ("func", pointer, 8), ("prog", pointer, 16), *waits)
    btf.struct("bpf_prog", 16, ("bpf_func", pointer, 8))


class Queues:
    """A guest of one processor with a program of two functions, which is not to be freed yet."""

    def __init__(self) -> None:
        self.guest = SyntheticGuest(
            reference=make_reference(types=kernel_types(queue_types), further_symbols=SYMBOLS)
        )
        self.cpu = self.add(0x2000, {})
        self.word(DATA + 0xA00 + SLIDE, self.cpu)
        self.word(SYMBOLS["__cpu_possible_mask"] + SLIDE, 1)
        self.queue = self.add(16, {})
        self.word(SYMBOLS["system_wq"] + SLIDE, self.queue)
        self.word(SYMBOLS["rcu_tasks_trace"] + SLIDE, TASKS_PER_CPU)
        self.word(SYMBOLS["rcu_tasks_trace_srcu_struct"] + SLIDE + 8, SRCU_PER_CPU)
        self.pool = self.cpu + PER_CPU["cpu_worker_pools"]
        for head in (self.pool, self.pool + 16, self.queue):
            self.empty(head)
        parts = [self.add(16, {8: start}) for start in FUNCTIONS]
        functions = self.add(16, {0: parts[0], 8: parts[1]})
        self.aux = self.add(AUX, {0: 1 | 2 << 32, 8: functions, 16: parts[0]})

    def add(self, size: int, words: dict[int, int]) -> int:
        physical, address = self.guest.allocate(size)
        for offset, value in words.items():
            self.guest.word(physical + offset, value)
        return address

    def word(self, address: int, value: int) -> None:
        self.guest.word(self.guest.resolve(address), value)

    def empty(self, head: int) -> None:
        self.guest.poke(self.guest.resolve(head), 2 * head.to_bytes(8, "little"))

    def call_back(self, head: int) -> None:
        """Have the program wait in a queue of RCU's, behind something else."""
        other = self.add(16, {0: self.aux + RCU, 8: OTHER + SLIDE})
        self.word(self.aux + RCU + 8, PUT + SLIDE)
        self.word(head, other)

    def work(self, head: int, function: int = FREE) -> None:
        """Have the program wait on a list of work."""
        self.word(self.aux + WORK + 24, function + SLIDE)
        self.guest.link(head, self.aux + WORK + 8)

    def worker(self) -> int:
        worker = self.add(48, {})
        self.empty(worker + 32)
        self.guest.link(self.pool + 16, worker)
        return worker

    def inactive(self) -> int:
        each = self.add(32, {})
        self.empty(each + 16)
        self.guest.link(self.queue, each)
        return each + 16

    def at_work(self, function: int) -> None:
        """Have a worker be at work on the program."""
        worker = self.worker()
        self.word(worker + 16, self.aux + WORK)
        self.word(worker + 24, function + SLIDE)
