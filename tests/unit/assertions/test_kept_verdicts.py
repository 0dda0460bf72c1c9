"""Verdicts that hold while their facts are the same: when the worker is asked again, and when it is not."""

from __future__ import annotations

from dataclasses import replace

import pytest

from affiant.assertions.bundle import make_bundle
from affiant.assertions.engine import Engine
from affiant.assertions.limits import DEFAULT_LIMITS
from affiant.assertions.worker import Worker
from affiant.model.outcome import Outcome

SAME = 'return [ok("x")] if facts["fact"]["same"] else [bad("x", "y", "z")]'


@pytest.fixture
def asked(monkeypatch) -> list[list[str]]:
    """The names of the scripts that workers were asked to judge, round by round."""
    rounds: list[list[str]] = []
    ask = Worker.ask

    def counting(worker, request, *arguments, **keywords):
        if "judge" in request:
            rounds.append([name for name, _ in request["judge"]])
        return ask(worker, request, *arguments, **keywords)

    monkeypatch.setattr(Worker, "ask", counting)
    return rounds


def test_the_same_facts_are_judged_once_within_the_bound(bundle_of, asked):
    with Engine(bundle_of(example=SAME), limits=replace(DEFAULT_LIMITS, kept_rounds=1)) as engine:
        for _ in range(4):
            (result,) = engine.judge({"fact": {"same": True}})
            assert result.outcome is Outcome.HOLDS
    assert asked == [["example"], ["example"]], "a verdict stood for longer, or not at all"


def test_the_bound_is_drawn_by_lot_and_never_exceeded(bundle_of, asked):
    with Engine(bundle_of(example=SAME), limits=replace(DEFAULT_LIMITS, kept_rounds=3)) as engine:
        for _ in range(100):
            engine.judge({"fact": {"same": True}})
    assert 25 <= len(asked) < 50


def test_a_changed_fact_is_judged_at_once_and_by_its_readers_alone(write, asked):
    sources = {
        "one": write(SAME, "one"),
        "two": write(SAME.replace('"fact"', '"other"'), "two", FACTS='["other"]'),
    }
    with Engine(make_bundle("test", 1, sources)) as engine:
        engine.judge({"fact": {"same": True}, "other": {"same": True}})
        one, two = engine.judge({"fact": {"same": False}, "other": {"same": True}})
    assert (one.outcome, two.outcome) == (Outcome.VIOLATED, Outcome.HOLDS)
    assert asked == [["one", "two"], ["one"]]


@pytest.mark.parametrize(
    "body",
    [
        'return [bad("x", "y", "z")]',
        'return inconclusive("why")',
        'return not_applicable("why")',
        'fail("x")',
    ],
)
def test_what_does_not_hold_is_judged_every_time(bundle_of, asked, body):
    with Engine(bundle_of(example=body)) as engine:
        for _ in range(3):
            engine.judge({"fact": {}})
    assert asked == [["example"]] * 3


def test_a_fact_that_is_missing_by_now_leaves_no_verdict_standing(bundle_of):
    with Engine(bundle_of(example=SAME)) as engine:
        assert engine.judge({"fact": {"same": True}})[0].outcome is Outcome.HOLDS
        for blind in ({}, {"fact": {"unavailable": "no RAM answers"}}, {"fact": {"same": float("nan")}}):
            assert engine.judge(blind)[0].outcome is Outcome.INCONCLUSIVE
