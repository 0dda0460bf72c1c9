"""Event logs, quotes and PCRs that tell another boot than the one that happened (attacks 5, 6, 7)."""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import replace

import pytest

from affiant.model.errors import EvidenceError, ForgedError
from affiant.model.level import SecurityLevel
from affiant.tpm.event_types import EventType
from tests.boot_log import SHA256, BootLog
from tests.simulator import Machine, World


def tell(machine: Machine, told: BootLog) -> SecurityLevel:
    """Send truthful evidence but for the log, and return the level."""
    answer = machine.answer(machine.service.challenge())
    return machine.send(answer.with_evidence(event_log=told.encode())).report.level


def without_secure_boot(world: World) -> Machine:
    log = BootLog.recorded()
    log.replace_variable("SecureBoot", b"\0")
    return world.machine(log=log)


def test_changed_event_data_is_refused_or_worthless(world: World) -> None:
    """Secure Boot was off; the log's data says on, the digest stays. It gains nothing."""
    machine = without_secure_boot(world)
    assert machine.log is not None
    honest = tell(machine, machine.log)
    told = machine.log.copy()
    position = told.variable("SecureBoot")
    event = told.events[position]
    told.events[position] = replace(event, data=event.data[:-1] + b"\x01")
    try:
        level = tell(machine, told)
    except EvidenceError:
        level = SecurityLevel.UNPROVEN
    assert level <= honest == SecurityLevel.ROOTED


def test_changed_event_data_with_its_digest_is_refused(world: World) -> None:
    """Data and digest agree with each other, and not with PCR 7."""
    machine = without_secure_boot(world)
    assert machine.log is not None
    told = machine.log.copy()
    told.replace_variable("SecureBoot", b"\x01")
    with pytest.raises(ForgedError, match="PCR 7"):
        tell(machine, told)


def test_an_extra_event_that_was_never_hashed_is_refused(machine: Machine) -> None:
    assert machine.log is not None
    told = machine.log.copy()
    told.append(9, EventType.IPL, b"a file that was never measured")
    with pytest.raises(ForgedError, match="PCR 9"):
        tell(machine, told)


def test_an_extra_event_that_measures_nothing_changes_nothing(world: World) -> None:
    """EV_NO_ACTION is not replayed; nothing that stands in one is ever read as a fact."""
    machine = without_secure_boot(world)
    assert machine.log is not None
    told = machine.log.copy()
    on = BootLog.recorded()
    told.events.append(replace(on.events[on.variable("SecureBoot")], type=EventType.NO_ACTION))
    assert tell(machine, told) is SecurityLevel.ROOTED


BENDS: dict[str, Callable[[BootLog], object]] = {
    "truncated": lambda log: log.events.pop(),
    "first event gone": lambda log: log.events.pop(1),
    "reordered": lambda log: log.events.insert(
        log.variable("db"), log.events.pop(log.variable("SecureBoot"))
    ),
    "duplicated": lambda log: log.events.append(log.events[-1]),
    "moved to another PCR": lambda log: log.events.append(replace(log.events.pop(), pcr=0)),
    "kernel swapped": lambda log: swap_digest(log, str(log.expected["kernel_file"])),
    "startup locality lied about": lambda log: log.events.insert(
        0, replace(log.events[0], pcr=0, type=EventType.NO_ACTION, data=b"StartupLocality\0\x03")
    ),
}


def swap_digest(log: BootLog, old: str) -> None:
    for position, event in enumerate(log.events):
        if event.digests[SHA256].hex() == old:
            log.events[position] = replace(event, digests=event.digests | {SHA256: bytes(32)})
            return
    raise AssertionError("the kernel is not in the log")


@pytest.mark.parametrize("name", BENDS)
def test_a_log_that_does_not_replay_is_refused(machine: Machine, name: str) -> None:
    assert machine.log is not None
    told = machine.log.copy()
    BENDS[name](told)
    with pytest.raises(EvidenceError):
        tell(machine, told)
    assert tell(machine, machine.log) is SecurityLevel.ENFORCED_CODE


