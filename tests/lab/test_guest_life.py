"""Parts of a running chain die, killed without a word: the machine recovers, or says why not."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
from typing import Any

import pytest

from affiant.demo.tampering import tampered
from affiant.model.level import SecurityLevel
from lab.console import Console
from tests.lab.attested import AFFIANT, BOOT_SECONDS, Asked, AttestedGuest, until
from tests.lab.processes import descendants


def process_of(guest: AttestedGuest, name: str) -> int:
    """Return the program itself, not the sandbox around it: what the sandbox cannot be told of its death."""
    assert guest.state.launcher_pid
    (pid,) = [
        pid
        for pid, line in descendants(guest.state.launcher_pid).items()
        if line.startswith("/env/bin/python") and f" -m affiant.{name} " in line
    ]
    return pid


def programs(guest: AttestedGuest) -> list[str]:
    """Return the programs below the launcher, each with how often it runs; descriptors differ each time."""
    assert guest.state.launcher_pid
    lines = descendants(guest.state.launcher_pid).values()
    return sorted(re.sub(r"-fds? \d+", "", line) for line in lines)


def violated(asked: Asked) -> set[str]:
    return {each.assertion for each in asked.verified.runtime.violations}


def is_as_good_as_ever(asked: Asked) -> bool:
    return asked.level is SecurityLevel.ENFORCED_CODE and asked.decide().accepted


@pytest.mark.parametrize("name", ["relay", "monitor"])
def test_a_killed_part_comes_back_with_a_new_session(attested: AttestedGuest, name: str) -> None:
    """Monitor and relay are one pair: both start anew, with new keys, and the guest notices nothing."""
    before = attested.ask_until(is_as_good_as_ever)
    running, starts = programs(attested), attested.status()["monitor_starts"]
    qemu = attested.status()["pids"]["qemu"]
    os.kill(process_of(attested, name), signal.SIGKILL)
    after = attested.ask_until(lambda asked: asked.session != before.session and is_as_good_as_ever(asked))
    assert after.verified.runtime.sequence < before.verified.runtime.sequence + 10
    assert attested.status()["monitor_starts"] == starts + 1
    assert attested.status()["pids"]["qemu"] == qemu
    # Nothing is left of what was killed, once the kernel has ended all of it.
    until(lambda: programs(attested) == running, seconds=60, otherwise=lambda: str(programs(attested)))
    assert f"the {name} ended" in attested.state.launcher_log.read_text()
    until(
        lambda: stored_session(attested, before.session)["state"] == "superseded",
        seconds=180,
        otherwise=attested.logs,
    )
    assert stored_session(attested, after.session)["state"] == "alive"


def test_a_killed_monitor_takes_no_violation_along(attested: AttestedGuest, console: Console) -> None:
    """Undone while no monitor looked, a change is told until the guest is started anew, and no longer."""
    attested.ask_until(is_as_good_as_ever)
    with tampered(attested.state):
        hooked = attested.ask()
        os.kill(process_of(attested, "monitor"), signal.SIGKILL)
    assert {"kernel_text_intact", "syscall_table_intact"} <= violated(hooked)
    after = attested.ask_until(lambda asked: asked.session != hooked.session)
    assert violated(after) == violated(hooked)
    assert not any(each.standing for each in after.verified.runtime.violations)
    assert not after.decide().accepted
    console.type("reboot -f\n")
    console.wait("affiant: guest ready", timeout=BOOT_SECONDS)
    console.wait("guest# ", timeout=BOOT_SECONDS)
    assert not violated(attested.ask_until(is_as_good_as_ever))


def test_without_the_service_a_session_goes_on_and_no_new_one_begins(attested: AttestedGuest) -> None:
    """Passports need no network. A monitor without a session says what it waits for, and gets one later."""
    before = attested.ask_until(is_as_good_as_ever)
    running = programs(attested)
    attested.service.kill()
    try:
        offline = attested.ask()
        assert offline.session == before.session
        assert is_as_good_as_ever(offline)
        os.kill(process_of(attested, "monitor"), signal.SIGKILL)
        attested.refusal(r"no session: .*the service was not reached")
    finally:
        attested.service.start()
    after = attested.ask_until(is_as_good_as_ever)
    assert after.session != before.session
    assert after.verified.session.device == before.verified.session.device
    until(lambda: programs(attested) == running, seconds=60, otherwise=lambda: str(programs(attested)))


def test_a_restarted_service_still_knows_its_sessions(attested: AttestedGuest) -> None:
    """What it gave out is in its database: the monitor's next heartbeat is welcome, the session goes on."""
    before = attested.ask_until(is_as_good_as_ever)
    heard = stored_session(attested, before.session)["reports"]
    attested.service.stop()
    attested.service.start()
    until(
        lambda: stored_session(attested, before.session)["reports"] > heard,
        seconds=180,
        otherwise=attested.logs,
    )
    assert stored_session(attested, before.session)["state"] == "alive"
    assert attested.ask().session == before.session


def stored_session(guest: AttestedGuest, session: bytes) -> dict[str, Any]:
    """Return what the service's operator is told of a session."""
    words = [*AFFIANT, "service", "sessions", "--folder", str(guest.service.folder), "--json"]
    sessions = json.loads(subprocess.run(words, capture_output=True, check=True).stdout)
    (found,) = [each for each in sessions if each["session"] == session.hex()]
    return dict(found)
