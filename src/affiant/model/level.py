"""Security levels: how far a machine's runtime reports can be trusted.

Only the attestation service assigns a level, and only from verified claims. The table of
requirements is published in `docs/security-levels.md`; runtime findings never change a level.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

__all__ = ["SecurityLevel", "Shortfall"]


class SecurityLevel(enum.IntEnum):
    """Each level includes all requirements of those below it."""

    UNPROVEN = 0
    ROOTED = 1
    VERIFIED_BOOT = 2
    ISOLATED = 3
    ENFORCED_CODE = 4
    HARDWARE_ROOTED_HOST = 5

    @property
    def title(self) -> str:
        """The level's name as people read it, such as `verified boot`."""
        return {5: "hardware-rooted host"}.get(self.value, self.name.lower().replace("_", " "))


@dataclass(frozen=True, slots=True)
class Shortfall:
    """One requirement that keeps a machine from `level`.

    `claim` is the positive-polarity name (`secure_boot_enabled`), `explanation` one sentence that
    says what was expected and what was found, or that nothing was.
    """

    level: SecurityLevel
    claim: str
    explanation: str
