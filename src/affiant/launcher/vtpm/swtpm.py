"""swtpm, the guest's TPM: its process, and the two sockets that only the gateway holds.

Both sockets are socket pairs made by the launcher: they have no name in the file system, so nobody
else can connect. Whoever holds the control socket *is* the CPU: it sets the locality and runs the
D-RTM hash sequence. Locality 0 is set again before anything but the hash sequence.
"""

from __future__ import annotations

import socket
import struct
from pathlib import Path

from affiant.launcher.process.children import Child, find_program, start_child
from affiant.launcher.vtpm import control_protocol as control
from affiant.launcher.vtpm.control_protocol import ControlCommand
from affiant.model.errors import UnavailableError

__all__ = ["MAX_TPM_MESSAGE", "SwtpmConnection", "start_swtpm"]

MAX_TPM_MESSAGE = 4096
"""The largest TPM command or response, in bytes; swtpm's buffers are no larger."""

_CONTROL_TIMEOUT = 20.0  # swtpm answers control requests after the command that it is working on
_PTM_INIT_FLAG_DELETE_VOLATILE = 1
_HASH_CHUNK = 2048


class SwtpmConnection:
    """Both channels to one swtpm. Not safe for threads: the gateway gives turns.

    Every method raises `UnavailableError` when swtpm is gone, silent, or answers with an error;
    after that the streams have no meaning any more and the connection stays unusable.
    """

    def __init__(self, control_socket: socket.socket, data_socket: socket.socket) -> None:
        self._control = control_socket
        self._data = data_socket
        self._broken = ""

    def initialize(self) -> None:
        """Power the TPM on, as after `stop`: it waits for TPM2_Startup, with no volatile state kept."""
        self._request(ControlCommand.INIT, struct.pack(">I", _PTM_INIT_FLAG_DELETE_VOLATILE))

    def stop(self) -> None:
        """Power the TPM off."""
        self._request(ControlCommand.STOP)

    def shutdown(self) -> None:
        """Ask swtpm to end itself."""
        self._request(ControlCommand.SHUTDOWN)

    def set_locality(self, locality: int) -> None:
        """Set the locality of all commands that follow."""
        self._request(ControlCommand.SET_LOCALITY, bytes([locality]))

    def established(self) -> bool:
        """Return whether a D-RTM sequence has run since the establishment bit was reset."""
        answer = self._exchange(ControlCommand.GET_TPMESTABLISHED, b"", 8)
        result, bit = control.read_established(answer)
        self._check(ControlCommand.GET_TPMESTABLISHED, result)
        return bit

    def set_buffer_size(self, wanted: int) -> tuple[int, int, int]:
        """Set the size of TPM buffers (0 asks only); return (size, smallest, largest). Needs `stop`."""
        answer = self._exchange(ControlCommand.SET_BUFFERSIZE, struct.pack(">I", wanted), 16)
        result, size, smallest, largest = control.read_buffer_size(answer)
        self._check(ControlCommand.SET_BUFFERSIZE, result)
        return size, smallest, largest

    def hash_sequence(self, data: bytes) -> None:
        """Run _TPM_Hash_Start, _Data and _End over `data` (TPM 2.0 Part 1, section 34.2): D-RTM.

        PCR 17 becomes H(0^32 || H(data)); PCR 18 to 22 become zeros.
        """
        self._request(ControlCommand.HASH_START)
        for at in range(0, len(data), _HASH_CHUNK):
            chunk = data[at : at + _HASH_CHUNK]
            self._request(ControlCommand.HASH_DATA, struct.pack(">I", len(chunk)) + chunk)
        self._request(ControlCommand.HASH_END)

    def execute(self, command: bytes, *, timeout: float) -> bytes:
        """Send one TPM command and return the response, whatever its code.

        `command` is at most `MAX_TPM_MESSAGE` bytes and its size field is true (the caller's duty:
        `ValueError`). `timeout` is in seconds.
        """
        if not 10 <= len(command) <= MAX_TPM_MESSAGE or int.from_bytes(command[2:6], "big") != len(command):
            raise ValueError("a TPM command's size field must be its size")
        self._usable()
        try:
            self._data.settimeout(timeout)
            self._data.sendall(command)
            return self._receive_response()
        except (OSError, UnavailableError) as error:
            raise self._break("a TPM command", error) from error

    def close(self) -> None:
        """Close both channels; swtpm ends when its control channel does."""
        self._broken = self._broken or "it was closed"
        self._data.close()
        self._control.close()

    def _request(self, command: ControlCommand, payload: bytes = b"") -> None:
        self._check(command, control.read_result(self._exchange(command, payload, 4)))

    def _exchange(self, command: ControlCommand, payload: bytes, answer_size: int) -> bytes:
        self._usable()
        try:
            self._control.settimeout(_CONTROL_TIMEOUT)
            self._control.sendall(control.request(command, payload))
            return self._receive(self._control, answer_size)
        except (OSError, UnavailableError) as error:
            raise self._break(command.name, error) from error

    def _check(self, command: ControlCommand, result: int) -> None:
        if result:
            raise self._break(command.name, UnavailableError(f"result {result:#x}"))

    def _usable(self) -> None:
        if self._broken:
            raise UnavailableError(f"the connection to swtpm is unusable: {self._broken}")

    def _break(self, subject: str, error: Exception) -> UnavailableError:
        self._broken = f"{subject}: {error or type(error).__name__}"
        return UnavailableError(f"swtpm failed at {self._broken}")

    def _receive_response(self) -> bytes:
        header = self._receive(self._data, 10)
        size = int.from_bytes(header[2:6], "big")
        if not 10 <= size <= MAX_TPM_MESSAGE:
            raise UnavailableError(f"swtpm announced a response of {size} bytes")
        return header + self._receive(self._data, size - 10)

    @staticmethod
    def _receive(channel: socket.socket, size: int) -> bytes:
        data = bytearray()
        while len(data) < size:
            part = channel.recv(size - len(data))
            if not part:
                raise UnavailableError("swtpm closed its channel")
            data += part
        return bytes(data)


def start_swtpm(state: Path, *, log: Path) -> tuple[Child, SwtpmConnection]:
    """Start swtpm over the TPM state in the folder `state`, powered off.

    The TPM's seccomp filter is on (swtpm's default), TPM2_SetLocality commands are off (likewise).
    """
    program = find_program("swtpm", package="swtpm")
    control_ours, control_theirs = socket.socketpair()
    data_ours, data_theirs = socket.socketpair()
    with control_theirs, data_theirs:
        child = start_child(
            "swtpm",
            [
                *(program, "socket", "--tpm2"),
                *("--tpmstate", f"dir={state.absolute()},mode=0600"),
                *("--ctrl", f"type=unixio,clientfd={control_theirs.fileno()}"),
                *("--fd", str(data_theirs.fileno())),
            ],
            log=log,
            pass_fds=(control_theirs.fileno(), data_theirs.fileno()),
        )
    connection = SwtpmConnection(control_ours, data_ours)
    try:
        connection.stop()
    except UnavailableError as error:
        connection.close()
        child.stop()
        raise UnavailableError(f"swtpm did not start: {child.last_words() or error}") from error
    return child, connection
