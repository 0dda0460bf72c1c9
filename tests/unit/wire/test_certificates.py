"""Chains hold under the one root, in the one shape, and for the one usage."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from affiant.model.errors import EvidenceError, ForgedError, MalformedError
from affiant.wire import certificates, issuance
from affiant.wire.certificates import SERVICE_SIGNING, SESSION_KEY
from tests.unit.wire import world
from tests.unit.wire.world import AUTHORITY, AUTHORITY_KEY, NOW, ROOT, ROOT_KEY, STRANGER_KEY, der


def verify_session(*chain: x509.Certificate, now: int = NOW, root: x509.Certificate = ROOT) -> bytes:
    return certificates.verify_session_chain([der(each) for each in chain], root=root, now=now).session_id


def verify_service(*chain: x509.Certificate, now: int = NOW, root: x509.Certificate = ROOT) -> None:
    certificates.verify_service_chain([der(each) for each in chain], root=root, now=now)


@dataclass
class Leaf:
    """A session certificate made by hand, so that any part of it can be bent."""

    key: Any = world.SESSION_KEY
    subject: str = world.SESSION_ID.hex()
    issuer: x509.Name = AUTHORITY.session_ca.subject
    issuer_key: ec.EllipticCurvePrivateKey = AUTHORITY_KEY
    usages: list[x509.ObjectIdentifier] = field(default_factory=lambda: [SESSION_KEY])
    usages_critical: bool = True
    constraints: x509.BasicConstraints | None = field(
        default_factory=lambda: x509.BasicConstraints(ca=False, path_length=None)
    )
    key_usage: x509.KeyUsage | None = certificates.SIGNING_ALONE
    more: list[tuple[x509.ExtensionType, bool]] = field(default_factory=list)
    seconds: int = 3600

    def build(self) -> x509.Certificate:
        builder = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, self.subject)]))
            .issuer_name(self.issuer)
            .public_key(self.key.public_key())
            .serial_number(77)
            .not_valid_before(datetime.fromtimestamp(NOW - 60, UTC))
            .not_valid_after(datetime.fromtimestamp(NOW - 60 + self.seconds, UTC))
        )
        if self.constraints is not None:
            builder = builder.add_extension(self.constraints, critical=True)
        if self.key_usage is not None:
            builder = builder.add_extension(self.key_usage, critical=True)
        if self.usages:
            builder = builder.add_extension(x509.ExtendedKeyUsage(self.usages), self.usages_critical)
        for extension, critical in self.more:
            builder = builder.add_extension(extension, critical)
        # The library's path validation wants it in every certificate that is not self-signed.
        builder = builder.add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(self.issuer_key.public_key()), critical=False
        )
        return builder.sign(self.issuer_key, SHA256())


def key_usage(**bits: bool) -> x509.KeyUsage:
    none = dict.fromkeys(inspect.signature(x509.KeyUsage).parameters, False)
    return x509.KeyUsage(**none | bits)


def test_truthful_chains_hold() -> None:
    assert verify_session(AUTHORITY.session, AUTHORITY.session_ca) == world.SESSION_ID
    verify_service(AUTHORITY.service)


def test_a_leaf_made_by_hand_holds() -> None:
    """So that the refusals below are for the one thing bent."""
    assert verify_session(Leaf().build(), AUTHORITY.session_ca) == world.SESSION_ID


BENT_LEAVES: dict[str, Callable[[], Leaf]] = {
    "no extended key usage": lambda: Leaf(usages=[]),
    "extended key usage not critical": lambda: Leaf(usages_critical=False),
    "TLS client": lambda: Leaf(usages=[ExtendedKeyUsageOID.CLIENT_AUTH]),
    "service's usage": lambda: Leaf(usages=[SERVICE_SIGNING]),
    "both usages": lambda: Leaf(usages=[SESSION_KEY, SERVICE_SIGNING]),
    "any usage": lambda: Leaf(usages=[ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE]),
    "a CA": lambda: Leaf(constraints=x509.BasicConstraints(ca=True, path_length=0)),
    "no basic constraints": lambda: Leaf(constraints=None),
    "no key usage": lambda: Leaf(key_usage=None),
    "signs certificates too": lambda: Leaf(key_usage=key_usage(digital_signature=True, key_cert_sign=True)),
    "key agreement": lambda: Leaf(key_usage=key_usage(key_agreement=True)),
    "more than an hour": lambda: Leaf(seconds=3601),
    "another subject": lambda: Leaf(subject="machine.example"),
    "a short session id": lambda: Leaf(subject="5e" * 15),
    "a session id in capitals": lambda: Leaf(subject=("5e" * 16).upper()),
    "signed by a stranger": lambda: Leaf(issuer_key=STRANGER_KEY),
    "issued by a stranger": lambda: Leaf(issuer=world.OTHER_AUTHORITY.root.subject),
    "issued by the root": lambda: Leaf(issuer=ROOT.subject, issuer_key=ROOT_KEY),
    "unknown critical extension": lambda: Leaf(
        more=[(x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3.4"), b"\x05\x00"), True)]
    ),
}


@pytest.mark.parametrize("bend", BENT_LEAVES)
def test_bent_session_certificates_are_refused(bend: str) -> None:
    with pytest.raises(ForgedError, match="session certificate"):
        verify_session(BENT_LEAVES[bend]().build(), AUTHORITY.session_ca)


@pytest.mark.parametrize(
    "key", [ed25519.Ed25519PrivateKey.generate(), ec.generate_private_key(ec.SECP384R1())]
)
def test_other_kinds_of_key_are_malformed(key: Any) -> None:
    with pytest.raises(MalformedError, match="P-256"):
        verify_session(Leaf(key=key).build(), AUTHORITY.session_ca)


def session_ca(**bent: Any) -> x509.Certificate:
    arguments: dict[str, Any] = {
        "key": AUTHORITY_KEY.public_key(),
        "root": ROOT,
        "root_key": ROOT_KEY,
        "serial": 5,
        "not_before": NOW - world.DAY,
        "not_after": NOW + world.DAY,
    }
    return issuance.build_session_ca(**arguments | bent)


def ca_by_hand(constraints: x509.BasicConstraints | None, usage: x509.KeyUsage | None) -> x509.Certificate:
    leaf = Leaf(
        key=AUTHORITY_KEY,
        issuer=ROOT.subject,
        issuer_key=ROOT_KEY,
        usages=[],
        constraints=constraints,
        key_usage=usage,
        subject="Test root session CA",
    )
    return leaf.build()


def test_a_session_ca_made_by_hand_holds() -> None:
    authority = ca_by_hand(x509.BasicConstraints(ca=True, path_length=0), key_usage(key_cert_sign=True))
    assert verify_session(AUTHORITY.session, authority) == world.SESSION_ID


@pytest.mark.parametrize(
    ("constraints", "usage"),
    [
        (x509.BasicConstraints(ca=True, path_length=None), key_usage(key_cert_sign=True)),
        (x509.BasicConstraints(ca=True, path_length=1), key_usage(key_cert_sign=True)),
        (x509.BasicConstraints(ca=False, path_length=None), key_usage(key_cert_sign=True)),
        (None, key_usage(key_cert_sign=True)),
        (x509.BasicConstraints(ca=True, path_length=0), key_usage(digital_signature=True)),
        (x509.BasicConstraints(ca=True, path_length=0), None),
    ],
)
def test_a_session_ca_of_another_shape_is_refused(
    constraints: x509.BasicConstraints | None, usage: x509.KeyUsage | None
) -> None:
    with pytest.raises(ForgedError):
        verify_session(AUTHORITY.session, ca_by_hand(constraints, usage))


def test_the_chain_has_one_length() -> None:
    session, authority = AUTHORITY.session, AUTHORITY.session_ca
    for chain in ((), (session,), (authority,), (session, authority, ROOT), (session, authority, authority)):
        with pytest.raises(ForgedError, match="instead of two"):
            verify_session(*chain)
    for chain in ((), (AUTHORITY.service, ROOT), (AUTHORITY.service, authority)):
        with pytest.raises(ForgedError, match="instead of one"):
            verify_service(*chain)


def test_another_ca_than_the_issuer_is_refused() -> None:
    stranger = session_ca(key=STRANGER_KEY.public_key())  # same name, same root, another key
    with pytest.raises(ForgedError):
        verify_session(AUTHORITY.session, stranger)


def test_a_leaf_cannot_issue() -> None:
    forged = Leaf(issuer=AUTHORITY.session.subject, issuer_key=world.SESSION_KEY).build()
    with pytest.raises(ForgedError):
        verify_session(forged, AUTHORITY.session)


def test_a_service_certificate_under_the_session_ca_is_refused() -> None:
    """The session CA is online; its compromise must not let it speak for the service."""
    leaf = Leaf(usages=[SERVICE_SIGNING], subject="Test root service")
    with pytest.raises(ForgedError, match="service certificate"):
        verify_service(leaf.build())
    with pytest.raises(ForgedError, match="instead of one"):
        verify_service(leaf.build(), AUTHORITY.session_ca)


def test_a_session_certificate_is_no_service_certificate() -> None:
    direct = Leaf(issuer=ROOT.subject, issuer_key=ROOT_KEY).build()
    with pytest.raises(ForgedError, match="service certificate"):
        verify_service(direct)


def test_another_root_is_named_as_the_reason() -> None:
    """Of the same name or not."""
    namesake = issuance.build_root(
        key=STRANGER_KEY, name="Test root", serial=1, not_before=NOW - world.DAY, not_after=NOW + world.DAY
    )
    for root in (world.OTHER_AUTHORITY.root, namesake):
        with pytest.raises(ForgedError, match="another root"):
            verify_session(AUTHORITY.session, AUTHORITY.session_ca, root=root)
        with pytest.raises(ForgedError, match="another root"):
            verify_service(AUTHORITY.service, root=root)


@pytest.mark.parametrize(
    ("now", "words"),
    [
        (NOW - 61, "not valid before"),
        (NOW + 3541, "expired"),
    ],
)
def test_the_session_certificate_has_its_time(now: int, words: str) -> None:
    with pytest.raises(ForgedError, match=words):
        verify_session(AUTHORITY.session, AUTHORITY.session_ca, now=now)


def test_the_ca_and_the_root_have_their_time_too() -> None:
    expired = session_ca(not_after=NOW - 1)
    with pytest.raises(ForgedError, match="'Test root session CA' expired"):
        verify_session(AUTHORITY.session, expired)
    old_root = issuance.build_root(
        key=ROOT_KEY, name="Test root", serial=1, not_before=NOW - 100, not_after=NOW - 1
    )
    with pytest.raises(ForgedError, match="'Test root' expired"):
        verify_service(AUTHORITY.service, root=old_root)


@pytest.mark.filterwarnings("ignore:Parsed a serial number")
def test_no_certified_bit_can_be_bent() -> None:
    """Nor does a bent one escape as another error.

    The signature's own encoding is left out: X.509 allows more than one, and nothing here depends on
    it, because messages sign the certificates that they bring.
    """
    chain = AUTHORITY.session_chain
    for which, certificate in enumerate((AUTHORITY.session, AUTHORITY.session_ca)):
        data = chain[which]
        certified = data.index(certificate.tbs_certificate_bytes) + len(certificate.tbs_certificate_bytes)
        for position in range(len(data)):
            bent = bytearray(data)
            bent[position] ^= 1 << position % 8
            shown = [bytes(bent) if index == which else each for index, each in enumerate(chain)]
            if position < certified:
                with pytest.raises(EvidenceError):
                    certificates.verify_session_chain(shown, root=ROOT, now=NOW)
            else:
                with contextlib.suppress(EvidenceError):
                    certificates.verify_session_chain(shown, root=ROOT, now=NOW)


@pytest.mark.parametrize("data", [b"", b"\x30\x00", bytes(100), bytes(9000), der(AUTHORITY.session)[:-1]])
def test_what_is_no_certificate_is_malformed(data: bytes) -> None:
    with pytest.raises(MalformedError, match="session certificate"):
        certificates.verify_session_chain([data, der(AUTHORITY.session_ca)], root=ROOT, now=NOW)


def test_roots_are_loaded_from_pem_and_der() -> None:
    for encoding in (Encoding.PEM, Encoding.DER):
        assert certificates.load_root(ROOT.public_bytes(encoding)) == ROOT


def test_a_file_without_a_certificate_is_told_in_words_for_people() -> None:
    for data in (b"", b"hello"):
        with pytest.raises(
            MalformedError, match=r"^root certificate: the file holds no certificate$"
        ) as refusal:
            certificates.load_root(data)
        assert refusal.value.hint == "affiant service root"


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"-----BEGIN CERTIFICATE-----\n-----END CERTIFICATE-----\n",
        ROOT.public_bytes(Encoding.PEM) * 2,
        der(AUTHORITY.session),
        der(AUTHORITY.session_ca),
        der(
            Leaf(
                key=STRANGER_KEY,
                issuer_key=STRANGER_KEY,
                subject="x",
                issuer=x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "x")]),
            ).build()
        ),
    ],
)
def test_what_is_no_root_is_malformed(data: bytes) -> None:
    """Nothing, two of them, a leaf, an intermediate, a self-signed leaf."""
    with pytest.raises(MalformedError, match="root certificate"):
        certificates.load_root(data)


def test_builders_refuse_misuse() -> None:
    arguments: dict[str, Any] = {
        "key": world.SESSION_KEY.public_key(),
        "session_id": world.SESSION_ID,
        "authority": AUTHORITY.session_ca,
        "authority_key": AUTHORITY_KEY,
        "serial": 1,
        "not_before": NOW,
        "not_after": NOW + 3600,
    }
    issuance.build_session_certificate(**arguments)
    for bent in (
        {"session_id": b"short"},
        {"not_after": NOW + 3601},
        {"key": ec.generate_private_key(ec.SECP384R1()).public_key()},
    ):
        with pytest.raises(ValueError):
            issuance.build_session_certificate(**arguments | bent)
