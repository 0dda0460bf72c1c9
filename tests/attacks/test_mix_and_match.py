"""Parts of different machines, keys and sessions put together (attacks 2, 3, 4, 12, 14)."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from affiant.appraisal.policy import AppraisalPolicy
from affiant.model.enrolment import EnrolmentProof
from affiant.model.errors import EvidenceError, ForgedError
from affiant.model.level import SecurityLevel
from affiant.model.passport import Passport
from affiant.relying_party.verify import NotForUsError, verify_passport
from affiant.service.database import transaction
from affiant.service.device_store import all_devices
from affiant.wire.enrolment import (
    encode_enrolment_proof,
    encode_enrolment_request,
    prove_enrolment,
    verify_credential_challenge,
)
from affiant.wire.launch_record import encode_launch_record
from affiant.wire.passport import encode_passport
from tests.boot_log import BootLog
from tests.simulator import AUDIENCE, NONCE, START, Machine, World, make_world, root_pem
from tests.software_tpm import AK_ATTRIBUTES, EndorsementAuthority, SoftwareTpm


def devices(world: World) -> int:
    with transaction(world.service.context.engine) as connection:
        return len(all_devices(connection))


def test_another_machines_enclave_report_is_refused(world: World, machine: Machine) -> None:
    """A healthy machine's quote and log beside the enclave report of a monitor of one's own."""
    other = world.machine()
    challenge = world.service.challenge()
    healthy, own = machine.answer(challenge), other.answer(challenge)
    mixed = own.with_evidence(quote=healthy.evidence.quote, event_log=healthy.evidence.event_log)
    with pytest.raises(ForgedError, match="extraData"):
        other.send(mixed)
    assert machine.attest().report.level is SecurityLevel.ENFORCED_CODE


def test_another_machines_launch_record_is_refused(world: World, machine: Machine) -> None:
    """The identity key in the record must have signed the enclave report."""
    other = world.machine()
    answer = machine.answer(world.service.challenge())
    with pytest.raises(ForgedError, match="signature"):
        machine.send(answer.with_evidence(launch_record=encode_launch_record(other.record)))


def test_a_monitor_that_was_not_launched_is_refused(world: World, machine: Machine) -> None:
    """A program beside the launched monitor makes an identity key and a record of its own."""
    impostor = Machine(world.service, machine.tpm)
    with pytest.raises(ForgedError, match="PCR 17 holds another launch"):
        impostor.attest()
    assert machine.attest().report.level is SecurityLevel.ENFORCED_CODE


def test_a_record_that_promises_more_than_was_launched_is_refused(world: World, machine: Machine) -> None:
    """The monitor was launched with debug access; its record is then rewritten to hide it."""
    machine.record = replace(machine.record, debug=True)
    machine.boot()
    machine.record = replace(machine.record, debug=False)
    with pytest.raises(ForgedError, match="PCR 17"):
        machine.attest()


@pytest.mark.parametrize(
    "change",
    [
        {"monitor_image": bytes(32)},
        {"monitor_version": "9"},
        {"security_version": 9},
        {"debug": True},
        {"service_root": bytes(32)},
        {"rules_root": bytes(32)},
    ],
)
def test_an_enclave_report_that_contradicts_the_record_is_refused(
    world: World, machine: Machine, change: dict[str, object]
) -> None:
    with pytest.raises(ForgedError, match="is not the launch record's"):
        machine.send(machine.answer(world.service.challenge(), **change))


def test_a_quote_signed_by_a_foreign_key_is_refused(world: World, machine: Machine) -> None:
    """Software signs what a TPM should, and shows the enrolled key beside it."""
    assert machine.tpm is not None
    answer = machine.answer(world.service.challenge())
    assert answer.evidence.quote is not None
    foreign = SoftwareTpm(world.authority, now=START, ek="ecc")
    with pytest.raises(ForgedError, match="signature"):
        machine.send(answer.with_quote(signature=foreign.sign(answer.evidence.quote.attest)))


def test_a_foreign_attestation_key_proves_nothing(world: World, machine: Machine) -> None:
    """A TPM that nobody enrolled quotes the very PCRs of a healthy machine: level 0, no claim believed."""
    assert machine.tpm is not None
    foreign = SoftwareTpm(EndorsementAuthority(now=START), now=START, ek="ecc")
    foreign.pcrs = dict(machine.tpm.pcrs)
    impostor = Machine(world.service, foreign)
    impostor.record, impostor.identity_key = machine.record, machine.identity_key
    report = impostor.attest().report
    assert report.level is SecurityLevel.UNPROVEN
    assert {value for _, value in report.claims} == {False, None}
    assert report.device != machine.attest().report.device


@pytest.mark.parametrize("bit", [1 << 1, 1 << 4, 1 << 5, 1 << 16, 1 << 17, 1 << 18])
def test_a_key_without_the_attributes_of_an_attestation_key_is_refused(
    world: World, machine: Machine, bit: int
) -> None:
    """A key that signs anything, or that left its TPM, could sign a quote that no TPM made."""
    assert machine.tpm is not None
    machine.tpm.ak_attributes = AK_ATTRIBUTES ^ bit
    with pytest.raises(EvidenceError):
        machine.attest()
    with pytest.raises(EvidenceError):
        machine.enrol()


def test_a_key_of_another_tpm_cannot_be_enrolled(world: World, machine: Machine) -> None:
    """The credential opens only in the TPM that holds both keys; a proof without it is refused."""
    assert machine.tpm is not None
    before = devices(world)
    victim = SoftwareTpm(world.authority, now=START, ek="ecc")
    challenge = world.service.challenge()
    request = encode_enrolment_request(
        replace(
            machine.enrolment_request(challenge),
            ek_certificates=victim.ek_certificates,
            ek_public=victim.ek_public,
        )
    )
    answer = world.service.api.enrolment(machine.sealed(challenge, request), now=world.service.now)
    credential = verify_credential_challenge(answer, request=request, root=world.service.root, now=START)
    with pytest.raises(ForgedError, match="INTEGRITY"):
        victim.activate(credential.credential_blob, credential.encrypted_secret)
    guess = EnrolmentProof(
        credential.enrolment_id, prove_enrolment(bytes(32), request=request, challenge=answer)
    )
    body = machine.sealed(challenge, encode_enrolment_proof(guess))
    with pytest.raises(ForgedError, match="does not show the secret"):
        world.service.api.enrolment_proof(body, now=world.service.now)
    with pytest.raises(ForgedError, match="no such enrolment is open"):
        world.service.api.enrolment_proof(body, now=world.service.now)
    assert devices(world) == before


def test_an_endorsement_of_an_unknown_maker_is_refused(world: World) -> None:
    stranger = SoftwareTpm(EndorsementAuthority(now=START), now=START, ek="ecc")
    with pytest.raises(ForgedError, match="no valid chain"):
        Machine(world.service, stranger).boot().enrol()
    assert devices(world) == 0


def test_an_endorsement_certificate_of_another_key_is_refused(world: World, machine: Machine) -> None:
    """A genuine certificate beside an endorsement key made in software."""
    assert machine.tpm is not None
    software = SoftwareTpm(EndorsementAuthority(now=START), now=START, ek="ecc")
    software.ek_certificates = machine.tpm.ek_certificates
    with pytest.raises(ForgedError, match="another key"):
        Machine(world.service, software).boot().enrol()


def test_a_proof_cannot_come_late(world: World, machine: Machine) -> None:
    assert machine.tpm is not None
    challenge = world.service.challenge()
    request = encode_enrolment_request(machine.enrolment_request(challenge))
    answer = world.service.api.enrolment(machine.sealed(challenge, request), now=world.service.now)
    credential = verify_credential_challenge(answer, request=request, root=world.service.root, now=START)
    secret = machine.tpm.activate(credential.credential_blob, credential.encrypted_secret)
    proof = EnrolmentProof(
        credential.enrolment_id, prove_enrolment(secret, request=request, challenge=answer)
    )
    world.service.now += 301
    with pytest.raises(ForgedError, match="no such enrolment is open"):
        world.service.api.enrolment_proof(
            machine.sealed(challenge, encode_enrolment_proof(proof)), now=world.service.now
        )


def test_a_host_cannot_put_its_own_session_key(world: World, machine: Machine) -> None:
    """The enclave report names the key; evidence signed by another one is not the monitor's."""
    answer = machine.answer(world.service.challenge())
    with pytest.raises(ForgedError, match="signature"):
        machine.send(replace(answer, session_key=ec.generate_private_key(ec.SECP256R1())))


