"""From a firmware in memory to verified measurements, without anything in between being skipped."""

from __future__ import annotations

from collections.abc import Collection

from affiant.tpm.event_log import parse_event_log
from affiant.tpm.measurements import Measurements, bind_measurements
from affiant.tpm.replay import replay_event_log
from tests.unit.tpm.attester import Attester
from tests.unit.tpm.firmware import Firmware


def measurements(firmware: Firmware, pcrs: Collection[int] = range(16)) -> Measurements:
    """What a quote of this firmware's PCRs proves of its log."""
    quote = Attester().quote(firmware.pcrs())
    return bind_measurements(replay_event_log(parse_event_log(firmware.log()), quote, required_pcrs=pcrs))
