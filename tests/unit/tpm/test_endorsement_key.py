"""EK certificates: whose word is it that this is a TPM, and about which key?"""

from __future__ import annotations

import datetime
import struct
from dataclasses import dataclass

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from hypothesis import given
from hypothesis import strategies as st

from affiant.model.errors import EvidenceError, ForgedError, MalformedError
from affiant.tpm import templates
from affiant.tpm.endorsement import verify_endorsement
from affiant.tpm.octets import sized
from affiant.tpm.public_area import ObjectAttributes

NOW = 1_800_000_000
EK_USAGE = x509.ObjectIdentifier("2.23.133.8.1")
EK = rsa.generate_private_key(65537, 2048)
OTHER_EK = rsa.generate_private_key(65537, 2048)
ECC_EK = ec.generate_private_key(ec.SECP256R1())
LOW = int.from_bytes(templates.EK_RSA_2048[4:8], "big")


def name(common: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common)] if common else [])


def day(offset: int) -> datetime.datetime:
    return datetime.datetime.fromtimestamp(NOW, datetime.UTC) + datetime.timedelta(days=offset)


@dataclass
class Authority:
    """An endorsement CA of the operator."""

    common: str
    key: ec.EllipticCurvePrivateKey
    certificate: x509.Certificate

    @classmethod
    def root(cls, common: str = "root", *, start: int = -10, end: int = 10) -> Authority:
        key = ec.generate_private_key(ec.SECP256R1())
        builder = cls._builder(name(common), name(common), key.public_key(), start, end)
        return cls(common, key, builder.sign(key, hashes.SHA256()))

    @staticmethod
    def _builder(
        subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, start: int, end: int
    ) -> x509.CertificateBuilder:
        return (
            x509.CertificateBuilder(issuer, subject, key, x509.random_serial_number(), day(start), day(end))
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .add_extension(x509.KeyUsage(*[False] * 5, True, *[False] * 3), critical=True)
        )

    def intermediate(self, common: str = "intermediate") -> Authority:
        key = ec.generate_private_key(ec.SECP256R1())
        builder = self._builder(name(common), name(self.common), key.public_key(), -10, 10)
        return Authority(common, key, builder.sign(self.key, hashes.SHA256()))

    def endorse(
        self,
        key: rsa.RSAPublicKey | ec.EllipticCurvePublicKey,
        *,
        usage: tuple[x509.ObjectIdentifier, ...] | None = (EK_USAGE,),
        start: int = -5,
        end: int = 5,
        ca: bool = False,
    ) -> bytes:
        """An EK certificate as the TCG profile has it: no subject, a critical directory name."""
        builder = x509.CertificateBuilder(
            name(self.common), name(""), key, x509.random_serial_number(), day(start), day(end)
        )
        builder = builder.add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
        model = x509.Name([x509.NameAttribute(x509.ObjectIdentifier("2.23.133.2.2"), "swtpm")])
        builder = builder.add_extension(
            x509.SubjectAlternativeName([x509.DirectoryName(model)]), critical=True
        )
        if usage is not None:
            builder = builder.add_extension(x509.ExtendedKeyUsage(usage), critical=False)
        return builder.sign(self.key, hashes.SHA256()).public_bytes(Encoding.DER)

    @property
    def der(self) -> bytes:
        return self.certificate.public_bytes(Encoding.DER)


ROOT = Authority.root()


def rsa_ek(key: rsa.RSAPublicKey, attributes: int = LOW, *, name_algorithm: int = 11) -> bytes:
    modulus = key.public_numbers().n.to_bytes(256, "big")
    template = templates.EK_RSA_2048
    head = template[:2] + struct.pack(">HI", name_algorithm, attributes)
    return sized(head + template[8 : -len(modulus)] + modulus)


def ecc_ek(key: ec.EllipticCurvePublicKey) -> bytes:
    numbers = key.public_numbers()
    point = sized(numbers.x.to_bytes(32, "big")) + sized(numbers.y.to_bytes(32, "big"))
    return sized(templates.EK_ECC_P256[: -len(point)] + point)


PUBLIC = rsa_ek(EK.public_key())
LEAF = ROOT.endorse(EK.public_key())


def test_an_ek_certificate_under_an_anchor_is_accepted() -> None:
    verified = verify_endorsement([LEAF], PUBLIC, anchors=[ROOT.certificate], now=NOW)
    assert verified.certificate == LEAF
    assert verified.issuer == "CN=root"
    assert verified.public.to_tpm2b() == PUBLIC
    assert len(verified.fingerprint) == 32


def test_an_ecc_ek_is_accepted() -> None:
    leaf = ROOT.endorse(ECC_EK.public_key())
    verified = verify_endorsement([leaf], ecc_ek(ECC_EK.public_key()), anchors=[ROOT.certificate], now=NOW)
    assert isinstance(verified.key, ec.EllipticCurvePublicKey)


def test_a_chain_over_an_intermediate_is_accepted() -> None:
    middle = ROOT.intermediate()
    leaf = middle.endorse(EK.public_key())
    for certificates, anchor in (([leaf, middle.der], ROOT), ([leaf], middle)):
        verify_endorsement(certificates, PUBLIC, anchors=[anchor.certificate], now=NOW)


def test_a_missing_intermediate_is_refused() -> None:
    leaf = ROOT.intermediate().endorse(EK.public_key())
    with pytest.raises(ForgedError, match="chain"):
        verify_endorsement([leaf], PUBLIC, anchors=[ROOT.certificate], now=NOW)


