"""Changes of a bundle: rules put in, rolled out further, withdrawn."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

from affiant.assertions.bundle_file import BundledRule, BundleFile, Withdrawal
from affiant.assertions.near_names import near_names
from affiant.assertions.rollout import Rollout
from affiant.model.errors import SetupError

__all__ = ["FIRST_VERSION", "Change", "changes", "next_bundle", "put_rules", "told_rollout", "withdraw_rule"]

FIRST_VERSION = 2
"""The version of the first bundle that is published: 1 is the library that monitors bring with them."""


@dataclass(frozen=True, slots=True)
class Change:
    """How one rule of a bundle differs from the same of the bundle before; `what` is one word or two."""

    rule: str
    what: str
    detail: str = ""


def next_bundle(
    fleet: str, base: BundleFile, *, former: BundleFile | None, version: int | None
) -> BundleFile:
    """Return the rules of `base` as the bundle after `former`, for `fleet`.

    Raises `SetupError` if `version` is not greater than that of `former`.
    """
    due = FIRST_VERSION if former is None else former.version + 1
    if version is not None and version < due:
        raise SetupError(
            f"version {version} would go back: monitors take none below {due}",
            hint="leave --version away, and the next one is taken",
        )
    return replace(base, name=fleet, version=version or due)


def put_rules(
    bundle: BundleFile,
    sources: Mapping[str, str],
    named: Iterable[str] = (),
    rollout: Callable[[Rollout], Rollout] = lambda former: former,
) -> BundleFile:
    """Put in scripts, by name, and roll out these and the rules `named` as `rollout` makes of what was.

    Raises `SetupError` for a name that is not in the bundle, and for a roll-out that cannot be meant.
    """
    rules = {rule.name: rule for rule in bundle.rules}
    for name, source in sources.items():
        rules[name] = replace(rules.get(name, BundledRule(name, source)), source=source)
    for name in (*sources, *named):
        if name not in rules:
            near = near_names(name, rules)
            raise SetupError(
                f"the bundle has no rule {name!r}",
                hint=near if near.endswith("?") else f"give its file to put it in: {name}.star",
            )
        try:
            rules[name] = replace(rules[name], rollout=rollout(rules[name].rollout))
        except ValueError as error:
            raise SetupError(f"{name}: {error}", hint="--as-written forgets how it was rolled out") from None
    return replace(
        bundle,
        rules=tuple(rules[name] for name in sorted(rules)),
        withdrawn=tuple(one for one in bundle.withdrawn if one.name not in sources),
    )


def withdraw_rule(bundle: BundleFile, name: str, reason: str) -> BundleFile:
    """Take a rule out, and say why. Raises `SetupError` if it is not there, or is the last."""
    if name not in (names := [rule.name for rule in bundle.rules]):
        raise SetupError(f"the bundle has no rule {name!r}", hint=near_names(name, names))
    if len(names) == 1:
        raise SetupError(f"{name} is the bundle's last rule", hint="publish another one first")
    withdrawn = (*bundle.withdrawn, Withdrawal(name, reason))
    return replace(
        bundle,
        rules=tuple(rule for rule in bundle.rules if rule.name != name),
        withdrawn=tuple(sorted(withdrawn, key=lambda one: one.name)),
    )


def changes(former: BundleFile | None, bundle: BundleFile) -> tuple[Change, ...]:
    """Return what a signer should look at: every rule that is not as it was."""
    before = {} if former is None else {rule.name: rule for rule in former.rules}
    told = []
    for rule in bundle.rules:
        old = before.pop(rule.name, None)
        if old is None:
            told.append(Change(rule.name, "new", told_rollout(rule.rollout)))
        elif old.source != rule.source:
            told.append(Change(rule.name, "changed", told_rollout(rule.rollout)))
        elif old.rollout != rule.rollout:
            told.append(Change(rule.name, "rolled out", told_rollout(rule.rollout)))
    reasons = {one.name: one.reason for one in bundle.withdrawn}
    told += [Change(name, "withdrawn", reasons.get(name, "")) for name in before]
    return tuple(told)


def told_rollout(rollout: Rollout) -> str:
    """Return a roll-out in words: `audit on 10 % until ...`."""
    from datetime import UTC, datetime

    def moment(seconds: int) -> str:
        return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M} UTC"

    words = []
    if rollout.mode is not None:
        words.append(rollout.mode.value)
    if rollout.enforce_from is not None:
        words.append(f"enforce from {moment(rollout.enforce_from)}")
    words.append("everywhere" if rollout.percent == 100 else f"on {rollout.percent} % of the fleet")
    if rollout.not_before is not None:
        words.append(f"not before {moment(rollout.not_before)}")
    if rollout.expires is not None:
        words.append(f"until {moment(rollout.expires)}")
    return ", ".join(words)
