"""A release: drafts that have their signatures go out, accepted first as a monitor would accept them."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from tuf.api.metadata import Metadata, Targets

from affiant.assertions.bundle import Bundle, compile_bundle
from affiant.assertions.bundle_file import BundleFile
from affiant.model.errors import AffiantError, EvidenceError, SetupError
from affiant.model.launch_record import MAX_RULES_ROOT
from affiant.publishing.folder import RulesFolder, write_file
from affiant.publishing.online import online_files, settle_online_keys
from affiant.publishing.signing import root_is_complete, targets_are_complete
from affiant.rules.fetching import NotFoundError
from affiant.rules.trusted import TrustedRules

__all__ = ["Release", "refresh", "release"]

_NOTHING: Final = Bundle("nothing", 1, bytes(32), ())


@dataclass(frozen=True, slots=True)
class Release:
    """What went out: the roles whose drafts are drafts no longer, and the public paths written."""

    roles: tuple[str, ...]
    paths: tuple[str, ...]


def release(folder: RulesFolder, *, now: int) -> Release | None:
    """Bring out every draft that has its signatures; None if none has.

    Raises `SetupError` if the targets that are out would not be valid under a new root, or an online key
    is missing, and whatever a monitor would refuse the result with; nothing is given out then.
    """
    latest, draft, published = folder.latest_root(), folder.drafted(), folder.published()
    new_root = draft.root if draft.root is not None and root_is_complete(draft.root, latest) else None
    root = new_root or latest
    if root is None:
        return None
    ready = draft.targets is not None and targets_are_complete(draft.targets, root)
    targets = draft.targets if ready else None
    if new_root is None and targets is None:
        return None
    files: dict[str, bytes] = {}
    if targets is not None:
        files |= _bundles(folder, targets)
        files[f"metadata/{targets.signed.version}.targets.json"] = targets.to_bytes()
    elif published is not None and not targets_are_complete(published.targets, root):
        raise SetupError(
            "under the new root the targets lack signatures",
            hint="affiant rules renew targets; then their signers sign",
        )
    if new_root is not None:
        files[f"metadata/{new_root.signed.version}.root.json"] = new_root.to_bytes()
    named = published.targets if targets is None and published is not None else targets
    if named is not None:
        files |= online_files(folder, root.signed, published, targets, now=now)
        _accept(folder, files, named, compiling=targets is not None, now=now)
    _write(folder, files)
    if targets is not None:
        (folder.draft / "targets.json").unlink()
        for path in folder.draft.glob("*.rules"):
            path.unlink()
    if new_root is not None:
        (folder.draft / "root.json").unlink()
        settle_online_keys(folder, new_root.signed)
    drafts = (("root", new_root), ("targets", targets))
    return Release(tuple(role for role, out in drafts if out is not None), tuple(files))


def refresh(folder: RulesFolder, *, now: int) -> Release:
    """Sign the timestamp anew, and the snapshot where half of its life is over.

    Raises as `release` does, and `SetupError` where nothing was published yet.
    """
    published = folder.published()
    if published is None:
        raise SetupError("nothing was published yet", hint="affiant rules publish")
    files = online_files(folder, published.root.signed, published, None, now=now)
    _accept(folder, files, published.targets, compiling=False, now=now)
    _write(folder, files)
    return Release((), tuple(files))


def _write(folder: RulesFolder, files: Mapping[str, bytes]) -> None:
    """Write files in their order: until the timestamp, the last, is another, nobody asks for the rest."""
    for path, content in files.items():
        write_file(folder.public / path, content)


def _bundles(folder: RulesFolder, targets: Metadata[Targets]) -> dict[str, bytes]:
    """Return the bundles that are new in draft targets; the others are out already."""
    names = [target.get_prefixed_paths()[0] for target in targets.signed.targets.values()]
    drafted = {f"targets/{name}": folder.draft / name for name in names}
    return {path: file.read_bytes() for path, file in drafted.items() if file.exists()}


def _accept(
    folder: RulesFolder,
    files: Mapping[str, bytes],
    targets: Metadata[Targets],
    *,
    compiling: bool,
    now: int,
) -> None:
    """Take what is out now as a monitor, then what would be; raise what the monitor would be told."""

    def fetch(path: str, maximum: int) -> bytes:
        return files[path] if path in files else folder.fetch(path, maximum)

    latest = folder.latest_root()
    pinned = f"metadata/{1 if latest is None else latest.signed.version}.root.json"
    root = fetch(pinned, MAX_RULES_ROOT)
    for path in targets.signed.targets:
        fleet = path.rpartition(".")[0]
        client = TrustedRules(
            root,
            expected_digest=hashlib.sha256(root).digest(),
            first=_NOTHING,
            compiled=compile_bundle if compiling else _uncompiled,
        )
        with contextlib.suppress(EvidenceError, NotFoundError):  # what is out now may have expired
            client.update(folder.fetch, now=now, fleet=fleet)
        try:
            client.update(fetch, now=now, fleet=fleet)
        except AffiantError as error:
            error.hint = error.hint or "nothing was given out; monitors would have refused it"
            raise


def _uncompiled(file: BundleFile) -> Bundle:
    """Stand in for compiling where the bundle is out already, and stays what it was."""
    return Bundle(file.name, file.version, file.digest, ())
