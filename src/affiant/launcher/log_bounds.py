"""Bounds on what a guest's logs may take of the host's disk.

A guest writes to its serial console as fast as it likes, and QEMU copies all of it to a file. It can
also make the processes around it talk. So each log is cut when it has grown too long: its end goes to
a file beside it, and the log goes on from empty. All of them are written in append mode, so that a
writer that still has the file open goes on at the new end.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Final

__all__ = ["LogBounds"]

_LONGEST: Final = 32 << 20
_KEPT: Final = 4 << 20
_LOOK_SECONDS: Final = 1.0


class LogBounds:
    """Keeps the `*.log` files of one folder short; `NAME.log.old` holds the end of what was cut off."""

    def __init__(self, folder: Path, *, longest: int = _LONGEST, kept: int = _KEPT) -> None:
        if not 0 < kept <= longest:
            raise ValueError("what is kept of a log is a part of it")
        self._folder = folder
        self._longest = longest
        self._kept = kept
        self._looked = 0.0

    def tend(self, *, now: float | None = None) -> None:
        """Cut what is too long; cheap enough to be called often. A disk that fails is no reason to end."""
        now = time.monotonic() if now is None else now
        if now - self._looked < _LOOK_SECONDS:
            return
        self._looked = now
        for path in self._folder.glob("*.log"):
            try:
                self._cut(path)
            except OSError:
                continue

    def _cut(self, path: Path) -> None:
        # Never through a link: a log is a file of this folder, or none.
        descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            size = os.fstat(descriptor).st_size
            if size <= self._longest:
                return
            end = os.pread(descriptor, self._kept, size - self._kept)
            old = path.with_name(path.name + ".old")
            new = path.with_name(path.name + ".new")
            new.write_bytes(end)
            new.replace(old)
            os.ftruncate(descriptor, 0)
        finally:
            os.close(descriptor)
