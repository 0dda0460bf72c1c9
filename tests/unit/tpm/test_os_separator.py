"""systemd's separator in the PCRs of the boot: known by its digest, it tells nothing of what booted."""

from __future__ import annotations

from dataclasses import fields

import pytest

from affiant.model.errors import ForgedError
from affiant.tpm.algorithms import HashAlgorithm
from affiant.tpm.boot_state import BOOT_PCRS, VerifiedBoot, read_untrusted_boot, verify_boot
from affiant.tpm.event_log import parse_event_log
from affiant.tpm.event_types import EventType
from affiant.tpm.os_separator import OS_SEPARATED_PCRS, is_os_separator, os_separated
from tests.unit.tpm.attester import Attester
from tests.unit.tpm.firmware import SHA256, Firmware
from tests.unit.tpm.test_uki import stub

ATTESTER = Attester()
# In `750-os-separator.pcrlock` of Debian's systemd-tpm 262.1-1.
PUBLISHED = {
    HashAlgorithm.SHA1: "0d3751a5a6707fb8918dfbe6b0d9853ca6c313c4",
    HashAlgorithm.SHA256: "ff5b9d73dad709633ae76adf444012b57e913a12ed7403c3931145862f35f841",
}
PCRS = (*BOOT_PCRS, 11, 12, 13)


def close(values: dict[int, bytes], *, last: int | None = None) -> dict[int, bytes]:
    """The values after systemd's separators: all, or the first of each PCR (`last=1`)."""
    return {pcr: (value, *os_separated(pcr, value, bank=SHA256)[:last])[-1] for pcr, value in values.items()}


def booted() -> Firmware:
    firmware = Firmware.healthy()
    firmware.entries += stub().entries
    return firmware


def separated(*pcrs: int) -> dict[int, bytes]:
    """What the TPM holds after systemd's separator in `pcrs`."""
    values = booted().pcrs()
    return values | {pcr: value for pcr, value in close(values).items() if pcr in pcrs}


def verify(values: dict[int, bytes], firmware: Firmware | None = None) -> VerifiedBoot:
    log = (firmware or booted()).log()
    return verify_boot(ATTESTER.quote(values), log, required_pcrs=PCRS)


def differences(one: VerifiedBoot, other: VerifiedBoot) -> set[str]:
    return {field.name for field in fields(one) if getattr(one, field.name) != getattr(other, field.name)}


@pytest.mark.parametrize(("bank", "digest"), PUBLISHED.items())
def test_its_digest_is_the_one_that_systemd_publishes(bank: HashAlgorithm, digest: str) -> None:
    assert is_os_separator(7, bytes.fromhex(digest), bank=bank)
    assert not is_os_separator(8, bytes.fromhex(digest), bank=bank)


def test_pcr_9_has_two_of_them() -> None:
    """The second ends what systemd measured of its NV indexes; systemd 261 may run without it."""
    plain = verify(separated())
    first = booted().pcrs() | {9: close(booted().pcrs(), last=1)[9]}
    both = SHA256.digest(first[9] + SHA256.digest(b"nvpcr-separator"))
    assert both == separated(9)[9]
    assert differences(verify(first), plain) == set()
    for pcr in (4, 9):
        alone = booted().pcrs()
        alone[pcr] = SHA256.digest(alone[pcr] + SHA256.digest(b"nvpcr-separator"))
        with pytest.raises(ForgedError, match=f"PCR {pcr}"):
            verify(alone)


@pytest.mark.parametrize("pcrs", [OS_SEPARATED_PCRS, {7}, {4, 9}], ids=["all", "one", "two"])
def test_a_separated_boot_is_the_same_boot(pcrs: set[int]) -> None:
    assert differences(verify(separated(*pcrs)), verify(separated())) == set()


def test_the_separator_in_a_log_is_no_measurement_of_the_boot() -> None:
    """As systemd's own log has it, joined to the firmware's."""
    firmware = booted()
    for pcr in sorted(OS_SEPARATED_PCRS):
        firmware.add(pcr, EventType.IPL, b"os-separator")
    firmware.add(9, EventType.IPL, b"nvpcr-separator")
    plain = verify(separated())
    assert differences(verify(separated(*OS_SEPARATED_PCRS), firmware), plain) == set()
    told = read_untrusted_boot(parse_event_log(firmware.log()), bank=SHA256)
    assert (told.grub, told.uki, told.secure_boot) == (plain.grub, plain.uki, plain.secure_boot)


def test_two_separators_that_no_log_tells_are_one_too_many() -> None:
    values = separated(7)
    values |= {7: close(values)[7]}
    with pytest.raises(ForgedError, match="PCR 7"):
        verify(values)


def test_pcr_8_has_no_separator() -> None:
    """systemd leaves PCR 8 alone, so there it would be a measurement like any other."""
    values = separated()
    values[8] = SHA256.digest(values[8] + SHA256.digest(b"os-separator"))
    with pytest.raises(ForgedError, match="PCR 8"):
        verify(values)


def test_it_is_no_separator_of_the_firmware() -> None:
    """Or a guest could end what its firmware never ended."""
    firmware = Firmware()
    firmware.add(7, EventType.ACTION, b"anything")
    values = firmware.pcrs()
    values |= {7: close(values)[7]}
    boot = verify_boot(ATTESTER.quote(values), firmware.log(), required_pcrs=[7])
    assert boot.claim("secure_boot_explained") is None
