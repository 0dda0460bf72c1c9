"""Verdicts for people and programs, as the command line tells them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from affiant.model.outcome import AssertionResult, Outcome

__all__ = ["entry_of", "exit_code", "lines_of"]


def exit_code(results: Iterable[AssertionResult]) -> int:
    """Return 1 if a rule is violated, 3 if one could not be judged, else 0."""
    outcomes = {result.outcome for result in results}
    if Outcome.VIOLATED in outcomes:
        return 1
    return 3 if Outcome.INCONCLUSIVE in outcomes else 0


def entry_of(
    result: AssertionResult, *, case: str, differences: tuple[str, ...] | None = None
) -> dict[str, Any]:
    """Return a verdict as JSON: with what it was judged on, and what was expected otherwise."""
    entry: dict[str, Any] = {
        "script": result.name,
        "case": case,
        "outcome": result.outcome.value,
        "looked_at": result.looked_at,
        "reason": result.reason,
        "findings": [
            {"subject": f.subject, "expected": f.expected, "found": f.found, "owner": f.owner}
            for f in result.findings
        ],
    }
    return entry if differences is None else entry | {"differences": list(differences)}


def lines_of(entry: dict[str, Any]) -> Iterator[str]:
    """Yield the lines of one entry: findings where nothing was expected, differences where something was."""
    expected = "differences" in entry
    differences = entry.get("differences", [])
    mark = "" if not expected else "FAILED  " if differences else "as expected  "
    place = f"{entry['script']}.{entry['case']}" if entry["case"] else str(entry["script"])
    reason = f" ({entry['reason']})" if entry.get("reason") else ""
    yield f"{mark}{place}: {entry.get('outcome', 'not tested')}{reason}"
    for finding in [] if expected else entry.get("findings", []):
        yield f"    {finding['subject']}: expected {finding['expected']}, found {finding['found']}"
    for difference in differences:
        yield f"    {difference}"
