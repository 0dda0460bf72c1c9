"""Starts a machine under the launcher: prepare, describe, launch, wait.

Whatever happens on the way, an interruption included, a start that does not succeed leaves no
process, socket or RAM file behind.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from affiant.folders import cache_folder, images_folder, references_folder, vtpm_authority_folder
from affiant.launcher.settings import LauncherSettings
from affiant.model.errors import MalformedError, SetupError, UnavailableError
from affiant.vm.acceleration import detect_acceleration
from affiant.vm.disk import boot_chain, make_boot_disk
from affiant.vm.firmware import find_firmware
from affiant.vm.initramfs import busybox, busybox_initramfs
from affiant.vm.interruption import hold_signals
from affiant.vm.kernels import GuestKernel, debian_kernel, kernel_from_file
from affiant.vm.machine import DirectBoot, FirmwareBoot, Machine, qemu_arguments
from affiant.vm.packages import PackageCache
from affiant.vm.references import ensure_reference
from affiant.vm.state import ProcessIdentity, VmState, lock_machine, machine_folder
from affiant.vm.stop import clear_leftovers, end_launcher
from affiant.wire.certificates import load_root
from affiant.wire.facts_key import load_public_key
from affiant.wire.rules_path import DEFAULT_FLEET

__all__ = ["VmRequest", "start_machine"]

_CONSOLE = "console=ttyS0"
_READY_SECONDS = 60.0  # until QEMU runs and the monitor is started; the first start makes its image
_LOG_LINES = 12
_LARGEST_KEY = 1 << 14

Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class VmRequest:
    """What a machine shall be. The defaults: Debian's own kernel, Secure Boot, a TPM."""

    name: str
    kernel: Path | None = None  # a .deb or a vmlinuz; None: Debian's kernel of `suite`
    suite: str | None = None  # None: this machine's release
    initrd: Path | None = None  # None: a small busybox system
    disk: Path | None = None
    memory_bytes: int = 1 << 30
    cpus: int = 2
    firmware: bool = True  # False: direct kernel boot, nothing measured
    secure_boot: bool = True
    tpm: bool = True
    append: str = ""
    service: str | None = None  # URL
    service_root: Path | None = None  # PEM
    rules_root: Path | None = None  # the root file of published rules; None: the packaged library only
    rules: str | None = None  # URL of their repository; None: the service's own
    fleet: str = DEFAULT_FLEET
    rules_interval_ms: int = 5_000
    debug: bool = False  # the monitor may be inspected, which costs it its security level
    keep_facts: int = 0  # how many fact records the launcher keeps; 0: none
    keep_facts_seconds: int = 600  # how often one is made
    facts_key: Path | None = None  # PEM: the public key that they are sealed to


def start_machine(request: VmRequest, *, progress: Progress = lambda step: None) -> VmState:
    """Start a machine and return its state once the launcher says that it runs.

    The guest itself is still in its firmware then. Raises SetupError when the request cannot be
    met or the machine already runs, UnavailableError when the launcher fails; then nothing is left.
    """
    _check(request)
    with lock_machine(request.name):
        folder = machine_folder(request.name)
        if (folder / "vm.json").exists():
            previous = VmState.load(request.name)
            if previous.running:
                raise SetupError(
                    f"{request.name!r} is running already", hint=f"affiant vm stop {request.name}"
                )
            clear_leftovers(previous)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            folder.chmod(0o700)  # consoles, disks and QEMU's monitor are their owner's alone
        except OSError as error:
            raise SetupError(f"cannot make {folder}: {error}", hint="set AFFIANT_HOME") from error
        state, arguments = _prepare(request, folder, progress)
        progress("starting the launcher")
        return _launch(state, arguments, request)


