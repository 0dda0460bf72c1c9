"""The Authenticode digest of a kernel file: what firmware and shim verify, and what PCR 4 holds.

It differs from the digest of the file in leaving out what a signature changes: the checksum, the
directory entry of the certificate table, and the certificate table itself.
"""

from __future__ import annotations

import hashlib

from affiant.model.errors import MalformedError

__all__ = ["authenticode_digest"]

_PE32_PLUS = 0x20B
_MAX_SECTIONS = 96  # Windows' own limit ("PE Format", COFF file header)


def authenticode_digest(data: bytes | memoryview) -> bytes | None:
    """Return the SHA-256 Authenticode digest of a PE32+ file; None if `data` is no PE file.

    Follows "Windows Authenticode Portable Executable Signature Format", section "Calculating the PE
    Image Hash", with the reading of UEFI firmware: headers, sections in order of their file offset,
    then what lies behind them up to the certificate table. Guaranteed: each byte of the file was
    hashed once, except the three that a signature changes.

    Raises `MalformedError` when the headers contradict each other: sections overlap or leave a gap,
    or the certificate table is not at the end of the file.
    """
    view = memoryview(data)
    if bytes(view[:2]) != b"MZ":
        return None
    pe = _u32(view, 0x3C)
    if pe + 24 + 240 > len(view) or bytes(view[pe : pe + 4]) != b"PE\0\0":
        return None
    section_count, optional_size = _u16(view, pe + 6), _u16(view, pe + 20)
    optional = pe + 24
    if _u16(view, optional) != _PE32_PLUS:
        raise MalformedError("PE file is not PE32+")
    headers_size = _u32(view, optional + 60)
    table = optional + optional_size
    directories_end = optional + 112 + 5 * 8
    if section_count > _MAX_SECTIONS or table < directories_end or _u32(view, optional + 108) < 5:
        raise MalformedError("PE file has no certificate directory or too many sections")
    if not table + section_count * 40 <= headers_size <= len(view):
        raise MalformedError("PE headers reach beyond their own size")
    checksum, directory = optional + 64, optional + 112 + 4 * 8
    certificates, certificates_size = _u32(view, directory), _u32(view, directory + 4)
    end = len(view)
    if certificates_size:
        if certificates + certificates_size != len(view):
            raise MalformedError("PE certificate table is not at the end of the file")
        end = certificates

    digest = hashlib.sha256()
    digest.update(view[:checksum])
    digest.update(view[checksum + 4 : directory])
    digest.update(view[directory + 8 : headers_size])
    position = headers_size
    for start, size in sorted(_sections(view, table, section_count)):
        if start != position or start + size > end:
            raise MalformedError("PE sections overlap, leave a gap or reach beyond the file")
        digest.update(view[start : start + size])
        position = start + size
    digest.update(view[position:end])
    return digest.digest()


def _sections(view: memoryview, table: int, count: int) -> list[tuple[int, int]]:
    """Return (file offset, size) of each section that occupies the file."""
    entries = [table + index * 40 for index in range(count)]
    sections = [(_u32(view, entry + 20), _u32(view, entry + 16)) for entry in entries]
    return [(start, size) for start, size in sections if size]


def _u16(view: memoryview, offset: int) -> int:
    return int.from_bytes(view[offset : offset + 2], "little")


def _u32(view: memoryview, offset: int) -> int:
    return int.from_bytes(view[offset : offset + 4], "little")
