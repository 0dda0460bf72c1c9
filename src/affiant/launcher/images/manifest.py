"""What an image holds, as one digest: a manifest over every file, folder and link of a folder.

The manifest is text: the line `affiant image manifest 1`, then one line for each entry, ordered by
the bytes of its path:

    folder MODE PATH
    file MODE SIZE SHA256 PATH
    link TARGET-LENGTH TARGET PATH

MODE is octal (permission bits), SIZE decimal, SHA256 hex, PATH relative. The digest is SHA-256 over
its UTF-8 bytes. Owners, times and extended attributes are not covered; mounted read-only and
without set-user-id, they decide nothing.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from affiant.model.errors import SetupError, UnavailableError

__all__ = ["Entry", "Manifest", "measure_folder"]

_HEADER = "affiant image manifest 1\n"
_THREADS = 2  # most of the work holds the interpreter's lock
_MAX_ENTRIES = 100_000
_BATCH = 64


@dataclass(frozen=True, slots=True)
class Entry:
    """One thing in a folder. `content` is a file's SHA-256 (hex) or a link's target, else empty."""

    path: str
    kind: str
    mode: int
    size: int
    content: str

    def line(self) -> str:
        """Return this entry's line of the manifest."""
        if self.kind == "file":
            return f"file {self.mode:04o} {self.size} {self.content} {self.path}\n"
        if self.kind == "link":
            return f"link {len(self.content)} {self.content} {self.path}\n"
        return f"folder {self.mode:04o} {self.path}\n"


@dataclass(frozen=True, slots=True)
class Manifest:
    """All entries of a folder, by path, and their digest (32 bytes)."""

    entries: tuple[Entry, ...]
    digest: bytes

    @classmethod
    def of(cls, entries: Iterable[Entry]) -> Manifest:
        """Order the entries and compute their digest."""
        ordered = tuple(sorted(entries, key=lambda entry: os.fsencode(entry.path)))
        text = _HEADER + "".join(entry.line() for entry in ordered)
        return cls(ordered, hashlib.sha256(text.encode()).digest())

    @property
    def files(self) -> int:
        """How many files there are."""
        return sum(entry.kind == "file" for entry in self.entries)

    @property
    def size(self) -> int:
        """Bytes of all files together."""
        return sum(entry.size for entry in self.entries if entry.kind == "file")


def measure_folder(root: Path) -> Manifest:
    """Read everything below `root` now and return its manifest; symbolic links are not followed.

    Raises `SetupError` for what an image must not hold (devices, sockets, set-user-id files, names
    that are not UTF-8 or hold a line break) and `UnavailableError` when something cannot be read.
    """
    try:
        entries: list[Entry] = []
        files: list[str] = []
        for found in _walk(root):
            if isinstance(found, str):
                files.append(found)
            else:
                entries.append(found)
            _check_count(root, len(entries) + len(files))
        batches = [files[at : at + _BATCH] for at in range(0, len(files), _BATCH)]
        with ThreadPoolExecutor(_THREADS) as pool:
            for batch in pool.map(lambda paths: [_measure_file(root, path) for path in paths], batches):
                entries += batch
    except OSError as error:
        raise UnavailableError(f"the image {root} cannot be measured: {error}") from error
    return Manifest.of(entries)


def _check_count(root: Path, count: int) -> None:
    if count > _MAX_ENTRIES:
        raise SetupError(f"{root} holds more than {_MAX_ENTRIES} entries")


def _walk(root: Path) -> Iterator[Entry | str]:
    """Yield folders and links as entries, files as relative paths."""
    pending = [""]
    while pending:
        folder = pending.pop()
        with os.scandir(root / folder) as found:
            for item in found:
                path = f"{folder}/{item.name}".lstrip("/")
                if "\n" in path or not path.isprintable():
                    raise SetupError(f"an image cannot hold a file named {path!r}")
                status = item.stat(follow_symlinks=False)
                mode = stat.S_IMODE(status.st_mode)
                if stat.S_ISLNK(status.st_mode):
                    yield Entry(path, "link", 0, 0, os.readlink(item.path))  # noqa: PTH115  a Path would tidy the text
                elif stat.S_ISDIR(status.st_mode):
                    yield Entry(path, "folder", mode, 0, "")
                    pending.append(path)
                elif stat.S_ISREG(status.st_mode) and not mode & (stat.S_ISUID | stat.S_ISGID):
                    yield path
                else:
                    raise SetupError(f"an image holds plain files only, not {path!r}")


def _measure_file(root: Path, path: str) -> Entry:
    descriptor = os.open(root / path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb", buffering=0) as file:
        status = os.fstat(descriptor)
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return Entry(path, "file", stat.S_IMODE(status.st_mode), status.st_size, digest)
