"""What a TPM signs about itself: TPMS_ATTEST of a quote or a certification.

TPM 2.0 Library, Part 2, sections 10.12 (attestation structures) and 10.11 (TPMS_CLOCK_INFO).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from affiant.model.errors import MalformedError
from affiant.tpm.octets import OctetReader
from affiant.tpm.pcr_selection import PcrSelection, read_pcr_selections

__all__ = ["Attest", "CertifyInfo", "ClockInfo", "QuoteInfo", "parse_attest"]

_TPM_GENERATED: Final = 0xFF544347  # only a TPM's own structures start so (Part 2, section 6.2)
_ATTEST_CERTIFY: Final = 0x8017
_ATTEST_QUOTE: Final = 0x8018
_MAXIMUM_ATTEST: Final = 2048
_MAXIMUM_NAME: Final = 66  # hash identifier and SHA-512
_MAXIMUM_DATA: Final = 66  # TPM2B_DATA holds a TPMT_HA
_MAXIMUM_DIGEST: Final = 64


@dataclass(frozen=True, slots=True)
class ClockInfo:
    """TPMS_CLOCK_INFO: milliseconds the TPM was powered, and how often it was reset or resumed.

    For keys outside the platform and endorsement hierarchies the counters are obfuscated
    (Part 1, section 36.7): equal still means equal, more does not mean later.
    """

    clock: int
    reset_count: int
    restart_count: int
    safe: bool


@dataclass(frozen=True, slots=True)
class QuoteInfo:
    """TPMS_QUOTE_INFO: the selection, and the digest over the selected values."""

    selections: tuple[PcrSelection, ...]
    pcr_digest: bytes


@dataclass(frozen=True, slots=True)
class CertifyInfo:
    """TPMS_CERTIFY_INFO: the Name and Qualified Name of the certified object."""

    name: bytes
    qualified_name: bytes


@dataclass(frozen=True, slots=True)
class Attest:
    """Unverified: a decoded TPMS_ATTEST; `encoding` is what a signature must cover."""

    encoding: bytes
    qualified_signer: bytes
    extra_data: bytes
    clock_info: ClockInfo
    firmware_version: int
    attested: QuoteInfo | CertifyInfo


def parse_attest(encoding: bytes) -> Attest:
    """Read a TPMS_ATTEST of type quote or certify; nothing about it is verified.

    Raises MalformedError: wrong magic, another type, trailing octets, anything out of bounds.
    """
    if len(encoding) > _MAXIMUM_ATTEST:
        raise MalformedError(f"TPMS_ATTEST of {len(encoding)} octets is longer than {_MAXIMUM_ATTEST}")
    reader = OctetReader(encoding, "TPMS_ATTEST")
    if (magic := reader.u32()) != _TPM_GENERATED:
        raise MalformedError(f"TPMS_ATTEST: magic 0x{magic:08x} is not TPM_GENERATED_VALUE")
    kind = reader.u16()
    qualified_signer = reader.sized("qualifiedSigner", maximum=_MAXIMUM_NAME)
    extra_data = reader.sized("extraData", maximum=_MAXIMUM_DATA)
    clock, reset_count, restart_count, safe = reader.u64(), reader.u32(), reader.u32(), reader.u8()
    if safe > 1:
        raise MalformedError(f"TPMS_ATTEST: safe is {safe}, neither yes nor no")
    firmware_version = reader.u64()
    attested: QuoteInfo | CertifyInfo
    if kind == _ATTEST_QUOTE:
        selections = read_pcr_selections(reader)
        attested = QuoteInfo(selections, reader.sized("pcrDigest", maximum=_MAXIMUM_DIGEST))
    elif kind == _ATTEST_CERTIFY:
        name = reader.sized("name", maximum=_MAXIMUM_NAME)
        attested = CertifyInfo(name, reader.sized("qualifiedName", maximum=_MAXIMUM_NAME))
    else:
        raise MalformedError(f"TPMS_ATTEST: type 0x{kind:04x} is neither quote nor certify")
    reader.finish()
    info = ClockInfo(clock, reset_count, restart_count, bool(safe))
    return Attest(encoding, qualified_signer, extra_data, info, firmware_version, attested)
