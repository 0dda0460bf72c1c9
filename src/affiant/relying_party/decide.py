"""Deciding: is what a passport proves good enough?

Everything that falls short is told, not only the first. Nothing looked at proves nothing: an
assertion that is missing, inconclusive or not applicable where it is required refuses, and so does
a report without a single assertion that looked and holds.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from affiant.model.finding import Finding
from affiant.model.level import SecurityLevel
from affiant.model.outcome import Mode, Outcome
from affiant.model.runtime_report import AssertionReport, RuntimeReport, Violation
from affiant.model.session import SessionReport
from affiant.relying_party.verify import VerifiedPassport

__all__ = ["Decision", "Policy", "decide"]


@dataclass(frozen=True, slots=True)
class Policy:
    """What a relying party asks for.

    `min_level`: below level 3 nothing proves that the report comes from an accepted monitor, which
    is why the default is not lower. `required`: names of assertions that must hold. `max_age_s`: how
    old the last look of an enforced or required assertion may be, and the report itself.
    `min_rules_version` counts besides the minimum that the session report states, `rules_name` is the
    fleet that the rules must be for. `max_rules_age_s`: how long ago they may have been confirmed as the
    newest that were published; with None, what troubles the monitor there is a remark. `tolerate_audit`: a
    violation of an assertion in audit mode does not refuse. `tolerate_withdrawn`: nor does an earlier one of
    a rule that the rules no longer hold, because its publisher took it back. An assertion that is required
    is enforced, whatever its mode.
    """

    min_level: SecurityLevel = SecurityLevel.ISOLATED
    required: frozenset[str] = field(default_factory=frozenset)
    max_age_s: int = 120
    min_rules_version: int = 0
    rules_name: str | None = None
    max_rules_age_s: int | None = None
    tolerate_audit: bool = True
    tolerate_withdrawn: bool = False

    def __post_init__(self) -> None:
        if self.max_age_s < 1:
            raise ValueError("an age limit below one second refuses everything")
        if self.max_rules_age_s is not None and self.max_rules_age_s < 1:
            raise ValueError("an age limit of the rules below one second refuses everything")


@dataclass(frozen=True, slots=True)
class Decision:
    """Accepted or refused; `findings` are all reasons to refuse, empty exactly when accepted.

    `remarks` are what a person may want to know and what did not decide.
    """

    accepted: bool
    findings: tuple[Finding, ...]
    remarks: tuple[Finding, ...]


def decide(verified: VerifiedPassport, *, policy: Policy) -> Decision:
    """Return whether `verified` satisfies `policy`, with every reason why not.

    Accepted means, at the time the passport was verified:
    - the level is at least the policy's;
    - no enforced or required assertion is violated, nor was one in this session, repaired or not;
    - each required assertion is there and holds; each enforced one holds or does not apply;
    - at least one assertion looked at something and holds;
    - the report and each of those looks are within the age limit;
    - the monitor compared the kernel with the reference image that the session report names, if any;
    - the rules are for the fleet that the policy names, at least as new as the policy and the session
      report demand, and confirmed as the newest within the policy's limit, if it has one.
    """
    session, runtime = verified.session, verified.runtime
    findings = [
        *_judge_level(session, policy),
        *_judge_rules(session, runtime, policy),
        *_judge_freshness(verified, policy),
        *_judge_report_age(verified, policy),
        *_judge_coverage(runtime),
        *_judge_reference(session, runtime),
        *_judge_required(runtime, policy),
    ]
    remarks = [*_remark_on_rules(runtime)] if policy.max_rules_age_s is None else []
    if session.reference is None:
        remarks.append(Finding("reference image", "proven by the boot log", "not proven"))
    for assertion in runtime.assertions:
        found = _judge_assertion(assertion, verified, policy)
        (findings if _binding(assertion.name, runtime, policy) else remarks).extend(found)
    for violation in runtime.violations:
        told = _tell_violation(violation, runtime)
        binding = _binding(violation.assertion, runtime, policy, otherwise=violation.mode)
        (findings if binding else remarks).append(told)
    return Decision(not findings, tuple(findings), tuple(remarks))


def _binding(name: str, runtime: RuntimeReport, policy: Policy, *, otherwise: Mode = Mode.ENFORCE) -> bool:
    """Tell whether what is found about an assertion refuses; `otherwise`: the mode of one not in the report.

    A rule that never did more than tell must not begin to refuse because it was withdrawn.
    """
    if name in policy.required or not policy.tolerate_audit:
        return True
    modes = [each.mode for each in runtime.assertions if each.name == name]
    if not modes:
        return otherwise is not Mode.AUDIT and not policy.tolerate_withdrawn
    return modes != [Mode.AUDIT]


def _judge_level(session: SessionReport, policy: Policy) -> list[Finding]:
    if session.level >= policy.min_level:
        return []
    return [
        Finding(
            subject="security level",
            expected=f"{policy.min_level.value} ({policy.min_level.title}) or higher",
            found=f"{session.level.value} ({session.level.title})",
        )
    ]


def _judge_rules(session: SessionReport, runtime: RuntimeReport, policy: Policy) -> list[Finding]:
    rules, findings = runtime.rules, []
    minimum = max(policy.min_rules_version, session.minimum_rules_version)
    if policy.rules_name not in (None, rules.name):
        findings.append(Finding("rules", f"those of {policy.rules_name}", f"those of {rules.name}"))
    if rules.version < minimum:
        findings.append(
            Finding(f"rules {rules.name}", f"version {minimum} or newer", f"version {rules.version}")
        )
    return findings


def _judge_freshness(verified: VerifiedPassport, policy: Policy) -> list[Finding]:
    if policy.max_rules_age_s is None:
        return []
    runtime = verified.runtime
    freshness = runtime.freshness
    subject, limit = f"rules {runtime.rules.name}", f"confirmed within {policy.max_rules_age_s} s"
    if freshness is None:
        return [Finding(subject, limit, "this monitor takes no published rules")]
    trouble = f": {freshness.trouble}" if freshness.trouble else ""
    if freshness.age_ms is None:
        return [Finding(subject, limit, f"never{trouble}")]
    age_ms = freshness.age_ms + 1000 * max(0, verified.verified_at - runtime.issued_at)
    if age_ms > 1000 * policy.max_rules_age_s:
        return [Finding(subject, limit, f"{age_ms / 1000:.1f} s ago{trouble}")]
    return [*_remark_on_rules(runtime)] if freshness.expired else []


def _remark_on_rules(runtime: RuntimeReport) -> list[Finding]:
    """Return what a person may want to know of the rules, whether or not it decides."""
    remarks, freshness, subject = [], runtime.freshness, f"rules {runtime.rules.name}"
    if freshness is not None and freshness.expired:
        remarks.append(Finding(subject, "current by their publisher's word", "that word has expired"))
    if freshness is not None and freshness.trouble:
        remarks.append(Finding(subject, "confirmed as the newest", freshness.trouble))
    return remarks


def _judge_report_age(verified: VerifiedPassport, policy: Policy) -> list[Finding]:
    age = verified.verified_at - verified.runtime.issued_at
    if age <= policy.max_age_s:
        return []
    return [Finding("runtime report", f"at most {policy.max_age_s} s old", f"{age} s old")]


def _judge_coverage(runtime: RuntimeReport) -> list[Finding]:
    if any(each.outcome is Outcome.HOLDS for each in runtime.assertions):
        return []
    return [Finding("assertions", "at least one that looked and holds", "none")]


def _judge_reference(session: SessionReport, runtime: RuntimeReport) -> list[Finding]:
    if session.reference is None or runtime.reference == session.reference:
        return []
    found = "none" if runtime.reference is None else runtime.reference.hex()
    return [Finding("reference image", session.reference.hex(), found)]


def _judge_required(runtime: RuntimeReport, policy: Policy) -> list[Finding]:
    findings = []
    present = {each.name: each for each in runtime.assertions}
    for name in sorted(policy.required):
        assertion = present.get(name)
        if assertion is None:
            findings.append(Finding(name, "holds", "not in the report"))
        elif assertion.outcome is Outcome.NOT_APPLICABLE:
            findings.append(Finding(name, "holds", f"not applicable: {assertion.reason}"))
    return findings


def _judge_assertion(assertion: AssertionReport, verified: VerifiedPassport, policy: Policy) -> list[Finding]:
    if assertion.outcome is Outcome.NOT_APPLICABLE:
        return []
    if assertion.outcome is Outcome.INCONCLUSIVE:
        return [Finding(assertion.name, "holds", f"inconclusive: {assertion.reason}")]
    if assertion.outcome is Outcome.VIOLATED:
        if any(each.assertion == assertion.name and each.standing for each in verified.runtime.violations):
            return []  # told with its details
        return [Finding(assertion.name, "holds", "violated")]
    # The look is as old as the report says, and the report itself has aged since.
    age_ms = assertion.age_ms + 1000 * max(0, verified.verified_at - verified.runtime.issued_at)
    if age_ms > 1000 * policy.max_age_s:
        return [
            Finding(assertion.name, f"looked at within {policy.max_age_s} s", f"{age_ms / 1000:.1f} s ago")
        ]
    return []


def _tell_violation(violation: Violation, runtime: RuntimeReport) -> Finding:
    first = violation.findings[0]
    standing = "still violated" if violation.standing else "violated earlier in this session"
    if all(each.name != violation.assertion for each in runtime.assertions):
        standing = "violated earlier in this session, by a rule that is no longer among them"
    return Finding(
        subject=f"{violation.assertion}: {first.subject}",
        expected=first.expected,
        found=f"{first.found} ({standing})",
        owner=first.owner,
        technique=first.technique,
    )
