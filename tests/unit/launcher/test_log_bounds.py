"""A guest that writes without end to its console fills neither the disk nor the end of its own log."""

from __future__ import annotations

from pathlib import Path

import pytest

from affiant.launcher.log_bounds import LogBounds


@pytest.fixture
def bounds(tmp_path: Path) -> LogBounds:
    return LogBounds(tmp_path, longest=1000, kept=100)


def test_a_flood_on_the_console_is_cut_and_its_end_kept(tmp_path: Path, bounds: LogBounds) -> None:
    log = tmp_path / "console.log"
    with log.open("ab", buffering=0) as writer:  # as QEMU holds it: open, in append mode
        for number in range(50):
            writer.write(b"%099d\n" % number)
            bounds.tend(now=float(number + 1))
            assert log.stat().st_size <= 1100
        assert (tmp_path / "console.log.old").stat().st_size == 100
        writer.write(b"the end")
    assert log.read_bytes().endswith(b"49\nthe end")


def test_a_log_within_its_bounds_stays_as_it_is(tmp_path: Path, bounds: LogBounds) -> None:
    (tmp_path / "qemu.log").write_bytes(b"x" * 1000)
    (tmp_path / "disk.img").write_bytes(b"x" * 5000)
    bounds.tend(now=1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["disk.img", "qemu.log"]
    assert (tmp_path / "qemu.log").stat().st_size == 1000
    assert (tmp_path / "disk.img").stat().st_size == 5000


def test_it_looks_once_a_second(tmp_path: Path, bounds: LogBounds) -> None:
    bounds.tend(now=1)
    log = tmp_path / "console.log"
    log.write_bytes(b"x" * 2000)
    bounds.tend(now=1.5)
    assert log.stat().st_size == 2000
    bounds.tend(now=2)
    assert log.stat().st_size == 0


def test_a_link_is_not_followed(tmp_path: Path, bounds: LogBounds) -> None:
    other = tmp_path / "precious"
    other.write_bytes(b"x" * 2000)
    (tmp_path / "console.log").symlink_to(other)
    bounds.tend(now=1)
    assert other.stat().st_size == 2000


def test_a_log_that_cannot_be_cut_stops_nothing(tmp_path: Path, bounds: LogBounds) -> None:
    (tmp_path / "a.log").mkdir()
    (tmp_path / "b.log").write_bytes(b"x" * 2000)
    bounds.tend(now=1)
    assert (tmp_path / "b.log").stat().st_size == 0
