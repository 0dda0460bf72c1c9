"""What a monitor can ask its launcher, over a real socket, with a real TPM behind it."""

from __future__ import annotations

import errno
import os
import secrets
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from affiant.launcher.channel import LauncherChannel, Tpm
from affiant.launcher.fact_ring import FactRing
from affiant.launcher.identity import IdentityKey
from affiant.launcher.qemu.connection import QemuMonitor
from affiant.launcher.qemu.page_copies import PageCopies
from affiant.launcher.record import launch_pcr17
from affiant.launcher.vtpm.attestation import TpmAttester
from affiant.launcher.vtpm.authority import read_endorsement_chain
from affiant.model.errors import UnavailableError
from affiant.model.launch_record import LaunchRecord
from affiant.monitor.launcher_client import LauncherClient
from affiant.tpm.attestation_key import verify_attestation_key
from affiant.tpm.drtm import expected_pcr17
from affiant.tpm.quote import verify_quote
from affiant.wire.cbor import Item
from affiant.wire.enclave_report import verify_enclave_report
from affiant.wire.frames import FrameDecoder, encode_frame
from affiant.wire.launch_record import encode_launch_record
from affiant.wire.launcher_requests import (
    Activate,
    Copied,
    Copy,
    Cpus,
    DeviceState,
    EnclaveReportFor,
    Endorsement,
    EndorsementOfTpm,
    Failure,
    FailureKind,
    ForgetCopy,
    Generation,
    Keep,
    MachineState,
    Pause,
    Quote,
    Record,
    Remember,
    Remembered,
    Request,
    Resume,
)
from affiant.wire.secure_world import read_answer, write_request
from tests.unit.launcher.conftest import Bench
from tests.unit.launcher.fake_qemu import STARTUP_CLEAR

ResultT = TypeVar("ResultT")


class FakeQemuMonitor(QemuMonitor):
    """Answers for QEMU, and notes what it was told."""

    def __init__(self) -> None:
        self.told: list[str] = []
        self.stood_still = True
        self.there = True
        self.while_saving: Callable[[], None] = lambda: None

    def registers(self) -> tuple[str, ...]:
        if not self.there:
            raise UnavailableError("QEMU does not answer")
        return ("CPU#0\nRAX=0\n", "CPU#1\nRAX=1\n")

    def machine_state(self) -> MachineState:
        self.told.append("device state")
        self.while_saving()
        return MachineState(self.registers(), b"QEVM")

    def copy(self, copies: PageCopies, runs: tuple[tuple[int, int], ...], *, device_state: bool) -> Copied:
        self.told.append(f"copy {runs}")
        if device_state:
            self.while_saving()
        return Copied(self.registers(), b"QEVM" * device_state, (9,))

    def pause(self) -> None:
        self.told.append("pause")

    def resume(self) -> bool:
        self.told.append("resume")
        return self.stood_still


@dataclass
class Monitor:
    """The monitor's end of the channel."""

    channel: socket.socket
    record: LaunchRecord
    qemu: FakeQemuMonitor
    frames: FrameDecoder

    def ask(self, request: Request[ResultT]) -> ResultT | Failure:
        return read_answer(request, self.ask_raw(encode_frame(write_request(request))))

    def ask_raw(self, data: bytes) -> Item:
        self.channel.sendall(data)
        while True:
            part = self.channel.recv(65536)
            if not part:
                raise ConnectionError("the launcher closed the channel")
            if items := self.frames.feed(part):
                assert len(items) == 1
                return items[0]


def new_record(identity: IdentityKey) -> LaunchRecord:
    return LaunchRecord(
        monitor_image=b"i" * 32,
        monitor_version="1",
        security_version=1,
        debug=False,
        service_root=b"r" * 32,
        identity_key=identity.public,
    )


class FakeCopies(PageCopies):
    """Counts how often copies were forgotten."""

    def __init__(self) -> None:
        self.forgotten = 0

    def forget(self) -> None:
        self.forgotten += 1


