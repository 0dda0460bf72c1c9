"""The same conclusions in the words of AR4SI (draft-ietf-rats-ar4si-10, section 2.3).

A relying party that knows nothing of our levels can still read this vector. It never says more
than the claims do: an entry is 0 (no claim) where nothing was established.
"""

from __future__ import annotations

from collections.abc import Mapping

from affiant.appraisal.enforced_code import ENFORCED_CODE_CLAIMS

__all__ = ["trust_vector"]

_INSTANCE_IDENTITY, _CONFIGURATION, _EXECUTABLES, _HARDWARE, _RUNTIME_OPAQUE = 0, 1, 2, 4, 5

_NO_CLAIM = 0
_RECOGNISED = 2
_UNRECOGNISED_INSTANCE = 97
_APPROVED_CONFIGURATION = 2
_CONFIGURATION_WITH_KNOWN_WEAKNESS = 32
_CONFIGURATION_UNAVAILABLE = 36
_UNSUPPORTABLE_CONFIGURATION = 96
_APPROVED_AT_BOOT = 3
_UNRECOGNISED_EXECUTABLES = 33
_ISOLATED_NOT_ENCRYPTED = 32
_VISIBLE = 96

_CONFIGURATION_CLAIMS = (
    "secure_boot_keys_accepted",
    "boot_signers_accepted",
    *ENFORCED_CODE_CLAIMS,
)


def trust_vector(
    claims: Mapping[str, bool | None], *, recognised: bool | None
) -> tuple[tuple[int, int], ...]:
    """Return AR4SI's entries by ascending key.

    `recognised`: whether the attestation key shown is enrolled, None if none was shown. A boot
    appraisal never says more of the executables than "approved at boot" (3): what runs now is
    for the runtime report.
    """
    return (
        (_INSTANCE_IDENTITY, _instance_identity(claims, recognised)),
        (_CONFIGURATION, _configuration(claims)),
        (_EXECUTABLES, _executables(claims)),
        (_HARDWARE, _NO_CLAIM),  # a virtual TPM says nothing of the hardware
        (_RUNTIME_OPAQUE, _runtime_opaque(claims)),
    )


def _instance_identity(claims: Mapping[str, bool | None], recognised: bool | None) -> int:
    if recognised is None:
        return _NO_CLAIM
    trusted = claims.get("attestation_key_enrolled") is True and claims.get("endorsement_trusted") is True
    return _RECOGNISED if trusted else _UNRECOGNISED_INSTANCE


def _configuration(claims: Mapping[str, bool | None]) -> int:
    secure_boot = claims.get("secure_boot_enabled")
    if secure_boot is None:
        return _NO_CLAIM if claims.get("event_log_replayed") is not True else _CONFIGURATION_UNAVAILABLE
    if not secure_boot:
        return _UNSUPPORTABLE_CONFIGURATION
    values = [claims.get(claim) for claim in _CONFIGURATION_CLAIMS]
    if all(value is True for value in values):
        return _APPROVED_CONFIGURATION
    return _CONFIGURATION_WITH_KNOWN_WEAKNESS if False in values else _CONFIGURATION_UNAVAILABLE


def _executables(claims: Mapping[str, bool | None]) -> int:
    if claims.get("event_log_replayed") is not True:
        return _NO_CLAIM
    approved = all(
        claims.get(claim) is True
        for claim in ("secure_boot_enabled", "boot_signers_accepted", "kernel_known")
    )
    return _APPROVED_AT_BOOT if approved else _UNRECOGNISED_EXECUTABLES


def _runtime_opaque(claims: Mapping[str, bool | None]) -> int:
    if claims.get("launch_record_measured") is not True:
        return _NO_CLAIM
    return _ISOLATED_NOT_ENCRYPTED if claims.get("monitor_debugging_disabled") is True else _VISIBLE
