"""What every exchange with a monitor needs: keys, storage, settings."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from cryptography.hazmat.primitives.serialization import Encoding
from sqlalchemy.engine import Engine

from affiant.service.ca import Authority
from affiant.service.published_rules import PublishedRules
from affiant.service.settings import ServiceSettings
from affiant.wire.envelope import read_envelope
from affiant.wire.seal import Direction, open_sealed

__all__ = ["ServiceContext"]


@dataclass(frozen=True, slots=True)
class ServiceContext:
    """One service: `engine` is its database, opened by `affiant.service.database`.

    `rules` is the repository of rules that it gives out, if any.
    """

    authority: Authority
    engine: Engine
    settings: ServiceSettings
    rules: PublishedRules | None = None

    @property
    def root_digest(self) -> bytes:
        """SHA-256 of the root certificate (DER), as launch records name it."""
        return hashlib.sha256(self.authority.root.public_bytes(Encoding.DER)).digest()

    def open_body(self, body: bytes) -> tuple[bytes, bytes]:
        """Return the challenge digest that a request's envelope names, and the plaintext it sealed.

        What holds then: it was sealed for this service and for that challenge. Whether the
        challenge was issued and is unspent is for the caller. Raises an EvidenceError.
        """
        challenge, sealed = read_envelope(body)
        plaintext = open_sealed(
            sealed, key=self.authority.sealing_key, direction=Direction.TO_SERVICE, challenge=challenge
        )
        return challenge, plaintext
