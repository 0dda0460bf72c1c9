"""The vTPM gateway: stands between QEMU's `tpm-emulator` backend and swtpm.

QEMU believes that it talks to swtpm. It talks to the gateway, which keeps the descriptor of
CMD_SET_DATAFD as the guest's TPM channel, passes plain TPM commands on one by one, and sends
commands of the secure world between them. The rules:

- The guest acts at locality 0, whatever QEMU asks: locality 0 is granted without a word to swtpm,
  every other one is refused with TPM_BAD_LOCALITY, so that QEMU fails the guest's command.
- Hash sequences, state blobs, stored volatile state and unknown requests of QEMU are refused. A
  guest with this TPM can be neither migrated nor restored from a snapshot, and QEMU says so.
- While the launcher itself has QEMU write its device state, state blobs are answered with empty ones.
  Real ones hold the TPM's seeds and keys: they never leave swtpm.
- After each successful TPM2_Startup that follows a power cycle (a guest reset makes QEMU send STOP
  and INIT again) the launch record is hashed at locality 4, before the guest gets the response: it
  never sees a started TPM whose PCR 17 is not launched. Each launch is a new `generation`.
- Once the firmware has measured that boot services ended, the guest cannot extend the PCRs of the boot
  any more (`affiant.launcher.vtpm.boot_pcrs`), but with systemd's separators: it is told
  TPM_RC_LOCALITY, until the next power cycle.
- A request to cancel is acknowledged and without effect (TPM 2.0 leaves it to the TPM): it might hit
  a command of the secure world.
- swtpm's own end is the launcher's business: CMD_SHUTDOWN of QEMU powers the TPM off, no more.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import stat
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from affiant.launcher.vtpm import control_protocol as control
from affiant.launcher.vtpm.boot_pcrs import ends_boot, extends_boot_pcr, measures_os_separator
from affiant.launcher.vtpm.control_protocol import ControlCommand, ControlRequest, ControlResult
from affiant.launcher.vtpm.guest_commands import (
    RC_FAILURE,
    RC_LOCALITY,
    CommandError,
    error_response,
    receive_command,
)
from affiant.launcher.vtpm.swtpm import MAX_TPM_MESSAGE, SwtpmConnection
from affiant.launcher.vtpm.turns import TpmTurns
from affiant.model.errors import MalformedError, UnavailableError

__all__ = ["Gateway"]

_log = logging.getLogger(__name__)

_CC_STARTUP = 0x144  # TPM 2.0 Part 2, section 6.5.2
_GUEST_COMMAND_SECONDS = 120.0  # generating a large RSA key takes swtpm seconds; silence means it died
_SECURE_COMMAND_SECONDS = 30.0
_REST_OF_REQUEST_SECONDS = 5.0
_SEND_SECONDS = 30.0
_GOODBYE_SECONDS = 1.0
_IDLE_SECONDS = 0.05  # so long a short command of the guest is waited for
_STATE_SECONDS = 5.0  # so long whoever asked QEMU for its state before is waited for
_MAX_DESCRIPTORS = 4
_SMALLEST_BUFFER = 2808  # what libtpms needs for its largest response

Execute = Callable[[bytes], bytes]


class Gateway:
    """Serves one QEMU; every public method may be called from any thread.

    `launch` runs the D-RTM launch with the TPM held for it: it is given a function that executes a
    TPM command, and `hash_sequence`. It raises `UnavailableError` when PCR 17 is not what it must be.
    `on_change` is called, without arguments, after each launch, power-off and failure.
    """

    def __init__(
        self,
        tpm: SwtpmConnection,
        *,
        launch: Callable[[Execute, Callable[[bytes], None]], None] | None,
        on_change: Callable[[], None] = lambda: None,
    ) -> None:
        self._tpm = tpm
        self._launch = launch
        self._on_change = on_change
        self._turns = TpmTurns()
        self._powered = False
        self._started = False
        self._launched = False
        self._boot_over = False
        self._generation = 0
        self._failure = ""
        self._refused: Counter[str] = Counter()
        self._withholding = False
        self._state_turn = threading.Lock()
        self._closing = False
        self._connection: socket.socket | None = None
        self._guest_channel: socket.socket | None = None
        self._guest_thread: threading.Thread | None = None

    @property
    def generation(self) -> int:
        """How many D-RTM launches there were."""
        return self._generation

    @property
    def launched(self) -> bool:
        """Whether PCR 17 holds the launch record now."""
        return self._launched

    @property
    def started(self) -> bool:
        """Whether the guest's firmware has started the TPM since it was powered on."""
        return self._started

    @property
    def failure(self) -> str:
        """Why the TPM is lost for good (swtpm died), or empty."""
        return self._failure

    @property
    def refused(self) -> dict[str, int]:
        """How often what was refused, for people."""
        return dict(self._refused)

    @contextmanager
    def secure_world(self, *, timeout: float = 10.0) -> Iterator[Execute]:
        """Hold the TPM between two commands of the guest, for as many commands as the block sends.

        Raises `UnavailableError` when the TPM is off, not started, lost, or busy for `timeout` seconds.
        """
        with self._turns.secure_world(timeout=timeout):
            if self._failure:
                raise UnavailableError(f"the TPM is lost: {self._failure}")
            if not self._powered or not self._started:
                raise UnavailableError("the guest's firmware has not started its TPM yet")
            yield self._execute_for_secure_world

    @contextmanager
    def withholding_state(self) -> Iterator[None]:
        """Answer QEMU's questions for the TPM's state with nothing, instead of refusing them, meanwhile.

        One caller waits for the other. Raises `UnavailableError` where that takes too long, and while a
        command of the guest runs at the TPM: QEMU would wait for its end with the guest stopped. One that
        comes later is waited for after all, but only a guest that floods its TPM meets that moment.
        """
        if not self._state_turn.acquire(timeout=_STATE_SECONDS):
            raise UnavailableError("QEMU is being asked for its state already")
        try:
            with self._turns.secure_world(timeout=_IDLE_SECONDS):
                self._withholding = True
            yield
        finally:
            self._withholding = False
            self._state_turn.release()

    def serve(self, listener: socket.socket) -> None:
        """Accept QEMU on `listener`, one connection at a time, until `close`. Blocks."""
        while not self._closing:
            try:
                connection, _ = listener.accept()
            except OSError:
                if not self._closing:
                    self._fail("its socket for QEMU failed")
                return
            self._connection = connection
            with connection:
                try:
                    self._serve_control(connection)
                except (OSError, MalformedError, UnavailableError) as error:
                    if not self._closing:
                        _log.warning("the TPM control channel of QEMU ended: %s", error)
            self._end_guest_channel()
            self._power_off()

    def close(self) -> None:
        """End all channels; `serve` returns once its listener is closed too."""
        self._closing = True
        if self._connection is not None:
            with contextlib.suppress(OSError):
                self._connection.shutdown(socket.SHUT_RDWR)
        self._end_guest_channel()

    # -- QEMU's control channel

    def _serve_control(self, connection: socket.socket) -> None:
        data = b""
        descriptors: list[int] = []
        try:
            while True:
                connection.settimeout(_REST_OF_REQUEST_SECONDS if data else None)
                part, received, flags, _ = socket.recv_fds(
                    connection, control.MAX_REQUEST + 1, _MAX_DESCRIPTORS
                )
                descriptors += received
                if flags & socket.MSG_CTRUNC or len(descriptors) > _MAX_DESCRIPTORS:
                    raise MalformedError("TPM control request with too many descriptors")
                if not part:
                    return
                data += part
                if (request := control.read_request(data)) is None:
                    continue
                data = b""
                answer = self._answer(request, descriptors)
                _close_all(descriptors)
                connection.settimeout(_SEND_SECONDS)
                connection.sendall(answer)
        finally:
            _close_all(descriptors)

    def _answer(self, request: ControlRequest, descriptors: list[int]) -> bytes:
        match request.command:
            case ControlCommand.GET_CAPABILITY:
                return control.capability_answer(control.OFFERED_CAPABILITIES)
            case ControlCommand.SET_DATAFD:
                return control.answer(self._take_guest_channel(descriptors))
            case ControlCommand.INIT:
                return control.answer(self._power_cycle())
            case ControlCommand.STOP | ControlCommand.SHUTDOWN:
                return control.answer(self._power_off())
            case ControlCommand.SET_LOCALITY if request.locality == 0:
                return control.answer(ControlResult.SUCCESS)
            case ControlCommand.SET_LOCALITY | ControlCommand.RESET_TPMESTABLISHED:
                # The bit is reset from locality 3 or 4 only (PC Client PTP), where the guest never is.
                self._refuse(f"{request.command.name} at locality {min(request.locality, 5)}")
                return control.answer(ControlResult.BAD_LOCALITY)
            case ControlCommand.CANCEL_TPM_CMD:
                return control.answer(ControlResult.SUCCESS)
            case ControlCommand.GET_TPMESTABLISHED:
                return self._established()
            case ControlCommand.SET_BUFFERSIZE:
                return self._set_buffer_size(request.number)
            case ControlCommand.GET_STATEBLOB if self._withholding:
                return control.state_blob_answer(ControlResult.SUCCESS)
            case ControlCommand.GET_STATEBLOB:
                self._refuse("reading the TPM's state (migration, snapshot)")
                return control.state_blob_answer(ControlResult.FAIL)
            case refused:
                self._refuse(refused.name)
                return control.answer(ControlResult.BAD_ORDINAL)

    def _power_cycle(self) -> int:
        def cycle() -> None:
            self._tpm.stop()
            self._tpm.initialize()
            self._powered = True

        return self._at_tpm(cycle)

    def _power_off(self) -> int:
        return self._at_tpm(self._tpm.stop)

    def _at_tpm(self, action: Callable[[], None]) -> int:
        """Run what changes the TPM's power; PCR 17 holds nothing of ours any more."""
        try:
            with self._turns.guest():
                self._powered = self._started = self._launched = self._boot_over = False
                action()
        except UnavailableError as error:
            self._fail(str(error))
            return ControlResult.FAIL
        self._on_change()
        return ControlResult.SUCCESS

    def _established(self) -> bytes:
        try:
            with self._turns.guest():
                bit = self._powered and self._tpm.established()
        except UnavailableError as error:
            self._fail(str(error))
            return control.established_answer(ControlResult.FAIL, established=False)
        return control.established_answer(ControlResult.SUCCESS, established=bit)

    def _set_buffer_size(self, wanted: int) -> bytes:
        result, sizes = ControlResult.FAIL, (MAX_TPM_MESSAGE, _SMALLEST_BUFFER, MAX_TPM_MESSAGE)
        try:
            with self._turns.guest():
                if not self._powered:
                    sizes = self._tpm.set_buffer_size(min(wanted, MAX_TPM_MESSAGE))
                    result = ControlResult.SUCCESS
        except UnavailableError as error:
            self._fail(str(error))
        size, smallest, largest = sizes
        return control.buffer_size_answer(result, size=size, smallest=smallest, largest=largest)

    # -- the guest's TPM channel

    def _take_guest_channel(self, descriptors: list[int]) -> int:
        if len(descriptors) != 1:
            self._refuse(f"{len(descriptors)} descriptors for the guest's channel")
            return ControlResult.BAD_PARAMETER
        channel = _stream_socket(descriptors[0])
        if channel is None:
            self._refuse("a descriptor that is no stream socket for the guest's channel")
            return ControlResult.BAD_PARAMETER
        self._end_guest_channel()
        self._guest_channel = channel
        self._guest_thread = threading.Thread(
            target=self._serve_guest, args=(channel,), name="guest TPM channel", daemon=True
        )
        self._guest_thread.start()
        return ControlResult.SUCCESS

    def _end_guest_channel(self) -> None:
        channel, thread = self._guest_channel, self._guest_thread
        self._guest_channel = self._guest_thread = None
        if channel is not None:
            with contextlib.suppress(OSError):
                channel.shutdown(socket.SHUT_RDWR)
        if thread is not None:
            thread.join(
                _GOODBYE_SECONDS
            )  # it may wait for swtpm; alone with a closed channel it does no harm

    def _serve_guest(self, channel: socket.socket) -> None:
        with channel:
            while not self._closing:
                try:
                    command = receive_command(channel)
                    if command is None:
                        return
                    response = self._execute_for_guest(command)
                except CommandError as error:
                    self._refuse(str(error), key=f"guest command, code {error.code:#x}")
                    response = error_response(error.code)
                except OSError as error:
                    _log.warning("the guest's TPM channel ended: %s", error)
                    return
                try:
                    channel.settimeout(_SEND_SECONDS)
                    channel.sendall(response)
                except OSError:
                    return

    def _execute_for_guest(self, command: bytes) -> bytes:
        try:
            with self._turns.guest():
                pcr = extends_boot_pcr(command) if self._boot_over else None
                if pcr is not None and not measures_os_separator(command):
                    self._refuse(f"extending PCR {pcr} after the boot")
                    return error_response(RC_LOCALITY)
                response = self._tpm.execute(command, timeout=_GUEST_COMMAND_SECONDS)
                if ends_boot(command) and response[6:10] == bytes(4):
                    self._boot_over = True
                if command[6:10] == _CC_STARTUP.to_bytes(4, "big") and response[6:10] == bytes(4):
                    self._drtm_launch()
        except UnavailableError as error:
            self._fail(str(error))
            return error_response(RC_FAILURE)
        return response

    def _drtm_launch(self) -> None:
        """Launch PCR 17, right after TPM2_Startup. A failure leaves the guest without a launch."""
        if self._started:
            return
        self._started = True
        if self._launch is None:
            self._on_change()
            return
        self._launch(self._execute_for_secure_world, self._tpm.hash_sequence)
        self._launched = True
        self._generation += 1
        _log.info("D-RTM launch %d: PCR 17 holds the launch record", self._generation)
        self._on_change()

    def _execute_for_secure_world(self, command: bytes) -> bytes:
        try:
            return self._tpm.execute(command, timeout=_SECURE_COMMAND_SECONDS)
        except UnavailableError as error:
            self._fail(str(error))
            raise

    def _refuse(self, what: str, *, key: str = "") -> None:
        # A guest can provoke this as often as it likes: the log gets the first of each kind.
        self._refused[key or what] += 1
        if self._refused[key or what] == 1:
            _log.warning("refused: %s", what)

    def _fail(self, reason: str) -> None:
        if not self._failure and not self._closing:
            self._failure = reason
            self._launched = False
            _log.error("the TPM is lost: %s", reason)
            self._on_change()


def _stream_socket(descriptor: int) -> socket.socket | None:
    """Return a socket over a duplicate of `descriptor`, or None when it is no Unix stream socket."""
    if not stat.S_ISSOCK(os.fstat(descriptor).st_mode):
        return None
    channel = socket.socket(fileno=os.dup(descriptor))
    if channel.family == socket.AF_UNIX and channel.type == socket.SOCK_STREAM:
        return channel
    channel.close()
    return None


def _close_all(descriptors: list[int]) -> None:
    while descriptors:
        os.close(descriptors.pop())
