"""Volatility 3 from PyPI in an environment of its own, under Affiant's cache; made when it is not there."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from affiant.folders import cache_folder
from benchmarks.peer_process import PeerProcess, environment, running_peer

__all__ = ["VERSION", "Listing", "Volatility", "running_volatility"]

VERSION = "2.28.2"
_PEER = Path(__file__).with_name("volatility_peer.py")


@dataclass(frozen=True, slots=True)
class Listing:
    """What one run listed, and its CPU time in milliseconds."""

    rows: tuple[str, ...]
    took_ms: float


class Volatility:
    """A process of Volatility's environment that makes one listing at a time."""

    def __init__(self, process: PeerProcess) -> None:
        self._process = process

    def list(self, name: str, *, anew: bool = False) -> Listing:
        """Run a plugin; the first run of each, and each one `anew`, also finds layers and symbols."""
        self._process.tell("anew " * anew + name)
        answer = json.loads(self._process.answer())
        return Listing(tuple(answer["rows"]), 1_000 * float(answer["seconds"]))


@contextmanager
def running_volatility(ram: Path, symbols: bytes) -> Iterator[Volatility]:
    """Start Volatility's process over a RAM file, with the symbol file of its kernel."""
    python = environment(cache_folder() / f"volatility3-{VERSION}", [f"volatility3=={VERSION}"])
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "symbols" / "linux" / "kernel.json"
        file.parent.mkdir(parents=True)
        file.write_bytes(symbols)
        caches = Path(folder) / "caches"
        caches.mkdir()
        arguments = [str(_PEER), str(ram), str(file.parents[1]), str(caches)]
        with running_peer("Volatility", python, arguments) as process:
            process.expect_ready()
            yield Volatility(process)
