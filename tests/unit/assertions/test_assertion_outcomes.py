"""From observations to one of four outcomes."""

from __future__ import annotations

import pytest

from affiant.assertions.script import read_script
from affiant.assertions.verdict import verdict
from affiant.model.finding import Finding
from affiant.model.outcome import Mode, Outcome


def test_good_observations_hold_and_are_counted(judge_one):
    result = judge_one('return [ok("a"), ok("b", count = 41)]', MODE='"audit"')
    assert (result.outcome, result.looked_at, result.findings, result.reason) == (Outcome.HOLDS, 42, (), "")
    assert (result.name, result.version, result.mode) == ("example", 1, Mode.AUDIT)


def test_one_bad_observation_among_good_and_unseen_ones_is_a_violation(judge_one):
    body = 'return [ok("a"), unseen("b", "gone"), bad("c", "00", "cc", owner = "evil"), expect(99)]'
    result = judge_one(body, TECHNIQUE='"T1014"')
    assert result.outcome is Outcome.VIOLATED
    assert result.looked_at == 2
    assert result.findings == (Finding("c", "00", "cc", owner="evil", technique="T1014"),)


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("return []", "nothing was looked at"),
        ('return [ok("none", count = 0)]', "nothing was looked at"),
        ('return [ok("a"), unseen("b", "paged out")]', "b was not seen: paged out"),
        ('return [unseen("b", "1"), unseen("c", "2"), unseen("d", "3")]', "b was not seen (and 2 more): 1"),
        ('return [ok("a", count = 450), expect(451)]', "450 things were looked at, 451 expected"),
        ('return [ok("a", count = 3), expect(2), expect(2)]', "3 things were looked at, 4 expected"),
        ('return inconclusive("no idea")', "no idea"),
        ('fail("on purpose")', "line 12, column 5: on purpose"),
        ("return None", "check returns a list of observations, not NoneType"),
        ('return "holds"', "check returns a list of observations, not string"),
        ("return [1]", "check returns a list of observations, and one of them is int"),
        ("return [()]", "check returns a list of observations, and one of them is tuple"),
        ("return ()", "check returns a list of observations, not_applicable(...) or inconclusive(...)"),
        ('return ok("a")', "check returns a list of observations, not_applicable(...) or inconclusive(...)"),
        ('return not_applicable("")', "not applicable needs a reason"),
        ('return [ok("a"), not_applicable("b")]', "not_applicable and inconclusive stand alone"),
        ('return [ok("a", count = -1)]', "ok: count must be a whole number from 0 to 2^53 - 1"),
        ('return [ok("a", count = 1 << 53)]', "ok: count must be a whole number from 0 to 2^53 - 1"),
        ('return [ok("a", count = (1 << 53) - 1), ok("b")]', "the sum of all counts must be a whole number"),
        ('return [("ok", "a", 1.5)]', "ok: count must be a whole number"),
        ('return [("ok", "a")]', 'an observation "ok" has 2 parts, not 3'),
        ('return [("bad", "", "x", "y", "")]', "bad: subject is empty"),
        ('return [("bad", 1, 2, 3, 4)]', "bad: each part must be a string, not int"),
        ('return [bad("a", 1, "b")]', "line 12"),
        ("return check(facts)", "line 12, column 12: Starlark call stack overflow"),
        ('return [ok(facts["other"]["x"])]', 'line 12, column 16: Key `"other"` was not found'),
        ('facts["fact"]["value"] = 2\nreturn [ok("x")]', "line 12, column 5: Immutable"),
    ],
)
def test_what_proves_nothing_is_inconclusive_and_says_why(judge_one, body, reason):
    result = judge_one(body)
    assert result.outcome is Outcome.INCONCLUSIVE
    assert reason in result.reason
    assert result.findings == ()


def test_not_applicable_keeps_apart_from_holds(judge_one):
    result = judge_one('return not_applicable("no such table on this kernel")')
    assert result.outcome is Outcome.NOT_APPLICABLE
    assert (result.looked_at, result.reason) == (0, "no such table on this kernel")


def test_findings_beyond_the_bound_are_counted_not_dropped_silently(judge_one):
    result = judge_one('return [bad("s%d" % i, "x", "y") for i in range(1000)]')
    assert result.outcome is Outcome.VIOLATED
    assert result.looked_at == 1000
    assert len(result.findings) == 257
    assert result.findings[0].subject == "s0"
    assert result.findings[-1].subject == "744 more"


def test_long_texts_are_cut_and_say_so(judge_one):
    result = judge_one('return [bad("s" * 5000, "x" * 256, "é" * 257)]')
    (finding,) = result.findings
    assert finding == Finding("s" * 255 + "…", "x" * 256, "é" * 255 + "…")


def test_a_terminal_escape_in_a_guest_name_is_made_visible(judge_one):
    result = judge_one('return [bad(facts["fact"]["name"], "x", "y")]', {"name": "\x1b[2Jmod\n\u202e"})
    assert result.findings[0].subject == r"\x1b[2Jmod\n\u202e"


@pytest.mark.parametrize(
    "answer",
    [
        {},
        {"answer": None},
        {"answer": []},
        {"answer": {}},
        {"answer": {"verdict": "holds", "reason": "trust me"}},
        {"answer": {"verdict": "violated", "reason": "x"}},
        {"answer": {"verdict": "not applicable", "reason": ""}},
        {"answer": {"verdict": "not applicable", "reason": 1}},
        {"answer": {"verdict": [], "reason": "x"}},
        {"looked_at": -1},
        {"looked_at": True},
        {"looked_at": 1.0},
        {"looked_at": 1 << 53},
        {"bad": [["a", "b", "c"]]},
        {"bad": [["a", "b", "c", 4]]},
        {"bad": ["abcd"]},
        {"bad": 1},
        {"bad": [["a", "b", "c", "d"]] * 300},
        {"bad_left_out": "1"},
        {"unseen": [["a"]]},
        {"unseen_left_out": None},
        {"expected": None},
    ],
)
def test_a_worker_that_answers_out_of_form_is_inconclusive(write, answer):
    """A corrupted worker may say anything; nothing but the agreed form becomes a verdict."""
    good = {"looked_at": 1, "expected": 0, "bad": [], "bad_left_out": 0, "unseen": [], "unseen_left_out": 0}
    script = read_script("example", write())
    assert verdict(script, {"answer": good}).outcome is Outcome.HOLDS
    result = verdict(script, answer if "answer" in answer or not answer else {"answer": good | answer})
    assert result.outcome is Outcome.INCONCLUSIVE
    assert result.reason == "the evaluator answered in a form that was not agreed"
