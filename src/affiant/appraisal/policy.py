"""The appraisal policy: what an operator accepts, as one value with one digest.

The digest goes into every session report, so that a relying party can pin the policy under which
a level was given.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, fields

from affiant.appraisal.boot_rules import NO_RULES, BootRules
from affiant.wire import cbor

__all__ = [
    "DEBIAN_SECURE_BOOT_CA",
    "MICROSOFT_UEFI_CA_2011",
    "MICROSOFT_UEFI_CA_2023",
    "MICROSOFT_WINDOWS_PCA_2011",
    "REQUIRED_PCRS",
    "AcceptedMonitor",
    "AppraisalPolicy",
    "policy_digest",
]

REQUIRED_PCRS: tuple[int, ...] = (*range(10), 14, 17)
"""Firmware and boot loader (0-9), shim's owner keys (14), the launch record (17)."""

# SHA-256 of the DER certificates, as shipped in OVMF's variable store and in Debian's shim.
MICROSOFT_WINDOWS_PCA_2011 = bytes.fromhex("e8e95f0733a55e8bad7be0a1413ee23c51fcea64b3c8fa6a786935fddcc71961")
MICROSOFT_UEFI_CA_2011 = bytes.fromhex("48e99b991f57fc52f76149599bff0a58c47154229b9f8d603ac40d3500248507")
MICROSOFT_UEFI_CA_2023 = bytes.fromhex("f6124e34125bee3fe6d79a574eaa7b91c0e7bd9d929c1a321178efd611dad901")
DEBIAN_SECURE_BOOT_CA = bytes.fromhex("079646974bce09b1f04da67bd722d1fb0947ae4c4010bccdbba52d5b23cbf1a2")

_DEBUGGING = (
    "kgdb*",  # kgdboc, kgdbwait, kgdbcon, kgdbdbgp, kgdbts: a debugger over a console
    "ekgdboc*",  # the same, before consoles are up
    "kdb*",
    "kprobe_event*",  # probes planted at boot
)
_WEAKENING = (
    "nokaslr",
    "module.sig_enforce=0",
    "lockdown=none",
    "rodata=off",
    "rodata=noalias",
    "nosmep",
    "nosmap",
    "noexec=off",
    "clearcpuid*",  # can take away SMEP, SMAP and user-mode instruction prevention
    "initcall_blacklist*",  # can leave out the set-up of a protection
    "bootconfig",  # further parameters come from the initial RAM disk, unmeasured as parameters
    "iomem=relaxed",  # user space may map memory that drivers own
    "hardened_usercopy=off",
)


@dataclass(frozen=True, slots=True, order=True)
class AcceptedMonitor:
    """A monitor that may speak for a guest: image digest, version and security version number."""

    image: bytes
    version: str
    security_version: int


@dataclass(frozen=True, slots=True)
class AppraisalPolicy:
    """What counts as accepted; certificates and images are named by SHA-256 digests.

    `accept_any_monitor_image` is **unsafe**: it lets any program speak for a guest, and exists for
    those who build monitors. `rules_roots`: SHA-256 of the root files under which monitors may take
    published rules; one that takes none is always accepted. `fleets`: whose rules they may be, empty for
    anyone's. `secure_boot_keys`: the
    certificates and image hashes that may stand in db. `required_revocations`: image hashes and
    certificate digests that dbx must hold. `boot_signers`: authorities that may vouch for a boot component.
    `machine_owner_key_lists`: SHA-256 of MokList contents that are accepted beside a list without owner
    keys; shim measures the list as a whole. `debugging_parameters`
    and `weakening_parameters`: patterns of `affiant.appraisal.command_line`. `boot`: what the operator
    demands beyond the levels' own requirements; `affiant.appraisal.policy_file` reads all of it.
    """

    monitors: frozenset[AcceptedMonitor] = frozenset()
    accept_any_monitor_image: bool = False
    minimum_security_version: int = 1
    rules_roots: frozenset[bytes] = frozenset()
    fleets: frozenset[str] = frozenset()
    secure_boot_keys: frozenset[bytes] = frozenset(
        {MICROSOFT_WINDOWS_PCA_2011, MICROSOFT_UEFI_CA_2011, MICROSOFT_UEFI_CA_2023}
    )
    required_revocations: frozenset[bytes] = frozenset()
    boot_signers: frozenset[bytes] = frozenset(
        {MICROSOFT_UEFI_CA_2011, MICROSOFT_UEFI_CA_2023, DEBIAN_SECURE_BOOT_CA}
    )
    machine_owner_key_lists: frozenset[bytes] = frozenset()
    debugging_parameters: tuple[str, ...] = _DEBUGGING
    weakening_parameters: tuple[str, ...] = _WEAKENING
    required_pcrs: tuple[int, ...] = REQUIRED_PCRS
    boot: BootRules = NO_RULES

    def __post_init__(self) -> None:
        """Refuse a policy that asks for less than the levels promise."""
        if not set(REQUIRED_PCRS) <= set(self.required_pcrs) or max(self.required_pcrs) > 23:
            raise ValueError(f"a quote must cover PCRs {REQUIRED_PCRS}, and none above 23")


def policy_digest(policy: AppraisalPolicy) -> bytes:
    """Return SHA-256 over the deterministic CBOR of {field name: value}; sets are sorted arrays."""
    return hashlib.sha256(cbor.encode(_document(policy))).digest()


def _document(value: AppraisalPolicy | BootRules) -> dict[cbor.Key, cbor.Item]:
    return {field.name: _plain(getattr(value, field.name)) for field in fields(value)}


def _plain(value: object) -> cbor.Item:
    if value is None:
        return None
    if isinstance(value, BootRules):
        return _document(value)
    if isinstance(value, frozenset):
        return [_plain(element) for element in sorted(value)]
    if isinstance(value, tuple):
        return [_plain(element) for element in value]
    if isinstance(value, AcceptedMonitor):
        return [value.image, value.version, value.security_version]
    if isinstance(value, bool | int | str | bytes):
        return value
    raise TypeError(f"a policy field cannot hold {type(value).__name__}")
