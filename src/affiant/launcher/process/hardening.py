"""What the launcher does to its own process before it holds a secret."""

from __future__ import annotations

import ctypes
import logging
import os
import resource

from affiant.model.errors import SetupError

__all__ = ["harden"]

_log = logging.getLogger(__name__)

_PR_SET_DUMPABLE = 4  # include/uapi/linux/prctl.h
_MCL_CURRENT, _MCL_FUTURE, _MCL_ONFAULT = 1, 2, 4  # include/uapi/asm-generic/mman.h


def harden() -> None:
    """Forbid core dumps, ptrace by the same user, and swapping of this process.

    Guaranteed when it returns: PR_SET_DUMPABLE is 0, so that only root can read this process's
    memory; RLIMIT_CORE is 0. Memory is locked where the host allows it (root, or an unlimited
    RLIMIT_MEMLOCK); elsewhere secrets may reach the host's swap, which is said in the log.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0):
        raise SetupError(f"this process cannot be protected: {os.strerror(ctypes.get_errno())}")
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    # With a limit, locking would make allocations fail once it is reached.
    unlimited = os.geteuid() == 0 or resource.getrlimit(resource.RLIMIT_MEMLOCK)[0] == resource.RLIM_INFINITY
    if not unlimited or libc.mlockall(_MCL_CURRENT | _MCL_FUTURE | _MCL_ONFAULT):
        _log.info("memory is not locked: the host's swap must be trusted")
