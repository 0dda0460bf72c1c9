"""Every entry of the corpus gets the verdict that it carries, and the reason names the lie."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.forgeries.case import CASES, Case, load_cases
from tests.forgeries.judge import conclude
from tests.forgeries.make import all_cases

ENTRIES = load_cases()
LONGEST_FILE = 24_000


def test_the_corpus_is_what_its_maker_makes(tmp_path: Path) -> None:
    """Whoever doubts an entry can make it again, octet by octet."""
    for case in all_cases():
        case.write(tmp_path)
    made = {path.name: path.read_text() for path in tmp_path.iterdir()}
    assert made == {path.name: path.read_text() for path in CASES.iterdir()}


def test_honest_evidence_is_part_of_the_corpus() -> None:
    assert {"honest", "honest-sha1", "honest-without-secure-boot"} <= {case.name for case in ENTRIES}
    assert len(ENTRIES) > 40
    assert all(path.stat().st_size < LONGEST_FILE for path in CASES.iterdir())


@pytest.mark.parametrize("case", ENTRIES, ids=lambda case: case.name)
def test_the_verdict_is_given(case: Case) -> None:
    outcome, verdict = conclude(case), case.verdict
    assert case.lie
    if verdict["result"] == "refused":
        assert outcome.refusal is not None, outcome.claims
        assert outcome.refusal[0] == verdict["family"], outcome.refusal
        assert verdict["reason"] in outcome.refusal[1]
        return
    assert outcome.refusal is None, outcome.refusal
    if verdict["result"] == "no effect":
        (same,) = [entry for entry in ENTRIES if entry.name == verdict["as"]]
        assert outcome == conclude(same)
        return
    assert verdict["result"] == "concluded"
    assert verdict["claims"]
    for claim, expected in verdict["claims"].items():
        value, reason = outcome.claims[claim]
        assert value is expected["value"], (claim, value, reason)
        assert expected.get("reason", "") in reason
