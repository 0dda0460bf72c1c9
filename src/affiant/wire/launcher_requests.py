"""What a monitor asks its launcher, and what it is told: the values on the launcher channel.

Each request names the type of its result. How they are written is in `affiant.wire.secure_world`.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Generic, TypeVar

from affiant.model.evidence import QuoteEvidence

__all__ = [
    "LONGEST_STREAM",
    "MOST_COPIED_PAGES",
    "MOST_REMEMBERED",
    "MOST_RUNS",
    "Activate",
    "Copied",
    "Copy",
    "Cpus",
    "DeviceState",
    "EnclaveReportFor",
    "Endorsement",
    "EndorsementOfTpm",
    "Failure",
    "FailureKind",
    "ForgetCopy",
    "Generation",
    "Keep",
    "MachineState",
    "Pause",
    "Quote",
    "Record",
    "Remember",
    "Remembered",
    "Request",
    "Resume",
]

LONGEST_STREAM = 1_000_000
"""How much of QEMU's device state is told, in bytes: processors come first in it, 2 to 5 KiB for each."""

MOST_COPIED_PAGES = 1 << 14
"""How many pages of the guest's memory are copied at one moment: 64 MiB."""

MOST_REMEMBERED = 1 << 20
"""How many bytes are remembered of a boot."""

MOST_RUNS = 1 << 12
"""How many runs of pages one request names."""

ResultT_co = TypeVar("ResultT_co", covariant=True)


class Request(Generic[ResultT_co]):
    """A question to the launcher whose result is a `ResultT`."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class EndorsementOfTpm:
    """What the launcher knows of its TPM; unverified by nature.

    `ek_certificates`: DER, leaf first. `ek_public`, `ak_public`: TPM2B_PUBLIC encodings.
    """

    ek_certificates: tuple[bytes, ...]
    ek_public: bytes
    ak_public: bytes


@dataclass(frozen=True, slots=True)
class MachineState:
    """All vCPUs at one moment: QEMU's register listing of each, and the head of its device state stream."""

    cpus: tuple[str, ...]
    stream: bytes


@dataclass(frozen=True, slots=True)
class Copied:
    """All vCPUs at the moment at which pages were copied.

    `stream` is the head of QEMU's device state stream, empty where it was not asked for. `roots` are pages
    that were copied beside those asked for: those that the vCPUs' CR3 named at that moment.
    """

    cpus: tuple[str, ...]
    stream: bytes
    roots: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Record(Request[bytes]):
    """Ask for the launch record's encoding."""


@dataclass(frozen=True, slots=True)
class Generation(Request[int]):
    """Ask how many D-RTM launches there were: 0 before the first, one more at each guest reset."""


@dataclass(frozen=True, slots=True)
class EnclaveReportFor(Request[bytes]):
    """Ask for an enclave report over these values (COSE_Sign1 bytes).

    `challenge` is a digest, `session_key` a P-256 point (65 bytes), `sealing_key` X25519 (32 bytes).
    """

    challenge: bytes
    session_key: bytes
    sealing_key: bytes
    rules_version: int


@dataclass(frozen=True, slots=True)
class Endorsement(Request["EndorsementOfTpm | None"]):
    """Ask for the TPM's endorsement; None without a TPM."""


@dataclass(frozen=True, slots=True)
class Activate(Request[bytes]):
    """Ask to activate a credential: TPM2B_ID_OBJECT and TPM2B_ENCRYPTED_SECRET to the secret."""

    credential_blob: bytes
    encrypted_secret: bytes


@dataclass(frozen=True, slots=True)
class Quote(Request[QuoteEvidence]):
    """Ask for a quote by the AK over `pcrs` (ascending, SHA-256 bank) with `extra_data` (32 bytes)."""

    extra_data: bytes
    pcrs: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Cpus(Request["tuple[str, ...]"]):
    """Ask for QEMU's register listing of each vCPU, by number."""


@dataclass(frozen=True, slots=True)
class DeviceState(Request["MachineState"]):
    """Ask for all vCPUs at one moment, for which the launcher stops the guest."""


@dataclass(frozen=True, slots=True)
class Pause(Request[None]):
    """Ask to pause the guest; the launcher resumes it by itself after 250 ms."""


@dataclass(frozen=True, slots=True)
class Resume(Request[None]):
    """Ask to resume the guest; a failure where it ran on by itself before."""


@dataclass(frozen=True, slots=True)
class Copy(Request["Copied"]):
    """Ask for copies of pages and for all vCPUs, of one moment for which the launcher stops the guest.

    `runs` are pages of the RAM file, each a first page and how many: at most 4096 runs and 16,384 pages. They
    are found at their own places in the file of copies; what else is there is of other moments.
    `device_state` asks for QEMU's device state, too.
    """

    runs: tuple[tuple[int, int], ...]
    device_state: bool


@dataclass(frozen=True, slots=True)
class ForgetCopy(Request[None]):
    """Tell that the copies are not needed any more."""


@dataclass(frozen=True, slots=True)
class Keep(Request[None]):
    """Ask to keep a fact record, as `affiant.wire.fact_record.write_kept` makes it, at most 1 MiB."""

    content: bytes


@dataclass(frozen=True, slots=True)
class Remember(Request[None]):
    """Ask to remember `content` (1 byte to 1 MiB) in place of what was remembered of this boot before.

    `generation` says which boot it is of. What comes too late, of a boot that is over, is dropped.
    """

    generation: int
    content: bytes


@dataclass(frozen=True, slots=True)
class Remembered(Request[bytes]):
    """Ask for what is remembered of the boot that there is now: empty if nothing is."""


class FailureKind(enum.Enum):
    """Why there is no result: the thing is not there now, or the request is not granted."""

    UNAVAILABLE = "unavailable"
    REFUSED = "refused"


@dataclass(frozen=True, slots=True)
class Failure:
    """An answer without a result."""

    kind: FailureKind
    message: str
