"""What the repository's host signs by itself: the snapshot of the targets, and the timestamp."""

from __future__ import annotations

import copy
from pathlib import Path

from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import Metadata, MetaFile, Root, Snapshot, Targets, Timestamp

from affiant.model.errors import SetupError
from affiant.new_file import write_new_file
from affiant.publishing.folder import Published, RulesFolder
from affiant.publishing.keys import NAME_FIELD, read_signer
from affiant.publishing.roles import ONLINE, in_days, replace_keys

__all__ = ["make_online_keys", "online_files", "settle_online_keys"]


def make_online_keys(root: Root, folder: Path) -> None:
    """Make new keys of snapshot and timestamp in `folder`, and let them alone sign for these roles."""
    for role in ONLINE:
        signer = CryptoSigner.generate_ed25519()
        path = folder / f"{role}.pem"
        path.unlink(missing_ok=True)
        write_new_file(path, signer.private_bytes, mode=0o600)
        signer.public_key.unrecognized_fields[NAME_FIELD] = "online"
        replace_keys(root, role, signer)


def online_files(
    folder: RulesFolder,
    root: Root,
    published: Published | None,
    targets: Metadata[Targets] | None,
    *,
    now: int,
) -> dict[str, bytes]:
    """Return the files of snapshot (where it is due) and timestamp for new `targets`, or those published.

    Raises `SetupError` if an online key that `root` demands is missing.
    """
    days = folder.settings().days
    signers = _signers(folder)
    files = {}
    timestamp = Timestamp() if published is None else copy.deepcopy(published.timestamp.signed)
    if published is None or targets is not None or _is_due(published, root, days["snapshot"], now=now):
        snapshot = Snapshot() if published is None else copy.deepcopy(published.snapshot.signed)
        snapshot.version = 1 if published is None else snapshot.version + 1
        snapshot.expires = in_days(days["snapshot"], now=now)
        if targets is not None:
            meta = MetaFile.from_data(targets.signed.version, targets.to_bytes(), ["sha256"])
            snapshot.meta["targets.json"] = meta
        encoded = _signed(Metadata(snapshot), root, signers)
        files[f"metadata/{snapshot.version}.snapshot.json"] = encoded
        timestamp.snapshot_meta = MetaFile.from_data(snapshot.version, encoded, ["sha256"])
    timestamp.version = 1 if published is None else timestamp.version + 1
    timestamp.expires = in_days(days["timestamp"], now=now)
    files["metadata/timestamp.json"] = _signed(Metadata(timestamp), root, signers)
    return files


def settle_online_keys(folder: RulesFolder, root: Root) -> None:
    """Move new online keys to their place, and delete those that `root` no longer names."""
    valid = {keyid for role in ONLINE for keyid in root.roles[role].keyids}
    for place in (folder.draft, folder.online):
        for path in place.glob("*.pem"):
            if _signer(path).public_key.keyid not in valid:
                path.unlink()
    for path in folder.draft.glob("*.pem"):
        path.replace(folder.online / path.name)


def _is_due(published: Published, root: Root, days: int, *, now: int) -> bool:
    """Tell whether the snapshot is signed anew: half of its life is over, or its keys are others."""
    signed_by = published.root.signed.roles[Snapshot.type].keyids
    return (
        published.snapshot.signed.expires <= in_days(days, now=now - days * 43_200)
        or root.roles[Snapshot.type].keyids != signed_by
    )


def _signed(
    metadata: Metadata[Snapshot] | Metadata[Timestamp], root: Root, signers: dict[str, CryptoSigner]
) -> bytes:
    role = metadata.signed.type
    usable = [signers[keyid] for keyid in root.roles[role].keyids if keyid in signers]
    if len(usable) < root.roles[role].threshold:
        raise SetupError(
            f"this host does not have the key of {role} that the root names",
            hint="bring it back, or make new ones: affiant rules rotate-online",
        )
    for signer in usable:
        metadata.sign(signer, append=True)
    return metadata.to_bytes()


def _signers(folder: RulesFolder) -> dict[str, CryptoSigner]:
    """Return the online keys, those that wait in the draft among them, by identifier."""
    paths = (*folder.draft.glob("*.pem"), *folder.online.glob("*.pem"))
    return {signer.public_key.keyid: signer for signer in map(_signer, paths)}


def _signer(path: Path) -> CryptoSigner:
    return read_signer(path, passphrase=lambda: b"")
