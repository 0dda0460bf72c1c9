"""An explanation for machines: every field that comes from a log carries its trust."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Any

from affiant.appraisal.boot_description import BootDescription
from affiant.appraisal.boot_facts import Trust, command_lines
from affiant.appraisal.boot_judgement import BootVerdict
from affiant.appraisal.key_names import (
    authority_identity,
    authority_title,
    entry_identity,
    entry_title,
    signers,
)
from affiant.appraisal.policy import AppraisalPolicy, policy_digest
from affiant.boot.events import list_events
from affiant.boot.explain import Explanation
from affiant.boot.ima_list import ima_as_json
from affiant.boot.userspace import userspace_as_json
from affiant.tpm.image_load import untrusted_image_path
from affiant.tpm.signature_database import SignatureDatabase
from affiant.tpm.windows.boot import WindowsBoot

__all__ = ["explanation_as_json", "verdict_as_json"]


def explanation_as_json(
    explanation: Explanation, *, log: bytes, policy: AppraisalPolicy | None, events: bool
) -> dict[str, Any]:
    """Return the JSON object of an explanation; `log` are the octets that it explains."""
    description, quote = explanation.description, explanation.quote
    document: dict[str, Any] = {
        "system": "windows" if description.windows is not None else "other",
        "refused": explanation.refused,
        "log": {
            "sha256": hashlib.sha256(log).hexdigest(),
            "events": len(explanation.log.events),
            "bank": description.boot.bank.title,
            "truncated": description.boot.log_truncated,
        },
        "proof": {
            "rests_on": description.proof.value,
            "replayed_pcrs": sorted(description.replayed),
            "unreplayed_pcrs": sorted(description.unreplayed),
            "unused": explanation.unused or None,
        },
        "facts": {
            fact.name: {"value": fact.value, "trust": fact.trust.value, "source": fact.source}
            for fact in description.facts
        },
        "level": {
            "number": int(explanation.level.level),
            "name": explanation.level.level.title,
            "assumed": list(explanation.level.assumed),
            "reasons": [
                {"level": int(one.level), "claim": one.claim, "explanation": one.explanation}
                for one in explanation.level.shortfalls
            ],
        },
        "details": _details(description),
        "userspace": userspace_as_json(explanation.userspace),
        "ima": ima_as_json(explanation.ima, entries=events),
        "policy": None,
    }
    if quote is not None:
        document["proof"]["quote"] = {
            "key_name": quote.key_name.hex(),
            "nonce": quote.extra_data.hex(),
            "clock": quote.clock_info.clock,
            "reset_count": quote.clock_info.reset_count,
            "restart_count": quote.clock_info.restart_count,
            "tpm_firmware_version": quote.firmware_version,
        }
        document["proof"]["trust_point"] = explanation.trust_point is not None
    if policy is not None and explanation.verdict is not None:
        document["policy"] = verdict_as_json(explanation.verdict, description, policy)
    if events:
        document["events"] = _events(explanation)
    return document


def verdict_as_json(
    verdict: BootVerdict, description: BootDescription, policy: AppraisalPolicy
) -> dict[str, Any]:
    """Return the JSON object of a policy's verdict; `trust` is that of the boot it was given."""
    return {
        "accepted": verdict.accepted,
        "trust": _trust(description.is_proven),
        "digest": policy_digest(policy).hex(),
        "rules_applied": verdict.looked_at,
        "findings": [
            {"subject": one.subject, "expected": one.expected, "found": one.found} for one in verdict.findings
        ],
    }


def _events(explanation: Explanation) -> list[dict[str, Any]]:
    return [
        {
            "index": line.index,
            "pcr": line.pcr,
            "type": {"value": line.type, "trust": _trust(False)},
            "digest": None
            if line.digest is None
            else {"value": line.digest.hex(), "trust": line.digest_trust.value},
            "data": {"value": line.text, "trust": line.data_trust.value, "covered": line.covers},
        }
        for line in list_events(explanation.log, explanation.description)
    ]


