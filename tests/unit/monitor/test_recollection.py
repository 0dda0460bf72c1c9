"""Violations outlive a monitor, because its launcher remembers them; what cannot be told is no clean boot."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import pytest

from affiant.model.episode import Episode
from affiant.model.errors import MalformedError, UnavailableError
from affiant.model.finding import Finding
from affiant.model.runtime_report import Violation
from affiant.monitor.recollection import Recollection
from affiant.wire.episodes import write_episodes
from affiant.wire.launcher_requests import Remember, Remembered, Request

HOOK = Episode(1, Violation("kernel_text_intact", 5, 5, None, True, (Finding("here", "a", "b"),), 0))


def seen_again(at_ms: int) -> Episode:
    return replace(HOOK, violation=replace(HOOK.violation, last_seen=at_ms))


@dataclass
class Launcher:
    """Remembers; or has lost its memory, or is gone."""

    content: bytes = b""
    gone: bool = False
    told: list[int] = field(default_factory=list)

    def ask(self, request: Request[object]) -> object:
        if self.gone:
            raise UnavailableError("the launcher does not answer")
        match request:
            case Remember(generation, content):
                self.told.append(generation)
                self.content = content
                return None
            case Remembered():
                return self.content
        raise AssertionError(request)


@pytest.fixture
def launcher() -> Launcher:
    return Launcher()


def recollection(launcher: Launcher) -> Recollection:
    return Recollection(launcher)  # type: ignore[arg-type]


def test_a_boot_that_has_shown_nothing_is_told_as_such(launcher: Launcher) -> None:
    assert recollection(launcher).recall(now_ms=9) == ()


def test_what_one_monitor_kept_the_next_one_recalls(launcher: Launcher) -> None:
    recollection(launcher).keep((HOOK,), generation=3, now_ms=9)
    assert launcher.told == [3]
    assert recollection(launcher).recall(now_ms=9) == (HOOK,)


def test_what_is_no_news_is_not_told_again(launcher: Launcher) -> None:
    """That it still stands, every ten seconds at most; that it ended, or another came, at once."""
    keeping = recollection(launcher)
    ended = replace(HOOK, violation=replace(HOOK.violation, standing=False))
    told = []
    for episodes, now_ms in [
        ((), 0),
        ((HOOK,), 5),
        ((HOOK,), 60_000),
        ((seen_again(60_000),), 60_000),
        ((seen_again(69_999),), 69_999),
        ((seen_again(70_000),), 70_000),
        ((ended,), 70_001),
        ((ended, HOOK), 70_002),
    ]:
        keeping.keep(episodes, generation=1, now_ms=now_ms)
        told.append(len(launcher.told))
    assert told == [0, 1, 1, 2, 2, 3, 4, 5]


def test_what_was_recalled_is_no_news(launcher: Launcher) -> None:
    launcher.content = write_episodes([HOOK])
    keeping = recollection(launcher)
    keeping.keep(keeping.recall(now_ms=9), generation=1, now_ms=9)
    assert launcher.told == []


def test_what_the_launcher_did_not_take_is_told_again_at_the_next_look(launcher: Launcher) -> None:
    keeping = recollection(launcher)
    launcher.gone = True
    keeping.keep((HOOK,), generation=1, now_ms=9)
    launcher.gone = False
    keeping.keep((HOOK,), generation=1, now_ms=10)
    assert recollection(launcher).recall(now_ms=10) == (HOOK,)


@pytest.mark.parametrize("content", [b"\x80", b"garbage", write_episodes([HOOK])[:-1], bytes(2 << 20)])
def test_what_cannot_be_read_is_not_taken_for_a_clean_boot(launcher: Launcher, content: bytes) -> None:
    launcher.content = content
    with pytest.raises(MalformedError):
        recollection(launcher).recall(now_ms=9)


def test_a_violation_of_another_clock_is_refused(launcher: Launcher) -> None:
    launcher.content = write_episodes([HOOK])
    with pytest.raises(MalformedError, match="later than now"):
        recollection(launcher).recall(now_ms=4)


def test_a_launcher_that_does_not_tell_is_not_taken_for_a_clean_boot(launcher: Launcher) -> None:
    launcher.gone = True
    with pytest.raises(UnavailableError):
        recollection(launcher).recall(now_ms=9)
