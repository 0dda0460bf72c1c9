"""What the launcher swears: record, identity key, PCR 17 on a real TPM."""

from __future__ import annotations

import copy
import datetime
import pickle

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from affiant.launcher.identity import IdentityKey
from affiant.launcher.record import launch_pcr17, make_launch_record
from affiant.launcher.vtpm.gateway import Gateway
from affiant.model.errors import ForgedError, UnavailableError
from affiant.tpm.drtm import expected_pcr17
from affiant.wire.enclave_report import verify_enclave_report
from affiant.wire.launch_record import decode_launch_record, encode_launch_record
from tests.unit.launcher.conftest import Bench
from tests.unit.launcher.fake_qemu import STARTUP_CLEAR, code_of


def certificate() -> x509.Certificate:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "root")])
    now = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
    return (
        x509.CertificateBuilder(name, name, key.public_key(), 1, now, now + datetime.timedelta(days=1))
        .sign(key, hashes.SHA256())
    )  # fmt: skip


def point() -> bytes:
    key = ec.generate_private_key(ec.SECP256R1()).public_key()
    return key.public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)


def test_enclave_report_says_what_the_record_says() -> None:
    identity, root, session_key = IdentityKey(), certificate(), point()
    record = make_launch_record(image_digest=b"i" * 32, service_root=root, identity=identity, debug=False)
    signed = identity.sign_enclave_report(
        record, challenge=b"c" * 32, session_key=session_key, sealing_key=b"s" * 32, rules_version=7
    )
    report = verify_enclave_report(signed, identity_key=record.identity_key, expected_challenge=b"c" * 32)
    assert (report.session_key, report.sealing_key, report.rules_version) == (session_key, b"s" * 32, 7)
    assert (report.monitor_image, report.debug) == (b"i" * 32, False)
    assert report.service_root == root.fingerprint(hashes.SHA256())
    assert report.security_version == record.security_version >= 1
    with pytest.raises(ForgedError):
        verify_enclave_report(signed, identity_key=IdentityKey().public, expected_challenge=b"c" * 32)


def test_a_fleet_is_sworn_to_with_the_root_of_its_rules_and_not_without() -> None:
    root, identity = certificate(), IdentityKey()
    for rules_root, sworn in ((b"root.json", "web"), (None, None)):
        record = make_launch_record(
            image_digest=bytes(32),
            service_root=root,
            identity=identity,
            debug=False,
            rules_root=rules_root,
            fleet="web",
        )
        assert decode_launch_record(encode_launch_record(record)).fleet == sworn


def test_record_of_another_launcher_is_misuse() -> None:
    record = make_launch_record(
        image_digest=bytes(32), service_root=certificate(), identity=IdentityKey(), debug=False
    )
    with pytest.raises(ValueError, match="another identity key"):
        IdentityKey().sign_enclave_report(
            record, challenge=bytes(32), session_key=point(), sealing_key=bytes(32), rules_version=0
        )


def test_identity_key_does_not_leave_its_process() -> None:
    identity = IdentityKey()
    for leave in (pickle.dumps, copy.deepcopy):
        with pytest.raises(TypeError):
            leave(identity)
    assert "0x" not in repr(identity)


def test_record_is_launched_and_quoted_by_anyones_arithmetic(bench: Bench) -> None:
    record = make_launch_record(
        image_digest=b"i" * 32, service_root=certificate(), identity=IdentityKey(), debug=True
    )
    encoding = encode_launch_record(record)
    assert decode_launch_record(encoding) == record
    bench.gateway._launch = launch_pcr17(encoding)
    bench.qemu.boot()
    assert bench.pcr17() == expected_pcr17(encoding)


def test_launch_that_does_not_arrive_is_no_launch(bench: Bench) -> None:
    """A TPM that swallows the hash sequence: the guest's TPM is lost rather than half launched."""
    gateway: Gateway = bench.gateway
    launch = launch_pcr17(b"record")

    gateway._launch = lambda execute, hash_sequence: launch(execute, lambda data: None)
    bench.qemu.hand_over_channel()
    bench.qemu.reset()
    assert code_of(bench.qemu.guest_sends(STARTUP_CLEAR)) == 0x101
    assert not gateway.launched
    assert gateway.generation == 0
    with pytest.raises(UnavailableError, match="PCR 17"), gateway.secure_world():
        pass
