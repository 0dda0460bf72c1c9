"""A monitor that cannot be started again costs the guest its reports, and not its life."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from affiant.launcher import monitor_pair
from affiant.launcher.monitor_pair import MonitorPair
from affiant.model.errors import SetupError, UnavailableError


class Clock:
    now = 1000.0

    def monotonic(self) -> float:
        return self.now


class EndedChild:
    name, ended = "monitor", False

    def exit_code(self) -> int | None:
        return 1 if self.ended else None

    def last_words(self) -> str:
        return "it fell over"

    def stop(self) -> None:
        self.ended = True


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(monitor_pair, "time", clock)
    return clock


class Starts:
    """A pair whose parts are played; `broken` is what starting them raises."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.broken: Exception | None = None
        self.tries = 0
        nowhere = SimpleNamespace(folder=folder)
        settings = SimpleNamespace(passport_socket=folder / "relay" / "passport.sock")
        self.pair = MonitorPair(
            settings,  # type: ignore[arg-type]
            service_root=b"",
            rules_root=None,
            channel=SimpleNamespace(serve=lambda end: end.close()),  # type: ignore[arg-type]
            monitor_image=nowhere,  # type: ignore[arg-type]
            relay_image=nowhere,  # type: ignore[arg-type]
            ram=0,
            copies=0,
        )
        monkeypatch.setattr(self.pair, "_start_relay", lambda _: EndedChild())
        monkeypatch.setattr(self.pair, "_start_monitor", self._start)

    def _start(self, *_: Any) -> EndedChild:
        self.tries += 1
        if self.broken is not None:
            raise self.broken
        return EndedChild()

    def kill(self) -> None:
        self.pair.children[1].ended = True  # type: ignore[attr-defined]


@pytest.fixture
def starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clock: Clock) -> Starts:
    return Starts(tmp_path, monkeypatch)


@pytest.mark.parametrize("reason", [SetupError("no image"), UnavailableError("no memory")])
def test_a_monitor_that_cannot_start_again_is_tried_later(
    starts: Starts, clock: Clock, reason: Exception
) -> None:
    starts.pair.start()
    starts.kill()
    starts.pair.tend()
    starts.broken = reason
    for _ in range(300):
        clock.now += 1
        starts.pair.tend()
    assert 5 <= starts.tries <= 12, "ever more slowly"
    assert starts.pair.children == []
    starts.broken = None
    clock.now += 60
    starts.pair.tend()
    assert len(starts.pair.children) == 2
    starts.pair.stop()


def test_the_first_start_says_at_once_why_it_fails(starts: Starts) -> None:
    starts.broken = SetupError("no image")
    with pytest.raises(SetupError, match="no image"):
        starts.pair.start()
    assert starts.pair.children == []
