"""Records the facts by which the library's rules are tested: healthy, and tampered with in one way each.

    python -m lab.record_library [--folder FOLDER] [RULE...]

boots a guest, looks, tampers, looks, and writes a recording beside each rule, or each of those named.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from affiant.assertions.bundle import packaged_library
from affiant.assertions.engine import Engine
from affiant.assertions.recording import Recording, write_recording
from affiant.model.outcome import AssertionResult, Outcome
from lab.guests import GuestPlan, load_modules, start_guest
from lab.live_guest import LiveGuest, open_live_guest
from lab.looking import WaitingClock, facts_of, looks
from lab.references import reference_of
from lab.tamper.processors import without_write_protection
from lab.tamper.table import TECHNIQUES
from lab.tamper.trial import MOST_SECONDS

_LIBRARY = Path(__file__).parent.parent / "src/affiant/assertions/library"


def main() -> int:
    """Write all recordings; 1 if a rule did not say what it must."""
    parser = argparse.ArgumentParser(prog="python -m lab.record_library", description=__doc__)
    parser.add_argument("--folder", type=Path, default=_LIBRARY)
    parser.add_argument("rules", metavar="RULE", nargs="*")
    arguments = parser.parse_args()
    rules = arguments.rules or [script.name for script in packaged_library().scripts]
    plan = GuestPlan(firmware=False, tpm=False, test_modules=True)
    with (
        start_guest(plan) as guest,
        open_live_guest(guest, reference_of(guest.kernel)) as live,
        Engine(packaged_library()) as engine,
    ):
        load_modules(guest)
        machine = f"Debian {guest.kernel.release}, busybox, QEMU TCG."
        recordings = list(_record(live, engine, machine, rules=rules))
    for recording in recordings:
        print(write_recording(arguments.folder, recording))
    return 0 if all(recording.outcome is _expected(recording) for recording in recordings) else 1


def _expected(recording: Recording) -> Outcome:
    return Outcome.HOLDS if recording.case == "healthy" else Outcome.VIOLATED


def _record(live: LiveGuest, engine: Engine, machine: str, *, rules: Collection[str]) -> Iterator[Recording]:
    for script in engine.bundle.scripts:
        if script.name not in rules:
            continue
        facts = facts_of(live, [script])
        (result,) = engine.judge(facts, only=[script.name])
        yield _recording(script.name, "healthy", f"{machine} Nothing was tampered with.", result, facts)
        if script.name == "write_protection_on":
            facts = {name: without_write_protection(fact) for name, fact in facts.items()}
            (result,) = engine.judge(facts, only=[script.name])
            about = f"{machine} CR0.WP of the last CPU was cleared in what had been recorded."
            yield _recording(script.name, "write_protection_cleared", about, result, facts)
    for technique in TECHNIQUES:
        if not technique.recorded or technique.rule not in rules:
            continue
        with technique.tamper(live):
            for look in looks(live, engine, technique.rule, clock=WaitingClock(), seconds=MOST_SECONDS):
                result, facts = look
                if result.outcome is Outcome.VIOLATED:
                    break
        yield _recording(technique.rule, technique.name, f"{machine} {technique.about}", result, facts)


def _recording(
    rule: str, case: str, about: str, result: AssertionResult, facts: dict[str, dict[str, Any]]
) -> Recording:
    subjects = tuple(finding.subject for finding in result.findings)
    return Recording(rule, case, about, result.outcome, subjects, facts)


if __name__ == "__main__":
    sys.exit(main())
