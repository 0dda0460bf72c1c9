"""Facts are made of guest memory: whatever they hold, a script is inconclusive at worst."""

from __future__ import annotations

import sys
from dataclasses import replace

import pytest

from affiant.assertions.bundle import make_bundle
from affiant.assertions.engine import Engine
from affiant.model.outcome import Outcome

HOLDS = 'return [ok("x")]'


def nested(depth: int) -> dict[str, object]:
    value: dict[str, object] = {}
    for _ in range(depth):
        value = {"in": value}
    return value


@pytest.mark.parametrize(
    ("fact", "reason"),
    [
        ({"unavailable": "the guest is in firmware"}, "fact is unavailable: the guest is in firmware"),
        ({"unavailable": "no", "value": 1}, "fact is unavailable: no"),
        ({"unavailable": None}, "fact is unavailable: None"),
        ([1, 2], "the fact fact is no JSON object"),
        ("text", "the fact fact is no JSON object"),
        ({"value": b"bytes"}, "the fact fact cannot be said in JSON"),
        ({"value": {1, 2}}, "the fact fact cannot be said in JSON"),
        ({"value": float("nan")}, "the fact fact cannot be said in JSON"),
        ({"value": float("inf")}, "the fact fact cannot be said in JSON"),
        ({("a", "b"): 1}, "the fact fact cannot be said in JSON"),
        ({"value": "x" * (5 << 20)}, "bytes, at most 4194304 are read"),
        (nested(200), "the fact fact cannot be decoded"),
        (nested(sys.getrecursionlimit() * 2), "the fact fact cannot be said in JSON"),
    ],
    ids=lambda value: str(value)[:30] if isinstance(value, str) else "fact",
)
def test_an_unusable_fact_is_inconclusive_and_says_why(judge_one, fact, reason):
    result = judge_one(HOLDS, fact)
    assert result.outcome is Outcome.INCONCLUSIVE
    assert reason in result.reason


def test_a_missing_fact_is_inconclusive(bundle_of):
    with Engine(bundle_of(example=HOLDS)) as engine:
        (result,) = engine.judge({})
    assert (result.outcome, result.reason) == (Outcome.INCONCLUSIVE, "the fact fact is missing")


def test_a_fact_is_decoded_to_the_depth_that_is_promised_and_no_further(judge_one):
    assert judge_one(HOLDS, nested(126)).outcome is Outcome.HOLDS
    assert "cannot be decoded" in judge_one(HOLDS, nested(127)).reason


def test_a_cyclic_fact_is_inconclusive(judge_one):
    fact: dict[str, object] = {}
    fact["self"] = fact
    assert "cannot be said in JSON" in judge_one(HOLDS, fact).reason


@pytest.mark.parametrize(
    ("value", "expression"),
    [
        ("0xffffffff81000000", "int(value, 16) == 0xffffffff81000000"),
        ((1 << 53) - 1, "value == 9007199254740991"),
        ((1 << 64) - 1, "value == (1 << 64) - 1"),
        (-(1 << 63), "value == -(1 << 63)"),
        ('é\U0001f600\x00\x1b"\\', "len(value) == 6"),
        ("mod\udc80", 'value == "mod?"'),
        ([None, True, False, "", [], {}], "value == [None, True, False, '', [], {}]"),
        (nested(100), 'value["in"]["in"] != {}'),
    ],
)
def test_values_cross_exactly(judge_one, value, expression):
    lines = ['value = facts["fact"]["value"]', f"if {expression}:", '    return [ok("x")]']
    body = "\n".join([*lines, 'return [bad("x", "y", repr(value))]'])
    assert judge_one(body, {"value": value}).outcome is Outcome.HOLDS


def test_order_of_keys_is_the_same_however_a_fact_was_built(judge_one):
    body = 'return [bad(",".join(facts["fact"].keys()), "x", "y")]'
    one, other = judge_one(body, {"b": 1, "a": 2}), judge_one(body, {"a": 2, "b": 1})
    assert one.findings[0].subject == other.findings[0].subject == "a,b"


def test_a_fact_that_no_worker_survives_costs_its_readers_alone(write, quick):
    """Forty million characters of small objects fit no worker of this size; others are judged."""
    limits = replace(quick, fact_bytes=1 << 26, facts_bytes=1 << 26, cpu_seconds=30.0)
    sources = {
        "reads_both": write(HOLDS, "reads_both", FACTS='["big", "small"]'),
        "reads_small": write(HOLDS, "reads_small", FACTS='["small"]'),
    }
    facts = {"big": {"list": [{}] * 6_000_000}, "small": {}}
    with Engine(make_bundle("test", 1, sources), limits=limits) as engine:
        both, small = engine.judge(facts)
        (both_small_now, _) = engine.judge({"big": {}, "small": {}})
    assert both.outcome is Outcome.INCONCLUSIVE
    assert both.reason.startswith("the fact big cannot be decoded: the evaluator")
    assert small.outcome is Outcome.HOLDS
    assert both_small_now.outcome is Outcome.HOLDS


def test_the_sum_of_all_facts_is_bounded_too(write):
    names = [f"f{index}" for index in range(5)]
    sources = {f"reads_{name}": write(HOLDS, f"reads_{name}", FACTS=f'["{name}"]') for name in names}
    facts = {name: {"text": "x" * (3 << 20)} for name in names}
    with Engine(make_bundle("test", 1, sources)) as engine:
        outcomes = [result.outcome for result in engine.judge(facts)]
    assert outcomes == [Outcome.HOLDS] * 3 + [Outcome.INCONCLUSIVE] * 2


def test_facts_at_their_bounds_are_judged(judge_one):
    """8,192 modules, the most a fact lists, in one script that looks at each."""
    modules = [
        {"name": f"module_{index}", "base": "0xffffffffc0000000", "size": 4096} for index in range(8192)
    ]
    result = judge_one('return [ok(m["name"]) for m in facts["fact"]["listed"]]', {"listed": modules})
    assert (result.outcome, result.looked_at) == (Outcome.HOLDS, 8192)
