"""`affiant inspect` of a machine under the launcher: what only QEMU's saved state tells among it."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from affiant.assertions.bundle import packaged_library
from affiant.assertions.engine import Engine
from affiant.cli import main
from affiant.inspect.look import machine_target
from affiant.model.outcome import Outcome
from affiant.trial.live import judge_until, open_machine
from affiant.vm.ready import wait_for_guest
from affiant.vm.start import VmRequest, start_machine
from affiant.vm.state import VmState
from affiant.vm.stop import remove_machine
from tests.lab.attested import until

_BOOT_SECONDS = 300
_ASK = "import socket, sys; s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]); s.recv(1); print()"


def test_the_owner_sees_registers_that_qemu_saves_and_the_guest_runs_on(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    request = VmRequest("seen", firmware=False, memory_bytes=512 << 20)
    try:
        state = start_machine(request)
        wait_for_guest(state, timeout=_BOOT_SECONDS)
        capsys.readouterr()
        assert main(["inspect", "cpus", "--vm", "seen", "--json"]) == 0
        fact = json.loads(capsys.readouterr().out)["facts"]["system_registers"]
        assert fact["deviations"] == []
        assert fact["checked"]["system calls"] > 0
        assert [cpu["cpu"] for cpu in fact["registers"]] == [0, 1]
        assert len({cpu["lstar"] for cpu in fact["registers"]}) == 1
        with open_machine(machine_target("seen")) as opened, Engine(packaged_library()) as engine:
            results, _ = judge_until(opened, engine, seconds=0)
        assert {result.name for result in results if result.outcome is not Outcome.HOLDS} == set()
        _ask_and_die(state)
        # The last of them may be answered still, and the guest stands still for that.
        until(lambda: _status(state) == "running", seconds=60)
        assert main(["inspect", "cpus", "--vm", "seen"]) == 0
        assert "vCPU 1, as saved" in capsys.readouterr().out
    finally:
        remove_machine("seen")


def _ask_and_die(state: VmState) -> None:
    """Ask a few times, and be killed at once, or as soon as an answer comes."""
    for waits in (False, True) * 5:
        asker = subprocess.Popen(
            [sys.executable, "-c", _ASK, str(state.cpus_socket)], stdout=subprocess.PIPE if waits else None
        )
        if asker.stdout is not None:
            asker.stdout.readline()
            asker.stdout.close()
        asker.kill()
        asker.wait()


def _status(state: VmState) -> str:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(20)
        connection.connect(str(state.qmp))
        stream = connection.makefile("rw", encoding="utf-8")
        stream.readline()
        answer: dict[str, dict[str, str]] = {}
        for command in ("qmp_capabilities", "query-status"):
            stream.write(json.dumps({"execute": command}) + "\n")
            stream.flush()
            while "return" not in (answer := json.loads(stream.readline())):
                pass
        return answer["return"]["status"]
