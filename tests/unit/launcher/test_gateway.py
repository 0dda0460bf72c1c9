"""The gateway over a real swtpm: what a machine and its guest can do to their TPM, and what not."""

from __future__ import annotations

import hashlib
import os
import shutil
import socket
import struct
import threading
import time
from pathlib import Path

import pytest

from affiant.launcher.vtpm.control_protocol import OFFERED_CAPABILITIES, Capability
from affiant.launcher.vtpm.swtpm import start_swtpm
from affiant.model.errors import UnavailableError
from tests.unit.launcher.conftest import RECORD, Bench, launched_pcr17
from tests.unit.launcher.fake_qemu import GET_RANDOM, STARTUP_CLEAR, FakeQemu, code_of, read_pcr

BAD_LOCALITY, BAD_ORDINAL, FAIL, BAD_PARAMETER = 0x3D, 0x0A, 0x09, 0x03
RC_COMMAND_SIZE, RC_BAD_TAG, RC_COMMAND_CODE, RC_INITIALIZE, RC_LOCALITY = 0x142, 0x1E, 0x143, 0x100, 0x907


def extend(pcr: int) -> bytes:
    auth = struct.pack(">IHBH", 0x40000009, 0, 0, 0)
    body = (
        struct.pack(">I", pcr) + struct.pack(">I", len(auth)) + auth + struct.pack(">IH", 1, 0xB) + bytes(32)
    )
    return struct.pack(">HII", 0x8002, 10 + len(body), 0x182) + body


def reset_pcr(pcr: int) -> bytes:
    auth = struct.pack(">IHBH", 0x40000009, 0, 0, 0)
    body = struct.pack(">I", pcr) + struct.pack(">I", len(auth)) + auth
    return struct.pack(">HII", 0x8002, 10 + len(body), 0x13D) + body


def test_startup_launches_pcr17_before_the_guest_sees_the_response(bench: Bench) -> None:
    bench.qemu.boot()
    assert bench.qemu.guest_sends(read_pcr(17))[-32:] == launched_pcr17(RECORD)
    assert bench.gateway.generation == 1
    assert bench.gateway.launched
    assert bench.pcr17() == launched_pcr17(RECORD)


def test_guest_reset_launches_anew(bench: Bench) -> None:
    """After STOP and INIT there is no launch until the firmware has started the TPM again."""
    bench.qemu.boot()
    bench.qemu.reset()
    assert not bench.gateway.launched
    with pytest.raises(UnavailableError, match="not started"), bench.gateway.secure_world():
        pass
    assert code_of(bench.qemu.guest_sends(STARTUP_CLEAR)) == 0
    assert bench.gateway.generation == 2
    assert bench.pcr17() == launched_pcr17(RECORD)


def test_second_startup_is_no_second_launch(bench: Bench) -> None:
    bench.qemu.boot()
    assert code_of(bench.qemu.guest_sends(STARTUP_CLEAR)) == RC_INITIALIZE
    assert bench.gateway.generation == 1


def test_failed_startup_launches_nothing(bench: Bench) -> None:
    """TPM2_Startup(STATE) without saved state fails; PCR 17 is launched with the one that succeeds."""
    assert bench.qemu.hand_over_channel() == 0
    bench.qemu.reset()
    assert code_of(bench.qemu.guest_sends(struct.pack(">HIIH", 0x8001, 12, 0x144, 1))) != 0
    assert bench.gateway.generation == 0
    assert code_of(bench.qemu.guest_sends(STARTUP_CLEAR)) == 0
    assert bench.gateway.generation == 1


def test_guest_can_neither_extend_nor_reset_pcr17(bench: Bench) -> None:
    bench.qemu.boot()
    assert code_of(bench.qemu.guest_sends(extend(17))) == RC_LOCALITY
    assert code_of(bench.qemu.guest_sends(reset_pcr(17))) == RC_LOCALITY
    assert code_of(bench.qemu.guest_sends(extend(16))) == 0  # the same bytes do work where they may
    assert bench.pcr17() == launched_pcr17(RECORD)


HANDED_OVER = b"Exit Boot Services Returned with Success"


