"""How a repository stands: for people, and as JSON."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from securesystemslib.signer import Key
from tuf.api.metadata import Root

from affiant.assertions.bundle_file import BundleFile
from affiant.assertions.rollout import EVERYWHERE
from affiant.publishing.bundles import changes, told_rollout
from affiant.publishing.drafting import bundles_of
from affiant.publishing.folder import RulesFolder
from affiant.publishing.keys import key_name
from affiant.publishing.signing import Standing, standings

__all__ = ["draft_lines", "status_lines", "status_of"]


def status_of(folder: RulesFolder, *, fleet: str, now: int) -> dict[str, Any]:
    """Return what there is to know of a repository, as JSON can say it; `expired`: the roles that have."""
    latest, published = folder.latest_root(), folder.published()
    out, waiting = bundles_of(folder, fleet)
    expiries = {} if latest is None else {"root": latest.signed.expires}
    if published is not None:
        for role in ("targets", "snapshot", "timestamp"):
            expiries[role] = getattr(published, role).signed.expires
    draft = folder.drafted()
    newest = latest or draft.root
    return {
        "folder": str(folder.path),
        "fleet": fleet,
        "root": None if latest is None else _root(folder, latest.signed.version),
        "roles": {} if newest is None else _roles(newest.signed),
        "bundle": None if out is None else _bundle(out),
        "expires": {role: _moment(moment) for role, moment in expiries.items()},
        "expired": [role for role, moment in expiries.items() if moment <= datetime.fromtimestamp(now, UTC)],
        "draft": {
            "signatures": [_standing(one) for one in standings(draft, latest)],
            "bundle": None if waiting is None else _bundle(waiting),
            "changes": []
            if waiting is None
            else [
                {"rule": one.rule, "what": one.what, "detail": one.detail} for one in changes(out, waiting)
            ],
        },
    }


def status_lines(status: Mapping[str, Any]) -> list[str]:
    """Return a status for people."""
    lines = [f"{status['folder']}, fleet {status['fleet']}"]
    root, bundle = status["root"], status["bundle"]
    if root is not None:
        lines.append(f"root {root['version']}, SHA-256 {root['sha256']}")
    for role, one in status["roles"].items():
        expiry = status["expires"].get(role)
        when = "not signed yet" if expiry is None else f"until {expiry}"
        when = "EXPIRED" if role in status["expired"] else when
        lines.append(f"  {role:9}  {when:26}  {one['threshold']} of: {', '.join(one['keys']) or 'no key'}")
    if bundle is None:
        lines.append("nothing is published; monitors judge by the library that they bring with them")
    else:
        named = f"{bundle['name']} version {bundle['version']}"
        lines.append(f"{named}, {bundle['rules']} rules, SHA-256 {bundle['sha256']}")
        lines += [f"  {name}: {told}" for name, told in bundle["rollouts"].items()]
        lines += [f"  {name}: withdrawn: {reason}" for name, reason in bundle["withdrawn"].items()]
    return lines + draft_lines(status["draft"])


def draft_lines(draft: Mapping[str, Any]) -> list[str]:
    """Return what waits for signatures, for people: what would change, and who is to sign."""
    lines = []
    if draft["bundle"] is not None:
        bundle = draft["bundle"]
        lines.append(f"draft: {bundle['name']} version {bundle['version']}, SHA-256 {bundle['sha256']}")
        lines += _change_lines(draft["changes"])
    for one in draft["signatures"]:
        by = f"{one['signed']} of {one['due']} signatures"
        signers = ", ".join(one["unsigned"]) or f"nobody yet (affiant rules add-key {one['role']} FILE.pub)"
        still = f"; may sign: {signers}" if one["missing"] else ""
        lines.append(f"draft: {one['role']} has {by} by the keys of root {one['root_version']}{still}")
    return lines


def _change_lines(listed: Sequence[Mapping[str, str]]) -> list[str]:
    if len(new := [one for one in listed if one["what"] == "new" and one["detail"] == "everywhere"]) > 5:
        rest = [one for one in listed if one not in new]
        lines = [f"  {len(new)} new rules, everywhere: {', '.join(one['rule'] for one in new)}"]
    else:
        rest, lines = list(listed), []
    return lines + [f"  {one['rule']}: {one['what']}: {one['detail']}" for one in rest]


def _root(folder: RulesFolder, version: int) -> dict[str, Any]:
    path = folder.public / "metadata" / f"{version}.root.json"
    return {
        "version": version,
        "path": str(path),
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
    }


def _roles(root: Root) -> dict[str, dict[str, Any]]:
    return {
        name: {
            "threshold": root.roles[name].threshold,
            "keys": _names(root.keys[keyid] for keyid in root.roles[name].keyids),
        }
        for name in ("root", "targets", "snapshot", "timestamp")
    }


def _bundle(bundle: BundleFile) -> dict[str, Any]:
    return {
        "name": bundle.name,
        "version": bundle.version,
        "sha256": bundle.digest.hex(),
        "rules": len(bundle.rules),
        "rollouts": {
            rule.name: told_rollout(rule.rollout) for rule in bundle.rules if rule.rollout != EVERYWHERE
        },
        "withdrawn": {one.name: one.reason for one in bundle.withdrawn},
    }


def _standing(one: Standing) -> dict[str, Any]:
    return {
        "role": one.role,
        "root_version": one.root_version,
        "due": one.due,
        "signed": len(one.signed),
        "signed_by": _names(one.signed),
        "unsigned": _names(one.unsigned),
        "missing": one.missing,
    }


def _names(keys: Iterable[Key]) -> list[str]:
    return [key_name(key) for key in keys]


def _moment(moment: datetime) -> str:
    return f"{moment:%Y-%m-%d %H:%M} UTC"
