"""An EFI variable as it is measured: UEFI_VARIABLE_DATA (Platform Firmware Profile, section 10.2.6)."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from functools import lru_cache
from typing import Final
from uuid import UUID

from affiant.model.errors import MalformedError

__all__ = ["EFI_GLOBAL", "IMAGE_SECURITY", "SHIM_LOCK", "EfiVariable", "parse_variable", "variable_content"]

EFI_GLOBAL: Final = UUID("8be4df61-93ca-11d2-aa0d-00e098032b8c")
"""EFI_GLOBAL_VARIABLE: SecureBoot, PK, KEK, AuditMode, DeployedMode (UEFI, section 3.3)."""
IMAGE_SECURITY: Final = UUID("d719b2cb-3d3a-4596-a3bc-dad00e67656f")
"""EFI_IMAGE_SECURITY_DATABASE_GUID: db, dbx, dbt, dbr (UEFI, section 32.6.1)."""
SHIM_LOCK: Final = UUID("605dab50-e046-4300-abb6-3dd810dd8b23")
"""What shim and its machine owner keys use."""

_HEADER: Final = struct.Struct("<16sQQ")
_MAXIMUM_NAME: Final = 512  # UTF-16 units


@dataclass(frozen=True, slots=True)
class EfiVariable:
    """A variable's vendor, name and content, as decoded; trusted as far as the octets were."""

    vendor: UUID
    name: str
    content: bytes


@lru_cache(maxsize=64)  # the same few vendors name the variables of every machine
def _identifier(octets: bytes) -> UUID:
    return UUID(bytes_le=octets)


def parse_variable(data: bytes) -> EfiVariable:
    """Read a UEFI_VARIABLE_DATA that fills `data`; MalformedError when it does not."""
    if len(data) < _HEADER.size:
        raise MalformedError("EFI variable: ends early")
    vendor, name_units, content_size = _HEADER.unpack_from(data)
    if name_units > _MAXIMUM_NAME:
        raise MalformedError(f"EFI variable: name of {name_units} characters")
    end = _HEADER.size + 2 * name_units
    if end + content_size != len(data):
        raise MalformedError("EFI variable: sizes do not fill the data")
    try:
        name = data[_HEADER.size : end].decode("utf-16-le")
    except UnicodeDecodeError:
        raise MalformedError("EFI variable: the name is not UTF-16") from None
    return EfiVariable(_identifier(vendor), name.removesuffix("\0"), data[end:])


def variable_content(data: bytes) -> bytes | None:
    """The content of a UEFI_VARIABLE_DATA, None when `data` is none."""
    try:
        return parse_variable(data).content
    except MalformedError:
        return None
