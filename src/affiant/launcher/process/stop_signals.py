"""Signals that tell the launcher to stop, heeded where nothing is half done.

A signal's handler runs between any two steps of the main thread: an exception out of it could come
when a child has been started that nobody knows of yet, or in the middle of clearing away. So a
signal is noted always, and raises in those sections alone that say so: the ones that take long.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Self

__all__ = ["StopRequested", "StopSignals"]

_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class StopRequested(BaseException):
    """A signal told us to end; not an Exception, so that nothing on the way takes it for an error."""


class StopSignals:
    """SIGTERM, SIGINT and SIGHUP while the context lasts; from the main thread only."""

    def __init__(self) -> None:
        self._asked = False
        self._heeding = False
        self._before: dict[signal.Signals, signal._HANDLER] = {}

    def __enter__(self) -> Self:
        self._before = {number: signal.signal(number, self._note) for number in _SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @contextmanager
    def heeded(self) -> Iterator[None]:
        """A section that a signal ends by `StopRequested`, at once if one came before it.

        What it makes must be known to whoever clears away, or worth nothing to anybody.
        """
        try:
            self._heeding = True
            if self._asked:
                raise StopRequested
            yield
        finally:
            self._heeding = False

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._asked = True
        if self._heeding:
            self._heeding = False
            raise StopRequested
