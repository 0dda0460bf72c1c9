"""The fuzzing harness itself: its targets take their seeds, and anything near them, without breaking."""

from __future__ import annotations

import importlib.util
import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
from cryptography import x509

from affiant.model.errors import ForgedError
from affiant.wire.fact_record import open_kept, read_fact_record, verify_fact_record
from fuzz import targets
from fuzz.targets import CORPUS, FIXTURES, TARGETS, run

SEEDS = sorted(path for path in CORPUS.rglob("*") if path.is_file())
CHANGES = 60


def test_every_target_has_a_seed() -> None:
    assert {path.parent.name for path in SEEDS} == set(TARGETS)


@pytest.mark.parametrize("path", SEEDS, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_a_seed_and_its_neighbours_break_nothing(path: Path) -> None:
    octets, chance = path.read_bytes(), random.Random(path.name)
    run(path.parent.name, octets)
    for _ in range(CHANGES):
        bent = bytearray(octets)
        for _ in range(chance.randint(1, 4)):
            place = chance.randrange(len(bent))
            bent[place : place + chance.randint(0, 3)] = chance.randbytes(chance.randint(0, 3)) or b"\xff"
        run(path.parent.name, bytes(bent))


@pytest.mark.parametrize(
    "target",
    [
        "cbor/passport",
        "final_events/two",
        "userspace_log/systemd",
        "passport/whole",
        "confidential/log",
        "rules/bundle",
        "courier/all",
    ],
)
def test_seeds_get_past_the_first_check(target: str) -> None:
    """A seed that is refused at once would let a target look at nothing."""
    octets = (CORPUS / target).read_bytes()
    TARGETS[target.split("/")[0]](octets)


def test_seeds_of_facts_are_read_whole_and_believed_only_of_a_monitor() -> None:
    """The target signs claims by itself, so that what is behind the signature is reached."""
    kept = open_kept((CORPUS / "facts" / "kept").read_bytes(), key=None)
    root = x509.load_der_x509_certificate((FIXTURES / "root.der").read_bytes())
    verified = verify_fact_record(read_fact_record(kept), root=root)
    claims = (CORPUS / "facts" / "claims").read_bytes()
    same = read_fact_record(targets._recorded(claims))
    assert same.said.facts == verified.record.facts == json.loads((CORPUS / "facts" / "json").read_bytes())
    with pytest.raises(ForgedError):
        verify_fact_record(same, root=root)


@pytest.mark.skipif(
    importlib.util.find_spec("atheris") is None, reason="atheris is not installed (make fuzz)"
)
def test_the_harness_runs() -> None:
    """Two seconds of the real thing; a finding fails the test."""
    result = subprocess.run(
        [sys.executable, "-m", "fuzz", "structures"],
        env=os.environ | {"FUZZ_SECONDS": "2"},
        cwd=CORPUS.parent.parent,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert "nothing found" in result.stdout