def test_an_enclave_report_signed_by_a_host_key_is_refused(world: World, machine: Machine) -> None:
    """The record is the launched one, but the identity key is not at the host's hand."""
    challenge = world.service.challenge()
    machine.identity_key = ec.generate_private_key(ec.SECP256R1())
    with pytest.raises(ForgedError, match="signature"):
        machine.send(machine.answer(challenge))


def test_a_lower_level_cannot_be_passed_off_as_a_higher_one(world: World, machine: Machine) -> None:
    """Rebooted without Secure Boot, the machine speaks with a level 1 key; its old report does not fit it."""
    high = machine.attest()
    log = BootLog.recorded()
    log.replace_variable("SecureBoot", b"\0")
    machine.log = log
    low = machine.boot().attest()
    assert (high.report.level, low.report.level) == (SecurityLevel.ENFORCED_CODE, SecurityLevel.ROOTED)
    runtime = low.runtime_report(NONCE, AUDIENCE, session_report=high.report.digest)
    for swapped in (runtime, low.runtime_report(NONCE, AUDIENCE)):
        with pytest.raises(ForgedError):
            verify_passport(
                encode_passport(Passport(high.report_bytes, swapped)),
                root=root_pem(world.service),
                expected_nonce=NONCE,
                now=world.service.now,
                expected_audience=AUDIENCE,
                expected_device=None,
            )


