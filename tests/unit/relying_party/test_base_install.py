"""A relying party needs `cryptography` and nothing else."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from cryptography.hazmat.primitives.serialization import Encoding

from tests.unit.wire import world

# Refuses every import that is neither ours, the standard library's nor cryptography's.
_BLOCKER = """
import sys

class Blocker:
    allowed = sys.stdlib_module_names | {"affiant", "cryptography", "_cffi_backend", "cffi"}

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] not in self.allowed:
            raise ImportError(f"blocked: {name}")
        for door in ("kernel", "tpm", "appraisal", "service", "monitor", "launcher", "assertions"):
            package = f"affiant.{door}"
            own = name.removeprefix(package).rpartition(".")[2]
            if name.startswith(package) and own and not own.endswith(("commands", "command_line")):
                raise ImportError(f"blocked: {name}")
        return None

sys.meta_path.insert(0, Blocker())
try:
    import pytest
except ImportError:
    pass
else:
    sys.exit("the blocker does not block")
from affiant.cli import main
sys.exit(main(sys.argv[1:]))
"""


def test_verify_runs_where_every_other_package_is_missing(tmp_path: Path) -> None:
    (tmp_path / "passport").write_bytes(world.PASSPORT_BYTES)
    (tmp_path / "ca.pem").write_bytes(world.ROOT.public_bytes(Encoding.PEM))
    run = subprocess.run(
        [
            *(sys.executable, "-c", _BLOCKER, "verify", str(tmp_path / "passport")),
            *("--root", str(tmp_path / "ca.pem"), "--nonce", world.NONCE.hex()),
            *("--now", "2027-01-15T08:00:01Z"),
        ],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (run.returncode, run.stderr) == (0, "")
    assert run.stdout.startswith("ACCEPTED: healthy")
