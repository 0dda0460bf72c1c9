"""Evidence: everything an attester sends to be appraised, none of it trusted yet."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Evidence", "QuoteEvidence"]


@dataclass(frozen=True, slots=True)
class QuoteEvidence:
    """`attest` is a TPMS_ATTEST, `signature` a TPMT_SIGNATURE, `ak_public` a TPM2B_PUBLIC.

    `pcrs`: the values read beside the quote, index to 32 bytes (SHA-256 bank); they count only
    when their digest is the one that the quote signs.
    """

    attest: bytes
    signature: bytes
    ak_public: bytes
    pcrs: tuple[tuple[int, bytes], ...]


@dataclass(frozen=True, slots=True)
class Evidence:
    """Unverified. What is missing is `None` (no TPM, still in firmware), and costs levels.

    `enclave_report`: COSE_Sign1 bytes. `launch_record`: the encoding that PCR 17 must hold.
    `event_log`: the TCG log as read from guest memory. `reference`: digest of the reference image
    that the monitor compares the live kernel with, `None` while the kernel is unknown.
    """

    enclave_report: bytes
    launch_record: bytes
    quote: QuoteEvidence | None
    event_log: bytes | None
    reference: bytes | None
