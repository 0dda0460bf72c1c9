"""From files to an explanation: verify what can be, describe, judge; the order is the whole point."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Final

from affiant.appraisal.boot_description import (
    BootDescription,
    Proof,
    bank_of,
    describe_untrusted_boot,
    describe_verified_boot,
    of_verified_boot,
    strongest_bank,
)
from affiant.appraisal.boot_judgement import BootVerdict, judge_boot
from affiant.appraisal.boot_level import BootLevel, judge_boot_level
from affiant.appraisal.policy import AppraisalPolicy
from affiant.boot.evidence import BootEvidence
from affiant.boot.ima_list import ImaExplanation, explain_ima, read_ima_list
from affiant.boot.trust_points import last_trust_point, verify_last_trust_point
from affiant.boot.userspace import UserspaceExplanation, explain_userspace, first_records
from affiant.model.errors import ForgedError, MalformedError, SetupError
from affiant.tpm.algorithms import HashAlgorithm
from affiant.tpm.attest import QuoteInfo, parse_attest
from affiant.tpm.attestation_key import STRONG_HASHES, AttestationKey, verify_attestation_key
from affiant.tpm.boot_state import BOOT_PCRS, verify_boot
from affiant.tpm.cel import UserspaceLog, append_userspace_log, parse_userspace_log
from affiant.tpm.event_log import EventLog, parse_event_log
from affiant.tpm.ima import IMA_PCR, ImaList
from affiant.tpm.os_separator import os_separated
from affiant.tpm.quote import VerifiedQuote, verify_quote
from affiant.tpm.replay import replay_values
from affiant.tpm.windows.configuration_log import is_windows_log
from affiant.tpm.windows.trust_point import TrustPoint

__all__ = ["Explanation", "explain_boot"]

_PARTS: Final = "a quote is verified by its signature, the key that made it, and the nonce that it answers"


@dataclass(frozen=True, slots=True)
class Explanation:
    """One boot explained.

    `refused` says why the evidence is forged, and the description is then of what the log says; None where
    nothing speaks against it. `unused` names evidence that was there and could not be used. `verdict` is
    None without a policy, `ima` and `userspace` without such a list and log.
    `trust_point` is the one in the log whose quote `quote` is, None where the quote came beside the log; its
    `extra_data` is empty, since nobody's challenge is in it.
    """

    log: EventLog
    description: BootDescription
    quote: VerifiedQuote | None
    level: BootLevel
    verdict: BootVerdict | None
    refused: str | None
    unused: str
    ima: ImaExplanation | None = None
    userspace: UserspaceExplanation | None = None
    trust_point: TrustPoint | None = None

    @property
    def is_welcome(self) -> bool:
        """Whether nothing was refused: neither the evidence nor, where there is one, by the policy."""
        return self.refused is None and (self.verdict is None or self.verdict.accepted)


def explain_boot(
    evidence: BootEvidence,
    *,
    nonce: bytes | None,
    policy: AppraisalPolicy | None,
    unsafe_accept_sha1: bool = False,
) -> Explanation:
    """Verify and describe one boot, and judge it by `policy` if there is one.

    `nonce` is what the quote must answer. What holds then: the description is proven only where the quote
    verifies under the key given, for that nonce, and the log replays onto it; a description without a
    quote is untrusted from end to end. `unsafe_accept_sha1` lets a SHA-1 bank and SHA-1 signatures
    count as proof, which they are not against somebody who can make collisions.

    Raises MalformedError when the evidence cannot be read, SetupError when parts of a quote are missing.
    """
    log = parse_event_log(evidence.log)
    rules = policy or AppraisalPolicy()
    running = _running_system(evidence, log)
    quote, unused, refused, trust_point = None, "", None, None
    try:
        if evidence.quote is None and evidence.attestation_key is not None:
            trust_point = last_trust_point(log)
        if trust_point is not None:
            quote = _quote_of_trust_point(
                evidence, log, trust_point, nonce=nonce, unsafe_accept_sha1=unsafe_accept_sha1
            )
        else:
            quote, unused = _quote(
                evidence, running.joined(log), nonce=nonce, unsafe_accept_sha1=unsafe_accept_sha1
            )
        bank = bank_of(log, evidence.values or {}) if quote is None else quote.bank
        values = _values(evidence, quote, bank)
        userspace, later = None, frozenset[int]()
        if running.userspace is not None:
            proof = Proof.QUOTE if quote else Proof.UNSIGNED_VALUES if values else Proof.NOTHING
            userspace = explain_userspace(running.userspace, log, bank=bank, proof=proof, values=values)
            later = userspace.reached
        if quote is not None:
            description = describe_verified_boot(quote, evidence.log, policy=rules, later=later)
        else:
            description = describe_untrusted_boot(log, policy=rules, values=evidence.values, later=later)
        if userspace is not None:
            description = _with_userspace(
                description, userspace, evidence=evidence, log=log, quote=quote, rules=rules
            )
        ima = None
        if running.ima is not None:
            ima = explain_ima(
                running.ima,
                quote,
                bank=bank,
                values=values,
                at_start=_values_at_start(log, description),
            )
    except ForgedError as error:
        refused, quote, trust_point = str(error), None, None
        description = _as_told(log, rules, refused)
        bank = description.boot.bank
        userspace, ima = None, None
        if running.userspace is not None:
            userspace = explain_userspace(running.userspace, log, bank=bank, proof=Proof.NOTHING, values={})
        if running.ima is not None:
            ima = explain_ima(running.ima, None, bank=bank, values={}, at_start={})
    return Explanation(
        log=log,
        description=description,
        quote=quote,
        level=judge_boot_level(description, quote=quote, policy=rules),
        verdict=None if policy is None else judge_boot(description, policy),
        refused=refused,
        unused=unused,
        ima=ima,
        userspace=userspace,
        trust_point=trust_point,
    )


@dataclass(frozen=True, slots=True)
class _RunningSystem:
    """Unverified: what was measured after the firmware's log ended."""

    ima: ImaList | None
    userspace: UserspaceLog | None

    def joined(self, log: EventLog) -> EventLog:
        return log if self.userspace is None else append_userspace_log(log, self.userspace)


