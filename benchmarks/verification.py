"""`affiant verify`, in process, beside the bare signature checks that it cannot do without."""

from __future__ import annotations

import tempfile
from pathlib import Path

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from affiant.relying_party.decide import Policy, decide
from affiant.relying_party.verify import verify_passport
from benchmarks.table import Row, in_turn
from tests.simulator import AUDIENCE, NONCE, make_world

# Two certificates of the session chain, the service's signing certificate, two reports.
_SIGNATURES = 5


def rows() -> list[Row]:
    """Measure one whole verification with its decision."""
    with tempfile.TemporaryDirectory() as folder:
        world = make_world(Path(folder))
        passport = world.machine().attest().passport()
        service = world.service

    def verify() -> None:
        verified = verify_passport(
            passport,
            root=service.root,
            expected_nonce=NONCE,
            now=service.now,
            expected_audience=AUDIENCE,
            expected_device=None,
        )
        if not decide(verified, policy=Policy()).accepted:
            raise AssertionError("a healthy passport was refused")

    key = ec.generate_private_key(ec.SECP256R1())
    algorithm = ec.ECDSA(hashes.SHA256())
    message = passport[:1024]
    signature = key.sign(message, algorithm)
    public = key.public_key()

    def check_signatures() -> None:
        for _ in range(_SIGNATURES):
            public.verify(signature, message, algorithm)

    ours, limit = in_turn(verify, check_signatures, runs=300)
    return [
        Row(
            f"passport of {len(passport)} bytes, decided",
            ours,
            f"{_SIGNATURES} P-256 signature checks",
            limit,
        )
    ]