def test_the_log_of_a_better_boot_is_refused(world: World) -> None:
    """An unknown machine state with a perfect log beside it."""
    machine = without_secure_boot(world)
    with pytest.raises(ForgedError, match="PCR 7"):
        tell(machine, BootLog.recorded())


def test_better_pcr_values_beside_the_quote_are_refused(world: World, machine: Machine) -> None:
    """The values count only when their digest is the one that was signed."""
    victim = without_secure_boot(world)
    answer = victim.answer(world.service.challenge())
    assert machine.tpm is not None
    assert answer.evidence.quote is not None
    better = tuple((index, machine.tpm.pcrs[index]) for index, _ in answer.evidence.quote.pcrs)
    with pytest.raises(ForgedError, match="PCR values"):
        victim.send(answer.with_quote(pcrs=better))


def test_a_quote_in_a_weaker_bank_is_refused(machine: Machine) -> None:
    """The SHA-1 bank may be forged by collisions, or be left for the guest to fill (attack 6)."""
    assert machine.tpm is not None
    answer = machine.answer(machine.service.challenge())
    assert answer.evidence.quote is not None
    sha1 = answer.evidence.quote.attest.replace(
        struct.pack(">IHB", 1, 0x000B, 3), struct.pack(">IHB", 1, 0x0004, 3)
    )
    with pytest.raises(EvidenceError, match="sha1"):
        machine.send(answer.with_quote(attest=sha1, signature=machine.tpm.sign(sha1)))


@pytest.mark.parametrize("left_out", [*range(10), 14, 17])
def test_a_quote_that_leaves_a_pcr_out_is_refused(machine: Machine, left_out: int) -> None:
    assert machine.tpm is not None
    challenge = machine.service.challenge()
    fewer = replace(challenge, pcrs=tuple(index for index in challenge.pcrs if index != left_out))
    with pytest.raises(ForgedError, match=f"PCR {left_out}\\b"):
        machine.send(machine.answer(fewer))


def test_a_bank_that_the_firmware_left_to_the_guest_is_noticed(world: World) -> None:
    """The guest extends PCR 0 to 7 itself with events of its own making (attack 6).

    They replay, and say that Secure Boot is on, but no firmware began them with its own code.
    """
    log = BootLog.recorded()
    log.events = [event for event in log.events if event.pcr not in (0, 1, 2, 3)]
    session = world.machine(log=log).attest()
    assert session.report.level is SecurityLevel.ROOTED
    assert "firmware_measured" in {shortfall.claim for shortfall in session.report.shortfalls}


def test_a_guest_that_extends_a_boot_pcr_afterwards_loses_its_own_session_only(
    world: World, machine: Machine
) -> None:
    """What a hostile guest destroys costs itself; other machines are served as before."""
    assert machine.tpm is not None
    machine.tpm.extend(9, bytes(32))
    with pytest.raises(ForgedError, match="PCR 9"):
        machine.attest()
    assert world.machine().attest().report.level is SecurityLevel.ENFORCED_CODE


def test_a_tpm_reset_between_log_and_quote_is_refused(machine: Machine) -> None:
    """The old log does not replay onto PCRs that were reset (attack 7)."""
    assert machine.tpm is not None
    machine.tpm.reset()
    with pytest.raises(ForgedError):
        machine.attest()


def test_a_second_launch_of_another_monitor_is_refused(machine: Machine) -> None:
    """PCR 17 holds the last launch only (attack 7)."""
    assert machine.tpm is not None
    machine.tpm.launch(b"another monitor's record")
    with pytest.raises(ForgedError, match="PCR 17"):
        machine.attest()


def test_a_certification_in_place_of_a_quote_is_refused(machine: Machine) -> None:
    """The attestation key also signs other structures of the TPM (attack 9)."""
    assert machine.tpm is not None
    answer = machine.answer(machine.service.challenge())
    assert answer.evidence.quote is not None
    certify = answer.evidence.quote.attest.replace(b"\xff\x54\x43\x47\x80\x18", b"\xff\x54\x43\x47\x80\x17")
    with pytest.raises(EvidenceError):
        machine.send(answer.with_quote(attest=certify, signature=machine.tpm.sign(certify)))
