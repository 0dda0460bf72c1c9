"""Command bytes against the specification's layout, and responses that no TPM should send."""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from affiant.model.errors import AffiantError, MalformedError
from affiant.tpm import command_bytes, templates
from affiant.tpm.algorithms import HashAlgorithm
from affiant.tpm.command import MAXIMUM_RESPONSE, Command
from affiant.tpm.octets import sized
from affiant.tpm.response_code import CommandRefusedError, ResponseCode
from tests.unit.tpm.attester import Attester

SECRET = b"launch secret"
COMMANDS: list[Command[Any]] = [
    command_bytes.startup(),
    command_bytes.shutdown(),
    command_bytes.create_primary(templates.ATTESTATION_KEY, user_auth=SECRET),
    command_bytes.evict_control(0x80000000, 0x81000100),
    command_bytes.clear(hierarchy=command_bytes.PLATFORM),
    command_bytes.flush_context(0x80000000),
    command_bytes.read_public(0x81010001),
    command_bytes.nv_read_public(command_bytes.NV_EK_CERTIFICATE_RSA_2048),
    command_bytes.nv_read(command_bytes.NV_EK_CERTIFICATE_RSA_2048, size=1024),
    command_bytes.pcr_read([0, 17]),
    command_bytes.pcr_extend(16, bytes(32)),
    command_bytes.quote(0x81000100, auth=SECRET, extra_data=bytes(32), pcrs=[0, 17]),
    command_bytes.start_policy_session(bytes(16)),
    command_bytes.policy_secret(0x03000000),
    command_bytes.activate_credential(
        0x81000100,
        0x81010001,
        auth=SECRET,
        session=0x03000000,
        credential_blob=sized(b"blob"),
        encrypted_secret=sized(b"seed"),
    ),
    command_bytes.get_random(32),
    command_bytes.get_handles(0x81000000),
    command_bytes.get_pcr_banks(),
]


def ids(command: Command[Any]) -> str:
    return command.name


def response(parameters: bytes, *, code: int = 0, tag: int = 0x8001, handle: bytes = b"") -> bytes:
    body = handle + (struct.pack(">I", len(parameters)) + parameters if tag == 0x8002 else parameters)
    return struct.pack(">HII", tag, 10 + len(body), code) + body


@pytest.mark.parametrize("command", COMMANDS, ids=ids)
def test_the_header_states_the_size_and_the_sessions(command: Command[Any]) -> None:
    tag, size, _ = struct.unpack_from(">HII", command.encoding)
    assert size == len(command.encoding)
    assert tag in (0x8001, 0x8002)


@pytest.mark.parametrize("command", COMMANDS, ids=ids)
def test_no_command_shows_its_authorization(command: Command[Any]) -> None:
    assert SECRET.decode() not in repr(command)
    assert SECRET.hex() not in repr(command)


def test_a_quote_is_laid_out_as_specified() -> None:
    """Part 3, section 18.4: handle, authorization area, qualifyingData, inScheme, PCRselect."""
    command = command_bytes.quote(0x81000100, auth=b"A", extra_data=b"xy", pcrs=[17, 0])
    assert command.encoding.hex() == (
        "8002" "0000002c" "00000158" "81000100"
        "0000000a" "40000009" "0000" "01" "0001" "41"
        "0002" "7879" "0010" "00000001" "000b" "03" "010002"
    )  # fmt: skip


@pytest.mark.parametrize("command", COMMANDS, ids=ids)
def test_a_refusal_names_command_and_reason(command: Command[Any]) -> None:
    with pytest.raises(CommandRefusedError) as refusal:
        command.read_response(response(b"", code=0x98E))
    assert command.name in str(refusal.value)
    assert refusal.value.code == ResponseCode(0x98E)
    assert str(refusal.value.code) == "TPM_RC_AUTH_FAIL (session 1)"


