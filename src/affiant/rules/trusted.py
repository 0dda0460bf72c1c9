"""The client of a rules repository: what is trusted now, and how it becomes something newer.

The workflow is that of section 5 of the TUF specification, version 1.0, over python-tuf's metadata. It
is our own because python-tuf's reads the host's clock and keeps its state in a folder: a monitor
believes neither (see docs/decisions).
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from tuf.api.metadata import MetaFile, Root, Snapshot, TargetFile, Targets, Timestamp

from affiant.assertions.bundle import Bundle, compile_bundle
from affiant.assertions.bundle_file import MOST_BUNDLE_BYTES, BundleFile, decode_bundle
from affiant.model.errors import EvidenceError, ForgedError, MalformedError
from affiant.model.launch_record import MAX_RULES_ROOT
from affiant.rules.fetching import Fetch, NotFoundError
from affiant.rules.metadata import check_expiry, check_file, read_root, read_signed
from affiant.wire.rules_path import FLEET, is_rules_path

__all__ = ["RulesUpdate", "TrustedRules", "target_path"]

_MOST_TIMESTAMP_BYTES: Final = 16 * 1024
_MOST_SNAPSHOT_BYTES: Final = 64 * 1024
_MOST_TARGETS_BYTES: Final = 256 * 1024
_MOST_ROTATIONS: Final = 32
_DIGEST: Final = re.compile(r"[0-9a-f]{64}\Z")


def target_path(fleet: str) -> str:
    """Return the path of a fleet's bundle among the targets, before its digest is put in front."""
    return f"{fleet}.rules"


@dataclass(frozen=True, slots=True)
class RulesUpdate:
    """What one update came to: the bundle in force after it, and whether it is another than before.

    `fresh_until`: when the timestamp expires by which this was confirmed, in seconds since the epoch.
    """

    bundle: Bundle
    changed: bool
    fresh_until: int


