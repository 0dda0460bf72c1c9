"""Level 1: is there a TPM that the operator trusts, and does it speak now, about this boot?

What establishes it: the attestation key was enrolled by credential activation; its endorsement
certificate is verified again at each appraisal, so that trust taken back counts at once; the quote
covers challenge and enclave report (TPM 2.0 Library, Part 3, 18.4); the log replays onto it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from cryptography import x509

from affiant.appraisal.attester import Attester
from affiant.appraisal.enrolled_key import BootCounters, EnrolledKey
from affiant.appraisal.levels import Judgement
from affiant.appraisal.policy import AppraisalPolicy
from affiant.model.challenge import Challenge
from affiant.model.errors import EvidenceError, ForgedError
from affiant.model.evidence import QuoteEvidence
from affiant.tpm.attestation_key import verify_attestation_key
from affiant.tpm.boot_state import VerifiedBoot, verify_boot
from affiant.tpm.endorsement import verify_endorsement
from affiant.tpm.quote import VerifiedQuote, verify_quote
from affiant.wire.evidence import quote_binding

__all__ = ["NEVER_LAUNCHED", "Root", "claimed_key_name", "establish_root"]

_LAUNCH_PCR = 17

NEVER_LAUNCHED = (b"\xff" * 32, bytes(32))
"""PCR 17 without a D-RTM launch (PC Client Platform TPM Profile, section 4.6.2): ones after a reset, zeros
where a launch was begun and abandoned."""


@dataclass(frozen=True, slots=True)
class Root:
    """What a trusted TPM says; `quote` and `boot` are None where nothing trusted was said.

    `recognised` tells whether the attestation key is enrolled, None when no key was shown.
    """

    judgements: tuple[Judgement, ...]
    quote: VerifiedQuote | None
    boot: VerifiedBoot | None
    recognised: bool | None

    @property
    def counters(self) -> BootCounters | None:
        """The TPM's counters as quoted, without the restart that the D-RTM launch itself counts as.

        A TPM counts in restartCount resumes and each _TPM_Hash_Start since its reset (TPM 2.0 Part 2,
        section 10.11.1, and seen on libtpms). The launcher runs one for each reset, and a guest none.
        """
        if self.quote is None:
            return None
        info = self.quote.clock_info
        launches = int(self.launch is not None and self.launch not in NEVER_LAUNCHED)
        return BootCounters(info.reset_count, max(0, info.restart_count - launches), info.clock)

    @property
    def launch(self) -> bytes | None:
        """The quoted value of PCR 17."""
        return None if self.quote is None else self.quote.pcrs.get(_LAUNCH_PCR)


def claimed_key_name(evidence_quote: QuoteEvidence) -> bytes:
    """Return the TPM name of the attestation key that a quote shows, to look it up by.

    What holds: the key has the attributes of an attestation key. Raises an EvidenceError otherwise.
    """
    return verify_attestation_key(evidence_quote.ak_public).name


def establish_root(
    attester: Attester,
    *,
    challenge: Challenge,
    enrolled: EnrolledKey | None,
    anchors: Sequence[x509.Certificate],
    policy: AppraisalPolicy,
    now: int,
) -> Root:
    """Return the claims of level 1 with the quote and boot that they make trustworthy.

    `enrolled` is what the service knows under the name of the key shown, None if it knows nothing.

    What holds for `quote` and `boot` where they are not None: the key is enrolled, its endorsement
    leads to one of `anchors` at `now`, the quote is by that key over this challenge and this enclave
    report, and covers every PCR that the policy requires; `boot` also replays onto it.

    Raises an EvidenceError when the quote, its key or the log is forged or malformed.
    """
    shown = attester.evidence.quote
    if shown is None:
        return _nothing("the guest has no TPM, or its TPM does not answer")
    attestation_key = verify_attestation_key(shown.ak_public)
    if enrolled is not None and enrolled.name != attestation_key.name:
        raise ValueError("the enrolled key is another one than the key shown")
    # A quote that does not even verify under the key beside it is forged, enrolled or not.
    quote = verify_quote(
        shown.attest,
        shown.signature,
        attestation_key=attestation_key,
        expected_extra_data=quote_binding(
            challenge=challenge.digest, enclave_report=attester.enclave_report.digest
        ),
        pcrs=dict(shown.pcrs),
    )
    if enrolled is None:
        return _unrecognised("the attestation key is not enrolled with this service")
    endorsement = _judge_endorsement(enrolled, anchors=anchors, now=now)
    if endorsement.value is not True:
        return _untrusted(endorsement)
    if missing := sorted(set(policy.required_pcrs) - quote.pcrs.keys()):
        names = ", ".join(str(index) for index in missing)
        raise ForgedError(f"quote: it does not cover PCR {names}, which the challenge asked for")
    judgements = (
        Judgement("attestation_key_enrolled", True),
        endorsement,
        Judgement("quote_fresh", True),
    )
    if attester.evidence.event_log is None:
        missing_log = Judgement(
            "event_log_replayed", None, "no boot event log was sent: the guest may still be in its firmware"
        )
        return Root((*judgements, missing_log), quote, None, recognised=True)
    boot = verify_boot(
        quote,
        attester.evidence.event_log,
        required_pcrs=[index for index in policy.required_pcrs if index < _LAUNCH_PCR],
    )
    return Root((*judgements, Judgement("event_log_replayed", True)), quote, boot, recognised=True)


def _judge_endorsement(enrolled: EnrolledKey, *, anchors: Sequence[x509.Certificate], now: int) -> Judgement:
    claim = "endorsement_trusted"
    if not anchors:
        return Judgement(claim, False, "the service trusts no endorsement root")
    try:
        verify_endorsement(enrolled.ek_certificates, enrolled.ek_public, anchors=anchors, now=now)
    except EvidenceError as error:
        # It did verify when the key was enrolled: trust was taken back, or a certificate ran out.
        return Judgement(claim, False, f"no longer: {error}")
    return Judgement(claim, True)


def _nothing(why: str) -> Root:
    claims = ("attestation_key_enrolled", "endorsement_trusted", "quote_fresh", "event_log_replayed")
    return Root(tuple(Judgement(claim, None, why) for claim in claims), None, None, recognised=None)


def _unrecognised(why: str) -> Root:
    rest = "a quote by a key that nobody vouches for proves nothing"
    return Root(
        (
            Judgement("attestation_key_enrolled", False, why),
            *(
                Judgement(claim, None, rest)
                for claim in ("endorsement_trusted", "quote_fresh", "event_log_replayed")
            ),
        ),
        None,
        None,
        recognised=False,
    )


def _untrusted(endorsement: Judgement) -> Root:
    rest = "a quote by a TPM that nobody vouches for proves nothing"
    return Root(
        (
            Judgement("attestation_key_enrolled", True),
            endorsement,
            Judgement("quote_fresh", None, rest),
            Judgement("event_log_replayed", None, rest),
        ),
        None,
        None,
        recognised=True,
    )
