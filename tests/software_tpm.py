"""A TPM in memory, truthful unless bent: real keys, real structures, real signatures.

It does what an attester needs of a TPM 2.0 (TPM 2.0 Library, Parts 1 and 2): PCRs that extend, an
endorsement key with a certificate under a CA of its own, a restricted attestation key, quotes, and
the opening of credentials. Everything is public on purpose, so that a test can bend one thing.
"""

from __future__ import annotations

import datetime
import hashlib
import hmac
import struct
from collections.abc import Iterable

from cryptography import x509
from cryptography.hazmat.decrepit.ciphers.modes import CFB
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from affiant.model.errors import ForgedError
from affiant.model.evidence import QuoteEvidence
from affiant.tpm.octets import sized
from affiant.tpm.public_area import parse_public

_DAY = 24 * 3600
_EK_CERTIFICATE = x509.ObjectIdentifier("2.23.133.8.1")
_POLICY_A = bytes.fromhex("837197674484b3f81a90cc8d46a5d724fd52d76e06520b64f2a1da1b331469aa")
_ONES, _ZEROS = b"\xff" * 32, bytes(32)

AK_ATTRIBUTES = 0x00050472  # fixedTPM, fixedParent, sensitiveDataOrigin, userWithAuth, noDA, restricted, sign
EK_ATTRIBUTES = 0x000300B2  # fixedTPM, fixedParent, sensitiveDataOrigin, adminWithPolicy, restricted, decrypt


class EndorsementAuthority:
    """A maker of TPMs: a CA that issues EK certificates."""

    def __init__(self, *, now: int, name: str = "vTPM CA") -> None:
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        self.certificate = (
            self._builder(self.name, now)
            .public_key(self.key.public_key())
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(self.key.public_key()), critical=False)
            .sign(self.key, SHA256())
        )

    @property
    def der(self) -> bytes:
        """The CA certificate."""
        return self.certificate.public_bytes(Encoding.DER)

    def issue(self, key: rsa.RSAPublicKey | ec.EllipticCurvePublicKey, *, now: int) -> bytes:
        """Return an EK certificate (DER) as the TCG's profile wants it."""
        tpm = x509.Name([x509.NameAttribute(x509.ObjectIdentifier("2.23.133.2.1"), "id:00001014")])
        return (
            self._builder(x509.Name([]), now)
            .public_key(key)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(x509.ExtendedKeyUsage([_EK_CERTIFICATE]), critical=False)
            .add_extension(x509.SubjectAlternativeName([x509.DirectoryName(tpm)]), critical=True)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key()), critical=False
            )
            .sign(self.key, SHA256())
            .public_bytes(Encoding.DER)
        )

    def _builder(self, subject: x509.Name, now: int) -> x509.CertificateBuilder:
        moment = datetime.datetime.fromtimestamp(now, datetime.UTC)
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self.name)
            .serial_number(x509.random_serial_number())
            .not_valid_before(moment - datetime.timedelta(days=1))
            .not_valid_after(moment + datetime.timedelta(days=3650))
        )


