"""What a service knows of the attestation key that evidence claims to be quoted by."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["BootCounters", "EnrolledKey"]


@dataclass(frozen=True, slots=True, order=True)
class BootCounters:
    """TPMS_CLOCK_INFO of a quote (TPM 2.0 Part 2, 10.11.1), in the order in which they grow.

    `reset_count` grows with each start of the machine, `restart_count` with each resume in between
    (a D-RTM launch, which a TPM counts there too, is taken off), `clock` counts milliseconds within them.
    """

    reset_count: int
    restart_count: int
    clock: int


@dataclass(frozen=True, slots=True)
class EnrolledKey:
    """An attestation key that proved to live in the TPM of `device`.

    `name` is its TPM name; `ek_public` (TPM2B_PUBLIC) and `ek_certificates` (DER, leaf first) are
    those of the endorsement key that it was enrolled under. `last_seen`: the highest counters that
    this TPM has quoted, None before the first quote.
    """

    name: bytes
    device: bytes
    ek_public: bytes
    ek_certificates: tuple[bytes, ...]
    last_seen: BootCounters | None
