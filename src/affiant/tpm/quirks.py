"""What firmware and boot loaders do otherwise than the specification says, each named, as data.

A quirk never lowers what is proven. A digest quirk names one more part of an event's data that may
be what was hashed (`affiant.tpm.binding` hashes it and compares). A log quirk is a deviation of a
whole log, with the reader that knows it; there the quoted value decides. Adding one takes an entry
here, with where it was seen.

The specification is the TCG PC Client Platform Firmware Profile.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Final

from affiant.tpm.event_types import EventType

__all__ = ["DIGEST_QUIRKS", "LOG_QUIRKS", "DigestQuirk", "HashedPart", "LogQuirk", "digest_quirks"]


class HashedPart(enum.Enum):
    """Which part of an event's data a digest covers where it does not cover all of it."""

    VARIABLE_CONTENT = "the content of the variable, not its name"
    AFTER_PREFIX = "the string after a prefix, with or without its final zero"
    NAME_IN_ASCII = "the name, as ASCII with a final zero, where the log has UTF-16"
    WITHOUT_FINAL_ZERO = "the data without its final UTF-16 zero"


@dataclass(frozen=True, slots=True)
class DigestQuirk:
    """In events of `types` the digest may be of `part` alone; `seen_in` tells whose events these are."""

    name: str
    types: frozenset[int]
    part: HashedPart
    seen_in: str
    prefix: bytes = b""


@dataclass(frozen=True, slots=True)
class LogQuirk:
    """A deviation of a whole log, and what a reader does about it; `handled` says where."""

    name: str
    seen_in: str
    effect: str
    handled: str


_IPL: Final = frozenset({int(EventType.IPL)})
_VARIABLES: Final = frozenset(
    {
        int(EventType.EFI_VARIABLE_BOOT),
        int(EventType.EFI_VARIABLE_BOOT2),
        int(EventType.EFI_VARIABLE_AUTHORITY),
    }
)

DIGEST_QUIRKS: Final = (
    DigestQuirk(
        "variable-content-only",
        _VARIABLES,
        HashedPart.VARIABLE_CONTENT,
        "edk2 for EV_EFI_VARIABLE_BOOT (section 10.4.1 allows it), some firmware for the other two",
    ),
    DigestQuirk(
        "grub-command",
        _IPL,
        HashedPart.AFTER_PREFIX,
        "GRUB 2.06 and later, distributions before",
        b"grub_cmd: ",
    ),
    DigestQuirk(
        "grub-kernel-command-line", _IPL, HashedPart.AFTER_PREFIX, "GRUB 2.06 and later", b"kernel_cmdline: "
    ),
    DigestQuirk(
        "grub-module-command-line", _IPL, HashedPart.AFTER_PREFIX, "GRUB 2.06 and later", b"module_cmdline: "
    ),
    DigestQuirk("rhel8-grub-command", _IPL, HashedPart.AFTER_PREFIX, "GRUB 2.02 of RHEL 8", b"grub_cmd "),
    DigestQuirk(
        "rhel8-grub-kernel-command-line",
        _IPL,
        HashedPart.AFTER_PREFIX,
        "GRUB 2.02 of RHEL 8",
        b"grub_kernel_cmdline ",
    ),
    DigestQuirk(
        "systemd-section-name",
        _IPL,
        HashedPart.NAME_IN_ASCII,
        "systemd-stub since 252: the PE section's name into PCR 11",
    ),
    DigestQuirk(
        "systemd-command-line",
        _IPL,
        HashedPart.WITHOUT_FINAL_ZERO,
        "systemd-boot and systemd-stub: the kernel command line into PCR 12",
    ),
)

LOG_QUIRKS: Final = (
    LogQuirk(
        "padded-buffer",
        "Linux on some firmware, and every log that is read out of memory",
        "the log ends in zeros or ones, or inside an event",
        "affiant.tpm.event_log, when told that the log is padded",
    ),
    LogQuirk(
        "pcr-index-all-ones",
        "Windows: trust point events",
        "EV_NO_ACTION for the PCR index 0xffffffff",
        "affiant.tpm.event_log: no event that measures nothing needs a PCR",
    ),
    LogQuirk(
        "startup-locality-unlogged",
        "firmware with a hardware CRTM",
        "EV_EFI_HCRTM_EVENT with no or another Startup Locality event: PCR 0 starts from locality 4",
        "affiant.tpm.replay",
    ),
    LogQuirk(
        "final-events-apart",
        "UEFI: what is measured after the log was fetched",
        "ExitBootServices and the initial RAM disk are in the final events table only",
        "affiant.tpm.final_events",
    ),
    LogQuirk(
        "authority-hashed-otherwise",
        "shim 15 of Debian 10 on some firmware",
        "EV_EFI_VARIABLE_AUTHORITY whose digest is of something that is not logged",
        "affiant.tpm.secure_boot counts it as unexplained",
    ),
    LogQuirk(
        "ima-sha1-padded",
        "Linux before 5.8",
        "IMA extends every bank with its SHA-1 template digest, padded with zeros",
        "affiant.tpm.ima, which says so in its result",
    ),
    LogQuirk(
        "ima-violation",
        "Linux: a file open for writing while it is measured",
        "a template digest of zeros in the list, and ones in the PCR",
        "affiant.tpm.ima",
    ),
    LogQuirk(
        "userspace-log-uncounted",
        "systemd's log of userspace measurements",
        "records after RFC 7464 without CEL's recnum",
        "affiant.tpm.cel",
    ),
)


def digest_quirks(event_type: int) -> tuple[DigestQuirk, ...]:
    """The digest quirks of one event type, in the order in which they are tried."""
    return _BY_TYPE.get(event_type, ())


_BY_TYPE: Final[dict[int, tuple[DigestQuirk, ...]]] = {
    event_type: tuple(quirk for quirk in DIGEST_QUIRKS if event_type in quirk.types)
    for event_type in frozenset().union(*(quirk.types for quirk in DIGEST_QUIRKS))
}