class SoftwareTpm:
    """One TPM: SHA-256 bank, PCR 17 to 22 at ones until a D-RTM launch."""

    def __init__(self, authority: EndorsementAuthority, *, now: int, ek: str = "rsa") -> None:
        self.ek_key: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey = (
            rsa.generate_private_key(public_exponent=65537, key_size=2048)
            if ek == "rsa"
            else ec.generate_private_key(ec.SECP256R1())
        )
        self.ak_key = ec.generate_private_key(ec.SECP256R1())
        self.ak_attributes = AK_ATTRIBUTES
        self.ek_certificates: tuple[bytes, ...] = (authority.issue(self.ek_key.public_key(), now=now),)
        self.clock = 10_000
        self.reset_count = 0
        self.restart_count = 0
        self.pcrs: dict[int, bytes] = {}
        self.reset()

    def reset(self) -> None:
        """TPM Reset: PCRs back to their start, one more on the counter (Part 1, section 12.2.3)."""
        self.pcrs = {index: _ONES if 17 <= index <= 22 else _ZEROS for index in range(24)}
        self.reset_count += 1
        self.restart_count = 0

    def extend(self, index: int, digest: bytes) -> None:
        """TPM2_PCR_Extend of the SHA-256 bank."""
        self.pcrs[index] = hashlib.sha256(self.pcrs[index] + digest).digest()

    def launch(self, record: bytes) -> None:
        """The D-RTM hash sequence over `record`, at locality 4."""
        self.pcrs[17] = hashlib.sha256(_ZEROS + hashlib.sha256(record).digest()).digest()
        self.restart_count += 1  # TPMS_CLOCK_INFO (Part 2, section 10.11.1) counts _TPM_Hash_Start too

    @property
    def ek_public(self) -> bytes:
        """TPM2B_PUBLIC of the EK: template L-1 (RSA) or L-2 (ECC)."""
        head = (
            struct.pack(">HI", 0x000B, EK_ATTRIBUTES) + sized(_POLICY_A) + struct.pack(">HHH", 6, 128, 0x43)
        )
        public = self.ek_key.public_key()
        if isinstance(public, rsa.RSAPublicKey):
            modulus = public.public_numbers().n.to_bytes(256, "big")
            return sized(
                struct.pack(">H", 0x0001) + head + struct.pack(">HHI", 0x0010, 2048, 0) + sized(modulus)
            )
        return sized(struct.pack(">H", 0x0023) + head + struct.pack(">H", 0x0010) + _point(public))

    @property
    def ak_public(self) -> bytes:
        """TPM2B_PUBLIC of the attestation key: restricted ECDSA P-256 with SHA-256."""
        head = struct.pack(">HHI", 0x0023, 0x000B, self.ak_attributes) + sized(b"")
        scheme = struct.pack(">HHH", 0x0010, 0x0018, 0x000B)
        return sized(head + scheme + _point(self.ak_key.public_key()))

    @property
    def ak_name(self) -> bytes:
        """The attestation key's Name."""
        return parse_public(self.ak_public).name

    def quote(self, extra_data: bytes, pcrs: Iterable[int]) -> QuoteEvidence:
        """TPM2_Quote: a TPMS_ATTEST over the selected PCRs, signed by the attestation key."""
        selected = sorted(pcrs)
        bitmap = sum(1 << index for index in selected).to_bytes(3, "little")
        selection = struct.pack(">IHB", 1, 0x000B, 3) + bitmap
        digest = hashlib.sha256(b"".join(self.pcrs[index] for index in selected)).digest()
        self.clock += 7
        attest = (
            struct.pack(">IH", 0xFF544347, 0x8018)
            + sized(self.ak_name)
            + sized(extra_data)
            + struct.pack(">QIIB", self.clock, self.reset_count, self.restart_count, 1)
            + struct.pack(">Q", 0x20221102)
            + selection
            + sized(digest)
        )
        return QuoteEvidence(
            attest=attest,
            signature=self.sign(attest),
            ak_public=self.ak_public,
            pcrs=tuple((index, self.pcrs[index]) for index in selected),
        )

    def sign(self, attest: bytes) -> bytes:
        """TPMT_SIGNATURE (ECDSA, SHA-256) by the attestation key."""
        r, s = decode_dss_signature(self.ak_key.sign(attest, ec.ECDSA(SHA256())))
        return (
            struct.pack(">HH", 0x0018, 0x000B) + sized(r.to_bytes(32, "big")) + sized(s.to_bytes(32, "big"))
        )

    def activate(self, credential_blob: bytes, encrypted_secret: bytes) -> bytes:
        """TPM2_ActivateCredential (Part 1, section 24); ForgedError where a TPM says integrity failure."""
        seed = self._open_seed(encrypted_secret[2:])
        identity_object = credential_blob[2:]
        (size,) = struct.unpack_from(">H", identity_object)
        integrity, identity = identity_object[2 : 2 + size], identity_object[2 + size :]
        mac_key = _kdfa(seed, b"INTEGRITY", b"", 256)
        if not hmac.compare_digest(integrity, hmac.digest(mac_key, identity + self.ak_name, "sha256")):
            raise ForgedError("TPM_RC_INTEGRITY")
        key = _kdfa(seed, b"STORAGE", self.ak_name, 128)
        decryptor = Cipher(algorithms.AES(key), CFB(bytes(16))).decryptor()
        plain = decryptor.update(identity) + decryptor.finalize()
        return plain[2 : 2 + struct.unpack_from(">H", plain)[0]]

    def _open_seed(self, encrypted: bytes) -> bytes:
        if isinstance(self.ek_key, rsa.RSAPrivateKey):
            oaep = padding.OAEP(padding.MGF1(SHA256()), SHA256(), b"IDENTITY\0")
            return self.ek_key.decrypt(encrypted, oaep)
        x, y = encrypted[2:34], encrypted[36:68]
        numbers = ec.EllipticCurvePublicNumbers(
            int.from_bytes(x, "big"), int.from_bytes(y, "big"), ec.SECP256R1()
        )
        z = self.ek_key.exchange(ec.ECDH(), numbers.public_key())
        own = self.ek_key.public_key().public_numbers().x.to_bytes(32, "big")
        return hashlib.sha256(struct.pack(">I", 1) + z + b"IDENTITY\0" + x + own).digest()


def _point(key: ec.EllipticCurvePublicKey) -> bytes:
    numbers = key.public_numbers()
    x, y = numbers.x.to_bytes(32, "big"), numbers.y.to_bytes(32, "big")
    return struct.pack(">HH", 0x0003, 0x0010) + sized(x) + sized(y)


def _kdfa(key: bytes, label: bytes, context: bytes, bits: int) -> bytes:
    block = struct.pack(">I", 1) + label + b"\0" + context + struct.pack(">I", bits)
    return hmac.digest(key, block, "sha256")[: bits // 8]