def _running_system(evidence: BootEvidence, log: EventLog) -> _RunningSystem:
    ima, userspace = evidence.ima_list, evidence.userspace_log
    if (ima is not None or userspace is not None) and is_windows_log(log):
        raise SetupError("the event log is of Windows, which has neither IMA's list nor systemd's log")
    return _RunningSystem(
        None if ima is None else read_ima_list(ima),
        None if userspace is None else parse_userspace_log(userspace),
    )


def _values(evidence: BootEvidence, quote: VerifiedQuote | None, bank: HashAlgorithm) -> Mapping[int, bytes]:
    """The PCR values to replay onto: the quoted ones, else those that nobody signed."""
    return (evidence.values or {}).get(bank, {}) if quote is None else quote.pcrs


def _values_at_start(log: EventLog, description: BootDescription) -> Mapping[int, bytes]:
    """The boot's PCRs as the operating system found them: those that the log leads to, where it replays.

    systemd may have closed them with its separator since then.
    """
    replayed = description.replayed.intersection(BOOT_PCRS)
    return replay_values(log, bank=description.boot.bank, pcrs=replayed)


def _with_userspace(
    description: BootDescription,
    userspace: UserspaceExplanation,
    *,
    evidence: BootEvidence,
    log: EventLog,
    quote: VerifiedQuote | None,
    rules: AppraisalPolicy,
) -> BootDescription:
    """The boot described again, by both logs as one, where they reach values together."""
    if not userspace.included:
        return description
    included = userspace.log_of_included()
    if quote is None or evidence.userspace_log is None:
        joined = append_userspace_log(log, included)
        return describe_untrusted_boot(joined, policy=rules, values=evidence.values)
    boot = verify_boot(
        quote,
        evidence.log,
        required_pcrs=description.replayed | userspace.reached,
        userspace_log=first_records(evidence.userspace_log, userspace.included),
    )
    together = of_verified_boot(boot, policy=rules)
    return replace(together, unreplayed=frozenset(quote.pcrs.keys() - together.replayed))


def _as_told(log: EventLog, rules: AppraisalPolicy, refused: str) -> BootDescription:
    """What a refused log says, for people; a log that contradicts itself says nothing."""
    try:
        return describe_untrusted_boot(log, policy=rules)
    except ForgedError:
        raise ForgedError(refused) from None


