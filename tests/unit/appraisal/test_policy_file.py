"""The policy file: strict to read, whole when written, and telling of every sample's machine."""

from __future__ import annotations

import contextlib
import dataclasses
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from affiant.appraisal.boot_description import describe_verified_boot
from affiant.appraisal.boot_facts import FACT_NAMES
from affiant.appraisal.boot_judgement import judge_boot
from affiant.appraisal.boot_rules import BootRules
from affiant.appraisal.policy import AcceptedMonitor, AppraisalPolicy, policy_digest
from affiant.appraisal.policy_file import MAXIMUM_POLICY, parse_policy
from affiant.appraisal.policy_from_boot import policy_accepting
from affiant.appraisal.policy_text import write_policy
from affiant.model.errors import MalformedError
from tests.samples import octets, sample
from tests.unit.appraisal.boots import ATTESTER, proven, told, windows_firmware
from tests.unit.tpm.firmware import Firmware

SAMPLES = (
    "linux/debian-10.bin",
    "linux/keylime_binary_bios_measurements-secureboot.bin",
    "linux/rhel8-uefi.bin",
    "linux/tpm2-tools_event-sd-boot-fedora37.bin",
    "linux/ubuntu-2404-amd-sevsnp.bin",
    "windows/go-attestation_windows_gcp_shielded_vm.json",
    "windows/server2022_supermicro_trustpoint.bundle.json",
    "windows/win10_latitude7520_novbs_eset.bundle.json",
    "windows/win10_latitude7520_vbs_hvci.bundle.json",
)


def sample_log(name: str) -> bytes:
    content = sample(name)
    if not name.endswith(".json"):
        return content
    bundle = json.loads(content)
    return octets(bundle["Log"]["Raw"] if "Log" in bundle else bundle["event_logs"][0])


def sample_policy(name: str) -> AppraisalPolicy:
    """The policy that a sample's log makes, through its text."""
    named = policy_accepting(told(sample_log(name)))
    text = write_policy(named.policy, names=named.names, head=[name])
    read = parse_policy(text.encode())
    assert read.policy == named.policy
    assert policy_digest(read.policy) == policy_digest(named.policy)
    return read.policy


@pytest.mark.parametrize("name", SAMPLES)
def test_the_policy_of_a_sample_accepts_it_and_refuses_each_other(name: str) -> None:
    policy = sample_policy(name)
    for other in SAMPLES:
        verdict = judge_boot(told(sample_log(other), policy=policy), policy)
        assert verdict.accepted == (other == name), (other, verdict.findings[:3])


def test_every_field_survives_its_text() -> None:
    """A rule that the writer forgot would be a rule that nobody applies."""
    rules = BootRules(
        required_facts=frozenset({"secure_boot_enabled"}),
        banks=frozenset({"sha256", "sha384"}),
        replayed_pcrs=frozenset({0, 7, 23}),
        firmware_versions=frozenset({'1.0 "x"\\', "\x07bell", "", "Ünïcode \U0001f600"}),
        platform_keys=frozenset({bytes(32)}),
        key_exchange_keys=frozenset(),
        images=frozenset({bytes(20), bytes(32)}),
        files=frozenset({b"\x01" * 48}),
        command_lines=frozenset({"", 'quiet "a b"'}),
        required_parameters=("lockdown=integrity", "a*"),
        launch_records=frozenset({b"\x02" * 32}),
        windows_modules=frozenset({b"\x03" * 32}),
        windows_module_signers=frozenset({"a / b"}),
        code_integrity_policies=frozenset({b"\x04" * 32}),
        minimum_boot_manager_svn=7,
    )
    default = BootRules()
    assert not [
        f.name for f in dataclasses.fields(rules) if getattr(rules, f.name) == getattr(default, f.name)
    ]
    policy = AppraisalPolicy(
        monitors=frozenset({AcceptedMonitor(bytes(32), "1", 1), AcceptedMonitor(b"\1" * 32, "2", 2)}),
        accept_any_monitor_image=True,
        minimum_security_version=3,
        rules_roots=frozenset({b"\x08" * 32}),
        fleets=frozenset({"web", "db-2"}),
        secure_boot_keys=frozenset({b"\x05" * 32}),
        required_revocations=frozenset({b"\x06" * 32}),
        boot_signers=frozenset(),
        machine_owner_key_lists=frozenset({b"\x07" * 32}),
        debugging_parameters=("b", "a"),
        weakening_parameters=(),
        boot=rules,
    )
    text = write_policy(policy, names={bytes(32): "a name\nwith a line\n[quote]"}, head=["one\ntwo = 3"])
    named = parse_policy(text.encode())
    assert named.policy == policy
    assert named.names == {bytes(32): "a name?with a line?[quote]"}