def extend_with(pcr: int, content: bytes) -> bytes:
    """TPM2_PCR_Extend of the SHA-256 bank, as firmware sends it."""
    command = extend(pcr)
    return command[:-32] + hashlib.sha256(content).digest()


def pcr_event(pcr: int, content: bytes) -> bytes:
    """TPM2_PCR_Event: the TPM hashes."""
    auth = struct.pack(">IHBH", 0x40000009, 0, 0, 0)
    body = struct.pack(">II", pcr, len(auth)) + auth + struct.pack(">H", len(content)) + content
    return struct.pack(">HII", 0x8002, 10 + len(body), 0x13C) + body


@pytest.mark.parametrize("pcr", [0, 4, 7, 8, 9, 14])
def test_a_running_guest_cannot_add_to_the_measurements_of_its_boot(bench: Bench, pcr: int) -> None:
    """Else it could measure a GRUB and a kernel that never ran, and show a log of them."""
    bench.qemu.boot()
    assert code_of(bench.qemu.guest_sends(extend(pcr))) == 0, "the firmware may"
    assert code_of(bench.qemu.guest_sends(extend_with(5, HANDED_OVER))) == 0
    before = bench.qemu.guest_sends(read_pcr(pcr))
    assert code_of(bench.qemu.guest_sends(extend(pcr))) == RC_LOCALITY
    assert code_of(bench.qemu.guest_sends(pcr_event(pcr, b"kernel"))) == RC_LOCALITY
    assert bench.qemu.guest_sends(read_pcr(pcr))[-32:] == before[-32:]
    assert bench.gateway.refused == {f"extending PCR {pcr} after the boot": 2}


OS_SEPARATOR = b"os-separator"


def extend_banks(pcr: int, *digests: tuple[int, bytes]) -> bytes:
    """TPM2_PCR_Extend of several banks, as systemd sends it."""
    auth = struct.pack(">IHBH", 0x40000009, 0, 0, 0)
    body = struct.pack(">II", pcr, len(auth)) + auth + struct.pack(">I", len(digests))
    body += b"".join(struct.pack(">H", bank) + digest for bank, digest in digests)
    return struct.pack(">HII", 0x8002, 10 + len(body), 0x182) + body


@pytest.mark.parametrize("pcr", [0, 1, 2, 3, 4, 5, 6, 7, 9, 14])
def test_systemd_s_separator_is_let_through(bench: Bench, pcr: int) -> None:
    """systemd 261 restarts a machine that cannot measure it; it says nothing of what booted."""
    bench.qemu.boot()
    bench.qemu.guest_sends(extend_with(5, HANDED_OVER))
    before = bench.qemu.guest_sends(read_pcr(pcr))[-32:]
    digest = hashlib.sha256(OS_SEPARATOR).digest()
    both = ((0x4, hashlib.sha1(OS_SEPARATOR).digest()), (0xB, digest))
    assert code_of(bench.qemu.guest_sends(extend_banks(pcr, *both))) == 0
    assert bench.qemu.guest_sends(read_pcr(pcr))[-32:] == hashlib.sha256(before + digest).digest()
    assert not bench.gateway.refused
    assert code_of(bench.qemu.guest_sends(extend(pcr))) == RC_LOCALITY, "and nothing else is"


def test_systemd_s_second_separator_of_pcr_9_is_let_through(bench: Bench) -> None:
    bench.qemu.boot()
    bench.qemu.guest_sends(extend_with(5, HANDED_OVER))
    assert code_of(bench.qemu.guest_sends(extend_with(9, OS_SEPARATOR))) == 0
    assert code_of(bench.qemu.guest_sends(extend_with(9, b"nvpcr-separator"))) == 0
    assert code_of(bench.qemu.guest_sends(extend_with(7, b"nvpcr-separator"))) == RC_LOCALITY


