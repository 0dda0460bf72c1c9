"""IMA's list explained: which files a running kernel measured, as far as PCR 10 tells."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from affiant.appraisal.boot_description import Proof
from affiant.appraisal.boot_facts import Trust
from affiant.boot.story import Sentence
from affiant.model.errors import ForgedError, MalformedError
from affiant.tpm.algorithms import HashAlgorithm
from affiant.tpm.ima import (
    IMA_PCR,
    ImaList,
    VerifiedImaList,
    expected_boot_aggregate,
    parse_ima_list,
    replay_ima_list,
    unproven_prefix,
)
from affiant.tpm.ima_template import TEMPLATES, ImaMeasurement, read_measurement
from affiant.tpm.quote import VerifiedQuote

__all__ = ["ImaExplanation", "explain_ima", "ima_as_json", "read_ima_list", "tell_ima"]

_SHOWN: Final = 6


@dataclass(frozen=True, slots=True)
class ImaExplanation:
    """A list with what is proven of it.

    `verified` is what a quoted PCR 10 contains, None where there is none; `unproven` then says why.
    `aggregate_matches`: whether the boot aggregate, IMA's first entry, is of the quoted boot PCRs; None
    where that cannot be told.
    """

    listed: ImaList
    verified: VerifiedImaList | None
    proof: Proof
    unproven: str
    aggregate_matches: bool | None

    @property
    def violations(self) -> tuple[int, ...]:
        """Places of entries of which the kernel says that it could not know what was read."""
        if self.verified is not None:
            return tuple(sorted(self.verified.violations))
        zeros = bytes(self.listed.algorithm.digest_size)
        return tuple(place for place, digest in enumerate(self.listed.digests) if digest == zeros)

    @property
    def unread(self) -> tuple[int, ...]:
        """Places of entries whose template is unknown here: any may hide a file."""
        if self.verified is not None:
            return tuple(sorted(self.verified.unread))
        violations = set(self.violations)
        return tuple(
            place
            for place, template in enumerate(self.listed.templates)
            if template not in TEMPLATES and place not in violations
        )

    def measurements(self) -> Iterator[ImaMeasurement]:
        """The proven measurements, or where nothing is proven those that the list tells.

        Raises MalformedError for one that is not as its template says.
        """
        if self.verified is not None:
            yield from self.verified.measurements()
            return
        left_out = {*self.violations, *self.unread}
        for place, (template, data) in enumerate(zip(self.listed.templates, self.listed.data, strict=True)):
            if place not in left_out:
                yield read_measurement(place, template, data)


def read_ima_list(octets: bytes) -> ImaList:
    """Read a list whose template digests are of SHA-1, or of the hash of a newer kernel's further files.

    Which one it is, the list does not say: under the wrong one its lengths make no sense. Raises
    MalformedError when they make none under any.
    """
    try:
        return parse_ima_list(octets)
    except MalformedError as error:
        for algorithm in (HashAlgorithm.SHA256, HashAlgorithm.SHA384, HashAlgorithm.SHA512):
            try:
                return parse_ima_list(octets, algorithm=algorithm)
            except MalformedError:
                continue
        raise error from None


def explain_ima(
    listed: ImaList,
    quote: VerifiedQuote | None,
    *,
    bank: HashAlgorithm,
    values: Mapping[int, bytes],
    at_start: Mapping[int, bytes],
) -> ImaExplanation:
    """Replay a list onto the quote's PCR 10, or onto the one in `values` of `bank` that nobody signed.

    `at_start` are the firmware's PCRs as Linux found them, proven as far as there is a quote.
    Raises ForgedError when there is such a value and no part of the list leads to it.
    """
    if quote is not None and IMA_PCR in quote.pcrs:
        verified = replay_ima_list(listed, quote)
        return ImaExplanation(listed, verified, Proof.QUOTE, "", _aggregate_matches(verified, at_start))
    if quote is not None:
        return _unproven(listed, Proof.NOTHING, f"the quote does not select PCR {IMA_PCR}")
    if IMA_PCR not in values:
        return _unproven(listed, Proof.NOTHING, f"there is no quote of PCR {IMA_PCR}")
    if unproven_prefix(listed, values[IMA_PCR], bank=bank) is None:
        raise ForgedError(f"IMA list: no part of it replays to the value shown of PCR {IMA_PCR}")
    return _unproven(listed, Proof.UNSIGNED_VALUES, "it replays onto a value that nobody signed")


def _unproven(listed: ImaList, proof: Proof, why: str) -> ImaExplanation:
    return ImaExplanation(listed, None, proof, why, None)


def _aggregate_matches(verified: VerifiedImaList, at_start: Mapping[int, bytes]) -> bool | None:
    """Whether every boot aggregate in the quoted bank's hash is of the PCRs with which Linux started."""
    bank = verified.bank
    told = [digest for name, digest in verified.boot_aggregates() if name == bank.title]
    try:
        expected = {
            expected_boot_aggregate(at_start, bank=bank, bank_has_grub=grub) for grub in (True, False)
        }
    except ValueError:
        return None  # not all of these PCRs were quoted
    return all(digest in expected for digest in told) if told else None


