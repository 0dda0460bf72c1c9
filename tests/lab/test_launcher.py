"""A real launcher process with real firmware: launch, reset, monitor's death, and every way to end.

The guest is OVMF without a disk: it starts its TPM, finds nothing to boot and stays. The service does
not exist: what is tested here is the launcher's side, which must not depend on it.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from affiant.folders import cache_folder
from affiant.launcher.settings import LAUNCHER_QMP, TPM_SOCKET, LauncherSettings
from affiant.wire.issuance import build_root

MIB = 1 << 20
FIRMWARE = Path("/usr/share/OVMF/OVMF_CODE_4M.fd")
END_SECONDS = 120  # to end in, on a loaded host


def root_certificate() -> bytes:
    now = int(time.time())
    key = ec.generate_private_key(ec.SECP256R1())
    root = build_root(key=key, name="a root", serial=1, not_before=now - 60, not_after=now + 86400)
    return root.public_bytes(Encoding.PEM)


@dataclass
class Launched:
    """A running launcher."""

    settings: LauncherSettings
    process: subprocess.Popen[bytes]

    def status(self) -> dict[str, Any]:
        try:
            found = json.loads((self.settings.state_folder / "status.json").read_text())
        except FileNotFoundError:
            return {}
        assert isinstance(found, dict)
        return found

    def wait_for(
        self, condition: Callable[[dict[str, Any]], bool], *, seconds: float = 120
    ) -> dict[str, Any]:
        deadline = time.monotonic() + seconds
        while not condition(status := self.status()):
            assert self.process.poll() is None, self.log()
            assert time.monotonic() < deadline, f"{status}\n{self.log()}"
            time.sleep(0.05)
        return status

    def log(self) -> str:
        logs = sorted(self.settings.state_folder.glob("*.log"))
        return "".join(f"--- {path.name}\n{path.read_text()}" for path in logs)

    def command(self, name: str) -> None:
        """Tell QEMU something as an operator."""
        with socket.socket(socket.AF_UNIX) as channel:
            channel.connect(str(self.settings.state_folder / "qmp.sock"))
            stream = channel.makefile("rw")
            for line in ("", "qmp_capabilities", name):
                if line:
                    stream.write(json.dumps({"execute": line}) + "\n")
                    stream.flush()
                while not {"QMP", "return"} & set(json.loads(stream.readline())):
                    pass

    def left_behind(self) -> list[Path]:
        folder = self.settings.state_folder
        found = [path for path in folder.rglob("*") if path.is_socket() and path.name != "qmp.sock"]
        found += [path for path in (self.settings.ram, folder / "launcher.pid") if path.exists()]
        return found


def all_runs(status: dict[str, Any]) -> bool:
    """Whether the guest was launched and all that belongs to it runs: on a busy host either comes first."""
    return bool(status.get("ready")) and status["state"] == "launched" and len(status.get("pids", {})) == 4


def processes_of(folder: Path) -> list[str]:
    """Return command lines of living processes that have to do with this guest."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            line = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if str(folder) in line and int(process.name) != os.getpid():
            found.append(line)
    return found


def open_descriptors(process: Path) -> list[Path]:
    try:
        return list((process / "fd").iterdir())
    except OSError:
        return []  # gone meanwhile


def left_after_a_moment(folder: Path) -> list[str]:
    """What is left once the kernel has had time to end what it ends with the launcher itself."""
    deadline = time.monotonic() + 60
    while (left := processes_of(folder)) and time.monotonic() < deadline:
        time.sleep(0.05)
    return left


