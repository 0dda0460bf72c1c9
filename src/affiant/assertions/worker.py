"""One disposable worker process, as its parent sees it.

Starlark cannot be bounded from inside: a single operation may run for minutes, fill the memory or
crash the process, even while parsing, and it holds the interpreter's lock meanwhile. So nothing of
it is ever loaded into a process that holds keys; a worker is started, asked, and thrown away.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from affiant.assertions.limits import Limits
from affiant.assertions.worker_process.endings import OUT_OF_MEMORY, PANIC
from affiant.model.errors import UnavailableError

__all__ = ["Worker", "WorkerDied"]

# A cold start takes 60 ms; a host that needs longer than this is not going to answer.
_START_SECONDS = 20.0
_FIRST_NAP_SECONDS, _LONGEST_NAP_SECONDS = 0.0005, 0.005
_ENDINGS = {0: "ended", PANIC: "panicked", OUT_OF_MEMORY: "ran out of memory"}
# All that the worker is told of where to find code: the folder that Affiant lies in.
_PROGRAM = """import sys
sys.path.append(sys.argv[1])
from affiant.assertions.worker_process.main import main
main(*sys.argv[2:])"""
_SIGNALS = {
    signal.SIGPROF: "used up its processor time",
    signal.SIGXCPU: "used up its processor time",
    signal.SIGABRT: "was ended by its own allocator or a failed check (SIGABRT)",
    signal.SIGSEGV: "crashed (SIGSEGV)",
}


class WorkerDied(Exception):  # noqa: N818  # an event that the engine handles, not an error that people see
    """The worker ended, or was ended for breaking a limit; `reason` completes "the evaluator ..."."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"the evaluator {reason}")
        self.reason = f"the evaluator {reason}"


class Worker:
    """A running worker process. Not to be shared between threads; close it, or use it with `with`.

    It runs with an empty environment, one descriptor (a socket to us), resource limits, no new
    privileges and a seccomp filter (see `worker_process`). What it answers is bounded in size and
    time, and well-formed JSON objects; what they say is to be checked by the caller.

    Raises `UnavailableError` where it cannot be started, `ModuleNotFoundError` without Starlark.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        ours, theirs = socket.socketpair()
        try:
            self._process = subprocess.Popen(
                [
                    sys.executable,
                    "-I",
                    "-S",
                    "-c",
                    _PROGRAM,
                    str(Path(__file__).parents[2]),
                    _starlark_folder(),
                    json.dumps(dataclasses.asdict(limits)),
                ],
                stdin=theirs.fileno(),
                stdout=theirs.fileno(),
                env={},
                close_fds=True,
            )
        except OSError as error:
            ours.close()
            raise UnavailableError(
                f"the worker for assertion scripts does not start: {error.strerror}"
            ) from error
        except ModuleNotFoundError:
            ours.close()
            raise
        finally:
            theirs.close()
        self._socket = ours
        self._received = bytearray()
        try:
            self._receive(time.monotonic() + _START_SECONDS)
        except WorkerDied as death:
            raise UnavailableError(
                f"the worker for assertion scripts does not start: {death.reason}",
                hint="It needs Linux on x86-64, seccomp and 256 MiB of address space.",
            ) from death

    @property
    def alive(self) -> bool:
        """Whether the worker can be asked again; after `WorkerDied`, or once it was killed, it cannot."""
        return self._process.poll() is None

    @property
    def process_id(self) -> int:
        """The worker's process id."""
        pid: int = self._process.pid
        return pid

    def ask(
        self, request: Mapping[str, object], blobs: Sequence[bytes], answers: int, *, deadline: float
    ) -> Iterator[dict[str, object]]:
        """Send one request with its blobs and yield `answers` answers, in order.

        Each answer may take `wall_seconds`, none may come after `deadline` (monotonic seconds).
        Raises `WorkerDied` once the worker has ended, whatever the reason; the answers before count.
        """
        self._send([json.dumps(request).encode(), *blobs], self._until(deadline))
        for _ in range(answers):
            yield self._receive(self._until(deadline))

    def close(self) -> None:
        """End the worker, if it has not ended."""
        self._socket.close()
        if self._process.returncode is None:
            self._process.kill()
            self._process.wait()

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _until(self, deadline: float) -> float:
        return min(deadline, time.monotonic() + self._limits.wall_seconds)

    def _send(self, payloads: Sequence[bytes], deadline: float) -> None:
        stream = b"".join(len(payload).to_bytes(4, "big") + payload for payload in payloads)
        try:
            self._socket.settimeout(max(0.001, deadline - time.monotonic()))
            self._socket.sendall(stream)
        except TimeoutError:
            raise self._died("did not take its facts in time") from None
        except OSError:
            raise self._died(None) from None

    def _receive(self, deadline: float) -> dict[str, object]:
        size = int.from_bytes(self._read(4, deadline), "big")
        if size > self._limits.answer_bytes:
            raise self._died(f"answered with {size} bytes")
        try:
            answer = json.loads(self._read(size, deadline))
        except (ValueError, RecursionError):
            raise self._died("answered with something that is no JSON") from None
        if not isinstance(answer, dict):
            raise self._died("answered with something that is no JSON object")
        return answer

    def _read(self, size: int, deadline: float) -> bytes:
        nap = _FIRST_NAP_SECONDS
        while len(self._received) < size:
            left = deadline - time.monotonic()
            if left <= 0:
                raise self._died("did not answer in time")
            try:
                self._socket.setblocking(False)
                chunk = self._socket.recv(1 << 16)
            except BlockingIOError:
                # Not woken by every answer: each is short, and waking costs more than making most of them.
                time.sleep(min(nap, left))
                nap = min(1.25 * nap, _LONGEST_NAP_SECONDS)
                continue
            except OSError:
                raise self._died(None) from None
            if not chunk:
                raise self._died(None)
            self._received += chunk
        wanted = bytes(self._received[:size])
        del self._received[:size]
        return wanted

    def _died(self, reason: str | None) -> WorkerDied:
        """End the process and tell why; without a reason, its exit status is the reason."""
        self._socket.close()
        if reason is not None:
            self._process.kill()
        try:
            status = self._process.wait(timeout=1)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            return WorkerDied(reason or "closed its channel")
        return WorkerDied(reason or _ending(status))


def _ending(status: int) -> str:
    if status >= 0:
        return _ENDINGS.get(status, f"ended with code {status}")
    try:
        number = signal.Signals(-status)
    except ValueError:
        return f"was ended by signal {-status}"
    return _SIGNALS.get(number, f"was ended by {number.name}")


def _starlark_folder() -> str:
    """Return the folder to import Starlark from, without importing it into this process."""
    found = importlib.util.find_spec("starlark")
    if found is None or found.origin is None:
        raise ModuleNotFoundError("the package starlark-pyo3 is not installed", name="starlark")
    return str(Path(found.origin).parent.parent)
