"""What the demo refuses before it could fail in a way that puzzles."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from affiant.demo import commands, story
from affiant.demo.local_service import running_service_process
from affiant.demo.story import DemoError, DemoSettings, Teller, run_demo
from affiant.model.errors import SetupError


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("AFFIANT_HOME", str(tmp_path))
    return tmp_path


@pytest.fixture
def sleeper(home: Path) -> Iterator[int]:
    """A process that names the folder of the demo's service, as the service does, and its ready file."""
    folder = DemoSettings().service_folder
    folder.mkdir()
    process = subprocess.Popen(
        [sys.executable, "-c", "print(flush=True); input()", str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert process.stdout is not None
    process.stdout.readline()  # for a moment after exec, /proc shows no command line yet
    (folder / "ready.json").write_text(json.dumps({"url": "http://127.0.0.1:1", "pid": process.pid}))
    yield process.pid
    process.kill()
    process.communicate()


def test_a_demo_that_runs_is_left_alone(home: Path, sleeper: int) -> None:
    """The hint says how to end it, and nothing of it is touched."""
    with pytest.raises(SetupError, match="a demo named 'demo' is running") as refusal:
        run_demo(DemoSettings(), cast(Teller, None))
    assert refusal.value.hint == f"kill {sleeper}; or choose another --name"
    assert (DemoSettings().service_folder / "ready.json").exists()


def test_a_process_of_the_same_number_is_not_the_service(tmp_path: Path) -> None:
    (tmp_path / "ready.json").write_text(json.dumps({"url": "", "pid": os.getpid()}))
    assert running_service_process(tmp_path) is None
    (tmp_path / "ready.json").write_text("{}")
    assert running_service_process(tmp_path) is None
    assert running_service_process(tmp_path / "nowhere") is None


def test_a_monitor_that_was_not_accepted_is_named_as_the_reason() -> None:
    accepted: Any = SimpleNamespace(digest=bytes(32))
    state: Any = SimpleNamespace(read_status=lambda: {"image": bytes(32).hex()})
    story._require_image(accepted, state)
    state.read_status = lambda: {"image": "11" * 32}
    with pytest.raises(DemoError, match="the installation changed meanwhile") as refusal:
        story._require_image(accepted, state)
    assert refusal.value.hint


def test_what_to_try_can_be_typed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By name where PATH leads to this very program, else by its path."""
    program = tmp_path / "affiant"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    monkeypatch.setattr(sys, "argv", [str(program)])
    monkeypatch.setenv("PATH", "/nowhere")
    assert commands._how_we_were_called() == str(program)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert commands._how_we_were_called() == "affiant"
    other = tmp_path / "other" / "affiant"
    other.parent.mkdir()
    other.write_text("")
    monkeypatch.setattr(sys, "argv", [str(other)])
    assert commands._how_we_were_called() == str(other)
    monkeypatch.setattr(sys, "argv", ["/somewhere/cli.py"])
    assert commands._how_we_were_called() == f"{sys.executable} -m affiant.cli"
