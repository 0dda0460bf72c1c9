"""The ring of kept facts: the last few records of a monitor, in a folder of the launcher's.

The monitor has no disk, so what it records leaves through the launcher, which knows as much anyway: it
holds the guest's memory. The launcher does not read what it keeps; where an operator's key was given it
could not.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

from affiant.model.errors import SetupError, UnavailableError

__all__ = ["SUFFIX", "FactRing"]

SUFFIX = ".facts"
"""How a kept record's file name ends."""

_BURST = 64
_DIGITS = 12


class FactRing:
    """Keeps the latest `most` records, each in a file of its own, numbered in the order they came.

    A monitor that was taken over must not wash away what was kept before: beyond a burst of 64, which
    first sightings of violations need, records are taken as often as every `every_seconds`, not more.
    """

    def __init__(
        self,
        folder: Path,
        *,
        most: int,
        every_seconds: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Make the folder, for the launcher's user alone. Raises `SetupError` if it cannot be used."""
        self._folder = folder
        self._most = most
        self._every = every_seconds
        self._clock = clock
        self._credit = float(min(_BURST, most))
        self._counted = clock()
        try:
            folder.mkdir(mode=0o700, exist_ok=True)
            folder.chmod(0o700)
            self._numbers = sorted(_numbers(folder))
            self._drop_oldest()
        except OSError as error:
            raise SetupError(f"the folder for kept facts cannot be used: {error}") from error

    def keep(self, content: bytes) -> None:
        """Write one record, whole or not at all, and remove the oldest beyond the bound.

        Raises `UnavailableError` when it comes too soon after many others, or the disk does not take it.
        """
        now = self._clock()
        self._credit = min(self._credit + (now - self._counted) / self._every, float(min(_BURST, self._most)))
        self._counted = now
        if self._credit < 1.0:
            raise UnavailableError("records come faster than facts are to be kept")
        self._credit -= 1.0
        number = self._numbers[-1] + 1 if self._numbers else 1
        scratch = self._folder / ".new"
        try:
            descriptor = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            with os.fdopen(descriptor, "wb") as file:
                file.write(content)
            scratch.rename(self._path(number))
            self._numbers.append(number)
            self._drop_oldest()
        except OSError as error:
            raise UnavailableError(f"the record cannot be kept: {error.strerror}") from error

    def _drop_oldest(self) -> None:
        while len(self._numbers) > self._most:
            self._path(self._numbers[0]).unlink(missing_ok=True)
            del self._numbers[0]

    def _path(self, number: int) -> Path:
        return self._folder / f"{number:0{_DIGITS}}{SUFFIX}"


def _numbers(folder: Path) -> list[int]:
    names = (path.name.removesuffix(SUFFIX) for path in folder.glob(f"*{SUFFIX}"))
    return [int(name) for name in names if len(name) == _DIGITS and name.isascii() and name.isdigit()]
