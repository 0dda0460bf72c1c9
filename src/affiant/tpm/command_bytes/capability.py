"""Commands that ask the TPM for what it has: loaded handles, banks of PCRs, random octets."""

from __future__ import annotations

import struct
from typing import Final

from affiant.model.errors import MalformedError
from affiant.tpm.algorithms import HashAlgorithm
from affiant.tpm.command import Command, build_command
from affiant.tpm.octets import OctetReader
from affiant.tpm.pcr_selection import read_pcr_selections

__all__ = ["get_handles", "get_pcr_banks", "get_random"]

_MAXIMUM_HANDLES: Final = 254
_CAP_HANDLES: Final = 0x00000001
_CAP_PCRS: Final = 0x00000005


def get_random(size: int) -> Command[bytes]:
    """TPM2_GetRandom (Part 3, section 16.1); the TPM may answer with fewer octets."""
    if not 0 < size <= 64:
        raise ValueError("one command gives 1 to 64 octets")

    def read(reader: OctetReader, _: int) -> bytes:
        return reader.sized("random", maximum=size)

    return build_command("TPM2_GetRandom", 0x17B, read, parameters=struct.pack(">H", size))


def get_handles(first: int, *, count: int = _MAXIMUM_HANDLES) -> Command[tuple[int, ...]]:
    """TPM2_GetCapability of handles (Part 3, section 30.2): those of `first`'s kind, from `first` on.

    0x81000000 lists persistent objects, 0x01000000 NV indices, 0x80000000 transient objects,
    0x02000000 loaded sessions.
    """

    def read(reader: OctetReader, _: int) -> tuple[int, ...]:
        _read_capability(reader, _CAP_HANDLES)
        found = reader.u32()
        if found > _MAXIMUM_HANDLES:
            raise MalformedError(f"TPM2_GetCapability: {found} handles")
        return tuple(reader.u32() for _ in range(found))

    parameters = struct.pack(">III", _CAP_HANDLES, first, count)
    return build_command("TPM2_GetCapability", 0x17A, read, parameters=parameters)


def get_pcr_banks() -> Command[tuple[HashAlgorithm, ...]]:
    """TPM2_GetCapability of PCRs (Part 3, section 30.2): the banks that have PCRs allocated."""

    def read(reader: OctetReader, _: int) -> tuple[HashAlgorithm, ...]:
        _read_capability(reader, _CAP_PCRS)
        return tuple(selection.bank for selection in read_pcr_selections(reader) if selection.pcrs)

    parameters = struct.pack(">III", _CAP_PCRS, 0, 1)
    return build_command("TPM2_GetCapability", 0x17A, read, parameters=parameters)


def _read_capability(reader: OctetReader, expected: int) -> None:
    reader.u8()  # moreData
    if (found := reader.u32()) != expected:
        raise MalformedError(f"TPM2_GetCapability: capability {found} instead of {expected}")
