"""Replaying logs onto quotes: each way in which a log may lie about what was measured."""

from __future__ import annotations

import pytest

from affiant.model.errors import ForgedError
from affiant.tpm.event_log import parse_event_log
from affiant.tpm.event_types import EventType
from affiant.tpm.replay import replay_event_log
from tests.unit.tpm.attester import Attester
from tests.unit.tpm.firmware import Entry, Firmware

ATTESTER = Attester()
HEALTHY = Firmware.healthy()
QUOTE = ATTESTER.quote(HEALTHY.pcrs())


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


def test_dynamic_pcrs_start_as_ones() -> None:
    firmware = Firmware.healthy()
    quote = ATTESTER.quote(firmware.pcrs())
    log = parse_event_log(firmware.log())
    assert replay_event_log(log, quote, required_pcrs=[17, 22, 16, 23]).events == ()


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
