"""Starting and ending the launcher's child processes, so that none outlives it.

Each child gets SIGKILL from the kernel when the launcher dies, however it dies (PR_SET_PDEATHSIG,
set by util-linux' `setpriv` right before the program starts). The kernel ties that signal to the
*thread* that forked: children are started from the launcher's main thread alone.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from affiant.model.errors import SetupError, UnavailableError

__all__ = ["Child", "find_program", "start_child"]

_NOBODY = 65534


@dataclass(slots=True)
class Child:
    """A running child. `name` is how people know it, `log` where its words went."""

    name: str
    process: subprocess.Popen[bytes]
    log: Path

    @property
    def pid(self) -> int:
        """The process id; of `setpriv` first, which becomes the program itself."""
        return self.process.pid

    def exit_code(self) -> int | None:
        """Return the exit code, or None while it runs."""
        return self.process.poll()

    def stop(self, *, grace: float = 2.0) -> None:
        """End it: SIGTERM, and SIGKILL after `grace` seconds. Never raises when it is gone already."""
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(timeout=grace)
            except subprocess.TimeoutExpired:
                self.process.kill()
        self.process.wait()

    def last_words(self, *, limit: int = 400) -> str:
        """Return the end of its log, for an error message."""
        try:
            data = self.log.read_bytes()[-limit:]
        except OSError:
            return ""
        return data.decode(errors="replace").strip()


def find_program(name: str, *, package: str) -> str:
    """Return the absolute path of a program. Raises `SetupError` that names the Debian package."""
    if (path := shutil.which(name)) is None:
        raise SetupError(f"{name} is not installed", hint=f"apt-get install {package}")
    return str(Path(path).absolute())


def start_child(
    name: str,
    argv: Sequence[str],
    *,
    log: Path,
    pass_fds: Sequence[int] = (),
    environment: Mapping[str, str] | None = None,
    unprivileged: bool = False,
) -> Child:
    """Start `argv`, its output appended to `log`, with no other descriptors than `pass_fds`.

    `unprivileged`: as nobody, without capabilities and unable to gain any (where the launcher is
    root; elsewhere the child keeps the launcher's user, and cannot gain privileges either).
    Raises `UnavailableError` when it cannot be started.
    """
    if threading.current_thread() is not threading.main_thread():
        raise ValueError("children are started from the main thread, or they die with another one")
    guard = [find_program("setpriv", package="util-linux"), "--pdeathsig", "KILL"]
    if unprivileged:
        guard += ["--no-new-privs", "--inh-caps=-all"]
        if os.geteuid() == 0:
            guard += [f"--reuid={_NOBODY}", f"--regid={_NOBODY}", "--clear-groups", "--bounding-set=-all"]
    try:
        descriptor = os.open(
            log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600
        )
        try:
            process = subprocess.Popen(
                [*guard, "--", *argv],
                stdin=subprocess.DEVNULL,
                stdout=descriptor,
                stderr=descriptor,
                pass_fds=pass_fds,
                env=None if environment is None else dict(environment),
                start_new_session=True,  # a terminal's Ctrl-C reaches the launcher, which ends them in order
            )
        finally:
            os.close(descriptor)
    except OSError as error:
        raise UnavailableError(f"{name} could not be started: {error}") from error
    return Child(name, process, log)
