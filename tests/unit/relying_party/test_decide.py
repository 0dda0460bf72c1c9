"""Everything that falls short is told, and nothing looked at is no acceptance."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from affiant.model.level import SecurityLevel
from affiant.model.outcome import Mode, Outcome
from affiant.model.runtime_report import RulesFreshness
from affiant.relying_party.decide import Decision, Policy, decide
from affiant.relying_party.page import as_lines
from affiant.relying_party.verify import VerifiedPassport
from tests.unit.wire import world

VERIFIED = VerifiedPassport(world.SESSION_REPORT, world.RUNTIME_REPORT, world.NOW + 1)


def bend(**runtime: Any) -> VerifiedPassport:
    return replace(VERIFIED, runtime=replace(VERIFIED.runtime, **runtime))


def bend_first_assertion(**fields: Any) -> VerifiedPassport:
    first, *rest = VERIFIED.runtime.assertions
    return bend(assertions=(replace(first, **fields), *rest))


def judge(verified: VerifiedPassport = VERIFIED, **policy: Any) -> Decision:
    return decide(verified, policy=Policy(**policy))


def refused_for(decision: Decision) -> list[str]:
    assert not decision.accepted
    return [finding.subject for finding in decision.findings]


def test_a_healthy_machine_is_accepted() -> None:
    decision = judge(required=frozenset({"kernel_text_intact"}))
    assert decision.accepted
    assert decision.findings == ()
    assert [remark.subject for remark in decision.remarks] == ["modules_listed"]


def test_a_level_below_the_minimum_is_refused() -> None:
    assert refused_for(judge(min_level=SecurityLevel.ENFORCED_CODE)) == ["security level"]
    assert judge(min_level=SecurityLevel.ISOLATED).accepted


def test_without_a_policy_an_unproven_monitor_is_refused() -> None:
    unproven = replace(VERIFIED, session=replace(VERIFIED.session, level=SecurityLevel.VERIFIED_BOOT))
    assert refused_for(judge(unproven)) == ["security level"]


def test_a_standing_violation_is_refused_once() -> None:
    verified = bend_first_assertion(outcome=Outcome.VIOLATED)
    violation = replace(world.VIOLATION, assertion="kernel_text_intact", standing=True)
    decision = judge(replace(verified, runtime=replace(verified.runtime, violations=(violation,))))
    assert refused_for(decision) == ["kernel_text_intact: sys_call_table[59]"]
    assert "still violated" in decision.findings[0].found


def test_a_violated_assertion_without_details_is_refused() -> None:
    assert refused_for(judge(bend_first_assertion(outcome=Outcome.VIOLATED))) == ["kernel_text_intact"]


def test_a_repaired_violation_is_refused() -> None:
    """Everything holds again; the session's history says otherwise."""
    decision = judge(bend(violations=(world.VIOLATION,)))
    assert refused_for(decision) == ["syscall_table_intact: sys_call_table[59]"]
    assert "earlier in this session" in decision.findings[0].found


def test_a_violation_of_an_assertion_no_longer_reported_is_refused() -> None:
    gone = replace(world.VIOLATION, assertion="credentials_sane")
    assert refused_for(judge(bend(violations=(gone,)))) == ["credentials_sane: sys_call_table[59]"]


def test_audit_mode_tells_and_does_not_refuse_unless_asked() -> None:
    audited = bend(violations=(replace(world.VIOLATION, assertion="ftrace_off"),))
    decision = judge(audited)
    assert decision.accepted
    assert "ftrace_off: sys_call_table[59]" in [each.subject for each in decision.remarks]
    assert "ftrace_off: sys_call_table[59]" in refused_for(judge(audited, tolerate_audit=False))
    assert "ftrace_off: sys_call_table[59]" in refused_for(judge(audited, required=frozenset({"ftrace_off"})))


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("no_such_assertion", "not in the report"),
        ("modules_listed", "inconclusive: unreadable"),
        ("ftrace_off", "not applicable: not built in"),
    ],
)
def test_a_required_assertion_must_hold(name: str, found: str) -> None:
    decision = judge(required=frozenset({name}))
    assert refused_for(decision) == [name]
    assert decision.findings[0].found == found


def test_an_enforced_assertion_that_could_not_look_is_refused() -> None:
    verified = bend_first_assertion(outcome=Outcome.INCONCLUSIVE, looked_at=0, reason="page absent")
    assert refused_for(judge(verified)) == ["kernel_text_intact"]


def test_an_old_look_is_refused() -> None:
    assert refused_for(judge(bend_first_assertion(age_ms=9500), max_age_s=10)) == ["kernel_text_intact"]
    assert judge(bend_first_assertion(age_ms=9000), max_age_s=10).accepted


def test_an_old_report_is_refused() -> None:
    late = replace(VERIFIED, verified_at=world.NOW + 11)
    assert "runtime report" in refused_for(judge(late, max_age_s=10))
    assert judge(late, max_age_s=12).accepted


def test_nothing_looked_at_is_refused() -> None:
    assert refused_for(judge(bend(assertions=()))) == ["assertions"]
    audit_only = bend(assertions=VERIFIED.runtime.assertions[2:])
    assert refused_for(judge(audit_only)) == ["assertions"]


