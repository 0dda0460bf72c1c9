"""Tries the whole table on every supported kernel, and writes what came of it as a page.

    python -m lab.tamper.report [--suite SUITE] [--only TEXT] [PAGE]

Time passes as it does: a technique that a monitor believes for two minutes takes two minutes.
"""

from __future__ import annotations

import argparse
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path

from affiant.assertions.bundle import packaged_library
from affiant.assertions.engine import Engine
from lab.guests import GuestPlan, load_modules, start_guest
from lab.live_guest import open_live_guest
from lab.looking import WaitingClock
from lab.references import reference_of
from lab.tamper.table import TECHNIQUES
from lab.tamper.technique import SUITES, Technique
from lab.tamper.trial import Sighting, assert_healthy, try_technique

_NONE, _SHORT = "-", 0.1
_HEAD = """\
# Tampering, tried

Written by `make tamper-report`. Each technique was tried on a running guest with each kernel that it
applies to: told by the rule named, in a finding about the right object, then undone; afterwards the guest's
shell answered and every rule held. What the rules see, and what they cannot, stands in
[detection](detection.md).

Kernels: {kernels} (Debian). Guests: two virtual processors, 1 GiB, busybox, booted directly.

The last columns tell how long it took from the change to the finding, with a first look at once, the next
ones a second apart, and from the eleventh on ten seconds; a monitor's own time until its next look comes on
top. "-" is where a kernel has nothing that the technique changes. What a kernel at work shows for moments
is believed for five seconds, the claim that it still boots for two minutes, once. A technique that makes
its rule *inconclusive* blinds it: the rule says so, and does not hold.
"""
_PAGE = Path(__file__).parent.parent.parent / "docs/tamper-report.md"


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the page; 1 if a technique was not told, or a guest did not recover."""
    parser = argparse.ArgumentParser(prog="lab.tamper.report", description=__doc__)
    parser.add_argument("--suite", choices=SUITES, action="append", help="this kernel alone")
    parser.add_argument("--only", default="", help="techniques with this in their names")
    parser.add_argument("page", nargs="?", type=Path, default=_PAGE, help="the page to write")
    options = parser.parse_args(arguments)
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
        options.page.write_text(_page(kernels, seen))
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


def _page(kernels: dict[str, str], seen: dict[tuple[str, str], Sighting]) -> str:
    lines = [_HEAD.format(kernels=", ".join(kernels[suite] for suite in SUITES))]
    for family, members in groupby(TECHNIQUES, key=lambda technique: technique.family):
        lines += [f"## {family.capitalize()}", ""]
        lines += [f"| technique | ATT&CK | told by | {' | '.join(map(_short, kernels.values()))} |"]
        lines += ["|---|---|---|" + "---|" * len(kernels)]
        for technique in members:
            times = " | ".join(_time(seen.get((technique.name, suite))) for suite in SUITES)
            rule = f"[`{technique.rule}`](assertions/{technique.rule}.md)"
            outcome = "" if technique.outcome.value == "violated" else f", {technique.outcome.value}"
            lines.append(f"| {technique.about} | {technique.attack or _NONE} | {rule}{outcome} | {times} |")
        lines.append("")
    lines.append(f"{len(TECHNIQUES)} techniques, {len(seen)} trials.")
    return "\n".join(lines) + "\n"


def _short(release: str) -> str:
    return ".".join(release.split(".")[:2])


def _time(sighting: Sighting | None) -> str:
    if sighting is None:
        return _NONE
    return f"{sighting.seconds:.1f} s" if sighting.seconds >= _SHORT else f"< {_SHORT} s"


if __name__ == "__main__":
    sys.exit(main())
