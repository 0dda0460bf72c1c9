"""`affiant assertions record` and `test --vm`, on a synthetic machine, as a person runs them."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from affiant.assertions import authoring
from affiant.assertions.bundle import make_bundle
from affiant.assertions.engine import Engine
from affiant.assertions.recording import read_facts, read_recording
from affiant.cli import main
from affiant.inspect.look import Target
from affiant.kernel.queries import answers
from affiant.model.errors import UnavailableError
from affiant.model.outcome import Outcome
from affiant.trial.live import LiveMachine, judge_until, open_machine
from tests.unit.kernel.queries.things import NUMBER, ThingGuest
from tests.unit.kernel.synthetic_guest import RAM_SIZE, registers
from tests.unit.monitor.test_watch_queries import RULE

KNOWN = str(Path(authoring.__file__).parent / "library" / "kernel_known.star")


@pytest.fixture
def guest() -> ThingGuest:
    return ThingGuest()


@pytest.fixture
def rule(tmp_path: Path) -> Path:
    path = tmp_path / "small_things.star"
    path.write_text(RULE)
    return path


@pytest.fixture
def machine(guest: ThingGuest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Target:
    """A machine called web: its RAM in a file, its registers and reference those of the guest."""
    ram = tmp_path / "ram"
    ram.write_bytes(guest.ram)
    target = Target("web", ram, tmp_path / "qmp", tmp_path / "reference", RAM_SIZE, RAM_SIZE)
    listing = registers(cr3=guest.cpus[0].cr3, cr4=0x1020, rip=guest.cpus[0].instruction_pointer)
    monkeypatch.setattr("affiant.inspect.look.machine_target", lambda name: target)
    monkeypatch.setattr("affiant.inspect.registers.read_register_listings", lambda qmp: (listing,))
    monkeypatch.setattr(
        "affiant.kernel.reference.ReferenceImage.load", staticmethod(lambda path: guest.reference)
    )
    return target


def tamper(guest: ThingGuest, target: Target) -> None:
    with target.ram.open("r+b") as file:
        file.seek(guest.made[11] + NUMBER)
        file.write((7000).to_bytes(4, "little"))


def test_a_rule_is_tested_on_a_running_machine(guest, machine, rule, capsys):
    assert main(["assertions", "test", str(rule), "--vm", "web"]) == 0
    assert capsys.readouterr().out == "small_things.web: holds\n"
    tamper(guest, machine)
    assert main(["assertions", "test", str(rule), "--vm", "web"]) == 1
    assert capsys.readouterr().out.splitlines() == [
        "small_things.web: violated",
        "    thing 7000: expected small, found large",
    ]
    assert main(["assertions", "test", str(rule), "--vm", "web", "--json"]) == 1
    (entry,) = json.loads(capsys.readouterr().out)
    assert (entry["outcome"], entry["findings"][0]["subject"]) == ("violated", "thing 7000")


def test_what_cannot_be_said_of_a_machine_is_no_success(guest, machine, rule, capsys):
    with machine.ram.open("r+b") as file:
        file.seek(guest.place("things"))
        file.write(b"\xff" * 8)
    assert main(["assertions", "test", str(rule), "--vm", "web"]) == 3
    assert "small_things.web: inconclusive (small_things.things is unavailable" in capsys.readouterr().out


def test_rules_of_the_library_go_by_their_names(machine, capsys):
    assert main(["assertions", "test", "kernel_known", "write_protection_on", "--vm", "web"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "kernel_known.web: holds",
        "write_protection_on.web: holds",
    ]
    assert main(["assertions", "test", "nothing", "--vm", "web"]) == 2
    assert "no property 'nothing'" in capsys.readouterr().err


def test_facts_in_a_file_and_a_machine_are_not_judged_at_once(machine, rule, capsys):
    assert main(["assertions", "test", str(rule), "--vm", "web", "--facts", "x.json"]) == 2
    assert "--facts and --vm are two things" in capsys.readouterr().err


def test_a_recording_of_one_rule_is_one_beside_it(guest, machine, rule, capsys):
    """Recorded healthy and tampered, named and put beside the rule, the pair is what `test` asks for."""
    for case in ("healthy", "tampered"):
        output = rule.parent / f"small_things.{case}.json"
        assert main(["assertions", "record", str(rule), "--vm", "web", "-o", str(output)]) == 0
        tamper(guest, machine)
    told = capsys.readouterr().out
    assert "small_things: holds" in told
    assert "small_things.things" in told
    assert "at most 100 of struct thing (list at things): number" in told
    assert "nothing was left out" in told
    output = rule.parent / "told.json"
    assert main(["assertions", "record", str(rule), "--vm", "web", "-o", str(output), "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert content["outcomes"] == {"small_things": "violated"}
    assert [fact["name"] for fact in content["facts"]] == ["small_things.things"]
    output.unlink()
    recording = read_recording(rule.parent / "small_things.tampered.json")
    assert (recording.outcome, recording.subjects) == (Outcome.VIOLATED, ("thing 7000",))
    assert recording.about.startswith("Linux 6.1.0-synthetic, machine web, recorded on ")
    assert main(["assertions", "test", str(rule)]) == 0


def test_the_library_is_recorded_whole_and_judged_later(machine, tmp_path, capsys):
    output = tmp_path / "web.json"
    assert main(["assertions", "record", "--vm", "web", "-o", str(output)]) == 0
    told = capsys.readouterr().out
    assert "Each system call table against the reference" in told
    assert "absent: this kernel has no single symbol modprobe_path" in told
    facts = read_facts(output)
    assert facts["kernel_identity"]["release"] == "6.1.0-synthetic"
    assert main(["assertions", "test", KNOWN, "--facts", str(output)]) == 0
    assert capsys.readouterr().out == "kernel_known.web.json: holds\n"


def test_nothing_is_overwritten(machine, rule, tmp_path, capsys):
    output = tmp_path / "mine.json"
    output.write_text("precious")
    assert main(["assertions", "record", str(rule), "--vm", "web", "-o", str(output)]) == 2
    assert "already there" in capsys.readouterr().err
    assert output.read_text() == "precious"
    assert main(["assertions", "record", str(rule), "--vm", "web", "-o", str(tmp_path / "no" / "x")]) == 2


def test_a_machine_that_runs_no_known_kernel_is_said_so(guest, machine, rule, capsys):
    machine.ram.write_bytes(bytes(RAM_SIZE))
    assert main(["assertions", "test", str(rule), "--vm", "web"]) == 3
    assert capsys.readouterr().err.startswith("error: ")
    with pytest.raises(UnavailableError), open_machine(machine):
        pass


def test_a_host_that_is_busy_makes_no_rule_inconclusive(machine, engine, monkeypatch):
    answer = answers._answer

    def late(*words: object) -> object:
        time.sleep(1.1 * answers._SECONDS)
        return answer(*words)

    monkeypatch.setattr(answers, "_answer", late)
    with open_machine(machine) as opened:
        results, _ = judge_until(opened, engine, seconds=0)
    assert [result.outcome for result in results] == [Outcome.HOLDS]


# Looking again.


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    with Engine(make_bundle("test", 1, {"small_things": RULE})) as engine:
        yield engine


def machine_that_shows(*numbers: int) -> tuple[LiveMachine, list[int]]:
    """Return a machine whose thing has these numbers, one at each look, and the looks taken."""
    looks: list[int] = []

    def facts_of(_scripts):
        looks.append(numbers[min(len(looks), len(numbers) - 1)])
        return {"small_things.things": {"elements": [{"address": "0x0", "number": looks[-1]}]}}

    return LiveMachine("web", "6.1", facts_of), looks


@pytest.mark.parametrize(
    ("numbers", "seconds", "outcome", "taken"),
    [
        ((1,), 0.0, Outcome.HOLDS, 1),
        ((500,), 0.0, Outcome.VIOLATED, 2),
        ((500, 1), 0.0, Outcome.HOLDS, 2),
        ((1, 1, 500), 5.0, Outcome.VIOLATED, 4),
        ((1,), 3.0, Outcome.HOLDS, 4),
    ],
)
def test_a_violation_counts_when_two_looks_in_a_row_have_it(engine, numbers, seconds, outcome, taken):
    machine, looks = machine_that_shows(*numbers)
    now = [0.0]

    def wait(duration: float) -> None:
        now[0] += duration

    results, facts = judge_until(machine, engine, seconds=seconds, clock=lambda: now[0], wait=wait)
    assert (results[0].outcome, len(looks)) == (outcome, taken)
    assert facts["small_things.things"]["elements"][0]["number"] == looks[-1]