@pytest.fixture
def settings() -> Iterator[LauncherSettings]:
    for program in ("bwrap", "swtpm_setup", "setpriv"):
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed")
    if not FIRMWARE.exists():
        pytest.skip("OVMF is not installed (package ovmf)")
    folder = Path(tempfile.mkdtemp(prefix="affiant-launcher-"))
    (folder / "references").mkdir()
    (folder / "root.pem").write_bytes(root_certificate())
    shutil.copyfile(FIRMWARE.with_name("OVMF_VARS_4M.fd"), folder / "vars.fd")
    state = folder / "vm"
    state.mkdir()
    ram = Path("/dev/shm") / f"{folder.name}.ram"
    qemu = ["qemu-system-x86_64", "-accel", "tcg", "-m", "256M", "-nodefaults", "-display", "none"]
    qemu += ["-object", f"memory-backend-file,id=ram,size={256 * MIB},mem-path={ram},share=on"]
    qemu += ["-machine", "q35,memory-backend=ram", "-nic", "none"]
    qemu += ["-drive", f"if=pflash,unit=0,format=raw,readonly=on,file={FIRMWARE}"]
    qemu += ["-drive", f"if=pflash,unit=1,format=raw,file={folder / 'vars.fd'}"]
    qemu += ["-chardev", f"socket,id=tpm,path={TPM_SOCKET}", "-tpmdev", "emulator,id=tpm0,chardev=tpm"]
    qemu += ["-device", "tpm-crb,tpmdev=tpm0", "-qmp", f"unix:{LAUNCHER_QMP},server=on,wait=off"]
    qemu += ["-qmp", f"unix:{state / 'qmp.sock'},server=on,wait=off"]
    yield LauncherSettings(
        name="launcher-test",
        state_folder=state,
        qemu=tuple(qemu),
        ram=ram,
        memory_bytes=256 * MIB,
        below_4g_bytes=256 * MIB,
        vtpm_authority=folder / "vtpm-ca",
        image_cache=cache_folder() / "images",
        references=folder / "references",
        passport_socket=state / "relay" / "passport.sock",
        service="http://127.0.0.1:9",
        service_root=folder / "root.pem",
    )
    ram.unlink(missing_ok=True)
    shutil.rmtree(folder)


@pytest.fixture
def launch(settings: LauncherSettings) -> Iterator[Callable[..., Launched]]:
    started: list[Launched] = []

    def start(**changes: Any) -> Launched:
        chosen = replace(settings, **changes)
        file = chosen.state_folder / "settings.json"
        file.write_text(chosen.to_json())
        with (chosen.state_folder / "launcher.log").open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-I", "-m", "affiant.launcher", str(file)],
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
            )
        started.append(Launched(chosen, process))
        return started[-1]

    yield start
    for launched in started:
        launched.process.terminate()
        launched.process.wait(END_SECONDS)
    assert left_after_a_moment(settings.state_folder) == []


def test_launch_reset_and_the_monitors_death(launch: Callable[..., Launched]) -> None:
    guest = launch()
    status = guest.wait_for(all_runs)
    assert status["generation"] == 1
    assert status["attestation"] == ""
    assert set(status["pids"]) == {"qemu", "swtpm", "relay", "monitor"}
    guest.command("system_reset")
    status = guest.wait_for(lambda status: status.get("generation") == 2)
    assert status["refused"] == {}
    os.kill(status["pids"]["monitor"], signal.SIGKILL)
    again = guest.wait_for(lambda status: status["monitor_starts"] == 2 and len(status["pids"]) == 4)
    assert again["pids"]["monitor"] != status["pids"]["monitor"]
    assert again["pids"]["qemu"] == status["pids"]["qemu"]
    assert again["image"] == status["image"]
    guest.process.terminate()
    assert guest.process.wait(END_SECONDS) == 0
    assert guest.left_behind() == []
    assert guest.status()["state"] == "ended"


def test_monitor_cannot_write_the_guests_memory(launch: Callable[..., Launched]) -> None:
    """Every descriptor of the guest's RAM outside QEMU is open for reading only."""
    guest = launch()
    status = guest.wait_for(lambda status: "monitor" in status.get("pids", {}))
    opened = 0
    for process in Path("/proc").glob("[0-9]*"):
        if int(process.name) == status["pids"]["qemu"]:
            continue
        for descriptor in open_descriptors(process):
            try:
                if descriptor.readlink() != guest.settings.ram:
                    continue
                flags = (process / "fdinfo" / descriptor.name).read_text().split("flags:\t")[1].split()[0]
            except OSError:
                continue
            assert int(flags, 8) & os.O_ACCMODE == os.O_RDONLY, process
            opened += 1
    assert opened


