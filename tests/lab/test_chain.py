"""The whole chain on real machines.

Every passport of a healthy, busy guest is good; other guests get the level that they deserve, with reasons.
"""

from __future__ import annotations

import json
import shutil
import socket
import struct
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from affiant.folders import references_folder
from affiant.model.errors import AffiantError
from affiant.model.level import SecurityLevel
from affiant.model.outcome import Mode, Outcome
from affiant.vm.ready import wait_for_guest
from lab.console import Console
from lab.debian import debian_disk
from tests.lab.attested import (
    BOOT_SECONDS,
    ENFORCED,
    Asked,
    AttestedGuest,
    Service,
    attested_guest,
    request_for,
    until,
)

PASSPORTS = 200


def outcomes(asked: Asked) -> dict[str, Outcome]:
    return {each.name: each.outcome for each in asked.verified.runtime.assertions}


def assert_healthy(asked: Asked) -> None:
    """Accepted at level 4, every assertion looked and holds, nothing was ever violated."""
    decision = asked.decide()
    assert decision.accepted, _told(decision.findings)
    assert asked.level is SecurityLevel.ENFORCED_CODE
    assert set(asked.shortfalls) == {"host_attested"}
    assert outcomes(asked).keys() >= ENFORCED >= {"kernel_text_intact", "syscall_table_intact"}
    bad = [each for each in asked.verified.runtime.assertions if each.outcome is not Outcome.HOLDS]
    assert not bad, _told(bad)
    assert not asked.verified.runtime.violations, _told(asked.verified.runtime.violations)


@contextmanager
def explained(guest: AttestedGuest, what: str) -> Iterator[None]:
    """Have a failure say what was done, and what the guest's processes wrote."""
    try:
        yield
    except (AssertionError, AffiantError) as error:
        error.add_note(f"{what}\n{guest.logs()}")
        raise


def _told(results: Sequence[object]) -> str:
    """Say all of each, whatever pytest would leave out."""
    return "\n".join(str(each) for each in results)


def test_every_passport_of_a_busy_guest_is_good(attested: AttestedGuest, console: Console) -> None:
    """While processes come and go and modules are loaded and unloaded, 200 times in a row."""
    console.run("load all 2")
    try:
        console.run("until [ -e /tmp/load/modules.count ]; do sleep 1; done", timeout=300)
        reports = []
        for number in range(PASSPORTS):
            with explained(attested, f"passport {number} of {PASSPORTS}"):
                asked = attested.ask(wait=0)
                assert_healthy(asked)
            reports.append(asked.verified.runtime)
        status = console.run("load status", timeout=300)
    finally:
        console.run("load stop", timeout=300)
    done = {
        line.split()[1]: int(line.split()[2]) for line in status.splitlines() if line.startswith("load: ")
    }
    assert min(done["forks"], done["modules"]) > 1, status
    numbers = [report.sequence for report in reports]
    assert numbers == sorted(set(numbers)), "each report has a number of its own"
    assert console.run("cat /tmp/load/modules.log") == ""


def test_a_reset_guest_is_launched_anew_and_as_good_as_before(
    attested: AttestedGuest, console: Console
) -> None:
    """PCR 17 starts over with the machine: another boot, another session, the same monitor and level."""
    before = attested.ask()
    launches, starts = attested.status()["generation"], attested.status()["monitor_starts"]
    console.type("reboot -f\n")
    until(
        lambda: attested.status()["generation"] == launches + 1, seconds=BOOT_SECONDS, otherwise=attested.logs
    )
    # From its first moment on, the new boot has no share in the old one's session.
    during = attested.ask_until(lambda _: True)
    assert during.session != before.session
    console.wait("affiant: guest ready", timeout=BOOT_SECONDS)
    console.wait("guest# ", timeout=BOOT_SECONDS)
    after = attested.ask_until(lambda asked: asked.level >= SecurityLevel.ENFORCED_CODE)
    assert_healthy(after)
    assert after.session != before.session
    assert after.verified.session.device == before.verified.session.device
    assert attested.status()["monitor_starts"] == starts
    assert attested.status()["generation"] == launches + 1


