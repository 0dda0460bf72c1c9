"""The ring keeps the latest records, for its owner's eyes, and cannot be washed away quickly."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from affiant.launcher.fact_ring import FactRing
from affiant.model.errors import SetupError, UnavailableError


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_the_oldest_makes_room_for_the_newest(tmp_path: Path, clock: Clock) -> None:
    ring = FactRing(tmp_path / "facts", most=3, every_seconds=10, clock=clock)
    for number in range(5):
        ring.keep(b"record %d" % number)
        clock.now += 10
    assert names(tmp_path / "facts") == [f"{number:012}.facts" for number in (3, 4, 5)]
    assert (tmp_path / "facts/000000000005.facts").read_bytes() == b"record 4"


def test_numbers_go_on_after_a_restart_and_a_smaller_ring_drops_the_oldest(
    tmp_path: Path, clock: Clock
) -> None:
    folder = tmp_path / "facts"
    first = FactRing(folder, most=3, every_seconds=10, clock=clock)
    for number in range(3):
        first.keep(b"%d" % number)
    (folder / "notes.facts").write_text("not ours")
    again = FactRing(folder, most=2, every_seconds=10, clock=clock)
    assert names(folder) == ["000000000002.facts", "000000000003.facts", "notes.facts"]
    again.keep(b"next")
    assert (folder / "000000000004.facts").read_bytes() == b"next"


def test_files_are_for_their_owner_alone(tmp_path: Path, clock: Clock) -> None:
    folder = tmp_path / "facts"
    FactRing(folder, most=3, every_seconds=10, clock=clock).keep(b"secret")
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert [stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()] == [0o600]


def test_a_monitor_that_was_taken_over_cannot_wash_the_ring_away(tmp_path: Path, clock: Clock) -> None:
    folder = tmp_path / "facts"
    ring = FactRing(folder, most=1000, every_seconds=600, clock=clock)
    ring.keep(b"evidence")
    with pytest.raises(UnavailableError, match="faster"):
        for _ in range(1000):
            ring.keep(b"noise")
    assert (folder / "000000000001.facts").read_bytes() == b"evidence"
    assert len(names(folder)) == 64
    clock.now += 599
    with pytest.raises(UnavailableError):
        ring.keep(b"noise")
    clock.now += 2
    ring.keep(b"the next one in its time")


def test_a_disk_that_takes_nothing_is_no_disaster(tmp_path: Path, clock: Clock) -> None:
    folder = tmp_path / "facts"
    ring = FactRing(folder, most=3, every_seconds=10, clock=clock)
    ring.keep(b"kept")
    (folder / ".new").mkdir()
    with pytest.raises(UnavailableError, match="cannot be kept"):
        ring.keep(b"lost")
    assert names(folder) == [".new", "000000000001.facts"]


def test_a_folder_that_cannot_be_made_is_said_at_the_start(tmp_path: Path, clock: Clock) -> None:
    (tmp_path / "facts").write_text("a file")
    with pytest.raises(SetupError, match="kept facts"):
        FactRing(tmp_path / "facts", most=3, every_seconds=10, clock=clock)
