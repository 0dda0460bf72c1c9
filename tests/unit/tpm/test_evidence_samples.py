"""Real quotes and logs of other projects: the facts that their sources state are the expectations."""

from __future__ import annotations

from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from affiant.model.errors import ForgedError, MalformedError
from affiant.tpm.algorithms import HashAlgorithm
from affiant.tpm.attestation_key import AttestationKey, verify_attestation_key
from affiant.tpm.boot_state import BOOT_PCRS, VerifiedBoot, verify_boot
from affiant.tpm.event_log import parse_event_log
from affiant.tpm.event_types import EventType
from affiant.tpm.measurements import bind_measurements
from affiant.tpm.octets import sized
from affiant.tpm.quote import VerifiedQuote, verify_quote
from affiant.tpm.replay import VerifiedEventLog, replay_event_log
from tests.samples import bundle, octets, sample
from tests.unit.tpm.attester import Attester, ecc_public

SHA1, SHA256 = HashAlgorithm.SHA1, HashAlgorithm.SHA256
WINDOWS_PCRS = range(15)


def recorded_pcrs(name: str, bank: HashAlgorithm) -> dict[int, bytes]:
    values = bundle(f"{name}.pcrs.json")["pcrs"][bank.title]
    return {int(pcr): bytes.fromhex(value) for pcr, value in values.items()}


def linux_boot(name: str, bank: HashAlgorithm = SHA256) -> VerifiedBoot:
    """A log from `linux/` onto the PCR values that its source states, quoted by a key of ours."""
    pcrs = recorded_pcrs(f"linux/{name}", bank)
    required = [pcr for pcr in BOOT_PCRS if pcr in pcrs]
    quote = Attester().quote(pcrs, bank=bank)
    return verify_boot(quote, sample(f"linux/{name}"), required_pcrs=required)


@pytest.mark.parametrize("bank", [SHA1, SHA256])
def test_rhel_8_booted_with_secure_boot(bank: HashAlgorithm) -> None:
    verified = linux_boot("rhel8-uefi.bin", bank)
    assert verified.claim("secure_boot_enabled") is True
    assert verified.claim("firmware_measured") is True
    assert len(verified.applications) == 3
    assert (verified.command_line or "").startswith("(hd0,gpt2)/boot/vmlinuz-4.18.0-240.22.1.el8_3.x86_64 ")


@pytest.mark.parametrize("bank", [SHA1, SHA256])
def test_ubuntu_booted_without_secure_boot(bank: HashAlgorithm) -> None:
    verified = linux_boot("ubuntu-2404-amd-sevsnp.bin", bank)
    assert verified.claim("secure_boot_enabled") is False
    assert verified.command_line == (
        "/vmlinuz-6.8.0-1010-gcp root=PARTUUID=8270f3c9-b4e4-4345-80ee-5a62db7ebf3f ro "
        "console=ttyS0,115200 panic=-1"
    )


def test_debian_10_booted_with_secure_boot_on_a_legacy_log() -> None:
    verified = linux_boot("debian-10.bin", SHA1)
    assert verified.claim("secure_boot_enabled") is True
    # Its shim hashed something else than it logged: that authority is not explained.
    assert verified.claim("secure_boot_explained") is False


def test_a_legacy_log_proves_nothing_in_sha256() -> None:
    quote = Attester().quote({pcr: bytes(32) for pcr in range(24)})
    with pytest.raises(MalformedError, match="no sha256 digest"):
        verify_boot(quote, sample("linux/debian-10.bin"))


def replayed_by_itself(log: bytes) -> dict[int, bytes]:
    """PCR values of a log whose source states none: they only serve to read it."""
    values = {pcr: bytes(32) for pcr in range(24)}
    for event in parse_event_log(log).events:
        if event.type != EventType.NO_ACTION:
            values[event.pcr] = SHA256.digest(values[event.pcr] + event.digests[SHA256])
    return values


def test_keylimes_log_is_read_with_secure_boot() -> None:
    log = sample("linux/keylime_binary_bios_measurements-secureboot.bin")
    verified = verify_boot(Attester().quote(replayed_by_itself(log)), log)
    assert len(parse_event_log(log).events) == 99
    assert verified.claim("secure_boot_enabled") is True
    assert verified.claim("secure_boot_explained") is True
    assert verified.firmware_version == "edk2-20240524-7.el9"
    assert [authority.source.name for authority in verified.secure_boot.authorities] == [
        "db",
        "SbatLevel",
        "vendor_db",
    ]


