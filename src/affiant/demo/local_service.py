"""An attestation service of the demo's own: a real one, in its own process, on a loopback port."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from affiant.model.errors import UnavailableError
from affiant.vm.interruption import hold_signals

__all__ = ["LocalService", "running_service", "running_service_process"]

_READY = "ready.json"
_READY_SECONDS = 60.0  # on a busy host; an idle one takes two
_END_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class LocalService:
    """Where it answers (`url`), and the root certificate (PEM) that everything hangs from."""

    url: str
    root: Path
    folder: Path
    process: subprocess.Popen[bytes]

    def tell(self, *words: str) -> None:
        """Run `affiant service WORDS` for this service's folder, as its operator would.

        Raises `UnavailableError` with what it printed when it fails.
        """
        command = [sys.executable, "-m", "affiant.cli", "service", *words, "--folder", str(self.folder)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise UnavailableError(f"`affiant service {' '.join(words)}` failed: {done.stderr.strip()}")


@contextmanager
def running_service(folder: Path, *, keep: bool) -> Iterator[LocalService]:
    """Start a service in `folder` and yield it; end it afterwards, unless `keep` and all went well.

    Raises `UnavailableError` when it does not answer in time.
    """
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    ready = folder / _READY
    ready.unlink(missing_ok=True)
    log = folder / "service.log"
    command = [sys.executable, "-m", "affiant.cli", "service", "run", "--port", "0"]
    command += ["--folder", str(folder), "--ready-file", str(ready)]
    process = None
    try:
        with hold_signals():  # a process that was started is one that is known
            process = _start(command, log)
        url = _wait(process, ready, log)
        yield LocalService(url, _root(folder), folder, process)
    except BaseException:
        if process is not None:
            _end(process)
        raise
    if not keep:
        _end(process)


def running_service_process(folder: Path) -> int | None:
    """Return the process id of a service that still runs over `folder`, or None."""
    try:
        pid = int(json.loads((folder / _READY).read_text())["pid"])
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except (OSError, ValueError, KeyError):
        return None
    return pid if os.fsencode(folder) in words else None


def _start(command: list[str], log: Path) -> subprocess.Popen[bytes]:
    with log.open("wb") as output:
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,  # Ctrl-C is for the demo, which ends its parts in order
        )


def _wait(process: subprocess.Popen[bytes], ready: Path, log: Path) -> str:
    deadline = time.monotonic() + _READY_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        if ready.exists():
            return str(json.loads(ready.read_text())["url"])
        time.sleep(0.02)
    last = log.read_text(errors="replace").splitlines()[-3:]
    raise UnavailableError(f"the attestation service did not start: {' / '.join(last)}", hint=f"see {log}")


def _root(folder: Path) -> Path:
    from affiant.service.ca import root_path

    return root_path(folder)


def _end(process: subprocess.Popen[bytes]) -> None:
    with hold_signals():  # who presses Ctrl-C twice means the demo, not its cleaning up
        process.terminate()
        try:
            process.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
