"""docs/tutorial.md on a real machine: each of its commands, in its order, and the attack itself.

The machine is booted directly, which the page does not: quicker, and at level 0.
"""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from affiant.assertions.recording import read_recording
from affiant.cli import main
from affiant.folders import rules_folder
from affiant.inspect.registers import read_register_listings
from affiant.kernel.guest import Guest
from affiant.kernel.machine.cpu import parse_registers
from affiant.kernel.reference import ReferenceImage
from affiant.model.errors import SetupError
from affiant.model.outcome import Outcome
from affiant.vm.state import VmState
from affiant.vm.stop import remove_machine
from lab.live_guest import LiveGuest, open_memory
from lab.tamper.data import listening
from tests.lab.attested import Service
from tests.page import ROOT, Command, blocks

PAGE = ROOT / "docs" / "tutorial.md"
RECORDED = ROOT / "tests/vectors/tutorial/address_watchers_owned.healthy.json"
RULE = "address_watchers_owned"
SECONDS = 180.0  # a loaded host; what must be quick is measured elsewhere


@pytest.fixture
def services(home: Path) -> Iterator[Service]:
    """A service that is not running yet: the page starts it."""
    service = Service(home / "tutorial-service", options=("--rules", str(rules_folder())))
    yield service
    service.stop()
    with suppress(SetupError):  # the test may have failed before it was there
        remove_machine("web1")


@contextmanager
def hit(state: VmState) -> Iterator[str]:
    """Do what the advisory describes; yields the subject that must be told."""
    assert state.reference is not None
    with open_memory(state.ram, state.memory_bytes) as (memory, ram):
        cpus = [parse_registers(text, index=n) for n, text in enumerate(read_register_listings(state.qmp))]
        guest = Guest.open(memory, ReferenceImage.load(state.reference), cpus)
        live = LiveGuest(guest, memory, ram, monitor=None, launcher=None, lab=None)
        with listening(live, "inetaddr_chain", "struct blocking_notifier_head") as block:
            yield f"address notifier at {block:#x}"


def verdict(service: Service, capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, dict]:
    """Ask web1 over a new nonce, and verify the answer as the page does."""
    nonce = secrets.token_hex(32)
    assert main(["report", "--vm", "web1", "--nonce", nonce, "-o", "passport", "--wait", "60"]) == 0
    capsys.readouterr()
    verify = ["verify", "passport", "--root", str(service.root), "--nonce", nonce, "--min-level", "0"]
    code = main([*verify, "--json", *words])
    return code, json.loads(capsys.readouterr().out)


def until(service: Service, capsys: pytest.CaptureFixture[str], version: int) -> tuple[int, dict]:
    """Ask until the report is judged by a version of the rules that has looked, and return the verdict."""
    deadline = time.monotonic() + SECONDS
    while True:
        code, told = verdict(service, capsys, "--min-rules-version", str(version))
        names = [each["name"] for each in told["report"]["assertions"]]
        if told["report"]["rules"]["version"] >= version and RULE in names:
            return code, told
        assert time.monotonic() < deadline, told
        time.sleep(0.2)


def test_the_tutorial_on_a_real_machine(
    services: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("getpass.getpass", lambda _: "correct horse")
    steps = blocks(PAGE)
    enforcing = next(
        index for index, step in enumerate(steps) if isinstance(step, Command) and "--enforce" in step.line
    )
    script = next(step.text for step in steps if not isinstance(step, Command))
    for step in steps[:enforcing]:
        if not isinstance(step, Command):
            if step.text == script:
                (tmp_path / f"{RULE}.star").write_text(script)
            else:
                exec(compile(step.text, PAGE.name, "exec"), {})
        elif step.line.startswith("affiant service run"):
            services.start()
            services.trust_this_host()
        elif step.line.startswith("affiant vm start"):
            words = step.line.replace("http://127.0.0.1:8710", services.url)
            words = words.replace("root.pem", str(services.root))
            words = words.replace("1.root.json", str(rules_folder() / "public/metadata/1.root.json"))
            code = main([*Command(words, ()).words[1:], "--direct", "--no-tpm", "--memory", "512M"])
            assert code == 0
        elif not step.line.startswith(("affiant report", "affiant verify")):
            code, said = step.run(capsys)
            assert code == 0, f"{step.line}: {said}"

    code, told = until(services, capsys, 3)
    assert told["report"]["rules"]["name"] == "web"
    assert told["report"]["violations"] == []
    assert code == 0, told
    live, recorded = read_recording(tmp_path / f"{RULE}.healthy.json"), read_recording(RECORDED)
    assert live.outcome is recorded.outcome is Outcome.HOLDS
    assert _watchers(live.facts) == _watchers(recorded.facts)

    with hit(VmState.load("web1")) as subject:
        code, told = verdict(services, capsys)
        assert [each["assertion"] for each in told["report"]["violations"]] == [RULE], told
        (violation,) = told["report"]["violations"]
        assert violation["findings"][0]["subject"] == subject
        assert violation["findings"][0]["technique"] == "T1546"
        assert code == 0, "a rule in audit refuses nobody"
        assert verdict(services, capsys, "--require", RULE)[0] == 1
        code, said = steps[enforcing].run(capsys)
        assert code == 0, said
        code, told = until(services, capsys, 4)
        assert code == 1
        assert any(subject in finding["subject"] for finding in told["findings"])


def _watchers(facts) -> set[str]:
    elements = facts[f"{RULE}.watchers"]["elements"]
    assert elements
    return {element["call"]["symbol"] for element in elements}
