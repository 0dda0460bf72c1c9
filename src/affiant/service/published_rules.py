"""The rules repository that a service gives out: a folder of static files, written by its publisher.

Nothing here signs or verifies: the folder is the operator's own, and monitors verify every byte. Only
files by the names of such a repository are read, so nothing else in the folder can be asked for.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
import threading
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path

from affiant.assertions.bundle_file import MOST_BUNDLE_BYTES, decode_bundle
from affiant.model.errors import AffiantError, SetupError, UnavailableError
from affiant.wire.rules_path import TIMESTAMP_PATH, is_immutable, is_rules_path

__all__ = ["PublishedFile", "PublishedRules"]

_BYTES_KEPT = 16 << 20
_FOR_EVER = "public, max-age=31536000, immutable"
_ASK_AGAIN = "no-cache"  # keep it, and ask whether it is still the one (RFC 9111, section 5.2.2.4)


@dataclass(frozen=True, slots=True)
class PublishedFile:
    """A file of the repository: `digest` is SHA-256 of `body`."""

    path: str
    body: bytes
    digest: bytes

    @property
    def tag(self) -> str:
        """The entity tag (RFC 9110, section 8.8.3): another content, another tag."""
        return f'"{self.digest[:16].hex()}"'

    @property
    def caching(self) -> str:
        """For how long a cache may go by it."""
        return _FOR_EVER if is_immutable(self.path) else _ASK_AGAIN


class PublishedRules:
    """Reads a repository's public files, each again only when it was written anew. For all threads."""

    def __init__(self, folder: Path) -> None:
        """`folder` is a repository as `affiant rules init` makes it, or what it gives out (`public`)."""
        public = folder / "public"
        self._folder = public if public.is_dir() else folder
        if not (self._folder / "metadata").is_dir():
            raise SetupError(f"{folder} is no rules repository", hint="affiant rules init")
        self._lock = threading.Lock()
        self._kept: OrderedDict[str, tuple[tuple[int, ...], PublishedFile]] = OrderedDict()
        self._newest: tuple[bytes, int] = (b"", 0)

    def file(self, path: str) -> PublishedFile | None:
        """Return the file at `path`; None where there is none, or the name is none of a repository."""
        if not is_rules_path(path):
            return None
        try:
            # A link, a device or a pipe by that name is not the publisher's doing.
            flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
            descriptor = os.open(self._folder / path, flags)
        except OSError:
            return None
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode) or status.st_size > MOST_BUNDLE_BYTES:
                return None
            stamp = (status.st_ino, status.st_mtime_ns, status.st_size)
            with self._lock:
                kept = self._kept.get(path)
            if kept is not None and kept[0] == stamp:
                return kept[1]
            body = os.read(descriptor, MOST_BUNDLE_BYTES + 1)
        finally:
            os.close(descriptor)
        found = PublishedFile(path, body, hashlib.sha256(body).digest())
        self._keep(stamp, found)
        return found

    @property
    def timestamp(self) -> bytes | None:
        """SHA-256 of the newest timestamp: another one with everything that is published."""
        file = self.file(TIMESTAMP_PATH)
        return None if file is None else file.digest

    def roots(self) -> frozenset[bytes]:
        """Return SHA-256 of every root file that the repository has had."""
        files = (
            self.file(f"metadata/{path.name}") for path in (self._folder / "metadata").glob("*.root.json")
        )
        return frozenset(file.digest for file in files if file is not None)

    def newest_version(self) -> int:
        """Return the version of the bundle that is published; of several fleets' the lowest; 0 before any.

        Raises `UnavailableError` where the repository is not whole.
        """
        published = self.timestamp
        if published is None:
            return 0
        if self._newest[0] != published:
            self._newest = (published, self._read_version())
        return self._newest[1]

    def _read_version(self) -> int:
        try:
            timestamp = self._signed(TIMESTAMP_PATH)
            snapshot = self._signed(f"metadata/{timestamp['meta']['snapshot.json']['version']}.snapshot.json")
            targets = self._signed(f"metadata/{snapshot['meta']['targets.json']['version']}.targets.json")
            bundles = [
                decode_bundle(self._body(f"targets/{target['hashes']['sha256']}.{path}"))
                for path, target in targets["targets"].items()
            ]
        except (ValueError, KeyError, TypeError, AffiantError) as error:
            raise UnavailableError(f"the rules repository is not whole: {error}") from error
        return min((bundle.version for bundle in bundles), default=0)

    def _signed(self, path: str) -> dict:  # type: ignore[type-arg]  # the publisher's own JSON
        signed = json.loads(self._body(path))["signed"]
        if not isinstance(signed, dict):
            raise TypeError(path)
        return signed

    def _body(self, path: str) -> bytes:
        file = self.file(path)
        if file is None:
            raise KeyError(path)
        return file.body

    def _keep(self, stamp: tuple[int, ...], file: PublishedFile) -> None:
        with self._lock:
            self._kept.pop(file.path, None)
            self._kept[file.path] = (stamp, file)
            while sum(len(kept.body) for _, kept in self._kept.values()) > _BYTES_KEPT:
                self._kept.popitem(last=False)
