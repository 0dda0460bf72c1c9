"""Encoding of the control messages between QEMU's `tpm-emulator` backend and swtpm; pure.

A request is a 4-byte command and its payload, an answer starts with a 4-byte result; all integers
are big-endian (swtpm's `tpm_ioctl.h`, whose structures QEMU writes as they lie in memory: a
one-byte locality may therefore come with three bytes of padding). Results are TPM 1.2 codes.

A request has no length of its own. Each side writes one in one piece and then waits for the
answer, so what arrives together is one request; `read_request` holds it against the table of sizes.
"""

from __future__ import annotations

import enum
import struct
from dataclasses import dataclass

from affiant.model.errors import MalformedError, UnavailableError

__all__ = [
    "MAX_REQUEST",
    "OFFERED_CAPABILITIES",
    "Capability",
    "ControlCommand",
    "ControlRequest",
    "ControlResult",
    "answer",
    "buffer_size_answer",
    "capability_answer",
    "established_answer",
    "read_buffer_size",
    "read_established",
    "read_request",
    "read_result",
    "request",
    "state_blob_answer",
]

MAX_REQUEST = 4096
"""No request that is granted is longer than a few bytes; this bounds the ones that are refused."""


class ControlCommand(enum.IntEnum):
    """The commands that QEMU or the gateway send."""

    GET_CAPABILITY = 0x01
    INIT = 0x02
    SHUTDOWN = 0x03
    GET_TPMESTABLISHED = 0x04
    SET_LOCALITY = 0x05
    HASH_START = 0x06
    HASH_DATA = 0x07
    HASH_END = 0x08
    CANCEL_TPM_CMD = 0x09
    STORE_VOLATILE = 0x0A
    RESET_TPMESTABLISHED = 0x0B
    GET_STATEBLOB = 0x0C
    SET_STATEBLOB = 0x0D
    STOP = 0x0E
    GET_CONFIG = 0x0F
    SET_DATAFD = 0x10
    SET_BUFFERSIZE = 0x11
    GET_INFO = 0x12
    LOCK_STORAGE = 0x13


class ControlResult(enum.IntEnum):
    """TPM 1.2 result codes, as this protocol uses them (TPM Main Part 2, section 16)."""

    SUCCESS = 0x00
    BAD_PARAMETER = 0x03
    FAIL = 0x09
    BAD_ORDINAL = 0x0A
    BAD_LOCALITY = 0x3D


class Capability(enum.IntFlag):
    """What the answer to GET_CAPABILITY may offer."""

    INIT = 1 << 0
    SHUTDOWN = 1 << 1
    GET_TPMESTABLISHED = 1 << 2
    SET_LOCALITY = 1 << 3
    HASHING = 1 << 4
    CANCEL_TPM_CMD = 1 << 5
    STORE_VOLATILE = 1 << 6
    RESET_TPMESTABLISHED = 1 << 7
    GET_STATEBLOB = 1 << 8
    SET_STATEBLOB = 1 << 9
    STOP = 1 << 10
    GET_CONFIG = 1 << 11
    SET_DATAFD = 1 << 12
    SET_BUFFERSIZE = 1 << 13


OFFERED_CAPABILITIES = (
    Capability.INIT
    | Capability.SHUTDOWN
    | Capability.GET_TPMESTABLISHED
    | Capability.SET_LOCALITY
    | Capability.CANCEL_TPM_CMD
    | Capability.RESET_TPMESTABLISHED
    | Capability.STOP
    | Capability.SET_DATAFD
    | Capability.SET_BUFFERSIZE
)
"""What the gateway offers QEMU: all that a TPM 2.0 needs there. Without the state blobs QEMU itself
blocks migration and snapshots, and without hashing it has no D-RTM of its own."""

