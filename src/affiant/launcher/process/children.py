"""Starting and ending the launcher's child processes, so that none outlives it.

Each child gets SIGKILL from the kernel when the launcher dies, however it dies (PR_SET_PDEATHSIG,
set by util-linux' `setpriv` right before the program starts). The kernel ties that signal to the
*thread* that forked: children are started from the launcher's main thread alone.

A child that is a sandbox is several processes, and those inside die a moment after the outermost:
whoever counts on a child being gone waits for all of them.
"""

from __future__ import annotations

import logging
import os
import select
import shutil
import signal
import subprocess
import threading
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from affiant.model.errors import SetupError, UnavailableError

__all__ = ["Child", "find_program", "start_child"]

_log = logging.getLogger(__name__)

_NOBODY = 65534
_GONE_SECONDS = 10.0


@dataclass(slots=True)
class Child:
    """A running child. `name` is how people know it, `log` where its words went.

    `lifeline`, for a child of several processes: a pipe's reading end, whose writing end each of them
    holds. It hangs up when the last one is gone.
    """

    name: str
    process: subprocess.Popen[bytes]
    log: Path
    lifeline: int | None = None

    @property
    def pid(self) -> int:
        """The process id; of `setpriv` first, which becomes the program itself."""
        return self.process.pid

    def exit_code(self) -> int | None:
        """Return the exit code, or None while it runs."""
        return self.process.poll()

    def stop(self, *, grace: float = 2.0) -> None:
        """End it: SIGTERM, and SIGKILL after `grace` seconds. Never raises when it is gone already.

        A child of several processes gets SIGKILL at once, and on return none of them does anything any
        more (but for one that the kernel cannot end for ten seconds, of which the log tells).
        """
        if self.process.poll() is None:
            if self.lifeline is not None:
                # Its session, so its group; the number is ours until it is waited for.
                os.killpg(self.process.pid, signal.SIGKILL)
            else:
                self.process.terminate()
            try:
                self.process.wait(timeout=grace)
            except subprocess.TimeoutExpired:
                self.process.kill()
        self.process.wait()
        if self.lifeline is not None:
            lifeline, self.lifeline = self.lifeline, None
            if not _hung_up(lifeline, seconds=_GONE_SECONDS):
                _log.warning("the %s has processes that do not end", self.name)
            os.close(lifeline)

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
    several: bool = False,
) -> Child:
    """Start `argv`, its output appended to `log`, with no other descriptors than `pass_fds`.

    `unprivileged`: as nobody, without capabilities and unable to gain any (where the launcher is
    root; elsewhere the child keeps the launcher's user, and cannot gain privileges either).
    `several`: it is a sandbox, of several processes that all have to be gone when it is stopped; each
    gets one more descriptor, the writing end of the child's lifeline, that nobody reads from.
    Raises `UnavailableError` when it cannot be started.
    """
    if threading.current_thread() is not threading.main_thread():
        raise ValueError("children are started from the main thread, or they die with another one")
    guard = [find_program("setpriv", package="util-linux"), "--pdeathsig", "KILL"]
    if unprivileged:
        guard += ["--no-new-privs", "--inh-caps=-all"]
        if os.geteuid() == 0:
            guard += [f"--reuid={_NOBODY}", f"--regid={_NOBODY}", "--clear-groups", "--bounding-set=-all"]
    with ExitStack() as opened, ExitStack() as kept:
        try:
            output = os.open(
                log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600
            )
            opened.callback(os.close, output)
            lifeline = None
            if several:
                lifeline, held = os.pipe()
                kept.callback(os.close, lifeline)
                opened.callback(os.close, held)
                pass_fds = (*pass_fds, held)
            process = subprocess.Popen(
                [*guard, "--", *argv],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                pass_fds=pass_fds,
                env=None if environment is None else dict(environment),
                start_new_session=True,  # a terminal's Ctrl-C reaches the launcher, which ends them in order
            )
            kept.pop_all()
        except OSError as error:
            raise UnavailableError(f"{name} could not be started: {error}") from error
    return Child(name, process, log, lifeline)


def _hung_up(pipe: int, *, seconds: float) -> bool:
    """Wait for the end of the last process that holds the other end; what was written does not matter."""
    poll = select.poll()
    poll.register(pipe, 0)  # that it hung up is told always
    return bool(poll.poll(seconds * 1_000))