@pytest.mark.parametrize(
    "command",
    [
        extend_with(8, OS_SEPARATOR),
        extend_with(4, OS_SEPARATOR + b"\0"),
        extend_banks(4, (0xB, hashlib.sha256(OS_SEPARATOR).digest()), (0x4, bytes(20))),
        extend_banks(4, (0x4, hashlib.sha1(OS_SEPARATOR).digest()), (0xB, bytes(32))),
        extend_banks(4),
        pcr_event(4, OS_SEPARATOR),
        extend_with(4, OS_SEPARATOR)[:-1],
        extend_with(4, OS_SEPARATOR) + b"\0",
    ],
    ids=[
        "no PCR of it",
        "longer",
        "a bank more",
        "beside another bank",
        "empty",
        "event",
        "short",
        "trailing",
    ],
)
def test_what_only_resembles_systemd_s_separator_is_refused(bench: Bench, command: bytes) -> None:
    command = command[:2] + struct.pack(">I", len(command)) + command[6:]
    bench.qemu.boot()
    bench.qemu.guest_sends(extend_with(5, HANDED_OVER))
    assert code_of(bench.qemu.guest_sends(command)) == RC_LOCALITY


@pytest.mark.parametrize("pcr", [10, 11, 12, 13, 15, 16, 23])
def test_what_the_operating_system_measures_it_goes_on_to_measure(bench: Bench, pcr: int) -> None:
    """IMA's list, systemd's phases, Windows' own: these PCRs tell of the running system."""
    bench.qemu.boot()
    bench.qemu.guest_sends(extend_with(5, HANDED_OVER))
    assert code_of(bench.qemu.guest_sends(extend(pcr))) == 0


@pytest.mark.parametrize(
    "command",
    [
        extend_with(5, b"Exit Boot Services Invocation"),
        extend_with(5, b"Exit Boot Services Returned with Failure"),
        extend_with(4, HANDED_OVER),
        extend_with(11, HANDED_OVER),
        pcr_event(5, b"Calling EFI Application from Boot Option"),
    ],
    ids=["begins", "fails", "another PCR", "a PCR of the system", "another action"],
)
def test_the_boot_goes_on_until_boot_services_have_ended(bench: Bench, command: bytes) -> None:
    """A first try may fail (a stale map key), and is followed by another."""
    bench.qemu.boot()
    assert code_of(bench.qemu.guest_sends(command)) == 0
    assert code_of(bench.qemu.guest_sends(extend(9))) == 0


def test_a_measurement_that_the_tpm_refused_ends_no_boot(bench: Bench) -> None:
    bench.qemu.boot()
    broken = bytearray(extend_with(5, HANDED_OVER))
    broken[18:22] = struct.pack(">I", 0x40000001)  # an authorization by another handle: no session
    assert code_of(bench.qemu.guest_sends(bytes(broken))) != 0
    assert code_of(bench.qemu.guest_sends(extend(9))) == 0


def test_firmware_that_lets_the_tpm_hash_ends_the_boot_too(bench: Bench) -> None:
    bench.qemu.boot()
    assert code_of(bench.qemu.guest_sends(pcr_event(5, HANDED_OVER))) == 0
    assert code_of(bench.qemu.guest_sends(extend(9))) == RC_LOCALITY


def test_the_next_boot_is_measured_again(bench: Bench) -> None:
    bench.qemu.boot()
    bench.qemu.guest_sends(extend_with(5, HANDED_OVER))
    bench.qemu.reset()
    assert code_of(bench.qemu.guest_sends(STARTUP_CLEAR)) == 0
    assert code_of(bench.qemu.guest_sends(extend(9))) == 0


@pytest.mark.parametrize("locality", [1, 2, 3, 4, 5, 255])
def test_other_localities_are_refused_and_nothing_changes(bench: Bench, locality: int) -> None:
    bench.qemu.boot()
    assert bench.qemu.result(0x05, bytes([locality, 0, 0, 0])) == BAD_LOCALITY
    assert bench.qemu.guest is not None
    bench.qemu.guest.sendall(extend(17))  # QEMU would not; the TPM stays at locality 0 anyway
    assert code_of(bench.qemu.guest_receives()) == RC_LOCALITY
    assert bench.pcr17() == launched_pcr17(RECORD)


def test_locality_of_one_byte_is_understood_like_that_of_four(bench: Bench) -> None:
    assert bench.qemu.result(0x05, b"\x00") == 0
    assert bench.qemu.result(0x05, b"\x04") == BAD_LOCALITY