def _check(request: VmRequest) -> None:
    if not 1 <= request.cpus <= 255:
        raise SetupError(f"a machine has 1 to 255 processors, not {request.cpus}")
    if (request.service is None) != (request.service_root is None):
        raise SetupError(
            "a service needs both its address and its root certificate",
            hint="--service URL --service-root PEM; `affiant service root` prints the latter's path",
        )
    if request.rules_root is None and request.rules:
        raise SetupError("published rules need a root file to be verified by", hint="--rules-root FILE")
    if request.rules_root is not None and request.service is None:
        raise SetupError("rules are judged by a monitor, which needs a service", hint="--service URL")
    if request.keep_facts and request.service is None:
        raise SetupError(
            "facts are kept by a monitor, which needs a service", hint="--service URL --service-root PEM"
        )
    files = (request.kernel, request.initrd, request.disk, request.service_root, request.rules_root)
    for path in (*files, request.facts_key):
        if path is not None and not path.is_file():
            raise SetupError(f"{path} is not a file")
    if request.service is not None and request.service_root is not None:
        _check_service(request.service, request.service_root)
    if request.facts_key is not None:
        if not request.keep_facts:
            raise SetupError("a key for facts is of no use where none are kept", hint="--keep-facts N")
        _check_facts_key(request.facts_key)


def _check_service(address: str, root: Path) -> None:
    """Refuse what the launcher or the relay would refuse, before anything is made for it."""
    try:
        parts = urlsplit(address)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        usable = False
    if not usable:
        raise SetupError(
            f"{address!r} is no address of a service", hint="--service URL, as in http://127.0.0.1:8710"
        )
    try:
        with root.open("rb") as file:
            load_root(file.read(_LARGEST_KEY))
    except (OSError, MalformedError) as error:
        raise SetupError(
            f"{root} is not the root certificate of a service: {error}",
            hint="`affiant service root` prints where it is",
        ) from error


def _check_facts_key(path: Path) -> None:
    """Refuse a key that the launcher would refuse, before anything is made for it."""
    try:
        with path.open("rb") as file:
            load_public_key(file.read(_LARGEST_KEY))
    except (OSError, MalformedError) as error:
        raise SetupError(
            f"{path} is no key to seal facts to: {error}",
            hint="`affiant assertions facts-key FILE` makes FILE and FILE.pub; give FILE.pub",
        ) from error


def _prepare(request: VmRequest, folder: Path, progress: Progress) -> tuple[VmState, list[str]]:
    """Make every file that the guest needs; return its state and QEMU's arguments."""
    cache = PackageCache(cache_folder())
    progress("fetching the kernel")
    kernel = (
        kernel_from_file(request.kernel, cache)
        if request.kernel
        else debian_kernel(cache, suite=request.suite)
    )
    progress("making the reference image")
    references = references_folder()
    reference = ensure_reference(kernel, references, progress=progress)
    progress("making the boot disk")
    boot = _make_boot(request, kernel, folder, cache)
    acceleration = detect_acceleration()
    from affiant.kernel.machine.ram_layout import q35_below_4g_bytes

    machine = Machine(
        name=request.name,
        ram=_ram_path(folder),
        memory_bytes=request.memory_bytes,
        cpus=request.cpus,
        acceleration=acceleration,
        boot=boot,
        operator_qmp=folder / "qmp.sock",
        console_socket=folder / "console.sock",
        console_log=folder / "console.log",
        tpm=request.tpm,
        disk=request.disk.absolute() if request.disk else None,
        disk_format="qcow2" if request.disk and request.disk.suffix == ".qcow2" else "raw",
    )
    state = VmState(
        name=request.name,
        folder=folder,
        ram=machine.ram,
        memory_bytes=machine.memory_bytes,
        below_4g_bytes=q35_below_4g_bytes(machine.memory_bytes),
        cpus=machine.cpus,
        qmp=machine.operator_qmp,
        console_socket=machine.console_socket,
        console_log=machine.console_log,
        passport_socket=folder / "relay" / "passport.sock",
        settings=folder / "settings.json",
        status=folder / "status.json",
        launcher_log=folder / "launcher.log",
        references=references,
        reference=reference,
        kernel=kernel.vmlinuz,
        kernel_release=kernel.release,
        kernel_packages=kernel.packages,
        tpm=request.tpm,
        secure_boot=request.firmware and request.secure_boot,
        firmware=request.firmware,
        acceleration=acceleration.value,
        service=request.service,
        service_root=request.service_root.absolute() if request.service_root else None,
    )
    return state, qemu_arguments(machine)


