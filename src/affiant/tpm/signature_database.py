"""The content of PK, KEK, db, dbx and MokList: lists of EFI_SIGNATURE_LIST (UEFI, section 32.4.1)."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from functools import lru_cache
from typing import Final, NamedTuple
from uuid import UUID

from affiant.model.errors import MalformedError

__all__ = [
    "CERT_SHA256",
    "CERT_X509",
    "DatabaseEntry",
    "SignatureDatabase",
    "encode_certificate_list",
    "parse_signature_database",
]

CERT_X509: Final = UUID("a5c059a1-94e4-4aa7-87b5-ab155c2bf072")
"""EFI_CERT_X509_GUID: the entry is a DER certificate."""
CERT_SHA256: Final = UUID("c1c41626-504c-4092-aca9-41f936934328")
"""EFI_CERT_SHA256_GUID: the entry is an Authenticode digest."""

_MAXIMUM_DATABASE: Final = 1 << 18
_MAXIMUM_ENTRIES: Final = 4096
_LIST: Final = struct.Struct("<16sIII")  # type, list size, header size, signature size
_OWNER_SIZE: Final = 16


class DatabaseEntry(NamedTuple):
    """One EFI_SIGNATURE_DATA: `kind` tells what `content` is, `owner` who put it there (a claim).

    A tuple, since a dbx has hundreds of them.
    """

    kind: UUID
    owner: UUID
    content: bytes


@dataclass(frozen=True, slots=True)
class SignatureDatabase:
    """A database whose structure was checked; its entries are cut out when somebody asks.

    `encoding` is what was measured, `count` the number of its entries.
    """

    encoding: bytes
    count: int
    _lists: tuple[tuple[UUID, int, int, int], ...]

    def entries(self) -> tuple[DatabaseEntry, ...]:
        """All entries, in order."""
        data = self.encoding
        return tuple(
            DatabaseEntry(
                kind,
                _identifier(data[position : position + _OWNER_SIZE]),
                data[position + _OWNER_SIZE : position + size],
            )
            for kind, start, end, size in self._lists
            for position in range(start, end, size)
        )


@lru_cache(maxsize=64)  # the same few owners stand in every entry of every machine
def _identifier(octets: bytes) -> UUID:
    return UUID(bytes_le=octets)


def parse_signature_database(data: bytes) -> SignatureDatabase:
    """Read the lists of a signature database.

    Raises MalformedError: over 256 KiB or 4096 entries, lists that do not fill the data.
    """
    if len(data) > _MAXIMUM_DATABASE:
        raise MalformedError(f"signature database of {len(data)} octets")
    lists: list[tuple[UUID, int, int, int]] = []
    count = offset = 0
    while offset < len(data):
        if len(data) - offset < _LIST.size:
            raise MalformedError("signature database: a list ends early")
        kind, list_size, header_size, size = _LIST.unpack_from(data, offset)
        start = offset + _LIST.size + header_size
        end = offset + list_size
        if not start <= end <= len(data) or size < _OWNER_SIZE or (end - start) % size:
            raise MalformedError("signature database: a list has not the size it declares")
        count += (end - start) // size
        if count > _MAXIMUM_ENTRIES or len(lists) >= _MAXIMUM_ENTRIES:
            raise MalformedError(f"signature database of more than {_MAXIMUM_ENTRIES} entries")
        lists.append((_identifier(kind), start, end, size))
        offset = end
    return SignatureDatabase(data, count, tuple(lists))


def encode_certificate_list(owner: UUID, certificate: bytes) -> bytes:
    """The EFI_SIGNATURE_LIST that holds one DER certificate and nothing else."""
    size = _OWNER_SIZE + len(certificate)
    return _LIST.pack(CERT_X509.bytes_le, _LIST.size + size, 0, size) + owner.bytes_le + certificate