def test_locality_prefix_of_swtpm_is_refused(bench: Bench) -> None:
    """swtpm takes `00000008 LL size` before a command as an order to act at locality LL."""
    bench.qemu.boot()
    command = extend(17)
    prefixed = struct.pack(">IBI", 8, 4, len(command)) + command
    assert code_of(bench.qemu.guest_sends(prefixed)) == RC_BAD_TAG
    assert bench.pcr17() == launched_pcr17(RECORD)
    assert code_of(bench.qemu.guest_sends(GET_RANDOM)) == 0


def test_locality_prefix_is_a_real_attack_without_the_gateway(tmp_path: Path, manufactured: Path) -> None:
    """The control experiment: the same bytes, sent to swtpm itself, do extend PCR 17 at locality 4."""
    child, tpm = start_swtpm(Path(shutil.copytree(manufactured, tmp_path / "state")), log=tmp_path / "log")
    try:
        tpm.initialize()
        assert code_of(tpm.execute(STARTUP_CLEAR, timeout=10)) == 0
        tpm.hash_sequence(RECORD)
        tpm._data.sendall(struct.pack(">IBI", 8, 3, len(extend(17))) + extend(17))
        tpm._data.recv(4096)
        response = tpm.execute(read_pcr(17), timeout=10)
        assert response[-32:] != launched_pcr17(RECORD)
    finally:
        tpm.close()
        child.stop()


@pytest.mark.parametrize("code", [0x20000000, 0x20001000])
def test_vendor_commands_are_refused(bench: Bench, code: int) -> None:
    bench.qemu.boot()
    assert code_of(bench.qemu.guest_sends(struct.pack(">HIIB", 0x8001, 11, code, 4))) == RC_COMMAND_CODE


@pytest.mark.parametrize("command", [0x06, 0x08, 0x0A, 0x0F])
def test_hash_sequence_and_storing_are_refused(bench: Bench, command: int) -> None:
    bench.qemu.boot()
    assert bench.qemu.result(command) == BAD_ORDINAL
    assert bench.pcr17() == launched_pcr17(RECORD)


def test_hash_data_is_refused(bench: Bench) -> None:
    bench.qemu.boot()
    assert bench.qemu.result(0x07, struct.pack(">I", 4) + b"evil") == BAD_ORDINAL
    assert bench.pcr17() == launched_pcr17(RECORD)


def test_state_cannot_be_saved_or_restored(bench: Bench) -> None:
    """Migration is not supported, and QEMU is told so in the forms that it reads."""
    bench.qemu.boot()
    blob = bench.qemu.ask(0x0C, struct.pack(">III", 0, 1, 0), answer=16)
    assert struct.unpack(">IIII", blob) == (FAIL, 0, 0, 0)
    assert bench.qemu.result(0x0D, struct.pack(">III", 0, 1, 4) + b"blob") == BAD_ORDINAL
    assert bench.pcr17() == launched_pcr17(RECORD)


def test_state_is_answered_with_nothing_while_the_launcher_saves_devices(bench: Bench) -> None:
    """QEMU's device state is to be had, the TPM's own never: neither while the launcher asks nor after."""
    bench.qemu.boot()
    with bench.gateway.withholding_state():
        for kind in (1, 2, 3):
            blob = bench.qemu.ask(0x0C, struct.pack(">III", 1, kind, 0), answer=16)
            assert struct.unpack(">IIII", blob) == (0, 0, 0, 0)
        assert bench.qemu.result(0x0D, struct.pack(">III", 0, 1, 4) + b"blob") == BAD_ORDINAL
        assert code_of(bench.qemu.guest_sends(GET_RANDOM)) == 0
    assert bench.qemu.result(0x0C, struct.pack(">III", 1, 1, 0), answer=16) == FAIL
    assert bench.pcr17() == launched_pcr17(RECORD)


def test_devices_are_not_saved_while_the_guest_keeps_its_tpm_busy(bench: Bench) -> None:
    """QEMU would keep the guest stopped until its command has ended."""
    bench.qemu.boot()
    with (
        bench.gateway._turns.guest(),
        pytest.raises(UnavailableError, match="busy"),
        bench.gateway.withholding_state(),
    ):
        pass
    assert bench.qemu.result(0x0C, struct.pack(">III", 1, 1, 0), answer=16) == FAIL


