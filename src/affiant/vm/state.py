"""What is known of one virtual machine on this host: its folder, saved as `vm.json`.

    $AFFIANT_HOME/vms/NAME/
      vm.json         this state
      settings.json   what the launcher was told; launcher.log, launcher.pid, status.json: what it tells
      launcher/       its own sockets, and one for the owner: cpus.sock, what QEMU saves of the vCPUs
      launch.record   what the launcher put into PCR 17 at its last start (not without a service)
      boot.img, initrd.img, variables.fd      what the guest boots from
      console.sock, console.log, qmp.sock     the guest's serial console, QEMU's monitor for operators
      relay/passport.sock                     where relying parties on this host ask for passports
      tpm/            the state of the guest's TPM
      facts/          fact records, where some are kept
    $AFFIANT_HOME/vms/.locks/NAME   held while a machine is started, stopped or removed

Nothing here is a secret and nothing here is trusted: it says where things are. A machine counts as
running when its launcher process is the very one that was started, on this boot of the host.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from affiant.folders import home_folder
from affiant.model.errors import SetupError

__all__ = ["ProcessIdentity", "VmState", "check_name", "list_machines", "lock_machine", "machine_folder"]

_NAME = re.compile(r"[a-z0-9][a-z0-9_.-]{0,31}")
_STATE_LIMIT = 64 << 10  # bytes of vm.json
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


@dataclass(frozen=True, slots=True)
class ProcessIdentity:
    """A process that cannot be confused with a later one of the same number."""

    pid: int
    start_ticks: int  # field 22 of /proc/PID/stat, proc(5)
    boot_id: str  # of the host

    @classmethod
    def of(cls, pid: int) -> ProcessIdentity | None:
        """Return the identity of a living process, or None (a zombie counts as gone)."""
        try:
            stat = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace")
            boot_id = _BOOT_ID.read_text(encoding="ascii").strip()
        except (FileNotFoundError, ProcessLookupError):
            return None
        # The second field is the program's name, which may hold spaces and parentheses.
        after_name = stat.rpartition(")")[2].split()
        return None if after_name[0] in "ZX" else cls(pid, int(after_name[19]), boot_id)

    def alive(self) -> bool:
        """Tell whether that very process still runs."""
        return ProcessIdentity.of(self.pid) == self


@dataclass(frozen=True, slots=True)
class VmState:
    """One machine's paths and sizes, as of its last start. All paths are absolute."""

    name: str
    folder: Path
    ram: Path  # the guest's memory, shared; exists while it runs
    memory_bytes: int
    below_4g_bytes: int  # so much of the RAM file lies from guest-physical 0, the rest from 4 GiB
    cpus: int
    qmp: Path  # QEMU's monitor, for operators (the launcher has its own)
    console_socket: Path
    console_log: Path
    passport_socket: Path
    settings: Path
    status: Path
    launcher_log: Path
    references: Path  # folder of reference images that the monitor may use
    reference: Path | None  # the one of the kernel that the machine was started with
    kernel: Path
    kernel_release: str
    kernel_packages: tuple[Path, ...]
    tpm: bool
    secure_boot: bool
    firmware: bool  # False: direct kernel boot, nothing of the boot is measured
    acceleration: str
    service: str | None = None
    service_root: Path | None = None
    launcher: ProcessIdentity | None = None

    @property
    def facts(self) -> Path:
        """Folder of kept fact records; there is none where none were kept."""
        return self.folder / "facts"

    @property
    def cpus_socket(self) -> Path:
        """Where the launcher tells the machine's owner what QEMU saves of the vCPUs."""
        return self.folder / "launcher" / "cpus.sock"

    @property
    def running(self) -> bool:
        """Whether the machine's launcher is alive now."""
        return self.launcher is not None and self.launcher.alive()

    @property
    def launcher_pid(self) -> int | None:
        """The launcher's process id while it runs."""
        return self.launcher.pid if self.launcher and self.running else None

    def read_status(self) -> dict[str, Any]:
        """Return what the launcher says of itself now ({} before it says anything)."""
        try:
            status = json.loads(self.status.read_text(encoding="utf-8")[:_STATE_LIMIT])
        except (OSError, ValueError):
            return {}
        return status if isinstance(status, dict) else {}

    def to_json(self) -> dict[str, Any]:
        """Return the state for people and programs: paths as text, and what the launcher says now."""
        plain = {name: _plain(value) for name, value in asdict(self).items()}
        plain["running"] = self.running
        plain["launcher_pid"] = self.launcher_pid
        status = self.read_status() if self.running else {"state": "stopped"}
        plain["state"] = status.get("state", "starting")
        plain["pids"] = status.get("pids", {})
        plain["attestation"] = status.get("attestation", "")
        plain["facts"] = str(self.facts) if self.facts.is_dir() else ""
        return plain

    def save(self) -> None:
        """Write `vm.json`, whole or not at all."""
        scratch = self.folder / ".vm.json.new"
        text = json.dumps({name: _plain(value) for name, value in asdict(self).items()}, indent=1)
        scratch.write_text(text, encoding="utf-8")
        scratch.replace(self.folder / "vm.json")

    @classmethod
    def load(cls, name: str) -> VmState:
        """Return the state of the machine `name`. Raises SetupError when there is none or it is unusable."""
        folder = machine_folder(name)
        path = folder / "vm.json"
        try:
            with path.open(encoding="utf-8") as file:
                document = json.loads(file.read(_STATE_LIMIT))
        except FileNotFoundError:
            known = ", ".join(list_machines()) or "none"
            raise SetupError(
                f"there is no virtual machine {name!r}", hint=f"known here: {known} (in {folder.parent})"
            ) from None
        except (OSError, ValueError) as error:
            raise SetupError(f"{path} cannot be read: {error}", hint=_remove_hint(name)) from error
        try:
            state = cls._from_json(document)
        except (KeyError, TypeError, ValueError) as error:
            raise SetupError(
                f"{path} is not the state of a machine: {error}", hint=_remove_hint(name)
            ) from error
        if state.name != name or state.folder != folder:
            raise SetupError(f"{path} belongs to another machine", hint=_remove_hint(name))
        return state if state.launcher else state.with_launcher(_launcher_by_its_own_word(state))

    @classmethod
    def _from_json(cls, document: dict[str, Any]) -> VmState:
        values: dict[str, Any] = {}
        for field in fields(cls):
            value = document[field.name]
            if value is not None and "Path" in str(field.type):
                value = tuple(map(Path, value)) if isinstance(value, list) else Path(value)
            elif field.name == "launcher" and value is not None:
                value = ProcessIdentity(int(value["pid"]), int(value["start_ticks"]), str(value["boot_id"]))
            values[field.name] = value
        state = cls(**values)
        if not (isinstance(state.memory_bytes, int) and isinstance(state.below_4g_bytes, int)):
            raise TypeError("sizes must be integers")
        return state

    def with_launcher(self, launcher: ProcessIdentity | None) -> VmState:
        """Return the same state with another launcher process, or none."""
        return replace(self, launcher=launcher)


