"""Policies as files: made from a log, compared, and tried on one."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Final

from affiant.appraisal.boot_description import Proof, describe_untrusted_boot
from affiant.appraisal.boot_judgement import BootVerdict, judge_boot
from affiant.appraisal.policy import AcceptedMonitor, AppraisalPolicy, policy_digest
from affiant.appraisal.policy_changes import PolicyChange, policy_changes
from affiant.appraisal.policy_file import MAXIMUM_POLICY, NamedPolicy, parse_policy
from affiant.appraisal.policy_from_boot import policy_accepting
from affiant.appraisal.policy_text import write_policy
from affiant.boot.evidence import read_boot_evidence
from affiant.boot.explain import Explanation
from affiant.boot.files import read_file
from affiant.boot.page import finding_lines
from affiant.boot.text import printable
from affiant.model.errors import ForgedError
from affiant.tpm.drtm import expected_pcr17
from affiant.tpm.event_log import parse_event_log
from affiant.tpm.quote import VerifiedQuote
from affiant.wire.launch_record import decode_launch_record

__all__ = ["PolicyComparison", "compare", "comparison_as_json", "comparison_lines", "policy_text"]

_LARGEST_FILE: Final = 4 << 20
_LAUNCH_PCR: Final = 17
_WORDS: Final = {
    Proof.QUOTE: "a log that a verified quote proves",
    Proof.UNSIGNED_VALUES: "a log that replays onto unsigned PCR values: trust it before you trust this",
    Proof.NOTHING: "a log that NOTHING PROVES: trust it before you trust this",
}


@dataclass(frozen=True, slots=True)
class PolicyComparison:
    """Two policies, what differs, and what both say of a log (None without one)."""

    old: AppraisalPolicy
    new: AppraisalPolicy
    changes: tuple[PolicyChange, ...]
    old_verdict: BootVerdict | None
    new_verdict: BootVerdict | None


def policy_text(explanation: Explanation, *, log: bytes, launch_record: bytes | None = None) -> str:
    """Return the text of a policy that accepts the boot explained.

    With a launch record the policy accepts its monitor, in this launch and in every later one: a record
    holds an identity key that is new with each launch, so the record itself is not named. Raises
    MalformedError for what is no record, ForgedError when the quoted PCR 17 holds another launch.
    """
    description = explanation.description
    named = policy_accepting(description)
    weak = sorted(fact.name for fact in description.facts if fact.value is False)
    head = [
        "Appraisal policy of Affiant: what a boot must be to be accepted.",
        f"Made from {_WORDS[description.proof]}",
        f"(SHA-256 {hashlib.sha256(log).hexdigest()}).",
        "A rule that is left out is not applied. The names in comments are for people.",
    ]
    if weak:
        head += ["", "This boot does not have, and this policy does not ask for:"]
        head += [f"  {name}" for name in weak]
    policy = named.policy
    if launch_record is not None:
        policy, words = _with_monitor(policy, launch_record, explanation.quote)
        head += ["", *words]
    return write_policy(policy, names=named.names, head=head)


def _with_monitor(
    policy: AppraisalPolicy, launch_record: bytes, quote: VerifiedQuote | None
) -> tuple[AppraisalPolicy, list[str]]:
    """The policy with the monitor of a launch record, and what to say of it."""
    record = decode_launch_record(launch_record)
    proof = "that NOTHING PROVES was launched"
    if quote is not None and _LAUNCH_PCR in quote.pcrs:
        if quote.pcrs[_LAUNCH_PCR] != expected_pcr17(launch_record, bank=quote.bank):
            raise ForgedError(
                "launch record: the quoted PCR 17 holds another launch than the one it tells of"
            )
        proof = "that the quoted PCR 17 holds"
    words = [f"The monitor is that of a launch record {proof}."]
    if record.debug:
        words.append("It was launched with debug access, which no policy excuses: that costs level 3.")
    accepted = AcceptedMonitor(record.monitor_image, record.monitor_version, record.security_version)
    return replace(
        policy,
        monitors=policy.monitors | {accepted},
        minimum_security_version=max(policy.minimum_security_version, record.security_version),
        rules_roots=policy.rules_roots | ({record.rules_root} if record.rules_root else set()),
        fleets=policy.fleets | ({record.fleet} if record.fleet else set()),
    ), words


def compare(old: str, new: str, *, log: str | None) -> PolicyComparison:
    """Compare two policy files, or the policies that logs would make, and try both on `log`.

    Raises MalformedError, SetupError or UnavailableError.
    """
    before, after = _policy_of(old), _policy_of(new)
    names = {**before.names, **after.names}
    verdicts: list[BootVerdict | None] = [None, None]
    if log is not None:
        evidence = read_boot_evidence(log)
        parsed = parse_event_log(evidence.log)
        described = describe_untrusted_boot(parsed, policy=after.policy, values=evidence.values)
        names |= {digest: name for digest, name in policy_accepting(described).names.items() if name}
        verdicts = [judge_boot(described, one.policy) for one in (before, after)]
    changes = policy_changes(before.policy, after.policy, names=names)
    return PolicyComparison(before.policy, after.policy, changes, *verdicts)


def comparison_lines(comparison: PolicyComparison) -> Iterator[str]:
    """Yield a comparison's lines for people."""
    if not comparison.changes:
        yield "The two policies are the same."
    for change in comparison.changes:
        yield f"{change.subject}:"
        yield from (f"  - {printable(sentence, limit=500)}" for sentence in change.sentences)
    for name, verdict in (("OLD", comparison.old_verdict), ("NEW", comparison.new_verdict)):
        if verdict is not None:
            yield ""
            says = "accepts" if verdict.accepted else "REFUSES"
            yield f"{name} {says} what the log says (which nothing proves)."
            yield from finding_lines(verdict.findings)


def comparison_as_json(comparison: PolicyComparison) -> dict[str, Any]:
    """Return a comparison's JSON object."""
    return {
        "old": policy_digest(comparison.old).hex(),
        "new": policy_digest(comparison.new).hex(),
        "changes": [{"subject": one.subject, "sentences": list(one.sentences)} for one in comparison.changes],
        "old_accepts_log": None if comparison.old_verdict is None else comparison.old_verdict.accepted,
        "new_accepts_log": None if comparison.new_verdict is None else comparison.new_verdict.accepted,
    }


def _policy_of(path: str) -> NamedPolicy:
    """The policy in a file, or that of the log in it: logs are binary, bundles are JSON."""
    content = read_file(path, limit=_LARGEST_FILE, what="policy or log")
    if content[:1] == b"{" or b"\0" in content[:4096]:
        evidence = read_boot_evidence(path)
        described = describe_untrusted_boot(
            parse_event_log(evidence.log), policy=AppraisalPolicy(), values=evidence.values
        )
        return policy_accepting(described)
    return parse_policy(content[: MAXIMUM_POLICY + 1])
