"""The runtime report: what the monitor saw of the live kernel, signed by the session key."""

from __future__ import annotations

from dataclasses import dataclass

from affiant.model.finding import Finding
from affiant.model.outcome import Mode, Outcome

__all__ = ["AssertionReport", "RulesFreshness", "RulesUsed", "RuntimeReport", "Violation"]


@dataclass(frozen=True, slots=True)
class RulesUsed:
    """The bundle that judged: its name, version and SHA-256."""

    name: str
    version: int
    digest: bytes


@dataclass(frozen=True, slots=True)
class RulesFreshness:
    """Whether the rules are the newest that were published.

    `age_ms`: how long ago the repository was last found to have nothing newer, None if never yet.
    `expired`: the repository's own word that it is current has run out, so that newer rules may have been
    held back. `trouble`: why the last check brought nothing, in one sentence; empty when it did.
    """

    age_ms: int | None
    expired: bool
    trouble: str


@dataclass(frozen=True, slots=True)
class Violation:
    """A violation seen in this session; it stays, repaired or not.

    Times are milliseconds since the session's challenge was issued, by the monitor's monotonic
    clock. `last_good` is None when the property was never seen to hold. `standing` tells whether
    the last look still found it. `findings` are those of the first sighting, at most 16, the
    number left out in `more`. `mode` is audit if the rule was in audit at every sighting: what it is worth
    when the rule itself is no longer in the report.
    """

    assertion: str
    first_seen: int
    last_seen: int
    last_good: int | None
    standing: bool
    findings: tuple[Finding, ...]
    more: int
    mode: Mode = Mode.ENFORCE


@dataclass(frozen=True, slots=True)
class AssertionReport:
    """One assertion's standing: the last outcome, how old it is, how much was looked at."""

    name: str
    version: int
    mode: Mode
    outcome: Outcome
    age_ms: int
    looked_at: int
    reason: str


@dataclass(frozen=True, slots=True)
class RuntimeReport:
    """A verified runtime report: its signature is by the certified session key.

    `issued_at` is the service's time plus the monitor's monotonic clock, never the host's clock.
    `sequence` counts from 1 in a session; `previous` is SHA-256 of the report before (zeros for
    the first). `freshness` is None for a monitor that takes no published rules: it judges by the library
    in its image. `reference` is the digest of the reference image compared with, None if unknown.
    `session_report` is SHA-256 of the session report's bytes. `digest` is this report's SHA-256.
    """

    audience: str
    nonce: bytes
    issued_at: int
    expires_at: int
    device: bytes
    session_report: bytes
    sequence: int
    previous: bytes
    elapsed_ms: int
    rules: RulesUsed
    reference: bytes | None
    assertions: tuple[AssertionReport, ...]
    violations: tuple[Violation, ...]
    digest: bytes
    freshness: RulesFreshness | None = None
