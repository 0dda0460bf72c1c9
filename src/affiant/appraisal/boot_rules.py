"""What an operator may demand of a boot beyond what the levels ask: the optional rules of a policy.

A rule that is None, empty or zero is not applied. One that is stated must hold by what was measured:
where nothing of its kind was measured, it does not hold.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["DIGEST_SIZES", "NO_RULES", "BootRules"]

DIGEST_SIZES = frozenset({20, 32, 48, 64})
"""Octets of a digest in one of the banks a log may have."""


@dataclass(frozen=True, slots=True)
class BootRules:
    """Rules on one boot; digests of images, files and modules are those of the replayed bank.

    - `required_facts`: names of facts (`affiant.appraisal.boot_facts`) that must be true
    - `banks`: names of the banks (`sha256`) in which a log may be proven
    - `replayed_pcrs`: PCRs that must be replayed
    - `firmware_versions`: the S-CRTM versions that may start
    - `platform_keys`, `key_exchange_keys`: what may stand in PK and KEK, by SHA-256 of the certificate
    - `images`: all EFI images that may be started (PCR 4: boot loaders, and kernels that shim verified)
    - `files`: all files that GRUB or the kernel's EFI stub may read (PCR 9: kernel, initial RAM disk,
      configuration)
    - `command_lines`: the kernel's command lines, without the kernel's path before them
    - `required_parameters`: patterns of `affiant.appraisal.command_line`, each of which must be met
    - `launch_records`: SHA-256 of launch records, one of which PCR 17 must hold
    - `windows_modules`: all modules that Windows' loaders may load (PCR 13), by Authenticode digest
    - `windows_module_signers`: who may have signed those, as `publisher / issuer`
    - `code_integrity_policies`: digests of the code integrity policies that must be in force
    - `minimum_boot_manager_svn`: the security version of Windows' boot manager
    """

    required_facts: frozenset[str] = frozenset()
    banks: frozenset[str] | None = None
    replayed_pcrs: frozenset[int] = frozenset()
    firmware_versions: frozenset[str] | None = None
    platform_keys: frozenset[bytes] | None = None
    key_exchange_keys: frozenset[bytes] | None = None
    images: frozenset[bytes] | None = None
    files: frozenset[bytes] | None = None
    command_lines: frozenset[str] | None = None
    required_parameters: tuple[str, ...] = ()
    launch_records: frozenset[bytes] | None = None
    windows_modules: frozenset[bytes] | None = None
    windows_module_signers: frozenset[str] | None = None
    code_integrity_policies: frozenset[bytes] = frozenset()
    minimum_boot_manager_svn: int = 0

    def __post_init__(self) -> None:
        if not self.replayed_pcrs <= frozenset(range(24)):
            raise ValueError("a PC Client TPM has PCR 0 to 23")
        if self.minimum_boot_manager_svn < 0:
            raise ValueError("a security version is not negative")


NO_RULES = BootRules()
"""Nothing is demanded beyond the levels."""