def test_whoever_has_devices_saved_waits_for_who_began_before(bench: Bench) -> None:
    """The monitor and the machine's owner may ask at once; the end of one must not be the other's."""
    bench.qemu.boot()
    order: list[str] = []

    def second() -> None:
        with bench.gateway.withholding_state():
            order.append("second")

    other = threading.Thread(target=second)
    with bench.gateway.withholding_state():
        other.start()
        other.join(0.3)
        order.append("first")
        assert bench.qemu.result(0x0C, struct.pack(">III", 1, 1, 0), answer=16) == 0
    other.join(60)
    assert order == ["first", "second"]
    assert bench.qemu.result(0x0C, struct.pack(">III", 1, 1, 0), answer=16) == FAIL


def test_capabilities_offer_neither_hashing_nor_state_blobs(bench: Bench) -> None:
    offered = Capability(int.from_bytes(bench.qemu.ask(0x01, answer=8), "big"))
    assert offered == OFFERED_CAPABILITIES
    assert not offered & (Capability.HASHING | Capability.GET_STATEBLOB | Capability.SET_STATEBLOB)


def test_buffer_size_is_clamped(bench: Bench) -> None:
    assert bench.qemu.result(0x0E) == 0
    _, size, smallest, largest = struct.unpack(">IIII", bench.qemu.ask(0x11, b"\xff" * 4, answer=16))
    assert (size, largest) == (4096, 4096)
    assert 1024 < smallest <= size


def test_buffer_size_of_a_running_tpm_stays(bench: Bench) -> None:
    bench.qemu.boot()
    assert bench.qemu.result(0x11, struct.pack(">I", 3000), answer=16) == FAIL
    assert code_of(bench.qemu.guest_sends(GET_RANDOM)) == 0


def test_established_bit_tells_of_the_launch(bench: Bench) -> None:
    assert bench.qemu.ask(0x04, answer=8)[4] == 0
    bench.qemu.boot()
    assert bench.qemu.ask(0x04, answer=8)[4] == 1
    assert bench.qemu.result(0x0B, bytes(4)) == BAD_LOCALITY
    assert bench.qemu.ask(0x04, answer=8)[4] == 1


def test_cancelling_does_not_disturb_the_secure_world(bench: Bench) -> None:
    bench.qemu.boot()
    assert bench.qemu.result(0x09) == 0
    assert bench.pcr17() == launched_pcr17(RECORD)


def test_unknown_control_command_ends_that_connection_only(bench: Bench) -> None:
    with pytest.raises(ConnectionError):
        bench.qemu.ask(0x7F)
    bench.qemu.close()
    bench.qemu = FakeQemu(bench.folder / "tpm.sock")
    bench.qemu.boot()
    assert bench.gateway.generation == 1


def test_descriptor_that_is_no_stream_socket_is_refused(bench: Bench) -> None:
    reading, writing = os.pipe()
    try:
        assert bench.qemu.result(0x10, descriptors=(reading,)) == BAD_PARAMETER
        assert bench.qemu.result(0x10) == BAD_PARAMETER
        assert bench.qemu.result(0x10, descriptors=(reading, writing)) == BAD_PARAMETER
    finally:
        os.close(reading)
        os.close(writing)
    bench.qemu.boot()


def test_descriptors_do_not_pile_up(bench: Bench) -> None:
    """Refused descriptors are closed: the gateway's process holds no more of them than before."""
    bench.qemu.ask(0x01, answer=8)  # its connection is accepted now
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(20):
        reading, writing = os.pipe()
        assert bench.qemu.result(0x01, answer=8, descriptors=(reading, writing)) >= 0
        os.close(reading)
        os.close(writing)
    assert len(list(Path("/proc/self/fd").iterdir())) == before