def test_killed_launcher_takes_everything_with_it(launch: Callable[..., Launched]) -> None:
    guest = launch()
    guest.wait_for(lambda status: len(status.get("pids", {})) == 4)
    guest.process.kill()
    guest.process.wait()
    assert left_after_a_moment(guest.settings.state_folder) == []
    guest.settings.ram.unlink()


@pytest.mark.parametrize("delay", [0.3, 1.0, 1.5, 2.0, 3.0, 5.0])
def test_interrupted_at_any_moment_leaves_nothing(launch: Callable[..., Launched], delay: float) -> None:
    guest = launch()
    deadline = time.monotonic() + delay
    while time.monotonic() < deadline and guest.process.poll() is None:
        time.sleep(0.02)
    guest.process.send_signal(signal.SIGINT)
    code = guest.process.wait(END_SECONDS)
    # Before our handler is there, Python's own ends it; and one while Python starts is fatal to it.
    assert code in (0, -signal.SIGINT) or "Fatal Python error: init_import_site" in guest.log(), guest.log()
    assert guest.left_behind() == []
    assert left_after_a_moment(guest.settings.state_folder) == []


def test_guest_that_ends_ends_the_launcher(launch: Callable[..., Launched]) -> None:
    guest = launch()
    guest.wait_for(lambda status: status.get("ready") is True)
    guest.command("quit")
    assert guest.process.wait(END_SECONDS) == 0
    assert guest.left_behind() == []


def test_lost_tpm_ends_the_guest(launch: Callable[..., Launched]) -> None:
    guest = launch()
    status = guest.wait_for(all_runs)
    os.kill(status["pids"]["swtpm"], signal.SIGKILL)
    assert guest.process.wait(END_SECONDS) == 3
    assert "TPM is lost" in guest.log()
    assert guest.left_behind() == []


def test_guest_without_tpm_and_without_service_runs(
    launch: Callable[..., Launched], settings: LauncherSettings
) -> None:
    at = settings.qemu.index("-tpmdev") - 2
    qemu = settings.qemu[:at] + settings.qemu[at + 6 :]
    guest = launch(qemu=qemu, tpm=False, service=None, service_root=None)
    status = guest.wait_for(lambda status: status.get("state") == "running")
    assert set(status["pids"]) <= {"qemu"}
    assert not settings.tpm_state.exists()


def test_qemu_that_does_not_start_is_told(
    launch: Callable[..., Launched], settings: LauncherSettings
) -> None:
    guest = launch(qemu=(*settings.qemu, "-no-such-option"))
    assert guest.process.wait(END_SECONDS) == 3
    assert "no-such-option" in guest.log()
    assert guest.left_behind() == []


def test_secrets_of_the_launcher_are_out_of_reach(launch: Callable[..., Launched]) -> None:
    """Not dumpable, no core files, and no key in files, arguments or environments of its processes."""
    guest = launch()
    status = guest.wait_for(all_runs)
    limits = Path(f"/proc/{guest.process.pid}/limits").read_text()
    assert next(line.split()[4:6] for line in limits.splitlines() if "core file" in line) == ["0", "0"]
    for pid in (guest.process.pid, *status["pids"].values()):
        for what in ("cmdline", "environ"):
            try:
                line = Path(f"/proc/{pid}/{what}").read_bytes()
            except PermissionError:
                # What is not dumpable shows its environment to root alone, not even to its own user.
                assert os.geteuid() != 0
                continue
            assert b"PRIVATE KEY" not in line
    for path in guest.settings.state_folder.rglob("*"):
        if path.is_file():
            assert b"PRIVATE KEY" not in path.read_bytes(), path
