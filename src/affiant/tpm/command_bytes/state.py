"""Commands over the TPM's state as a whole: start it, shut it down, clear it."""

from __future__ import annotations

import struct

from affiant.tpm.command import Command, build_command, password
from affiant.tpm.command_bytes.answer import read_nothing

__all__ = ["clear", "shutdown", "startup"]


def startup(*, clear_state: bool = True) -> Command[None]:
    """TPM2_Startup (Part 3, section 9.3)."""
    kind = struct.pack(">H", 0 if clear_state else 1)
    return build_command("TPM2_Startup", 0x144, read_nothing, parameters=kind)


def shutdown(*, clear_state: bool = True) -> Command[None]:
    """TPM2_Shutdown (Part 3, section 9.4)."""
    kind = struct.pack(">H", 0 if clear_state else 1)
    return build_command("TPM2_Shutdown", 0x145, read_nothing, parameters=kind)


def clear(*, hierarchy: int, hierarchy_auth: bytes = b"") -> Command[None]:
    """TPM2_Clear (Part 3, section 24.6): what a hostile guest may do to persistent keys."""
    return build_command(
        "TPM2_Clear", 0x126, read_nothing, handles=(hierarchy,), authorizations=(password(hierarchy_auth),)
    )
