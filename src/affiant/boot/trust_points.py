"""The quote that a Windows log brings along: its trust point, where the log ends with one."""

from __future__ import annotations

from dataclasses import replace

from affiant.appraisal.boot_description import strongest_bank
from affiant.model.errors import ForgedError
from affiant.tpm.algorithms import HashAlgorithm
from affiant.tpm.attest import QuoteInfo, parse_attest
from affiant.tpm.attestation_key import AttestationKey
from affiant.tpm.event_log import EventLog
from affiant.tpm.quote import VerifiedQuote
from affiant.tpm.windows.configuration_log import is_windows_log
from affiant.tpm.windows.trust_point import TrustPoint, read_trust_points, verify_trust_point

__all__ = ["last_trust_point", "verify_last_trust_point"]


def last_trust_point(log: EventLog) -> TrustPoint | None:
    """Return the trust point with which the log ends, None if it ends otherwise.

    One that stands earlier proves what came before it, and not the log. Where keys have a trust point each
    in the last event, it is the last of them. Raises MalformedError.
    """
    if not is_windows_log(log):
        return None
    points = read_trust_points(log)
    return points[-1] if points and points[-1].index == log.events[-1].index else None


def verify_last_trust_point(
    log: EventLog, trust_point: TrustPoint, *, key: AttestationKey, unsafe_accept_sha1: bool
) -> VerifiedQuote:
    """Verify the trust point with which `log` ends, and return its quote, in the log's own bank if it has it.

    What holds then: see `verify_trust_point`. `extra_data` of the returned quote is empty: what Windows
    put there answers no challenge, and must not pass for one. Raises MalformedError or ForgedError.
    """
    attest = parse_attest(trust_point.quote)
    if not isinstance(attest.attested, QuoteInfo):
        raise ForgedError("trust point: the signed structure is a certification, not a quote")
    quoted = {selection.bank for selection in attest.attested.selections if selection.pcrs}
    own = strongest_bank(log)
    bank = own if own in quoted else max(quoted, default=own)
    if bank is HashAlgorithm.SHA1 and not unsafe_accept_sha1:
        raise ForgedError("trust point: it quotes the SHA-1 bank alone, and SHA-1 is no proof any more")
    verified = verify_trust_point(log, trust_point, attestation_key=key, bank=bank)
    return replace(verified.quote, extra_data=b"")
