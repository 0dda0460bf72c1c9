"""Whose turn it is at the TPM: one command at a time, and the secure world goes first.

A guest may flood its TPM with commands. A plain lock would let it win again and again; here a
waiting secure world gets the very next turn, so that it waits for one guest command at most.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from affiant.model.errors import UnavailableError

__all__ = ["TpmTurns"]


class TpmTurns:
    """Gives the TPM to the guest or to the secure world."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._taken = False
        self._secure_waiting = 0

    @contextmanager
    def guest(self) -> Iterator[None]:
        """Hold the TPM for the guest (or its machine); waits as long as it must."""
        with self._changed:
            self._changed.wait_for(lambda: not self._taken and not self._secure_waiting)
            self._taken = True
        try:
            yield
        finally:
            self._release()

    @contextmanager
    def secure_world(self, *, timeout: float) -> Iterator[None]:
        """Hold the TPM for the secure world.

        Raises `UnavailableError` when the guest's command takes longer than `timeout` seconds.
        """
        deadline = time.monotonic() + timeout
        with self._changed:
            self._secure_waiting += 1
            try:
                if not self._changed.wait_for(lambda: not self._taken, deadline - time.monotonic()):
                    raise UnavailableError("the guest keeps its TPM busy")
                self._taken = True
            finally:
                self._secure_waiting -= 1
                self._changed.notify_all()
        try:
            yield
        finally:
            self._release()

    def _release(self) -> None:
        with self._changed:
            self._taken = False
            self._changed.notify_all()
