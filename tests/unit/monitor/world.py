"""The monitor's own code between a simulated machine and the service's own code: no sockets, one clock."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace

from affiant.assertions.engine import Engine
from affiant.model.errors import AffiantError, EvidenceError, UnavailableError
from affiant.model.evidence import QuoteEvidence
from affiant.monitor.courier_client import CourierClosedError, ServiceRefusedError
from affiant.monitor.session import BootEvidence
from affiant.monitor.watch import Look
from affiant.wire.courier import Ask
from affiant.wire.enclave_report import sign_enclave_report
from affiant.wire.launch_record import encode_launch_record
from affiant.wire.launcher_requests import (
    Activate,
    EnclaveReportFor,
    Endorsement,
    EndorsementOfTpm,
    Generation,
    Keep,
    Quote,
    Record,
    Remember,
    Remembered,
    Request,
)
from tests.simulator import REFERENCE, Machine, SimulatedService


@dataclass
class SimulatedLauncher:
    """Answers like a launcher, from a simulated machine."""

    machine: Machine
    generation: int = 1
    broken_tpm: bool = False
    kept: list[bytes] = field(default_factory=list)
    full: bool = False
    remembered: tuple[int, bytes] = (0, b"")

    def ask(self, request: Request[object]) -> object:
        tpm = None if self.broken_tpm else self.machine.tpm
        match request:
            case Record():
                return encode_launch_record(self.machine.record)
            case Generation():
                return self.generation
            case Endorsement():
                if tpm is None:
                    return None
                return EndorsementOfTpm(tuple(tpm.ek_certificates), tpm.ek_public, tpm.ak_public)
            case EnclaveReportFor(session_key=session_key, sealing_key=sealing_key):
                report = self.machine.enclave_report(_challenge(request), session_key, sealing_key)
                report = replace(report, rules_version=request.rules_version)
                return sign_enclave_report(report, key=self.machine.identity_key)
            case Keep(content):
                if self.full:
                    raise UnavailableError("the disk is full")
                self.kept.append(content)
                return None
            case Remember(generation, content):
                if self.full:
                    raise UnavailableError("the memory is full")
                if generation == self.generation:
                    self.remembered = (generation, content)
                return None
            case Remembered():
                generation, content = self.remembered
                return content if generation == self.generation else b""
        if tpm is None:
            raise UnavailableError("the guest has no TPM")
        match request:
            case Activate(credential_blob, encrypted_secret):
                return tpm.activate(credential_blob, encrypted_secret)
            case Quote(extra_data, pcrs):
                return tpm.quote(extra_data, pcrs)
        raise AssertionError(request)

    def paused(self) -> AbstractContextManager[None]:
        return nullcontext()


@dataclass(frozen=True)
class _Digested:
    digest: bytes


def _challenge(request: EnclaveReportFor) -> _Digested:
    return _Digested(request.challenge)


@dataclass
class SimulatedCourier:
    """Carries posts to the service's own code; `tamper` may change what the service answers."""

    service: SimulatedService
    questions: deque[Ask | Callable[[], None]] = field(default_factory=deque)
    answers: list[tuple[Ask, bytes | str]] = field(default_factory=list)
    posted: list[str] = field(default_factory=list)
    tamper: Callable[[str, bytes], bytes] = lambda _, answer: answer
    unreachable: bool = False

    def post(self, path: str, body: bytes, *, timeout_s: float = 30.0) -> bytes:
        self.posted.append(path)
        if self.unreachable:
            raise ServiceRefusedError(path, 0, b"")
        api = self.service.api
        doors = {
            "/v1/challenge": api.challenge,
            "/v1/enrolment": api.enrolment,
            "/v1/enrolment/proof": api.enrolment_proof,
            "/v1/session": api.session,
            "/v1/heartbeat": api.heartbeat,
        }
        try:
            answer = doors[path](body, now=self.service.now)
        except EvidenceError as error:
            raise ServiceRefusedError(path, 403, str(error).encode()) from error
        return self.tamper(path, answer)

    def next_question(self, *, timeout_s: float) -> Ask | None:
        """Give the next question; things to do in between are done; the channel closes after the last."""
        while self.questions:
            item = self.questions.popleft()
            if isinstance(item, Ask):
                return item
            item()
            return None
        raise CourierClosedError("the test is over")

    def show(self, question: Ask, passport: bytes) -> None:
        self.answers.append((question, passport))

    def decline(self, question: Ask, reason: str) -> None:
        self.answers.append((question, reason))


@dataclass
class SimulatedBoot:
    """Reads the boot evidence of a simulated machine."""

    machine: Machine

    def boot_evidence(self, quote: QuoteEvidence | None, *, binding: bytes) -> BootEvidence:
        log = self.machine.log
        return BootEvidence(None if log is None or quote is None else log.encode(), self.machine.reference)


@dataclass
class RecordedKernel:
    """A kernel that looks as its facts say, judged by the real engine, in the place of a `KernelWatch`."""

    engine: Engine
    facts: Mapping[str, object]
    reference: bytes = REFERENCE
    looks: int = 0

    def look(self, *, everything: bool = False) -> Look:
        self.looks += 1
        return Look(self.engine.judge(self.facts), self.reference, self.facts)

    def forget_boot(self, *, counted: bool) -> None:
        """Nothing of it is remembered."""

    def follow_boot(self) -> bool:
        """It has booted."""
        return False


__all__ = ["AffiantError", "RecordedKernel", "SimulatedBoot", "SimulatedCourier", "SimulatedLauncher"]
