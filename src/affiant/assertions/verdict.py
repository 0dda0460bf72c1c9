"""From what the worker answered about a script to its verdict."""

from __future__ import annotations

from collections.abc import Mapping

from affiant.assertions.fault import one_sentence, printable
from affiant.assertions.script import Script
from affiant.model.finding import Finding
from affiant.model.outcome import AssertionResult, Outcome

__all__ = ["inconclusive", "not_applicable", "verdict"]

_MOST_FINDINGS = 256
_COUNT = 1 << 53


def inconclusive(script: Script, reason: str, *, looked_at: int = 0) -> AssertionResult:
    """Return that nothing can be said, and why."""
    return AssertionResult(
        name=script.name,
        version=script.version,
        mode=script.mode,
        outcome=Outcome.INCONCLUSIVE,
        looked_at=looked_at,
        reason=printable(reason) or "no reason was given",
    )


def not_applicable(script: Script, reason: str) -> AssertionResult:
    """Return that the property means nothing on this kernel, and why."""
    return AssertionResult(
        name=script.name,
        version=script.version,
        mode=script.mode,
        outcome=Outcome.NOT_APPLICABLE,
        looked_at=0,
        reason=printable(reason) or "no reason was given",
    )


def verdict(script: Script, answer: Mapping[str, object]) -> AssertionResult:
    """Return the verdict for one answer of the worker.

    Any bad observation is a violation. Without one, a thing that could not be seen, a count that
    falls short of what the script expected, or nothing looked at at all is inconclusive; so is an
    error and every answer that is not of the agreed form. What remains holds.
    """
    if "error" in answer:
        return inconclusive(script, one_sentence(str(answer["error"])))
    try:
        return _judged(script, answer["answer"])
    except (KeyError, TypeError, ValueError):
        return inconclusive(script, "the evaluator answered in a form that was not agreed")


def _judged(script: Script, folded: object) -> AssertionResult:
    if not isinstance(folded, dict):
        raise TypeError
    if "verdict" in folded:
        return _stated(script, folded)
    looked_at = _count(folded["looked_at"])
    findings = [_finding(script, parts) for parts in folded["bad"]]
    left_out = _count(folded["bad_left_out"])
    if findings:
        if len(findings) > _MOST_FINDINGS:
            raise ValueError
        if left_out:
            findings.append(Finding(f"{left_out} more", "none", "left out", technique=script.technique))
        return AssertionResult(
            script.name, script.version, script.mode, Outcome.VIOLATED, looked_at, tuple(findings)
        )
    blind = [_texts(parts, 2) for parts in folded["unseen"]]
    more = _count(folded["unseen_left_out"])
    if blind:
        subject, reason = blind[0]
        others = f" (and {more} more)" if more else ""
        return inconclusive(script, f"{subject} was not seen{others}: {reason}", looked_at=looked_at)
    expected = _count(folded["expected"])
    if looked_at < expected:
        return inconclusive(
            script, f"{looked_at} things were looked at, {expected} expected", looked_at=looked_at
        )
    if looked_at == 0:
        return inconclusive(script, "nothing was looked at")
    return AssertionResult(script.name, script.version, script.mode, Outcome.HOLDS, looked_at)


def _stated(script: Script, folded: Mapping[str, object]) -> AssertionResult:
    (reason,) = _texts([folded["reason"]], 1)
    outcome = Outcome(folded["verdict"])
    if outcome is Outcome.INCONCLUSIVE:
        return inconclusive(script, reason)
    if outcome is not Outcome.NOT_APPLICABLE or not reason:
        raise ValueError
    return not_applicable(script, reason)


def _finding(script: Script, parts: object) -> Finding:
    subject, expected, found, owner = _texts(parts, 4)
    return Finding(
        subject=printable(subject),
        expected=printable(expected),
        found=printable(found),
        owner=printable(owner),
        technique=script.technique,
    )


def _texts(parts: object, size: int) -> list[str]:
    if not isinstance(parts, list) or len(parts) != size or not all(isinstance(part, str) for part in parts):
        raise TypeError
    return parts


def _count(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < _COUNT:
        raise ValueError
    return value