def test_old_rules_are_refused() -> None:
    """Both the policy's minimum and the one that the service signed count."""
    assert refused_for(judge(min_rules_version=8)) == ["rules base"]
    demanding = replace(VERIFIED, session=replace(VERIFIED.session, minimum_rules_version=8))
    assert refused_for(judge(demanding)) == ["rules base"]


def test_rules_of_another_fleet_are_refused() -> None:
    assert refused_for(judge(rules_name="web")) == ["rules"]
    assert judge(rules_name="base").accepted


@pytest.mark.parametrize(
    ("freshness", "accepted"),
    [
        (RulesFreshness(28_000, False, ""), True),
        (RulesFreshness(29_001, False, "not reached"), False),  # and the report has aged by a second since
        (RulesFreshness(None, False, "not reached"), False),
        (RulesFreshness(0, True, ""), False),
        (None, False),
    ],
)
def test_rules_that_were_not_confirmed_in_time_are_refused_where_that_is_asked(
    freshness: RulesFreshness | None, accepted: bool
) -> None:
    verified = bend(freshness=freshness)
    assert judge(verified, max_rules_age_s=30).accepted is accepted
    assert judge(verified).accepted


def test_expired_and_troubled_rules_are_told() -> None:
    remarks = judge(bend(freshness=RulesFreshness(9, True, "not reached"))).remarks
    assert [each.found for each in remarks if each.subject == "rules base"] == [
        "that word has expired",
        "not reached",
    ]


def test_a_violation_by_a_withdrawn_rule_refuses_unless_that_is_tolerated() -> None:
    """What was seen was seen; a relying party may go by the publisher's word that it meant nothing."""
    violation = replace(world.VIOLATION, assertion="withdrawn", standing=True)
    decision = judge(bend(violations=(violation,)))
    assert refused_for(decision) == ["withdrawn: sys_call_table[59]"]
    assert "by a rule that is no longer among them" in decision.findings[0].found
    assert judge(bend(violations=(violation,)), tolerate_withdrawn=True).accepted
    present = replace(violation, assertion="kernel_text_intact")
    assert not judge(bend(violations=(present,)), tolerate_withdrawn=True).accepted
    required = judge(
        bend(violations=(violation,)), tolerate_withdrawn=True, required=frozenset({"withdrawn"})
    )
    assert "withdrawn: sys_call_table[59]" in refused_for(required)


def test_a_rule_in_audit_does_not_begin_to_refuse_when_it_is_withdrawn() -> None:
    """It was taken back because of false alarms, say: those must not shut the fleet out then."""
    violation = replace(world.VIOLATION, assertion="withdrawn", standing=True, mode=Mode.AUDIT)
    decision = judge(bend(violations=(violation,)))
    assert decision.accepted
    assert "withdrawn: sys_call_table[59]" in [each.subject for each in decision.remarks]
    assert not judge(bend(violations=(violation,)), tolerate_audit=False).accepted
    assert not judge(bend(violations=(violation,)), required=frozenset({"withdrawn"})).accepted
    present = replace(violation, assertion="kernel_text_intact")
    assert not judge(bend(violations=(present,))).accepted  # in force, and enforced by now


def test_a_monitor_without_the_reference_image_is_refused() -> None:
    assert refused_for(judge(bend(reference=None))) == ["reference image"]


def test_a_reference_image_that_the_boot_log_does_not_prove_is_told() -> None:
    unproven = replace(VERIFIED, session=replace(VERIFIED.session, reference=None))
    assert "reference image" in [each.subject for each in judge(unproven).remarks]


def test_all_reasons_are_told_at_once() -> None:
    verified = bend(assertions=(), violations=(world.VIOLATION,), reference=None)
    subjects = refused_for(judge(verified, min_level=SecurityLevel.HARDWARE_ROOTED_HOST, min_rules_version=9))
    assert subjects == [
        "security level",
        "rules base",
        "assertions",
        "reference image",
        "syscall_table_intact: sys_call_table[59]",
    ]


def test_enforcement_is_by_mode() -> None:
    """An inconclusive look refuses in enforce mode and is told in audit mode."""
    fields = {"outcome": Outcome.INCONCLUSIVE, "looked_at": 0, "reason": "torn"}
    assert judge(bend_first_assertion(mode=Mode.AUDIT, **fields)).accepted
    assert not judge(bend_first_assertion(mode=Mode.ENFORCE, **fields)).accepted


def test_an_impossible_policy_is_misuse() -> None:
    with pytest.raises(ValueError, match="age limit"):
        Policy(max_age_s=0)
    with pytest.raises(ValueError, match="age limit of the rules"):
        Policy(max_rules_age_s=0)


def test_a_page_in_short_counts_what_holds_and_lists_the_rest() -> None:
    holding = [each.name for each in VERIFIED.runtime.assertions if each.outcome is Outcome.HOLDS]
    others = [each.name for each in VERIFIED.runtime.assertions if each.outcome is not Outcome.HOLDS]
    page = "\n".join(as_lines(VERIFIED, judge(), in_short=True))
    total = len(holding) + len(others)
    assert f"  holds          {len(holding)} of {total}" in page.splitlines()
    assert holding
    assert others
    assert not any(f"{name}:" in page.split("remarks")[0] for name in holding)
    assert all(name in page for name in others)
