"""`python -m benchmarks [NAME...]`: run all benchmarks, or those named."""

from __future__ import annotations

import importlib
import os
import platform
import sys
import time

from benchmarks.table import print_table

# Name of the module to the title of its table.
BENCHMARKS = {
    "verification": "A relying party verifies a passport",
    "boot_evidence": "Boot evidence is verified, least CPU time of a run",
    "measurement": "The monitor measures the live kernel, least CPU time of a run",
    "library": "Rules are judged, by the clock",
    "rules_fleet": "From publishing a rule to the report with its verdict",
    "rules_load": "The service gives out rules, processor time for each attester",
    "disturbance": "For how long the guest stands still",
    "slow_down": "What the guest's own work costs while it is watched",
    "volatility": "Listings of a live guest, least CPU time of a run",
}


def main(names: list[str]) -> int:
    """Run and print; 2 for a name that is none."""
    unknown = [name for name in names if name not in BENCHMARKS]
    if unknown:
        print(f"error: no benchmark {', '.join(unknown)}; there are {', '.join(BENCHMARKS)}", file=sys.stderr)
        return 2
    print(
        f"{platform.machine()}, {os.cpu_count()} processors, Python {platform.python_version()}, "
        f"load average {os.getloadavg()[0]:.1f}"
    )
    wanted = names or list(BENCHMARKS)
    for number, name in enumerate(wanted, 1):
        print(f"[{number}/{len(wanted)}] {name} ...", file=sys.stderr, flush=True)
        started = time.monotonic()
        benchmark = importlib.import_module(f"benchmarks.{name}")
        print_table(BENCHMARKS[name], benchmark.rows())
        notes = getattr(benchmark, "notes", None)
        if notes is not None:
            print("", *notes(), sep="\n")
        print(f"[{number}/{len(wanted)}] {name}: {time.monotonic() - started:.0f} s", file=sys.stderr)
    print(f"\nload average at the end: {os.getloadavg()[0]:.1f}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
