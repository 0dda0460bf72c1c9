"""systemd's log beside the firmware's: which of its records the PCR values contain."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from affiant.appraisal.boot_description import Proof
from affiant.appraisal.boot_facts import Trust
from affiant.boot.story import Sentence
from affiant.boot.text import ranges
from affiant.model.errors import MalformedError
from affiant.tpm.algorithms import HashAlgorithm
from affiant.tpm.cel import UserspaceLog, UserspaceRecord
from affiant.tpm.event_log import EventLog
from affiant.tpm.replay import replay_values

__all__ = [
    "UserspaceExplanation",
    "explain_userspace",
    "first_records",
    "tell_userspace",
    "userspace_as_json",
]

_SEPARATOR: Final = b"\x1e"
_SHOWN: Final = 32


@dataclass(frozen=True, slots=True)
class UserspaceExplanation:
    """A userspace log against PCR values.

    The first `included` records were measured by then, as far as they are for the PCRs in `reached`: there
    both logs together lead to the value. PCRs in `unreached` have a value to which they do not lead.
    `proof` tells what these values are worth; with a quote the caller verifies the replay once more.
    """

    log: UserspaceLog
    bank: HashAlgorithm
    proof: Proof
    included: int
    reached: frozenset[int]
    unreached: frozenset[int]

    def log_of_included(self) -> UserspaceLog:
        """The log up to what the values contain."""
        return replace(self.log, records=self.log.records[: self.included])

    def is_proven(self, record: UserspaceRecord) -> bool:
        """Whether a quoted PCR contains this record's digest."""
        return self.proof is Proof.QUOTE and record.index < self.included and record.pcr in self.reached

    def told(self, record: UserspaceRecord) -> tuple[bool, str, bool, bool]:
        """Whether a record is of a PCR, its text, whether that is what was measured, and in a quoted PCR."""
        return record.pcr is not None, record.text, self.covers_text(record), self.is_proven(record)

    def covers_text(self, record: UserspaceRecord) -> bool:
        """Whether the record's digest is that of its text: of a volume's key, for one, it is not."""
        return record.digests.get(int(self.bank)) == self.bank.digest(record.text.encode())


def explain_userspace(
    userspace: UserspaceLog,
    log: EventLog,
    *,
    bank: HashAlgorithm,
    proof: Proof,
    values: Mapping[int, bytes],
) -> UserspaceExplanation:
    """Find how many records of `userspace` the PCR `values` contain after the firmware's `log`.

    systemd goes on measuring after the values were read, so it may be a part; where several parts lead to
    the values, it is the longest. Nothing is verified here. Raises MalformedError for a record without a
    digest of `bank`.
    """
    candidates = {record.pcr for record in userspace.records if record.pcr is not None} & values.keys()
    state = replay_values(log, bank=bank, pcrs=candidates)
    last = {pcr: 0 for pcr in candidates if state[pcr] == values[pcr]}
    for record in userspace.records:
        if record.pcr is None or record.pcr not in state:
            continue
        digest = record.digests.get(int(bank))
        if digest is None:
            raise MalformedError(f"userspace log: record {record.index} has no {bank.title} digest")
        state[record.pcr] = bank.digest(state[record.pcr] + digest)
        if state[record.pcr] == values[record.pcr]:
            last[record.pcr] = record.index + 1
    return UserspaceExplanation(
        log=userspace,
        bank=bank,
        proof=proof,
        included=max(last.values(), default=0),
        reached=frozenset(last),
        unreached=frozenset(candidates - last.keys()),
    )


def first_records(log: bytes, count: int) -> bytes:
    """Return the octets of a log's first records (RFC 7464: each begins with a separator)."""
    return b"".join(_SEPARATOR + record for record in log.split(_SEPARATOR)[1 : count + 1])


def tell_userspace(explanation: UserspaceExplanation | None) -> Iterator[Sentence]:
    """Yield what user space measured, in its order; nothing without a log."""
    if explanation is None:
        return
    records = explanation.log.records
    yield Sentence(f"User space measured {len(records)} times, says systemd's log.", False)
    for record, pcrs in _together(explanation, records[:_SHOWN]):
        where = f"PCR {ranges(pcrs)}" if pcrs else "an NV index"
        if explanation.covers_text(record):
            yield Sentence(f"systemd measured {record.text!r} into {where}.", explanation.is_proven(record))
        else:
            text = f"systemd measured into {where} what its log does not hold (it says: {record.text!r})."
            yield Sentence(text, False)
    if len(records) > _SHOWN:
        yield Sentence(f"And {len(records) - _SHOWN} more (--json shows them).", False)
    for pcr in sorted(explanation.unreached):
        text = (
            f"Its records for PCR {pcr} do not lead to the value of that register: they are its word alone."
        )
        yield Sentence(text, False)


def _together(
    explanation: UserspaceExplanation, records: Iterable[UserspaceRecord]
) -> Iterator[tuple[UserspaceRecord, set[int]]]:
    """Records that say the same of one PCR after the other, as one: the first of them, and their PCRs.

    A separator is measured into a dozen. Whatever stands twice for one PCR is told twice.
    """
    first: UserspaceRecord | None = None
    pcrs: set[int] = set()
    for record in records:
        same = first is not None and explanation.told(first) == explanation.told(record)
        if same and record.pcr is not None and record.pcr not in pcrs:
            pcrs.add(record.pcr)
            continue
        if first is not None:
            yield first, pcrs
        first, pcrs = record, set() if record.pcr is None else {record.pcr}
    if first is not None:
        yield first, pcrs


def userspace_as_json(explanation: UserspaceExplanation | None) -> dict[str, Any] | None:
    """Return the JSON object; digest and text of a record have a trust each, its kind is untrusted."""
    if explanation is None:
        return None
    return {
        "records": len(explanation.log.records),
        "truncated": explanation.log.truncated,
        "rests_on": explanation.proof.value,
        "reached_pcrs": sorted(explanation.reached),
        "unreached_pcrs": sorted(explanation.unreached),
        "list": [_record(explanation, record) for record in explanation.log.records],
    }


def _record(explanation: UserspaceExplanation, record: UserspaceRecord) -> dict[str, Any]:
    proven, digest = explanation.is_proven(record), record.digests.get(int(explanation.bank))
    return {
        "index": record.index,
        "pcr": record.pcr,
        "kind": {"value": record.kind, "trust": Trust.UNTRUSTED.value},
        "digest": {"value": None if digest is None else digest.hex(), "trust": _trust(proven)},
        "text": {"value": record.text, "trust": _trust(proven and explanation.covers_text(record))},
    }


def _trust(proven: bool) -> str:
    trust = Trust.VERIFIED if proven else Trust.UNTRUSTED
    return str(trust.value)
