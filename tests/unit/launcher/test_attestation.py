"""The launcher's keys in a real TPM, beside a guest that may do to it what a guest can do."""

from __future__ import annotations

import hashlib
import secrets
import struct
import time

import pytest
from cryptography import x509

from affiant.launcher.vtpm.attestation import TpmAttester
from affiant.launcher.vtpm.authority import read_endorsement_chain
from affiant.model.errors import UnavailableError
from affiant.model.evidence import QuoteEvidence
from affiant.tpm import command_bytes, templates
from affiant.tpm.attest import parse_attest
from affiant.tpm.attestation_key import verify_attestation_key
from affiant.tpm.command import Command, Result
from affiant.tpm.credential import Credential, make_credential
from affiant.tpm.endorsement import verify_endorsement
from affiant.tpm.public_area import parse_public
from affiant.tpm.quote import verify_quote
from tests.unit.launcher.conftest import RECORD, Bench, launched_pcr17
from tests.unit.launcher.fake_qemu import STARTUP_CLEAR

PCRS = (0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 14, 17)


def as_guest(bench: Bench, command: Command[Result]) -> Result:
    """Send a command as the guest does, and read the response."""
    return command.read_response(bench.qemu.guest_sends(command.encoding))


@pytest.fixture
def attester(bench: Bench) -> TpmAttester:
    """Keys made before the guest starts; then the guest's firmware starts the TPM."""
    attester = TpmAttester(ek_certificates=read_endorsement_chain(bench.folder / "state"))
    attester.provision(bench.tpm)
    bench.qemu.boot()
    return attester


def kept_handles(bench: Bench) -> tuple[int, ...]:
    return as_guest(bench, command_bytes.get_handles(0x81000000))


def verify(attester: TpmAttester, quote: QuoteEvidence, extra_data: bytes) -> dict[int, bytes]:
    key = verify_attestation_key(attester.endorsement().ak_public)
    verified = verify_quote(
        quote.attest,
        quote.signature,
        attestation_key=key,
        expected_extra_data=extra_data,
        pcrs=dict(quote.pcrs),
    )
    return dict(verified.pcrs)


def assert_quotes(attester: TpmAttester, bench: Bench) -> None:
    extra_data = secrets.token_bytes(32)
    values = verify(attester, attester.quote(bench.gateway, extra_data=extra_data, pcrs=PCRS), extra_data)
    assert tuple(values) == PCRS
    assert values[17] == launched_pcr17(RECORD)


def credential_for(bench: Bench, attester: TpmAttester, *, name: bytes, secret: bytes) -> Credential:
    """What a service makes that trusts this host's vTPM authority."""
    endorsement = attester.endorsement()
    ek = verify_endorsement(
        endorsement.ek_certificates,
        endorsement.ek_public,
        anchors=[x509.load_pem_x509_certificate(bench.authority.root_certificate.read_bytes())],
        now=int(time.time()) + 1,
    )
    return make_credential(ek, name=name, secret=secret, seed=secrets.token_bytes(32))


def assert_activates(attester: TpmAttester, bench: Bench) -> None:
    secret = secrets.token_bytes(32)
    name = parse_public(attester.endorsement().ak_public).name
    made = credential_for(bench, attester, name=name, secret=secret)
    assert (
        attester.activate(bench.gateway, credential_blob=made.blob, encrypted_secret=made.encrypted_secret)
        == secret
    )


def test_quote_verifies_and_holds_the_launch(attester: TpmAttester, bench: Bench) -> None:
    assert_quotes(attester, bench)


def test_launch_counts_as_one_restart_of_the_tpm(attester: TpmAttester, bench: Bench) -> None:
    """What appraisal takes into account when it looks for a resumed TPM; the same after a guest reset."""
    for _ in range(2):
        quote = attester.quote(bench.gateway, extra_data=bytes(32), pcrs=PCRS)
        assert parse_attest(quote.attest).clock_info.restart_count == 1
        bench.qemu.reset()
        bench.qemu.guest_sends(STARTUP_CLEAR)