# Payload sizes of each request, smallest and largest.
_PAYLOADS: dict[ControlCommand, tuple[int, int]] = {
    ControlCommand.GET_CAPABILITY: (0, 0),
    ControlCommand.INIT: (4, 4),
    ControlCommand.SHUTDOWN: (0, 0),
    ControlCommand.GET_TPMESTABLISHED: (0, 0),
    ControlCommand.SET_LOCALITY: (1, 4),
    ControlCommand.HASH_START: (0, 0),
    ControlCommand.HASH_DATA: (4, MAX_REQUEST - 4),
    ControlCommand.HASH_END: (0, 0),
    ControlCommand.CANCEL_TPM_CMD: (0, 0),
    ControlCommand.STORE_VOLATILE: (0, 0),
    ControlCommand.RESET_TPMESTABLISHED: (1, 4),
    ControlCommand.GET_STATEBLOB: (12, 12),
    ControlCommand.SET_STATEBLOB: (12, MAX_REQUEST - 4),
    ControlCommand.STOP: (0, 0),
    ControlCommand.GET_CONFIG: (0, 0),
    ControlCommand.SET_DATAFD: (0, 0),
    ControlCommand.SET_BUFFERSIZE: (4, 4),
    ControlCommand.GET_INFO: (16, 16),
    ControlCommand.LOCK_STORAGE: (4, 4),
}


@dataclass(frozen=True, slots=True)
class ControlRequest:
    """A request as it came: its command is known, its payload has a size that belongs to it."""

    command: ControlCommand
    payload: bytes

    @property
    def number(self) -> int:
        """The payload's leading integer: a 4-byte size or flags."""
        return int(struct.unpack_from(">I", self.payload)[0])

    @property
    def locality(self) -> int:
        """The payload's leading byte, for SET_LOCALITY and RESET_TPMESTABLISHED."""
        return self.payload[0]


def read_request(data: bytes) -> ControlRequest | None:
    """Return the request that `data` holds, or None while it is shorter than its command demands.

    Raises `MalformedError` for an unknown command and for a payload longer than its command's: the
    stream has no marks, so that its meaning is lost from there on.
    """
    if len(data) < 4:
        return None
    number = int.from_bytes(data[:4], "big")
    try:
        command = ControlCommand(number)
    except ValueError:
        raise MalformedError(f"TPM control request: unknown command {number:#x}") from None
    smallest, largest = _PAYLOADS[command]
    if len(data) - 4 > largest:
        raise MalformedError(
            f"TPM control request: {len(data) - 4} bytes for {command.name}, at most {largest}"
        )
    if len(data) - 4 < smallest:
        return None
    return ControlRequest(command, bytes(data[4:]))


def request(command: ControlCommand, payload: bytes = b"") -> bytes:
    """Return the bytes of a request. Raises `ValueError` for a payload that its command cannot have."""
    smallest, largest = _PAYLOADS[command]
    if not smallest <= len(payload) <= largest:
        raise ValueError(f"{command.name} takes {smallest} to {largest} bytes, not {len(payload)}")
    return struct.pack(">I", command) + payload


def answer(result: int) -> bytes:
    """Return the answer that holds nothing but a result."""
    return struct.pack(">I", result)


def capability_answer(capabilities: Capability) -> bytes:
    """Return the answer to GET_CAPABILITY: one 64-bit word."""
    return struct.pack(">Q", capabilities)


def established_answer(result: int, *, established: bool) -> bytes:
    """Return the answer to GET_TPMESTABLISHED: result, one byte, padding."""
    return struct.pack(">IB3x", result, established)


def buffer_size_answer(result: int, *, size: int, smallest: int, largest: int) -> bytes:
    """Return the answer to SET_BUFFERSIZE."""
    return struct.pack(">IIII", result, size, smallest, largest)


def state_blob_answer(result: int) -> bytes:
    """Return the answer to GET_STATEBLOB that carries no blob: flags, total length and length are 0.

    QEMU reads these 16 bytes whatever the result.
    """
    return struct.pack(">IIII", result, 0, 0, 0)


def read_result(data: bytes) -> int:
    """Return the result that starts swtpm's answer."""
    return int(struct.unpack(">I", _exactly(data, 4))[0])


def read_established(data: bytes) -> tuple[int, bool]:
    """Return result and established bit of swtpm's answer to GET_TPMESTABLISHED."""
    result, bit = struct.unpack(">IB3x", _exactly(data, 8))
    return result, bool(bit)


def read_buffer_size(data: bytes) -> tuple[int, int, int, int]:
    """Return (result, size, smallest, largest) of swtpm's answer to SET_BUFFERSIZE."""
    result, size, smallest, largest = struct.unpack(">IIII", _exactly(data, 16))
    return result, size, smallest, largest


def _exactly(data: bytes, size: int) -> bytes:
    # swtpm is part of the trusted base: a short answer means that it died, not that it lies.
    if len(data) != size:
        raise UnavailableError(f"swtpm answered a control request with {len(data)} bytes instead of {size}")
    return data
