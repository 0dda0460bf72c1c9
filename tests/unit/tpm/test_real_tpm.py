"""Command bytes and verifiers against a real TPM (swtpm)."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from affiant.model.errors import ForgedError, MalformedError, UnavailableError
from affiant.tpm import command_bytes, templates
from affiant.tpm.algorithms import HashAlgorithm
from affiant.tpm.attestation_key import verify_attestation_key
from affiant.tpm.command_bytes import CreatedPrimary
from affiant.tpm.credential import Credential, make_credential
from affiant.tpm.drtm import expected_pcr17
from affiant.tpm.endorsement import EndorsementKey, verify_endorsement
from affiant.tpm.quote import verify_quote
from affiant.tpm.response_code import CommandRefusedError
from tests.unit.tpm.swtpm import ECC_EK_HANDLE, RSA_EK_HANDLE, SoftwareTpm, fresh_auth

EXTRA = b"x" * 32
PERSISTENT = 0x81000100

Key = tuple[CreatedPrimary, bytes]  # with its authorization value


def anchors(tpm: SoftwareTpm) -> list[x509.Certificate]:
    return [x509.load_pem_x509_certificate((tpm.authority / "swtpm-localca-rootca-cert.pem").read_bytes())]


def issuer(tpm: SoftwareTpm) -> bytes:
    pem = (tpm.authority / "issuercert.pem").read_bytes()
    return x509.load_pem_x509_certificate(pem).public_bytes(Encoding.DER)


def endorsement(tpm: SoftwareTpm, handle: int, index: int) -> EndorsementKey:
    public = tpm.run(command_bytes.read_public(handle)).to_tpm2b()
    certificates = [tpm.certificate(index), issuer(tpm)]
    return verify_endorsement(certificates, public, anchors=anchors(tpm), now=int(time.time()))


@pytest.fixture
def key(tpm: SoftwareTpm) -> Iterator[Key]:
    auth = fresh_auth()
    created = tpm.attestation_key(auth)
    yield created, auth
    tpm.run(command_bytes.flush_context(created.handle))


def test_the_attestation_key_is_the_same_whatever_its_authorization(tpm: SoftwareTpm, key: Key) -> None:
    created, _ = key
    again = tpm.attestation_key(fresh_auth())
    assert again.encoding == created.encoding
    tpm.run(command_bytes.flush_context(again.handle))
    assert tpm.run(command_bytes.read_public(created.handle)) == created.public
    verify_attestation_key(created.encoding)


def test_its_quote_verifies(tpm: SoftwareTpm, key: Key) -> None:
    created, auth = key
    tpm.hash_sequence(b"the launch record")
    pcrs = tpm.pcrs(range(24))
    selected = (0, 7, 17)
    answer = tpm.run(command_bytes.quote(created.handle, auth=auth, extra_data=EXTRA, pcrs=selected))
    quote = verify_quote(
        answer.attest,
        answer.signature,
        attestation_key=verify_attestation_key(created.encoding),
        expected_extra_data=EXTRA,
        pcrs=pcrs,
    )
    assert sorted(quote.pcrs) == list(selected)
    assert quote.pcrs[17] == expected_pcr17(b"the launch record")
    assert quote.clock_info.reset_count > 0
    time.sleep(0.05)  # the TPM counts milliseconds, and may sign twice in one
    later = tpm.run(command_bytes.quote(created.handle, auth=auth, extra_data=EXTRA, pcrs=selected))
    assert later.attest != answer.attest  # the clock runs


def test_a_changed_pcr_breaks_the_quote(tpm: SoftwareTpm, key: Key) -> None:
    created, auth = key
    answer = tpm.run(command_bytes.quote(created.handle, auth=auth, extra_data=EXTRA, pcrs=[16]))
    tpm.run(command_bytes.pcr_extend(16, bytes(32)))
    with pytest.raises(ForgedError, match="PCR values"):
        verify_quote(
            answer.attest,
            answer.signature,
            attestation_key=verify_attestation_key(created.encoding),
            expected_extra_data=EXTRA,
            pcrs=tpm.pcrs((16,)),
        )


def test_without_its_authorization_the_key_does_not_sign(tpm: SoftwareTpm, key: Key) -> None:
    created, _ = key
    with pytest.raises(CommandRefusedError) as refusal:
        tpm.run(command_bytes.quote(created.handle, auth=b"guess", extra_data=EXTRA, pcrs=[0]))
    assert refusal.value.code.name == "BAD_AUTH"
    assert refusal.value.code.where == "session 1"
    assert isinstance(refusal.value, UnavailableError)


def test_other_banks_are_read_and_quoted(tpm: SoftwareTpm, key: Key) -> None:
    created, auth = key
    banks = tpm.run(command_bytes.get_pcr_banks())
    assert HashAlgorithm.SHA384 in banks
    for bank in banks:
        command = command_bytes.quote(created.handle, auth=auth, extra_data=EXTRA, pcrs=[0, 16], bank=bank)
        answer = tpm.run(command)
        pcrs = tpm.pcrs((0, 16), bank)
        quote = verify_quote(
            answer.attest,
            answer.signature,
            attestation_key=verify_attestation_key(created.encoding),
            expected_extra_data=EXTRA,
            pcrs=pcrs,
            bank=bank,
        )
        assert dict(quote.pcrs) == pcrs


def test_a_bank_that_is_not_allocated_is_told(tpm: SoftwareTpm) -> None:
    with pytest.raises(MalformedError, match="sha512"):
        tpm.pcrs((0,), HashAlgorithm.SHA512)


@pytest.mark.parametrize(
    ("template", "handle"),
    [(templates.EK_RSA_2048, RSA_EK_HANDLE), (templates.EK_ECC_P384, ECC_EK_HANDLE)],
    ids=["rsa", "ecc"],
)
def test_the_templates_make_the_endorsed_keys(tpm: SoftwareTpm, template: bytes, handle: int) -> None:
    """What swtpm_setup certified is what the template gives, so an EK need not be kept."""
    created = tpm.run(command_bytes.create_primary(template, user_auth=b""))
    try:
        assert created.public == tpm.run(command_bytes.read_public(handle))
    finally:
        tpm.run(command_bytes.flush_context(created.handle))


def activate(tpm: SoftwareTpm, key: Key, endorsement_key: int, session: int, credential: Credential) -> bytes:
    created, auth = key
    command = command_bytes.activate_credential(
        created.handle,
        endorsement_key,
        auth=auth,
        session=session,
        credential_blob=credential.blob,
        encrypted_secret=credential.encrypted_secret,
    )
    return tpm.run(command)


def policy_session(tpm: SoftwareTpm) -> int:
    """Return a session that satisfies the policy of the low-range templates."""
    session = tpm.run(command_bytes.start_policy_session(fresh_auth()[:16]))
    tpm.run(command_bytes.policy_secret(session))
    return session


def test_a_credential_for_the_rsa_ek_is_activated(tpm: SoftwareTpm, key: Key) -> None:
    created, _ = key
    verified = endorsement(tpm, RSA_EK_HANDLE, command_bytes.NV_EK_CERTIFICATE_RSA_2048)
    secret = fresh_auth()
    name = verify_attestation_key(created.encoding).name
    credential = make_credential(verified, name=name, secret=secret, seed=fresh_auth())
    session = policy_session(tpm)
    assert activate(tpm, key, RSA_EK_HANDLE, session, credential) == secret
    tpm.run(command_bytes.flush_context(session))


def test_a_credential_for_the_ecc_ek_is_activated(tpm: SoftwareTpm, key: Key) -> None:
    created, _ = key
    verified = endorsement(tpm, ECC_EK_HANDLE, command_bytes.NV_EK_CERTIFICATE_ECC_P384)
    secret = fresh_auth()
    credential = make_credential(verified, name=created.public.name, secret=secret, seed=fresh_auth())
    password_session = 0x40000009  # the high-range templates allow the (empty) user authorization
    assert activate(tpm, key, ECC_EK_HANDLE, password_session, credential) == secret


def test_a_credential_for_another_key_is_not_activated(tpm: SoftwareTpm, key: Key) -> None:
    """The Name is under the credential's MAC: an AK of the same TPM with other attributes has another."""
    verified = endorsement(tpm, RSA_EK_HANDLE, command_bytes.NV_EK_CERTIFICATE_RSA_2048)
    credential = make_credential(verified, name=b"\0\x0b" + bytes(32), secret=EXTRA, seed=fresh_auth())
    session = policy_session(tpm)
    with pytest.raises(CommandRefusedError, match="INTEGRITY"):
        activate(tpm, key, RSA_EK_HANDLE, session, credential)
    tpm.run(command_bytes.flush_context(session))


