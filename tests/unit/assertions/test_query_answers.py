"""Answers to a script's own queries: given to it alone, and judged as facts are."""

from __future__ import annotations

import json

import pytest

from affiant.assertions.bundle import make_bundle
from affiant.assertions.engine import Engine
from affiant.assertions.recording import Recording, recordings_beside, replay, write_recording
from affiant.assertions.script import read_script
from affiant.model.errors import MalformedError
from affiant.model.outcome import Outcome

VALUE = 'QUERIES = {"pattern": {"path": "core_pattern", "as": "text", "bytes": 128}}'
OPTIONAL = VALUE.replace("128}", '128, "optional": True}')
PATTERN = 'v = facts["pattern"]\nreturn [bad("core_pattern", "core", str(v))]'
NO_FACTS = {"FACTS": "[]"}


def judged(source, facts, name="example"):
    with Engine(make_bundle("test", 1, {name: source})) as engine:
        (result,) = engine.judge(facts)
    return result


def test_a_script_is_given_the_answers_to_its_queries(write):
    result = judged(write(PATTERN, top=VALUE, **NO_FACTS), {"example.pattern": {"value": "|/bin/x"}})
    assert result.outcome is Outcome.VIOLATED
    assert result.findings[0].found == '{"value": "|/bin/x"}'


def test_what_a_kernel_does_not_have_makes_the_rule_not_applicable(write):
    answer = {"example.pattern": {"absent": "this kernel has no single symbol core_pattern"}}
    result = judged(write(PATTERN, top=VALUE, **NO_FACTS), answer)
    assert (result.outcome, result.looked_at) == (Outcome.NOT_APPLICABLE, 0)
    assert result.reason == "this kernel has no single symbol core_pattern"


def test_an_optional_answer_that_is_absent_is_the_rules_to_judge(write):
    answer = {"example.pattern": {"absent": "no such symbol"}}
    result = judged(write(PATTERN, top=OPTIONAL, **NO_FACTS), answer)
    assert result.findings[0].found == '{"absent": "no such symbol"}'


@pytest.mark.parametrize(
    ("facts", "reason"),
    [
        ({"example.pattern": {"unavailable": "no RAM"}}, "example.pattern is unavailable: no RAM"),
        ({}, "the fact example.pattern is missing"),
        ({"pattern": {"value": "core"}}, "the fact example.pattern is missing"),
        ({"other.pattern": {"value": "core"}}, "the fact example.pattern is missing"),
        ({"example.pattern": {"value": "x" * (5 << 20)}}, "at most 4194304 are read"),
    ],
)
def test_an_answer_that_is_not_there_is_inconclusive(write, facts, reason):
    for top in (VALUE, OPTIONAL):
        result = judged(write(PATTERN, top=top, **NO_FACTS), facts)
        assert result.outcome is Outcome.INCONCLUSIVE
        assert reason in result.reason


def test_a_rule_reads_nothing_beyond_its_facts_and_queries(write):
    """Neither facts nor answers of others are in what it is given, nor can they be loaded."""
    spy = 'return [bad(key, "", "") for key in facts]'
    bundle = make_bundle(
        "test",
        1,
        {
            "spying": write(spy, "spying", top=VALUE),
            "victim": write('return [ok("x")]', "victim", top=VALUE, FACTS='["fact", "secret"]'),
        },
    )
    facts = {
        "fact": {},
        "secret": {"value": 1},
        "spying.pattern": {"value": "a"},
        "victim.pattern": {"value": "b"},
        "unasked": {"value": 2},
    }
    with Engine(bundle) as engine:
        spying, victim = engine.judge(facts)
    assert [finding.subject for finding in spying.findings] == ["fact", "pattern"]
    assert victim.outcome is Outcome.HOLDS
    for reach in ("fact:secret", "fact:victim.pattern", "secret", "victim.pattern", "fact:pattern"):
        with pytest.raises(MalformedError, match="no module"):
            read_script("example", write(top=f'load("{reach}", "value")'))


