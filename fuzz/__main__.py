"""Runs the targets: `python -m fuzz [NAME...]`; see the package's docstring."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

_FOUND = Path(__file__).parent / "found"
_DEFAULT_SECONDS = 600
_ONE_INPUT_SECONDS = 10
_MEBIBYTES = 1024
_LONGEST_INPUT = 65536


def main(names: list[str]) -> int:
    """Run the targets one after the other, each in a process of its own; 0 when nothing was found."""
    if names[:1] == ["--target"]:
        return _fuzz(names[1], names[2:])
    from fuzz.targets import CORPUS, TARGETS

    if unknown := [name for name in names if name not in TARGETS]:
        print(f"error: no target {', '.join(unknown)}; there are {', '.join(TARGETS)}", file=sys.stderr)
        return 2
    chosen = names or list(TARGETS)
    seconds = max(1, int(os.environ.get("FUZZ_SECONDS", _DEFAULT_SECONDS)) // len(chosen))
    _FOUND.mkdir(exist_ok=True)
    bad = []
    for name in chosen:
        print(f"== {name}, {seconds} s", flush=True)
        # What libFuzzer finds worth keeping goes into the first folder, not into the seeds.
        with tempfile.TemporaryDirectory() as grown:
            command = [sys.executable, "-m", "fuzz", "--target", name, grown, str(CORPUS / name)]
            command += [
                f"-max_total_time={seconds}",
                f"-timeout={_ONE_INPUT_SECONDS}",
                f"-rss_limit_mb={_MEBIBYTES}",
                f"-max_len={_LONGEST_INPUT}",
                f"-artifact_prefix={_FOUND}/{name}-",
                "-print_final_stats=1",
                "-verbosity=0",
            ]
            if subprocess.run(command, check=False).returncode:
                bad.append(name)
    print(f"found something in: {', '.join(bad)} (inputs are in {_FOUND})" if bad else "nothing found")
    return 1 if bad else 0


def _fuzz(name: str, arguments: list[str]) -> int:
    try:
        import atheris
    except ImportError:
        print("error: atheris is not installed\nhint: run `make fuzz`, which installs it", file=sys.stderr)
        return 2
    with atheris.instrument_imports(include=["affiant"]):
        from fuzz.targets import run
    atheris.Setup([f"fuzz-{name}", *arguments], lambda octets: run(name, octets))
    atheris.Fuzz()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
