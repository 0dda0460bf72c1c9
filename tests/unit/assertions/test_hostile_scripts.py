"""Every known way of a script to misbehave ends with that script, and with it alone."""

from __future__ import annotations

from dataclasses import replace

import pytest

from affiant.assertions.bundle import make_bundle
from affiant.assertions.engine import Engine
from affiant.assertions.limits import DEFAULT_LIMITS
from affiant.model.outcome import Outcome

DEEP = "x = []\nfor i in range(900000):\n    x = [x]\n"

# Name, body of check, and a part of the reason that must be told.
HOSTILE = [
    ("endless_loop", "for i in range(1 << 30):\n    pass\nreturn [ok('x')]", "fuel"),
    ("endless_comprehension", "return [ok('x') for i in range(1 << 30)]", "fuel"),
    ("big_integers", "x = 9\nfor i in range(40):\n    x = x * x\nreturn [ok('x')]", "processor time"),
    ("big_number_from_text", "return [ok(str(int('9' * 5000000)))]", "processor time"),
    ("hash_collisions", "d = {(i << 32): i for i in range(50000)}\nreturn [ok('x')]", "processor time"),
    ("string_doubling", "s = 'x'\nfor i in range(40):\n    s = s + s\nreturn [ok('x')]", "the evaluator"),
    ("list_doubling", "s = [1]\nfor i in range(40):\n    s = s + s\nreturn [ok('x')]", "the evaluator"),
    ("one_huge_list", "s = [0] * (1 << 28)\nreturn [ok('x')]", "the evaluator"),
    (
        "leaking_additions",
        "x = 1 << 62\nfor i in range(5000000):\n    x = x + 1\nreturn [ok('x')]",
        "the evaluator|fuel",
    ),
    ("text_of_a_deep_structure", DEEP + "return [ok(str(x))]", "the evaluator crashed"),
    ("answer_of_deep_structures", DEEP + "return [bad(x, x, x)]", "the evaluator crashed"),
    ("observation_of_a_deep_kind", DEEP + "return [(x,)]", "the evaluator crashed"),
    ("recursion", "return check(facts)", "call stack overflow"),
    ("huge_complaint", "fail('x' * 10000000)", "xxx"),
    ("huge_format", "return [ok(('%s' * 4000) % (('x' * 100000,) * 4000))]", "the evaluator"),
    ("huge_replacement", "return [ok(('a' * 10000).replace('a', 'b' * 100000))]", "the evaluator"),
    ("self_containing_list", "x = []\nx.append(x)\nreturn x", "one of them is list"),
]


@pytest.fixture(scope="module")
def verdicts(quick_engine):
    return {result.name: result for result in quick_engine.judge({"fact": {"value": 1}})}


@pytest.fixture(scope="module")
def quick_engine(quick, write):
    sources = {}
    for name, body, _ in HOSTILE:
        sources[name] = write(body, name)
        sources[f"{name}_neighbour"] = write(
            'return [ok("x", count = facts["fact"]["value"])]', f"{name}_neighbour"
        )
    with Engine(make_bundle("hostile", 1, sources, limits=quick), limits=quick) as engine:
        yield engine


@pytest.mark.parametrize(("name", "reason"), [(name, reason) for name, _, reason in HOSTILE])
def test_a_hostile_script_is_inconclusive_with_its_reason(verdicts, name, reason):
    assert verdicts[name].outcome is Outcome.INCONCLUSIVE
    assert any(part in verdicts[name].reason for part in reason.split("|")), verdicts[name].reason
    assert len(verdicts[name].reason) <= 256


@pytest.mark.parametrize("name", [name for name, _, _ in HOSTILE])
def test_the_script_after_a_hostile_one_is_judged_as_ever(verdicts, name):
    assert verdicts[f"{name}_neighbour"].outcome is Outcome.HOLDS


def test_the_next_round_judges_the_same(quick_engine, verdicts):
    """Whether a worker was fresh or had gone through the others makes no difference."""
    names = [f"{name}{ending}" for name, _, _ in HOSTILE[:8] for ending in ("", "_neighbour")]
    again = quick_engine.judge({"fact": {"value": 1}}, only=names)
    assert len(again) == 16
    assert [result.outcome for result in again] == [verdicts[result.name].outcome for result in again]


def test_huge_output_is_cut_to_the_bound(judge_one):
    result = judge_one("return [bad('x' * 9999, 'y' * 9999, 'z' * 9999) for i in range(400)]")
    assert result.outcome is Outcome.VIOLATED
    assert len(result.findings) == 257


def test_fuel_is_exact(bundle_of):
    """The same script is stopped at the same step, every time, on every machine."""
    bundle = bundle_of(example='for i in range(facts["fact"]["turns"]):\n    pass\nreturn [ok("x")]')
    with Engine(bundle, limits=replace(DEFAULT_LIMITS, fuel=50)) as engine:

        def ends_well(turns: int) -> bool:
            (result,) = engine.judge({"fact": {"turns": turns}})
            assert result.outcome is Outcome.HOLDS or result.reason == "used up its fuel of 50 thousand steps"
            return result.outcome is Outcome.HOLDS

        enough, too_much = 100, 1 << 20
        while too_much - enough > 1:
            middle = (enough + too_much) // 2
            enough, too_much = (middle, too_much) if ends_well(middle) else (enough, middle)
        engine.close()  # another worker counts the same
        assert [ends_well(enough), ends_well(too_much)] * 2 == [True, False] * 2


def test_a_round_without_time_left_is_inconclusive_for_the_rest(bundle_of, quick):
    slow = "x = 9\nfor i in range(40):\n    x = x * x\nreturn [ok('x')]"
    bundle = bundle_of(a_first='return [ok("x")]', b_slow=slow, c_slow=slow, d_last='return [ok("x")]')
    with Engine(bundle, limits=replace(quick, cpu_seconds=30.0, round_seconds=3.0)) as engine:
        engine.judge({"fact": {}}, only=["a_first"])
        first, slow_one, other, last = engine.judge({"fact": {}})
    assert first.outcome is Outcome.HOLDS
    assert slow_one.reason == "the evaluator did not answer in time"
    assert other.reason == last.reason == "no time was left in this round"


def test_what_processor_time_does_not_stop_the_wall_clock_does(bundle_of, quick):
    bundle = bundle_of(
        a_slow="x = 9\nfor i in range(40):\n    x = x * x\nreturn [ok('x')]", b_last='return [ok("x")]'
    )
    with Engine(bundle, limits=replace(quick, cpu_seconds=30.0, wall_seconds=2.0)) as engine:
        slow, last = engine.judge({"fact": {}})
    assert slow.reason == "the evaluator did not answer in time"
    assert last.outcome is Outcome.HOLDS
