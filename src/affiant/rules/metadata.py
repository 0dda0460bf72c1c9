"""One TUF metadata file: from bytes that anyone may have sent to what enough keys have signed.

Sections are those of the TUF specification, version 1.0.
"""

from __future__ import annotations

from collections import Counter
from typing import Final, TypeVar

from tuf.api.exceptions import RepositoryError, UnsignedMetadataError
from tuf.api.metadata import Metadata, MetaFile, Root, Signed, Snapshot, TargetFile, Targets, Timestamp
from tuf.api.serialization import DeserializationError, SerializationError

from affiant.model.errors import ForgedError, MalformedError

__all__ = ["check_expiry", "check_file", "read_root", "read_signed"]

_T = TypeVar("_T", Root, Timestamp, Snapshot, Targets)

# Signatures that the `cryptography` package verifies by itself; no PGP, no RSA, no cloud services.
_SCHEMES: Final = frozenset(
    (
        *(("ed25519", "ed25519"), ("ecdsa", "ecdsa-sha2-nistp256"), ("ecdsa", "ecdsa-sha2-nistp384")),
        *(("ml-dsa", "ml-dsa-44/1"), ("ml-dsa", "ml-dsa-65/1"), ("ml-dsa", "ml-dsa-87/1")),
    )
)


def read_root(data: bytes, *, previous: Root | None, maximum: int) -> Root:
    """Return the root metadata in `data`.

    What holds then:

    - it has at most `maximum` bytes and is root metadata of a repository with consistent snapshots;
    - enough of its own keys have signed it, and enough of the keys of `previous`, whose version is one
      less; without `previous` (a root that is pinned by its digest) its own keys alone;
    - within each role the keys are different keys, of kinds that are known here.

    It may have expired: an old root is still good for verifying its successor (5.3.10).
    Raises `MalformedError` and `ForgedError`.
    """
    metadata = _read(Root, data, maximum)
    root = metadata.signed
    _check_roles(root)
    # 5.3.4: signed by the threshold of keys of the version before, and of its own.
    for signer in (root,) if previous is None else (previous, root):
        _verify(signer, metadata)
    # 5.3.5: a rollback, or a gap in which a rotation could be hidden.
    if previous is not None and root.version != previous.version + 1:
        raise ForgedError(f"rules root: version {root.version} follows version {previous.version}")
    return root


def read_signed(kind: type[_T], data: bytes, *, root: Root, maximum: int) -> _T:
    """Return the timestamp, snapshot or targets metadata in `data`.

    What holds then: it has at most `maximum` bytes, is of `kind`, and as many keys as `root` demands for
    that role have signed it. Raises `MalformedError` and `ForgedError`.
    """
    metadata = _read(kind, data, maximum)
    _verify(root, metadata)
    return metadata.signed


def check_expiry(signed: Signed, *, now: int) -> None:
    """Refuse what has expired (5.3.10, 5.4.4, 5.5.6, 5.6.5): nothing else ends a freeze attack."""
    # By numbers: a time that is beyond what a date can say must not be an error of another kind.
    if now >= int(signed.expires.timestamp()):
        raise ForgedError(f"rules {signed.type}: expired at {signed.expires:%Y-%m-%d %H:%M:%S} UTC")


def check_file(described: MetaFile | TargetFile, data: bytes, what: str) -> None:
    """Refuse bytes that differ in length or digest from what the metadata above says of them."""
    try:
        described.verify_length_and_hashes(data)
    except RepositoryError as error:
        raise ForgedError(f"rules {what}: {error}") from None


def _read(kind: type[_T], data: bytes, maximum: int) -> Metadata[_T]:
    name = f"rules {kind.type}"
    if len(data) > maximum:
        raise MalformedError(f"{name}: {len(data)} bytes, at most {maximum} are read")
    try:
        metadata: Metadata[_T] = Metadata.from_bytes(data)
    except DeserializationError as error:
        raise MalformedError(f"{name}: unreadable: {error.__cause__ or error}") from None
    if metadata.signed.type != kind.type:
        raise MalformedError(f"{name}: this is {metadata.signed.type}")
    return metadata


def _verify(signer: Root, metadata: Metadata[_T]) -> None:
    role = metadata.signed.type
    try:
        signer.verify_delegate(role, metadata.signed_bytes, metadata.signatures)
    except UnsignedMetadataError as error:
        raise ForgedError(f"rules {role}: {error}") from None
    except (SerializationError, ValueError) as error:
        raise MalformedError(f"rules {role}: {error}") from None


def _check_roles(root: Root) -> None:
    if root.consistent_snapshot is not True:
        raise MalformedError("rules root: the repository has no consistent snapshots")
    for name, role in root.roles.items():
        if not isinstance(role.threshold, int) or isinstance(role.threshold, bool):
            raise MalformedError(f"rules root: the threshold of {name} is no number")
        keys = [root.keys[keyid] for keyid in role.keyids if keyid in root.keys]
        for key in keys:
            if (key.keytype, key.scheme) not in _SCHEMES:
                raise MalformedError(f"rules root: a key of {name} is of the kind {key.scheme}")
        # An identifier is no digest of its key: one key under two of them would count as two signers.
        if any(count > 1 for count in Counter(str(key.keyval.get("public")) for key in keys).values()):
            raise MalformedError(f"rules root: one key counts twice for {name}")
