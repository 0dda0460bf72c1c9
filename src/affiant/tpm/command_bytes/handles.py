"""Permanent handles and NV indices that commands name (TPM 2.0 Library, Part 2, section 7)."""

from __future__ import annotations

from typing import Final

__all__ = [
    "ENDORSEMENT",
    "NULL",
    "NV_EK_CERTIFICATE_ECC_P256",
    "NV_EK_CERTIFICATE_ECC_P384",
    "NV_EK_CERTIFICATE_RSA_2048",
    "OWNER",
    "PLATFORM",
]

OWNER: Final = 0x40000001
"""TPM_RH_OWNER."""
ENDORSEMENT: Final = 0x4000000B
"""TPM_RH_ENDORSEMENT."""
PLATFORM: Final = 0x4000000C
"""TPM_RH_PLATFORM."""
NULL: Final = 0x40000007
"""TPM_RH_NULL."""

NV_EK_CERTIFICATE_RSA_2048: Final = 0x01C00002
"""NV index of the certificate for `templates.EK_RSA_2048` (EK Credential Profile, section 2.2.1.4)."""
NV_EK_CERTIFICATE_ECC_P256: Final = 0x01C0000A
"""NV index of the certificate for `templates.EK_ECC_P256`."""
NV_EK_CERTIFICATE_ECC_P384: Final = 0x01C00016
"""NV index of the certificate for `templates.EK_ECC_P384`."""
