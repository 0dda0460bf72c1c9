"""Drafts of targets: the next bundle of a fleet, or the same bundles for longer."""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterable
from pathlib import Path

from tuf.api.metadata import Metadata, Root, TargetFile, Targets

from affiant.assertions.authoring import load, problems, untested
from affiant.assertions.bundle_file import BundleFile, decode_bundle, encode_bundle
from affiant.assertions.engine import Engine
from affiant.assertions.flaw import Flaw
from affiant.assertions.recording import recordings_beside, replay
from affiant.model.errors import MalformedError, SetupError
from affiant.publishing.folder import RulesFolder, write_file
from affiant.publishing.roles import begin_root, in_days
from affiant.rules.trusted import target_path

__all__ = ["bundles_of", "discard", "draft_bundle", "draft_root", "draft_targets", "read_rules"]


def read_rules(
    paths: Iterable[Path], *, known_facts: Collection[str]
) -> tuple[dict[str, str], tuple[Flaw, ...]]:
    """Return the sources of scripts by name, and which recordings they lack.

    Neither linter nor compiler has anything to say against them, and they judge the recordings beside them
    as these say. Raises `MalformedError` with all that is wrong, and `SetupError` for what cannot be read.
    """
    sources: dict[str, str] = {}
    wrong: list[str] = []
    missing: list[Flaw] = []
    for path in paths:
        if found := problems(path, known_facts=known_facts):
            wrong += [f"{path}: {problem}" for problem in found]
            continue
        script, bundle = load(path)
        recordings = recordings_beside(path)
        with Engine(bundle) as engine:
            for recording in recordings:
                wrong += [f"{path}: {difference}" for difference in replay(engine, recording)[1]]
        missing += untested(path, recordings)
        sources[script.name] = script.source
    if wrong:
        raise MalformedError(
            "not published: " + "; ".join(wrong), hint="affiant assertions lint, affiant assertions test"
        )
    return sources, tuple(missing)


def bundles_of(folder: RulesFolder, fleet: str) -> tuple[BundleFile | None, BundleFile | None]:
    """Return the fleet's bundle that is out, and the one that waits for signatures; None: there is none."""
    published, draft = folder.published(), folder.drafted()
    out = None if published is None else published.bundles.get(fleet)
    if draft.targets is None:
        return out, None
    waiting = folder.bundles(draft.targets.signed, folder.draft, folder.public / "targets").get(fleet)
    return out, None if waiting == out else waiting


def draft_bundle(folder: RulesFolder, bundle: BundleFile, *, now: int) -> None:
    """Draft targets that name `bundle` for its fleet, in place of what they named before."""
    data = encode_bundle(bundle)
    decode_bundle(data)  # what is too large, or out of order, is found before anyone signs it
    target = TargetFile.from_data(target_path(bundle.name), data)
    targets = _next_targets(folder, now)
    targets.targets[target.path] = target
    write_file(folder.draft / target.get_prefixed_paths()[0], data)
    _save(folder, targets)


def draft_targets(folder: RulesFolder, *, now: int) -> None:
    """Draft the targets as they are, for longer. Raises `SetupError` if there are none."""
    targets = _next_targets(folder, now)
    if not targets.targets:
        raise SetupError("there is no bundle yet", hint="affiant rules publish")
    _save(folder, targets)


def draft_root(folder: RulesFolder, *, now: int) -> Metadata[Root]:
    """Return the root to be changed next, unsigned; `RulesFolder.save_draft` keeps it."""
    expires = in_days(folder.settings().days["root"], now=now)
    return begin_root(folder.drafted().root, folder.latest_root(), expires=expires)


def discard(folder: RulesFolder) -> None:
    """Forget all drafts, and keys that were made for them."""
    for path in folder.draft.iterdir():
        path.unlink()


def _next_targets(folder: RulesFolder, now: int) -> Targets:
    published, draft = folder.published(), folder.drafted()
    source = draft.targets or (None if published is None else published.targets)
    targets = Targets() if source is None else copy.deepcopy(source.signed)
    targets.version = 1 if published is None else published.targets.signed.version + 1
    targets.expires = in_days(folder.settings().days["targets"], now=now)
    return targets


def _save(folder: RulesFolder, targets: Targets) -> None:
    named = {target.get_prefixed_paths()[0] for target in targets.targets.values()}
    for path in folder.draft.glob("*.rules"):
        if path.name not in named:
            path.unlink()
    folder.save_draft(Metadata(targets))
