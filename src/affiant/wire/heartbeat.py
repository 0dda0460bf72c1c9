"""Heartbeats: the service's signed word that it received a runtime report, with the next nonce.

A heartbeat is a runtime report with the service as its audience. The first of a session answers to
`first_heartbeat_nonce`, each later one to the nonce of the acknowledgement before: a monitor that
was copied or rolled back cannot answer twice.
"""

from __future__ import annotations

import hashlib

from cryptography import x509

from affiant.model.errors import ForgedError
from affiant.model.heartbeat import HeartbeatAcknowledgement
from affiant.wire import cbor
from affiant.wire.cbor import Item, Key
from affiant.wire.cose import Signer
from affiant.wire.fields import Fields
from affiant.wire.service_message import sign_by_service, verify_by_service
from affiant.wire.writing import encode_checked

__all__ = ["first_heartbeat_nonce", "sign_acknowledgement", "verify_acknowledgement"]

_TYP = "application/vnd.affiant.heartbeat-acknowledgement+cbor"
_NAME = "heartbeat acknowledgement"
_MAX_SIZE = 8192


def first_heartbeat_nonce(session_report_digest: bytes) -> bytes:
    """Return the nonce (32 bytes) of a session's first heartbeat.

    Nobody can know it before the service made the session: the report holds a fresh session id.
    """
    return hashlib.sha256(cbor.encode(["affiant/1/heartbeat", session_report_digest])).digest()


def sign_acknowledgement(
    acknowledgement: HeartbeatAcknowledgement, *, key: Signer, certificate: x509.Certificate
) -> bytes:
    """Return the signed message. Raises `ValueError` for values beyond its bounds."""
    fields: dict[Key, Item] = {
        1: acknowledgement.runtime_report,
        2: acknowledgement.next_nonce,
        3: acknowledgement.received_at,
        4: acknowledgement.next_by,
    }
    if acknowledgement.rules is not None:
        fields[5] = acknowledgement.rules
    payload = encode_checked(fields, _read)
    return sign_by_service(payload, key=key, certificate=certificate, typ=_TYP)


def verify_acknowledgement(
    data: bytes, *, root: x509.Certificate, now: int, expected_report: bytes
) -> HeartbeatAcknowledgement:
    """Return the service's acknowledgement.

    What holds then:
    - the service signed it: the chain of its certificate leads to `root`, at `now`;
    - it received exactly the runtime report with the digest `expected_report`;
    - the next heartbeat is due after it was received.

    Raises `MalformedError` or `ForgedError` otherwise.
    """
    message = verify_by_service(data, name=_NAME, typ=_TYP, max_size=_MAX_SIZE, root=root, now=now)
    acknowledgement = _read(message.payload)
    if acknowledgement.runtime_report != expected_report:
        raise ForgedError(f"{_NAME}: of another report")
    return acknowledgement


def _read(payload: bytes) -> HeartbeatAcknowledgement:
    fields = Fields.of_map(cbor.decode(payload, max_size=_MAX_SIZE, name=_NAME), _NAME)
    acknowledgement = HeartbeatAcknowledgement(
        runtime_report=fields.digest(1, "runtime report"),
        next_nonce=fields.octets(2, "next nonce", size=32),
        received_at=fields.integer(3, "time of receipt"),
        next_by=fields.integer(4, "next by"),
        rules=fields.optional(fields.digest, 5, "rules"),
    )
    fields.close()
    if acknowledgement.next_by <= acknowledgement.received_at:
        raise fields.error("next by", "not after the time of receipt")
    return acknowledgement