def _details(description: BootDescription) -> dict[str, Any]:
    boot = description.boot
    secure_boot = boot.secure_boot
    keys = _proven(description, (7,))
    details: dict[str, Any] = {
        "firmware_version": _labelled(boot.firmware_version, _proven(description, (0,))),
        "platform_keys": _labelled(_keys(secure_boot.platform_key), keys),
        "key_exchange_keys": _labelled(_keys(secure_boot.key_exchange_keys), keys),
        "allowed": _labelled(_keys(secure_boot.allowed), keys),
        "revocations": _labelled(
            None if secure_boot.forbidden is None else secure_boot.forbidden.count, keys
        ),
        "signers": _labelled(
            [
                {
                    "sha256": authority_identity(authority).hex(),
                    "name": authority_title(authority),
                    "from": authority.source.name,
                }
                for authority in signers(secure_boot)
            ],
            keys,
        ),
        "images": _measured(
            ((one.digest, untrusted_image_path(one.untrusted_data)) for one in boot.applications),
            proven=_proven(description, (4,)),
        ),
    }
    if description.windows is None:
        lines = command_lines(boot)
        details |= {
            "sbat_level": _labelled(boot.shim.sbat_level, keys),
            "files": _measured(
                ((file.digest, file.untrusted_path) for file in boot.grub.files),
                proven=_proven(description, (9,)),
            ),
            "command_lines": _labelled(
                None if lines is None else list(lines),
                _proven(description, (8,) if not boot.uki.command_lines else (8, 11, 12)),
            ),
            "unified_kernel_image": _labelled(
                [{"section": one.name, "digest": one.digest.hex()} for one in boot.uki.sections],
                _proven(description, (11,)),
            ),
            "command_lines_beside_image": _labelled(
                list(boot.uki.command_lines), _proven(description, (12,))
            ),
            "taken_beside_image": _measured(
                ((part.digest, part.untrusted_name) for part in boot.uki.additions),
                proven=_proven(description, (12,)),
            ),
            "system_extensions": _measured(
                ((part.digest, part.untrusted_name) for part in boot.uki.extensions),
                proven=_proven(description, (13,)),
            ),
        }
    else:
        details["windows"] = _windows(description)
    return details


def _windows(description: BootDescription) -> dict[str, Any]:
    details = description.details
    if details is None:
        return {}
    complete = (
        description.windows.complete_pcrs if isinstance(description.windows, WindowsBoot) else frozenset()
    )
    settings, modules = 12 in complete, 13 in complete
    key = details.signing_key
    return {
        "vsm_signing_key": _labelled(
            None if key is None else {"modulus": f"{key.modulus:x}", "exponent": key.exponent}, settings
        ),
        "boot_counter": _labelled(details.boot_counter, settings),
        "boot_manager_svn": _labelled(details.boot_manager_svn, settings),
        "bitlocker_unlocks": _labelled([int(flags) for flags in details.bitlocker_unlocks], settings),
        "system_root": _labelled(details.system_root, settings),
        "elam_drivers": _labelled([one.path for one in details.elam_drivers], modules),
        "code_integrity_policies": _labelled(
            [
                {"name": one.name, "version": one.version, "digest": one.digest.hex()}
                for one in details.code_integrity_policies
            ],
            modules,
        ),
        "revocation_lists": _labelled(
            [one.digest.hex() for one in (*details.boot_revocation_lists, *details.os_revocation_lists)],
            modules,
        ),
        "modules": _labelled(
            [
                {
                    "path": one.path,
                    "digest": one.digest.hex(),
                    "validated": one.validated,
                    "publisher": one.publisher,
                    "issuer": one.issuer,
                }
                for one in details.modules
            ],
            modules,
        ),
    }


def _proven(description: BootDescription, pcrs: Iterable[int]) -> bool:
    return description.is_proven and description.replayed.issuperset(pcrs)


def _trust(proven: bool) -> str:
    trust = Trust.VERIFIED if proven else Trust.UNTRUSTED
    return str(trust.value)


def _labelled(value: object, proven: bool) -> dict[str, Any]:
    return {"value": value, "trust": _trust(proven)}


def _measured(measured: Iterable[tuple[bytes, str]], *, proven: bool) -> list[dict[str, Any]]:
    """Digests with the names that the log gives them: a name is never more than the log's word."""
    return [
        {"digest": _labelled(digest.hex(), proven), "name": _labelled(name, False)}
        for digest, name in measured
    ]


def _keys(database: SignatureDatabase | None) -> list[dict[str, str]] | None:
    if database is None:
        return None
    return [
        {"sha256": entry_identity(entry).hex(), "name": entry_title(entry)} for entry in database.entries()
    ]
