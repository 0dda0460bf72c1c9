"""Tries the whole table on every supported kernel, and writes what came of it as a page.

    python -m lab.tamper.report [--suite SUITE] [--only TEXT] [--check] [PAGE]

Time passes as it does: a technique that a monitor believes for two minutes takes two minutes.
"""

from __future__ import annotations

import argparse
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path

from affiant.assertions.bundle import packaged_library
from affiant.assertions.engine import Engine
from lab.guests import GuestPlan, load_modules, start_guest
from lab.live_guest import open_live_guest
from lab.looking import WaitingClock
from lab.references import reference_of
from lab.tamper.page import page, stale
from lab.tamper.table import TECHNIQUES
from lab.tamper.technique import SUITES, Technique
from lab.tamper.trial import Sighting, assert_healthy, try_technique

_PAGE = Path(__file__).parent.parent.parent / "docs/tamper-report.md"


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the page; 1 if a technique was not told, or a guest did not recover."""
    parser = argparse.ArgumentParser(prog="lab.tamper.report", description=__doc__)
    parser.add_argument("--suite", choices=SUITES, action="append", help="this kernel alone")
    parser.add_argument("--only", default="", help="techniques with this in their names")
    parser.add_argument("--check", action="store_true", help="only tell whether the page has every technique")
    parser.add_argument("page", nargs="?", type=Path, default=_PAGE, help="the page to write")
    options = parser.parse_args(arguments)
    if options.check:
        found = stale(options.page.read_text(), TECHNIQUES)
        print("\n".join(found) or f"{options.page.name} has every technique that there is")
        return 1 if found else 0
    techniques = [technique for technique in TECHNIQUES if options.only in technique.name]
    seen: dict[tuple[str, str], Sighting] = {}
    kernels: dict[str, str] = {}
    failed = 0
    for suite in options.suite or SUITES:
        for kernel, technique, sighting in _tried(suite, techniques):
            kernels[suite] = kernel
            if sighting is None:
                failed += 1
            else:
                seen[technique.name, suite] = sighting
    if failed:
        print(f"{failed} were not told; no page is written", file=sys.stderr)
        return 1
    if techniques == list(TECHNIQUES) and kernels.keys() == set(SUITES):
        options.page.write_text(page(kernels, seen, TECHNIQUES))
        print(f"written: {options.page}")
    return 0


def _tried(suite: str, techniques: list[Technique]) -> Iterator[tuple[str, Technique, Sighting | None]]:
    """Try techniques on one kernel, one after the other."""
    plan = GuestPlan(suite=suite, firmware=False, tpm=False, test_modules=True, in_turn=True)
    began = time.monotonic()
    with (
        start_guest(plan) as guest,
        open_live_guest(guest, reference_of(guest.kernel)) as live,
        Engine(packaged_library()) as engine,
    ):
        load_modules(guest)
        assert_healthy(live, engine, clock=WaitingClock())
        for technique in techniques:
            if suite not in technique.suites:
                continue
            try:
                sighting = try_technique(live, engine, technique, clock=WaitingClock())
            except Exception:  # noqa: BLE001  the next technique may fare better, and all are told
                print(f"{suite} {technique.name}: FAILED\n{traceback.format_exc(limit=-3)}", flush=True)
                yield guest.kernel.release, technique, None
                continue
            print(
                f"{suite} {technique.name}: {technique.rule} in look {sighting.looks} "
                f"after {sighting.seconds:.2f} s: {sighting.told}",
                flush=True,
            )
            yield guest.kernel.release, technique, sighting
    print(f"{suite}: {time.monotonic() - began:.0f} s in all", flush=True)


if __name__ == "__main__":
    sys.exit(main())