def test_another_authority_of_the_same_name_is_refused() -> None:
    with pytest.raises(ForgedError, match="chain"):
        verify_endorsement([LEAF], PUBLIC, anchors=[Authority.root().certificate], now=NOW)


def test_a_leaf_that_issues_is_no_issuer() -> None:
    """A TPM's own EK certificate must not endorse other keys."""
    key = ec.generate_private_key(ec.SECP256R1())
    middle = Authority("", key, x509.load_der_x509_certificate(ROOT.endorse(key.public_key())))
    leaf = middle.endorse(EK.public_key())
    with pytest.raises(ForgedError, match="chain"):
        verify_endorsement([leaf, middle.der], PUBLIC, anchors=[ROOT.certificate], now=NOW)


@pytest.mark.parametrize("now", [NOW - 6 * 86400, NOW + 6 * 86400])
def test_a_certificate_outside_its_time_is_refused(now: int) -> None:
    with pytest.raises(ForgedError, match="chain"):
        verify_endorsement([LEAF], PUBLIC, anchors=[ROOT.certificate], now=now)


def test_an_expired_intermediate_is_refused() -> None:
    middle = ROOT.intermediate()
    leaf = middle.endorse(EK.public_key(), end=40)
    with pytest.raises(ForgedError, match="chain"):
        verify_endorsement([leaf, middle.der], PUBLIC, anchors=[ROOT.certificate], now=NOW + 20 * 86400)


@pytest.mark.parametrize("usage", [None, (ExtendedKeyUsageOID.CLIENT_AUTH,)])
def test_a_certificate_that_is_not_for_an_ek_is_refused(
    usage: tuple[x509.ObjectIdentifier, ...] | None,
) -> None:
    leaf = ROOT.endorse(EK.public_key(), usage=usage)
    with pytest.raises(ForgedError, match="chain"):
        verify_endorsement([leaf], PUBLIC, anchors=[ROOT.certificate], now=NOW)


def test_an_authority_is_no_ek() -> None:
    leaf = ROOT.endorse(EK.public_key(), ca=True)
    with pytest.raises(ForgedError, match="chain"):
        verify_endorsement([leaf], PUBLIC, anchors=[ROOT.certificate], now=NOW)


def test_a_certificate_of_another_key_is_refused() -> None:
    with pytest.raises(ForgedError, match="another key"):
        verify_endorsement([LEAF], rsa_ek(OTHER_EK.public_key()), anchors=[ROOT.certificate], now=NOW)


@pytest.mark.parametrize(
    "attributes",
    [
        LOW & ~ObjectAttributes.RESTRICTED,
        LOW & ~ObjectAttributes.FIXED_TPM,
        LOW & ~ObjectAttributes.DECRYPT,
        LOW | ObjectAttributes.SIGN,
    ],
)
def test_a_key_that_is_no_ek_is_refused(attributes: int) -> None:
    with pytest.raises(ForgedError, match="restricted decryption"):
        verify_endorsement([LEAF], rsa_ek(EK.public_key(), attributes), anchors=[ROOT.certificate], now=NOW)


def test_a_weak_name_is_refused() -> None:
    public = rsa_ek(EK.public_key(), name_algorithm=4)
    with pytest.raises(ForgedError, match="sha1"):
        verify_endorsement([LEAF], public, anchors=[ROOT.certificate], now=NOW)


def test_an_ek_without_a_cipher_is_refused() -> None:
    symmetric = struct.pack(">HHH", 6, 128, 0x43)
    public = sized(PUBLIC[2:].replace(symmetric, b"\0\x10", 1))
    with pytest.raises(ForgedError, match="cipher"):
        verify_endorsement([LEAF], public, anchors=[ROOT.certificate], now=NOW)


@pytest.mark.parametrize("certificates", [[], [LEAF] * 7, [b""], [LEAF[:-1]], [LEAF + b"\0"], [bytes(9000)]])
def test_what_is_no_certificate_is_malformed(certificates: list[bytes]) -> None:
    with pytest.raises(MalformedError):
        verify_endorsement(certificates, PUBLIC, anchors=[ROOT.certificate], now=NOW)


@pytest.mark.parametrize("version", [0, 3, 87])
def test_another_certificate_version_is_refused(version: int) -> None:
    bent = LEAF.replace(b"\xa0\x03\x02\x01\x02", b"\xa0\x03\x02\x01" + bytes([version]), 1)
    with pytest.raises(EvidenceError):
        verify_endorsement([bent], PUBLIC, anchors=[ROOT.certificate], now=NOW)


def test_no_anchor_is_misuse() -> None:
    with pytest.raises(ValueError, match="anchor"):
        verify_endorsement([LEAF], PUBLIC, anchors=[], now=NOW)


@given(st.integers(0, len(LEAF) - 1), st.integers(0, 7))
def test_a_flipped_bit_is_refused(position: int, bit: int) -> None:
    bent = bytearray(LEAF)
    bent[position] ^= 1 << bit
    with pytest.raises(EvidenceError):
        verify_endorsement([bytes(bent)], PUBLIC, anchors=[ROOT.certificate], now=NOW)


def test_a_signature_that_is_not_whole_octets_is_refused() -> None:
    """Unused bits that happen to be zero change nothing of the signature, only of the certificate's form."""
    leaf = next(each for each in (ROOT.endorse(EK.public_key()) for _ in range(100)) if each[-1] % 2 == 0)
    bent = bytearray(leaf)
    bent[-len(x509.load_der_x509_certificate(leaf).signature) - 1] = 1
    with pytest.raises(MalformedError, match="whole octets"):
        verify_endorsement([bytes(bent)], PUBLIC, anchors=[ROOT.certificate], now=NOW)
