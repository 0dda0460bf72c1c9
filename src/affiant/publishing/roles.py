"""Changes of the root: whose keys count for which role, and how many of them."""

from __future__ import annotations

import copy
from datetime import UTC, datetime, timedelta
from typing import Final

from securesystemslib.signer import CryptoSigner, Key
from tuf.api.metadata import Metadata, Root

from affiant.model.errors import SetupError
from affiant.publishing.keys import NAME_FIELD, key_name

__all__ = ["OFFLINE", "ONLINE", "add_key", "begin_root", "find_key", "in_days", "remove_key", "replace_keys"]

OFFLINE: Final = ("root", "targets")
"""Roles whose keys their owners keep."""

ONLINE: Final = ("snapshot", "timestamp")
"""Roles whose keys the repository's host keeps."""


def in_days(days: int, *, now: int) -> datetime:
    """Return the moment so many days after `now`."""
    return datetime.fromtimestamp(now, UTC) + timedelta(days=days)


def begin_root(
    draft: Metadata[Root] | None, latest: Metadata[Root] | None, *, expires: datetime
) -> Metadata[Root]:
    """Return the root to change: the draft, or the next version of the latest; without any signature."""
    source = draft or latest
    root = Root(expires=expires) if source is None else copy.deepcopy(source.signed)
    root.version = 1 if latest is None else latest.signed.version + 1
    root.expires = expires
    return Metadata(root)


def add_key(root: Root, role: str, key: Key, *, threshold: int | None = None) -> None:
    """Let `key` sign for `role`. Raises `SetupError` if it does already, under this or another name."""
    if key.keyid in root.roles[role].keyids:
        raise SetupError(f"{key_name(key)} signs for {role} already")
    known = root.keys.get(key.keyid)
    root.add_key(key if known is None else known, role)
    _set_threshold(root, role, threshold)


def remove_key(root: Root, role: str, key: Key, *, threshold: int | None = None) -> None:
    """Let `key` no longer sign for `role`. Raises `SetupError` if too few would be left."""
    root.revoke_key(key.keyid, role)
    _set_threshold(root, role, threshold)


def replace_keys(root: Root, role: str, signer: CryptoSigner) -> None:
    """Let `signer` alone sign for `role`."""
    for keyid in list(root.roles[role].keyids):
        root.revoke_key(keyid, role)
    root.add_key(signer.public_key, role)


def find_key(root: Root, role: str, wanted: str) -> Key:
    """Return the key of `role` that `wanted` names: an owner, or how an identifier begins.

    Raises `SetupError` unless it is exactly one.
    """
    keys = [root.keys[keyid] for keyid in root.roles[role].keyids]
    found = [
        key
        for key in keys
        if key.unrecognized_fields.get(NAME_FIELD) == wanted or key.keyid.startswith(wanted)
    ]
    if len(found) != 1:
        raise SetupError(
            f"{'no key' if not found else 'more than one key'} of {role} is called {wanted!r}",
            hint="Known: " + (", ".join(map(key_name, keys)) or "none"),
        )
    return found[0]


def _set_threshold(root: Root, role: str, threshold: int | None) -> None:
    due = root.roles[role].threshold if threshold is None else threshold
    keys = len(root.roles[role].keyids)
    if threshold is not None and threshold < 1:
        raise SetupError(f"a threshold of {threshold} would let anybody sign")
    if due > max(keys, 1):
        raise SetupError(
            f"{role} would have {keys} keys and need {due} signatures",
            hint="add the new key first, or give a lower --threshold",
        )
    root.roles[role].threshold = due
