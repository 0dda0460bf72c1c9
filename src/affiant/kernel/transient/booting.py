"""Whether the kernel still boots: it says so itself, and is believed for a while."""

from __future__ import annotations

from typing import Final

from affiant.kernel.objects.program import KernelProgram
from affiant.kernel.transient.patience import Patience
from affiant.model.errors import AffiantError

__all__ = ["is_booting", "says_that_it_boots"]

_SYSTEM_RUNNING: Final = 3  # enum system_states: SYSTEM_BOOTING, _SCHEDULING, _FREEING_INITMEM, _RUNNING
_BOOT_SECONDS: Final = 120.0  # an emulated boot takes 20 s at most until init starts


def says_that_it_boots(program: KernelProgram) -> bool:
    """Tell what the kernel says: data of the guest, by itself no excuse for anything."""
    state = program.find("system_state")
    if state is None:
        return False
    try:
        return int.from_bytes(program.read(state, 4), "little") < _SYSTEM_RUNNING
    except AffiantError:
        return False


def is_booting(program: KernelProgram, patience: Patience, now: float) -> bool:
    """Tell whether the kernel says that it still boots.

    It is believed for two minutes from when it first said so: a kernel boots once, so that what it
    says in between gives it no new ones. `now` is monotonic time in seconds.
    """
    # Asked about only while it is said: nothing is forgotten meanwhile.
    return says_that_it_boots(program) and not patience.settled(
        "booting", {"booting"}, now, seconds=_BOOT_SECONDS
    )
