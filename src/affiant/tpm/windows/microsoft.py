"""What Microsoft's own names and certificates are: the only place where they are written down."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

__all__ = [
    "BOOT_MANAGER_AUTHORITIES",
    "EARLY_LAUNCH_PUBLISHER",
    "HYPERVISORS",
    "SECURE_KERNEL",
    "WINDOWS_ISSUERS",
    "WINDOWS_PUBLISHERS",
]

BOOT_MANAGER_AUTHORITIES: Final[Mapping[bytes, str]] = MappingProxyType(
    {
        bytes.fromhex(fingerprint): name
        for fingerprint, name in {
            "e8e95f0733a55e8bad7be0a1413ee23c51fcea64b3c8fa6a786935fddcc71961": (
                "Microsoft Windows Production PCA 2011"
            ),
            "076f1fea90ac29155ebf77c17682f75f1fdd1be196da302dc8461e350a9ae330": "Windows UEFI CA 2023",
            # Firmware of Google Compute Engine names the root above the Production PCA as the authority. What
            # Microsoft signs for others hangs under another root (Third Party Marketplace).
            "df545bf919a2439c36983b54cdfc903dfa4f37d3996d8d84b4c31eec6f3c163e": (
                "Microsoft Root Certificate Authority 2010"
            ),
        }.items()
    }
)
"""SHA-256 of the certificates under which Microsoft signs its own boot manager, and nobody else's."""

WINDOWS_ISSUERS: Final = frozenset(
    {
        "Microsoft Windows Production PCA 2011",
        "Microsoft Windows Production PCA 2023",
        "Windows UEFI CA 2023",
    }
)
"""Common names of the authorities that sign Windows' own kernels."""

WINDOWS_PUBLISHERS: Final = frozenset({"Microsoft Windows", "Microsoft Windows Publisher"})
"""Common names of the certificates with which they are signed."""

EARLY_LAUNCH_PUBLISHER: Final = "Microsoft Windows Early Launch Anti-malware Publisher"
"""Common name of the certificate with which early-launch drivers are signed."""

HYPERVISORS: Final = frozenset({"hvix64.exe", "hvax64.exe", "hvaa64.exe"})
"""The hypervisor for Intel, AMD and Arm processors."""

SECURE_KERNEL: Final = "securekernel.exe"
"""The kernel of VTL 1."""