def start(
    record: LaunchRecord,
    identity: IdentityKey,
    tpm: Tpm | None,
    facts: FactRing | None = None,
    copies: PageCopies | None = None,
) -> Iterator[Monitor]:
    ours, theirs = socket.socketpair()
    ours.settimeout(20)
    qemu = FakeQemuMonitor()
    channel = LauncherChannel(
        record=record, identity=identity, qemu=qemu, tpm=tpm, facts=facts, copies=copies
    )
    thread = threading.Thread(target=channel.serve, args=(theirs,), daemon=True)
    thread.start()
    yield Monitor(ours, record, qemu, FrameDecoder())
    ours.close()
    thread.join(60)
    assert not thread.is_alive()


@pytest.fixture
def monitor(bench: Bench) -> Iterator[Monitor]:
    """A monitor of a guest whose firmware has started the TPM."""
    identity = IdentityKey()
    record = new_record(identity)
    attester = TpmAttester(ek_certificates=read_endorsement_chain(bench.folder / "state"))
    attester.provision(bench.tpm)
    bench.gateway._launch = launch_pcr17(encode_launch_record(record))
    bench.qemu.boot()
    yield from start(record, identity, Tpm(bench.gateway, attester), copies=FakeCopies())


@pytest.fixture
def monitor_without_tpm() -> Iterator[Monitor]:
    identity = IdentityKey()
    yield from start(new_record(identity), identity, None)


@pytest.fixture
def monitor_that_keeps(tmp_path: Path) -> Iterator[Monitor]:
    identity = IdentityKey()
    ring = FactRing(tmp_path / "facts", most=2, every_seconds=600)
    yield from start(new_record(identity), identity, None, ring)


def session_key() -> bytes:
    key = ec.generate_private_key(ec.SECP256R1()).public_key()
    return key.public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)


def test_record_generation_and_pcr17_belong_together(monitor: Monitor) -> None:
    record = monitor.ask(Record())
    assert record == encode_launch_record(monitor.record)
    assert monitor.ask(Generation()) == 1
    endorsement = monitor.ask(Endorsement())
    assert isinstance(endorsement, EndorsementOfTpm)
    extra_data = secrets.token_bytes(32)
    quote = monitor.ask(Quote(extra_data, (0, 7, 17)))
    assert not isinstance(quote, Failure)
    assert quote.ak_public == endorsement.ak_public
    verified = verify_quote(
        quote.attest,
        quote.signature,
        attestation_key=verify_attestation_key(quote.ak_public),
        expected_extra_data=extra_data,
        pcrs=dict(quote.pcrs),
    )
    assert verified.pcrs[17] == expected_pcr17(encode_launch_record(monitor.record))


def test_enclave_report_is_the_launchers_own(monitor_without_tpm: Monitor) -> None:
    monitor = monitor_without_tpm
    key = session_key()
    signed = monitor.ask(EnclaveReportFor(b"c" * 32, key, b"s" * 32, 3))
    assert isinstance(signed, bytes)
    report = verify_enclave_report(
        signed, identity_key=monitor.record.identity_key, expected_challenge=b"c" * 32
    )
    assert (report.session_key, report.monitor_image) == (key, monitor.record.monitor_image)


def test_guest_without_tpm_is_told_apart_from_one_that_fails(monitor_without_tpm: Monitor) -> None:
    assert monitor_without_tpm.ask(Endorsement()) is None
    assert monitor_without_tpm.ask(Generation()) == 0
    for request in (Quote(bytes(32), (17,)), Activate(b"\x00\x00", b"\x00\x00")):
        failure = monitor_without_tpm.ask(request)  # type: ignore[arg-type]
        assert failure == Failure(FailureKind.UNAVAILABLE, "the guest has no TPM")


def test_credential_that_is_none_is_refused_and_the_channel_lives(monitor: Monitor) -> None:
    failure = monitor.ask(Activate(b"\x00\x04xx", b"\x00\x00"))
    assert isinstance(failure, Failure)
    assert failure.kind is FailureKind.REFUSED
    failure = monitor.ask(Activate(b"\x00\x02xx", b"\x00\x02xx"))
    assert isinstance(failure, Failure)
    assert failure.kind is FailureKind.UNAVAILABLE
    assert monitor.ask(Generation()) == 1


