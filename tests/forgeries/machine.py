"""A machine that may lie: what really happened to it, and what it shows of that."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from affiant.tpm.algorithms import HashAlgorithm
from affiant.tpm.event_log import Event
from affiant.tpm.event_types import EventType
from tests.boot_log import BootLog
from tests.forgeries.case import Case, Evidence, base_log, splices
from tests.forgeries.signer import NONCE, Signer

__all__ = ["PCRS", "Machine"]

SHA256 = HashAlgorithm.SHA256
PCRS = (*range(10), 14)


@dataclass
class Machine:
    """`happened` was measured into the TPM, `told` is the log that is shown; they start out equal.

    A test changes one of them, or what the quote says. `values` are shown beside the quote instead of the
    true ones where they are set.
    """

    happened: BootLog = field(default_factory=BootLog.recorded)
    told: BootLog = field(default_factory=BootLog.recorded)
    base: str = "debian12-secure-boot"
    signer: Signer = field(default_factory=Signer)
    values: dict[int, bytes] = field(default_factory=dict)
    tail: bytes = b""
    octets: bytes | None = None

    @classmethod
    def truthful(cls, name: str = "debian12-secure-boot") -> Machine:
        """A machine that shows what happened."""
        return cls(BootLog.recorded(name), BootLog.recorded(name), name)

    def both(self) -> tuple[BootLog, BootLog]:
        """Both logs, for a change that happened and is told."""
        return self.happened, self.told

    def pcrs(self, bank: HashAlgorithm = SHA256) -> dict[int, bytes]:
        """What the TPM holds."""
        values = {pcr: bytes(bank.digest_size) for pcr in range(24)}
        values.update(dict.fromkeys(range(17, 23), b"\xff" * bank.digest_size))
        for event in self.happened.events:
            if event.type != EventType.NO_ACTION:
                values[event.pcr] = bank.digest(values[event.pcr] + event.digests[int(bank)])
        return values

    def attest(self, *, bank: HashAlgorithm = SHA256, **changes: Any) -> bytes:
        """What the TPM signs."""
        return self.signer.attest(self.pcrs(bank), selected=PCRS, bank=bank, **changes)

    def case(
        self,
        name: str,
        lie: str,
        verdict: dict[str, Any],
        *,
        attest: bytes | None = None,
        signature: bytes | None = None,
        public: bytes | None = None,
        bank: HashAlgorithm = SHA256,
        shown: HashAlgorithm | None = None,
        **more: Any,
    ) -> Case:
        """The entry of the corpus; `bank` is what the verifier wants, `shown` what it is given."""
        attest = self.attest(bank=bank) if attest is None else attest
        true = self.pcrs(shown or bank)
        values = {pcr: true[pcr] for pcr in PCRS} | self.values
        log = self.octets if self.octets is not None else self.told.encode() + self.tail
        evidence = Evidence(
            attestation_key=(self.signer.public if public is None else public).hex(),
            attest=attest.hex(),
            signature=(self.signer.sign(attest) if signature is None else signature).hex(),
            pcrs={str(pcr): value.hex() for pcr, value in sorted(values.items())},
            base_log=self.base,
            log_splices=splices(base_log(self.base), log),
        )
        return Case(name, lie, evidence, verdict, NONCE.hex(), bank.title, **more)


def retyped(event: Event, kind: int) -> Event:
    """The same event under another type."""
    return Event(event.index, event.pcr, kind, event.digests, event.data)
