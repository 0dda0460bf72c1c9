"""The journal remembers violations, bounded, with the right times."""

from __future__ import annotations

from affiant.model.finding import Finding
from affiant.model.outcome import AssertionResult, Mode, Outcome
from affiant.monitor.journal import Journal
from affiant.wire.runtime_report import MAX_VIOLATIONS


def result(
    outcome: Outcome,
    *findings: Finding,
    name: str = "kernel_text_intact",
    version: int = 1,
    mode: Mode = Mode.ENFORCE,
) -> AssertionResult:
    reason = "" if outcome in (Outcome.HOLDS, Outcome.VIOLATED) else "cannot see"
    return AssertionResult(name, version, mode, outcome, 3, findings, reason)


HOOK = Finding("tcp4_seq_show+0x5", "0f1f440000", "e9aabbccdd")


def test_a_repaired_violation_stays_with_its_times() -> None:
    journal = Journal()
    journal.record([result(Outcome.HOLDS)], at_ms=1_000)
    journal.record([result(Outcome.VIOLATED, HOOK)], at_ms=2_000)
    journal.record([result(Outcome.VIOLATED, HOOK)], at_ms=3_000)
    journal.record([result(Outcome.HOLDS)], at_ms=4_000)

    (violation,) = journal.violations(origin_ms=500)

    assert (violation.first_seen, violation.last_seen, violation.last_good) == (1_500, 2_500, 500)
    assert not violation.standing
    assert violation.findings == (HOOK,)
    assert journal.standings(now_ms=4_010)[0].outcome is Outcome.HOLDS
    assert journal.standings(now_ms=4_010)[0].age_ms == 10


def test_not_seeing_does_not_end_a_violation() -> None:
    journal = Journal()
    journal.record([result(Outcome.VIOLATED, HOOK)], at_ms=1)
    journal.record([result(Outcome.INCONCLUSIVE)], at_ms=2)
    assert journal.violations(origin_ms=0)[0].standing


def test_a_second_hook_joins_the_first() -> None:
    second = Finding("__x64_sys_kill+0x0", "f30f1efa", "e900000000")
    journal = Journal()
    journal.record([result(Outcome.VIOLATED, HOOK)], at_ms=1)
    journal.record([result(Outcome.VIOLATED, HOOK, second)], at_ms=2)
    (violation,) = journal.violations(origin_ms=0)
    assert violation.findings == (HOOK, second)


def test_findings_beyond_the_bound_are_counted() -> None:
    many = [Finding(f"f{index}", "a", "b") for index in range(40)]
    journal = Journal()
    journal.record([result(Outcome.VIOLATED, *many)], at_ms=1)
    journal.record([result(Outcome.VIOLATED, *many)], at_ms=2)
    (violation,) = journal.violations(origin_ms=0)
    assert len(violation.findings) == 16
    assert violation.more == 24


def test_one_that_flaps_does_not_crowd_out_another() -> None:
    journal = Journal()
    for round_number in range(500):
        journal.record([result(Outcome.VIOLATED, HOOK, name="noisy")], at_ms=2 * round_number)
        journal.record([result(Outcome.HOLDS, name="noisy")], at_ms=2 * round_number + 1)
    journal.record([result(Outcome.VIOLATED, HOOK)], at_ms=2_000)
    violations = journal.violations(origin_ms=0)
    assert [violation.assertion for violation in violations] == ["noisy"] * 4 + ["kernel_text_intact"]
    assert violations[3].last_seen == 998


def test_what_happened_before_the_session_is_told_as_its_start() -> None:
    journal = Journal()
    journal.record([result(Outcome.VIOLATED, HOOK)], at_ms=100)
    (violation,) = journal.violations(origin_ms=5_000)
    assert (violation.first_seen, violation.last_good) == (0, None)


def test_a_withdrawn_rule_disappears_and_what_it_saw_stays() -> None:
    journal = Journal()
    journal.record([result(Outcome.VIOLATED, HOOK), result(Outcome.HOLDS, name="other")], at_ms=1)
    journal.follow({"other": 1})
    assert [each.name for each in journal.standings(now_ms=2)] == ["other"]
    (violation,) = journal.violations(origin_ms=0)
    assert (violation.assertion, violation.findings, violation.last_seen) == (
        "kernel_text_intact",
        (HOOK,),
        1,
    )


def test_another_version_of_a_rule_has_seen_nothing_yet() -> None:
    """It may claim something else: neither the last result nor the last good look speaks for it."""
    journal = Journal()
    journal.record([result(Outcome.HOLDS)], at_ms=1)
    journal.follow({"kernel_text_intact": 2})
    assert journal.standings(now_ms=2) == ()
    journal.record([result(Outcome.VIOLATED, HOOK, version=2)], at_ms=3)
    assert journal.violations(origin_ms=0)[0].last_good is None
    assert journal.standings(now_ms=4)[0].version == 2


