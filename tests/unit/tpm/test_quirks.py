"""Every named quirk is shown to be read, and to prove nothing but what was hashed."""

from __future__ import annotations

import pytest

from affiant.tpm.algorithms import HashAlgorithm
from affiant.tpm.binding import Binding, bind_event
from affiant.tpm.efi_variable import EFI_GLOBAL
from affiant.tpm.event_types import EventType
from affiant.tpm.quirks import DIGEST_QUIRKS, LOG_QUIRKS, digest_quirks
from affiant.tpm.replay import MeasuredEvent
from tests.unit.tpm.firmware import variable

SHA256 = HashAlgorithm.SHA256
IPL = EventType.IPL
WIDE = "quiet splash".encode("utf-16-le")
# Name of the quirk: what the log holds, what was hashed, what is then covered.
CASES = {
    "variable-content-only": (
        EventType.EFI_VARIABLE_BOOT,
        variable(EFI_GLOBAL, "BootOrder", b"\1\0"),
        b"\1\0",
        b"\1\0",
    ),
    "grub-command": (IPL, b"grub_cmd: boot\0", b"boot", b"boot"),
    "grub-kernel-command-line": (IPL, b"kernel_cmdline: /vmlinuz ro\0", b"/vmlinuz ro", b"/vmlinuz ro"),
    "grub-module-command-line": (IPL, b"module_cmdline: /module\0", b"/module", b"/module"),
    "rhel8-grub-command": (IPL, b"grub_cmd boot\0", b"boot\0", b"boot"),
    "rhel8-grub-kernel-command-line": (IPL, b"grub_kernel_cmdline /vmlinuz\0", b"/vmlinuz\0", b"/vmlinuz"),
    "systemd-section-name": (IPL, ".linux\0".encode("utf-16-le"), b".linux\0", b".linux"),
    "systemd-command-line": (IPL, WIDE + b"\0\0", WIDE, WIDE),
}


def event(kind: int, data: bytes, measured: bytes) -> MeasuredEvent:
    return MeasuredEvent(0, 8, SHA256.digest(measured), kind, data)


def test_every_quirk_has_a_case() -> None:
    assert set(CASES) == {quirk.name for quirk in DIGEST_QUIRKS}


@pytest.mark.parametrize("name", CASES)
def test_a_quirk_names_the_part_that_was_hashed(name: str) -> None:
    kind, data, measured, covered = CASES[name]
    bound = bind_event(event(kind, data, measured), bank=SHA256)
    assert bound.covered == covered
    assert bound.quirk == name
    assert bound.binding not in (Binding.NOTHING, Binding.DATA)


@pytest.mark.parametrize("name", CASES)
def test_a_quirk_covers_nothing_that_was_not_hashed(name: str) -> None:
    kind, data, measured, _ = CASES[name]
    bound = bind_event(event(kind, data, measured + b"!"), bank=SHA256)
    assert (bound.binding, bound.covered, bound.quirk) == (Binding.NOTHING, None, None)


@pytest.mark.parametrize("name", CASES)
def test_a_quirk_is_for_its_own_types_only(name: str) -> None:
    _, data, measured, _ = CASES[name]
    bound = bind_event(event(EventType.EFI_BOOT_SERVICES_DRIVER, data, measured), bank=SHA256)
    assert bound.covered is None


def test_quirks_have_one_name_each_and_say_where_they_were_seen() -> None:
    names = [quirk.name for quirk in (*DIGEST_QUIRKS, *LOG_QUIRKS)]
    assert len(names) == len(set(names))
    assert all(quirk.seen_in for quirk in (*DIGEST_QUIRKS, *LOG_QUIRKS))
    assert digest_quirks(EventType.SEPARATOR) == ()
