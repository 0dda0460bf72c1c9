"""What can go wrong, in three families that are handled differently.

    AffiantError
    ├── EvidenceError        the bytes are bad: never trust them, never retry with the same ones
    │   ├── MalformedError   they do not follow their format (or exceed a bound)
    │   └── ForgedError      they follow it, and a proof that they must carry fails
    ├── UnavailableError     the world failed (no socket, no guest, no package): trying again may help
    └── SetupError           the person or the configuration asked for something that cannot be done

Misuse of a function by its caller is a plain `ValueError`. What is true but unwelcome is no
exception at all but a `affiant.model.finding.Finding`.
"""

from __future__ import annotations

__all__ = [
    "AffiantError",
    "EvidenceError",
    "ForgedError",
    "MalformedError",
    "SetupError",
    "UnavailableError",
]


class AffiantError(Exception):
    """Something a person must be told, with what to do next in `hint` (may be empty)."""

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


class EvidenceError(AffiantError):
    """Evidence that proves nothing, because it is malformed or forged."""


class MalformedError(EvidenceError):
    """Bytes from outside that do not follow their format, or exceed one of its bounds."""


class ForgedError(EvidenceError):
    """Well-formed evidence whose signature, digest, nonce or binding does not hold."""


class UnavailableError(AffiantError):
    """Something outside Affiant did not answer or is not there."""


class SetupError(AffiantError):
    """A setting, an argument or the machine makes the request impossible as it was put."""