@pytest.mark.parametrize(
    ("sent", "code"),
    [
        (b"\x80\x01", RC_COMMAND_SIZE),  # shorter than a header
        (struct.pack(">HII", 0x8001, 9, 0x17B), RC_COMMAND_SIZE),
        (struct.pack(">HII", 0x8001, 0, 0x17B), RC_COMMAND_SIZE),
        (struct.pack(">HII", 0x8001, 100, 0x17B), RC_COMMAND_SIZE),  # announces what never comes
        (struct.pack(">HII", 0x8001, 0xFFFFFFFF, 0x17B) + bytes(3958), RC_COMMAND_SIZE),
        (GET_RANDOM + b"x", RC_COMMAND_SIZE),  # the size changed under QEMU's feet
        (GET_RANDOM + bytes(20000), RC_COMMAND_SIZE),
        (struct.pack(">HIIH", 0x00C1, 12, 0x17B, 8), RC_BAD_TAG),
        (struct.pack(">HIIH", 0x01C1, 12, 0x17B, 8), RC_BAD_TAG),
        (bytes(3968), RC_BAD_TAG),
    ],
)
def test_malformed_command_costs_the_guest_one_error(bench: Bench, sent: bytes, code: int) -> None:
    """The guest gets an error code, the next command works, the secure world does not notice."""
    bench.qemu.boot()
    assert code_of(bench.qemu.guest_sends(sent)) == code
    assert code_of(bench.qemu.guest_sends(GET_RANDOM)) == 0
    assert bench.pcr17() == launched_pcr17(RECORD)


def test_largest_command_reaches_the_tpm(bench: Bench) -> None:
    bench.qemu.boot()
    command = struct.pack(">HIIH", 0x8001, 3968, 0x17B, 8) + bytes(3956)
    assert code_of(bench.qemu.guest_sends(command)) not in (0, RC_COMMAND_SIZE)  # the TPM's own word


def test_flooding_guest_does_not_starve_the_secure_world(bench: Bench) -> None:
    bench.qemu.boot()
    assert bench.qemu.guest is not None
    guest, stop, count = bench.qemu.guest, threading.Event(), [0]

    def flood() -> None:
        while not stop.is_set():
            guest.sendall(GET_RANDOM)
            bench.qemu.guest_receives()
            count[0] += 1

    thread = threading.Thread(target=flood)
    thread.start()
    started = time.monotonic()
    for _ in range(50):
        assert bench.pcr17() == launched_pcr17(RECORD)
    elapsed = time.monotonic() - started
    stop.set()
    thread.join()
    assert count[0] > 0
    assert elapsed < 5


def test_busy_guest_makes_the_secure_world_unavailable_not_stuck(bench: Bench) -> None:
    bench.qemu.boot()
    with (
        bench.gateway._turns.guest(),
        pytest.raises(UnavailableError, match="busy"),
        bench.gateway.secure_world(timeout=0.05),
    ):
        pass
    assert bench.pcr17() == launched_pcr17(RECORD)


def test_dead_swtpm_is_told_and_not_survived(bench: Bench) -> None:
    bench.qemu.boot()
    bench.child.process.kill()
    bench.child.process.wait()
    assert code_of(bench.qemu.guest_sends(GET_RANDOM)) == 0x101
    assert bench.gateway.failure
    with pytest.raises(UnavailableError, match="lost"), bench.gateway.secure_world():
        pass


def test_machine_that_leaves_powers_the_tpm_off(bench: Bench) -> None:
    bench.qemu.boot()
    bench.qemu.close()
    deadline = time.monotonic() + 60
    while bench.gateway.launched and time.monotonic() < deadline:
        threading.Event().wait(0.01)
    with pytest.raises(UnavailableError, match="not started"), bench.gateway.secure_world():
        pass


def test_probe_before_power_on_gets_a_tpm2_answer(bench: Bench) -> None:
    """QEMU finds out the TPM's version before it sends INIT."""
    bench.qemu.hand_over_channel()
    probe = struct.pack(">HIIIII", 0x8001, 22, 0x17A, 6, 0x100, 1)
    assert bench.qemu.guest_sends(probe)[:2] == b"\x80\x01"


def test_new_channel_replaces_the_old_one(bench: Bench) -> None:
    bench.qemu.boot()
    old = bench.qemu.guest
    assert isinstance(old, socket.socket)
    assert bench.qemu.hand_over_channel() == 0
    assert old.recv(1) == b""
    assert code_of(bench.qemu.guest_sends(GET_RANDOM)) == 0
    old.close()
