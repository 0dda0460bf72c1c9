"""Guests boot as they should, and leave nothing behind."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import pytest

from affiant.kernel.machine.ram_layout import q35_below_4g_bytes
from affiant.vm.initramfs import READY_LINE
from affiant.vm.machine import Machine
from lab.guests import GuestPlan, LabGuest, plan_machine, start_guest
from lab.plain import run_plain


def test_debian_boots_through_secure_boot(secure_boot_guest: LabGuest) -> None:
    """Firmware, shim and GRUB start the signed kernel, which says so and locks itself down."""
    log = secure_boot_guest.machine.console_log.read_text(errors="replace")
    assert "secureboot: Secure boot enabled" in log
    assert READY_LINE in log
    lockdown = secure_boot_guest.console.run("cat /sys/kernel/security/lockdown")
    assert "[integrity]" in lockdown


def test_the_boot_is_measured(secure_boot_guest: LabGuest) -> None:
    """PCRs of firmware, boot loader and kernel hold measurements; the guest sees the event log."""
    console = secure_boot_guest.console
    for index in (0, 4, 7, 8, 9, 14):
        value = console.run(f"cat /sys/class/tpm/tpm0/pcr-sha256/{index}").strip()
        assert len(value) == 64
        assert set(value) != {"0"}, f"PCR {index} was never extended"
    assert int(console.run("wc -c < /sys/kernel/security/tpm0/binary_bios_measurements")) > 5000


def test_signed_modules_load_and_unload_under_lockdown(secure_boot_guest: LabGuest) -> None:
    console = secure_boot_guest.console
    assert "virtio_blk" in console.run("lsmod")
    console.run("load all")
    console.run("until [ -e /tmp/load/modules.count ]; do sleep 1; done", timeout=300)
    console.run("load stop", timeout=300)
    assert console.run("cat /tmp/load/modules.log") == ""
    assert "dummy" not in console.run("lsmod")


def test_what_the_kernel_logs_is_no_answer(direct_guest: LabGuest) -> None:
    """A guest that was out of time says so whenever it likes, in the midst of what a test reads."""
    said = direct_guest.console.run("echo begun; echo '<3>clocks were read late' > /dev/kmsg; echo ended")
    assert said == "begun\nended\n"
    assert "clocks were read late" in direct_guest.console.run("dmesg | tail -5")


def test_memory_file_is_the_guests_memory(direct_guest: LabGuest) -> None:
    """What a guest process writes appears in the RAM file, and its size is the guest's."""
    machine = direct_guest.machine
    assert machine.ram.stat().st_size == machine.memory_bytes
    assert machine.ram.stat().st_mode & 0o077 == 0
    # Joined in the guest, so that neither the typed line nor its echo is what is found.
    direct_guest.console.run('a=mark-of; for i in $(seq 200); do echo "$a-the-guest"; done > /tmp/mark')
    assert b"mark-of-the-guest\nmark-of-the-guest\n" in machine.ram.read_bytes()


@pytest.mark.parametrize("mebibytes", [1024, 2814, 2816, 3072])
def test_memory_layout_is_what_qemu_tells(mebibytes: int, tmp_path: Path) -> None:
    """The computed split at 4 GiB is the one in QEMU's own memory tree, on both sides of the limit."""
    machine = plan_machine(GuestPlan(firmware=False, tpm=False, memory_mib=mebibytes), tmp_path)
    with run_plain(machine):
        tree = _monitor(machine, "info mtree -f")
    below = q35_below_4g_bytes(machine.memory_bytes)
    above = machine.memory_bytes - below
    assert f"-{below - 1:016x} (prio 0, ram): ram" in tree
    upper = f"0000000100000000-{(1 << 32) + above - 1:016x} (prio 0, ram): ram @{below:016x}"
    assert (upper in tree) is (above > 0)


@pytest.mark.slow
@pytest.mark.parametrize("suite", ["trixie", "sid"])
def test_newer_kernels_boot(suite: str) -> None:
    with start_guest(GuestPlan(suite=suite, firmware=False, tpm=False)) as guest:
        assert guest.kernel.release in guest.console.run("uname -r")
        guest.console.run("load modules")
        guest.console.run("until [ -e /tmp/load/modules.count ]; do sleep 1; done", timeout=300)
        guest.console.run("load stop", timeout=300)
        assert int(guest.console.run("wc -l < /tmp/load/modules.count")) > 0


def _monitor(machine: Machine, command: str) -> str:
    """Run a command of QEMU's human monitor through the operators' socket."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(20)
        connection.connect(str(machine.operator_qmp))
        stream = connection.makefile("rw", encoding="utf-8")
        assert "QMP" in json.loads(stream.readline())
        for request in (
            {"execute": "qmp_capabilities"},
            {"execute": "human-monitor-command", "arguments": {"command-line": command}},
        ):
            stream.write(json.dumps(request) + "\n")
            stream.flush()
            while "return" not in (answer := json.loads(stream.readline())):
                assert "event" in answer, answer
        return str(answer["return"])
