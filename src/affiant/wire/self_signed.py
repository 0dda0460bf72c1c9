"""EATs by a session key: signed together with the certificates that vouch for the key.

Reading one proves that it is unchanged since the holder of its first certificate's key signed it, whoever
that is. Whether the service vouched for that key is verified with the chain (`wire.certificates`).
"""

from __future__ import annotations

from collections.abc import Sequence

from affiant.model.errors import ForgedError
from affiant.model.runtime_report import RulesUsed
from affiant.wire.cbor import Item, Key
from affiant.wire.certificates import certificate_key, load_certificate
from affiant.wire.claims import EAT_CWT
from affiant.wire.cose import Signer, VerifiedSign1, parse_sign1, sign1, verify_sign1
from affiant.wire.fields import Fields

__all__ = ["read_rules_used", "read_self_signed", "sign_with_chain", "write_rules_used"]


def sign_with_chain(
    payload: bytes, *, key: Signer, certificates: Sequence[bytes], name: str, max_size: int
) -> bytes:
    """Return the message; `certificates` (DER) are the key's own and its CA's.

    Raises `ValueError` if it is longer than `max_size`.
    """
    message = sign1(payload, key=key, typ=EAT_CWT, certificates=certificates)
    if len(message) > max_size:
        raise ValueError(f"{name}: {len(message)} bytes, at most {max_size} are allowed")
    return message


def read_self_signed(data: bytes, *, name: str, max_size: int) -> VerifiedSign1:
    """Return what a message says, and the certificates that it brings.

    What holds then: the key of its first certificate signed it, certificates included. Raises
    `MalformedError` or `ForgedError` otherwise.
    """
    message = parse_sign1(data, name=name, max_size=max_size)
    if not message.certificates:
        raise ForgedError(f"{name}: it brings no certificate")
    leaf = "session certificate"
    key = certificate_key(load_certificate(message.certificates[0], name=leaf), leaf)
    return verify_sign1(message, key=key, typ=EAT_CWT)


def write_rules_used(rules: RulesUsed) -> Item:
    """Return the item that names a bundle."""
    return [rules.name, rules.version, rules.digest]


def read_rules_used(details: Fields, key: Key) -> RulesUsed:
    """Return the bundle that the item under `key` names. Raises `MalformedError` for another form."""
    rules = details.array(key, "rules", length=3)
    return RulesUsed(
        name=rules.text(0, "name", minimum=1, maximum=128),
        version=rules.integer(1, "version"),
        digest=rules.digest(2, "digest"),
    )
