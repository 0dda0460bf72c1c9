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

from affiant.kernel.machine.memory import MemoryFault
from affiant.kernel.transient.deferred_calls import DeferredCalls
from affiant.kernel.walks.snapshot import Budget, Snapshot
from affiant.model.errors import AffiantError, MalformedError, UnavailableError

if TYPE_CHECKING:
    from affiant.kernel.objects.program import KernelProgram
    from affiant.kernel.running_kernel import RunningKernel

__all__ = ["functions_being_freed"]

_AUX: Final = "struct bpf_prog_aux"
_PROGRAM: Final = "struct bpf_prog"
_CALLBACKS: Final = ("__bpf_prog_put_rcu",)
_WORKS: Final = ("bpf_prog_put_deferred", "bpf_prog_free_deferred")
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
            return frozenset(_Freeing(guest, Snapshot(guest.program, budget)).functions())
        except (MemoryFault, MalformedError):
            continue  # queues move while they are read
        except AffiantError:
            break
    return None


class _Freeing:
    """Programs that wait to be freed in one guest."""

    def __init__(self, guest: RunningKernel, memory: Snapshot) -> None:
        self._program: KernelProgram = guest.program
        self._memory = memory
        self._deferred = DeferredCalls(guest.program, memory, vcpus=len(guest.cpus))

    def functions(self) -> Iterator[int]:
        program = self._program
        for names, member, queue in (
            (_CALLBACKS, "rcu", self._deferred.callbacks),
            (_WORKS, "work", self._deferred.works),
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
