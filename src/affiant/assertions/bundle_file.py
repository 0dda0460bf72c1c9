"""A bundle as one file: deterministic CBOR, so that its SHA-256 is the bundle's identity.

    0  "affiant/1/rules"
    1  name: the fleet that it is for, or that of the library
    2  version
    3  [[name, source, roll-out], ...] in the order of names; a roll-out is a map of what it states:
       1 mode, 2 enforce from, 3 percent, 4 not before, 5 expires
    4  [[name, reason], ...] of rules that were withdrawn, in the order of names

The file says nothing about who wrote it; `affiant.rules` fetches it as a TUF target.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

from affiant.assertions.rollout import EVERYWHERE, Rollout
from affiant.model.outcome import Mode
from affiant.wire import cbor
from affiant.wire.fields import Fields

__all__ = [
    "MOST_BUNDLE_BYTES",
    "MOST_RULES",
    "BundleFile",
    "BundledRule",
    "Withdrawal",
    "decode_bundle",
    "encode_bundle",
]

MOST_BUNDLE_BYTES: Final = 1 << 20
"""The largest file that is read: what one answer of the service may hold."""

MOST_RULES: Final = 1024

_KIND: Final = "affiant/1/rules"
_FILE: Final = "rules bundle"
_MOST_VERSIONS: Final = (1 << 31) - 1
_MOST_SECONDS: Final = 253_402_300_799  # the year 9999, beyond which TUF cannot say a time either
_NAME: Final = re.compile(r"[a-z][a-z0-9_]{2,63}\Z")


@dataclass(frozen=True, slots=True)
class BundledRule:
    """A script in a bundle, not yet compiled, and how far it is rolled out."""

    name: str
    source: str
    rollout: Rollout = EVERYWHERE


@dataclass(frozen=True, slots=True)
class Withdrawal:
    """A rule that was in earlier bundles and is not any more, and why."""

    name: str
    reason: str


@dataclass(frozen=True, slots=True)
class BundleFile:
    """What a bundle's file holds. `rules` and `withdrawn` are in the order of their names."""

    name: str
    version: int
    rules: tuple[BundledRule, ...]
    withdrawn: tuple[Withdrawal, ...] = ()

    @property
    def digest(self) -> bytes:
        """SHA-256 of the file."""
        return hashlib.sha256(encode_bundle(self)).digest()


def encode_bundle(bundle: BundleFile) -> bytes:
    """Return the one file of `bundle`, of whatever size."""
    return cbor.encode(
        {
            0: _KIND,
            1: bundle.name,
            2: bundle.version,
            3: [[rule.name, rule.source, _encoded(rule.rollout)] for rule in bundle.rules],
            4: [[one.name, one.reason] for one in bundle.withdrawn],
        }
    )


def decode_bundle(data: bytes) -> BundleFile:
    """Return the bundle in a file; form only, it proves nothing and nothing in it was compiled.

    What holds then: the file has at most `MOST_BUNDLE_BYTES`; `encode_bundle` of the result is `data`;
    it has 1 to `MOST_RULES` rules whose names are names of scripts; no name is twice among rules and
    withdrawn. Raises `MalformedError` otherwise.
    """
    fields = Fields.of_map(cbor.decode(data, max_size=MOST_BUNDLE_BYTES, name=_FILE), _FILE)
    fields.constant(0, "kind", _KIND)
    bundle = BundleFile(
        name=fields.text(1, "name", minimum=1, maximum=64),
        version=fields.integer(2, "version", minimum=1, maximum=_MOST_VERSIONS),
        rules=fields.each(3, "rules", _read_rule, minimum=1, maximum=MOST_RULES),
        withdrawn=fields.each(4, "withdrawn", _read_withdrawal, maximum=MOST_RULES),
    )
    fields.close()
    rules = [rule.name for rule in bundle.rules]
    withdrawn = [one.name for one in bundle.withdrawn]
    for what, names in (("rules", rules), ("withdrawn", withdrawn)):
        if any(former >= latter for former, latter in pairwise(names)):
            raise fields.error(what, "not in the order of their names")
    if both := sorted({*rules} & {*withdrawn}):
        raise fields.error("withdrawn", f"{both[0]} is among the rules, too")
    return bundle


def _encoded(rollout: Rollout) -> dict[cbor.Key, cbor.Item]:
    stated = {
        1: None if rollout.mode is None else rollout.mode.value,
        2: rollout.enforce_from,
        3: None if rollout.percent == EVERYWHERE.percent else rollout.percent,
        4: rollout.not_before,
        5: rollout.expires,
    }
    return {key: value for key, value in stated.items() if value is not None}


def _read_rule(rules: Fields, index: int) -> BundledRule:
    row = rules.array(index, f"rule {index}", length=3)
    name = _read_name(row)
    stated = row.map(2, "roll-out", maximum=5)
    try:
        rollout = Rollout(
            mode=_read_mode(stated),
            enforce_from=stated.optional(stated.integer, 2, "enforce from", maximum=_MOST_SECONDS),
            percent=stated.integer(3, "percent", maximum=99) if 3 in stated else EVERYWHERE.percent,
            not_before=stated.optional(stated.integer, 4, "not before", maximum=_MOST_SECONDS),
            expires=stated.optional(stated.integer, 5, "expires", maximum=_MOST_SECONDS),
        )
    except ValueError as error:
        raise row.error("roll-out", str(error)) from None
    stated.close()
    return BundledRule(name, row.lines(1, "source", maximum=MOST_BUNDLE_BYTES), rollout)


def _read_withdrawal(withdrawn: Fields, index: int) -> Withdrawal:
    row = withdrawn.array(index, f"withdrawal {index}", length=2)
    reason = row.text(1, "reason")
    if reason and not reason.isprintable():
        raise row.error("reason", "not printable")
    return Withdrawal(_read_name(row), reason)


def _read_name(row: Fields) -> str:
    name = row.text(0, "name")
    if not _NAME.match(name):
        raise row.error("name", f"{name!r} is no name of a script")
    return name


def _read_mode(stated: Fields) -> Mode | None:
    if 1 not in stated:
        return None
    word = stated.text(1, "mode")
    try:
        return Mode(word)
    except ValueError:
        raise stated.error("mode", f"{word!r} is none") from None
