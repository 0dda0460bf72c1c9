"""The TPM commands that a launcher sends, as bytes; nothing here talks to a TPM.

Each function returns a `Command`: send its `encoding` and give the answer to its `read_response`.
Command codes and parameters: TPM 2.0 Library, Part 3; handles: Part 2, section 7.
"""

from affiant.tpm.command_bytes.capability import get_handles, get_pcr_banks, get_random
from affiant.tpm.command_bytes.credential import activate_credential, policy_secret, start_policy_session
from affiant.tpm.command_bytes.handles import (
    ENDORSEMENT,
    NV_EK_CERTIFICATE_ECC_P256,
    NV_EK_CERTIFICATE_ECC_P384,
    NV_EK_CERTIFICATE_RSA_2048,
    OWNER,
    PLATFORM,
)
from affiant.tpm.command_bytes.nv import NV_READ_LIMIT, NvPublic, nv_read, nv_read_public
from affiant.tpm.command_bytes.objects import (
    CreatedPrimary,
    create_primary,
    evict_control,
    flush_context,
    read_public,
)
from affiant.tpm.command_bytes.pcrs import (
    PCRS_PER_READ,
    PcrValues,
    QuoteResponse,
    pcr_extend,
    pcr_read,
    quote,
)
from affiant.tpm.command_bytes.state import clear, shutdown, startup

__all__ = [
    "ENDORSEMENT",
    "NV_EK_CERTIFICATE_ECC_P256",
    "NV_EK_CERTIFICATE_ECC_P384",
    "NV_EK_CERTIFICATE_RSA_2048",
    "NV_READ_LIMIT",
    "OWNER",
    "PCRS_PER_READ",
    "PLATFORM",
    "CreatedPrimary",
    "NvPublic",
    "PcrValues",
    "QuoteResponse",
    "activate_credential",
    "clear",
    "create_primary",
    "evict_control",
    "flush_context",
    "get_handles",
    "get_pcr_banks",
    "get_random",
    "nv_read",
    "nv_read_public",
    "pcr_extend",
    "pcr_read",
    "policy_secret",
    "quote",
    "read_public",
    "shutdown",
    "start_policy_session",
    "startup",
]