@pytest.mark.parametrize(
    ("value", "name", "where"),
    [
        (0x101, "FAILURE", ""),
        (0x921, "LOCKOUT", ""),
        (0x922, "RETRY", ""),
        (0x2C4, "VALUE", "parameter 2"),
        (0x18B, "HANDLE", "handle 1"),
        (0xA9D, "POLICY_FAIL", "session 2"),
        (0x14C, "NV_DEFINED", ""),
        (0x084, "VALUE", ""),
        (0x01E, "BAD_TAG", ""),
        (0xFFFFFFFF, "0xffffffff", "parameter 15"),
    ],
)
def test_response_codes_have_names(value: int, name: str, where: str) -> None:
    code = ResponseCode(value)
    assert (code.name, code.where) == (name, where)


def test_transient_refusals_say_so() -> None:
    assert ResponseCode(0x922).is_transient
    assert not ResponseCode(0x921).is_transient
    assert CommandRefusedError("TPM2_Quote", ResponseCode(0x922)).hint == "send it again"


@pytest.mark.parametrize("command", COMMANDS, ids=ids)
@pytest.mark.parametrize(
    "answer",
    [
        b"",
        bytes(9),
        bytes(MAXIMUM_RESPONSE + 1),
        struct.pack(">HII", 0x8001, 11, 0),
        struct.pack(">HII", 0x1234, 10, 0),
        response(bytes(900)),
        response(bytes(900), tag=0x8002, handle=bytes(4)),
        struct.pack(">HIII", 0x8002, 14, 0, 0xFFFFFFFF),
    ],
    ids=["empty", "short", "long", "size", "tag", "rest", "sessions", "overrun"],
)
def test_what_is_no_response_is_malformed(command: Command[Any], answer: bytes) -> None:
    with pytest.raises(MalformedError):
        command.read_response(answer)


def test_a_public_area_under_another_name_is_refused() -> None:
    public = Attester().public
    command = command_bytes.read_public(0x81000100)
    true_name = b"\0\x0b" + HashAlgorithm.SHA256.digest(public[2:])
    tail = sized(b"")
    assert command.read_response(response(public + sized(true_name) + tail)).to_tpm2b() == public
    with pytest.raises(MalformedError, match="Name"):
        command.read_response(response(public + sized(bytes(34)) + tail))


def test_fewer_pcrs_than_asked_for_are_refused() -> None:
    command = command_bytes.pcr_read([0, 17])
    only_zero = bytes.fromhex("0000000700000001000b0301000000000001") + sized(bytes(32))
    with pytest.raises(MalformedError, match="no values"):
        command.read_response(response(only_zero))


@pytest.mark.parametrize(
    "misuse",
    [
        lambda: command_bytes.pcr_read([]),
        lambda: command_bytes.pcr_read(range(9)),
        lambda: command_bytes.pcr_read([24]),
        lambda: command_bytes.pcr_extend(16, bytes(20)),
        lambda: command_bytes.nv_read(1, size=0),
        lambda: command_bytes.nv_read(1, size=1025),
        lambda: command_bytes.get_random(65),
        lambda: command_bytes.start_policy_session(bytes(15)),
        lambda: command_bytes.create_primary(templates.ATTESTATION_KEY, user_auth=bytes(33)),
        lambda: sized(bytes(65536)),
    ],
)
def test_misuse_is_told(misuse: Callable[[], object]) -> None:
    with pytest.raises(ValueError, match=r"."):
        misuse()


@pytest.mark.parametrize("smuggled", [b"", b"\0", sized(b"blob") + b"more", b"\xff\xff" + b"x" * 40])
def test_a_service_cannot_smuggle_parameters_into_a_command(smuggled: bytes) -> None:
    for blob, secret in ((smuggled, sized(b"s")), (sized(b"b"), smuggled)):
        with pytest.raises(MalformedError):
            command_bytes.activate_credential(
                1, 2, auth=b"", session=3, credential_blob=blob, encrypted_secret=secret
            )


@given(st.sampled_from(COMMANDS), st.binary(max_size=120), st.sampled_from([0x8001, 0x8002]))
def test_arbitrary_responses_break_nothing(command: Command[Any], parameters: bytes, tag: int) -> None:
    with contextlib.suppress(AffiantError):
        command.read_response(response(parameters, tag=tag, handle=b"\x80\0\0\0"))
