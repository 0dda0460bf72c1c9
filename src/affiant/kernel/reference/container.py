"""The one-file format of a reference image: named parts, one encoding, a digest over everything.

    header     16 bytes magic with the format's version, u32 number of parts, u32 zero, u64 file length
    directory  for each part 112 bytes: name (64 bytes, NUL padded), u32 kind, u32 flags, and five u64:
               address, load address, size in memory, offset in the file, length in the file
    parts      each at a multiple of 64 bytes, in the order of the directory, zeros between
    trailer    SHA-256 of all bytes before

Integers are little-endian, as in the kernel that it holds. Parts are stored as they are: a compressor's
output depends on its version, and the digest of a reference must not. A reader skips kinds that it does
not know, so parts can be added without a new version.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

from affiant.model.errors import MalformedError

__all__ = ["MAGIC", "Container", "Part", "PartKind", "decode_container", "encode_container"]

MAGIC = b"AFFIANT KERNEL\x00\x01"
_HEADER = struct.Struct("<16sIIQ")
_ENTRY = struct.Struct("<64sII5Q")
_ALIGNMENT = 64
_MAX_PARTS = 1024
_MAX_LENGTH = 512 << 20
_TRAILER = 32


class PartKind(IntEnum):
    """What a part is; numbers are part of the format."""

    SECTION = 1  # linked bytes of the kernel; without bytes in the file for zeros
    DATA = 2  # derived by the builder


@dataclass(frozen=True, slots=True)
class Part:
    """One named piece. `address`, `load_address` and `size` describe a SECTION and are 0 for DATA."""

    name: str
    kind: int
    data: bytes | memoryview
    address: int = 0
    load_address: int = 0
    size: int = 0
    writable: bool = False
    executable: bool = False


@dataclass(frozen=True, slots=True)
class Container:
    """Decoded parts in the order of the file; `digest` is the SHA-256 of the whole file."""

    parts: tuple[Part, ...]
    digest: bytes


def encode_container(parts: Sequence[Part]) -> bytes:
    """Return the file that holds the parts in this order; the same parts give the same bytes."""
    if len(parts) > _MAX_PARTS:
        raise ValueError(f"{len(parts)} parts")
    directory = bytearray()
    chunks: list[bytes | memoryview] = []
    position = _aligned(_HEADER.size + _ENTRY.size * len(parts))
    directory_padding = position - _HEADER.size - _ENTRY.size * len(parts)
    for part in parts:
        name = part.name.encode("ascii")
        if not 0 < len(name) <= 64:
            raise ValueError(f"part name {part.name!r}")
        flags = part.writable | part.executable << 1
        directory += _ENTRY.pack(
            name, part.kind, flags, part.address, part.load_address, part.size, position, len(part.data)
        )
        chunks += (part.data, bytes(_aligned(len(part.data)) - len(part.data)))
        position += _aligned(len(part.data))
    header = _HEADER.pack(MAGIC, len(parts), 0, position + _TRAILER)
    body = b"".join((header, directory, bytes(directory_padding), *chunks))
    return body + hashlib.sha256(body).digest()


def decode_container(data: bytes | memoryview) -> Container:
    """Return the parts of a reference file.

    Guaranteed: the trailer is the SHA-256 of what precedes it; at most 1024 parts and 512 MiB; names are
    unique printable ASCII; parts follow each other without gap or overlap, with zeros as padding; the
    file is exactly as long as it says. Not guaranteed: anything about the meaning of a part, or who
    made the file: compare `digest` with one from a source you trust.

    Raises `MalformedError` otherwise.
    """
    view = memoryview(data).toreadonly()
    if len(view) < _HEADER.size + _TRAILER or len(view) > _MAX_LENGTH:
        raise MalformedError(f"a reference image of {len(view)} bytes")
    magic, count, reserved, length = _HEADER.unpack_from(view)
    if magic != MAGIC:
        hint = "build it again with this version" if magic[:14] == MAGIC[:14] else ""
        raise MalformedError("not a reference image of this version", hint=hint)
    if reserved != 0 or length != len(view) or count > _MAX_PARTS:
        raise MalformedError("the reference image's header contradicts the file")
    start = _HEADER.size + count * _ENTRY.size
    if _aligned(start) + _TRAILER > len(view):
        raise MalformedError("the reference image's directory reaches beyond the file")
    digest = hashlib.sha256(view[:-_TRAILER])
    if digest.digest() != bytes(view[-_TRAILER:]):
        raise MalformedError("the reference image does not match its own digest", hint="build it again")
    digest.update(view[-_TRAILER:])
    position = start
    parts: list[Part] = []
    for index in range(count):
        part, position = _part(view, index, position)
        parts.append(part)
    _check_zeros(view, position, len(view) - _TRAILER)
    if len({part.name for part in parts}) != len(parts):
        raise MalformedError("two parts of the reference image have one name")
    return Container(parts=tuple(parts), digest=digest.digest())


def _part(view: memoryview, index: int, position: int) -> tuple[Part, int]:
    """Return a part and the position behind it; `position` is where the part before it ended."""
    raw, kind, flags, address, load_address, size, offset, length = _ENTRY.unpack_from(
        view, _HEADER.size + index * _ENTRY.size
    )
    stripped: bytes = raw.rstrip(b"\0")
    if not stripped or not stripped.isascii() or not stripped.decode("ascii").isprintable():
        raise MalformedError("a part of the reference image has no printable name")
    name = stripped.decode("ascii")
    if offset != _aligned(position) or offset + length > len(view) - _TRAILER or flags > 3:
        raise MalformedError(f"part {name} of the reference image is out of place")
    _check_zeros(view, position, offset)
    if kind == PartKind.SECTION and (length not in (0, size) or load_address + size > 1 << 64):
        raise MalformedError(f"section {name} of the reference image has two sizes")
    part = Part(
        name=name,
        kind=kind,
        data=view[offset : offset + length],
        address=address,
        load_address=load_address,
        size=size,
        writable=bool(flags & 1),
        executable=bool(flags & 2),
    )
    return part, offset + length


def _check_zeros(view: memoryview, start: int, end: int) -> None:
    if end - start >= _ALIGNMENT or any(view[start:end]):
        raise MalformedError("the reference image holds bytes that belong to no part")


def _aligned(position: int) -> int:
    return -(-position // _ALIGNMENT) * _ALIGNMENT
