"""A peer from PyPI in an environment of its own, under Affiant's cache, driven a line at a time."""

from __future__ import annotations

import subprocess
import sys
import venv
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

__all__ = ["PeerProcess", "environment", "running_peer"]


class PeerProcess:
    """A process of a peer's environment; `name` is what errors call it."""

    def __init__(self, name: str, process: subprocess.Popen[str]) -> None:
        self._name = name
        self._process = process

    def tell(self, line: str) -> None:
        """Write one line."""
        assert self._process.stdin is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()

    def answer(self) -> str:
        """Read one line; the end of its output is an error."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self._name}'s process ended")
        return line.strip()

    def expect_ready(self) -> None:
        """Wait for the line that tells that it is ready for tasks."""
        if self.answer() != "ready":
            raise RuntimeError(f"{self._name}'s process did not become ready")


@contextmanager
def running_peer(
    name: str, python: Path, arguments: Sequence[str], *, variables: dict[str, str] | None = None
) -> Iterator[PeerProcess]:
    """Start a peer's process: this program of its environment, with these arguments."""
    process = subprocess.Popen(
        [str(python), "-P", *arguments],  # -P: this folder is not among its modules
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=variables,
    )
    try:
        yield PeerProcess(name, process)
    finally:
        process.terminate()
        process.wait()


def environment(folder: Path, *installations: Sequence[str]) -> Path:
    """Return the interpreter of an environment; if it is not there, it is made by these `pip install`s."""
    python = folder / "bin" / "python"
    complete = folder / ".complete"
    if not complete.exists():
        venv.create(folder, with_pip=True, clear=True)
        install = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        for arguments in installations:
            subprocess.run([*install, *arguments], check=True, stdout=sys.stderr)
        complete.touch()
    return python
