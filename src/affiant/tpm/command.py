"""One TPM command as a value: its bytes, and how to read the response to it.

TPM 2.0 Library, Part 1, section 18 (command and response structure, password authorizations).
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final, Generic, TypeVar

from affiant.model.errors import MalformedError
from affiant.tpm.octets import OctetReader, sized
from affiant.tpm.response_code import CommandRefusedError, ResponseCode

__all__ = ["MAXIMUM_RESPONSE", "Authorization", "Command", "build_command", "password"]

Result = TypeVar("Result")

MAXIMUM_RESPONSE: Final = 4096
"""Octets of the longest response that is read: what a PC Client TPM exchanges at most."""

_NO_SESSIONS: Final = 0x8001
_SESSIONS: Final = 0x8002
_PASSWORD_SESSION: Final = 0x40000009
_CONTINUE_SESSION: Final = 0x01
_MAXIMUM_NONCE: Final = 64
_HEADER: Final = struct.Struct(">HII")


@dataclass(frozen=True, slots=True)
class Authorization:
    """One entry of a command's authorization area.

    A password (`session` TPM_RS_PW) travels in the clear: only over a channel that nobody else reads.
    """

    session: int
    secret: bytes = field(repr=False)


def password(secret: bytes) -> Authorization:
    """Authorize with the object's auth value itself; an empty one for an object without."""
    return Authorization(_PASSWORD_SESSION, secret)


@dataclass(frozen=True, slots=True)
class Command(Generic[Result]):
    """A command: send `encoding`, give the answer to `read_response`.

    `name` is the specification's (`TPM2_Quote`). The encoding may hold an authorization value, so it is not
    shown by `repr`.
    """

    name: str
    encoding: bytes = field(repr=False)
    _authorizations: int = field(repr=False)
    _response_handle: bool = field(repr=False)
    _read: Callable[[OctetReader, int], Result] = field(repr=False)

    def read_response(self, response: bytes) -> Result:
        """The result that a TPM answered with.

        Raises CommandRefusedError (a response code other than success) or MalformedError (not a
        response to this command).
        """
        if len(response) > MAXIMUM_RESPONSE:
            raise MalformedError(f"{self.name}: response of {len(response)} octets")
        reader = OctetReader(response, f"response to {self.name}")
        tag, size, code = reader.u16(), reader.u32(), reader.u32()
        if size != len(response):
            raise MalformedError(f"{self.name}: response of {len(response)} octets says {size}")
        if code:
            raise CommandRefusedError(self.name, ResponseCode(code))
        if tag != (_SESSIONS if self._authorizations else _NO_SESSIONS):
            raise MalformedError(f"{self.name}: response with tag 0x{tag:04x}")
        handle = reader.u32() if self._response_handle else 0
        size = reader.u32() if self._authorizations else reader.remaining
        parameters = OctetReader(reader.take(size), f"response to {self.name}")
        result = self._read(parameters, handle)
        parameters.finish()
        for _ in range(self._authorizations):  # what a session answers proves nothing without a session key
            reader.sized("session nonce", maximum=_MAXIMUM_NONCE)
            reader.u8()
            reader.sized("session authorization", maximum=_MAXIMUM_NONCE)
        reader.finish()
        return result


def build_command(
    name: str,
    code: int,
    read: Callable[[OctetReader, int], Result],
    *,
    handles: Sequence[int] = (),
    authorizations: Sequence[Authorization] = (),
    parameters: bytes = b"",
    response_handle: bool = False,
) -> Command[Result]:
    """Put a command together; `read` reads the response's parameters (and takes its handle)."""
    body = b"".join(struct.pack(">I", handle) for handle in handles)
    if authorizations:
        area = b"".join(
            struct.pack(">I", entry.session) + sized(b"") + bytes([_CONTINUE_SESSION]) + sized(entry.secret)
            for entry in authorizations
        )
        body += struct.pack(">I", len(area)) + area
    body += parameters
    tag = _SESSIONS if authorizations else _NO_SESSIONS
    encoding = _HEADER.pack(tag, _HEADER.size + len(body), code) + body
    return Command(name, encoding, len(authorizations), response_handle, read)
