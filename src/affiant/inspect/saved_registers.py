"""What QEMU saves of the vCPUs, asked from the machine's launcher, which alone can have it saved."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from pathlib import Path

from affiant.kernel.machine.cpu import parse_registers
from affiant.kernel.machine.device_stream import parse_device_stream
from affiant.kernel.machine.saved_cpu import SavedCpus
from affiant.model.errors import AffiantError, UnavailableError
from affiant.wire.frames import FrameDecoder
from affiant.wire.launcher_requests import DeviceState, Failure, MachineState
from affiant.wire.secure_world import read_answer

__all__ = ["read_saved_registers"]

_ANSWER_SECONDS = 30.0
_RECEIVE_BYTES = 1 << 16
_NO_LAUNCHER = "only a launcher has QEMU save them, and none is known here (affiant vm start)"


def read_saved_registers(path: Path | None, *, clock: Callable[[], float] = time.monotonic) -> SavedCpus:
    """Return what the launcher with the socket `path` has saved now, or the reason why there is nothing.

    The launcher stops the guest for it, for about a millisecond, and has it run on before it answers.
    """
    asked = clock()
    if path is None:
        return SavedCpus(asked, (), _NO_LAUNCHER)
    try:
        state = _ask(path)
        listed = [parse_registers(text, index=index) for index, text in enumerate(state.cpus)]
        return SavedCpus(asked, parse_device_stream(state.stream, listed))
    except AffiantError as error:
        return SavedCpus(asked, (), str(error))


def _ask(path: Path) -> MachineState:
    frames = FrameDecoder()
    deadline = time.monotonic() + _ANSWER_SECONDS
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as channel:
            channel.settimeout(_ANSWER_SECONDS)
            channel.connect(str(path))
            while data := channel.recv(_RECEIVE_BYTES):
                if items := frames.feed(data):
                    answer = read_answer(DeviceState(), items[0])
                    if isinstance(answer, Failure):
                        raise UnavailableError(answer.message)
                    return answer
                channel.settimeout(max(0.01, deadline - time.monotonic()))
    except OSError as error:
        raise UnavailableError(f"the machine's launcher does not answer: {error}") from error
    raise UnavailableError("the machine's launcher answers its owner alone")
