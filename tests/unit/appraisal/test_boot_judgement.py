"""Each rule of a policy refuses a boot that is bent in one thing, and names it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest

from affiant.appraisal.boot_description import describe_verified_boot
from affiant.appraisal.boot_facts import FACT_NAMES, Trust, command_lines
from affiant.appraisal.boot_judgement import judge_boot, judge_rules
from affiant.appraisal.boot_rules import BootRules
from affiant.appraisal.policy import AppraisalPolicy
from affiant.appraisal.policy_from_boot import policy_accepting
from affiant.model.errors import ForgedError
from affiant.tpm.drtm import expected_pcr17
from affiant.tpm.efi_variable import EFI_GLOBAL, IMAGE_SECURITY
from affiant.tpm.event_types import EventType
from affiant.tpm.signature_database import encode_certificate_list
from tests.unit.appraisal.boots import ATTESTER, proven, told, windows_firmware
from tests.unit.tpm.firmware import COMMAND_LINE, SHA256, Entry, Firmware, variable
from tests.unit.tpm.windows.machine import Machine, module

Bend = Callable[[Firmware], None]
STRANGER = encode_certificate_list(EFI_GLOBAL, b"\x30\x82\x00\x04evil")


def replace_variable(firmware: Firmware, name: str, content: bytes) -> None:
    """Let the machine have had (and measured) another content of a variable."""
    vendor = IMAGE_SECURITY if name in ("db", "dbx") else EFI_GLOBAL
    head = variable(vendor, name, b"")
    # Vendor and length of the name, then (after the content's length) the name itself.
    position = next(
        i
        for i, e in enumerate(firmware.entries)
        if e.pcr == 7 and e.data[:24] == head[:24] and e.data[32:].startswith(head[32:])
    )
    entry = firmware.entries[position]
    firmware.entries[position] = Entry(7, entry.type, variable(vendor, name, content))


def replace_text(firmware: Firmware, old: str, new: str) -> None:
    for position, entry in enumerate(firmware.entries):
        if entry.pcr == 8 and old.encode() in entry.data:
            assert entry.measured is not None
            firmware.entries[position] = dataclasses.replace(
                entry,
                data=entry.data.replace(old.encode(), new.encode()),
                measured=entry.measured.replace(old.encode(), new.encode()),
            )


def another_image(firmware: Firmware) -> None:
    firmware.add(4, EventType.EFI_BOOT_SERVICES_APPLICATION, bytes(32), b"a rootkit's loader")


def another_file(firmware: Firmware) -> None:
    firmware.file("/vmlinuz", b"a rootkit's kernel")


def secure_boot_off(firmware: Firmware) -> None:
    replace_variable(firmware, "SecureBoot", b"\0")


def another_signer(firmware: Firmware) -> None:
    data = variable(IMAGE_SECURITY, "db", EFI_GLOBAL.bytes_le + b"somebody's certificate")
    firmware.add(7, EventType.EFI_VARIABLE_AUTHORITY, data)


def own_keys_in_mok(firmware: Firmware) -> None:
    position = firmware.find(b"MokList\0", pcr=14)
    firmware.entries[position] = dataclasses.replace(firmware.entries[position], measured=STRANGER)


def another_firmware(firmware: Firmware) -> None:
    position = firmware.find("1.0\0".encode("utf-16-le"), pcr=0)
    firmware.entries[position] = Entry(0, EventType.S_CRTM_VERSION, "0.9\0".encode("utf-16-le"))


LIES: dict[str, tuple[Bend, str]] = {
    "a boot loader of nobody's": (another_image, "boot image"),
    "another kernel file": (another_file, "file /vmlinuz"),
    "secure boot off": (secure_boot_off, "secure_boot_enabled"),
    "an attacker's key in db": (lambda f: replace_variable(f, "db", STRANGER), "db"),
    "an emptied dbx": (lambda f: replace_variable(f, "dbx", b""), "dbx"),
    "another platform key": (lambda f: replace_variable(f, "PK", STRANGER), "PK"),
    "another key exchange key": (lambda f: replace_variable(f, "KEK", STRANGER), "KEK"),
    "a signer that nobody knows": (another_signer, "boot signer"),
    "an owner's key": (own_keys_in_mok, "shim's MokList"),
    "an older firmware": (another_firmware, "firmware version"),
    "a parameter more": (lambda f: replace_text(f, " ro", " ro init=/bin/sh"), "command line"),
    "a debugger": (lambda f: replace_text(f, " ro", " ro kgdboc=ttyS0"), "command line"),
    "a second kernel command": (lambda f: f.command("linux /other"), "command line"),
}


@pytest.fixture(scope="module")
def policy() -> AppraisalPolicy:
    return policy_accepting(proven(Firmware.healthy())).policy


def test_a_policy_made_from_a_proven_boot_accepts_it_and_asks_for_proof(policy: AppraisalPolicy) -> None:
    verdict = judge_boot(proven(Firmware.healthy()), policy)
    assert verdict.accepted, verdict.findings
    assert {"secure_boot_enabled", "test_signing_disabled"} <= policy.boot.required_facts
    assert policy.boot.replayed_pcrs == frozenset({*range(10), 14})


@pytest.mark.parametrize(("bend", "subject"), LIES.values(), ids=LIES)
def test_a_boot_bent_in_one_thing_is_refused_by_name(
    policy: AppraisalPolicy, bend: Bend, subject: str
) -> None:
    firmware = Firmware.healthy()
    bend(firmware)
    verdict = judge_boot(proven(firmware), policy)
    assert not verdict.accepted
    assert subject in {finding.subject for finding in verdict.findings}


def test_more_revocations_are_welcome(policy: AppraisalPolicy) -> None:
    """dbx only grows: what is asked for is that it holds at least what it held."""
    firmware = Firmware.healthy()
    before = encode_certificate_list(EFI_GLOBAL, b"\x30\x82\x00\x04keys")
    replace_variable(firmware, "dbx", before + STRANGER)
    assert judge_boot(proven(firmware), policy).accepted


def test_a_log_that_was_changed_afterwards_is_no_boot_at_all(policy: AppraisalPolicy) -> None:
    honest, changed = Firmware.healthy(), Firmware.healthy()
    another_image(changed)

    with pytest.raises(ForgedError, match="PCR 4"):
        describe_verified_boot(ATTESTER.quote(honest.pcrs()), changed.log(), policy=policy)


def test_an_unreplayed_pcr_is_missed(policy: AppraisalPolicy) -> None:

    firmware = Firmware.healthy()
    quote = ATTESTER.quote(firmware.pcrs(), selected=[0, 1, 2, 3, 4, 5, 6, 7])
    verdict = judge_boot(describe_verified_boot(quote, firmware.log(), policy=policy), policy)
    subjects = {finding.subject for finding in verdict.findings}
    assert {"PCR 8", "PCR 9", "PCR 14", "machine_owner_keys_absent", "command line"} <= subjects


def test_a_fact_that_is_only_said_does_not_meet_a_policy_of_a_proven_boot() -> None:
    """The Windows events are there, and PCR 12 is not in the quote."""

    firmware = windows_firmware()
    rules = AppraisalPolicy(boot=BootRules(required_facts=frozenset({"vbs_enabled", "hvci_enabled"})))
    whole = judge_rules(proven(firmware), rules.boot)
    assert whole.accepted, whole.findings
    quote = ATTESTER.quote(firmware.pcrs(), selected=[*range(8), 13])
    described = describe_verified_boot(quote, firmware.log(), policy=rules)
    assert {one.subject for one in judge_rules(described, rules.boot).findings} == {
        "vbs_enabled",
        "hvci_enabled",
    }


def test_a_launch_record_is_known_by_pcr_17() -> None:
    firmware = Firmware.healthy()
    pcrs = firmware.pcrs()

    record = b"a launch record"
    launched = {**pcrs, 17: expected_pcr17(record)}
    rules = BootRules(launch_records=frozenset({SHA256.digest(record)}))
    described = describe_verified_boot(ATTESTER.quote(launched), firmware.log(), policy=AppraisalPolicy())
    assert judge_rules(described, rules).accepted
    assert not judge_rules(
        described, BootRules(launch_records=frozenset({SHA256.digest(b"another")}))
    ).accepted
    assert not judge_rules(proven(firmware), rules).accepted
    without = describe_verified_boot(
        ATTESTER.quote(pcrs, selected=range(10)), firmware.log(), policy=AppraisalPolicy()
    )
    assert [one.found for one in judge_rules(without, rules).findings] == ["not quoted"]


WINDOWS_LIES: dict[str, tuple[Machine, str]] = {
    "no virtualization-based security": (Machine(keys=[]), "vbs_enabled"),
    "a driver that was not there": (
        Machine(modules=[*Machine().modules, module("\\Windows\\rootkit.sys")]),
        "Windows module \\Windows\\rootkit.sys",
    ),
    "a driver signed by another": (
        Machine(modules=[*Machine().modules, module("\\Windows\\rootkit.sys", publisher="Rootkits Ltd")]),
        "Windows module rootkit.sys",
    ),
    "an older boot manager": (
        Machine(settings={**Machine().settings, 0x00020009: (6).to_bytes(4, "little")}),
        "boot manager's security version",
    ),
    "test signing": (Machine(settings={**Machine().settings, 0x00050003: b"\x01"}), "test_signing_disabled"),
}


@pytest.mark.parametrize(("machine", "subject"), WINDOWS_LIES.values(), ids=WINDOWS_LIES)
def test_a_windows_machine_bent_in_one_thing_is_refused_by_name(machine: Machine, subject: str) -> None:
    policy = policy_accepting(proven(windows_firmware())).policy
    assert judge_boot(proven(windows_firmware()), policy).accepted
    verdict = judge_boot(proven(windows_firmware(machine)), policy)
    assert subject in {finding.subject for finding in verdict.findings}


def test_a_policy_that_states_nothing_looks_at_nothing() -> None:
    verdict = judge_rules(proven(Firmware.healthy()), BootRules())
    assert (verdict.looked_at, verdict.accepted) == (0, False)


def test_required_parameters_must_be_there() -> None:
    firmware = Firmware.healthy()
    assert judge_rules(proven(firmware), BootRules(required_parameters=("ro",))).accepted
    refused = judge_rules(proven(firmware), BootRules(required_parameters=("ro", "lockdown=integrity")))
    assert [one.expected for one in refused.findings] == ["has lockdown=integrity"]


def test_the_command_line_behind_another_boot_loader_cannot_be_told() -> None:
    firmware = Firmware()
    firmware.command("chainloader /EFI/other.efi")
    assert command_lines(told(firmware.log()).boot) is None


def test_facts_of_an_unproven_log_are_untrusted_to_the_last() -> None:
    for log in (Firmware.healthy().log(), windows_firmware().log()):
        facts = told(log).facts
        assert facts
        assert {fact.trust for fact in facts} == {Trust.UNTRUSTED}
        assert {fact.name for fact in facts} <= FACT_NAMES


def test_a_log_that_contradicts_itself_is_refused_without_any_quote() -> None:
    firmware = Firmware.healthy()
    firmware.edit(
        firmware.find("SecureBoot".encode("utf-16-le")), data=variable(EFI_GLOBAL, "SecureBoot", b"\0")
    )
    with pytest.raises(ForgedError, match="not what was measured"):
        told(firmware.log())


def test_the_command_line_of_the_simulator_is_read() -> None:
    assert command_lines(proven(Firmware.healthy()).boot) == (COMMAND_LINE,)
