"""Events that are in the final events table and not in the log that was fetched before."""

from __future__ import annotations

import contextlib
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from affiant.model.errors import EvidenceError, ForgedError, MalformedError
from affiant.tpm.event_log import parse_event_log
from affiant.tpm.final_events import append_final_events
from affiant.tpm.replay import replay_event_log
from tests.unit.tpm.attester import Attester
from tests.unit.tpm.firmware import Firmware

FIRMWARE = Firmware.healthy()
QUOTE = Attester().quote(FIRMWARE.pcrs())
PCRS = range(15)


def table(entries: list[bytes], *, version: int = 1, count: int | None = None, rest: bytes = b"") -> bytes:
    return struct.pack("<QQ", version, len(entries) if count is None else count) + b"".join(entries) + rest


def split(at: int) -> tuple[bytes, list[bytes]]:
    """The log as it was fetched before the last `at` events, and those events."""
    encoded = [FIRMWARE.encode(entry) for entry in FIRMWARE.entries]
    return FIRMWARE.head() + b"".join(encoded[:-at]), encoded[-at:]


@pytest.mark.parametrize("late", [1, 3])
def test_the_events_of_the_table_complete_the_log(late: int) -> None:
    fetched, final = split(late)
    with pytest.raises(ForgedError, match="does not replay"):
        replay_event_log(parse_event_log(fetched), QUOTE, required_pcrs=PCRS)
    log = append_final_events(parse_event_log(fetched), table(final, rest=b"\xee" * 40))
    assert log == parse_event_log(FIRMWARE.log())
    replay_event_log(log, QUOTE, required_pcrs=PCRS)


def test_events_in_both_are_taken_once() -> None:
    fetched, _ = split(1)
    _, final = split(3)
    log = append_final_events(parse_event_log(fetched), table(final))
    assert log == parse_event_log(FIRMWARE.log())


def test_an_empty_table_changes_nothing() -> None:
    log = parse_event_log(FIRMWARE.log())
    assert append_final_events(log, table([])) == log


def test_an_invented_final_event_is_refused_by_the_replay() -> None:
    log = append_final_events(parse_event_log(FIRMWARE.log()), table(split(1)[1] + split(2)[1]))
    with pytest.raises(ForgedError, match="does not replay"):
        replay_event_log(log, QUOTE, required_pcrs=PCRS)


@pytest.mark.parametrize(
    ("octets", "reason"),
    [
        (b"", "ends early"),
        (table([], version=2), "version 2"),
        (table([], count=1 << 60), "too many"),
        (table([], count=3), "ends inside event 0"),
        (bytes(1 << 21), "octets"),
    ],
)
def test_malformed_tables_are_refused(octets: bytes, reason: str) -> None:
    with pytest.raises(MalformedError, match=reason):
        append_final_events(parse_event_log(FIRMWARE.log()), octets)


def test_a_sha1_log_has_no_final_events() -> None:
    with pytest.raises(MalformedError, match="SHA-1"):
        append_final_events(parse_event_log(FIRMWARE.legacy_log()), table([]))


@given(st.binary(max_size=300))
def test_no_octets_do_anything_but_be_refused(octets: bytes) -> None:
    with contextlib.suppress(EvidenceError):
        append_final_events(parse_event_log(FIRMWARE.log()), table([], count=2, rest=octets))