def _launcher_by_its_own_word(state: VmState) -> ProcessIdentity | None:
    """Return a launcher that runs though `vm.json` knows none: who started it was killed right then.

    Its process id is in `launcher.pid`; whether that number is still its own, its command line tells.
    """
    try:
        pid = int((state.folder / "launcher.pid").read_text(encoding="ascii"))
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except (OSError, ValueError):
        return None
    return ProcessIdentity.of(pid) if os.fsencode(state.settings) in words else None


def check_name(name: str) -> str:
    """Return `name` when it can name a machine: it becomes a folder, a RAM file and a QEMU argument."""
    if not _NAME.fullmatch(name) or ".." in name:
        raise SetupError(
            f"not a name for a virtual machine: {name!r}",
            hint="up to 32 lower-case letters, digits, '-', '_' and '.', starting with a letter or digit",
        )
    return name


def machine_folder(name: str) -> Path:
    """Return the folder of the machine `name`; it may not exist. Raises SetupError for a bad name."""
    return home_folder() / "vms" / check_name(name)


def list_machines() -> list[str]:
    """Return the names of all machines that have a state here, running or not."""
    return sorted(path.parent.name for path in (home_folder() / "vms").glob("*/vm.json"))


@contextmanager
def lock_machine(name: str) -> Iterator[None]:
    """Hold the machine while it is changed. Raises SetupError at once when somebody else holds it."""
    locks = machine_folder(name).parent / ".locks"
    try:
        locks.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(locks / name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise SetupError(f"the state folder is not writable: {error}", hint="set AFFIANT_HOME") from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise SetupError(
                f"another command is starting or stopping {name!r} right now",
                hint="wait for it, then try again",
            ) from None
        yield
    finally:
        os.close(descriptor)


def _remove_hint(name: str) -> str:
    return f"affiant vm rm {name}"


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    return [_plain(part) for part in value] if isinstance(value, tuple) else value