def test_registers_pause_and_resume(monitor_without_tpm: Monitor) -> None:
    monitor = monitor_without_tpm
    assert monitor.ask(Pause()) is None
    assert monitor.ask(Cpus()) == ("CPU#0\nRAX=0\n", "CPU#1\nRAX=1\n")
    assert monitor.ask(Resume()) is None
    assert monitor.qemu.told == ["pause", "resume"]
    monitor.qemu.stood_still = False
    assert monitor.ask(Pause()) is None
    assert monitor.ask(Resume()) == Failure(
        FailureKind.UNAVAILABLE, "the guest was paused for 250 ms and has run on since"
    )
    monitor.qemu.there = False
    failure = monitor.ask(Cpus())
    assert isinstance(failure, Failure)
    assert failure.kind is FailureKind.UNAVAILABLE


def test_device_state_is_saved_while_the_gateway_withholds_the_tpms(monitor: Monitor, bench: Bench) -> None:
    """QEMU's question for a state blob is answered with an empty one, and refused once it is over."""
    results: list[int] = []

    def ask_for_blob() -> None:
        results.append(bench.qemu.result(0x0C, struct.pack(">III", 1, 1, 0), answer=16))

    monitor.qemu.while_saving = ask_for_blob
    assert monitor.ask(DeviceState()) == MachineState(("CPU#0\nRAX=0\n", "CPU#1\nRAX=1\n"), b"QEVM")
    ask_for_blob()
    assert results == [0, 9]


def test_pages_are_copied_and_the_tpms_state_withheld_only_where_state_is_saved(
    monitor: Monitor, bench: Bench
) -> None:
    seen: list[bool] = []
    monitor.qemu.while_saving = lambda: seen.append(bench.gateway._withholding)
    copied = monitor.ask(Copy(((3, 2),), False))
    assert copied == Copied(("CPU#0\nRAX=0\n", "CPU#1\nRAX=1\n"), b"", (9,))
    assert seen == []
    copied = monitor.ask(Copy(((3, 2),), True))
    assert isinstance(copied, Copied)
    assert (copied.stream, seen) == (b"QEVM", [True])
    assert monitor.qemu.told == ["copy ((3, 2),)"] * 2
    assert monitor.ask(ForgetCopy()) is None