def test_a_persistent_key_survives_and_is_removed(tpm: SoftwareTpm, key: Key) -> None:
    created, auth = key
    tpm.run(command_bytes.evict_control(created.handle, PERSISTENT))
    assert PERSISTENT in tpm.run(command_bytes.get_handles(0x81000000))
    assert tpm.run(command_bytes.read_public(PERSISTENT)) == created.public
    tpm.run(command_bytes.quote(PERSISTENT, auth=auth, extra_data=EXTRA, pcrs=[0]))
    tpm.run(command_bytes.evict_control(PERSISTENT, PERSISTENT))
    assert PERSISTENT not in tpm.run(command_bytes.get_handles(0x81000000))
    with pytest.raises(CommandRefusedError, match="HANDLE"):
        tpm.run(command_bytes.read_public(PERSISTENT))


def test_the_certificate_is_real_and_for_this_tpm_only(tpm: SoftwareTpm) -> None:
    certificate = tpm.certificate(command_bytes.NV_EK_CERTIFICATE_RSA_2048)
    other = tpm.run(command_bytes.read_public(ECC_EK_HANDLE)).to_tpm2b()
    with pytest.raises(ForgedError, match="another key"):
        verify_endorsement([certificate, issuer(tpm)], other, anchors=anchors(tpm), now=int(time.time()))
    with pytest.raises(CommandRefusedError, match="HANDLE"):
        tpm.run(command_bytes.nv_read_public(command_bytes.NV_EK_CERTIFICATE_ECC_P256))


def test_random_octets_come(tpm: SoftwareTpm) -> None:
    first, second = (tpm.run(command_bytes.get_random(32)) for _ in range(2))
    assert len(first) == 32
    assert first != second
