"""Replaying logs onto quotes: each way in which a log may lie about what was measured."""

from __future__ import annotations

import contextlib
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from affiant.model.errors import EvidenceError, ForgedError, MalformedError
from affiant.tpm.algorithms import HashAlgorithm
from affiant.tpm.boot_state import BOOT_PCRS, verify_boot
from affiant.tpm.event_log import parse_event_log
from affiant.tpm.event_types import EventType
from affiant.tpm.replay import VerifiedEventLog, replay_event_log
from tests.unit.tpm.attester import Attester
from tests.unit.tpm.firmware import SHA1, SHA256, Entry, Firmware

ATTESTER = Attester()
HEALTHY = Firmware.healthy()
QUOTE = ATTESTER.quote(HEALTHY.pcrs())


def replay(firmware: Firmware, *, required: tuple[int, ...] = BOOT_PCRS) -> VerifiedEventLog:
    """The log of `firmware` onto the quote of the healthy machine."""
    return replay_event_log(parse_event_log(firmware.log()), QUOTE, required_pcrs=required)


def test_a_true_log_replays() -> None:
    log = replay(HEALTHY)
    assert log.pcrs == frozenset(BOOT_PCRS)
    assert [event.digest for event in log.events] == [entry.digest(SHA256) for entry in HEALTHY.entries]
    assert [event.pcr for event in log.of(14)] == [14, 14]


def test_no_pcr_is_misuse() -> None:
    with pytest.raises(ValueError, match="proves nothing"):
        replay(HEALTHY, required=())


def test_an_extra_event_is_refused() -> None:
    firmware = Firmware.healthy()
    firmware.command("linux /other")
    with pytest.raises(ForgedError, match="PCR 8"):
        replay(firmware)


def test_a_left_out_event_is_refused() -> None:
    firmware = Firmware.healthy()
    del firmware.entries[firmware.find("SbatLevel".encode("utf-16-le"))]
    with pytest.raises(ForgedError, match="PCR 7"):
        replay(firmware)


def test_reordered_events_are_refused() -> None:
    firmware = Firmware.healthy()
    first, second = firmware.find(b"grub_cmd: source"), firmware.find(b"grub_cmd: initrd")
    entries = firmware.entries
    entries[first], entries[second] = entries[second], entries[first]
    with pytest.raises(ForgedError, match="PCR 8"):
        replay(firmware)


def test_every_pcr_that_does_not_replay_is_named() -> None:
    firmware = Firmware.healthy()
    firmware.command("x")
    firmware.file("y", b"y")
    firmware.add(14, EventType.IPL, b"z")
    with pytest.raises(ForgedError, match="PCR 8, 9, 14"):
        replay(firmware)


def test_a_changed_digest_is_refused() -> None:
    firmware = Firmware.healthy()
    position = firmware.find(b"device path of GRUB")
    firmware.entries[position] = replace(firmware.entries[position], measured=b"another image")
    with pytest.raises(ForgedError, match="PCR 4"):
        replay(firmware)


def test_an_event_moved_to_another_pcr_is_refused() -> None:
    firmware = Firmware.healthy()
    firmware.edit(firmware.find(b"grub_cmd: initrd"), pcr=9)
    with pytest.raises(ForgedError, match="PCR 8, 9"):
        replay(firmware)


def test_an_event_hidden_as_no_action_is_refused() -> None:
    firmware = Firmware.healthy()
    firmware.edit(firmware.find(b"grub_cmd: initrd"), type=EventType.NO_ACTION)
    with pytest.raises(ForgedError, match="PCR 8"):
        replay(firmware)


def test_no_action_events_are_not_evidence() -> None:
    """An unmeasured event with any data changes nothing and reaches nobody."""
    firmware = Firmware.healthy()
    firmware.entries.append(Entry(7, EventType.NO_ACTION, b"SecureBoot is on, believe me", b"anything"))
    log = replay(firmware)
    assert len(log.events) == len(HEALTHY.entries)


def test_events_of_other_pcrs_are_not_evidence() -> None:
    firmware = Firmware.healthy()
    firmware.add(10, EventType.IPL, b"unproven")
    log = replay(firmware)
    assert all(event.pcr != 10 for event in log.events)
    with pytest.raises(ValueError, match="PCR 10"):
        log.of(10)


def test_a_pcr_outside_the_signed_selection_is_refused() -> None:
    quote = ATTESTER.quote(HEALTHY.pcrs(), selected=[0, 1, 2, 3, 4, 5, 6, 8, 9])
    with pytest.raises(ForgedError, match="lacks PCR 7, 14"):
        replay_event_log(parse_event_log(HEALTHY.log()), quote, required_pcrs=BOOT_PCRS)


def test_the_quoted_bank_counts() -> None:
    """SHA-1 digests that replay to SHA-1 values do not help a SHA-256 quote."""
    firmware = Firmware.healthy()
    firmware.banks = (SHA1,)
    with pytest.raises(MalformedError, match="no sha256 digest"):
        replay(firmware)


