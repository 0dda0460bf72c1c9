"""A repository's folder: where its files are, and how they are read and written."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import Metadata, Root, Snapshot, Targets, Timestamp

from affiant.assertions.bundle_file import BundleFile, decode_bundle
from affiant.model.errors import SetupError, UnavailableError
from affiant.rules.fetching import NotFoundError
from affiant.rules.metadata import check_file
from affiant.rules.trusted import target_path
from affiant.wire.rules_path import FLEET

__all__ = ["LIVES", "Draft", "Published", "RulesFolder", "Settings", "write_file"]

LIVES: Final = {"root": 365, "targets": 180, "snapshot": 14, "timestamp": 1}
"""For how many days metadata is good, by its role, unless `init` was told otherwise."""


@dataclass(frozen=True, slots=True)
class Settings:
    """What `init` was told: the fleet that bundles are for, and the days that metadata lasts."""

    fleet: str
    days: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Published:
    """What the repository gives out now. `bundles`: by fleet."""

    root: Metadata[Root]
    timestamp: Metadata[Timestamp]
    snapshot: Metadata[Snapshot]
    targets: Metadata[Targets]
    bundles: Mapping[str, BundleFile]


@dataclass(frozen=True, slots=True)
class Draft:
    """What waits for signatures. Bundles that draft targets name lie beside them."""

    root: Metadata[Root] | None
    targets: Metadata[Targets] | None


class RulesFolder:
    """One repository on disk. Reading believes what is there: the folder is its owner's."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.public = path / "public"
        self.online = path / "online"
        self.draft = path / "draft"

    @property
    def exists(self) -> bool:
        """Tell whether `create` was called for this folder."""
        return self._settings_path.exists()

    @property
    def _settings_path(self) -> Path:
        return self.path / "settings.json"

    def create(self, settings: Settings) -> None:
        """Make the folders. Raises `SetupError` if there is a repository already."""
        if not FLEET.fullmatch(settings.fleet):
            raise SetupError(
                f"{settings.fleet!r} is no name for a fleet",
                hint="Use 1 to 63 of a-z, 0-9 and -, beginning with a letter or digit.",
            )
        if self.exists:
            raise SetupError(f"{self.path} is a rules repository already", hint="affiant rules status")
        for folder in (self.public / "metadata", self.public / "targets", self.draft):
            folder.mkdir(parents=True, exist_ok=True)
        self.online.mkdir(mode=0o700, exist_ok=True)
        content = {"fleet": settings.fleet, "days": dict(settings.days)}
        write_file(self._settings_path, (json.dumps(content, indent=1) + "\n").encode())

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep others out while something is changed. Raises `SetupError` if there is no repository."""
        if not self.exists:
            raise SetupError(f"{self.path} is no rules repository", hint="affiant rules init")
        with (self.path / ".lock").open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise UnavailableError(f"somebody else works on {self.path}", hint="try again") from None
            yield

    def settings(self) -> Settings:
        """Return what `init` was told."""
        try:
            content = json.loads(self._settings_path.read_bytes())
            return Settings(str(content["fleet"]), {role: int(content["days"][role]) for role in LIVES})
        except FileNotFoundError:
            raise SetupError(f"{self.path} is no rules repository", hint="affiant rules init") from None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise SetupError(f"{self._settings_path} is unusable: {error}") from None

    def latest_root(self) -> Metadata[Root] | None:
        """Return the newest root that is given out; None before the first."""
        versions = [
            int(path.name.partition(".")[0])
            for path in (self.public / "metadata").glob("*.root.json")
            if path.name.partition(".")[0].isdigit()
        ]
        return self._metadata(f"{max(versions)}.root.json") if versions else None

    def published(self) -> Published | None:
        """Return what is given out now; None before the first bundle was published."""
        root = self.latest_root()
        if root is None or not (self.public / "metadata" / "timestamp.json").exists():
            return None
        timestamp: Metadata[Timestamp] = self._metadata("timestamp.json")
        snapshot: Metadata[Snapshot] = self._metadata(
            f"{timestamp.signed.snapshot_meta.version}.snapshot.json"
        )
        version = snapshot.signed.meta["targets.json"].version
        targets: Metadata[Targets] = self._metadata(f"{version}.targets.json")
        return Published(
            root, timestamp, snapshot, targets, self.bundles(targets.signed, self.public / "targets")
        )

    def drafted(self) -> Draft:
        """Return what waits for signatures."""
        root = self.draft / "root.json"
        targets = self.draft / "targets.json"
        return Draft(
            _read_metadata(root) if root.exists() else None,
            _read_metadata(targets) if targets.exists() else None,
        )

    def bundles(self, targets: Targets, *folders: Path) -> dict[str, BundleFile]:
        """Return the bundles that `targets` names, by fleet, each from the first folder that has it."""
        found = {}
        for path, target in targets.targets.items():
            fleet = path.removesuffix(target_path(""))
            name = target.get_prefixed_paths()[0]
            data = next((one.read_bytes() for folder in folders if (one := folder / name).exists()), None)
            if data is None:
                raise SetupError(f"{self.path} lacks the file of a bundle: {name}")
            check_file(target, data, "bundle")
            found[fleet] = decode_bundle(data)
        return found

    def save_draft(self, metadata: Metadata[Root] | Metadata[Targets]) -> None:
        """Write draft root or draft targets, with the signatures that they have."""
        self.draft.mkdir(exist_ok=True)
        write_file(self.draft / f"{metadata.signed.type}.json", metadata.to_bytes())

    def fetch(self, path: str, maximum: int) -> bytes:
        """Return a public file, as a web server would give it to a monitor."""
        try:
            with (self.public / path).open("rb") as file:
                return file.read(maximum + 1)
        except FileNotFoundError:
            raise NotFoundError(f"{path} is not in the repository") from None

    def _metadata(self, name: str) -> Metadata[Any]:
        return _read_metadata(self.public / "metadata" / name)


def _read_metadata(path: Path) -> Metadata[Any]:
    try:
        return Metadata.from_bytes(path.read_bytes())
    except (OSError, RepositoryError) as error:
        raise SetupError(f"{path} is unusable: {error}") from None


def write_file(path: Path, content: bytes) -> None:
    """Replace a file whole or not at all. Raises `SetupError` where that is impossible."""
    temporary = path.with_name(f".{path.name}.new")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise SetupError(f"{path} cannot be written: {error.strerror}") from None