def test_credential_is_activated(attester: TpmAttester, bench: Bench) -> None:
    assert_activates(attester, bench)


def test_key_is_there_for_the_length_of_a_use_only(attester: TpmAttester, bench: Bench) -> None:
    """Between our commands the guest finds no key of ours that it could use or lock."""
    assert_quotes(attester, bench)
    assert_activates(attester, bench)
    for kind in (0x80000000, 0x02000000, 0x03000000):
        assert as_guest(bench, command_bytes.get_handles(kind)) == ()
    kept = {as_guest(bench, command_bytes.read_public(handle)).name for handle in kept_handles(bench)}
    assert kept
    assert parse_public(attester.endorsement().ak_public).name not in kept


@pytest.mark.parametrize("template", [templates.ATTESTATION_KEY, templates.attestation_key_from(bytes(64))])
def test_guest_cannot_make_our_key(attester: TpmAttester, bench: Bench, template: bytes) -> None:
    """The same hierarchy, scheme and attributes give the guest another key than ours."""
    own = as_guest(bench, command_bytes.create_primary(template, user_auth=b"known"))
    ours = parse_public(attester.endorsement().ak_public)
    assert (own.public.attributes, own.public.auth_policy) == (ours.attributes, ours.auth_policy)
    assert own.public.name != ours.name
    assert_quotes(attester, bench)


def test_our_public_area_as_a_template_gives_another_key(attester: TpmAttester, bench: Bench) -> None:
    """What the TPM returns holds the public point where the secret stood."""
    public = attester.endorsement().ak_public
    own = as_guest(bench, command_bytes.create_primary(public[2:], user_auth=b"known"))
    assert own.encoding != public


def test_each_launcher_has_its_own_key_under_the_same_ek(attester: TpmAttester, bench: Bench) -> None:
    second = TpmAttester(ek_certificates=read_endorsement_chain(bench.folder / "state"))
    second.provision(bench.tpm)
    assert second.endorsement().ek_public == attester.endorsement().ek_public
    assert second.endorsement().ak_public != attester.endorsement().ak_public
    bench.qemu.reset()
    bench.qemu.guest_sends(STARTUP_CLEAR)
    assert_quotes(second, bench)
    assert_activates(second, bench)


def test_cleared_tpm_still_quotes_and_activates(attester: TpmAttester, bench: Bench) -> None:
    as_guest(bench, command_bytes.clear(hierarchy=command_bytes.PLATFORM))
    assert kept_handles(bench) == ()
    assert_quotes(attester, bench)
    assert_activates(attester, bench)


def test_filled_object_slots_are_emptied(attester: TpmAttester, bench: Bench) -> None:
    for _ in range(3):
        as_guest(bench, command_bytes.create_primary(templates.ATTESTATION_KEY, user_auth=b""))
    with pytest.raises(UnavailableError, match="OBJECT_MEMORY"):
        as_guest(bench, command_bytes.create_primary(templates.ATTESTATION_KEY, user_auth=b""))
    assert_quotes(attester, bench)
    assert_activates(attester, bench)


def test_filled_session_slots_are_emptied(attester: TpmAttester, bench: Bench) -> None:
    for _ in range(3):
        as_guest(bench, command_bytes.start_policy_session(bytes(16)))
    with pytest.raises(UnavailableError, match="SESSION_MEMORY"):
        as_guest(bench, command_bytes.start_policy_session(bytes(16)))
    assert_quotes(attester, bench)
    assert_activates(attester, bench)


def change_auth(hierarchy: int, new: bytes) -> bytes:
    """TPM2_HierarchyChangeAuth (Part 3, section 24.8) with an empty old value."""
    auth = struct.pack(">IHBH", 0x40000009, 0, 0, 0)
    body = struct.pack(">II", hierarchy, len(auth)) + auth + struct.pack(">H", len(new)) + new
    return struct.pack(">HII", 0x8002, 10 + len(body), 0x129) + body