def _make_boot(
    request: VmRequest, kernel: GuestKernel, folder: Path, cache: PackageCache
) -> FirmwareBoot | DirectBoot:
    initrd = folder / "initrd.img"
    if request.initrd:
        initrd = request.initrd.absolute()
    else:
        initrd.write_bytes(busybox_initramfs(kernel, busybox=busybox(cache)))
    command_line = f"{_CONSOLE} {request.append}".strip()
    if not request.firmware:
        return DirectBoot(kernel.vmlinuz, initrd, command_line)
    firmware = find_firmware(secure_boot=request.secure_boot)
    # Kept from start to start, as a machine keeps its flash; a pair of firmware has its own.
    variables = folder / ("variables-secure.fd" if request.secure_boot else "variables.fd")
    firmware.make_variables(variables)
    disk = folder / "boot.img"
    make_boot_disk(
        disk, chain=boot_chain(cache), kernel=kernel.vmlinuz, initrd=initrd, command_line=command_line
    )
    return FirmwareBoot(firmware.code, variables, disk, request.secure_boot)


def _ram_path(folder: Path) -> Path:
    """Return where the guest's memory lies: one name for each state folder, whatever AFFIANT_HOME is."""
    tag = hashlib.sha256(str(folder).encode()).hexdigest()[:12]
    return Path("/dev/shm") / f"affiant-{folder.name}-{tag}.ram"  # noqa: S108  memory, and made exclusively


def _launch(state: VmState, arguments: list[str], request: VmRequest) -> VmState:
    state.settings.write_text(_settings(state, arguments, request).to_json(), encoding="utf-8")
    state.save()
    try:
        with hold_signals():
            process = _start_launcher(state)
            state = state.with_launcher(ProcessIdentity.of(process.pid))
            state.save()
        _wait_until_ready(state, process)
    except BaseException:
        with hold_signals():
            if state.launcher:
                end_launcher(state.launcher)
            clear_leftovers(state)
            state.with_launcher(None).save()
        raise
    return state


def _start_launcher(state: VmState) -> subprocess.Popen[bytes]:
    # Logs are appended to, so that cutting one short works; each start begins them anew.
    for log_file in (state.console_log, state.launcher_log):
        log_file.unlink(missing_ok=True)
    with state.launcher_log.open("ab") as log:
        return subprocess.Popen(
            _launcher_command(state.settings),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd="/",
            start_new_session=True,  # it outlives the command and hears no Ctrl-C of its terminal
        )


def _settings(state: VmState, arguments: list[str], request: VmRequest) -> LauncherSettings:
    return LauncherSettings(
        name=state.name,
        state_folder=state.folder,
        qemu=tuple(arguments),
        ram=state.ram,
        memory_bytes=state.memory_bytes,
        below_4g_bytes=state.below_4g_bytes,
        vtpm_authority=vtpm_authority_folder(),
        image_cache=images_folder(),
        references=state.references,
        passport_socket=state.passport_socket,
        tpm=state.tpm,
        service=state.service,
        service_root=state.service_root,
        debug=request.debug,
        rules_root=request.rules_root.absolute() if request.rules_root else None,
        rules=request.rules,
        fleet=request.fleet,
        rules_interval_ms=request.rules_interval_ms,
        keep_facts=request.keep_facts,
        keep_facts_seconds=request.keep_facts_seconds,
        facts_key=request.facts_key.absolute() if request.facts_key else None,
    )


def _launcher_command(settings: Path) -> list[str]:
    # Isolated: neither the current folder nor PYTHON* variables decide what the launcher runs.
    return [sys.executable, "-I", "-m", "affiant.launcher", str(settings)]


def _wait_until_ready(state: VmState, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + _READY_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise _failed(state)
        if state.read_status().get("ready") is True:
            return
        time.sleep(0.05)
    raise UnavailableError(f"the launcher was not ready within {_READY_SECONDS:.0f} s{_last_words(state)}")


def _failed(state: VmState) -> UnavailableError:
    return UnavailableError(
        f"the launcher of {state.name!r} ended{_last_words(state)}", hint=f"all of it: {state.launcher_log}"
    )


def _last_words(state: VmState) -> str:
    try:
        lines = state.launcher_log.read_text(encoding="utf-8", errors="replace").splitlines()[-_LOG_LINES:]
    except OSError:
        lines = []
    return "".join(f"\n  {line}" for line in lines)
