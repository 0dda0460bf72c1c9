"""What a guest may send to its TPM, and what it is told otherwise.

The bytes come from a hostile guest: QEMU copies them from guest memory without a look. swtpm knows
more than TPM commands on its data channel, among them a prefix that *sets the locality* of the
command behind it (`00000008 LL size`, see PTM_CAP_SEND_COMMAND_HEADER). Therefore only what is a
plain TPM 2.0 command in one piece is passed on.
"""

from __future__ import annotations

import socket
import struct
import time

from affiant.launcher.vtpm.swtpm import MAX_TPM_MESSAGE
from affiant.model.errors import MalformedError

__all__ = ["CommandError", "check_command", "error_response", "receive_command"]

# TPM 2.0 Part 2: section 6.9 (TPM_ST) and 6.6 (TPM_RC, format zero).
_ST_NO_SESSIONS = 0x8001
_ST_SESSIONS = 0x8002
RC_BAD_TAG = 0x01E
RC_FAILURE = 0x101
RC_COMMAND_SIZE = 0x142
RC_COMMAND_CODE = 0x143
RC_LOCALITY = 0x907
_VENDOR_COMMAND = 1 << 29  # TPMA_CC.V, Part 2, section 8.9

_HEADER = 10
_COMPLETION_SECONDS = 1.0  # QEMU writes a command at once; what is missing after that never comes
_IDLE_SECONDS = 0.02
_MAX_DISCARDED = 1 << 16


class CommandError(MalformedError):
    """A guest's command that is not passed on; `code` is the TPM_RC that the guest gets."""

    def __init__(self, message: str, *, code: int) -> None:
        super().__init__(message)
        self.code = code


def error_response(code: int) -> bytes:
    """Return the TPM response that holds nothing but an error code."""
    return struct.pack(">HII", _ST_NO_SESSIONS, _HEADER, code)


def check_command(command: bytes) -> None:
    """Refuse what is not a plain TPM 2.0 command.

    Guaranteed: the tag is TPM_ST_NO_SESSIONS or TPM_ST_SESSIONS, the size field is the number of
    bytes and at most `MAX_TPM_MESSAGE`, the command is not a vendor's. Raises `CommandError`.
    """
    if len(command) < _HEADER:
        raise CommandError(f"a TPM command of {len(command)} bytes", code=RC_COMMAND_SIZE)
    tag, size, code = struct.unpack_from(">HII", command)
    # The tag comes first: swtpm's own prefixes start with other values.
    if tag not in (_ST_NO_SESSIONS, _ST_SESSIONS):
        raise CommandError(f"a TPM command with tag {tag:#06x}", code=RC_BAD_TAG)
    if size != len(command) or size > MAX_TPM_MESSAGE:
        raise CommandError(f"a TPM command of {len(command)} bytes that claims {size}", code=RC_COMMAND_SIZE)
    if code & _VENDOR_COMMAND:
        raise CommandError(f"a vendor's TPM command {code:#010x}", code=RC_COMMAND_CODE)


def receive_command(channel: socket.socket) -> bytes | None:
    """Wait for one command of the guest and return it checked, or None when the channel ended.

    Raises `CommandError` after it has read what there was to read: QEMU sends the next command only
    when it has the response to this one, so the channel is in step again. Raises `OSError` when the
    channel fails, or when more arrives than a command can be.
    """
    channel.settimeout(None)
    data = bytearray(channel.recv(MAX_TPM_MESSAGE))
    if not data:
        return None
    deadline = time.monotonic() + _COMPLETION_SECONDS
    while len(data) < _expected(data) and (left := deadline - time.monotonic()) > 0:
        channel.settimeout(left)
        try:
            part = channel.recv(MAX_TPM_MESSAGE)
        except TimeoutError:
            break
        if not part:
            return None
        data += part
    excess = _discard(channel) if len(data) != _expected(data) or _more_waits(channel) else 0
    if excess:
        raise CommandError(f"a TPM command with {excess} bytes behind it", code=RC_COMMAND_SIZE)
    check_command(bytes(data))
    return bytes(data)


def _expected(data: bytes | bytearray) -> int:
    """Return how long the command must be, as far as `data` tells; a senseless size expects no more."""
    if len(data) < _HEADER:
        return _HEADER
    size = int.from_bytes(data[2:6], "big")
    return size if _HEADER <= size <= MAX_TPM_MESSAGE else len(data)


def _more_waits(channel: socket.socket) -> bool:
    channel.settimeout(0)
    try:
        return bool(channel.recv(1, socket.MSG_PEEK))
    except BlockingIOError:
        return False


def _discard(channel: socket.socket) -> int:
    """Read and forget what still comes; return how much."""
    discarded = 0
    channel.settimeout(_IDLE_SECONDS)
    while True:
        try:
            part = channel.recv(MAX_TPM_MESSAGE)
        except TimeoutError:
            return discarded
        if not part:
            return discarded
        discarded += len(part)
        if discarded > _MAX_DISCARDED:
            raise OSError("the guest's TPM channel is flooded")
