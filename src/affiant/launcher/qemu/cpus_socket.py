"""What QEMU saves of the vCPUs, for the machine's owner on this host: a socket that tells it to who connects.

Only the launcher can have QEMU save its device state, because the gateway withholds the TPM's own meanwhile.
So whoever owns the machine asks here, as `affiant inspect` does. A connection is the question: nothing is
read from it, and the answer is one frame, as on the launcher channel to `device-state`. The stop of the guest
that comes with it begins and ends in the launcher, before anything is written, whatever becomes of who asked.
"""

from __future__ import annotations

import logging
import os
import socket
import struct
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from affiant.model.errors import AffiantError, SetupError
from affiant.wire.frames import encode_frame
from affiant.wire.launcher_requests import DeviceState, FailureKind, MachineState
from affiant.wire.secure_world import write_answer, write_failure

__all__ = ["CpusSocket"]

_log = logging.getLogger(__name__)

_WAITING = 8
_SEND_SECONDS = 5.0
_PAUSE_SECONDS = 0.25  # between two answers: the guest stands still for each, and is to get on with its work
_CREDENTIALS = struct.Struct("3i")  # struct ucred: pid, uid, gid
_END_SECONDS = 2.0


class CpusSocket:
    """Answers the user that the launcher runs as, one at a time, from a thread of its own."""

    def __init__(self, path: Path, saved: Callable[[], MachineState]) -> None:
        """Listen on `path`; `saved` is called for each question. Raises SetupError when it cannot listen."""
        self._path = path
        self._saved = saved
        self._ended = threading.Event()
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._listener.bind(str(path))
            path.chmod(0o600)
            self._listener.listen(_WAITING)
        except OSError as error:
            self._listener.close()
            raise SetupError(f"the socket {path} cannot be made: {error}") from error
        self._thread = threading.Thread(target=self._serve, name="owner's questions", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Answer nobody any more, and remove the socket."""
        self._ended.set()
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(_END_SECONDS)
        self._path.unlink(missing_ok=True)

    def _serve(self) -> None:
        while not self._ended.is_set():
            try:
                connection, _ = self._listener.accept()
            except OSError as error:
                if not self._ended.is_set():
                    _log.warning("the owner's questions end: %s", error)
                return
            with connection:
                if not _is_ours(connection):
                    continue
                try:
                    connection.settimeout(_SEND_SECONDS)
                    connection.sendall(self._answer())
                except OSError as error:
                    _log.info("who asked for registers is gone: %s", error)
            self._ended.wait(_PAUSE_SECONDS)

    def _answer(self) -> bytes:
        try:
            return encode_frame(write_answer(DeviceState(), self._saved()))
        except (AffiantError, OSError) as error:
            return encode_frame(write_failure(FailureKind.UNAVAILABLE, str(error)))


def _is_ours(connection: socket.socket) -> bool:
    """Tell whether the other end is of the launcher's own user: more than the folder's mode says."""
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    _, user, _ = _CREDENTIALS.unpack(credentials)
    if user == os.geteuid():
        return True
    _log.warning("user %d asked for registers, and gets none", user)
    return False
