"""Unified kernel images: what systemd-stub measures, bent in one place each."""

from __future__ import annotations

import struct

from affiant.tpm.event_log import parse_event_log
from affiant.tpm.event_types import EventType
from affiant.tpm.measurements import bind_measurements
from affiant.tpm.replay import replay_event_log
from affiant.tpm.uki import UkiFacts, read_uki
from tests.samples import sample
from tests.unit.tpm.attester import Attester
from tests.unit.tpm.firmware import SHA256, Firmware

SECTIONS = {".linux": b"the kernel", ".osrel": b"ID=debian", ".cmdline": b"ro quiet", ".initrd": b"initrd"}


def stub(command_lines: tuple[str, ...] = ("ro debug",)) -> Firmware:
    """What systemd-stub measures: names and contents, a command line, credentials, an extension."""
    firmware = Firmware()
    for name, content in SECTIONS.items():
        described = (name + "\0").encode("utf-16-le")
        firmware.add(11, EventType.IPL, described, name.encode() + b"\0")
        firmware.add(11, EventType.IPL, described, content)
    for line in command_lines:
        firmware.add(12, EventType.IPL, (line + "\0").encode("utf-16-le"), line.encode("utf-16-le"))
    firmware.add(12, EventType.IPL, "Credentials initrd\0".encode("utf-16-le"), b"a cpio archive")
    firmware.add(
        12, EventType.EVENT_TAG, struct.pack("<II", 0x6C46F751, 8) + b"b.dtb\0\0\0", b"a device tree"
    )
    firmware.add(13, EventType.IPL, "System extension initrd\0".encode("utf-16-le"), b"another archive")
    return firmware


def facts(firmware: Firmware) -> UkiFacts:
    quote = Attester().quote(firmware.pcrs())
    log = replay_event_log(parse_event_log(firmware.log()), quote, required_pcrs=(11, 12, 13))
    return read_uki(bind_measurements(log))


def test_sections_command_lines_and_additions_are_told() -> None:
    uki = facts(stub())
    assert [section.name for section in uki.sections] == list(SECTIONS)
    assert uki.section(".linux") == SHA256.digest(b"the kernel")
    assert uki.command_lines == ("ro debug",)
    assert uki.unexplained == 0
    assert [part.untrusted_name for part in uki.additions] == ["Credentials initrd", "b.dtb"]
    assert [part.untrusted_tag for part in uki.additions] == [None, 0x6C46F751]
    assert uki.additions[0].digest == SHA256.digest(b"a cpio archive")
    assert [part.untrusted_name for part in uki.extensions] == ["System extension initrd"]


def test_a_renamed_section_is_told_by_what_was_hashed() -> None:
    """The log may call the section what it likes; then nothing binds the name."""
    firmware = stub()
    firmware.edit(4, data=".osrel\0".encode("utf-16-le"))
    uki = facts(firmware)
    assert [section.name for section in uki.sections] == [".linux", ".osrel"]
    assert uki.section(".cmdline") is None
    # The name that nothing binds, and everything after it, is left unexplained.
    assert uki.unexplained > 0


def test_a_section_measured_later_does_not_count() -> None:
    """After the stub, root can extend PCR 11 with a name and a content of its choice."""
    firmware = stub()
    firmware.add(11, EventType.IPL, b"enter-initrd")
    firmware.add(11, EventType.IPL, ".profile\0".encode("utf-16-le"), b".profile\0")
    firmware.add(11, EventType.IPL, ".profile\0".encode("utf-16-le"), b"a lie")
    uki = facts(firmware)
    assert uki.section(".profile") is None
    assert uki.after_sections == ("enter-initrd", ".profile")
    assert uki.unexplained == 1


def test_a_section_measured_twice_is_no_section() -> None:
    firmware = stub()
    for content in (b".linux\0", b"another kernel"):
        firmware.add(11, EventType.IPL, ".linux\0".encode("utf-16-le"), content)
    assert facts(firmware).section(".linux") is None


def test_a_changed_command_line_is_not_told() -> None:
    firmware = stub()
    position = firmware.find("ro debug".encode("utf-16-le"))
    firmware.edit(position, data="ro quiet\0".encode("utf-16-le"))
    uki = facts(firmware)
    assert uki.command_lines == ()
    assert "ro quiet" in [part.untrusted_name for part in uki.additions]


def test_nothing_is_told_of_pcrs_that_were_not_replayed() -> None:
    firmware = stub()
    log = replay_event_log(
        parse_event_log(firmware.log()), Attester().quote(firmware.pcrs()), required_pcrs=[0]
    )
    assert read_uki(bind_measurements(log)) == UkiFacts((), (), 0, (), (), ())


def test_the_command_line_of_a_real_systemd_boot_is_told() -> None:
    log = parse_event_log(sample("linux/tpm2-tools_event-sd-boot-fedora37.bin"))
    values = {pcr: bytes(32) for pcr in range(24)}
    for event in log.events:
        if event.type != EventType.NO_ACTION:
            values[event.pcr] = SHA256.digest(values[event.pcr] + event.digests[SHA256])
    verified = replay_event_log(log, Attester().quote(values), required_pcrs=[12])
    uki = read_uki(bind_measurements(verified))
    assert uki.command_lines == (" console=ttyS0 console=tty0 efi=debug ",) * 2
