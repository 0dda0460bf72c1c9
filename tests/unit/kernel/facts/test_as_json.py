"""Lists in facts: their first entries, and how many others there are."""

from __future__ import annotations

from affiant.kernel.facts.as_json import LONGEST_LIST, bounded


def test_a_list_within_bounds_is_told_whole() -> None:
    assert bounded("runs", (1, 2), hex) == {"runs": ["0x1", "0x2"], "runs_left_out": 0}


def test_what_is_beyond_the_bound_is_counted_and_not_told() -> None:
    told: list[int] = []
    found = bounded("runs", range(LONGEST_LIST + 3), told.append, left_out=4)
    assert found["runs_left_out"] == 7
    assert told == list(range(LONGEST_LIST))
