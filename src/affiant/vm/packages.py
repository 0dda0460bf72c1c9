"""Debian packages in a cache: fetched once, unpacked, never installed.

    PACKAGES = PackageCache(cache_folder())
    kernel = PACKAGES.fetch("linux-image-cloud-amd64", suite="trixie")

Layout below the cache folder: `packages/*.deb`, `packages/SUITE/NAME.json` (what a name was
resolved to, with the SHA-256 of the file), `unpacked/SHA256/` and `apt/SUITE/`. The digest is
checked again each time a cached file is used.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from affiant.model.errors import SetupError, UnavailableError
from affiant.vm.apt import Apt, machine_suite

__all__ = ["Package", "PackageCache"]

_NAME = re.compile(r"[a-z0-9][a-z0-9+.-]{1,100}")


@dataclass(frozen=True, slots=True)
class Package:
    """A Debian package file in the cache, its digest checked when this value was made.

    `name` is the real package's: for a kernel meta package, the image that it stands for.
    """

    name: str
    version: str
    suite: str
    path: Path
    sha256: str  # hex, of the .deb file


class PackageCache:
    """Fetches packages into `folder` and unpacks them there. Safe for several processes at once."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def fetch(self, name: str, *, suite: str | None = None, refresh: bool = False) -> Package:
        """Return the package `name` of a Debian `suite` (default: this machine's), from the cache if there.

        A meta package for kernel images is resolved to the signed image package of its newest
        kernel. With `refresh` the suite is asked again for a newer one.

        Raises SetupError when there is no such package, UnavailableError when it cannot be fetched.
        """
        if not _NAME.fullmatch(name):
            raise ValueError(f"not the name of a Debian package: {name!r}")
        suite = suite or machine_suite()
        record = self._folder / "packages" / suite / f"{name}.json"
        with self._locked(suite):
            if not refresh and (cached := self._cached(record)):
                return cached
            apt = Apt(self._folder / "apt" / suite, suite)
            apt.update(refresh=refresh)
            package = self._download(apt, _resolve(apt, name))
            record.parent.mkdir(parents=True, exist_ok=True)
            fields = {**asdict(package), "path": package.path.name}
            _write_whole(record, json.dumps(fields, indent=1, sort_keys=True))
            return package

    def unpack(self, package: Path, *, sha256: str | None = None) -> Path:
        """Return a folder with the contents of a .deb file; it is shared: do not write to it.

        Raises SetupError when the file is no readable Debian package, or not the one with `sha256`.
        """
        digest = _digest(package)
        if sha256 is not None and digest != sha256:
            raise SetupError(f"{package} changed", hint=f"remove {package} and try again")
        target = self._folder / "unpacked" / digest
        if target.is_dir():
            return target
        target.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(dir=target.parent, prefix=".unpacking-"))
        try:
            done = subprocess.run(
                ["dpkg-deb", "--extract", str(package), str(scratch / "root")],
                capture_output=True,
                text=True,
                timeout=300,
                check=False,
            )
            if done.returncode != 0:
                raise SetupError(f"{package} is no usable Debian package: {done.stderr.strip()[:200]}")
            try:
                (scratch / "root").rename(target)
            except OSError:
                if not target.is_dir():  # another process was faster otherwise
                    raise
        except FileNotFoundError as error:
            raise SetupError("dpkg-deb is not installed", hint="see docs/install.md") from error
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
        return target

    def contents(self, name: str, *, suite: str | None = None) -> tuple[Package, Path]:
        """Fetch and unpack a package: `fetch`, then `unpack`."""
        package = self.fetch(name, suite=suite)
        return package, self.unpack(package.path, sha256=package.sha256)

    def _cached(self, record: Path) -> Package | None:
        try:
            fields = json.loads(record.read_text(encoding="utf-8"))
            path = self._folder / "packages" / Path(fields["path"]).name
            package = Package(fields["name"], fields["version"], fields["suite"], path, fields["sha256"])
            return package if _digest(path) == package.sha256 else None
        except (OSError, ValueError, KeyError, TypeError):
            return None  # never fetched, or half-written by something else: fetch it again

    def _download(self, apt: Apt, fields: dict[str, str]) -> Package:
        target = self._folder / "packages" / Path(fields["filename"]).name
        if not (target.exists() and _digest(target) == fields["sha256"]):
            target.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=target.parent, prefix=".fetching-") as scratch:
                wanted = f"{fields['package']}={fields['version']}"
                apt.run("apt-get", "download", "-qq", wanted, folder=Path(scratch))
                files = list(Path(scratch).glob("*.deb"))
                if len(files) != 1 or _digest(files[0]) != fields["sha256"]:
                    raise UnavailableError(
                        f"apt did not deliver {wanted}", hint="try again with a fresh cache"
                    )
                files[0].rename(target)
        return Package(fields["package"], fields["version"], apt.suite, target, fields["sha256"])

    @contextmanager
    def _locked(self, suite: str) -> Iterator[None]:
        folder = self._folder / "apt" / suite
        try:
            folder.mkdir(parents=True, exist_ok=True)
            lock = (folder / "lock").open("w", encoding="utf-8")
        except OSError as error:
            raise SetupError(
                f"the cache folder is not writable: {error}", hint="set AFFIANT_CACHE"
            ) from error
        with lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield


def _resolve(apt: Apt, name: str) -> dict[str, str]:
    """Return the control fields of the package that `name` stands for."""
    fields = apt.show(name)
    if name.startswith("linux-image-"):
        for dependency in re.split(r"[,|]", fields.get("depends", "")):
            real = dependency.split("(")[0].strip()
            # A meta package depends on the image of the one kernel that is newest now.
            if re.fullmatch(r"linux-image-\d[a-z0-9+.~-]*", real):
                return apt.show(real)
    return fields


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _write_whole(path: Path, text: str) -> None:
    """Write a file so that a reader sees all of it or none."""
    scratch = path.with_name(f".{path.name}.new")
    scratch.write_text(text, encoding="utf-8")
    scratch.replace(path)