@pytest.mark.parametrize("content", [b"", b"[quote]\n"])
def test_what_states_no_format_is_told_how_a_policy_is_made(content: bytes) -> None:
    with pytest.raises(MalformedError, match="does not begin with format = 1") as refusal:
        parse_policy(content)
    assert "affiant policy init" in refusal.value.hint


def test_the_shortest_policy_is_the_default_one() -> None:
    assert parse_policy(b"format = 1\n").policy == AppraisalPolicy()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "format = 2",
        "format = true",
        "format = 1\nformat = 1",
        "format = 1\n[quotes]\nbanks = []",
        "format = 1\nquote = 3",
        "format = 1\n[quote]\nbank = ['sha256']",
        "format = 1\n[quote]\nbanks = ['md5']",
        "format = 1\n[quote]\nbanks = 'sha256'",
        "format = 1\n[quote]\npcrs = [24]",
        "format = 1\n[quote]\npcrs = [-1]",
        "format = 1\n[quote]\npcrs = [true]",
        "format = 1\n[facts]\nrequired = ['secure_boot_disabled']",
        "format = 1\n[facts]\nrequired = ['secureboot']",
        "format = 1\n[secure_boot]\nallowed = ['00']",
        "format = 1\n[secure_boot]\nallowed = ['" + "00" * 20 + "']",
        "format = 1\n[secure_boot]\nallowed = [7]",
        "format = 1\n[boot]\nimages = ['xyz']",
        "format = 1\n[launch]\nminimum_security_version = '1'",
        "format = 1\n[launch]\nfleets = []",
        "format = 1\n[launch]\nfleets = ['Web']",
        "format = 1\n[launch]\nunsafe_accept_any_monitor = 1",
        "format = 1\n[[launch.monitors]]\nimage = '" + "00" * 32 + "'",
        "format = 1\n[windows]\nminimum_boot_manager_svn = -1",
        "format = 1\n[windows]\nminimum_boot_manager_svn = 4294967296",
        "format = 1\n[command_line]\naccepted = ['" + "a" * 5000 + "']",
        "format = 1\n[command_line]\ndebugging = ['']",
        "format = 1\n[boot]\nimages = " + "[" * 3000 + "]" * 3000,
    ],
)
def test_what_is_not_understood_is_refused(text: str) -> None:
    """A misspelt rule must never be a rule that is silently not applied."""
    with pytest.raises(MalformedError, match="policy"):
        parse_policy(text.encode())


def test_a_policy_has_a_bound() -> None:
    with pytest.raises(MalformedError, match="longer"):
        parse_policy(b"#" * (MAXIMUM_POLICY + 1))


@given(st.binary(max_size=400))
def test_any_octets_are_a_policy_or_malformed(content: bytes) -> None:
    with pytest.raises(MalformedError):
        parse_policy(b"format = 1\n[quote]\n\xff" + content)
    with contextlib.suppress(MalformedError):
        parse_policy(b"format = 1\n" + content)


@given(st.text(max_size=60), st.text(max_size=60).filter(lambda text: text.isprintable()))
def test_any_text_survives(line: str, name: str) -> None:
    clean = line.encode("utf-8", "replace").decode()  # TOML has no lone surrogates, and logs decode to none
    policy = AppraisalPolicy(boot=BootRules(command_lines=frozenset({clean})))
    text = write_policy(policy, names={}, head=[name])
    assert parse_policy(text.encode()).policy == policy


@pytest.mark.parametrize("firmware", [Firmware.healthy(), windows_firmware()], ids=["linux", "windows"])
def test_proven_and_told_boots_make_policies_that_accept_the_proven_one(firmware: Firmware) -> None:
    """A policy begun from a log alone still accepts the machine once it is proven."""
    for description in (proven(firmware), told(firmware.log())):
        policy = policy_accepting(description).policy
        assert policy.boot.required_facts <= FACT_NAMES
        verdict = judge_boot(proven(firmware, policy=policy), policy)
        assert verdict.accepted, verdict.findings


def test_a_policy_of_a_half_proven_boot_takes_nothing_that_is_only_said() -> None:
    firmware = windows_firmware()
    quote = ATTESTER.quote(firmware.pcrs(), selected=range(8))
    description = describe_verified_boot(quote, firmware.log(), policy=AppraisalPolicy())
    policy = policy_accepting(description).policy
    assert "vbs_enabled" not in policy.boot.required_facts
    assert policy.boot.windows_modules is None
    assert judge_boot(description, policy).accepted
    # And the rules of a whole one are not met by words.
    whole = policy_accepting(proven(firmware)).policy
    subjects = {one.subject for one in judge_boot(description, whole).findings}
    assert {"Windows modules", "signers of Windows modules", "vbs_enabled"} <= subjects
