"""Sessions of truthful machines: the level they deserve, and why not the next.

Each test bends one thing that *happened*, so that the evidence is honest and only unwelcome.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from sqlalchemy import delete

from affiant.appraisal.key_names import authority_identities, entry_identity, signers
from affiant.appraisal.policy import AcceptedMonitor, AppraisalPolicy
from affiant.model.level import SecurityLevel
from affiant.service.database import transaction
from affiant.service.device_store import all_devices
from affiant.service.tables import accepted_monitors, endorsement_anchors, reference_values
from affiant.service.trust_store import add_unified_image
from affiant.tpm.algorithms import HashAlgorithm
from affiant.tpm.boot_state import UntrustedBoot, read_untrusted_boot
from affiant.tpm.efi_variable import SHIM_LOCK
from affiant.tpm.event_log import parse_event_log
from affiant.tpm.event_types import EventType
from tests.boot_log import BootLog
from tests.simulator import (
    MONITOR_IMAGE,
    REFERENCE,
    START,
    Machine,
    Session,
    World,
    make_world,
    reference_value,
)
from tests.software_tpm import SoftwareTpm

Bend = Callable[[BootLog], None]


@pytest.fixture
def world(tmp_path: Path) -> World:
    return make_world(tmp_path / "service")


def shortfalls(session: Session) -> dict[str, str]:
    """Return what keeps the machine from levels that can be reached, by claim."""
    return {s.claim: s.explanation for s in session.report.shortfalls if s.claim != "host_attested"}


def test_a_truthful_machine_reaches_level_four_and_is_told_why_not_five(world: World) -> None:
    report = world.machine().attest().report
    assert report.level is SecurityLevel.ENFORCED_CODE, report.shortfalls
    assert [shortfall.claim for shortfall in report.shortfalls] == ["host_attested"]
    assert report.kernel == reference_value(BootLog.recorded()).kernel
    assert report.reference == REFERENCE
    assert all(value is True for _, value in report.claims)
    # AR4SI: identity recognised, configuration approved, executables approved at boot, isolated monitor.
    assert report.trust_vector == ((0, 2), (1, 2), (2, 3), (4, 0), (5, 32))
    assert report.expires_at - report.issued_at <= 3600


def test_a_second_session_has_a_new_key_and_the_same_device(world: World) -> None:
    machine = world.machine()
    first, second = machine.attest().report, machine.attest().report
    assert first.device == second.device
    assert first.session_id != second.session_id
    assert first.session_key_thumbprint != second.session_key_thumbprint


def test_a_machine_without_a_tpm_gets_level_zero_with_reasons(world: World) -> None:
    report = Machine(world.service, None, log=None).attest().report
    assert report.level is SecurityLevel.UNPROVEN
    assert dict(report.claims)["attestation_key_enrolled"] is None
    assert "no TPM" in report.shortfalls[0].explanation
    assert (report.kernel, report.reference) == (None, None)
    assert report.trust_vector == ((0, 0), (1, 0), (2, 0), (4, 0), (5, 0))


def test_a_machine_whose_key_was_never_enrolled_gets_level_zero(world: World) -> None:
    """And none of what its quote says is believed: anybody can make a TPM of his own."""
    tpm = SoftwareTpm(world.authority, now=START, ek="ecc")
    report = Machine(world.service, tpm).boot().attest().report
    assert report.level is SecurityLevel.UNPROVEN
    claims = dict(report.claims)
    assert claims.pop("attestation_key_enrolled") is False
    assert set(claims.values()) == {None}
    assert all_devices_of(world) == ()


def test_trust_in_a_tpm_maker_that_was_taken_back_counts_at_once(world: World) -> None:
    machine = world.machine()
    assert machine.attest().report.level is SecurityLevel.ENFORCED_CODE
    with transaction(world.service.context.engine) as connection:
        connection.execute(delete(endorsement_anchors))
    report = machine.attest().report
    assert report.level is SecurityLevel.UNPROVEN
    assert dict(report.claims)["endorsement_trusted"] is False
    assert dict(report.claims)["secure_boot_enabled"] is None


def test_without_an_event_log_the_boot_is_unknown(world: World) -> None:
    session = world.machine(log=None).attest()
    assert session.report.level is SecurityLevel.UNPROVEN
    assert dict(session.report.claims)["quote_fresh"] is True
    assert "firmware" in shortfalls(session)["event_log_replayed"]


@pytest.mark.parametrize(
    ("events", "unmet"),
    [(0, "firmware_measured"), (5, "firmware_measured"), (20, "firmware_measured"), (30, "kernel_known")],
)
def test_a_guest_that_has_not_booted_yet_is_rooted_at_most(world: World, events: int, unmet: str) -> None:
    """In its firmware (the first 20 events) or in GRUB, its log is short and replays as far as it goes."""
    log = BootLog.recorded()
    del log.events[events:]
    session = world.machine(log=log).attest()
    assert session.report.level is SecurityLevel.ROOTED
    assert {"kernel_known", unmet} <= shortfalls(session).keys()


def test_a_firmware_in_setup_mode_enforces_nothing(world: World) -> None:
    session = world.machine(log=BootLog.recorded("debian12-setup-mode")).attest()
    assert session.report.level is SecurityLevel.ROOTED
    assert "secure_boot_enabled" in shortfalls(session)
    assert dict(session.report.trust_vector)[1] == 96


def add_command(log: BootLog, text: str) -> None:
    """Let GRUB have run one more command, before the kernel took over."""
    log.append(8, EventType.IPL, b"grub_cmd: " + text.encode() + b"\0", of=text.encode())


def add_shim_variable(log: BootLog, name: str, content: bytes, *, vendor: bytes = SHIM_LOCK.bytes_le) -> None:
    encoded = name.encode("utf-16-le")
    head = vendor + struct.pack("<QQ", len(name), len(content))
    log.append(7, EventType.EFI_VARIABLE_AUTHORITY, head + encoded + content)


def another_key_list(log: BootLog) -> None:
    position = next(index for index, event in enumerate(log.events) if event.pcr == 14)
    event = log.events[position]
    log.events[position] = replace(event, digests={n: bytes(len(d)) for n, d in event.digests.items()})


def add_key_to_db(log: BootLog) -> None:
    owner_and_hash = bytes(16) + hashlib.sha256(b"my own loader").digest()
    kind = bytes.fromhex("2616c4c14c509240aca941f936934328")  # EFI_CERT_SHA256_GUID
    event = log.events[log.variable("db")]
    content = event.data[32 + 2 * len("db") :] + kind + struct.pack("<III", 28 + 48, 0, 48) + owner_and_hash
    log.replace_variable("db", content)


def start_another_and_append_the_known(log: BootLog) -> None:
    """Let an unknown kernel have run, which then extended PCR 4 with the digest of the known one."""
    kernels = [
        position
        for position, event in enumerate(log.events)
        if event.pcr == 4 and event.type == EventType.EFI_BOOT_SERVICES_APPLICATION
    ][2:]
    last = log.events[kernels[-1]]
    for position in kernels:
        log.append(4, last.type, last.data, of=b"MZ an unknown kernel")
        log.events[position] = log.events.pop()
    log.events.append(last)


BENT_BOOTS: dict[str, tuple[Bend, int, str]] = {
    "Secure Boot off": (lambda log: log.replace_variable("SecureBoot", b"\0"), 1, "secure_boot_enabled"),
    "Secure Boot empty": (lambda log: log.replace_variable("SecureBoot", b""), 1, "secure_boot_enabled"),
    "own key in db": (add_key_to_db, 1, "secure_boot_keys_accepted"),
    "db not measured": (
        lambda log: log.events.pop(log.variable("db")) and None,
        1,
        "secure_boot_keys_accepted",
    ),
    "foreign signer": (
        lambda log: add_shim_variable(log, "MokListRT", bytes(16) + b"certificate"),
        1,
        "boot_signers_accepted",
    ),
    "a second kernel loaded": (lambda log: add_command(log, "linux /other"), 1, "kernel_known"),
    "another loader chained": (lambda log: add_command(log, "chainloader /x.efi"), 1, "kernel_known"),
    "another image started last": (
        lambda log: log.append(4, EventType.EFI_BOOT_SERVICES_APPLICATION, b"path", of=b"image"),
        1,
        "kernel_known",
    ),
    "another kernel started, the known one appended": (
        start_another_and_append_the_known,
        1,
        "kernel_known",
    ),
    "shim validates nothing": (
        lambda log: add_shim_variable(log, "MokSBState", b"\x01"),
        3,
        "test_signing_disabled",
    ),
    "machine owner keys": (another_key_list, 3, "machine_owner_keys_accepted"),
    "kgdb": (lambda log: log.replace_text("panic=-1", "kgdboc=ttyS0"), 3, "kernel_debugging_disabled"),
    "nokaslr": (lambda log: log.replace_text("panic=-1", "nokaslr"), 3, "command_line_accepted"),
    "sig_enforce off": (
        lambda log: log.replace_text("panic=-1", "module.sig_enforce=0"),
        3,
        "command_line_accepted",
    ),
}


@pytest.mark.parametrize("name", BENT_BOOTS)
def test_one_thing_amiss_in_the_boot_costs_its_level(world: World, name: str) -> None:
    """The reason is told, the levels below stay, and nothing else is held against the machine."""
    bend, level, claim = BENT_BOOTS[name]
    log = BootLog.recorded()
    bend(log)
    session = world.machine(log=log).attest()
    assert session.report.level == level
    assert claim in shortfalls(session)
    assert {s.level for s in session.report.shortfalls} >= {SecurityLevel(level + 1)}
    assert dict(session.report.claims)["launch_record_measured"] is True


def test_an_unknown_kernel_costs_level_two(world: World) -> None:
    with transaction(world.service.context.engine) as connection:
        connection.execute(delete(reference_values))
    session = world.machine().attest()
    assert session.report.level is SecurityLevel.ROOTED
    assert "kernel_known" in shortfalls(session)
    assert session.report.kernel is None


@pytest.mark.parametrize("name", ["debian-trixie-systemd-257", "debian-sid-systemd-262"])
def test_a_unified_kernel_image_that_is_known_reaches_level_three(tmp_path: Path, name: str) -> None:
    """Not level four: which command line its kernel got cannot be told."""
    log, boot = unified_boot(name)
    secure_boot = boot.secure_boot
    assert secure_boot.allowed is not None
    policy = AppraisalPolicy(
        secure_boot_keys=frozenset(map(entry_identity, secure_boot.allowed.entries())),
        boot_signers=frozenset(one for each in signers(secure_boot) for one in authority_identities(each)),
    )
    world = make_world(tmp_path / "service", policy=policy)
    assert world.machine(log=log).attest().report.level is SecurityLevel.ROOTED
    image, addon = (application.digest for application in boot.applications)
    known = reference_value(BootLog.recorded())
    with transaction(world.service.context.engine) as connection:
        add_unified_image(connection, image, kernel=known.kernel, addon=False, now=START)
    assert "kernel_known" in shortfalls(world.machine(log=log).attest())
    with transaction(world.service.context.engine) as connection:
        add_unified_image(connection, addon, kernel=known.kernel, addon=True, now=START)
    session = world.machine(log=log).attest()
    assert session.report.level is SecurityLevel.ISOLATED
    assert session.report.kernel == known.kernel
    assert {"kernel_debugging_disabled", "command_line_accepted"} <= set(shortfalls(session))


def unified_boot(name: str) -> tuple[BootLog, UntrustedBoot]:
    """The recorded boot of a unified kernel image: its log, to be measured again, and what that says."""
    data = (Path(__file__).parents[2] / "vectors" / "userspace" / f"{name}.bin").read_bytes()
    parsed = parse_event_log(data)
    head = data[: 32 + len(parsed.events[0].data)]
    return BootLog(head, list(parsed.events[1:]), {}), read_untrusted_boot(parsed, bank=HashAlgorithm.SHA256)


@pytest.mark.parametrize("shown", [None, bytes(32)])
def test_a_monitor_that_compares_with_another_reference_is_not_believed(
    world: World, shown: bytes | None
) -> None:
    session = world.machine(reference=shown).attest()
    assert session.report.level is SecurityLevel.ROOTED
    assert set(shortfalls(session)) == {"reference_matches_kernel"}
    assert session.report.kernel is not None
    assert session.report.reference is None


@pytest.mark.parametrize("unknown", ["locks_down", "verifies_modules"])
def test_a_kernel_not_known_to_enforce_signatures_stays_at_level_three(world: World, unknown: str) -> None:
    world.service.know(reference_value(BootLog.recorded(), **{unknown: False}))
    session = world.machine().attest()
    assert session.report.level is SecurityLevel.ISOLATED
    assert "module_signatures_enforced" in shortfalls(session)
    assert ("kernel_lockdown_enforced" in shortfalls(session)) == (unknown == "locks_down")


def test_a_resumed_machine_is_rooted_only(world: World) -> None:
    machine = world.machine()
    assert machine.tpm is not None
    machine.tpm.restart_count += 1
    session = machine.attest()
    assert session.report.level is SecurityLevel.ROOTED
    assert set(shortfalls(session)) == {"not_resumed"}


def test_a_machine_set_back_to_an_older_state_is_rooted_only_until_it_is_ahead_again(world: World) -> None:
    machine = world.machine()
    assert machine.tpm is not None
    machine.boot().attest()
    machine.tpm.reset_count -= 1
    session = machine.attest()
    assert session.report.level is SecurityLevel.ROOTED
    assert set(shortfalls(session)) == {"not_rolled_back"}
    machine.boot().boot()
    assert machine.attest().report.level is SecurityLevel.ENFORCED_CODE


def test_without_a_launch_the_monitor_is_nobody(world: World) -> None:
    machine = world.machine()
    assert machine.tpm is not None
    assert machine.log is not None
    machine.tpm.reset()
    machine.log.measure_into(machine.tpm)
    session = machine.attest()
    assert session.report.level is SecurityLevel.VERIFIED_BOOT
    assert dict(session.report.claims)["launch_record_measured"] is False


@pytest.mark.parametrize(
    ("changes", "claim"),
    [
        ({"debug": True}, "monitor_debugging_disabled"),
        ({"monitor_image": bytes(32)}, "monitor_accepted"),
        ({"monitor_version": "0.2.0"}, "monitor_accepted"),
        ({"security_version": 0}, "monitor_accepted"),
        ({"security_version": 2}, "monitor_accepted"),
    ],
)
def test_a_monitor_that_policy_does_not_want_costs_level_three(
    world: World, changes: dict[str, object], claim: str
) -> None:
    machine = world.machine()
    machine.record = replace(machine.record, **changes)  # type: ignore[arg-type]
    session = machine.boot().attest()
    assert session.report.level is SecurityLevel.VERIFIED_BOOT
    assert set(shortfalls(session)) == {claim}


def test_an_accepted_monitor_below_the_minimum_security_version_is_not_accepted(tmp_path: Path) -> None:
    world = make_world(tmp_path / "service", minimum_security_version=2)
    session = world.machine().attest()
    assert session.report.level is SecurityLevel.VERIFIED_BOOT
    assert "policy wants 2" in shortfalls(session)["monitor_accepted"]


def test_any_monitor_is_accepted_only_where_the_operator_says_so(tmp_path: Path) -> None:
    unsafe = make_world(tmp_path / "unsafe", accept_any_monitor_image=True)
    with transaction(unsafe.service.context.engine) as connection:
        connection.execute(delete(accepted_monitors))
    safe = make_world(tmp_path / "safe")
    report = unsafe.machine().attest().report
    assert report.level is SecurityLevel.ENFORCED_CODE
    assert report.policy != safe.machine().attest().report.policy


def test_the_policy_in_the_report_changes_with_what_is_accepted(world: World) -> None:
    machine = world.machine()
    before = machine.attest().report.policy
    world.service.accept(AcceptedMonitor(bytes(32), "9", 9))
    assert machine.attest().report.policy != before
    world.service.accept(AcceptedMonitor(MONITOR_IMAGE, "0.1.0", 1))
    assert machine.attest().report.level is SecurityLevel.ENFORCED_CODE


def all_devices_of(world: World) -> tuple[object, ...]:
    with transaction(world.service.context.engine) as connection:
        return all_devices(connection)
