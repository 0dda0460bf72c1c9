"""A TPM in memory whose key is the same on every machine: a corpus must come out the same each time.

The key proves nothing to anybody: it is derived from a sentence that stands below.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256

from affiant.tpm.algorithms import HashAlgorithm
from affiant.tpm.octets import sized
from affiant.tpm.pcr_selection import PcrSelection, encode_pcr_selections
from affiant.tpm.public_area import parse_public

__all__ = ["AK_ATTRIBUTES", "NONCE", "Signer"]

NONCE = hashlib.sha256(b"the verifier's nonce").digest()
AK_ATTRIBUTES = 0x00050472  # fixedTPM, fixedParent, sensitiveDataOrigin, userWithAuth, noDA, restricted, sign
_GENERATED = 0xFF544347
_QUOTE = 0x8018


@dataclass(frozen=True)
class Signer:
    """An attestation key: P-256, ECDSA with SHA-256 and deterministic nonces (RFC 6979)."""

    seed: str = "the attestation key of the forgeries"
    attributes: int = AK_ATTRIBUTES

    @property
    def key(self) -> ec.EllipticCurvePrivateKey:
        """The private key."""
        secret = int.from_bytes(hashlib.sha256(self.seed.encode()).digest(), "big")
        return ec.derive_private_key(secret >> 1, ec.SECP256R1())

    @property
    def public(self) -> bytes:
        """TPM2B_PUBLIC."""
        point = self.key.public_key().public_numbers()
        head = struct.pack(">HHI", 0x0023, 0x000B, self.attributes) + sized(b"")
        coordinates = sized(point.x.to_bytes(32, "big")) + sized(point.y.to_bytes(32, "big"))
        return sized(head + struct.pack(">HHHHH", 0x0010, 0x0018, 0x000B, 0x0003, 0x0010) + coordinates)

    def attest(
        self,
        pcrs: Mapping[int, bytes],
        *,
        selected: Sequence[int],
        bank: HashAlgorithm = HashAlgorithm.SHA256,
        nonce: bytes = NONCE,
        magic: int = _GENERATED,
        kind: int = _QUOTE,
        clock: int = 500_000,
        resets: int = 7,
        restarts: int = 0,
    ) -> bytes:
        """TPMS_ATTEST of a quote over `selected`."""
        digest = hashlib.sha256(b"".join(pcrs[pcr] for pcr in sorted(selected))).digest()
        return (
            struct.pack(">IH", magic, kind)
            + sized(parse_public(self.public).name)
            + sized(nonce)
            + struct.pack(">QIIBQ", clock, resets, restarts, 1, 0x2026_1123)
            + encode_pcr_selections([PcrSelection(bank, tuple(sorted(selected)))])
            + sized(digest)
        )

    def sign(self, attest: bytes) -> bytes:
        """TPMT_SIGNATURE over `attest`."""
        signature = self.key.sign(attest, ec.ECDSA(SHA256(), deterministic_signing=True))
        r, s = decode_dss_signature(signature)
        return (
            struct.pack(">HH", 0x0018, 0x000B) + sized(r.to_bytes(32, "big")) + sized(s.to_bytes(32, "big"))
        )
