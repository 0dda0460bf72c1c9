"""Turns the signals that end a program into exceptions, so that what was begun is undone."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

__all__ = ["end_on_signals", "hold_signals"]

_SIGNALS = (signal.SIGTERM, signal.SIGHUP)


@contextmanager
def end_on_signals() -> Iterator[None]:
    """Within the block SIGTERM and SIGHUP raise SystemExit(128 + signal); before, they killed at once.

    For the main thread of a program (as `signal.signal` demands). SIGINT raises KeyboardInterrupt
    in any case.
    """
    before = {number: signal.signal(number, _leave) for number in _SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def hold_signals() -> Iterator[None]:
    """Within the block the ending signals wait; after it they act as they would have before.

    For the few steps that must be done whole, such as starting a process and remembering that it
    was started. Processes started within are not affected. Outside the main thread, which signals
    do not interrupt, it does nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    waiting: list[int] = []
    held = (signal.SIGINT, *_SIGNALS)
    before = {number: signal.signal(number, lambda got, _: waiting.append(got)) for number in held}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for arrived in dict.fromkeys(waiting):
            signal.raise_signal(arrived)


def _leave(number: int, frame: FrameType | None) -> NoReturn:
    raise SystemExit(128 + number)
