"""The page that says what came of each technique, and whether it is of today's table."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Final

from affiant.model.outcome import Outcome
from lab.tamper.technique import SUITES, Technique
from lab.tamper.trial import Sighting

__all__ = ["page", "stale"]

_NONE, _SHORT = "-", 0.1
_TIME: Final = re.compile(rf"< {_SHORT} s|[0-9]+\.[0-9] s")
_HEAD: Final = """\
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


def page(
    kernels: Mapping[str, str], seen: Mapping[tuple[str, str], Sighting], techniques: Sequence[Technique]
) -> str:
    """Return the page: `kernels` are releases by suite, `seen` is what came of (technique, suite)."""
    lines = [_HEAD.format(kernels=", ".join(kernels[suite] for suite in SUITES))]
    for family, members in groupby(techniques, key=lambda technique: technique.family):
        lines += [_heading(family), ""]
        lines += [
            f"| technique | ATT&CK | told by | {' | '.join(_short(kernels[suite]) for suite in SUITES)} |"
        ]
        lines += ["|---|---|---|" + "---|" * len(SUITES)]
        for technique in members:
            times = " | ".join(_time(seen.get((technique.name, suite))) for suite in SUITES)
            lines.append(f"{_row(technique)}{times} |")
        lines.append("")
    lines.append(_count(techniques))
    return "\n".join(lines) + "\n"


def stale(text: str, techniques: Sequence[Technique]) -> tuple[str, ...]:
    """Return what a page lacks or has too much of, for it to be of these techniques; sorted lines.

    Each must stand in its family's part as it is told today, with a time on each kernel that it applies to
    and none elsewhere. Whether it would still take that time, only another run can tell.
    """
    there: dict[str, dict[str, list[str]]] = {}
    section = ""
    for line in text.splitlines():
        if line.startswith("## "):
            section = line
        elif line.startswith("| ") and not line.startswith("| technique |"):
            cells = line.removesuffix(" |").split(" | ")
            row, times = " | ".join(cells[: -len(SUITES)]) + " | ", cells[-len(SUITES) :]
            there.setdefault(section, {})[row] = times
    found = []
    for technique in techniques:
        times = there.get(_heading(technique.family), {}).pop(_row(technique), [])
        if not times:
            found.append(f"{technique.name} is missing, or is told otherwise")
        found += [
            f"{technique.name} has {time!r} on the kernel of {suite}"
            for suite, time in zip(SUITES, times, strict=False)
            if not (_TIME.fullmatch(time) if suite in technique.suites else time == _NONE)
        ]
    found += [f"there is no more: {row}" for rows in there.values() for row in rows]
    if _count(techniques) not in text.splitlines():
        found.append(f"it does not end with: {_count(techniques)}")
    return tuple(sorted(found))


def _heading(family: str) -> str:
    return f"## {family[:1].upper()}{family[1:]}"  # not capitalize(), which would spell BPF otherwise


def _row(technique: Technique) -> str:
    """Return the beginning of a technique's row: all but how long it took."""
    rule = f"[`{technique.rule}`](assertions/{technique.rule}.md)"
    outcome = "" if technique.outcome is Outcome.VIOLATED else f", {technique.outcome.value}"
    return f"| {technique.about} | {technique.attack or _NONE} | {rule}{outcome} | "


def _count(techniques: Sequence[Technique]) -> str:
    trials = sum(len(technique.suites) for technique in techniques)
    return f"{len(techniques)} techniques, {trials} trials."


def _short(release: str) -> str:
    return ".".join(release.split(".")[:2])


def _time(sighting: Sighting | None) -> str:
    if sighting is None:
        return _NONE
    return f"{sighting.seconds:.1f} s" if sighting.seconds >= _SHORT else f"< {_SHORT} s"
