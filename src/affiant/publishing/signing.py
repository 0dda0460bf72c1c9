"""Signatures of drafts: who has signed, who may, and how many are due."""

from __future__ import annotations

from dataclasses import dataclass

from securesystemslib.signer import CryptoSigner, Key
from tuf.api.metadata import Metadata, Root, Targets, VerificationResult

from affiant.model.errors import SetupError
from affiant.publishing.folder import Draft
from affiant.publishing.keys import key_name

__all__ = ["Standing", "root_is_complete", "sign", "standings", "targets_are_complete"]


@dataclass(frozen=True, slots=True)
class Standing:
    """The signatures of one draft, as one version of the root counts them."""

    role: str
    root_version: int
    due: int
    signed: tuple[Key, ...]
    unsigned: tuple[Key, ...]

    @property
    def missing(self) -> int:
        """How many signatures are still to come."""
        return max(0, self.due - len(self.signed))


def standings(draft: Draft, latest: Metadata[Root] | None) -> tuple[Standing, ...]:
    """Return how the drafts stand: the root before the former and its own keys, targets before the newest."""
    found = []
    if draft.root is not None:
        found += _root_standings(draft.root, latest)
    newest = draft.root or latest
    if draft.targets is not None and newest is not None:
        found.append(_standing(newest.signed, draft.targets))
    return tuple(found)


def root_is_complete(draft: Metadata[Root], latest: Metadata[Root] | None) -> bool:
    """Tell whether a draft root has the signatures due by the root before it and by itself."""
    return not any(one.missing for one in _root_standings(draft, latest))


def targets_are_complete(targets: Metadata[Targets], root: Metadata[Root]) -> bool:
    """Tell whether targets have the signatures that `root` demands."""
    return not _standing(root.signed, targets).missing


def sign(draft: Draft, latest: Metadata[Root] | None, signer: CryptoSigner) -> tuple[str, ...]:
    """Add `signer`'s signature to each draft that it counts for; return their roles.

    Raises `SetupError` if there is none.
    """
    keyid = signer.public_key.keyid
    signed = []
    for metadata in (draft.root, draft.targets):
        if metadata is None:
            continue
        role = metadata.signed.type
        roots = [root for root in (draft.root, latest) if root is not None]
        if any(keyid in root.signed.roles[role].keyids for root in roots):
            metadata.sign(signer, append=True)
            signed.append(role)
    if not signed:
        raise SetupError(
            f"there is nothing for the key {keyid[:8]} to sign",
            hint="affiant rules status tells who is to sign",
        )
    return tuple(signed)


def _root_standings(draft: Metadata[Root], latest: Metadata[Root] | None) -> list[Standing]:
    roots = [draft.signed] if latest is None else [latest.signed, draft.signed]
    return [_standing(root, draft) for root in roots]


def _standing(root: Root, metadata: Metadata[Root] | Metadata[Targets]) -> Standing:
    role = metadata.signed.type
    result: VerificationResult = root.get_verification_result(
        role, metadata.signed_bytes, metadata.signatures
    )
    return Standing(
        role,
        root.version,
        result.threshold,
        tuple(sorted(result.signed.values(), key=key_name)),
        tuple(sorted(result.unsigned.values(), key=key_name)),
    )
