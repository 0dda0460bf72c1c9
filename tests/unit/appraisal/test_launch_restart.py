"""A D-RTM launch counts as one restart of the TPM; a resume counts beside it."""

from __future__ import annotations

import pytest

from affiant.appraisal.rooted import Root
from affiant.tpm.algorithms import HashAlgorithm
from affiant.tpm.attest import ClockInfo
from affiant.tpm.quote import VerifiedQuote


@pytest.mark.parametrize(
    ("pcr17", "quoted", "counted"),
    [
        (b"\x07" * 32, 1, 0),
        (b"\x07" * 32, 2, 1),  # launched, and resumed once
        (b"\x07" * 32, 0, 0),
        (b"\xff" * 32, 0, 0),
        (b"\xff" * 32, 1, 1),  # never launched: a restart of the guest's own
        (bytes(32), 1, 1),
        (None, 1, 1),
    ],
)
def test_launch_itself_is_no_resume(pcr17: bytes | None, quoted: int, counted: int) -> None:
    clock = ClockInfo(clock=5, reset_count=3, restart_count=quoted, safe=True)
    pcrs = {} if pcr17 is None else {17: pcr17}
    quote = VerifiedQuote(HashAlgorithm.SHA256, pcrs, b"", clock, 0, b"", b"")
    counters = Root((), quote, None, recognised=True).counters
    assert counters is not None
    assert (counters.reset_count, counters.restart_count, counters.clock) == (3, counted, 5)
