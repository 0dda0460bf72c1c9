"""A truthful attester in memory: an attestation key, and quotes over the PCR values it is given.

It makes exactly what a TPM would; a test bends one thing and expects a refusal.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

from affiant.tpm import templates
from affiant.tpm.algorithms import HashAlgorithm
from affiant.tpm.attestation_key import AttestationKey, verify_attestation_key
from affiant.tpm.octets import sized
from affiant.tpm.pcr_selection import PcrSelection, encode_pcr_selections
from affiant.tpm.quote import VerifiedQuote, verify_quote

SHA256 = HashAlgorithm.SHA256
EXTRA = bytes(range(32))


def ecc_public(key: ec.EllipticCurvePublicKey, template: bytes = templates.ATTESTATION_KEY) -> bytes:
    """The TPM2B_PUBLIC of `key` with the attributes of `template` (which ends in two empty coordinates)."""
    numbers = key.public_numbers()
    area = template[:-4] + sized(numbers.x.to_bytes(32, "big")) + sized(numbers.y.to_bytes(32, "big"))
    return sized(area)


@dataclass
class Attester:
    """One TPM's attestation key."""

    private: ec.EllipticCurvePrivateKey = field(
        default_factory=lambda: ec.generate_private_key(ec.SECP256R1())
    )

    @property
    def public(self) -> bytes:
        return ecc_public(self.private.public_key())

    @property
    def attestation_key(self) -> AttestationKey:
        return verify_attestation_key(self.public)

    def attest(
        self,
        pcrs: Mapping[int, bytes],
        *,
        selected: Sequence[int] | None = None,
        extra_data: bytes = EXTRA,
        bank: HashAlgorithm = SHA256,
        magic: int = 0xFF544347,
        kind: int = 0x8018,
        tail: bytes | None = None,
    ) -> bytes:
        """A TPMS_ATTEST over `selected` of `pcrs`."""
        chosen = sorted(pcrs) if selected is None else sorted(selected)
        digest = SHA256.digest(b"".join(pcrs[pcr] for pcr in chosen))
        body = encode_pcr_selections([PcrSelection(bank, tuple(chosen))]) + sized(digest)
        head = struct.pack(">IH", magic, kind) + sized(self.attestation_key.name) + sized(extra_data)
        return head + struct.pack(">QIIBQ", 4242, 7, 1, 1, 0x2026) + (body if tail is None else tail)

    def sign(self, message: bytes) -> bytes:
        """A TPMT_SIGNATURE."""
        r, s = decode_dss_signature(self.private.sign(message, ec.ECDSA(hashes.SHA256())))
        return struct.pack(">HH", 0x18, 0x0B) + sized(r.to_bytes(32, "big")) + sized(s.to_bytes(32, "big"))

    def quote(
        self,
        pcrs: Mapping[int, bytes],
        *,
        selected: Sequence[int] | None = None,
        bank: HashAlgorithm = SHA256,
    ) -> VerifiedQuote:
        """A quote, already verified."""
        attest = self.attest(pcrs, selected=selected, bank=bank)
        return verify_quote(
            attest,
            self.sign(attest),
            attestation_key=self.attestation_key,
            expected_extra_data=EXTRA,
            pcrs=pcrs,
            bank=bank,
        )
