"""What a launcher remembers for the next monitor: all of it comes back, and nothing else is read."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from affiant.model.episode import Episode
from affiant.model.errors import MalformedError
from affiant.model.finding import Finding
from affiant.model.outcome import Mode
from affiant.model.runtime_report import Violation
from affiant.wire import cbor
from affiant.wire.cbor import Item
from affiant.wire.episodes import read_episodes, write_episodes
from affiant.wire.launcher_requests import MOST_REMEMBERED
from affiant.wire.runtime_report import MAX_FINDINGS, MAX_TEXT, MAX_VIOLATIONS

NOW_MS = 1 << 40
HOOK = Finding("tcp4_seq_show+0x5", "0f1f440000", "e9aabbccdd", "hideme", "T1014")
EPISODE = Episode(3, Violation("kernel_text_intact", 100, 200, 90, True, (HOOK,), 2, Mode.AUDIT))

numbers = st.integers(0, NOW_MS)
texts = st.text(st.characters(exclude_categories=("Cc", "Cs")), max_size=MAX_TEXT)
findings = st.builds(Finding, texts.filter(bool), texts, texts, texts, texts)


@st.composite
def episodes(draw: st.DrawFn) -> Episode:
    first, last = sorted((draw(numbers), draw(numbers)))
    violation = Violation(
        assertion=draw(st.from_regex(r"[a-z_]{1,128}", fullmatch=True)),
        first_seen=first,
        last_seen=last,
        last_good=draw(st.none() | numbers),
        standing=draw(st.booleans()),
        findings=tuple(draw(st.lists(findings, min_size=1, max_size=MAX_FINDINGS))),
        more=draw(numbers),
        mode=draw(st.sampled_from(Mode)),
    )
    return Episode(draw(numbers), violation)


@given(st.lists(episodes(), max_size=4))
def test_episodes_round_trip(told: list[Episode]) -> None:
    assert read_episodes(write_episodes(told), now_ms=NOW_MS) == tuple(told)


def test_what_is_cut_off_is_refused_wherever_that_is() -> None:
    whole = write_episodes([EPISODE, EPISODE])
    for size in range(len(whole)):
        with pytest.raises(MalformedError, match="remembered violations"):
            read_episodes(whole[:size], now_ms=NOW_MS)


@given(st.binary(max_size=200))
def test_garbage_is_refused(garbage: bytes) -> None:
    with pytest.raises(MalformedError):
        read_episodes(b"\xff" + garbage, now_ms=NOW_MS)


def row(**bent: object) -> Item:
    violation: dict[str, object] = {
        "assertion": "kernel_text_intact",
        "first_seen": 100,
        "last_seen": 200,
        "last_good": None,
        "standing": True,
        "findings": [["subject", "a", "b", "", ""]],
        "more": 0,
        "mode": 1,
    }
    return [1, list((violation | bent).values())]  # type: ignore[list-item]


@pytest.mark.parametrize(
    "item",
    [
        [],
        {},
        {1: [], 2: 0},
        {1: [[1]]},
        {1: [[*row(), 0]]},  # type: ignore[misc]
        {1: [[-1, row()[1]]]},  # type: ignore[index]
        {1: [row(assertion="")]},
        {1: [row(assertion="n" * 129)]},
        {1: [row(last_seen=99)]},
        {1: [row(last_seen=NOW_MS + 1)]},
        {1: [row(last_good=NOW_MS + 1)]},
        {1: [row(findings=[])]},
        {1: [row(findings=[["subject", "a", "b", "", ""]] * (MAX_FINDINGS + 1))]},
        {1: [row(findings=[["s" * (MAX_TEXT + 1), "a", "b", "", ""]])]},
        {1: [row(findings=[["two\nlines", "a", "b", "", ""]])]},
        {1: [row(more=-1)]},
        {1: [row(mode=2)]},
        {1: [row(standing=1)]},
        {1: [row()] * (MAX_VIOLATIONS + 1)},
    ],
)
def test_what_no_monitor_wrote_is_refused(item: Item) -> None:
    assert len(read_episodes(cbor.encode({1: [row()]}), now_ms=NOW_MS)) == 1
    with pytest.raises(MalformedError, match="remembered violations"):
        read_episodes(cbor.encode(item), now_ms=NOW_MS)


def test_more_than_is_remembered_is_refused_unread() -> None:
    with pytest.raises(MalformedError, match="at most"):
        read_episodes(bytes(MOST_REMEMBERED + 1), now_ms=NOW_MS)


def test_a_guest_with_much_to_tell_of_crowds_no_episode_out() -> None:
    """Findings are counted instead of told, and texts cut: nobody hides behind many others."""
    text = "\N{PILE OF POO}" * MAX_TEXT
    many = tuple(
        Finding(f"{index}{text}"[:MAX_TEXT], text, text, text, text) for index in range(MAX_FINDINGS)
    )
    names = [f"{index:0128}" for index in range(MAX_VIOLATIONS)]
    told = [
        replace(EPISODE, violation=replace(EPISODE.violation, assertion=name, findings=many))
        for name in names
    ]
    kept = write_episodes(told)
    assert len(kept) <= MOST_REMEMBERED
    back = read_episodes(kept, now_ms=NOW_MS)
    assert [each.violation.assertion for each in back] == names
    assert {len(each.violation.findings) + each.violation.more for each in back} == {MAX_FINDINGS + 2}


def test_what_a_guest_put_into_texts_is_told_plainly() -> None:
    bent = replace(EPISODE.violation, findings=(Finding("", "a\0", "\ud800", "x" * 300),))
    (episode,) = read_episodes(write_episodes([replace(EPISODE, violation=bent)]), now_ms=NOW_MS)
    assert episode.violation.findings == (Finding("?", "a?", "?", "x" * 255 + "…"),)
