"""What a TPM answers when it refuses: response codes and their names (TPM 2.0 Library, Part 2, 6.6)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from affiant.model.errors import UnavailableError

__all__ = ["CommandRefusedError", "ResponseCode"]

_FORMAT_ONE: Final = 0x080
_PARAMETER: Final = 0x040
_VERSION_1: Final = 0x100
_WARNING: Final = 0x900

# Format one: codes that say which handle, session or parameter is meant (Part 2, table 17, RC_FMT1).
_FORMAT_ONE_NAMES: Final = {
    0x01: "ASYMMETRIC", 0x02: "ATTRIBUTES", 0x03: "HASH", 0x04: "VALUE", 0x05: "HIERARCHY",
    0x07: "KEY_SIZE", 0x08: "MGF", 0x09: "MODE", 0x0A: "TYPE", 0x0B: "HANDLE", 0x0C: "KDF",
    0x0D: "RANGE", 0x0E: "AUTH_FAIL", 0x0F: "NONCE", 0x10: "PP", 0x12: "SCHEME", 0x15: "SIZE",
    0x16: "SYMMETRIC", 0x17: "TAG", 0x18: "SELECTOR", 0x1A: "INSUFFICIENT", 0x1B: "SIGNATURE",
    0x1C: "KEY", 0x1D: "POLICY_FAIL", 0x1F: "INTEGRITY", 0x20: "TICKET", 0x21: "RESERVED_BITS",
    0x22: "BAD_AUTH", 0x23: "EXPIRED", 0x24: "POLICY_CC", 0x25: "BINDING", 0x26: "CURVE",
    0x27: "ECC_POINT",
}  # fmt: skip

_VERSION_1_NAMES: Final = {
    0x00: "INITIALIZE", 0x01: "FAILURE", 0x03: "SEQUENCE", 0x0B: "PRIVATE", 0x19: "HMAC",
    0x20: "DISABLED", 0x21: "EXCLUSIVE", 0x24: "AUTH_TYPE", 0x25: "AUTH_MISSING", 0x26: "POLICY",
    0x27: "PCR", 0x28: "PCR_CHANGED", 0x2D: "UPGRADE", 0x2E: "TOO_MANY_CONTEXTS",
    0x2F: "AUTH_UNAVAILABLE", 0x30: "REBOOT", 0x31: "UNBALANCED", 0x42: "COMMAND_SIZE",
    0x43: "COMMAND_CODE", 0x44: "AUTHSIZE", 0x45: "AUTH_CONTEXT", 0x46: "NV_RANGE", 0x47: "NV_SIZE",
    0x48: "NV_LOCKED", 0x49: "NV_AUTHORIZATION", 0x4A: "NV_UNINITIALIZED", 0x4B: "NV_SPACE",
    0x4C: "NV_DEFINED", 0x50: "BAD_CONTEXT", 0x51: "CPHASH", 0x52: "PARENT", 0x53: "NEEDS_TEST",
    0x54: "NO_RESULT", 0x55: "SENSITIVE",
}  # fmt: skip

_WARNING_NAMES: Final = {
    0x01: "CONTEXT_GAP", 0x02: "OBJECT_MEMORY", 0x03: "SESSION_MEMORY", 0x04: "MEMORY",
    0x05: "SESSION_HANDLES", 0x06: "OBJECT_HANDLES", 0x07: "LOCALITY", 0x08: "YIELDED",
    0x09: "CANCELED", 0x0A: "TESTING", 0x10: "REFERENCE_H0", 0x11: "REFERENCE_H1",
    0x12: "REFERENCE_H2", 0x18: "REFERENCE_S0", 0x19: "REFERENCE_S1", 0x20: "NV_RATE",
    0x21: "LOCKOUT", 0x22: "RETRY", 0x23: "NV_UNAVAILABLE",
}  # fmt: skip

_AGAIN: Final = frozenset({"YIELDED", "TESTING", "NV_RATE", "RETRY", "NV_UNAVAILABLE"})


@dataclass(frozen=True, slots=True)
class ResponseCode:
    """A TPM_RC other than success.

    `name` is the specification's, without TPM_RC_ (`HANDLE`, `LOCKOUT`), or the number in hex.
    `where` names the handle, session or parameter meant (`parameter 2`), or is empty.
    """

    value: int

    @property
    def name(self) -> str:
        """The constant's name without its prefix."""
        code, names = self._table()
        return names.get(code, f"0x{self.value:03x}")

    @property
    def where(self) -> str:
        """Which of the command's handles, sessions or parameters is at fault."""
        if not self.value & _FORMAT_ONE:
            return ""
        number = self.value >> 8 & 0xF
        if self.value & _PARAMETER:
            return f"parameter {number}"
        if number & 0x8:
            return f"session {number & 0x7}"
        return f"handle {number}" if number else ""

    @property
    def is_transient(self) -> bool:
        """Whether the specification says to send the same command again."""
        return self.name in _AGAIN

    def _table(self) -> tuple[int, dict[int, str]]:
        if self.value & _FORMAT_ONE:
            return self.value & 0x3F, _FORMAT_ONE_NAMES
        if self.value & _WARNING == _WARNING:
            return self.value & 0x7F, _WARNING_NAMES
        if self.value & _VERSION_1:
            return self.value & 0x7F, _VERSION_1_NAMES
        return self.value, {0x01E: "BAD_TAG"}

    def __str__(self) -> str:
        return f"TPM_RC_{self.name}" + (f" ({self.where})" if self.where else "")


class CommandRefusedError(UnavailableError):
    """The TPM answered a command with a response code other than success."""

    def __init__(self, command: str, code: ResponseCode) -> None:
        hint = "send it again" if code.is_transient else ""
        super().__init__(f"the TPM refused {command}: {code}", hint=hint)
        self.command = command
        self.code = code