def test_without_a_tpm_nothing_is_proven_and_still_all_is_looked_at(
    service: Service, attested: AttestedGuest
) -> None:
    """Beside another machine of the same service, which it does not disturb."""
    request = request_for(service, "no-tpm", firmware=False, tpm=False)
    with attested_guest(service, request) as guest:
        wait_for_guest(guest.state, timeout=BOOT_SECONDS)
        asked = guest.ask_until(lambda asked: set(outcomes(asked).values()) == {Outcome.HOLDS})
        assert asked.level is SecurityLevel.UNPROVEN
        assert {"attestation_key_enrolled", "quote_fresh"} <= set(asked.shortfalls)
        assert all(asked.shortfalls.values())
        decision = asked.decide()
        assert not decision.accepted
        assert [each.subject for each in decision.findings] == ["security level"]
        beside = attested.ask()
        assert_healthy(beside)
        assert beside.verified.session.device != asked.verified.session.device


def test_a_running_guest_cannot_add_to_the_measurements_of_its_boot(
    attested: AttestedGuest, console: Console
) -> None:
    """Its kernel's own TPM device reaches PCR 16, and neither GRUB's PCR 9 nor the firmware's PCR 4."""
    answers = []
    for pcr in (16, 9, 4):
        auth = struct.pack(">IHBH", 0x40000009, 0, 0, 0)
        body = struct.pack(">II", pcr, len(auth)) + auth + struct.pack(">IH", 1, 0xB) + b"\x5a" * 32
        command = struct.pack(">HII", 0x8002, 10 + len(body), 0x182) + body
        octal = "".join(f"\\{octet:03o}" for octet in command)
        half = len(octal) // 8 * 4  # a serial line's buffer is small
        console.run(f"printf '{octal[:half]}' > /tmp/command")
        console.run(f"printf '{octal[half:]}' >> /tmp/command")
        said = console.run("exec 3<>/dev/tpm0; cat /tmp/command >&3; head -c 10 <&3 | xxd -p; exec 3>&-")
        answers.append(said.strip()[-8:])
    assert answers == ["00000000", "00000907", "00000907"]
    refused = {"extending PCR 9 after the boot", "extending PCR 4 after the boot"}
    until(
        lambda: refused <= attested.status()["refused"].keys(), seconds=BOOT_SECONDS, otherwise=attested.logs
    )
    assert_healthy(attested.ask())


def test_in_firmware_and_with_secure_boot_off(service: Service) -> None:
    """A guest is asked before it has a kernel, and again when it runs one that nobody vouched for."""
    request = request_for(service, "insecure", secure_boot=False)
    with attested_guest(service, request) as guest:
        until(lambda: guest.status().get("state") == "launched", seconds=BOOT_SECONDS, otherwise=guest.logs)
        operate(guest.state.qmp, "stop")  # the firmware has started its TPM, and goes no further now
        asked = guest.ask()
        assert asked.level < SecurityLevel.VERIFIED_BOOT
        assert asked.shortfalls
        assert set(outcomes(asked).values()) == {Outcome.INCONCLUSIVE}
        assert all(each.reason for each in asked.verified.runtime.assertions)
        assert not asked.decide(min_level=SecurityLevel.UNPROVEN).accepted, "nothing looked at proves nothing"
        operate(guest.state.qmp, "cont")
        wait_for_guest(guest.state, timeout=BOOT_SECONDS)
        # The first session is of the firmware's time, and may still be when the kernel has been looked at.
        asked = guest.ask_until(
            lambda asked: (
                asked.level >= SecurityLevel.ROOTED and Outcome.INCONCLUSIVE not in outcomes(asked).values()
            )
        )
        # GRUB starts this kernel past its EFI stub: the log is the firmware's own.
        assert asked.level is SecurityLevel.ROOTED, asked.shortfalls
        assert "secure_boot_enabled" in asked.shortfalls
        enforced = [each for each in asked.verified.runtime.assertions if each.mode is Mode.ENFORCE]
        assert {each.outcome for each in enforced} == {Outcome.HOLDS}
        assert guest.status()["monitor_starts"] == 1


