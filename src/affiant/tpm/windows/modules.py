"""Modules that Windows' loaders put into memory: paths, Authenticode digests, who signed them.

Windows measures each into PCR 13 (SIPAEVENT_LOADEDMODULE_AGGREGATION), with what its own check of the
signature said; PCR 12 holds the same digests with the address where each was put.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from affiant.model.errors import MalformedError
from affiant.tpm.windows.little_endian import decode_utf16
from affiant.tpm.windows.sipa import Sipa, SipaEvent

__all__ = ["LoadedModule", "read_module"]

_MAXIMUM_TEXT: Final = 4096
_MAXIMUM_OCTETS: Final = 64


@dataclass(frozen=True, slots=True)
class LoadedModule:
    """One module, as the boot code that loaded it measured it.

    `digest` is the Authenticode digest, of the algorithm `hash_algorithm` (a CALG identifier of
    `wincrypt.h`; 0x800C is SHA-256). `validated` is whether the loader accepted the signature; None
    when it did not say. `issuer` and `publisher` are common names of the signing certificate, `serial`
    and `thumbprint` (SHA-1) its own. `svn` is the security version, where measured.
    """

    path: str
    digest: bytes
    hash_algorithm: int
    validated: bool | None
    issuer: str
    publisher: str
    serial: bytes
    thumbprint: bytes
    svn: int | None

    @property
    def file_name(self) -> str:
        """The last part of the path, in lower case: Windows' file names ignore case."""
        return self.path.rsplit("\\", 1)[-1].lower()


def read_module(event: SipaEvent) -> LoadedModule:
    """Read a LOADED_MODULE_AGGREGATION; events in it that are unknown are skipped.

    Raises MalformedError when a known one comes twice or cannot be read.
    """
    if event.identifier != Sipa.LOADED_MODULE_AGGREGATION:
        raise ValueError(f"{event.name} is no loaded module")
    validated = _one(event, Sipa.IMAGE_VALIDATED)
    return LoadedModule(
        path=_text(event, Sipa.FILE_PATH),
        digest=_octets(event, Sipa.AUTHENTICODE_HASH),
        hash_algorithm=_number(event, Sipa.HASH_ALGORITHM_ID) or 0,
        validated=None if validated is None else validated.payload == b"\x01",
        issuer=_text(event, Sipa.AUTHORITY_ISSUER),
        publisher=_text(event, Sipa.AUTHORITY_PUBLISHER),
        serial=_octets(event, Sipa.AUTHORITY_SERIAL),
        thumbprint=_octets(event, Sipa.AUTHORITY_SHA1_THUMBPRINT),
        svn=_number(event, Sipa.MODULE_SVN),
    )


def _one(event: SipaEvent, identifier: Sipa) -> SipaEvent | None:
    found = event.all(identifier)
    if len(found) > 1:
        raise MalformedError(f"loaded module: {identifier.name} comes {len(found)} times")
    return found[0] if found else None


def _octets(event: SipaEvent, identifier: Sipa) -> bytes:
    found = _one(event, identifier)
    if found is None:
        return b""
    if len(found.payload) > _MAXIMUM_OCTETS:
        raise MalformedError(f"loaded module: {identifier.name} of {len(found.payload)} octets")
    return found.payload


def _text(event: SipaEvent, identifier: Sipa) -> str:
    found = _one(event, identifier)
    if found is None:
        return ""
    if len(found.payload) > _MAXIMUM_TEXT:
        raise MalformedError(f"loaded module: {identifier.name} of {len(found.payload)} octets")
    return decode_utf16(found.payload, f"loaded module: {identifier.name}")


def _number(event: SipaEvent, identifier: Sipa) -> int | None:
    found = _one(event, identifier)
    return None if found is None else found.number