def test_two_rules_may_call_different_queries_alike(write):
    other = VALUE.replace("core_pattern", "modprobe_path")
    sources = {
        name: write(PATTERN, name, top=top, **NO_FACTS)
        for name, top in (("one_rule", VALUE), ("other_rule", other))
    }
    bundle = make_bundle("test", 1, sources)
    assert list(bundle.queries) == ["one_rule.pattern", "other_rule.pattern"]
    assert bundle.queries["other_rule.pattern"].reading.path.root == "modprobe_path"
    with Engine(bundle) as engine:
        results = engine.judge({"one_rule.pattern": {"value": 1}, "other_rule.pattern": {"value": 2}})
    assert [result.findings[0].found for result in results] == ['{"value": 1}', '{"value": 2}']


def test_an_answer_of_one_rule_takes_no_room_from_facts(write):
    """Twelve rules that ask for 4 MiB each: the built-in fact is still read."""
    greedy = {
        f"a_rule_{index}": write('return [ok("x")]', f"a_rule_{index}", top=VALUE, **NO_FACTS)
        for index in range(4)
    }
    bundle = make_bundle("test", 1, greedy | {"modest": write(name="modest")})
    facts = {name: {"value": "x" * (4_000_000)} for name in bundle.queries} | {"fact": {"value": 1}}
    with Engine(bundle) as engine:
        *others, modest = engine.judge(facts)
    assert modest.outcome is Outcome.HOLDS
    assert Outcome.INCONCLUSIVE in {result.outcome for result in others}


@pytest.mark.parametrize(
    ("header", "complaint"),
    [
        ({"top": "QUERIES = 3"}, "queries are declared as a dict"),
        ({"top": 'QUERIES = {"q": {}}'}, "query q: lacks path"),
        ({"top": 'QUERIES = {"fact": {"path": "x"}}'}, "query fact is called as a fact that is read, too"),
        ({"top": 'QUERIES = {"q": {"path": "x", "bytes": [1]}}'}, "QUERIES holds too much, or something"),
        ({"top": 'QUERIES = {1: {"path": "x"}}'}, "QUERIES holds too much, or something"),
        ({"top": 'QUERIES = {"q": {"path": "x" * 5000}}'}, "QUERIES holds too much"),
        ({"top": 'QUERIES = {str(i): {"path": "x"} for i in range(5000)}'}, "QUERIES holds too much"),
        ({"top": 'QUERIES = {"q": {"a": {"b": {"c": {"d": {"e": {"f": 1}}}}}}}'}, "QUERIES holds too much"),
        ({"FACTS": "[]"}, "FACTS and QUERIES are both empty"),
    ],
)
def test_queries_that_cannot_be_meant_are_refused(write, header, complaint):
    with pytest.raises(MalformedError) as caught:
        read_script("example", write(**header))
    assert complaint in str(caught.value)


def test_a_recording_with_answers_replays_bit_for_bit(write, tmp_path):
    """Facts written and read back are the same text to the engine, and lead to the same verdict."""
    body = 'return [bad(e["address"], str(e["n"]), str(e)) for e in facts["items"]["elements"]]'
    items = """QUERIES = {"items": {"walk": "list", "at": "x", "of": "struct x", "by": "l", "most": 9,
        "each": {"n": {"path": "n"}, "text": {"path": "t", "as": "text", "bytes": 8}}}}"""
    elements = [
        {"address": "0xffff888000000000", "text": "\x1b[2J\ud800", "n": (1 << 64) - 1},
        {"n": -1, "address": "0x0", "text": None},
    ]
    facts = {"example.items": {"elements": elements}}
    bundle = make_bundle("test", 1, {"example": write(body, top=items, **NO_FACTS)})
    with Engine(bundle) as engine:
        (first,) = engine.judge(facts)
        subjects = tuple(finding.subject for finding in first.findings)
        recording = Recording("example", "case", "made up", first.outcome, subjects, facts)
        safe = json.loads(json.dumps(facts).replace("\\ud800", "?"))
        write_recording(tmp_path, Recording("example", "case", "made up", first.outcome, subjects, safe))
        (read,) = recordings_beside(tmp_path / "example.star")
        assert replay(engine, read) == (first, ())
        assert replay(engine, recording) == (first, ())
    assert str((1 << 64) - 1) in first.findings[0].found
