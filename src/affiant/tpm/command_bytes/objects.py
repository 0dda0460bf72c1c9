"""Commands over keys: make them, keep them, read their public part, let go of them."""

from __future__ import annotations

import struct
from dataclasses import dataclass

from affiant.model.errors import MalformedError
from affiant.tpm.algorithms import HashAlgorithm
from affiant.tpm.command import Command, build_command, password
from affiant.tpm.command_bytes.answer import read_nothing, skip_ticket
from affiant.tpm.command_bytes.handles import ENDORSEMENT, OWNER
from affiant.tpm.octets import OctetReader, sized
from affiant.tpm.public_area import PublicArea, parse_public

__all__ = ["CreatedPrimary", "create_primary", "evict_control", "flush_context", "read_public"]


@dataclass(frozen=True, slots=True)
class CreatedPrimary:
    """A loaded primary key; flush its transient `handle` when done. `encoding` is a TPM2B_PUBLIC."""

    handle: int
    public: PublicArea
    encoding: bytes


def create_primary(
    template: bytes, *, user_auth: bytes, hierarchy: int = ENDORSEMENT, hierarchy_auth: bytes = b""
) -> Command[CreatedPrimary]:
    """TPM2_CreatePrimary (Part 3, section 24.1) of `template` (a TPMT_PUBLIC).

    `user_auth` is the key's own authorization value, at most 32 octets. It is not part of what the
    key is derived from: another value gives the same key.
    """
    if len(user_auth) > HashAlgorithm.SHA256.digest_size:
        raise ValueError("an authorization value has at most 32 octets")
    # An empty sensitive data buffer, no outside information, no creation PCRs.
    parameters = sized(sized(user_auth) + sized(b"")) + sized(template) + sized(b"") + struct.pack(">I", 0)

    def read(reader: OctetReader, handle: int) -> CreatedPrimary:
        public = sized(reader.sized("public", maximum=2048))
        reader.sized("creation data", maximum=2048)
        reader.sized("creation hash", maximum=64)
        skip_ticket(reader)
        reader.sized("name", maximum=66)
        return CreatedPrimary(handle, parse_public(public), public)

    return build_command(
        "TPM2_CreatePrimary",
        0x131,
        read,
        handles=(hierarchy,),
        authorizations=(password(hierarchy_auth),),
        parameters=parameters,
        response_handle=True,
    )


def evict_control(
    handle: int, persistent: int, *, hierarchy: int = OWNER, hierarchy_auth: bytes = b""
) -> Command[None]:
    """TPM2_EvictControl (Part 3, section 28.5): keep a transient object at `persistent`.

    With `handle` equal to `persistent` the persistent object is removed. Objects of the
    endorsement hierarchy belong to the owner here.
    """
    return build_command(
        "TPM2_EvictControl",
        0x120,
        read_nothing,
        handles=(hierarchy, handle),
        authorizations=(password(hierarchy_auth),),
        parameters=struct.pack(">I", persistent),
    )


def flush_context(handle: int) -> Command[None]:
    """TPM2_FlushContext (Part 3, section 28.4)."""
    return build_command("TPM2_FlushContext", 0x165, read_nothing, parameters=struct.pack(">I", handle))


def read_public(handle: int) -> Command[PublicArea]:
    """TPM2_ReadPublic (Part 3, section 12.4); `MalformedError` when the answered Name is another."""

    def read(reader: OctetReader, _: int) -> PublicArea:
        public = parse_public(sized(reader.sized("public", maximum=2048)))
        name = reader.sized("name", maximum=66)
        reader.sized("qualified name", maximum=66)
        if name != public.name:
            raise MalformedError("TPM2_ReadPublic: the Name is not that of the public area")
        return public

    return build_command("TPM2_ReadPublic", 0x173, read, handles=(handle,))
