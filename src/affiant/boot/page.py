"""An explanation as a page for people."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from affiant.appraisal.boot_description import Proof
from affiant.appraisal.boot_facts import ONLY_WINDOWS, Trust
from affiant.appraisal.boot_judgement import BootVerdict
from affiant.boot.events import list_events
from affiant.boot.explain import Explanation
from affiant.boot.ima_list import tell_ima
from affiant.boot.story import tell
from affiant.boot.text import printable, ranges, short_digest
from affiant.boot.userspace import tell_userspace
from affiant.model.finding import Finding

__all__ = ["explanation_page", "finding_lines", "verdict_lines"]

_VALUES: Mapping[bool | None, str] = {True: "yes", False: "NO", None: "not told"}
_SHOWN_FINDINGS = 20


def explanation_page(explanation: Explanation, *, events: bool) -> Iterator[str]:
    """Yield the lines of the page, all of them printable."""
    description = explanation.description
    kind = "Windows" if description.windows is not None else "UEFI"
    bank = description.boot.bank.title
    yield f"Boot of a {kind} machine: {len(explanation.log.events)} events, {bank} bank"
    yield ""
    yield "WHAT THIS RESTS ON"
    yield from ("  " + printable(line, limit=600) for line in _ground(explanation))
    yield ""
    yield "THE STORY          + proven   ? said by the log, and by nothing else"
    for sentence in (*tell(description), *tell_userspace(explanation.userspace), *tell_ima(explanation.ima)):
        yield f"  {'+' if sentence.proven else '?'} {printable(sentence.text, limit=2000)}"
    yield ""
    yield "FACTS"
    told = [fact for fact in description.facts if fact.source != ONLY_WINDOWS]
    for fact in told:
        mark = "+" if fact.trust is Trust.VERIFIED and fact.value is not None else "?"
        yield f"  {mark} {fact.name:<36} {_VALUES[fact.value]:<9} {printable(fact.source)}"
    if untold := len(description.facts) - len(told):
        yield f"  and {untold} that only Windows measures (--json shows them)"
    yield ""
    yield from _level(explanation)
    if explanation.verdict is not None:
        yield ""
        yield from verdict_lines(
            explanation.verdict, proven=description.is_proven and not explanation.refused
        )
    if events:
        yield ""
        yield from _events(explanation)


def verdict_lines(verdict: BootVerdict, *, proven: bool) -> Iterator[str]:
    """Yield what a policy says; `proven`: whether a verified quote stands behind the boot."""
    if verdict.accepted and proven:
        yield f"POLICY: accepted, {verdict.looked_at} rules hold"
    elif verdict.accepted:
        yield f"POLICY: {verdict.looked_at} rules hold, of a log that NOTHING PROVES: this accepts no machine"
    elif not verdict.looked_at:
        yield "POLICY: refused, no rule of it applies to this boot"
    else:
        yield f"POLICY: refused, {len(verdict.findings)} findings"
    yield from finding_lines(verdict.findings)


def finding_lines(findings: tuple[Finding, ...]) -> Iterator[str]:
    """Yield one line for each finding, up to twenty."""
    for finding in findings[:_SHOWN_FINDINGS]:
        yield "  - " + printable(f"{finding.subject}: expected {finding.expected}, found {finding.found}")
    if len(findings) > _SHOWN_FINDINGS:
        yield f"  - and {len(findings) - _SHOWN_FINDINGS} more"


def _ground(explanation: Explanation) -> Iterable[str]:
    description, quote = explanation.description, explanation.quote
    if explanation.refused is not None:
        yield f"REFUSED: {explanation.refused}"
        yield "Below is what the log says all the same. Believe none of it."
        return
    if quote is not None:
        point = explanation.trust_point
        kept = "Its own trust point, a" if point is not None else "A"
        key = short_digest(quote.key_name)
        yield f"{kept} quote by the attestation key {key}, which you named, verifies."
        if point is not None:
            yield f"Windows took it when it had booted, with the key that it calls {point.key_name!r}."
        yield (
            f"It answers the nonce {quote.extra_data.hex()}."
            if quote.extra_data
            else "It answers no nonce, so it may be of any time."
        )
        yield f"The log replays onto the signed values of PCR {ranges(description.replayed)}."
        if description.unreplayed:
            left = ranges(description.unreplayed)
            yield f"PCR {left}: quoted, not reached by the log, and used for nothing."
        yield "Whether that key lives in a TPM, only enrolment with a service proves."
        return
    if description.proof is Proof.UNSIGNED_VALUES:
        yield f"The log replays onto unsigned PCR values, of PCR {ranges(description.replayed)}:"
        yield "it was not mixed up with another, and nothing of it is proven."
    else:
        yield "Nothing. There is no quote: the log is the word of whoever wrote it."
    if explanation.unused:
        yield explanation.unused


def _level(explanation: Explanation) -> Iterator[str]:
    level = explanation.level
    yield f"LEVEL {int(level.level)}, {level.level.title}"
    if level.assumed:
        yield f"  taken as given, on your word: {', '.join(level.assumed)}"
    next_level = min((int(one.level) for one in level.shortfalls), default=None)
    for one in level.shortfalls:
        if int(one.level) == next_level:
            text = f"to level {int(one.level)}: {one.claim}: {one.explanation}"
            yield "  " + printable(text, limit=600)
    later = sum(int(one.level) != next_level for one in level.shortfalls)
    if later:
        yield f"  and {later} requirements of higher levels (--json shows them)"


def _events(explanation: Explanation) -> Iterator[str]:
    yield "EVENTS          + data proven   # digest proven, data not   ? nothing proven"
    for line in list_events(explanation.log, explanation.description):
        mark = "?"
        if line.digest_trust is Trust.VERIFIED:
            mark = "+" if line.data_trust is Trust.VERIFIED else "#"
        digest = "-" if line.digest is None else short_digest(line.digest)
        pcr = "-" if line.pcr > 23 else str(line.pcr)  # notes of no PCR have index 0xffffffff
        text = printable(line.text, limit=100)
        yield f"  {mark} {line.index:>4} PCR {pcr:>2} {line.type:<32} {digest:<18} {text}"
