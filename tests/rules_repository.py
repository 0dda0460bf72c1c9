"""A truthful rules repository in memory: a test takes a copy, bends one thing, and publishes that."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import Metadata, MetaFile, Root, Signed, Snapshot, TargetFile, Targets, Timestamp

from affiant.assertions.bundle import Bundle
from affiant.assertions.bundle_file import BundledRule, BundleFile, encode_bundle
from affiant.assertions.script import Script, Severity
from affiant.model.errors import UnavailableError
from affiant.model.outcome import Mode
from affiant.rules.fetching import NotFoundError
from affiant.rules.trusted import RulesUpdate, TrustedRules

NOW = 1_800_000_000
FLEET = "web"
DAY = 86_400
LIBRARY = Bundle("affiant-library", 1, bytes(32), ())
ROLES = ("root", "targets", "snapshot", "timestamp")
Metadatas = dict[str, Metadata]

SCRIPT = '''"""An example."""
load("affiant", "ok")
NAME = "{name}"
VERSION = 1
SENTENCE = "The kernel is an example."
SEVERITY = "low"
TECHNIQUE = ""
MODE = "{mode}"
FACTS = ["fact"]
def check(facts):
    return [ok("x")]
'''


def rules_file(version: int, *names: str, fleet: str = FLEET, **fields: object) -> BundleFile:
    rules = tuple(
        BundledRule(name, SCRIPT.format(name=name, mode="enforce")) for name in names or ("example",)
    )
    return BundleFile(fleet, version, rules, **fields)  # type: ignore[arg-type]


def uncompiled(file: BundleFile) -> Bundle:
    """Stand in for the worker where a test is not about compiling."""
    scripts = tuple(
        Script(rule.name, 1, "It is.", Severity.LOW, "", Mode.ENFORCE, ("fact",), "", rule.source)
        for rule in file.rules
    )
    return Bundle(file.name, file.version, file.digest, scripts, {}, file.withdrawn)


@dataclass
class Repository:
    """Files by path, and the keys of each role. Every change is one method; `publish` signs anew."""

    files: dict[str, bytes] = field(default_factory=dict)
    keys: dict[str, list[CryptoSigner]] = field(default_factory=dict)
    metadata: Metadatas = field(default_factory=dict)
    fetched: list[str] = field(default_factory=list)
    now: int = NOW

    def fetch(self, path: str, maximum: int) -> bytes:
        self.fetched.append(path)
        if path not in self.files:
            raise NotFoundError(path)
        if len(self.files[path]) > maximum:
            raise UnavailableError(f"{path} is larger than {maximum}")
        return self.files[path]

    @property
    def root(self) -> Root:
        return self.metadata["root"].signed

    def expires(self, days: float) -> datetime:
        return datetime.fromtimestamp(self.now, UTC) + timedelta(days=days)

    def publish(self, file: BundleFile, *, path: str = f"{FLEET}.rules") -> None:
        """Sign targets that name this bundle, and what leads there."""
        data = encode_bundle(file)
        target = TargetFile.from_data(path, data)
        self.files[f"targets/{target.hashes['sha256']}.{path}"] = data
        targets: Targets = self.metadata["targets"].signed
        targets.targets[path] = target
        self.renew("targets")

    def renew(
        self, role: str, *, by: Iterable[CryptoSigner] | None = None, days: float | None = None
    ) -> None:
        """Raise a role's version, sign it and everything that names it."""
        signed: Signed = self.metadata[role].signed
        signed.version += 1
        if days is not None:
            signed.expires = self.expires(days)
        self.sign(role, by=by)
        if role == "targets":
            data = self.files[f"metadata/{signed.version}.targets.json"]
            snapshot: Snapshot = self.metadata["snapshot"].signed
            snapshot.meta["targets.json"] = MetaFile.from_data(signed.version, data, ["sha256"])
            self.renew("snapshot")
        elif role == "snapshot":
            data = self.files[f"metadata/{signed.version}.snapshot.json"]
            timestamp: Timestamp = self.metadata["timestamp"].signed
            timestamp.snapshot_meta = MetaFile.from_data(signed.version, data, ["sha256"])
            self.renew("timestamp")

    def sign(self, role: str, *, by: Iterable[CryptoSigner] | None = None) -> None:
        metadata = self.metadata[role]
        metadata.signatures.clear()
        for signer in self.keys[role] if by is None else by:
            metadata.sign(signer, append=True)
        name = f"{role}.json" if role == "timestamp" else f"{metadata.signed.version}.{role}.json"
        self.files[f"metadata/{name}"] = metadata.to_bytes()

    def rotate(self, role: str, *keys: CryptoSigner, threshold: int | None = None) -> None:
        """Give a role other keys, and sign the root with its former and its new ones."""
        signers = [*self.keys["root"], *(keys if role == "root" else ())]
        for former in self.keys[role]:
            self.root.revoke_key(former.public_key.keyid, role)
        for key in keys:
            self.root.add_key(key.public_key, role)
        self.root.roles[role].threshold = threshold or self.root.roles[role].threshold
        self.keys[role] = list(keys)
        self.renew("root", by=signers)

    def write(self, folder: Path) -> Path:
        """Write the files below `folder/public`, each renamed into place, the timestamp last; return it."""
        for path in sorted(self.files, key=lambda path: path == "metadata/timestamp.json"):
            target = folder / "public" / path
            if target.exists() and target.read_bytes() == self.files[path]:
                continue
            target.parent.mkdir(parents=True, exist_ok=True)
            new = target.with_name(f".{target.name}.new")
            new.write_bytes(self.files[path])
            new.replace(target)
        return folder

    def copy(self) -> Repository:
        return copy.deepcopy(self)

    def client(self, **arguments: object) -> Client:
        return Client(self, self.files["metadata/1.root.json"], **arguments)


class Client:
    """A monitor's trusted rules, that started from the first root of a repository."""

    def __init__(self, repository: Repository, root: bytes, **arguments: object) -> None:
        import hashlib

        options = {
            "expected_digest": hashlib.sha256(root).digest(),
            "first": LIBRARY,
            "compiled": uncompiled,
        } | arguments
        self.trusted = TrustedRules(root, **options)  # type: ignore[arg-type]
        self.repository = repository

    def update(
        self, repository: Repository | None = None, *, after: float = 0, **expected: object
    ) -> RulesUpdate:
        """Update from `repository` (its own unless named), `after` seconds from the start."""
        source = self.repository if repository is None else repository
        options = {"now": NOW + int(after), "fleet": FLEET} | expected
        return self.trusted.update(source.fetch, **options)  # type: ignore[arg-type]

    @property
    def version(self) -> int:
        return self.trusted.bundle.version


def make_repository(*, version: int = 2, threshold: int = 1, keys: int = 1, now: int = NOW) -> Repository:
    """Return a repository with one bundle, each role signed by `keys` keys of which `threshold` are due."""
    repository = Repository(now=now)
    lives = {"root": 365, "targets": 90, "snapshot": 7, "timestamp": 1}
    repository.keys = {role: [CryptoSigner.generate_ed25519() for _ in range(keys)] for role in ROLES}
    kinds = {"root": Root, "targets": Targets, "snapshot": Snapshot, "timestamp": Timestamp}
    repository.metadata = {
        role: Metadata(kinds[role](version=1, expires=repository.expires(lives[role]))) for role in ROLES
    }
    for role in ROLES:
        for key in repository.keys[role]:
            repository.root.add_key(key.public_key, role)
        repository.root.roles[role].threshold = threshold
    repository.sign("root")
    repository.publish(rules_file(version))
    return repository
