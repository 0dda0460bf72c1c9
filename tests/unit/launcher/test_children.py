"""Ending children: when `stop` returns, nothing that they are made of goes on."""

from __future__ import annotations

import logging
import time
from pathlib import Path

import pytest

from affiant.launcher.process import children
from affiant.launcher.process.children import Child, start_child


def start_slow_part(tmp_path: Path, waiting: str) -> Child:
    """A child with a part in a session of its own, which waits by a command and leaves a file `ended`."""
    part = f"touch {tmp_path}/began; {waiting}; touch {tmp_path}/ended"
    child = start_child(
        "slow", ["sh", "-c", f"setsid sh -c '{part}' & sleep 100"], log=tmp_path / "log", several=True
    )
    wait_for(tmp_path / "began", child)
    return child


def wait_for(path: Path, child: Child | None = None) -> None:
    deadline = time.monotonic() + 60
    while not path.exists():
        assert time.monotonic() < deadline, child.last_words() if child else path
        time.sleep(0.01)


def test_stop_waits_for_a_part_that_ends_later(tmp_path: Path) -> None:
    child = start_slow_part(tmp_path, "sleep 0.5")
    child.stop()
    assert (tmp_path / "ended").exists()


def test_part_that_does_not_end_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(children, "_GONE_SECONDS", 0.05)
    child = start_slow_part(tmp_path, f"until [ -e {tmp_path}/end ]; do sleep 0.05; done")
    with caplog.at_level(logging.WARNING):
        child.stop()
    assert "the slow has processes that do not end" in caplog.text
    assert not (tmp_path / "ended").exists()
    (tmp_path / "end").touch()
    wait_for(tmp_path / "ended")


def test_child_of_one_process_gets_to_end_in_order(tmp_path: Path) -> None:
    script = (
        f"trap 'touch {tmp_path}/in-order; exit 0' TERM; touch {tmp_path}/began; while :; do sleep 0.01; done"
    )
    child = start_child("orderly", ["sh", "-c", script], log=tmp_path / "log")
    wait_for(tmp_path / "began", child)
    child.stop(grace=60)  # it has to start a program first, on a host that may be busy
    assert (tmp_path / "in-order").exists()
    assert child.exit_code() == 0