def test_a_violation_by_another_version_is_one_of_its_own() -> None:
    second = Finding("elsewhere", "a", "b")
    journal = Journal()
    journal.record([result(Outcome.VIOLATED, HOOK)], at_ms=1)
    journal.follow({"kernel_text_intact": 2})
    journal.record([result(Outcome.VIOLATED, second, version=2)], at_ms=2)
    old, new = journal.violations(origin_ms=0)
    assert (old.findings, old.standing, old.last_seen) == ((HOOK,), False, 1)
    assert (new.findings, new.standing, new.first_seen) == ((second,), True, 2)


def test_rules_that_come_and_go_do_not_make_the_journal_grow_beyond_a_report() -> None:
    """A report that could not be written would silence the monitor; the rules that are there keep theirs."""
    journal = Journal()
    for number in range(300):
        names = [f"rule_{number}_{index}" for index in range(4)]
        journal.follow(dict.fromkeys(["stays", *names], 1))
        journal.record(
            [result(Outcome.VIOLATED, HOOK, name=name) for name in ["stays", *names]], at_ms=number
        )
    violations = journal.violations(origin_ms=0)
    assert len(violations) == MAX_VIOLATIONS
    told = {each.assertion for each in violations}
    assert {"stays", *names} <= told
    assert "rule_0_0" not in told


def test_further_episodes_go_before_any_rules_only_one() -> None:
    journal = Journal()
    names = [f"rule_{index}" for index in range(MAX_VIOLATIONS - 1)]
    journal.record([result(Outcome.VIOLATED, HOOK, name=name) for name in names], at_ms=1)
    for at_ms in (2, 3):
        journal.record([result(Outcome.HOLDS, name="rule_5")], at_ms=at_ms)
        journal.record([result(Outcome.VIOLATED, HOOK, name="rule_5")], at_ms=at_ms)
    violations = journal.violations(origin_ms=0)
    assert len(violations) == MAX_VIOLATIONS
    assert {each.assertion for each in violations} == set(names)
    assert sorted(each.first_seen for each in violations if each.assertion == "rule_5") == [2, 3]


def test_a_violation_is_in_audit_only_if_the_rule_always_was() -> None:
    def told(*modes: Mode) -> Mode:
        journal = Journal()
        for at, mode in enumerate(modes):
            journal.record([result(Outcome.VIOLATED, HOOK, mode=mode)], at_ms=at)
        (violation,) = journal.violations(origin_ms=0)
        return violation.mode

    assert told(Mode.AUDIT, Mode.AUDIT) is Mode.AUDIT
    assert told(Mode.AUDIT, Mode.ENFORCE) is Mode.ENFORCE
    assert told(Mode.ENFORCE, Mode.AUDIT) is Mode.ENFORCE


def handed_over(journal: Journal) -> Journal:
    return Journal.of(journal.episodes)


def test_the_next_monitor_goes_on_with_a_violation_that_stood() -> None:
    before = Journal()
    before.record([result(Outcome.HOLDS)], at_ms=1)
    before.record([result(Outcome.VIOLATED, HOOK, mode=Mode.AUDIT)], at_ms=2)
    after = handed_over(before)
    assert after.violations(origin_ms=0) == before.violations(origin_ms=0)
    assert after.standings(now_ms=3) == ()
    for journal in (before, after):
        journal.record([result(Outcome.INCONCLUSIVE)], at_ms=4)
        journal.record([result(Outcome.VIOLATED, HOOK, mode=Mode.AUDIT)], at_ms=5)
    assert after.violations(origin_ms=0) == before.violations(origin_ms=0)
    after.record([result(Outcome.HOLDS)], at_ms=6)
    (violation,) = after.violations(origin_ms=0)
    assert (violation.first_seen, violation.last_seen, violation.last_good) == (2, 5, 1)
    assert not violation.standing


def test_another_version_of_the_rule_does_not_go_on_with_what_the_monitor_before_saw() -> None:
    before = Journal()
    before.record([result(Outcome.VIOLATED, HOOK)], at_ms=1)
    after = handed_over(before)
    after.record([result(Outcome.VIOLATED, HOOK, version=2)], at_ms=2)
    assert [each.standing for each in after.violations(origin_ms=0)] == [False, True]


def test_no_rules_only_violation_goes_at_the_first_look_of_the_next_monitor() -> None:
    before = Journal()
    names = ["gone", *(f"rule_{index}" for index in range(MAX_VIOLATIONS - 1))]
    before.record([result(Outcome.VIOLATED, HOOK, name=name) for name in reversed(names)], at_ms=1)
    after = handed_over(before)
    after.record([result(Outcome.VIOLATED, HOOK, name=name) for name in ["new", *names[1:]]], at_ms=2)
    assert {each.assertion: each.first_seen for each in after.violations(origin_ms=0)} == {
        "new": 2,
        **dict.fromkeys(names[1:], 1),
    }