def test_the_golden_decode_of_a_systemd_boot_log_replays() -> None:
    """tpm2-tools' reference decoding states the PCR values that the log leads to."""
    yaml = sample("linux/tpm2-tools_event-sd-boot-fedora37.bin.yaml").decode()
    stated = {}
    for line in yaml.split("pcrs:")[1].splitlines():
        pcr, separator, value = line.partition(":")
        if separator and pcr.strip().isdigit():
            stated[int(pcr)] = int(value.strip(), 16).to_bytes(32, "big")
    assert 12 in stated
    quote = Attester().quote(stated)
    verified = verify_boot(quote, sample("linux/tpm2-tools_event-sd-boot-fedora37.bin"), required_pcrs=stated)
    assert verified.claim("secure_boot_enabled") is False
    assert [file.untrusted_path for file in verified.grub.files] == ["Linux initrd"]


# Windows: quotes by real TPMs


def recovered_key(source: dict[str, Any]) -> AttestationKey:
    """The recovered point in a public area of our own: it exercises code and proves no TPM."""
    point = source["ak_public_recovered_from_signatures"]
    numbers = ec.EllipticCurvePublicNumbers(int(point["x"], 16), int(point["y"], 16), ec.SECP256R1())
    return verify_attestation_key(ecc_public(numbers.public_key()))


def windows_quote(source: dict[str, Any]) -> VerifiedQuote:
    banks = {
        HashAlgorithm[bank.upper()]: {int(pcr): bytes.fromhex(value) for pcr, value in values.items()}
        for bank, values in source["pcrs"].items()
    }
    pcrs = banks.pop(SHA256)
    return verify_quote(
        octets(source["quote"]),
        octets(source["signature"]),
        attestation_key=recovered_key(source),
        expected_extra_data=bytes.fromhex(source["quote_fields"]["extra_data"]),
        pcrs=pcrs,
        other_banks=banks,
    )


def windows_log(source: dict[str, Any], quote: VerifiedQuote) -> VerifiedEventLog:
    log = parse_event_log(octets(source["event_logs"][0]))
    return replay_event_log(log, quote, required_pcrs=WINDOWS_PCRS)


@pytest.mark.parametrize(
    ("name", "resets", "secure_boot"),
    [
        ("win10_latitude7520_vbs_hvci", 187, False),
        ("win10_latitude7520_novbs_eset", 183, False),
        ("server2022_supermicro_trustpoint", 14, None),
    ],
)
def test_windows_quotes_verify_and_their_logs_replay(
    name: str, resets: int, secure_boot: bool | None
) -> None:
    source = bundle(f"windows/{name}.bundle.json")
    quote = windows_quote(source)
    assert quote.clock_info.reset_count == resets == source["quote_fields"]["reset_count"]
    assert quote.clock_info.clock == source["quote_fields"]["clock"]
    assert f"{quote.firmware_version:#x}" == source["quote_fields"]["firmware_version"]
    bind_measurements(windows_log(source, quote))
    verified = verify_boot(quote, octets(source["event_logs"][0]), required_pcrs=WINDOWS_PCRS)
    assert verified.claim("secure_boot_enabled") is secure_boot


def test_a_windows_log_does_not_replay_onto_another_boot() -> None:
    later = bundle("windows/win10_latitude7520_vbs_hvci.bundle.json")
    earlier = bundle("windows/win10_latitude7520_novbs_eset.bundle.json")
    with pytest.raises(ForgedError, match="does not replay"):
        windows_log(earlier, windows_quote(later))


def test_a_quote_of_two_banks_needs_both() -> None:
    source = bundle("windows/server2022_supermicro_trustpoint.bundle.json")
    broken = dict(source["pcrs"], sha1=dict(source["pcrs"]["sha1"], **{"0": "00" * 20}))
    with pytest.raises(ForgedError, match="PCR values"):
        windows_quote(source | {"pcrs": broken})


def gce(allowed: frozenset[HashAlgorithm] = frozenset({SHA1, SHA256})) -> tuple[VerifiedQuote, bytes]:
    """The quote of a GCE Shielded VM, by its real AK, in SHA-1."""
    source = bundle("windows/go-attestation_windows_gcp_shielded_vm.json")
    key = verify_attestation_key(sized(octets(source["AK"]["Public"])), allowed_hashes=allowed)
    pcrs = {
        entry["Index"]: octets(entry["Digest"])
        for entry in source["Log"]["PCRs"]
        if len(octets(entry["Digest"])) == SHA1.digest_size
    }
    quote = verify_quote(
        octets(source["Quote"]["Quote"]),
        octets(source["Quote"]["Signature"]),
        attestation_key=key,
        expected_extra_data=octets(source["Quote"]["Nonce"]),
        pcrs=pcrs,
        bank=SHA1,
    )
    return quote, octets(source["Log"]["Raw"])


def test_a_shielded_vm_booted_with_secure_boot() -> None:
    quote, log = gce()
    assert verify_boot(quote, log, required_pcrs=WINDOWS_PCRS).claim("secure_boot_enabled") is True


def test_a_sha1_key_is_refused_by_default() -> None:
    with pytest.raises(ForgedError, match="sha1"):
        gce(frozenset({SHA256}))