def _quote_of_trust_point(
    evidence: BootEvidence,
    log: EventLog,
    trust_point: TrustPoint,
    *,
    nonce: bytes | None,
    unsafe_accept_sha1: bool,
) -> VerifiedQuote:
    """The quote that Windows took of this log and kept in it, verified."""
    if nonce is not None or evidence.signature is not None:
        raise SetupError(
            "a trust point brings its own quote and signature, and answers no nonce",
            hint="give --quote with --signature and --nonce, or --ak alone",
        )
    key = _key(evidence.attestation_key or b"", unsafe_accept_sha1=unsafe_accept_sha1)
    quote = verify_last_trust_point(log, trust_point, key=key, unsafe_accept_sha1=unsafe_accept_sha1)
    for bank, values in (evidence.values or {}).items():
        if bank is quote.bank and any(values.get(pcr, own) != own for pcr, own in quote.pcrs.items()):
            raise ForgedError("trust point: the PCR values given are not those that it quotes")
    return quote


def _key(public: bytes, *, unsafe_accept_sha1: bool) -> AttestationKey:
    hashes = STRONG_HASHES | ({HashAlgorithm.SHA1} if unsafe_accept_sha1 else set())
    try:
        return verify_attestation_key(public, allowed_hashes=frozenset(hashes))
    except MalformedError as error:
        # Of a PEM file, or of the wrong one, it says that some length in it is beyond its bound.
        raise MalformedError(
            f"attestation key: {error}", hint="--ak takes a TPM2B_PUBLIC, as tpm2_readpublic -o writes it"
        ) from error


def _quote(
    evidence: BootEvidence, log: EventLog, *, nonce: bytes | None, unsafe_accept_sha1: bool
) -> tuple[VerifiedQuote | None, str]:
    """The verified quote, or None and why the one that is there cannot be verified."""
    if evidence.quote is None:
        if nonce is not None:
            raise SetupError("a nonce without a quote proves nothing", hint=_PARTS)
        return None, ""
    if evidence.signature is None or evidence.attestation_key is None or nonce is None:
        parts = {"signature": evidence.signature, "key": evidence.attestation_key, "nonce": nonce}
        missing = " and ".join(name for name, part in parts.items() if part is None)
        return None, f"There is a quote, without {missing}: {_PARTS}."
    key = _key(evidence.attestation_key, unsafe_accept_sha1=unsafe_accept_sha1)
    parsed = parse_attest(evidence.quote).attested
    if not isinstance(parsed, QuoteInfo):
        raise ForgedError("quote: the signed structure is a certification, not a quote")
    selected = {selection.bank: selection.pcrs for selection in parsed.selections if selection.pcrs}
    bank = _bank(log, frozenset(selected))
    if bank is HashAlgorithm.SHA1 and not unsafe_accept_sha1:
        raise ForgedError("quote: only its SHA-1 bank has the log's events, and SHA-1 is no proof any more")
    # Values that nobody handed over are those that the log leads to: the signed digest decides.
    if evidence.ima_list is not None and IMA_PCR in selected[bank] and not (evidence.values or {}).get(bank):
        raise SetupError(
            "IMA's list goes on growing: what its PCR was when it was quoted, the list cannot tell",
            hint="give the PCR values that were read with the quote, with --pcrs",
        )
    values: dict[HashAlgorithm, Mapping[int, bytes]] = {
        one: (evidence.values or {}).get(one) or replay_values(log, bank=one, pcrs=pcrs)
        for one, pcrs in selected.items()
    }
    refusals = []
    guesses = [values] if evidence.values else [values, *_os_separated(values)]
    for guess in guesses:
        chosen = guess.pop(bank)
        try:
            verified = verify_quote(
                evidence.quote,
                evidence.signature,
                attestation_key=key,
                expected_extra_data=nonce,
                pcrs=chosen,
                bank=bank,
                other_banks=guess,
            )
        except ForgedError as error:
            refusals.append(error)
        else:
            return verified, ""
    raise refusals[0]


def _os_separated(
    values: Mapping[HashAlgorithm, Mapping[int, bytes]],
) -> Iterator[dict[HashAlgorithm, Mapping[int, bytes]]]:
    """What the log leads to, with systemd's first separators after it, and then with all of them."""
    for last in (1, None):
        yield {
            bank: {
                pcr: (value, *os_separated(pcr, value, bank=bank)[:last])[-1] for pcr, value in pcrs.items()
            }
            for bank, pcrs in values.items()
        }


def _bank(log: EventLog, selected: frozenset[HashAlgorithm]) -> HashAlgorithm:
    """The bank to replay in: the log's own where it is quoted, else the strongest that is."""
    if not selected:
        raise ForgedError("quote: its signed selection is empty")
    own = strongest_bank(log)
    return own if own in selected else max(selected)
