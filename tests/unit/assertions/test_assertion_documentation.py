"""Pages that are made from the scripts cannot go stale."""

from __future__ import annotations

import re
from pathlib import Path

from affiant.assertions.authoring import load, problems
from affiant.assertions.engine import Engine
from affiant.assertions.language import LANGUAGE
from affiant.assertions.limits import DEFAULT_LIMITS
from affiant.assertions.recording import recordings_beside, replay
from affiant.kernel.facts import FACTS
from affiant.model.outcome import Outcome

DOCS = Path(__file__).parents[3] / "docs"


GUIDE = (DOCS / "assertions.md").read_text("utf-8")


def _fences(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", GUIDE, re.MULTILINE | re.DOTALL)


def test_the_script_of_the_guide_is_clean_and_reaches_the_verdict_of_its_recording(tmp_path):
    path = tmp_path / "modules_in_tree.star"
    script, _ = _fences("python")
    path.write_text(script)
    (recorded,) = _fences("json")
    (tmp_path / "modules_in_tree.evil.json").write_text(recorded)
    assert problems(path, known_facts=FACTS) == ()
    (recording,) = recordings_beside(path)
    _, bundle = load(path)
    with Engine(bundle) as engine:
        _, differences = replay(engine, recording)
        assert not differences
        healthy = {"modules": {"listed": [{"name": "virtio", "taints": 0}]}}
        (result,) = engine.judge(healthy)
    assert (result.outcome, result.looked_at) == (Outcome.HOLDS, 2)


def test_the_guide_states_the_limits_that_are_kept():
    limits = DEFAULT_LIMITS
    for row in (
        f"| source | {limits.source_bytes >> 10} KiB |",
        f"| steps of one script | {limits.fuel * 1000:,}, counted exactly |",
        f"| processor time of one script | {limits.cpu_seconds:.0f} s |",
        f"| time of one script by the wall clock | {limits.wall_seconds:.0f} s |",
        f"| time of a whole round | {limits.round_seconds:.0f} s |",
        f"| memory of the worker | {limits.memory_bytes >> 20} MiB |",
        f"| depth of calls | {limits.call_depth} |",
        f"| {limits.fact_bytes >> 20} MiB, {limits.facts_bytes >> 20} MiB as JSON |",
    ):
        assert row in GUIDE, row


def test_the_guide_names_every_observation_and_header():
    for name in re.findall(r"^def (\w+)\(", LANGUAGE, re.MULTILINE):
        assert f"`{name}(" in GUIDE
    for name in ("NAME", "VERSION", "SENTENCE", "SEVERITY", "TECHNIQUE", "MODE", "FACTS"):
        assert f"| `{name}` |" in GUIDE
