"""Pages that are made from the scripts cannot go stale."""

from __future__ import annotations

import importlib.resources
import re
from dataclasses import replace
from pathlib import Path

from affiant.assertions.authoring import load, problems
from affiant.assertions.bundle import packaged_library
from affiant.assertions.documentation import LIBRARY, SECTIONS, missing_sections, page, pages, sections
from affiant.assertions.engine import Engine
from affiant.assertions.language import LANGUAGE
from affiant.assertions.limits import DEFAULT_LIMITS
from affiant.assertions.recording import recordings_beside, replay
from affiant.kernel.facts import FACTS
from affiant.model.outcome import Outcome

DOCS = Path(__file__).parents[3] / "docs"


def library_pages() -> dict[str, str]:
    return pages(packaged_library(), FACTS.values(), title="The library", scripts=LIBRARY)


def test_every_rule_has_all_sections_and_a_page_that_shows_them():
    bundle = packaged_library()
    made = library_pages()
    assert made.keys() == {"README.md", "facts.md", *(f"{script.name}.md" for script in bundle.scripts)}
    for script in bundle.scripts:
        assert not missing_sections(script)
        text = " ".join(made[f"{script.name}.md"].split())
        assert script.sentence in text
        for title, heading in SECTIONS.items():
            assert f"## {heading} {sections(script)[title]}" in text
        assert f"[{script.name}]({script.name}.md)" in made["README.md"]


def test_a_missing_or_empty_section_is_named():
    script = packaged_library().scripts[0]
    bare = replace(script, documentation="A summary.\n\nClaims: something.\nWhy:\nReads: it.")
    assert sections(bare) == {"": "A summary.", "Claims": "something.", "Why": "", "Reads": "it."}
    assert missing_sections(bare) == ("Why", "Cannot see", "Kernels")


def test_a_technique_leads_to_its_page():
    script = packaged_library().scripts[0]
    assert "(https://attack.mitre.org/techniques/T1547/006/)" in page(
        replace(script, technique="T1547.006"), scripts=""
    )
    assert "| technique | none fits |" in page(replace(script, technique=""), scripts="")


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


def test_the_guides_script_with_a_query_judges_a_recorded_machine_as_the_library_does(tmp_path):
    path = tmp_path / "keys_unheard.star"
    path.write_text(_fences("python")[1])
    assert problems(path, known_facts=FACTS) == ()
    _, bundle = load(path)
    library = Path(str(importlib.resources.files("affiant.assertions") / "library"))
    outcomes = {}
    with Engine(bundle) as engine:
        for recording in recordings_beside(library / "keyboard_notifiers_owned.star"):
            (answer,) = recording.facts.values()
            (result,) = engine.judge({"keys_unheard.notifiers": answer})
            outcomes[recording.case] = result.outcome
    assert outcomes == {"healthy": Outcome.HOLDS, "keylogger": Outcome.VIOLATED}


def test_a_page_says_what_is_asked_of_the_kernel():
    (script,) = (script for script in packaged_library().scripts if script.name == "usermode_helpers_known")
    made = page(script, scripts=LIBRARY)
    assert "| query `modprobe_path` | modprobe_path as text |" in made
    assert "| facts |" not in made
