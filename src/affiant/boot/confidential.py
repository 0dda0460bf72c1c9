"""A confidential machine's event log explained: it counts measurement registers where a TPM has PCRs.

Nothing here is ever proven. Registers are signed in a report of the trust module (a TD quote), and no
format of such reports is read here; `affiant.tpm.ccel.replay_cc_event_log` is for who has verified one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from affiant.appraisal.boot_facts import Trust
from affiant.boot.events import EventLine, list_unproven_events
from affiant.boot.text import printable, short_digest
from affiant.model.errors import MalformedError
from affiant.tpm.algorithms import HashAlgorithm
from affiant.tpm.binding import bind_event
from affiant.tpm.ccel import TDX_REGISTERS, parse_cc_event_log
from affiant.tpm.efi_variable import EFI_GLOBAL, parse_variable
from affiant.tpm.event_log import EventLog
from affiant.tpm.event_types import EventType
from affiant.tpm.replay import MeasuredEvent, replay_values

__all__ = [
    "ConfidentialExplanation",
    "Register",
    "confidential_as_json",
    "confidential_page",
    "explain_confidential_log",
]

_BANK: Final = HashAlgorithm.SHA384  # the only hash of TDX's registers
_SECURE_BOOT_REGISTER: Final = 1
_WHY: Final = (
    "a quote of a trust domain would sign these registers, and no such quote is read here: "
    "compare the values with those of a quote that you have verified"
)


@dataclass(frozen=True, slots=True)
class Register:
    """A measurement register: how often the log extends it, and the value to which that leads.

    `index` counts MRTD as 0, RTMR 0 as 1; `pcrs` are those for which it stands (UEFI 2.10, section 38.4.1).
    """

    index: int
    pcrs: tuple[int, ...]
    events: int
    untrusted_value: bytes

    @property
    def name(self) -> str:
        """The name that Intel's documents use."""
        return f"RTMR {self.index - 1}"


@dataclass(frozen=True, slots=True)
class ConfidentialExplanation:
    """Unverified: what the log says. `secure_boot` is None where it does not tell."""

    log: EventLog
    registers: tuple[Register, ...]
    secure_boot: bool | None


def explain_confidential_log(log: bytes) -> ConfidentialExplanation | None:
    """Explain a log of measurement registers; None if its form is not that of one.

    Such a log names no register above 4, measures nothing into register 0 (MRTD is fixed when the domain is
    built, while a TPM's log begins with PCR 0), and has a SHA-384 digest for every event. Raises
    ForgedError for a log that contradicts itself.
    """
    try:
        parsed = parse_cc_event_log(log)
    except MalformedError:
        return None
    measured = [event for event in parsed.events if event.type != EventType.NO_ACTION]
    if not measured or any(event.pcr == 0 or int(_BANK) not in event.digests for event in measured):
        return None
    indices = sorted({event.pcr for event in measured} | set(TDX_REGISTERS.values()) - {0})
    values = replay_values(parsed, bank=_BANK, pcrs=indices)
    registers = tuple(
        Register(
            index=index,
            pcrs=tuple(sorted(pcr for pcr, register in TDX_REGISTERS.items() if register == index)),
            events=sum(event.pcr == index for event in measured),
            untrusted_value=values[index],
        )
        for index in indices
    )
    return ConfidentialExplanation(parsed, registers, _secure_boot(parsed))


def _secure_boot(log: EventLog) -> bool | None:
    """What the log says of Secure Boot: its first such variable, if the digest beside it is of its data."""
    for event in log.events:
        if event.pcr != _SECURE_BOOT_REGISTER or event.type != EventType.EFI_VARIABLE_DRIVER_CONFIG:
            continue
        digest = event.digests[int(_BANK)]
        claimed = MeasuredEvent(event.index, event.pcr, digest, event.type, event.data)
        covered = bind_event(claimed, bank=_BANK).covered
        if covered is None:
            continue
        try:
            variable = parse_variable(covered)
        except MalformedError:
            continue
        if (variable.vendor, variable.name) == (EFI_GLOBAL, "SecureBoot"):
            return variable.content == b"\x01"
    return None


def confidential_as_json(explanation: ConfidentialExplanation, *, log: bytes, events: bool) -> dict[str, Any]:
    """Return the JSON object; nothing in it is verified."""
    document: dict[str, Any] = {
        "system": "confidential",
        "refused": None,
        "log": {
            "sha256": hashlib.sha256(log).hexdigest(),
            "events": len(explanation.log.events),
            "bank": _BANK.title,
            "truncated": explanation.log.truncated,
        },
        "proof": {"rests_on": "nothing", "unused": _WHY},
        "registers": [
            {
                "index": register.index,
                "name": register.name,
                "pcrs": list(register.pcrs),
                "events": register.events,
                "value": _untrusted(register.untrusted_value.hex()),
            }
            for register in explanation.registers
        ],
        "facts": {
            "secure_boot_enabled": _untrusted(explanation.secure_boot) | {"source": "RTMR 0: SecureBoot"}
        },
    }
    if events:
        document["events"] = [
            {
                "index": line.index,
                "register": line.pcr,
                "type": _untrusted(line.type),
                "digest": None if line.digest is None else _untrusted(line.digest.hex()),
                "data": _untrusted(line.text) | {"covered": line.covers},
            }
            for line in _lines(explanation)
        ]
    return document


def confidential_page(explanation: ConfidentialExplanation, *, events: bool) -> Iterator[str]:
    """Yield the lines of a page for people, all of them printable."""
    yield f"Boot of a confidential machine: {len(explanation.log.events)} events, {_BANK.title}"
    yield ""
    yield "WHAT THIS RESTS ON"
    yield f"  Nothing: {_WHY}."
    yield ""
    yield "REGISTERS       to which the log leads, if nothing else was measured"
    for register in explanation.registers:
        pcrs = ", ".join(map(str, register.pcrs)) or "none"
        yield f"  ? {register.name}, for PCR {pcrs}: {register.events} events"
        yield f"      {register.untrusted_value.hex()}"
    yield ""
    yield "FACTS"
    told = {True: "yes", False: "NO", None: "not told"}[explanation.secure_boot]
    yield f"  ? secure_boot_enabled  {told}"
    if events:
        yield ""
        yield "EVENTS          nothing is proven"
        for line in _lines(explanation):
            digest = "-" if line.digest is None else short_digest(line.digest)
            text = printable(line.text, limit=100)
            yield f"  ? {line.index:>4} register {line.pcr} {line.type:<32} {digest:<18} {text}"


def _lines(explanation: ConfidentialExplanation) -> tuple[EventLine, ...]:
    return list_unproven_events(explanation.log, bank=_BANK)


def _untrusted(value: object) -> dict[str, Any]:
    return {"value": value, "trust": Trust.UNTRUSTED.value}
