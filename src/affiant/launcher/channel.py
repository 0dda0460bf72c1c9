"""The launcher's side of the launcher channel: what the monitor may ask, answered one at a time.

The monitor parses hostile memory and may one day be taken over; here it can only ask for what
`affiant.wire.secure_world` has a request for. The launcher signs and quotes nothing but structures
that it built itself, from arguments whose size and form have been checked. A request that is not
one ends the channel, and with it the monitor.
"""

from __future__ import annotations

import logging
import socket
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

from affiant.launcher.fact_ring import FactRing
from affiant.launcher.identity import IdentityKey
from affiant.launcher.qemu.connection import PAUSE_SECONDS, QemuMonitor
from affiant.launcher.qemu.page_copies import PageCopies
from affiant.launcher.vtpm.attestation import TpmAttester
from affiant.launcher.vtpm.gateway import Gateway
from affiant.model.errors import AffiantError, MalformedError, SetupError, UnavailableError
from affiant.model.launch_record import LaunchRecord
from affiant.wire.cbor import Item
from affiant.wire.frames import FrameDecoder, encode_frame
from affiant.wire.launch_record import encode_launch_record
from affiant.wire.launcher_requests import (
    Activate,
    Copy,
    Cpus,
    DeviceState,
    EnclaveReportFor,
    Endorsement,
    FailureKind,
    ForgetCopy,
    Generation,
    Keep,
    MachineState,
    Pause,
    Quote,
    Record,
    Remember,
    Remembered,
    Request,
    Resume,
)
from affiant.wire.secure_world import read_request, write_answer, write_failure

__all__ = ["LauncherChannel", "Tpm", "saved_cpus"]

_log = logging.getLogger(__name__)

_RECEIVE_BYTES = 1 << 16
_SEND_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class Tpm:
    """The guest's TPM as the secure world uses it."""

    gateway: Gateway
    attester: TpmAttester


def saved_cpus(qemu: QemuMonitor, tpm: Tpm | None) -> MachineState:
    """Return what QEMU saves of its devices now, and nothing of the TPM; raises what either of them does."""
    with _state_withheld(tpm):
        return qemu.machine_state()


def _state_withheld(tpm: Tpm | None) -> AbstractContextManager[None]:
    return tpm.gateway.withholding_state() if tpm else nullcontext()


class LauncherChannel:
    """Answers one monitor, and the next one when it has ended: what it had remembered is for that one.

    `tpm` is None for a guest without one, `facts` where none are kept, `copies` where no pages are copied.
    """

    def __init__(
        self,
        *,
        record: LaunchRecord,
        identity: IdentityKey,
        qemu: QemuMonitor,
        tpm: Tpm | None,
        facts: FactRing | None = None,
        copies: PageCopies | None = None,
    ) -> None:
        self._record = record
        self._identity = identity
        self._qemu = qemu
        self._tpm = tpm
        self._facts = facts
        self._copies = copies
        self._remembered = (0, b"")  # of which boot, and what

    def serve(self, channel: socket.socket) -> None:
        """Answer until the monitor closes its end or asks what is no request. Owns `channel`."""
        frames = FrameDecoder()
        with channel:
            try:
                while data := channel.recv(_RECEIVE_BYTES):
                    for item in frames.feed(data):
                        channel.settimeout(_SEND_SECONDS)
                        channel.sendall(encode_frame(self._answer_item(item)))
                        channel.settimeout(None)
            except MalformedError as error:
                _log.warning("the monitor's channel is closed: %s", error)
            except OSError as error:
                _log.info("the monitor's channel ended: %s", error)

    def answer(self, request: Request[object]) -> object:
        """Return the result of one request.

        Raises `UnavailableError` when there is none now, and other `AffiantError`s or `ValueError`
        for what is refused.
        """
        match request:
            case Record():
                return encode_launch_record(self._record)
            case Generation():
                return self._generation
            case EnclaveReportFor(challenge, session_key, sealing_key, rules_version):
                return self._identity.sign_enclave_report(
                    self._record,
                    challenge=challenge,
                    session_key=session_key,
                    sealing_key=sealing_key,
                    rules_version=rules_version,
                )
            case Endorsement():
                return self._tpm.attester.endorsement() if self._tpm else None
            case Activate(credential_blob, encrypted_secret):
                tpm = self._with_tpm()
                return tpm.attester.activate(
                    tpm.gateway, credential_blob=credential_blob, encrypted_secret=encrypted_secret
                )
            case Quote(extra_data, pcrs):
                tpm = self._with_tpm()
                return tpm.attester.quote(tpm.gateway, extra_data=extra_data, pcrs=pcrs)
            case Cpus():
                return self._qemu.registers()
            case DeviceState():
                return saved_cpus(self._qemu, self._tpm)
            case Copy(runs, device_state):
                copies = self._with_copies()
                with _state_withheld(self._tpm) if device_state else nullcontext():
                    return self._qemu.copy(copies, runs, device_state=device_state)
            case ForgetCopy():
                self._with_copies().forget()
                return None
            case Pause():
                self._qemu.pause()
                return None
            case Resume():
                if not self._qemu.resume():
                    pause = round(1_000 * PAUSE_SECONDS)
                    raise UnavailableError(f"the guest was paused for {pause} ms and has run on since")
                return None
            case Keep(content):
                if self._facts is None:
                    raise SetupError("no facts of this guest are kept")
                self._facts.keep(content)
                return None
            case Remember(generation, content):
                # Not read here: it tells of a guest, and no parser of what a guest made is in the launcher.
                if generation == self._generation:
                    self._remembered = (generation, content)
                return None
            case Remembered():
                generation, content = self._remembered
                return content if generation == self._generation else b""
        raise ValueError(f"no answer to {type(request).__name__}")

    def _answer_item(self, item: Item) -> Item:
        request = read_request(item)
        try:
            return write_answer(request, self.answer(request))
        except (UnavailableError, OSError) as error:
            # The host failed, not the channel: ended, it would take the monitor along.
            return write_failure(FailureKind.UNAVAILABLE, str(error))
        except (AffiantError, ValueError) as error:
            return write_failure(FailureKind.REFUSED, str(error))

    @property
    def _generation(self) -> int:
        """Which boot of the guest this is; without a TPM nobody tells, and all are one."""
        return self._tpm.gateway.generation if self._tpm else 0

    def _with_copies(self) -> PageCopies:
        if self._copies is None:
            raise SetupError("no pages of this guest are copied")
        return self._copies

    def _with_tpm(self) -> Tpm:
        if self._tpm is None:
            raise UnavailableError("the guest has no TPM")
        return self._tpm
