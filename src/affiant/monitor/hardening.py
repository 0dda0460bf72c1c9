"""What the monitor does to its own process before it holds a secret."""

from __future__ import annotations

import ctypes
import os
import resource

from affiant.model.errors import SetupError

__all__ = ["harden"]

# include/uapi/linux/prctl.h
_PR_SET_DUMPABLE, _PR_SET_NO_NEW_PRIVS = 4, 38


def harden() -> None:
    """Forbid core dumps, ptrace by the same user and new privileges for this process.

    Guaranteed when it returns: PR_SET_DUMPABLE is 0 (ptrace and /proc/PID/mem are for the host's
    root only, prctl(2)), RLIMIT_CORE is 0, no_new_privs is set. Raises `SetupError` otherwise. Not
    prevented: that the host swaps memory out; its swap is the host's, which is trusted.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    for option, value in ((_PR_SET_NO_NEW_PRIVS, 1), (_PR_SET_DUMPABLE, 0)):
        if libc.prctl(option, value, 0, 0, 0):
            raise SetupError(f"prctl {option}: {os.strerror(ctypes.get_errno())}")
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