def test_what_the_host_cannot_do_is_told_and_the_channel_lives(
    monitor: Monitor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A monitor that ends costs the guest its session, and those who ask their answer."""

    def failing(copies: FakeCopies) -> None:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))

    monkeypatch.setattr(FakeCopies, "forget", failing)
    failure = monitor.ask(ForgetCopy())  # type: ignore[func-returns-value]
    assert failure == Failure(FailureKind.UNAVAILABLE, "[Errno 22] Invalid argument")
    monkeypatch.undo()
    assert monitor.ask(ForgetCopy()) is None


def test_where_no_pages_are_copied_it_is_refused(monitor_without_tpm: Monitor) -> None:
    for request in (Copy(((3, 2),), False), ForgetCopy()):
        failure = monitor_without_tpm.ask(request)  # type: ignore[arg-type]
        assert failure == Failure(FailureKind.REFUSED, "no pages of this guest are copied")


def test_device_state_of_a_guest_without_tpm(monitor_without_tpm: Monitor) -> None:
    state = monitor_without_tpm.ask(DeviceState())
    assert isinstance(state, MachineState)
    assert monitor_without_tpm.qemu.told == ["device state"]


@pytest.mark.parametrize(
    "item",
    [
        ["sign", {1: b"anything"}],
        ["enclave-report", {1: bytes(32), 2: bytes(65), 3: bytes(32), 4: 0}],  # no point on P-256
        ["enclave-report", {1: bytes(31), 2: bytes(65), 3: bytes(32), 4: 0}],
        ["quote", {1: bytes(33), 2: [17]}],
        ["quote", {1: bytes(32), 2: [24]}],
        ["quote", {1: bytes(32), 2: [17, 17]}],
        ["record", {1: 1}],
        ["record"],
        "record",
        7,
    ],
)
def test_what_is_no_request_ends_the_channel(monitor_without_tpm: Monitor, item: Item) -> None:
    with pytest.raises(ConnectionError):
        monitor_without_tpm.ask_raw(encode_frame(item))
    assert monitor_without_tpm.qemu.told == []


def test_endless_frame_ends_the_channel(monitor_without_tpm: Monitor) -> None:
    with pytest.raises(ConnectionError):
        monitor_without_tpm.ask_raw(b"\xff\xff\xff\xff")


def test_records_are_kept_as_they_come_and_no_more_than_asked_for(
    monitor_that_keeps: Monitor, tmp_path: Path
) -> None:
    assert monitor_that_keeps.ask(Keep(b"one")) is None
    assert monitor_that_keeps.ask(Keep(b"two" * 100_000)) is None
    failure = monitor_that_keeps.ask(Keep(b"three"))
    assert isinstance(failure, Failure)
    assert failure.kind is FailureKind.UNAVAILABLE
    assert sorted(path.read_bytes()[:3] for path in (tmp_path / "facts").iterdir()) == [b"one", b"two"]
    with pytest.raises(ConnectionError):
        monitor_that_keeps.ask(Keep(b"x" * ((1 << 20) + 1)))


def test_where_nothing_is_kept_a_record_is_refused(monitor_without_tpm: Monitor) -> None:
    failure = monitor_without_tpm.ask(Keep(b"record"))
    assert isinstance(failure, Failure)
    assert failure.kind is FailureKind.REFUSED


def test_the_next_monitor_is_told_what_the_one_before_had_remembered() -> None:
    """Without a TPM nobody tells one boot from another: nothing is forgotten wrongly."""
    identity = IdentityKey()
    channel = LauncherChannel(
        record=new_record(identity), identity=identity, qemu=FakeQemuMonitor(), tpm=None
    )
    assert answers(channel, Remembered()) == [b""]
    assert answers(channel, Remember(0, b"one"), Remember(0, b"two")) == [None, None]
    assert answers(channel, Remembered()) == [b"two"]


def test_what_is_remembered_is_forgotten_with_its_boot(monitor: Monitor, bench: Bench) -> None:
    assert monitor.ask(Remember(1, b"first boot")) is None
    assert monitor.ask(Remembered()) == b"first boot"
    start_anew(bench)
    assert monitor.ask(Generation()) == 2
    assert monitor.ask(Remembered()) == b""


def test_what_is_of_another_boot_replaces_nothing(monitor: Monitor, bench: Bench) -> None:
    """A monitor may have looked before the guest was started anew, and tell of it afterwards."""
    start_anew(bench)
    assert monitor.ask(Remember(2, b"second boot")) is None
    for generation in (0, 1, 3):
        assert monitor.ask(Remember(generation, b"another")) is None
    assert monitor.ask(Remembered()) == b"second boot"


def test_more_than_is_remembered_ends_the_channel(monitor_without_tpm: Monitor) -> None:
    with pytest.raises(ConnectionError):
        monitor_without_tpm.ask(Remember(0, bytes((1 << 20) + 1)))


def start_anew(bench: Bench) -> None:
    bench.qemu.reset()
    bench.qemu.guest_sends(STARTUP_CLEAR)


def answers(channel: LauncherChannel, *requests: Request[object]) -> list[object]:
    """Ask as a monitor of its own, over a channel that ends with it."""
    ours, theirs = socket.socketpair()
    ours.settimeout(20)
    thread = threading.Thread(target=channel.serve, args=(theirs,), daemon=True)
    thread.start()
    client = LauncherClient(ours)
    with ours:
        told = [client.ask(request) for request in requests]
    thread.join(60)
    assert not thread.is_alive()
    return told
