"""Types into a guest's serial console and waits for what it says; every wait is bounded."""

from __future__ import annotations

import re
import socket
import time
from pathlib import Path
from types import TracebackType

__all__ = ["Console", "ConsoleTimeoutError"]

_LIMIT = 4 << 20  # characters kept of what a guest wrote
_TOLD = 400  # of them at the end of an error
_CRASH = re.compile(r"(?m)^.*(?:BUG: |Oops: |general protection fault|Kernel panic)")
_CRASH_TOLD = 2500


class ConsoleTimeoutError(TimeoutError):
    """The guest did not say what was waited for; the message ends with what it said last, or of its crash."""


class Console:
    """One end of a guest's console socket. QEMU serves one client at a time: close it after use."""

    def __init__(self, path: Path, *, timeout: float = 30.0) -> None:
        """Connect to the console socket, which may take `timeout` seconds to appear."""
        deadline = time.monotonic() + timeout
        while True:
            connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            try:
                connection.connect(str(path))
                break
            except (FileNotFoundError, ConnectionRefusedError):
                connection.close()
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.05)
        self._connection = connection
        self._text = ""
        self._marker = 0

    def __enter__(self) -> Console:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection; the guest runs on."""
        self._connection.close()

    def type(self, text: str) -> None:
        """Send characters as they are. A UART's buffer is small: keep lines short."""
        self._connection.sendall(text.encode())

    def wait(self, pattern: str, *, timeout: float) -> re.Match[str]:
        """Wait for a regular expression in what the guest says, and consume all up to its end."""
        deadline = time.monotonic() + timeout
        while True:
            if match := re.search(pattern, self._text):
                self._text = self._text[match.end() :]
                return match
            left = deadline - time.monotonic()
            if left <= 0:
                raise ConsoleTimeoutError(f"no {pattern!r} within {timeout} s; {self._said()}")
            self._connection.settimeout(left)
            try:
                received = self._connection.recv(65536)
            except TimeoutError:
                continue
            if not received:
                raise ConsoleTimeoutError(f"the console closed before {pattern!r}; {self._said()}")
            self._text = (self._text + received.decode("utf-8", "replace").replace("\r", ""))[-_LIMIT:]

    def _said(self) -> str:
        """Return what tells best why nothing comes: how the kernel crashed, or what was said last."""
        crash = _CRASH.search(self._text)
        if crash is not None:
            return f"the kernel crashed: {self._text[crash.start() :][:_CRASH_TOLD]}"
        return f"last: {self._text[-_TOLD:]!r}"

    def silence_kernel(self) -> None:
        """Have the kernel say there only how it crashes: what it logs else would stand amid answers.

        An emulated guest of a busy host logs more than one thinks, as of clocks that were read late.
        """
        self.run("echo 1 > /proc/sys/kernel/printk")

    def run(self, command: str, *, timeout: float = 300.0) -> str:
        """Run one shell command in the guest and return what it wrote.

        Raises RuntimeError when the (last) command fails, ConsoleTimeoutError when it does not end.
        """
        self._marker += 1
        number = self._marker
        # The echo of what is typed never reads like a mark, however the shell wraps the line.
        self.type(f'echo "be""gin-{number}"; {command}; echo "do""ne-{number}=$?"\n')
        self.wait(rf"begin-{number}\n", timeout=timeout)
        match = self.wait(rf"(?s)(.*?)done-{number}=(\d+)\n", timeout=timeout)
        if match[2] != "0":
            raise RuntimeError(f"{command!r} in the guest: exit status {match[2]}: {match[1][-400:]}")
        return match[1]