def tell_ima(explanation: ImaExplanation | None) -> Iterator[Sentence]:
    """Yield what a list tells; nothing without one."""
    if explanation is None:
        return
    verified = explanation.verified
    if verified is None:
        text = f"IMA's list names {len(explanation.listed.data)} measurements; {explanation.unproven}."
        yield Sentence(text, False)
    else:
        yield Sentence(f"The kernel measured {verified.count} files and buffers (IMA, PCR 10).", True)
        if verified.extended_with is HashAlgorithm.SHA1:
            yield Sentence("SHA-1 alone stands behind what they were.", True)
        if verified.not_yet_quoted:
            text = f"IMA's list has {verified.not_yet_quoted} more, measured later or invented."
            yield Sentence(text, False)
    if explanation.violations:
        names = ", ".join(_violation_names(explanation)[:_SHOWN])
        text = f"Of {len(explanation.violations)} files IMA could not know what was read (violations)"
        yield Sentence(f"{text}.", verified is not None)
        yield Sentence(f"They are said to be, among others: {names}.", False)
    if explanation.unread:
        text = f"{len(explanation.unread)} of IMA's entries have templates unknown here: any may hide a file."
        yield Sentence(text, verified is not None)
    if explanation.aggregate_matches is not None:
        state = "is of this boot" if explanation.aggregate_matches else "is NOT of the quoted boot PCRs"
        yield Sentence(f"IMA's boot aggregate {state}.", True)


def _violation_names(explanation: ImaExplanation) -> tuple[str, ...]:
    if explanation.verified is not None:
        return explanation.verified.violation_names()
    return tuple(_untrusted_name(explanation.listed, place) for place in explanation.violations)


def _untrusted_name(listed: ImaList, place: int) -> str:
    try:
        return read_measurement(place, listed.templates[place], listed.data[place]).path
    except MalformedError:
        return ""


def ima_as_json(explanation: ImaExplanation | None, *, entries: bool) -> dict[str, Any] | None:
    """Return the JSON object; with `entries` each measurement, whose third field has an unproven role."""
    if explanation is None:
        return None
    verified = explanation.verified
    trust = (Trust.UNTRUSTED if verified is None else Trust.VERIFIED).value
    document: dict[str, Any] = {
        "rests_on": explanation.proof.value,
        "unproven": explanation.unproven or None,
        "entries": len(explanation.listed.data),
        "measured": {
            "value": len(explanation.listed.data) if verified is None else verified.count,
            "trust": trust,
        },
        "extended_with": None if verified is None else verified.extended_with.title,
        "not_yet_quoted": None if verified is None else verified.not_yet_quoted,
        "violations": {"value": list(explanation.violations), "trust": trust},
        "violation_names": {
            "value": [_encodable(name) for name in _violation_names(explanation)],
            "trust": Trust.UNTRUSTED.value,
        },
        "unread": {"value": list(explanation.unread), "trust": trust},
        "boot_aggregate_matches": {"value": explanation.aggregate_matches, "trust": trust},
    }
    if entries:
        document["list"] = [
            {
                "place": one.place,
                "trust": trust,
                "path": _encodable(one.path),
                "digest": f"{one.algorithm}:{one.digest.hex()}",
                "third_field": None if one.third is None else one.third.hex(),
                "third_field_role": {"value": one.untrusted_role, "trust": Trust.UNTRUSTED.value},
            }
            for one in explanation.measurements()
        ]
    return document


def _encodable(path: str) -> str:
    """A path as JSON can hold it: octets that are no UTF-8 are spelled out."""
    return path.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
