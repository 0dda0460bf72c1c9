"""The policy's digest stands for all of it."""

from __future__ import annotations

import dataclasses

import pytest

from affiant.appraisal.boot_rules import BootRules
from affiant.appraisal.policy import REQUIRED_PCRS, AcceptedMonitor, AppraisalPolicy, policy_digest

CHANGES: dict[str, object] = {
    "boot": BootRules(banks=frozenset({"sha256"})),
    "monitors": frozenset({AcceptedMonitor(bytes(32), "1.0", 1)}),
    "accept_any_monitor_image": True,
    "minimum_security_version": 2,
    "rules_roots": frozenset({bytes(32)}),
    "fleets": frozenset({"web"}),
    "secure_boot_keys": frozenset(),
    "required_revocations": frozenset({bytes(32)}),
    "boot_signers": frozenset(),
    "machine_owner_key_lists": frozenset({bytes(32)}),
    "debugging_parameters": (),
    "weakening_parameters": ("nokaslr",),
    "required_pcrs": (*REQUIRED_PCRS, 18),
}


def test_every_field_moves_the_digest() -> None:
    default = AppraisalPolicy()
    assert set(CHANGES) == {field.name for field in dataclasses.fields(default)}
    digests = {policy_digest(default)}
    for name, value in CHANGES.items():
        digests.add(policy_digest(dataclasses.replace(default, **{name: value})))
    assert len(digests) == len(CHANGES) + 1


def test_equal_policies_have_equal_digests_whatever_the_order_of_their_sets() -> None:
    monitors = [AcceptedMonitor(bytes([n]) * 32, "1", n) for n in range(1, 9)]
    forward = AppraisalPolicy(monitors=frozenset(monitors))
    backward = AppraisalPolicy(monitors=frozenset(reversed(monitors)))
    assert policy_digest(forward) == policy_digest(backward)


@pytest.mark.parametrize("missing", REQUIRED_PCRS)
def test_a_policy_cannot_ask_for_fewer_pcrs_than_the_levels_need(missing: int) -> None:
    with pytest.raises(ValueError, match="must cover"):
        AppraisalPolicy(required_pcrs=tuple(p for p in REQUIRED_PCRS if p != missing))


RULE_CHANGES: dict[str, object] = {
    "required_facts": frozenset({"secure_boot_enabled"}),
    "banks": frozenset({"sha256"}),
    "replayed_pcrs": frozenset({7}),
    "firmware_versions": frozenset({"1"}),
    "platform_keys": frozenset({bytes(32)}),
    "key_exchange_keys": frozenset({bytes(32)}),
    "images": frozenset({bytes(32)}),
    "files": frozenset({bytes(32)}),
    "command_lines": frozenset({"quiet"}),
    "required_parameters": ("quiet",),
    "launch_records": frozenset({bytes(32)}),
    "windows_modules": frozenset({bytes(32)}),
    "windows_module_signers": frozenset({"a / b"}),
    "code_integrity_policies": frozenset({bytes(32)}),
    "minimum_boot_manager_svn": 1,
}


def test_every_boot_rule_moves_the_digest() -> None:
    """A relying party that pins a policy's digest pins its boot rules too; none and empty differ."""
    assert set(RULE_CHANGES) == {field.name for field in dataclasses.fields(BootRules)}
    digests = {policy_digest(AppraisalPolicy())}
    for name, value in RULE_CHANGES.items():
        digests.add(policy_digest(AppraisalPolicy(boot=dataclasses.replace(BootRules(), **{name: value}))))  # type: ignore[arg-type]
    digests.add(policy_digest(AppraisalPolicy(boot=BootRules(images=frozenset()))))
    assert len(digests) == len(RULE_CHANGES) + 2
