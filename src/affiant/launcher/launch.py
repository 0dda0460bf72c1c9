"""The life of one guest: everything is started in order, watched, and ended in the other order.

    measure images -> make keys and record -> TPM, AK, gateway -> RAM, QEMU -> monitor and relay

PCR 17 is launched by the gateway when the guest's firmware starts the TPM. When QEMU ends, all
ends; when the launcher is told to stop (SIGTERM, SIGINT, SIGHUP) or dies, all ends too.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import subprocess
import threading
import time
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from affiant.launcher.channel import LauncherChannel, Tpm, saved_cpus
from affiant.launcher.fact_ring import FactRing
from affiant.launcher.identity import IdentityKey
from affiant.launcher.images.image import Image, prepare_image
from affiant.launcher.images.image_files import MONITOR, RELAY
from affiant.launcher.log_bounds import LogBounds
from affiant.launcher.monitor_pair import MonitorPair
from affiant.launcher.process.children import Child, start_child
from affiant.launcher.process.hardening import harden
from affiant.launcher.process.stop_signals import StopRequested, StopSignals
from affiant.launcher.qemu.connection import QemuMonitor
from affiant.launcher.qemu.cpus_socket import CpusSocket
from affiant.launcher.qemu.page_copies import PageCopies
from affiant.launcher.record import launch_pcr17, make_launch_record
from affiant.launcher.settings import LauncherSettings
from affiant.launcher.status import StatusFile
from affiant.launcher.vtpm.attestation import TpmAttester
from affiant.launcher.vtpm.authority import manufacture, prepare_authority, read_endorsement_chain
from affiant.launcher.vtpm.gateway import Gateway
from affiant.launcher.vtpm.swtpm import SwtpmConnection, start_swtpm
from affiant.model.errors import MalformedError, SetupError, UnavailableError
from affiant.model.launch_record import MAX_RULES_ROOT, LaunchRecord
from affiant.wire.certificates import load_root
from affiant.wire.facts_key import load_public_key
from affiant.wire.launch_record import encode_launch_record

__all__ = ["run_launcher"]

_log = logging.getLogger(__name__)

LAUNCH_RECORD = "launch.record"
_QEMU_START_SECONDS = 30.0
_LOOK_SECONDS = 0.2
_LARGEST_KEY = 1 << 14


@dataclass(frozen=True, slots=True)
class _Attestation:
    """What stands behind the words of this launcher: fixed at its start."""

    identity: IdentityKey
    record: LaunchRecord
    root: x509.Certificate
    rules_root: bytes | None
    monitor_image: Image
    relay_image: Image
    facts_key: bytes | None


def run_launcher(settings: LauncherSettings) -> int:
    """Start the guest and stay until it ends; return 0 when it ended by itself or we were told to stop.

    Nothing is left behind, neither a process nor a socket nor the RAM file. Raises `SetupError` when
    the settings cannot be met, `UnavailableError` when something that was started fails.
    """
    harden()
    with StopSignals() as signals, ExitStack() as cleanup:
        try:
            _run(settings, signals, cleanup)
        except StopRequested:
            _log.info("told to stop")
    return 0


def _run(settings: LauncherSettings, signals: StopSignals, cleanup: ExitStack) -> None:
    status = _open_state(settings, cleanup)
    with signals.heeded():
        attestation = _prepare_attestation(settings) if settings.service_root else None
    if attestation:
        status.update(image=attestation.monitor_image.digest.hex())
        _show_launch_record(settings, attestation)
    if settings.tpm:
        authority = prepare_authority(settings.vtpm_authority)
        manufacture(authority, settings.tpm_state, name=settings.name, waiting=signals.heeded)
    swtpm, tpm = _start_tpm(settings, attestation, status, cleanup) if settings.tpm else (None, None)
    ram = _make_ram(settings, cleanup)
    copies = PageCopies(ram, memory_bytes=settings.memory_bytes, below_4g_bytes=settings.below_4g_bytes)
    cleanup.callback(copies.close)
    qemu = _start_qemu(settings, cleanup)
    qmp = QemuMonitor()
    cleanup.callback(qmp.close)
    cleanup.callback(qmp.quit)
    with signals.heeded():
        qmp.connect(
            settings.launcher_qmp, timeout=_QEMU_START_SECONDS, alive=lambda: qemu.exit_code() is None
        )
    cleanup.callback(CpusSocket(settings.cpus_socket, partial(saved_cpus, qmp, tpm)).close)
    pair = _start_monitor(settings, attestation, tpm, qmp, ram, copies, cleanup) if attestation else None
    status.update(ready=True, state=partial(_state, tpm))
    _log.info("%s runs", settings.name)
    _watch(qemu, swtpm, tpm, pair, status, LogBounds(settings.state_folder), signals)


def _watch(
    qemu: Child,
    swtpm: Child | None,
    tpm: Tpm | None,
    pair: MonitorPair | None,
    status: StatusFile,
    logs: LogBounds,
    signals: StopSignals,
) -> None:
    """Stay until QEMU ends. Raises `UnavailableError` when it, or the TPM, fails."""
    shown: dict[str, object] = {}
    while (code := qemu.exit_code()) is None:
        if reason := _tpm_failure(tpm, swtpm):
            raise UnavailableError(f"the guest's TPM is lost: {reason}")
        if pair:
            pair.tend()
        logs.tend()
        now = {
            "pids": {
                child.name: child.pid for child in (qemu, swtpm, *(pair.children if pair else ())) if child
            },
            "monitor_starts": pair.starts if pair else 0,
            "refused": tpm.gateway.refused if tpm else {},
        }
        if now != shown:
            status.update(**now)
            shown = dict(now)
        with contextlib.suppress(subprocess.TimeoutExpired), signals.heeded():
            qemu.process.wait(_LOOK_SECONDS)
    if code:
        raise UnavailableError(f"QEMU ended with code {code}: {qemu.last_words()}")
    _log.info("QEMU ended")


def _tpm_failure(tpm: Tpm | None, swtpm: Child | None) -> str:
    if tpm is None or swtpm is None:
        return ""
    return tpm.gateway.failure or ("" if swtpm.exit_code() is None else f"swtpm ended: {swtpm.last_words()}")


def _open_state(settings: LauncherSettings, cleanup: ExitStack) -> StatusFile:
    """Make the private folder, tell our process id, and begin the status file."""
    try:
        settings.private_folder.mkdir(mode=0o700, exist_ok=True)
        settings.private_folder.chmod(0o700)
        for path in (settings.tpm_socket, settings.launcher_qmp, settings.cpus_socket):
            path.unlink(missing_ok=True)
        for name in ("swtpm", "qemu", "relay", "monitor"):
            (settings.state_folder / f"{name}.log").unlink(missing_ok=True)
        pid_file = settings.state_folder / "launcher.pid"
        pid_file.write_text(f"{os.getpid()}\n")
        status = StatusFile(settings.state_folder / "status.json")
    except OSError as error:
        raise SetupError(f"the state folder {settings.state_folder} cannot be used: {error}") from error
    cleanup.callback(pid_file.unlink, missing_ok=True)
    cleanup.callback(status.update, ready=False, state="ended", pids={})
    return status


def _show_launch_record(settings: LauncherSettings, attestation: _Attestation) -> None:
    """Write the record where an operator finds it, to make a policy of it; nothing in it is a secret."""
    try:
        (settings.state_folder / LAUNCH_RECORD).write_bytes(encode_launch_record(attestation.record))
    except OSError as error:
        raise SetupError(f"the state folder {settings.state_folder} cannot be used: {error}") from error


def _prepare_attestation(settings: LauncherSettings) -> _Attestation:
    assert settings.service_root is not None  # noqa: S101  the caller asked
    try:
        root = load_root(settings.service_root.read_bytes())
    except (OSError, MalformedError) as error:
        raise SetupError(f"the service's root certificate cannot be read: {error}") from error
    rules_root = _read_rules_root(settings)
    facts_key = _read_facts_key(settings)
    started = time.monotonic()
    monitor_image = prepare_image(MONITOR, settings.image_cache)
    relay_image = prepare_image(RELAY, settings.image_cache)
    _log.info(
        "monitor image %s measured: %d files, %d MiB, %.1f s",
        *(monitor_image.digest.hex(), monitor_image.manifest.files, monitor_image.manifest.size >> 20),
        time.monotonic() - started,
    )
    identity = IdentityKey()
    record = make_launch_record(
        image_digest=monitor_image.digest,
        service_root=root,
        rules_root=rules_root,
        fleet=settings.fleet,
        identity=identity,
        debug=settings.debug,
    )
    return _Attestation(identity, record, root, rules_root, monitor_image, relay_image, facts_key)


def _read_rules_root(settings: LauncherSettings) -> bytes | None:
    """Return the root file of published rules as it is now: what the record names and the monitor gets."""
    if settings.rules_root is None:
        return None
    try:
        with settings.rules_root.open("rb") as file:
            content = file.read(MAX_RULES_ROOT + 1)
    except OSError as error:
        raise SetupError(f"the root file of the rules cannot be read: {error}") from error
    if not 0 < len(content) <= MAX_RULES_ROOT:
        raise SetupError(
            f"the root file of the rules has {len(content)} bytes or more, not 1 to {MAX_RULES_ROOT}"
        )
    return content


def _read_facts_key(settings: LauncherSettings) -> bytes | None:
    if settings.facts_key is None:
        return None
    try:
        with settings.facts_key.open("rb") as file:
            return load_public_key(file.read(_LARGEST_KEY))
    except (OSError, MalformedError) as error:
        raise SetupError(
            f"the operator's key for facts cannot be read: {error}",
            hint="`affiant assertions facts-key FILE` makes FILE and FILE.pub; give FILE.pub",
        ) from error


def _start_tpm(
    settings: LauncherSettings, attestation: _Attestation | None, status: StatusFile, cleanup: ExitStack
) -> tuple[Child, Tpm]:
    """Start the TPM, make the AK, and open the gateway to QEMU."""
    child, connection = start_swtpm(settings.tpm_state, log=settings.state_folder / "swtpm.log")
    cleanup.callback(_stop_swtpm, child, connection)
    attester = TpmAttester(ek_certificates=read_endorsement_chain(settings.tpm_state))
    attester.provision(connection)
    status.update(attestation=attester.missing)
    if attester.missing:
        _log.warning("%s", attester.missing)
    launch = launch_pcr17(encode_launch_record(attestation.record)) if attestation else None
    gateway = Gateway(
        connection,
        launch=launch,
        on_change=lambda: status.update(generation=lambda: gateway.generation, state=lambda: _state(tpm)),
    )
    tpm = Tpm(gateway, attester)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(str(settings.tpm_socket))
    listener.listen(1)
    server = threading.Thread(target=gateway.serve, args=(listener,), name="TPM gateway", daemon=True)
    server.start()
    cleanup.callback(_stop_gateway, gateway, listener, server, settings)
    return child, tpm


def _stop_gateway(
    gateway: Gateway, listener: socket.socket, server: threading.Thread, settings: LauncherSettings
) -> None:
    gateway.close()
    with contextlib.suppress(OSError):
        listener.shutdown(socket.SHUT_RDWR)
    listener.close()
    server.join(2.0)
    settings.tpm_socket.unlink(missing_ok=True)


def _stop_swtpm(child: Child, connection: SwtpmConnection) -> None:
    with contextlib.suppress(UnavailableError):
        connection.shutdown()
    connection.close()
    child.stop()


def _make_ram(settings: LauncherSettings, cleanup: ExitStack) -> int:
    """Make the file that is the guest's RAM; return a descriptor for reading it."""
    try:
        descriptor = os.open(settings.ram, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise SetupError(f"the guest's RAM file {settings.ram} cannot be made: {error}") from error
    cleanup.callback(settings.ram.unlink, missing_ok=True)
    try:
        os.ftruncate(descriptor, settings.memory_bytes)
        reading = os.open(settings.ram, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise UnavailableError(f"the guest's RAM file {settings.ram} cannot be made: {error}") from error
    finally:
        os.close(descriptor)
    cleanup.callback(os.close, reading)
    return reading


def _start_qemu(settings: LauncherSettings, cleanup: ExitStack) -> Child:
    qemu = start_child("qemu", settings.qemu_arguments(), log=settings.state_folder / "qemu.log")
    cleanup.callback(settings.launcher_qmp.unlink, missing_ok=True)
    cleanup.callback(qemu.stop)
    return qemu


def _start_monitor(
    settings: LauncherSettings,
    attestation: _Attestation,
    tpm: Tpm | None,
    qmp: QemuMonitor,
    ram: int,
    copies: PageCopies,
    cleanup: ExitStack,
) -> MonitorPair:
    pair = MonitorPair(
        settings,
        service_root=attestation.root.public_bytes(Encoding.DER),
        rules_root=attestation.rules_root,
        channel=LauncherChannel(
            record=attestation.record,
            identity=attestation.identity,
            qemu=qmp,
            tpm=tpm,
            facts=_open_ring(settings),
            copies=copies,
        ),
        facts_key=attestation.facts_key,
        monitor_image=attestation.monitor_image,
        relay_image=attestation.relay_image,
        ram=ram,
        copies=copies.descriptor,
    )
    cleanup.callback(pair.stop)
    pair.start()
    return pair


def _open_ring(settings: LauncherSettings) -> FactRing | None:
    if not settings.keep_facts:
        return None
    return FactRing(
        settings.facts_folder, most=settings.keep_facts, every_seconds=settings.keep_facts_seconds
    )


def _state(tpm: Tpm | None) -> str:
    if tpm is None:
        return "running"
    if not tpm.gateway.started:
        return "firmware"
    return "launched" if tpm.gateway.launched else "running"
