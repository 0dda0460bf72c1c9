"""The archive that the kernel unpacks as its first file system: cpio, `newc` format.

Documentation/driver-api/early-userspace/buffer-format.rst describes it. Written here because an
archive must name devices and owners that an unprivileged user cannot create on disk first.
"""

from __future__ import annotations

import stat
from collections.abc import Iterable
from dataclasses import dataclass

__all__ = ["Entry", "pack"]

_HEADER = "070701" + "{:08X}" * 13
_ALIGNMENT = 4
_END = "TRAILER!!!"


@dataclass(frozen=True, slots=True)
class Entry:
    """One file of the archive, owned by root, with a relative name.

    `mode` holds the type and permissions as in stat(2); `data` is a file's contents or a
    symbolic link's target; `device` is (major, minor) of a device node.
    """

    name: str
    mode: int
    data: bytes = b""
    device: tuple[int, int] = (0, 0)

    @classmethod
    def folder(cls, name: str) -> Entry:
        """Return a folder, mode 0755."""
        return cls(name, stat.S_IFDIR | 0o755)

    @classmethod
    def file(cls, name: str, data: bytes, *, executable: bool = False) -> Entry:
        """Return a regular file, mode 0755 or 0644."""
        return cls(name, stat.S_IFREG | (0o755 if executable else 0o644), data)

    @classmethod
    def link(cls, name: str, target: str) -> Entry:
        """Return a symbolic link."""
        return cls(name, stat.S_IFLNK | 0o777, target.encode())


def pack(entries: Iterable[Entry]) -> bytes:
    """Return the archive. Deterministic: times are zero, inode numbers count from 1."""
    archive = bytearray()
    for inode, entry in enumerate(entries, start=1):
        if entry.name.startswith("/") or entry.name in ("", _END):
            raise ValueError(f"not a name for an archive: {entry.name!r}")
        links = 2 if stat.S_ISDIR(entry.mode) else 1
        _append(archive, entry.name, (inode, entry.mode, 0, 0, links, 0), entry.data, entry.device)
    _append(archive, _END, (0, 0, 0, 0, 1, 0), b"", (0, 0))
    return bytes(archive)


def _append(
    archive: bytearray, name: str, fields: tuple[int, ...], data: bytes, device: tuple[int, int]
) -> None:
    encoded = name.encode() + b"\0"
    # Fields: inode, mode, uid, gid, links, mtime; size; device of the file system (major, minor);
    # device of the node (major, minor); size of the name; checksum (not in this format: 0).
    archive += _HEADER.format(*fields, len(data), 0, 0, *device, len(encoded), 0).encode()
    archive += encoded
    archive += bytes(-len(archive) % _ALIGNMENT)
    archive += data
    archive += bytes(-len(archive) % _ALIGNMENT)
