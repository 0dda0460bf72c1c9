"""The enclave report: what it says, and to whom it answers."""

from __future__ import annotations

from dataclasses import replace

import pytest

from affiant.model.errors import ForgedError, MalformedError
from affiant.wire import cbor
from affiant.wire.cose import parse_sign1, sign1
from affiant.wire.enclave_report import claimed_session_key, sign_enclave_report, verify_enclave_report
from tests.unit.wire import world


def verify(data: bytes = world.ENCLAVE_REPORT_BYTES, **bent: bytes) -> object:
    expectations = {
        "identity_key": world.point(world.IDENTITY_KEY),
        "expected_challenge": world.CHALLENGE.digest,
    }
    return verify_enclave_report(data, **expectations | bent)


def test_another_identity_key_is_refused() -> None:
    with pytest.raises(ForgedError, match="signature"):
        verify(identity_key=world.point(world.STRANGER_KEY))


def test_a_report_for_another_challenge_is_refused() -> None:
    with pytest.raises(ForgedError, match="another challenge"):
        verify(expected_challenge=b"\xcc" * 32)


def test_debugging_is_told() -> None:
    data = sign_enclave_report(replace(world.ENCLAVE_REPORT, debug=True), key=world.IDENTITY_KEY)
    assert verify(data).debug is True  # type: ignore[attr-defined]


def test_the_claimed_session_key_is_the_one_signed() -> None:
    assert claimed_session_key(world.ENCLAVE_REPORT_BYTES) == world.point(world.SESSION_KEY)


@pytest.mark.parametrize("status", [1, 3, 4, True, None])
def test_other_debug_states_are_refused(status: object) -> None:
    claims = cbor.decode(
        parse_sign1(world.ENCLAVE_REPORT_BYTES, name="report", max_size=4096).payload, max_size=4096
    )
    assert isinstance(claims, dict)
    claims[263] = status
    with pytest.raises(MalformedError, match="debug status"):
        verify(sign1(cbor.encode(claims), key=world.IDENTITY_KEY, typ="application/eat+cwt"))


def test_the_rules_root_is_told_and_nothing_follows_it() -> None:
    pinned = replace(world.ENCLAVE_REPORT, rules_root=b"\x77" * 32)
    data = sign_enclave_report(pinned, key=world.IDENTITY_KEY)
    assert verify(data).rules_root == b"\x77" * 32  # type: ignore[attr-defined]
    assert verify().rules_root is None  # type: ignore[attr-defined]
    claims = cbor.decode(parse_sign1(data, name="report", max_size=4096).payload, max_size=4096)
    assert isinstance(claims, dict)
    measurements = claims[273]
    assert isinstance(measurements, list)
    measurements.append(measurements[2])
    with pytest.raises(MalformedError, match="measurements"):
        verify(sign1(cbor.encode(claims), key=world.IDENTITY_KEY, typ="application/eat+cwt"))


def test_the_two_versions_must_agree() -> None:
    """The software version and the measured component's version say the same thing twice."""
    claims = cbor.decode(
        parse_sign1(world.ENCLAVE_REPORT_BYTES, name="report", max_size=4096).payload, max_size=4096
    )
    assert isinstance(claims, dict)
    claims[271] = ["9.9.9"]
    with pytest.raises(MalformedError, match="version"):
        verify(sign1(cbor.encode(claims), key=world.IDENTITY_KEY, typ="application/eat+cwt"))


@pytest.mark.parametrize(
    "bend",
    [
        {"challenge": b"short"},
        {"session_key": b"\x04" + bytes(64)},
        {"sealing_key": bytes(31)},
        {"monitor_image": b""},
        {"monitor_version": ""},
        {"monitor_version": "9" * 65},
        {"security_version": -1},
        {"rules_version": 1 << 63},
    ],
)
def test_values_out_of_bounds_are_misuse(bend: dict[str, object]) -> None:
    with pytest.raises(ValueError):
        sign_enclave_report(replace(world.ENCLAVE_REPORT, **bend), key=world.IDENTITY_KEY)  # type: ignore[arg-type]
