"""A kernel as a distribution ships it: a Debian package, or a kernel file alone.

A package is read as a stream and never unpacked to disk. It is not verified here: the package manager
did that, and what a reference image says about a kernel file is bound to the digest of that file.
"""

from __future__ import annotations

import gzip
import io
import lzma
import re
import tarfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from email.errors import MessageError
from email.parser import BytesParser
from pathlib import Path
from typing import IO, cast

import zstandard

from affiant.kernel.reference.decompress import compression_of
from affiant.model.errors import EvidenceError, MalformedError, SetupError, UnavailableError

__all__ = ["PackageFile", "PackageName", "is_package", "package_files", "package_name", "read_bounded"]

_AR_MAGIC = b"!<arch>\n"
_AR_HEADER = 60
_MAX_PACKAGE = 512 << 20
_MAX_UNPACKED = 2 << 30
_MAX_CONTROL = 16 << 20
_MAX_MEMBERS = 200_000
_MAX_FILE = 256 << 20
_NAME = re.compile(r"[a-z0-9][a-z0-9+.-]{0,127}")
_VERSION = re.compile(r"[A-Za-z0-9.+:~-]{1,127}")


@dataclass(frozen=True, slots=True)
class PackageName:
    """Name, version and architecture as the package's control file says (deb-control(5))."""

    name: str
    version: str
    architecture: str

    def is_valid(self) -> bool:
        """Tell whether all three have the form that deb-control(5) gives them."""
        pairs = ((_NAME, self.name), (_VERSION, self.version), (_NAME, self.architecture))
        return all(isinstance(text, str) and pattern.fullmatch(text) for pattern, text in pairs)


@dataclass(frozen=True, slots=True)
class PackageFile:
    """A regular file of a package; `path` has no leading `./` or `/`."""

    path: str
    data: bytes


def read_bounded(path: Path) -> bytes:
    """Return a file's bytes.

    Raises `SetupError` for what is no file, `UnavailableError` if it can't be read, `MalformedError`
    above 512 MiB.
    """
    try:
        if not path.is_file():
            raise SetupError(f"{path} is not a file")
        if path.stat().st_size > _MAX_PACKAGE:
            raise MalformedError(f"{path} is larger than {_MAX_PACKAGE >> 20} MiB")
        return path.read_bytes()
    except OSError as error:
        raise UnavailableError(f"cannot read {path}: {error.strerror}") from error


def is_package(data: bytes | memoryview) -> bool:
    """Tell whether the bytes begin like a Debian package (deb(5))."""
    return bytes(data[:8]) == _AR_MAGIC


def package_name(data: bytes) -> PackageName:
    """Return what the control file of a package says. Raises `MalformedError` if it says nonsense."""
    for file in _tar(_ar_member(data, "control.tar"), _MAX_CONTROL, re.compile(r"control")):
        try:
            fields = BytesParser().parsebytes(file.data, headersonly=True)
        except (MessageError, UnicodeError) as error:
            raise MalformedError("the package's control file cannot be read") from error
        found = PackageName(*(str(fields.get(key, "")) for key in ("Package", "Version", "Architecture")))
        if not found.is_valid():
            raise MalformedError("the package's control file lacks a name, version or architecture")
        return found
    raise MalformedError("the package has no control file")


def package_files(data: bytes, wanted: re.Pattern[str]) -> Iterator[PackageFile]:
    """Yield the regular files whose whole path matches `wanted`, in the package's order.

    Guaranteed: no file above 256 MiB, at most 200,000 members, at most 2 GiB unpacked. Raises
    `MalformedError` when the package exceeds that or is broken, as far as it was read.
    """
    yield from _tar(_ar_member(data, "data.tar"), _MAX_UNPACKED, wanted)


def _ar_member(data: bytes, prefix: str) -> memoryview:
    """Return the first member whose name starts with `prefix` (deb(5): the names are fixed)."""
    view = memoryview(data)
    position = len(_AR_MAGIC)
    while position + _AR_HEADER <= len(view):
        header = bytes(view[position : position + _AR_HEADER])
        name, size_text = header[:16].rstrip(b" /"), header[48:58].strip()
        if header[58:] != b"`\n" or not size_text.isdigit():
            raise MalformedError("the package's archive is broken")
        position += _AR_HEADER
        size = int(size_text)
        if position + size > len(view):
            raise MalformedError("the package is truncated")
        if name.startswith(prefix.encode("ascii")):
            return view[position : position + size]
        position += size + size % 2
    raise MalformedError(f"the package has no {prefix}")


class _Bounded(io.RawIOBase):
    """A stream that refuses to give more than it may."""

    def __init__(self, stream: IO[bytes], limit: int) -> None:
        self._stream, self._left = stream, limit

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1, /) -> bytes:
        if size < 0:
            raise ValueError("an unbounded read of a bounded stream")
        data = self._stream.read(size)
        self._left -= len(data)
        if self._left < 0:
            raise MalformedError("the package unpacks to more than is accepted")
        return data


def _stream(member: memoryview) -> IO[bytes]:
    raw = io.BytesIO(member)
    kind = compression_of(member)
    if kind == "xz":
        return cast(IO[bytes], lzma.LZMAFile(raw))
    if kind == "zstd":
        return cast(IO[bytes], zstandard.ZstdDecompressor(max_window_size=1 << 27).stream_reader(raw))
    if kind == "gzip":
        return cast(IO[bytes], gzip.GzipFile(fileobj=raw))
    return raw


def _tar(member: memoryview, limit: int, wanted: re.Pattern[str]) -> Iterator[PackageFile]:
    try:
        with tarfile.open(fileobj=_Bounded(_stream(member), limit), mode="r|", errorlevel=2) as archive:
            for number, entry in enumerate(archive):
                if number >= _MAX_MEMBERS:
                    raise MalformedError(f"the package has more than {_MAX_MEMBERS} files")
                path = entry.name.removeprefix("./").lstrip("/")
                if not entry.isreg() or not wanted.fullmatch(path):
                    continue
                if entry.size > _MAX_FILE:
                    raise MalformedError(f"{path} in the package is larger than {_MAX_FILE >> 20} MiB")
                content = archive.extractfile(entry)
                if content is not None:
                    yield PackageFile(path=path, data=content.read())
    except EvidenceError:
        raise
    except (
        tarfile.TarError,
        lzma.LZMAError,
        zlib.error,
        zstandard.ZstdError,
        EOFError,
        OSError,
        ValueError,
    ) as error:
        raise MalformedError(f"the package's contents are broken: {error}") from error
