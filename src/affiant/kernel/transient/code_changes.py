"""Whether the kernel is changing its own code just now, by its own word."""

from __future__ import annotations

from typing import Final

from affiant.kernel.objects.program import KernelProgram
from affiant.model.errors import AffiantError

__all__ = ["is_changing_code"]

# Code is changed under the first. The others are held around several such changes that belong together, from
# before the key of a static call or of a jump label has changed until the last of its sites has
# (kernel/static_call_inline.c, kernel/jump_label.c); between two sites the first is nobody's.
_LOCKS: Final = ("text_mutex", "static_call_mutex", "jump_label_mutex")


def is_changing_code(program: KernelProgram) -> bool:
    """Tell whether a lock under which code is changed is held or waited for; False if nobody can tell.

    Between one owner and the next, a lock is nobody's until who waits has the processor: a flag beside
    the owner tells of them (kernel/locking/mutex.c, MUTEX_FLAG_WAITERS). Data of the guest: an excuse for
    what seems half done, and none that may last.
    """
    try:
        owner = program.offset("struct mutex", "owner")
        locks = [program.find(name) for name in _LOCKS]
        return any(program.word(lock + owner) for lock in locks if lock is not None)
    except AffiantError:
        return False
