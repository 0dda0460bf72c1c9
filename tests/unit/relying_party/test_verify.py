"""A passport is verified offline, or refused for what is wrong with it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from affiant.model.errors import EvidenceError, ForgedError, MalformedError
from affiant.model.passport import Passport
from affiant.relying_party.verify import NotForUsError, VerifiedPassport, verify_passport
from affiant.wire import issuance, runtime_report
from affiant.wire.claims import CLOCK_LEEWAY
from affiant.wire.passport import encode_passport
from affiant.wire.session_report import session_report_digest
from tests.unit.wire import world


def verify(passport: bytes = world.PASSPORT_BYTES, **bent: Any) -> VerifiedPassport:
    """Verify with truthful expectations, except for what is `bent`."""
    expectations: dict[str, Any] = {
        "root": world.ROOT,
        "expected_nonce": world.NONCE,
        "now": world.NOW + 1,
        "expected_audience": world.AUDIENCE,
        "expected_device": world.DEVICE,
    }
    return verify_passport(passport, **expectations | bent)


def passport_of(*, session: dict[str, Any] | None = None, runtime: dict[str, Any] | None = None) -> bytes:
    """Return a passport with fields of either report bent, truly signed and bound together."""
    session_bytes = world.sign_session(replace(world.SESSION_REPORT, **session or {}))
    report = replace(world.RUNTIME_REPORT, session_report=session_report_digest(session_bytes))
    return encode_passport(Passport(session_bytes, world.sign_runtime(replace(report, **runtime or {}))))


def test_a_truthful_passport_is_verified() -> None:
    verified = verify()
    assert verified.session == world.SESSION_REPORT
    assert verified.runtime == world.RUNTIME_REPORT
    assert verified.verified_at == world.NOW + 1


def test_bending_nothing_is_accepted() -> None:
    """So that the refusals below are for the one thing bent; only the signatures are new."""
    assert verify(passport_of()).session.session_id == world.SESSION_ID


@pytest.mark.parametrize("encoding", [Encoding.PEM, Encoding.DER])
def test_the_root_may_be_bytes_and_now_a_datetime(encoding: Encoding) -> None:
    now = datetime.fromtimestamp(world.NOW + 1, UTC)
    assert verify(root=world.ROOT.public_bytes(encoding), now=now) == verify()


def test_audience_and_device_may_be_unknown_to_the_caller() -> None:
    assert verify(expected_audience=None, expected_device=None) == verify()


REFUSALS: dict[str, tuple[Callable[[], object], str]] = {
    "another root": (lambda: verify(root=world.OTHER_AUTHORITY.root), "another root"),
    "another nonce": (lambda: verify(expected_nonce=b"\x0f" * 32), "another nonce"),
    "another audience": (lambda: verify(expected_audience="bank.example"), "gate.example"),
    "another device": (lambda: verify(expected_device=b"\x01" + bytes(16)), "device"),
    "runtime report expired": (lambda: verify(now=world.NOW + 60), "expired"),
    "runtime report from the future": (
        lambda: verify(
            now=world.NOW - CLOCK_LEEWAY - 1 + 60,
            passport=passport_of(runtime={"issued_at": world.NOW + 61, "expires_at": world.NOW + 90}),
        ),
        "not yet valid",
    ),
    "session report expired": (
        lambda: verify(
            passport_of(runtime={"issued_at": world.NOW + 2999, "expires_at": world.NOW + 3200}),
            now=world.NOW + 3000,
        ),
        "session report: expired",
    ),
    "session certificate expired": (lambda: verify(now=world.NOW + 3541), "expired at"),
    "session certificate not yet valid": (lambda: verify(now=world.NOW - 61), "not valid before"),
    "reports of two devices": (
        lambda: verify(passport_of(session={"device": b"\x01" + b"\xdf" * 16}), expected_device=None),
        "another device",
    ),
    "another reference image": (
        lambda: verify(passport_of(runtime={"reference": b"\x4f" * 32})),
        "another reference image",
    ),
    "report made before the session": (
        lambda: verify(passport_of(session={"issued_at": world.NOW + 1}), now=world.NOW + 2),
        "another time",
    ),
    "session report about another key": (
        lambda: verify(passport_of(session={"session_key_thumbprint": b"\x7f" * 32})),
        "another key",
    ),
    "session report of another session": (
        lambda: verify(passport_of(session={"session_id": b"\x5f" * 16})),
        "another session",
    ),
}


@pytest.mark.parametrize("attack", REFUSALS)
def test_a_whole_passport_that_is_no_answer_is_refused(attack: str) -> None:
    run, words = REFUSALS[attack]
    with pytest.raises(NotForUsError, match=words):
        run()


def test_a_session_report_by_another_service_is_refused() -> None:
    """The session certificate leads to the root; the report that grants the level does not."""
    session = world.sign_session(world.SESSION_REPORT, world.OTHER_AUTHORITY)
    runtime = replace(world.RUNTIME_REPORT, session_report=session_report_digest(session))
    with pytest.raises(NotForUsError, match=r"service certificate.*another root"):
        verify(encode_passport(Passport(session, world.sign_runtime(runtime))))


def test_a_session_key_that_the_root_does_not_certify_is_refused() -> None:
    """The host makes a key and a certificate of its own, and names itself after the service."""
    impostor = world.build_authority(world.STRANGER_KEY)
    runtime = world.sign_runtime(world.RUNTIME_REPORT, impostor)
    with pytest.raises(NotForUsError, match="session certificate"):
        verify(encode_passport(Passport(world.SESSION_REPORT_BYTES, runtime)))


def test_a_runtime_report_with_the_service_certificate_is_refused() -> None:
    chain = (world.der(world.AUTHORITY.service), world.der(world.AUTHORITY.session_ca))
    runtime = runtime_report.sign_runtime_report(
        world.RUNTIME_REPORT, key=world.SERVICE_KEY, certificates=chain
    )
    with pytest.raises(NotForUsError, match="certificate"):
        verify(encode_passport(Passport(world.SESSION_REPORT_BYTES, runtime)))


def test_a_runtime_report_by_another_session_of_the_same_service_is_refused() -> None:
    """A compromised session's key cannot borrow the session report of a better machine."""
    certificate = issuance.build_session_certificate(
        key=world.STRANGER_KEY.public_key(),
        session_id=world.SESSION_ID,
        authority=world.AUTHORITY.session_ca,
        authority_key=world.AUTHORITY_KEY,
        serial=9,
        not_before=world.NOW - 60,
        not_after=world.NOW + 3000,
    )
    runtime = runtime_report.sign_runtime_report(
        world.RUNTIME_REPORT,
        key=world.STRANGER_KEY,
        certificates=(world.der(certificate), world.der(world.AUTHORITY.session_ca)),
    )
    with pytest.raises(NotForUsError, match="another key"):
        verify(encode_passport(Passport(world.SESSION_REPORT_BYTES, runtime)))