class TrustedRules:
    """What a monitor trusts of one rules repository, in memory. Not to be shared between threads.

    `bundle` is the last good one: `first` until an update brought another.
    """

    def __init__(
        self,
        root: bytes,
        *,
        expected_digest: bytes,
        first: Bundle,
        compiled: Callable[[BundleFile], Bundle] = compile_bundle,
    ) -> None:
        """Trust `root`, the bytes of root metadata of any version, because their SHA-256 is expected.

        Raises `ForgedError` if it is another or is not signed by its own keys, and `MalformedError`.
        `compiled` makes a bundle of a verified file.
        """
        if not hmac.compare_digest(hashlib.sha256(root).digest(), expected_digest):
            raise ForgedError("the rules root is not the one that is pinned")
        self._root = read_root(root, previous=None, maximum=MAX_RULES_ROOT)
        self._timestamp: Timestamp | None = None
        self._snapshot: Snapshot | None = None
        self._targets: Targets | None = None
        self._compiled = compiled
        self._first = first
        self._published: Bundle | None = None
        self._version = 0
        self._refused: tuple[str, EvidenceError] | None = None

    @property
    def bundle(self) -> Bundle:
        """The last good bundle."""
        return self._first if self._published is None else self._published

    @property
    def root_version(self) -> int:
        """The version of the root metadata that is trusted now."""
        return self._root.version

    @property
    def fresh_until(self) -> int | None:
        """When the newest timestamp seen expires, seconds since the epoch; None before the first."""
        return None if self._timestamp is None else int(self._timestamp.expires.timestamp())

    def update(self, fetch: Fetch, *, now: int, fleet: str, minimum_version: int = 0) -> RulesUpdate:
        """Ask the repository once, and return what is in force then.

        What holds when it returns:

        - root, timestamp, snapshot and targets are each signed by as many keys as the root in force
          demands, none of them has expired at `now`, and no version is lower than one seen before;
        - snapshot, targets and bundle are exactly those that the metadata above them names;
        - the bundle is for `fleet`, its version at least `minimum_version`, it is the one in force before or
          its version is greater (or the keys of targets were rotated), and every script of it compiles.

        When it raises, `bundle` is what it was before; of the metadata, each step that was verified stays,
        so that nobody can take it back (5.3.8, 5.4.5, 5.5.7, 5.6.6). Raises `ForgedError`,
        `MalformedError`, or `UnavailableError` if something could not be fetched or compiled.
        """
        if not FLEET.fullmatch(fleet):
            raise ValueError(f"{fleet!r} is no name of a fleet")
        self._update_root(fetch, now)
        timestamp = self._update_timestamp(fetch, now)
        snapshot = self._update_snapshot(fetch, now, timestamp.snapshot_meta)
        targets = self._update_targets(fetch, now, snapshot)
        before = self.bundle
        bundle = self._update_bundle(fetch, targets, fleet, minimum_version)
        self._published, self._refused = bundle, None
        self._version = bundle.version
        return RulesUpdate(bundle, bundle.digest != before.digest, int(timestamp.expires.timestamp()))

    def _update_root(self, fetch: Fetch, now: int) -> None:
        """Follow the root's rotations one by one (5.3), at most so many in one update."""
        for _ in range(_MOST_ROTATIONS):
            try:
                data = fetch(f"metadata/{self._root.version + 1}.root.json", MAX_RULES_ROOT)
            except NotFoundError:
                break
            former, self._root = (
                self._root,
                read_root(data, previous=self._root, maximum=MAX_RULES_ROOT),
            )
            self._forget_what_lost_keys_signed(former)
        check_expiry(self._root, now=now)

    def _forget_what_lost_keys_signed(self, former: Root) -> None:
        """Recover from a fast-forward attack (5.3.11): versions that a lost key signed bind nobody."""
        if _rotated(former, self._root, Timestamp.type) or _rotated(former, self._root, Snapshot.type):
            self._timestamp = self._snapshot = self._targets = None
        if _rotated(former, self._root, Targets.type):
            self._targets = self._refused = None
            self._version = 0

    def _update_timestamp(self, fetch: Fetch, now: int) -> Timestamp:
        data = fetch("metadata/timestamp.json", _MOST_TIMESTAMP_BYTES)
        new = read_signed(Timestamp, data, root=self._root, maximum=_MOST_TIMESTAMP_BYTES)
        if (old := self._timestamp) is not None:
            # 5.4.3.1, 5.4.3.2: neither the timestamp nor the snapshot that it names may go back.
            _check_version("timestamp", new.version, at_least=old.version)
            _check_version("snapshot", new.snapshot_meta.version, at_least=old.snapshot_meta.version)
            if new.version == old.version:
                new = old  # 5.4.3.1: discard the new one; whatever is the matter with it, this one was good
        check_expiry(new, now=now)
        self._timestamp = new
        return new

    def _update_snapshot(self, fetch: Fetch, now: int, named: MetaFile) -> Snapshot:
        new = self._snapshot
        if new is None or new.version != named.version:
            maximum = _bounded(named.length, _MOST_SNAPSHOT_BYTES)
            data = _fetched(fetch, f"metadata/{named.version}.snapshot.json", maximum)
            check_file(named, data, "snapshot")  # 5.5.2
            new = read_signed(Snapshot, data, root=self._root, maximum=maximum)
            _check_named("snapshot", new.version, named.version)  # 5.5.4: mix and match
            for name, old in {} if self._snapshot is None else self._snapshot.meta.items():
                # 5.5.5: no targets metadata is lost or goes back.
                if (offered := new.meta.get(name)) is None:
                    raise ForgedError(f"rules snapshot: {name} is gone")
                _check_version(name, offered.version, at_least=old.version)
        check_expiry(new, now=now)
        self._snapshot = new
        return new

    def _update_targets(self, fetch: Fetch, now: int, snapshot: Snapshot) -> Targets:
        named = snapshot.meta.get("targets.json")
        if named is None:
            raise MalformedError("rules snapshot: names no targets")
        new = self._targets
        if new is None or new.version != named.version:
            maximum = _bounded(named.length, _MOST_TARGETS_BYTES)
            data = _fetched(fetch, f"metadata/{named.version}.targets.json", maximum)
            check_file(named, data, "targets")  # 5.6.2
            new = read_signed(Targets, data, root=self._root, maximum=maximum)
            _check_named("targets", new.version, named.version)  # 5.6.4: mix and match
        check_expiry(new, now=now)
        self._targets = new
        return new

    def _update_bundle(self, fetch: Fetch, targets: Targets, fleet: str, minimum_version: int) -> Bundle:
        """Return the bundle that `targets` names for `fleet` (5.7); the one in force, if it is that."""
        path = target_path(fleet)
        named: TargetFile | None = targets.targets.get(path)
        if named is None:
            raise ForgedError(f"rules targets: there is no bundle for the fleet {fleet}")
        digest = named.hashes.get("sha256", "")
        if not _DIGEST.match(digest):
            raise MalformedError("rules targets: the bundle has no SHA-256")
        held = self._published
        if held is not None and held.digest.hex() == digest:
            _check_version("bundle", held.version, at_least=minimum_version)
            return held
        if self._refused is not None and self._refused[0] == digest:
            raise self._refused[1]
        data = fetch(f"targets/{digest}.{path}", _bounded(named.length, MOST_BUNDLE_BYTES))
        check_file(named, data, "bundle")
        try:
            file = decode_bundle(data)
            if file.name != fleet:
                raise ForgedError(f"rules bundle: it is for the fleet {file.name}, not for {fleet}")
            _check_version("bundle", file.version, at_least=self._version + 1)
            bundle = self._compiled(file)
        except EvidenceError as error:
            # Signed and not usable: it is so at every look, and need not be fetched for each.
            self._refused = (digest, error)
            raise
        _check_version("bundle", bundle.version, at_least=minimum_version)
        return bundle


def _fetched(fetch: Fetch, path: str, maximum: int) -> bytes:
    """Fetch a file whose name metadata tell: no other name than a repository's is asked for."""
    if not is_rules_path(path):
        raise MalformedError(f"rules: {path} is no file of a repository")
    return fetch(path, maximum)


def _rotated(former: Root, root: Root, role: str) -> bool:
    old, new = former.roles[role], root.roles[role]
    return set(old.keyids) != set(new.keyids) or old.threshold != new.threshold


def _bounded(stated: int | None, most: int) -> int:
    return most if stated is None else min(stated, most)


def _check_version(what: str, offered: int, *, at_least: int) -> None:
    if offered < at_least:
        raise ForgedError(f"rules {what}: version {offered} is offered, {at_least} or later is due")


def _check_named(what: str, offered: int, named: int) -> None:
    if offered != named:
        raise ForgedError(f"rules {what}: version {offered} is offered, version {named} is named")
