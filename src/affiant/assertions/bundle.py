"""A bundle: the scripts that judge together, under one name, version and digest."""

from __future__ import annotations

import importlib.resources
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from affiant.assertions.bundle_file import MOST_RULES, BundledRule, BundleFile, Withdrawal
from affiant.assertions.limits import DEFAULT_LIMITS, Limits
from affiant.assertions.rollout import EVERYWHERE, Rollout
from affiant.assertions.script import Script, describe
from affiant.model.errors import MalformedError
from affiant.model.query import Query
from affiant.model.runtime_report import RulesUsed

__all__ = ["Bundle", "compile_bundle", "library_file", "make_bundle", "packaged_library"]

_LIBRARY_NAME: Final = "affiant-library"
# For ever: which library it is, its digest tells. Bundles that are published begin at 2.
_LIBRARY_VERSION: Final = 1


@dataclass(frozen=True, slots=True)
class Bundle:
    """Scripts that compile, in the order of their names, and how far each is rolled out.

    `digest` is SHA-256 of the bundle's file (`affiant.assertions.bundle_file`), so it covers sources,
    roll-outs and withdrawals. Made by the functions of this module and `affiant.assertions.selection`
    alone. Who wrote or signed it is not known here.
    """

    name: str
    version: int
    digest: bytes
    scripts: tuple[Script, ...]
    rollouts: Mapping[str, Rollout] = field(default_factory=dict)
    withdrawn: tuple[Withdrawal, ...] = ()

    @property
    def facts(self) -> tuple[str, ...]:
        """Names of all facts that the scripts read, sorted: what is to be collected."""
        return tuple(sorted({fact for script in self.scripts for fact in script.facts}))

    @property
    def queries(self) -> dict[str, Query]:
        """The queries of all scripts by the names of their answers, in order: what is to be asked."""
        return {name: query for script in self.scripts for name, query in script.asked.items()}

    @property
    def used(self) -> RulesUsed:
        """How a runtime report names this bundle."""
        return RulesUsed(self.name, self.version, self.digest)


def make_bundle(
    name: str,
    version: int,
    sources: Mapping[str, str],
    *,
    limits: Limits = DEFAULT_LIMITS,
) -> Bundle:
    """Compile `sources` (script name to source) as a bundle that is rolled out everywhere.

    See `compile_bundle` for what holds when it returns, and for what it raises.
    """
    rules = tuple(BundledRule(script, source) for script, source in sorted(sources.items()))
    return compile_bundle(BundleFile(name, version, rules), limits=limits)


def compile_bundle(file: BundleFile, *, limits: Limits = DEFAULT_LIMITS) -> Bundle:
    """Compile every rule of `file` and return them as a bundle.

    When it returns, each source is a `Script` (see `describe` for what that means) under its name, and
    `digest` is that of the file.

    Raises `MalformedError` naming every script that is none, or if there are none or too many, and
    `UnavailableError` where no worker can be started.
    """
    if not 0 < len(file.rules) <= MOST_RULES:
        raise MalformedError(f"bundle {file.name} has {len(file.rules)} scripts, 1 to {MOST_RULES} are read")
    scripts = []
    refusals = []
    for outcome in describe({rule.name: rule.source for rule in file.rules}, limits=limits).values():
        if isinstance(outcome, Script):
            scripts.append(outcome)
        else:
            refusals.append(str(outcome))
    if refusals:
        raise MalformedError(f"bundle {file.name}: " + "; ".join(refusals))
    rollouts = {rule.name: rule.rollout for rule in file.rules if rule.rollout != EVERYWHERE}
    return Bundle(file.name, file.version, file.digest, tuple(scripts), rollouts, file.withdrawn)


def library_file() -> BundleFile:
    """Return the library that comes with this package, every `library/*.star`, as a bundle's file."""
    folder = importlib.resources.files("affiant.assertions").joinpath("library")
    rules = [
        BundledRule(entry.name.removesuffix(".star"), entry.read_text("utf-8"))
        for entry in folder.iterdir()
        if entry.name.endswith(".star")
    ]
    rules.sort(key=lambda rule: rule.name)
    return BundleFile(_LIBRARY_NAME, _LIBRARY_VERSION, tuple(rules))


def packaged_library(*, limits: Limits = DEFAULT_LIMITS) -> Bundle:
    """Return the library that comes with this package, compiled: the first bundle of every monitor."""
    return compile_bundle(library_file(), limits=limits)