def test_an_older_session_report_beside_a_new_runtime_report_is_refused() -> None:
    older = world.sign_session(replace(world.SESSION_REPORT, issued_at=world.NOW - 10))
    with pytest.raises(ForgedError, match="not the one that its runtime report names"):
        verify(encode_passport(Passport(older, world.RUNTIME_REPORT_BYTES)))


def test_a_monitor_without_a_reference_does_not_contradict_the_session() -> None:
    """Whether that is good enough is decided, not verified."""
    assert verify(passport_of(runtime={"reference": None})).runtime.reference is None
    assert verify(passport_of(session={"reference": None})).session.reference is None


def test_no_flipped_bit_is_accepted_or_taken_for_a_refusal() -> None:
    """Damage is told apart from refusal: never accepted, never blamed on the machine."""
    data = world.PASSPORT_BYTES
    for position in range(len(data)):
        for bit in (position % 8, (position + 3) % 8):
            bent = bytearray(data)
            bent[position] ^= 1 << bit
            with pytest.raises(EvidenceError) as raised:
                verify(bytes(bent))
            assert not isinstance(raised.value, NotForUsError), position


def test_truncated_lengthened_and_oversized_passports_are_malformed() -> None:
    for end in range(len(world.PASSPORT_BYTES)):
        with pytest.raises(MalformedError):
            verify(world.PASSPORT_BYTES[:end])
    with pytest.raises(MalformedError, match="after the end"):
        verify(world.PASSPORT_BYTES + b"\x00")
    with pytest.raises(MalformedError, match="at most"):
        verify(world.PASSPORT_BYTES + bytes(1 << 20))


@pytest.mark.parametrize(
    "root", [b"", b"-----BEGIN CERTIFICATE-----", b"\x30\x00", world.der(world.AUTHORITY.session)]
)
def test_a_root_that_is_none_is_told(root: bytes) -> None:
    with pytest.raises(MalformedError, match="root certificate"):
        verify(root=root)


def test_misuse_is_a_value_error() -> None:
    with pytest.raises(ValueError, match="32 bytes"):
        verify(expected_nonce=b"short")
    with pytest.raises(ValueError, match="time zone"):
        verify(now=datetime(2027, 1, 15))
