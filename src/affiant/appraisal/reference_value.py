"""Reference values: the kernels that a service knows, and what is known of each."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["ReferenceValue"]


@dataclass(frozen=True, slots=True)
class ReferenceValue:
    """One known kernel; an endorsement by whoever registered it, not something measured.

    `kernel`: SHA-256 of the kernel file, as GRUB measures it. `authenticode`: SHA-256 Authenticode
    digest of the same file, as the firmware measures it when it is started directly; None where
    unknown. `reference`: digest of the reference image made from it. `release`: for people.

    `unified_images`: Authenticode digests of unified kernel images that hold exactly this kernel.
    `addons`: those of add-ons that may be read beside one of them; no code of an add-on runs.

    `locks_down`: this build turns lockdown on by itself when it finds Secure Boot on
    (`CONFIG_LOCK_DOWN_IN_EFI_SECURE_BOOT=y` in the configuration shipped beside it).
    `verifies_modules`: this build then refuses modules without a valid signature
    (`CONFIG_MODULE_SIG=y`; lockdown makes it binding).
    """

    kernel: bytes
    authenticode: bytes | None
    reference: bytes
    release: str
    locks_down: bool
    verifies_modules: bool
    unified_images: frozenset[bytes] = frozenset()
    addons: frozenset[bytes] = frozenset()
