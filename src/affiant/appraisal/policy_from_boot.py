"""A policy that accepts one boot: what it measured becomes what may be measured.

It is a beginning for a person to go on from: whoever makes it from a log that nothing proves trusts that
log. Facts that are false stay out, so a weak machine gets a weak policy, which its comments show.
"""

from __future__ import annotations

import hashlib
from typing import Final

from affiant.appraisal.boot_description import BootDescription
from affiant.appraisal.boot_facts import Trust, command_lines
from affiant.appraisal.boot_judgement import module_signer, parameters_of_line
from affiant.appraisal.boot_rules import BootRules
from affiant.appraisal.command_line import find_parameters
from affiant.appraisal.key_names import (
    authority_identity,
    authority_title,
    entry_identity,
    entry_title,
    signers,
)
from affiant.appraisal.policy import AppraisalPolicy
from affiant.appraisal.policy_file import NamedPolicy
from affiant.tpm.boot_state import BOOT_PCRS
from affiant.tpm.image_load import untrusted_image_path
from affiant.tpm.signature_database import SignatureDatabase
from affiant.tpm.windows.boot import WINDOWS_BOOT_PCRS

__all__ = ["VOLATILE_FACTS", "policy_accepting"]

VOLATILE_FACTS: Final = frozenset(
    {
        # What one boot of a healthy machine has and the next may not.
        "bitlocker_recovery_unused",
        "boot_counter_matches",
        "dumps_disabled",
        "dump_encryption_enabled",
        "hibernation_disabled",
        "hypervisor_launched",
        "pagefile_encryption_enabled",
    }
)
"""Facts that a policy made from a log does not require, even where they are true."""

# Told of complete measurements only, so a log without a quote cannot show it: every proven boot of Windows
# must.
_WINDOWS_COMPLETE: Final = "windows_measurements_complete"


def policy_accepting(description: BootDescription) -> NamedPolicy:
    """Return a policy that accepts the boot described, with names for its digests."""
    secure_boot = description.boot.secure_boot
    names: dict[bytes, str] = {}
    boot_signers = []
    for authority in signers(secure_boot):
        identity = authority_identity(authority)
        names.setdefault(identity, authority_title(authority))
        boot_signers.append(identity)
    allowed = _identities(secure_boot.allowed, names)
    defaults = AppraisalPolicy()
    lines = command_lines(description.boot) if description.windows is None else None
    mok = description.boot.shim.mok_measurements
    has_owner_keys = bool(mok) and description.boot.shim.owner_keys_absent is not True
    policy = AppraisalPolicy(
        secure_boot_keys=defaults.secure_boot_keys if allowed is None else allowed,
        required_revocations=_identities(secure_boot.forbidden, names) or frozenset(),
        boot_signers=frozenset(boot_signers),
        machine_owner_key_lists=frozenset({mok[0].digest})
        if has_owner_keys and description.windows is None
        else frozenset(),
        debugging_parameters=_without(defaults.debugging_parameters, lines),
        weakening_parameters=_without(defaults.weakening_parameters, lines),
        boot=_rules(description, lines, names),
    )
    return NamedPolicy(policy, names)


def _rules(description: BootDescription, lines: tuple[str, ...] | None, names: dict[bytes, str]) -> BootRules:
    boot, details, settings = description.boot, description.details_of(13), description.details_of(12)
    for application in boot.applications:
        names.setdefault(application.digest, untrusted_image_path(application.untrusted_data))
    for file in boot.grub.files:
        names.setdefault(file.digest, file.untrusted_path)
    for module in details.modules if details else ():
        names.setdefault(module.digest, module.file_name)
    for policy in details.code_integrity_policies if details else ():
        names.setdefault(policy.digest, policy.name)
    modules = details.modules if details else ()
    return BootRules(
        required_facts=_required_facts(description),
        banks=frozenset({boot.bank.title}),
        replayed_pcrs=_pcrs(description),
        firmware_versions=None if boot.firmware_version is None else frozenset({boot.firmware_version}),
        platform_keys=_identities(boot.secure_boot.platform_key, names),
        key_exchange_keys=_identities(boot.secure_boot.key_exchange_keys, names),
        images=frozenset(application.digest for application in boot.applications),
        files=frozenset(file.digest for file in boot.grub.files),
        command_lines=None if lines is None else frozenset(map(parameters_of_line, lines)),
        windows_modules=frozenset(module.digest for module in modules) if modules else None,
        windows_module_signers=frozenset(map(module_signer, modules)) if modules else None,
        code_integrity_policies=frozenset(
            policy.digest for policy in (details.code_integrity_policies if details else ())
        ),
        minimum_boot_manager_svn=(settings.boot_manager_svn or 0) if settings else 0,
    )


def _required_facts(description: BootDescription) -> frozenset[str]:
    true = {
        fact.name
        for fact in description.facts
        if fact.value is True and (fact.trust is Trust.VERIFIED or not description.is_proven)
    }
    return frozenset(true - VOLATILE_FACTS - {_WINDOWS_COMPLETE})


def _pcrs(description: BootDescription) -> frozenset[int]:
    core = frozenset(WINDOWS_BOOT_PCRS if description.windows is not None else BOOT_PCRS)
    return core & description.replayed


def _identities(database: SignatureDatabase | None, names: dict[bytes, str]) -> frozenset[bytes] | None:
    if database is None:
        return None
    found = set()
    for entry in database.entries():
        identity = entry_identity(entry)
        found.add(identity)
        # Image hashes have no name; hundreds of comments that say so would help nobody.
        if len(entry.content) != hashlib.sha256().digest_size:
            names.setdefault(identity, entry_title(entry))
    return frozenset(found)


def _without(patterns: tuple[str, ...], lines: tuple[str, ...] | None) -> tuple[str, ...]:
    return tuple(
        pattern for pattern in patterns if not any(find_parameters(line, (pattern,)) for line in lines or ())
    )
