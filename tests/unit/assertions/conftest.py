"""Scripts to judge by: each test says only what is special about its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest

from affiant.assertions.bundle import Bundle, make_bundle
from affiant.assertions.engine import Engine
from affiant.assertions.limits import DEFAULT_LIMITS, Limits
from affiant.model.outcome import AssertionResult

Write = Callable[..., str]
JudgeOne = Callable[..., AssertionResult]


@pytest.fixture(scope="session")
def write() -> Write:
    """Return a function that writes a complete script around the body of a check."""

    def write_script(
        body: str = 'return [ok("x")]', name: str = "example", top: str = "", **header: str
    ) -> str:
        values = {
            "NAME": f'"{name}"',
            "VERSION": "1",
            "SENTENCE": '"The kernel is an example."',
            "SEVERITY": '"low"',
            "TECHNIQUE": '""',
            "MODE": '"enforce"',
            "FACTS": '["fact"]',
        } | header
        lines = ['"""An example."""']
        lines.append('load("affiant", "bad", "expect", "inconclusive", "not_applicable", "ok", "unseen")')
        lines += [f"{key} = {value}" for key, value in values.items() if value]
        lines += [top, "def check(facts):"]
        lines += ["    " + line for line in body.splitlines()]
        return "\n".join(lines) + "\n"

    return write_script


@pytest.fixture(scope="session")
def quick() -> Limits:
    """Return limits that hostile scripts reach sooner; a round of many of them may take long."""
    return replace(DEFAULT_LIMITS, cpu_seconds=0.3, round_seconds=300.0)


@pytest.fixture
def judge_one(write: Write) -> Iterator[JudgeOne]:
    """Return a function that judges facts by one script, given as the body of its check."""
    engines: list[Engine] = []

    def judge_script(body: str, fact: object = None, **header: str) -> AssertionResult:
        bundle = make_bundle("test", 1, {"example": write(body, **header)})
        engines.append(Engine(bundle))
        (result,) = engines[-1].judge({"fact": {"value": 1} if fact is None else fact})
        return result

    yield judge_script
    for engine in engines:
        engine.close()


@pytest.fixture
def bundle_of(write: Write) -> Callable[..., Bundle]:
    """Return a function that makes a bundle of scripts, each given as name and body of its check."""

    def make(**bodies: str) -> Bundle:
        return make_bundle("test", 1, {name: write(body, name) for name, body in bodies.items()})

    return make