def test_a_passport_of_another_healthy_machine_is_not_the_machines(world: World, machine: Machine) -> None:
    """A relay may forward the question to a healthy machine; who expects a device notices (13, 14)."""
    healthy, expected = world.machine().attest(), machine.attest()
    with pytest.raises(NotForUsError, match="device"):
        verify_passport(
            healthy.passport(),
            root=root_pem(world.service),
            expected_nonce=NONCE,
            now=world.service.now,
            expected_audience=AUDIENCE,
            expected_device=expected.report.device,
        )


def test_a_passport_under_another_root_is_refused(world: World, machine: Machine) -> None:
    """Everything in it is in order, for people who trust somebody else."""
    other = make_world(world.service.settings.folder.parent / "other")
    with pytest.raises(NotForUsError, match="root"):
        verify_passport(
            machine.attest().passport(),
            root=root_pem(other.service),
            expected_nonce=NONCE,
            now=world.service.now,
            expected_audience=AUDIENCE,
            expected_device=None,
        )


def test_a_monitor_launched_for_another_service_is_refused(world: World, machine: Machine) -> None:
    """Two services cannot be played against each other: the record names the one root."""
    other = make_world(world.service.settings.folder.parent / "other")
    machine.record = replace(machine.record, service_root=other.service.context.root_digest)
    machine.boot()
    with pytest.raises(ForgedError, match="another service"):
        machine.attest()


def test_rules_of_an_unknown_publisher_cost_the_level(world: World) -> None:
    """Rules that the operator did not publish say nothing about the kernel, however well they are signed."""
    session = world.machine(rules_root=b"\x52" * 32).attest()
    assert session.report.level is SecurityLevel.VERIFIED_BOOT
    missing = {each.claim: each.explanation for each in session.report.shortfalls}
    assert "rules root 5252525252525252.." in missing["rules_root_accepted"]


def test_a_known_publisher_of_rules_costs_nothing(tmp_path: Path) -> None:
    policy = AppraisalPolicy(rules_roots=frozenset({b"\x52" * 32}))
    world = make_world(tmp_path / "strict", policy=policy)
    assert world.machine(rules_root=b"\x52" * 32).attest().report.level is SecurityLevel.ENFORCED_CODE
    assert world.machine(rules_root=b"\x53" * 32).attest().report.level is SecurityLevel.VERIFIED_BOOT


def test_rules_of_another_fleet_than_policy_names_cost_the_level(tmp_path: Path) -> None:
    """The same publisher has laxer rules for other machines: a host may not choose those for its own."""
    policy = AppraisalPolicy(rules_roots=frozenset({b"\x52" * 32}), fleets=frozenset({"web"}))
    world = make_world(tmp_path / "strict", policy=policy)
    assert world.machine(rules_root=b"\x52" * 32).attest().report.level is SecurityLevel.ENFORCED_CODE
    report = world.machine(rules_root=b"\x52" * 32, fleet="sandboxes").attest().report
    assert report.level is SecurityLevel.VERIFIED_BOOT
    missing = {each.claim: each.explanation for each in report.shortfalls}
    assert "the fleet sandboxes" in missing["rules_root_accepted"]
    assert world.machine().attest().report.level is SecurityLevel.ENFORCED_CODE, "it takes no published rules"


def test_another_fleet_than_the_launched_one_is_refused(world: World) -> None:
    machine = world.machine(rules_root=b"\x52" * 32)
    machine.record = replace(machine.record, fleet="sandboxes")
    with pytest.raises(ForgedError, match="another launch"):
        machine.attest()


def test_another_rules_root_than_the_launched_one_is_refused(world: World, machine: Machine) -> None:
    """A host that pins another root after the launch contradicts PCR 17."""
    machine.record = replace(machine.record, rules_root=b"\x52" * 32, fleet="web")
    with pytest.raises(ForgedError, match="another launch"):
        machine.attest()
    machine.boot()
    assert machine.attest().report.level is SecurityLevel.VERIFIED_BOOT