def test_a_relabelled_bank_is_refused() -> None:
    log = HEALTHY.log().replace(SHA1.to_bytes(2, "little") + b"\x14\0", b"\x0b\0\x20\0", 1)
    with pytest.raises(EvidenceError):
        replay_event_log(parse_event_log(log), QUOTE, required_pcrs=BOOT_PCRS)


def test_every_bank_replays_onto_its_own_quote() -> None:
    firmware = Firmware.healthy()
    firmware.banks = (SHA1, SHA256, HashAlgorithm.SHA384)
    log = parse_event_log(firmware.log())
    for bank in firmware.banks:
        quote = ATTESTER.quote(firmware.pcrs(bank), bank=bank)
        assert replay_event_log(log, quote, required_pcrs=BOOT_PCRS).bank is bank


def test_a_legacy_log_replays_in_sha1_only() -> None:
    log = parse_event_log(HEALTHY.legacy_log())
    quote = ATTESTER.quote(HEALTHY.pcrs(SHA1), bank=SHA1)
    assert replay_event_log(log, quote, required_pcrs=BOOT_PCRS).bank is SHA1
    with pytest.raises(MalformedError):
        replay_event_log(log, QUOTE, required_pcrs=BOOT_PCRS)


@pytest.mark.parametrize("locality", [0, 3, 4])
def test_the_startup_locality_is_proven_by_pcr_0(locality: int) -> None:
    firmware = Firmware.healthy()
    firmware.locality = locality
    quote = ATTESTER.quote(firmware.pcrs())
    for said in (0, 3, 4):
        telling = Firmware.healthy()
        telling.startup_locality(said)
        log = parse_event_log(telling.log())
        if said == locality:
            assert replay_event_log(log, quote, required_pcrs=[0]).startup_locality == locality
        else:
            with pytest.raises(ForgedError, match="PCR 0"):
                replay_event_log(log, quote, required_pcrs=[0])


def test_contradicting_or_malformed_localities_are_refused() -> None:
    twice = Firmware.healthy()
    twice.startup_locality(3)
    twice.startup_locality(0)
    odd = Firmware.healthy()
    odd.startup_locality(2)
    for firmware in (twice, odd):
        with pytest.raises(MalformedError, match="Startup Locality"):
            replay(firmware)


def test_a_late_locality_does_not_count() -> None:
    """After the first measurement of PCR 0 the event comes too late to be true."""
    firmware = Firmware.healthy()
    firmware.entries.append(Entry(0, EventType.NO_ACTION, b"StartupLocality\0\x03", b""))
    assert replay(firmware).startup_locality == 0


def test_dynamic_pcrs_start_as_ones() -> None:
    firmware = Firmware.healthy()
    quote = ATTESTER.quote(firmware.pcrs())
    log = parse_event_log(firmware.log())
    assert replay_event_log(log, quote, required_pcrs=[17, 22, 16, 23]).events == ()


def test_a_log_of_another_machine_is_refused() -> None:
    with pytest.raises(ForgedError, match="does not replay"):
        verify_boot(ATTESTER.quote(Firmware().pcrs()), HEALTHY.log())


@given(st.integers(0, len(HEALTHY.log()) - 1), st.binary(min_size=1, max_size=4))
def test_spliced_logs_never_prove_other_digests(position: int, splice: bytes) -> None:
    log = HEALTHY.log()
    bent = log[:position] + splice + log[position + len(splice) :]
    with contextlib.suppress(EvidenceError):
        parsed = replay_event_log(parse_event_log(bent), QUOTE, required_pcrs=BOOT_PCRS)
        assert [event.digest for event in parsed.events] == [event.digest for event in replay(HEALTHY).events]
        verify_boot(QUOTE, bent)


@pytest.mark.parametrize("said", [None, 0, 3, 4])
def test_a_hardware_crtm_starts_pcr_0_from_four(said: int | None) -> None:
    """It measures before TPM2_Startup, so what the log says of the locality does not matter."""
    firmware = Firmware.healthy()
    firmware.locality = 4
    firmware.entries.insert(0, Entry(0, EventType.EFI_HCRTM_EVENT, b"HCRTM", b"the code of the CRTM"))
    quote = Attester().quote(firmware.pcrs())
    if said is not None:
        firmware.startup_locality(said)
    assert replay_event_log(parse_event_log(firmware.log()), quote, required_pcrs=[0]).startup_locality == 4


def test_a_hardware_crtm_that_did_not_happen_is_refused() -> None:
    firmware = Firmware.healthy()
    quote = Attester().quote(firmware.pcrs())
    firmware.edit(0, type=EventType.EFI_HCRTM_EVENT)
    with pytest.raises(ForgedError, match="PCR 0"):
        replay_event_log(parse_event_log(firmware.log()), quote, required_pcrs=[0])
