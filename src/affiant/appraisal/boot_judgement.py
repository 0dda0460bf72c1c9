"""Is this boot one that the policy accepts? All that speaks against it, as findings.

Two parts, since the service asks for them at different levels: `judge_rules` holds a boot against the
rules that an operator stated (`affiant.appraisal.boot_rules`), `judge_boot` adds the accepted sets that
every policy has: db and dbx, signers, owner keys, and parameters that weaken the kernel.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass

from affiant.appraisal.boot_description import BootDescription
from affiant.appraisal.boot_facts import Trust, command_lines
from affiant.appraisal.boot_rules import BootRules
from affiant.appraisal.command_line import find_parameters
from affiant.appraisal.key_names import (
    authority_identities,
    authority_identity,
    authority_title,
    entry_identity,
    entry_title,
    signers,
)
from affiant.appraisal.policy import AppraisalPolicy
from affiant.model.finding import Finding
from affiant.tpm.image_load import untrusted_image_path
from affiant.tpm.signature_database import SignatureDatabase
from affiant.tpm.windows.modules import LoadedModule

__all__ = ["BootVerdict", "judge_boot", "judge_rules", "module_signer", "parameters_of_line"]


@dataclass(frozen=True, slots=True)
class BootVerdict:
    """What a policy says of a boot; how far the boot itself can be believed is not in it.

    `looked_at` counts the rules that were applied. A boot is accepted when some were, and all hold.
    """

    findings: tuple[Finding, ...]
    looked_at: int

    @property
    def accepted(self) -> bool:
        """Whether the policy accepts what the description tells."""
        return self.looked_at > 0 and not self.findings


_Findings = Sequence[Finding] | None  # None: the rule is not stated


def judge_boot(description: BootDescription, policy: AppraisalPolicy) -> BootVerdict:
    """Hold a boot against a whole policy.

    When it returns, every rule that is stated and every accepted set is either met by what was measured,
    or among the findings. Secure Boot's sets apply to what was measured; that it *was* measured is
    demanded where the policy requires `secure_boot_enabled`. Trust is the description's: of one that
    is not proven, this compares what a log says and no more.
    """
    sets = _fold(
        (
            _allowed(description, policy),
            _revoked(description, policy),
            _signers(description, policy),
            _owner_keys(description, policy),
            _weakening_parameters(description, policy),
        )
    )
    rules = judge_rules(description, policy.boot)
    return BootVerdict(sets.findings + rules.findings, sets.looked_at + rules.looked_at)


def judge_rules(description: BootDescription, rules: BootRules) -> BootVerdict:
    """Hold a boot against the rules that an operator stated; none stated looks at nothing."""
    return _fold(rule(description, rules) for rule in _RULES)


def module_signer(module: LoadedModule) -> str:
    """Who signed a module, as policies name it: publisher and issuer."""
    return f"{module.publisher} / {module.issuer}"


def parameters_of_line(line: str) -> str:
    """The kernel's command line without the kernel's path, with which GRUB begins it."""
    first, _, rest = line.partition(" ")
    return rest if first.startswith(("/", "(")) else line


def _fold(results: Iterable[_Findings]) -> BootVerdict:
    applied = [result for result in results if result is not None]
    return BootVerdict(tuple(finding for result in applied for finding in result), len(applied))


def _demands_secure_boot(policy: AppraisalPolicy) -> bool:
    return "secure_boot_enabled" in policy.boot.required_facts


# The sets that every policy has.


def _allowed(description: BootDescription, policy: AppraisalPolicy) -> _Findings:
    expected = "only certificates and images that policy accepts"
    return _database(
        "db",
        description.boot.secure_boot.allowed,
        policy.secure_boot_keys,
        expected,
        demanded=_demands_secure_boot(policy),
    )


def _revoked(description: BootDescription, policy: AppraisalPolicy) -> _Findings:
    required = policy.required_revocations
    if not required:
        return None
    forbidden = description.boot.secure_boot.forbidden
    if forbidden is None:
        return [Finding("dbx", f"{len(required)} revocations", "not measured")]
    missing = sorted(required - {entry_identity(entry) for entry in forbidden.entries()})
    return [Finding("dbx", f"revokes {digest.hex()}", "does not revoke it") for digest in missing]


def _signers(description: BootDescription, policy: AppraisalPolicy) -> _Findings:
    used = signers(description.boot.secure_boot)
    if not used:
        if not _demands_secure_boot(policy):
            return None
        return [Finding("boot signers", "an accepted one", "none was measured")]
    return [
        Finding(
            "boot signer",
            "one that policy accepts",
            f"{authority_title(authority)} "
            f"({authority_identity(authority).hex()}, from {authority.source.name})",
        )
        for authority in used
        if policy.boot_signers.isdisjoint(authority_identities(authority))
    ]


def _owner_keys(description: BootDescription, policy: AppraisalPolicy) -> _Findings:
    shim = description.boot.shim
    if description.windows is not None or not shim.mok_measurements:
        return None
    digest = shim.mok_measurements[0].digest
    if shim.owner_keys_absent is True or digest in policy.machine_owner_key_lists:
        return []
    return [Finding("shim's MokList", "no owner keys, or a list that policy accepts", digest.hex())]


def _weakening_parameters(description: BootDescription, policy: AppraisalPolicy) -> _Findings:
    if description.windows is not None or (lines := command_lines(description.boot)) is None:
        return None
    patterns = policy.debugging_parameters + policy.weakening_parameters
    found = dict.fromkeys(word for line in lines for word in find_parameters(line, patterns))
    return [Finding("command line", "no parameter that weakens the kernel", word) for word in found]


# The rules that an operator states.


def _required_facts(description: BootDescription, rules: BootRules) -> _Findings:
    if not rules.required_facts:
        return None
    findings = []
    for name in sorted(rules.required_facts):
        fact = description.fact(name)
        if fact is None:
            findings.append(Finding(name, "true", "not told by a boot of this system"))
        elif fact.value is not True:
            told = "not told" if fact.value is None else "false"
            findings.append(Finding(name, "true", f"{told} ({fact.source})"))
        elif description.is_proven and fact.trust is not Trust.VERIFIED:
            findings.append(Finding(name, "true, by proof", f"only said ({fact.source})"))
    return findings


def _banks(description: BootDescription, rules: BootRules) -> _Findings:
    if rules.banks is None:
        return None
    bank = description.boot.bank.title
    return [] if bank in rules.banks else [Finding("bank", _either(rules.banks), bank)]


def _replayed(description: BootDescription, rules: BootRules) -> _Findings:
    # Without PCR values there is nothing to replay onto, and the description says that nothing is proven.
    if not rules.replayed_pcrs or not (description.replayed or description.unreplayed):
        return None
    missing = sorted(rules.replayed_pcrs - description.replayed)
    return [Finding(f"PCR {pcr}", "replayed onto a quoted value", "not replayed") for pcr in missing]


def _firmware(description: BootDescription, rules: BootRules) -> _Findings:
    if rules.firmware_versions is None:
        return None
    version = description.boot.firmware_version
    if version in rules.firmware_versions:
        return []
    return [Finding("firmware version", _either(rules.firmware_versions), version or "not measured")]


def _platform_keys(description: BootDescription, rules: BootRules) -> _Findings:
    if rules.platform_keys is None:
        return None
    keys = description.boot.secure_boot.platform_key
    return _database("PK", keys, rules.platform_keys, "a platform key that policy accepts", demanded=True)


def _key_exchange_keys(description: BootDescription, rules: BootRules) -> _Findings:
    if rules.key_exchange_keys is None:
        return None
    keys = description.boot.secure_boot.key_exchange_keys
    return _database("KEK", keys, rules.key_exchange_keys, "only keys that policy accepts", demanded=True)


def _images(description: BootDescription, rules: BootRules) -> _Findings:
    measured = [
        (application.digest, untrusted_image_path(application.untrusted_data))
        for application in description.boot.applications
    ]
    return _known("boot image", "PCR 4", measured, rules.images)


def _files(description: BootDescription, rules: BootRules) -> _Findings:
    measured = [(file.digest, file.untrusted_path) for file in description.boot.grub.files]
    return _known("file", "PCR 9", measured, rules.files)


def _command_lines(description: BootDescription, rules: BootRules) -> _Findings:
    if rules.command_lines is None and not rules.required_parameters:
        return None
    lines = command_lines(description.boot)
    if lines is None:
        return [Finding("command line", "one that policy accepts", "cannot be told from the log")]
    accepted = rules.command_lines
    findings = [
        Finding("command line", "one that policy accepts", parameters_of_line(line))
        for line in lines
        if accepted is not None and parameters_of_line(line) not in accepted
    ]
    return findings + [
        Finding("command line", f"has {pattern}", parameters_of_line(line))
        for pattern in rules.required_parameters
        for line in lines
        if not find_parameters(line, (pattern,))
    ]


def _launch(description: BootDescription, rules: BootRules) -> _Findings:
    if rules.launch_records is None:
        return None
    expected = "a launch of a record that policy accepts"
    launch, bank = description.launch, description.boot.bank
    if launch is None:
        return [Finding("PCR 17", expected, "not quoted")]
    # The records are named by SHA-256; what a launch leaves is H(0 || H(record)) (TPM 2.0 Library, Part 1,
    # section 34.4), so a digest of another bank's algorithm can never be the one.
    values = {bank.digest(bytes(bank.digest_size) + digest) for digest in rules.launch_records}
    return [] if launch in values else [Finding("PCR 17", expected, launch.hex())]


def _modules(description: BootDescription, rules: BootRules) -> _Findings:
    if rules.windows_modules is None:
        return None
    if (details := description.details_of(13)) is None:
        return [Finding("Windows modules", "modules that policy accepts", "not told by the log")]
    return _known(
        "Windows module", "PCR 13", [(one.digest, one.path) for one in details.modules], rules.windows_modules
    )


def _module_signers(description: BootDescription, rules: BootRules) -> _Findings:
    accepted = rules.windows_module_signers
    if accepted is None:
        return None
    if (details := description.details_of(13)) is None:
        return [Finding("signers of Windows modules", "ones that policy accepts", "not told by the log")]
    return [
        Finding(f"Windows module {one.file_name}", "signed by one that policy accepts", module_signer(one))
        for one in details.modules
        if module_signer(one) not in accepted
    ]


def _code_integrity(description: BootDescription, rules: BootRules) -> _Findings:
    if not rules.code_integrity_policies:
        return None
    details = description.details_of(13)
    in_force = {policy.digest for policy in details.code_integrity_policies} if details else set()
    missing = sorted(rules.code_integrity_policies - in_force)
    return [Finding("code integrity policy", f"{digest.hex()} in force", "it is not") for digest in missing]


def _boot_manager(description: BootDescription, rules: BootRules) -> _Findings:
    if not rules.minimum_boot_manager_svn:
        return None
    details = description.details_of(12)
    found = None if details is None else details.boot_manager_svn
    if found is not None and found >= rules.minimum_boot_manager_svn:
        return []
    expected = f"{rules.minimum_boot_manager_svn} or above"
    return [
        Finding("boot manager's security version", expected, "not measured" if found is None else str(found))
    ]


_RULES: tuple[Callable[[BootDescription, BootRules], _Findings], ...] = (
    _required_facts,
    _banks,
    _replayed,
    _firmware,
    _platform_keys,
    _key_exchange_keys,
    _images,
    _files,
    _command_lines,
    _launch,
    _modules,
    _module_signers,
    _code_integrity,
    _boot_manager,
)


def _database(
    name: str,
    database: SignatureDatabase | None,
    accepted: Collection[bytes],
    expected: str,
    *,
    demanded: bool,
) -> _Findings:
    if database is None:
        return [Finding(name, expected, "not measured")] if demanded else None
    return [
        Finding(name, expected, f"{entry_title(entry)} ({entry_identity(entry).hex()})")
        for entry in database.entries()
        if entry_identity(entry) not in accepted
    ]


def _known(
    what: str, where: str, measured: Sequence[tuple[bytes, str]], accepted: frozenset[bytes] | None
) -> _Findings:
    if accepted is None:
        return None
    if not measured and accepted:
        return [Finding(where, f"one {what} or more that policy accepts", "nothing was measured")]
    return [
        Finding(f"{what} {name}".rstrip(), "one that policy accepts", digest.hex())
        for digest, name in measured
        if digest not in accepted
    ]


def _either(values: Iterable[str]) -> str:
    return " or ".join(sorted(values))
