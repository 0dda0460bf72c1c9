"""Commands that read NV indices, where a TPM keeps the certificates of its endorsement keys."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

from affiant.tpm.command import Command, build_command, password
from affiant.tpm.octets import OctetReader

__all__ = ["NV_READ_LIMIT", "NvPublic", "nv_read", "nv_read_public"]

NV_READ_LIMIT: Final = 1024
"""Octets that one NV_Read may ask for, at most."""


@dataclass(frozen=True, slots=True)
class NvPublic:
    """What of an NV index's public area is needed to read it."""

    index: int
    attributes: int
    data_size: int


def nv_read_public(index: int) -> Command[NvPublic]:
    """TPM2_NV_ReadPublic (Part 3, section 31.6)."""

    def read(reader: OctetReader, _: int) -> NvPublic:
        area = OctetReader(reader.sized("NV public", maximum=128), "NV public area")
        found, _hash, attributes = area.u32(), area.u16(), area.u32()
        area.sized("authPolicy", maximum=64)
        size = area.u16()
        area.finish()
        reader.sized("name", maximum=66)
        return NvPublic(found, attributes, size)

    return build_command("TPM2_NV_ReadPublic", 0x169, read, handles=(index,))


def nv_read(index: int, *, size: int, offset: int = 0) -> Command[bytes]:
    """TPM2_NV_Read (Part 3, section 31.13) of at most 1024 octets, with the index's empty auth."""
    if not 0 < size <= NV_READ_LIMIT:
        raise ValueError(f"one read takes 1 to {NV_READ_LIMIT} octets")

    def read(reader: OctetReader, _: int) -> bytes:
        return reader.sized("NV data", maximum=NV_READ_LIMIT)

    return build_command(
        "TPM2_NV_Read",
        0x14E,
        read,
        handles=(index, index),
        authorizations=(password(b""),),
        parameters=struct.pack(">HH", size, offset),
    )