def change_endorsement_seed() -> bytes:
    """TPM2_ChangeEPS (Part 3, section 24.5)."""
    auth = struct.pack(">IHBH", 0x40000009, 0, 0, 0)
    body = struct.pack(">II", 0x4000000C, len(auth)) + auth
    return struct.pack(">HII", 0x8002, 10 + len(body), 0x124) + body


def test_endorsement_auth_of_the_guest_costs_it_its_quotes_only(attester: TpmAttester, bench: Bench) -> None:
    assert bench.qemu.guest_sends(change_auth(command_bytes.ENDORSEMENT, b"mine"))[6:10] == bytes(4)
    with pytest.raises(UnavailableError, match="AUTH"):
        attester.quote(bench.gateway, extra_data=bytes(32), pcrs=PCRS)
    with pytest.raises(UnavailableError, match="AUTH"):
        assert_activates(attester, bench)
    assert bench.gateway.launched
    assert not bench.gateway.failure


def test_endorsement_auth_survives_a_restart_and_is_told(bench: Bench) -> None:
    bench.qemu.boot()
    assert bench.qemu.guest_sends(change_auth(command_bytes.ENDORSEMENT, b"mine"))[6:10] == bytes(4)
    later = TpmAttester(ek_certificates=())
    later.provision(bench.tpm)
    assert "AUTH" in later.missing
    with pytest.raises(UnavailableError, match="cannot be made"):
        later.endorsement()


def test_guest_that_owns_its_tpm_is_still_quoted(attester: TpmAttester, bench: Bench) -> None:
    for hierarchy in (command_bytes.OWNER, command_bytes.PLATFORM, 0x4000000A):
        assert bench.qemu.guest_sends(change_auth(hierarchy, b"mine"))[6:10] == bytes(4)
    assert_quotes(attester, bench)
    assert_activates(attester, bench)


def test_changed_seed_makes_quotes_unavailable(attester: TpmAttester, bench: Bench) -> None:
    """TPM2_ChangeEPS gives other keys: they are not passed off as the enrolled ones."""
    assert bench.qemu.guest_sends(change_endorsement_seed())[6:10] == bytes(4)
    with pytest.raises(UnavailableError, match="seed"):
        attester.quote(bench.gateway, extra_data=bytes(32), pcrs=PCRS)


def test_credential_of_another_key_is_not_activated(attester: TpmAttester, bench: Bench) -> None:
    other = b"\x00\x0b" + hashlib.sha256(b"another key").digest()
    made = credential_for(bench, attester, name=other, secret=bytes(32))
    with pytest.raises(UnavailableError, match="INTEGRITY"):
        attester.activate(bench.gateway, credential_blob=made.blob, encrypted_secret=made.encrypted_secret)
    assert_activates(attester, bench)


def test_quote_before_the_firmware_started_the_tpm_is_unavailable(bench: Bench) -> None:
    attester = TpmAttester(ek_certificates=())
    attester.provision(bench.tpm)
    with pytest.raises(UnavailableError, match="not started"):
        attester.quote(bench.gateway, extra_data=bytes(32), pcrs=PCRS)


def test_secrets_of_the_key_are_in_no_file_of_the_tpm(attester: TpmAttester, bench: Bench) -> None:
    """Neither in its state nor in its log."""
    assert_quotes(attester, bench)
    assert_activates(attester, bench)
    files = [path.read_bytes() for path in bench.folder.rglob("*") if path.is_file()]
    assert len(files) > 2
    for secret in (attester._auth, attester._template[-32:], attester._template[-66:-34]):
        assert len(secret) == 32
        for data in files:
            assert secret not in data
            assert secret.hex().encode() not in data