@pytest.mark.slow
@pytest.mark.skipif(
    shutil.which("mmdebstrap") is None, reason="mmdebstrap, which makes the disk, is not installed"
)
def test_a_real_debian_on_its_disk_is_healthy(service: Service, attested: AttestedGuest, home: Path) -> None:
    """systemd, udev, dbus and a journal do more to a kernel than a shell does, and none of it is wrong."""
    disk = home / "debian.img"
    subprocess.run(["cp", "--sparse=always", str(debian_disk()), str(disk)], check=True)
    request = request_for(service, "debian", disk=disk, append="root=LABEL=guest", memory_bytes=1 << 30)
    with attested_guest(service, request) as guest, Console(guest.state.console_socket) as console:
        console.wait("guest# ", timeout=BOOT_SECONDS)
        console.silence_kernel()
        console.run("grep -qx systemd /proc/1/comm")  # which may tell of units amid any answer still
        assert "[integrity]" in console.run("cat /sys/kernel/security/lockdown")
        guest.ask_until(lambda asked: asked.level is SecurityLevel.ENFORCED_CODE)
        restart = "systemctl restart systemd-udevd systemd-journald; udevadm trigger"
        console.run(restart, timeout=BOOT_SECONDS)
        for _ in range(20):
            assert_healthy(guest.ask(wait=0))
        assert "running" in console.run("systemctl is-system-running --wait", timeout=BOOT_SECONDS)
        assert guest.ask().verified.session.device != attested.ask().verified.session.device
    disk.unlink()


def test_an_unknown_kernel_is_not_vouched_for(service: Service, attested: AttestedGuest) -> None:
    """First neither the monitor nor the service knows it, then the monitor does, at last both."""
    known = set(references_folder().glob("*.reference"))
    with attested_guest(service, request_for(service, "unknown", suite="trixie")) as guest:
        (reference,) = set(references_folder().glob("*.reference")) - known
        aside = reference.rename(reference.with_suffix(".aside"))
        try:
            wait_for_guest(guest.state, timeout=BOOT_SECONDS)
            # An earlier session may be of a moment at which the boot was not over.
            asked = guest.ask_until(
                lambda asked: (
                    asked.level >= SecurityLevel.ROOTED and "firmware_measured" not in asked.shortfalls
                )
            )
            assert asked.level is SecurityLevel.ROOTED
            assert set(asked.shortfalls) == {"kernel_known", "reference_matches_kernel"}
            assert Outcome.HOLDS not in outcomes(asked).values()
            assert Outcome.VIOLATED not in outcomes(asked).values()
            first = asked.session
        finally:
            aside.rename(reference)
        asked = guest.ask_until(lambda asked: outcomes(asked)["kernel_text_intact"] is Outcome.HOLDS)
        assert asked.session != first, "the session's evidence names what the monitor compares with"
        assert asked.level is SecurityLevel.ROOTED
        assert "kernel_known" in asked.shortfalls
        assert guest.status()["monitor_starts"] == 1
    reference.unlink()  # of no use to other tests, and one more to try for every monitor


def operate(path: Path, command: str) -> None:
    """Tell QEMU something as its operator."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(20)
        connection.connect(str(path))
        stream = connection.makefile("rw", encoding="utf-8")
        for request in ("qmp_capabilities", command):
            stream.write(json.dumps({"execute": request}) + "\n")
            stream.flush()
            while "return" not in (answer := json.loads(stream.readline())):
                assert "error" not in answer, answer
