"""systemd's log of user space: records written as systemd writes them, and every way to bend them."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from affiant.model.errors import EvidenceError, ForgedError, MalformedError
from affiant.tpm.binding import Binding
from affiant.tpm.cel import USERSPACE_EVENT, append_userspace_log, parse_userspace_log
from affiant.tpm.event_log import parse_event_log
from affiant.tpm.measurements import bind_measurements
from affiant.tpm.replay import replay_event_log
from affiant.tpm.uki import read_uki
from tests.unit.tpm.attester import Attester
from tests.unit.tpm.firmware import SHA1, SHA256
from tests.unit.tpm.test_uki import stub

BOOT = "5f2a7f2e9c7c4f0e8a4b7d1c2e3f4a5b"


def record(
    number: int, text: str, *, kind: str = "phase", measured: bytes | None = None, **more: Any
) -> bytes:
    """One record in the form of systemd 256: separator, JSON, line feed."""
    octets = text.encode() if measured is None else measured
    value = {
        "pcr": number,
        "digests": [{"hashAlg": bank.title, "digest": bank.digest(octets).hex()} for bank in (SHA1, SHA256)],
        "content_type": "systemd",
        "content": {"string": text, "bootId": BOOT, "timestamp": 1234567, "eventType": kind},
    }
    return b"\x1e" + json.dumps(value | more).encode() + b"\n"


PHASES = ("enter-initrd", "leave-initrd", "sysinit", "ready")
MACHINE = "machine-id:0123456789abcdef0123456789abcdef"
RECORDS = [record(11, phase) for phase in PHASES]
RECORDS.append(record(15, MACHINE, kind="machine-id"))
RECORDS.append(record(15, "cryptsetup:root:uuid", kind="volume-key", measured=b"derived from the key"))
LOG = b"".join(RECORDS)


def pcrs() -> dict[int, bytes]:
    """What the TPM holds after the stub and systemd."""
    values = stub().pcrs()
    for pcr, octets in [
        *((11, phase.encode()) for phase in PHASES),
        (15, MACHINE.encode()),
        (15, b"derived from the key"),
    ]:
        values[pcr] = SHA256.digest(values[pcr] + SHA256.digest(octets))
    return values


def test_records_are_read_and_counted() -> None:
    log = parse_userspace_log(LOG)
    assert [entry.index for entry in log.records] == list(range(6))
    assert [entry.text for entry in log.records][:4] == list(PHASES)
    assert {entry.boot for entry in log.records} == {BOOT}
    assert log.records[4].kind == "machine-id"
    assert log.records[4].digests == {
        SHA1: SHA1.digest(MACHINE.encode()),
        SHA256: SHA256.digest(MACHINE.encode()),
    }
    assert not log.truncated


def test_firmware_and_user_space_replay_together() -> None:
    firmware = parse_event_log(stub().log())
    quote = Attester().quote(pcrs())
    with pytest.raises(ForgedError, match="PCR 11, 15"):
        replay_event_log(firmware, quote, required_pcrs=(11, 12, 15))
    joined = append_userspace_log(firmware, parse_userspace_log(LOG))
    measurements = bind_measurements(replay_event_log(joined, quote, required_pcrs=(11, 12, 15)))
    assert read_uki(measurements).after_sections == PHASES
    machine, volume = measurements.of(15)
    assert machine.event.untrusted_type == USERSPACE_EVENT
    assert machine.covered == MACHINE.encode()
    # The key itself is not in the log: what it says of it stays its word.
    assert volume.binding is Binding.NOTHING


@pytest.mark.parametrize(
    "bent",
    [
        b"".join(RECORDS[1:]),
        b"".join([*RECORDS, record(11, "ready")]),
        b"".join([RECORDS[1], RECORDS[0], *RECORDS[2:]]),
        b"".join([record(12, PHASES[0]), *RECORDS[1:]]),
        b"".join([record(11, "enter-initrd", measured=b"other"), *RECORDS[1:]]),
    ],
    ids=["removed", "appended", "reordered", "retagged", "digest changed"],
)
def test_a_bent_log_does_not_replay(bent: bytes) -> None:
    joined = append_userspace_log(parse_event_log(stub().log()), parse_userspace_log(bent))
    with pytest.raises(ForgedError, match="does not replay"):
        replay_event_log(joined, Attester().quote(pcrs()), required_pcrs=(11, 12, 15))


def test_a_changed_text_is_not_bound() -> None:
    bent = LOG.replace(b"enter-initrd", b"enter-ihitrd")
    joined = append_userspace_log(parse_event_log(stub().log()), parse_userspace_log(bent))
    verified = replay_event_log(joined, Attester().quote(pcrs()), required_pcrs=(11,))
    assert "enter-ihitrd" not in read_uki(bind_measurements(verified)).after_sections


def test_a_record_that_is_still_being_written_is_left_out() -> None:
    log = parse_userspace_log(LOG + record(15, "more")[:-1])
    assert log.truncated
    assert len(log.records) == 6


def test_records_of_nv_indexes_are_told_apart() -> None:
    value = json.loads(RECORDS[0][1:])
    del value["pcr"]
    nv = b"\x1e" + json.dumps(value | {"nv_index": 0x1D10200}).encode() + b"\n"
    log = parse_userspace_log(nv + RECORDS[0])
    assert [entry.pcr for entry in log.records] == [None, 11]
    joined = append_userspace_log(parse_event_log(stub().log()), log)
    assert [event.pcr for event in joined.events if event.type == USERSPACE_EVENT] == [11]


def test_record_numbers_are_held_to_the_count() -> None:
    assert parse_userspace_log(record(11, "a", recnum=0) + record(11, "b", recnum=1)).records[1].index == 1
    with pytest.raises(MalformedError, match="numbered 2"):
        parse_userspace_log(record(11, "a", recnum=0) + record(11, "b", recnum=2))


@pytest.mark.parametrize(
    ("log", "reason"),
    [
        (b"{}\n", "record separator"),
        (b"\x1e[1]\n", "not an object"),
        (b"\x1e{\n", "not JSON"),
        (b"\x1e\xff\n", "not JSON"),
        (b"\x1e" + b"[" * 60000 + b"\n", "nested"),
        (b'\x1e{"pcr":1,"pcr":2}\n', "twice"),
        (b'\x1e{"pcr":NaN}\n', "not JSON"),
        (record(24, "a"), "PCR 24"),
        (record(11, "a", pcr=True), "PCR True"),
        (record(11, "a", pcr="11"), "PCR '11'"),
        (record(11, "a", digests=[]), "no list of digests"),
        (record(11, "a", digests=[{"hashAlg": "md5", "digest": ""}]), "'md5'"),
        (record(11, "a", digests=[{"hashAlg": "sha256", "digest": "ab"}]), "malformed sha256"),
        (record(11, "a", digests=[{"hashAlg": "sha1", "digest": "a " * 20}]), "malformed sha1"),
        (record(11, "a", digests=[{"hashAlg": "sha1", "digest": "00" * 20}] * 2), "twice"),
        (record(11, "a", content={"string": 5}), "text belongs"),
        (record(11, "a", content={"string": "\ud800"}), "text belongs"),
        (record(11, "a" * 70000), "octets"),
        (b"\x1e" + bytes(1 << 22), "longer"),
        (b"\x1e\n" * 20000, "more than"),
    ],
)
def test_malformed_logs_are_refused(log: bytes, reason: str) -> None:
    with pytest.raises(MalformedError, match=reason):
        parse_userspace_log(log)


@given(st.binary(max_size=200), st.integers(0, len(LOG)))
def test_no_octets_do_anything_but_be_refused(octets: bytes, place: int) -> None:
    for log in (octets, b"\x1e" + octets + b"\n", LOG[:place] + octets + LOG[place + len(octets) :]):
        with contextlib.suppress(EvidenceError):
            append_userspace_log(parse_event_log(stub().log()), parse_userspace_log(log))


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.sampled_from(["pcr", "digests", "content", "recnum", "nv_index"]), _JSON))
def test_no_json_does_anything_but_be_refused(value: object) -> None:
    with contextlib.suppress(EvidenceError):
        parse_userspace_log(b"\x1e" + json.dumps(value).encode() + b"\n")
