"""Bringing a runtime report within the bounds of its message.

What a guest does decides how much there is to tell. A guest must not be able to silence its monitor
by giving it too much to say: texts are cut, findings beyond the first are counted instead of told,
but every assertion and every violation stays in the report.
"""

from __future__ import annotations

from dataclasses import replace

from affiant.model.finding import Finding
from affiant.model.runtime_report import AssertionReport, RulesFreshness, RuntimeReport, Violation
from affiant.wire.plain_text import plain
from affiant.wire.runtime_report import MAX_FINDINGS, MAX_RUNTIME_REPORT, MAX_TEXT

__all__ = ["STEPS", "fit", "fit_violation"]

STEPS = ((MAX_FINDINGS, MAX_TEXT), (4, MAX_TEXT), (1, MAX_TEXT), (1, 64), (1, 16))
"""Findings of each violation and characters of each text, from what the format allows to the least."""

# What certificates, signature and the claims of fixed size need, generously.
_REST = 24 << 10

# Heads and numbers of one row: nine items of nine bytes at most.
_ROW = 81


def fit(report: RuntimeReport) -> RuntimeReport:
    """Return `report` with its texts cut and its findings thinned out as far as it must be.

    Guaranteed: the first finding of each violation stays, with as many more as there is room for,
    `MAX_FINDINGS` at most; what is left out is counted in `more`; texts end in an ellipsis where
    cut, line breaks become spaces, and control characters and what has no encoding question marks. A
    report within the bounds is returned as it is.

    Names of assertions are not cut: they come from the rules, not from the guest.
    """
    fitted = report
    for findings, characters in STEPS:
        fitted = replace(
            report,
            freshness=_fit_freshness(report.freshness),
            assertions=tuple(_fit_assertion(each, characters) for each in report.assertions),
            violations=tuple(fit_violation(each, findings, characters) for each in report.violations),
        )
        if _size(fitted) <= MAX_RUNTIME_REPORT - _REST:
            break
    return fitted


def _fit_freshness(freshness: RulesFreshness | None) -> RulesFreshness | None:
    return None if freshness is None else replace(freshness, trouble=_cut(freshness.trouble, MAX_TEXT))


def _fit_assertion(assertion: AssertionReport, characters: int) -> AssertionReport:
    return replace(assertion, reason=_cut(assertion.reason, characters))


def fit_violation(violation: Violation, most: int, characters: int) -> Violation:
    """Return `violation` with at most `most` findings, the rest counted, of texts of so many `characters`."""
    return replace(
        violation,
        findings=tuple(_fit_finding(each, characters) for each in violation.findings[:most]),
        more=violation.more + max(0, len(violation.findings) - most),
    )


def _fit_finding(finding: Finding, characters: int) -> Finding:
    return Finding(
        subject=_cut(finding.subject, characters) or "?",
        expected=_cut(finding.expected, characters),
        found=_cut(finding.found, characters),
        owner=_cut(finding.owner, characters),
        technique=_cut(finding.technique, characters),
    )


def _cut(text: str, characters: int) -> str:
    said = plain(text)
    return said if len(said) <= characters else said[: characters - 1] + "…"


def _size(report: RuntimeReport) -> int:
    assertions = sum(_ROW + _length(each.name, each.reason) for each in report.assertions)
    violations = sum(_ROW + _length(each.assertion) for each in report.violations)
    findings = sum(
        _ROW + _length(finding.subject, finding.expected, finding.found, finding.owner, finding.technique)
        for each in report.violations
        for finding in each.findings
    )
    return assertions + violations + findings


def _length(*texts: str) -> int:
    return sum(len(text.encode("utf-8")) for text in texts)
