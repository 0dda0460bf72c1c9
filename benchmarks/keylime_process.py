"""Keylime from PyPI in an environment of its own, under Affiant's cache; made when it is not there."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from affiant.folders import cache_folder
from affiant.vm.packages import PackageCache
from benchmarks.peer_process import PeerProcess, environment, running_peer

__all__ = ["VERSION", "Keylime", "running_keylime"]

VERSION = "7.14.3"
# Its wheel declares no dependencies; these are those of its repository that the two tasks import.
_REQUIREMENTS = (
    *("cryptography", "jsonschema", "lark", "packaging", "psutil", "pyasn1", "pyasn1-modules", "pyyaml"),
    *("requests", "sqlalchemy", "tornado", "typing-extensions"),
)
# What Keylime starts and loads: tpm2_eventlog and the library that decodes device paths.
_PACKAGES = (
    "tpm2-tools",
    "libtss2-mu0",
    "libtss2-rc0",
    "libtss2-esys-3.0.2-0",
    "libtss2-tctildr0",
    "libtss2-sys1",
    "libefivar1",
)
_PEER = Path(__file__).with_name("keylime_peer.py")


class Keylime:
    """A process of Keylime's environment that does one task at a time."""

    def __init__(self, process: PeerProcess) -> None:
        self._process = process

    def seconds(self, task: str) -> float:
        """The CPU time of one run of `task`."""
        self._process.tell(task)
        return float(self._process.answer())


@contextmanager
def running_keylime(inputs: dict[str, Any]) -> Iterator[Keylime]:
    """Start Keylime's process with its inputs, ready for tasks."""
    folder = cache_folder() / f"keylime-{VERSION}"
    python = environment(folder, ["--no-deps", f"keylime=={VERSION}"], _REQUIREMENTS)
    with running_peer("Keylime", python, [str(_PEER)], variables=_variables(folder)) as process:
        process.tell(json.dumps(inputs))
        process.expect_ready()
        yield Keylime(process)


def _variables(folder: Path) -> dict[str, str]:
    """The environment in which Keylime finds its program, its library and a configuration."""
    cache = PackageCache(cache_folder())
    roots = [cache.contents(name)[1] for name in _PACKAGES]
    libraries = [str(path) for root in roots for path in root.glob("usr/lib/*-linux-gnu")]
    programs = [str(root / "usr" / "bin") for root in roots if (root / "usr" / "bin").is_dir()]
    settings = folder / "verifier.conf"
    settings.write_text("[verifier]\nversion = 2.5\nmeasured_boot_policy_name = example\n")
    return os.environ | {
        "LD_LIBRARY_PATH": os.pathsep.join(libraries),
        "PATH": os.pathsep.join([*programs, os.environ["PATH"]]),
        "KEYLIME_VERIFIER_CONFIG": str(settings),
    }
