"""What the launcher says of itself is what was true last, whichever of its threads writes when."""

from __future__ import annotations

import json
import threading
from pathlib import Path

from affiant.launcher.status import StatusFile


def state_in(path: Path) -> str:
    return str(json.loads(path.read_text())["state"])


def test_a_thread_that_is_late_does_not_write_what_was_true_before(tmp_path: Path) -> None:
    """The guest's firmware gets on while the launcher's main thread is about to tell where it is."""
    path = tmp_path / "status.json"
    status, true = StatusFile(path), ["firmware"]
    other: list[threading.Thread] = []

    def state() -> str:
        seen = true[0]
        if not other:
            true[0] = "launched"
            other.append(threading.Thread(target=status.update, kwargs={"state": lambda: true[0]}))
            other[0].start()
            other[0].join(0.2)  # it has to wait until this thread has written
        return seen

    status.update(state=state)
    other[0].join(30)
    assert state_in(path) == "launched"


def test_what_has_ended_is_not_said_to_run_by_a_thread_that_is_late(tmp_path: Path) -> None:
    path = tmp_path / "status.json"
    status = StatusFile(path)
    status.update(ready=False, state="ended")
    status.update(state=lambda: "firmware")
    assert state_in(path) == "ended"
    assert state_in(StatusFile(path)._path) == "starting", "the next launcher begins anew"
