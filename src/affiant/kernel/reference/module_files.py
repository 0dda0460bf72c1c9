"""The module files of a reference image, in a file beside it.

A reference image names each module of its package by digest; the contents are needed only for modules
that a guest has loaded, and would double the image's size. So they lie in an archive beside it, one
compressed entry a module, found by name. The archive needs no trust of its own: what is read from it is
the file that the reference image names, or refused.
"""

from __future__ import annotations

import hashlib
import io
import zipfile
from collections.abc import Iterable
from pathlib import Path

import zstandard

from affiant.kernel.reference.decompress import compression_of, decompress
from affiant.kernel.reference.modules import ModuleEntry
from affiant.model.errors import ForgedError, MalformedError, UnavailableError

__all__ = ["ModuleFiles", "module_files_beside", "pack_module_files"]

_LARGEST = 128 << 20
_LARGEST_ARCHIVE = 1 << 30
_MOST = 20_000
_LEVEL = 9  # of zstd: a tenth larger than the highest, in a twentieth of the time


def module_files_beside(reference: Path) -> Path:
    """Return where the module files of a reference image lie, or would lie."""
    return reference.with_suffix(".modules")


def pack_module_files(modules: Iterable[tuple[ModuleEntry, bytes]]) -> bytes:
    """Return the archive of module files, each given as packaged (compressed or not)."""
    output = io.BytesIO()
    compressor = zstandard.ZstdCompressor(level=_LEVEL)
    with zipfile.ZipFile(output, "w", zipfile.ZIP_STORED) as archive:
        for entry, data in sorted(modules, key=lambda module: module[0].path):
            packed = data if compression_of(data) else compressor.compress(data)
            archive.writestr(zipfile.ZipInfo(entry.digest), packed)
    return output.getvalue()


class ModuleFiles:
    """Module files of one reference image; each is checked against the digest that the image names."""

    def __init__(self, path: Path) -> None:
        """Open the archive; raises UnavailableError if there is none, MalformedError if it is broken."""
        try:
            if path.stat().st_size > _LARGEST_ARCHIVE:
                raise MalformedError(f"{path} is larger than {_LARGEST_ARCHIVE >> 20} MiB")
            self._archive = zipfile.ZipFile(path)
            entries = self._archive.infolist()
        except OSError as error:
            raise UnavailableError(
                f"there are no module files at {path}",
                hint="build the reference again, from the distribution's package",
            ) from error
        except (zipfile.BadZipFile, ValueError, NotImplementedError) as error:
            raise MalformedError(f"{path} is no archive of modules: {error}") from error
        if len(entries) > _MOST:
            raise MalformedError(f"{path} holds more than {_MOST} modules")
        self._entries = {entry.filename: entry for entry in entries}

    def read(self, module: ModuleEntry) -> bytes:
        """Return the module's file, unpacked, signature included.

        Guaranteed: its SHA-256 is `module.digest`. Raises ForgedError if it is not, UnavailableError if
        the archive lacks the module, MalformedError if it cannot be unpacked.
        """
        entry = self._entries.get(module.digest)
        if entry is None:
            raise UnavailableError(f"the file of module {module.name} is not at hand")
        if entry.compress_type != zipfile.ZIP_STORED or entry.file_size > _LARGEST:
            raise MalformedError(f"the file of module {module.name} is stored in an unknown way")
        try:
            packed = self._archive.read(entry)
        except (zipfile.BadZipFile, OSError, ValueError, RuntimeError, EOFError) as error:
            raise MalformedError(f"the file of module {module.name} cannot be read: {error}") from error
        data = decompress(packed, limit=_LARGEST)
        if hashlib.sha256(data).hexdigest() != module.digest:
            raise ForgedError(f"the file of module {module.name} is not the one that the reference names")
        return data
