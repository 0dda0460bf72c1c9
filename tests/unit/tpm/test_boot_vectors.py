"""Recorded boots of real Debian guests; each vector carries its own expectation and provenance."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from affiant.model.errors import ForgedError
from affiant.tpm.algorithms import HashAlgorithm
from affiant.tpm.boot_state import BOOT_PCRS, VerifiedBoot, verify_boot
from affiant.tpm.event_log import parse_event_log
from affiant.tpm.replay import replay_event_log
from tests.unit.tpm.attester import Attester

VECTORS = sorted((Path(__file__).parents[2] / "vectors" / "boot").glob("*.json"))
BANKS = (HashAlgorithm.SHA1, HashAlgorithm.SHA256)


def load(path: Path) -> tuple[dict[str, Any], bytes]:
    return json.loads(path.read_text()), path.with_suffix(".bin").read_bytes()


def pcrs(vector: dict[str, Any], bank: HashAlgorithm) -> dict[int, bytes]:
    return {int(pcr): bytes.fromhex(value) for pcr, value in vector["pcrs"][bank.title].items()}


def boot(path: Path, bank: HashAlgorithm) -> tuple[dict[str, Any], VerifiedBoot]:
    vector, log = load(path)
    quote = Attester().quote(pcrs(vector, bank), selected=(*BOOT_PCRS, 17), bank=bank)
    return vector, verify_boot(quote, log)


def test_there_are_vectors() -> None:
    assert len(VECTORS) >= 2


@pytest.mark.parametrize("bank", BANKS, ids=lambda bank: bank.title)
@pytest.mark.parametrize("path", VECTORS, ids=lambda path: path.stem)
def test_a_recorded_boot_tells_what_it_must(path: Path, bank: HashAlgorithm) -> None:
    vector, verified = boot(path, bank)
    expected = vector["expected"]
    assert {name: verified.claim(name) for name in expected["claims"]} == expected["claims"]
    assert verified.command_line == expected["command_line"]
    assert verified.bank is bank
    assert verified.launch == pcrs(vector, bank)[17]
    if bank is HashAlgorithm.SHA256:
        candidates = verified.kernel_candidates
        assert bytes.fromhex(expected["kernel_file"]) in candidates
        assert bytes.fromhex(expected["initrd_file"]) == candidates[-1]


def test_the_secure_boot_vector_names_every_link() -> None:
    path = next(path for path in VECTORS if path.stem == "debian12-secure-boot")
    vector, verified = boot(path, HashAlgorithm.SHA256)
    expected = vector["expected"]
    assert [image.digest.hex() for image in verified.applications] == expected["authenticode"]
    assert verified.shim.sbat_level == expected["sbat_level"]
    names = [authority.source.name for authority in verified.secure_boot.authorities]
    assert names == expected["authorities"]
    for name, count in expected["databases"].items():
        database = getattr(verified.secure_boot, name)
        assert database.count == len(database.entries()) == count
    (certificate,) = verified.shim.authorities
    assert b"Debian Secure Boot CA" in certificate


@pytest.mark.parametrize("path", VECTORS, ids=lambda path: path.stem)
def test_no_digest_of_a_recorded_boot_may_change(path: Path) -> None:
    """Whatever octet of a replayed digest is bent, the log is refused."""
    vector, log = load(path)
    quote = Attester().quote(pcrs(vector, HashAlgorithm.SHA256))
    log_of_events = replay_event_log(parse_event_log(log), quote, required_pcrs=BOOT_PCRS)
    digests = {event.digest for event in log_of_events.events}
    assert digests
    for digest in digests:
        bent = log.replace(digest, bytes([digest[0] ^ 1]) + digest[1:])
        with pytest.raises(ForgedError, match="does not replay"):
            verify_boot(quote, bent)
