"""What descends from this process: the exact answer to whether anything was left behind.

The test process becomes a subreaper (prctl(2)): whoever loses its parent, below it, becomes its child
instead of the host's init's. Names and environments of processes are not looked at, so that neither a
sandbox, which has an environment of its own, nor another session on this host can mislead.
"""

from __future__ import annotations

import ctypes
import os
import signal
import time
from collections import defaultdict
from pathlib import Path

_PR_SET_CHILD_SUBREAPER = 36  # include/uapi/linux/prctl.h


def adopt_orphans() -> None:
    """Make orphaned descendants children of this process, for good."""
    assert ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) == 0


def descendants(root: int | None = None) -> dict[int, str]:
    """Return every living descendant of `root` (this process): pid -> command line. Zombies are dead."""
    children: dict[int, list[tuple[int, str]]] = defaultdict(list)
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            state, parent = (folder / "stat").read_text().rpartition(")")[2].split()[:2]
            line = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
        except OSError:
            continue  # gone meanwhile
        if state not in "ZX":
            children[int(parent)].append((int(folder.name), line))
    found: dict[int, str] = {}
    waiting = [os.getpid() if root is None else root]
    while waiting:
        for pid, line in children[waiting.pop()]:
            found[pid] = line
            waiting.append(pid)
    return found


def none_but(before: dict[int, str], *, seconds: float = 60.0) -> dict[int, str]:
    """Return the descendants that were not there before, once those that are ending have ended."""
    deadline = time.monotonic() + seconds
    while (new := {pid: line for pid, line in descendants().items() if pid not in before}) and (
        time.monotonic() < deadline
    ):
        time.sleep(0.05)
    return new


def exit_codes(number: signal.Signals) -> tuple[int, ...]:
    """Return what a command of ours may end with that a signal interrupted, as `Popen` tells it.

    CPython remembers an interrupt that met an `exec` of its own library (dataclasses while modules are
    imported), and ends by SIGINT although it was handled and the program has cleaned up and said 130.
    """
    return (130, -signal.SIGINT) if number is signal.SIGINT else (128 + number,)
