"""The door: boots every kernel and writes the page, or holds the page against the library."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from affiant.assertions.bundle import packaged_library
from lab.support_matrix import __doc__ as about
from lab.support_matrix.host import describe_host
from lab.support_matrix.kernels import KERNELS
from lab.support_matrix.looking import look_at
from lab.support_matrix.names import names_of_today
from lab.support_matrix.page import put, stale
from lab.support_matrix.seen import Host, Kernel, faults, to_json
from lab.support_matrix.tables import tables

__all__ = ["main"]

_PAGE = Path(__file__).parents[2] / "docs/support-matrix.md"


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the page; 1 if something is violated, inconclusive, or could not be had or read at all.

    The page is written all the same: it says what was seen.
    """
    parser = argparse.ArgumentParser(prog="lab.support_matrix", description=about)
    parser.add_argument("--only", default="", help="kernels with this in their names; tables are printed")
    parser.add_argument("--cached", action="store_true", help="with the packages that were fetched last")
    parser.add_argument("--json", action="store_true", help="print what was seen as JSON")
    parser.add_argument("--check", action="store_true", help="only tell whether the page names what there is")
    parser.add_argument("page", nargs="?", type=Path, default=_PAGE, help="the page with the marks")
    options = parser.parse_args(arguments)
    page: Path = options.page
    if options.check:
        return _check(page)
    kernels = [kernel for kernel in KERNELS if options.only in kernel.name]
    if not kernels:
        parser.error(f"no kernel has {options.only!r} in its name")
    put(page.read_text(), "")  # a page without marks is told before an hour is spent
    host = describe_host()
    seen = tuple(look_at(kernel, refresh=not options.cached, tell=_tell) for kernel in kernels)
    if len(kernels) == len(KERNELS):
        # Read now: whoever writes the rest of it by hand need not wait for the guests.
        page.write_text(put(page.read_text(), _generated(host, seen)))
        _tell(f"written: {page}")
    elif not options.json:
        print(_generated(host, seen))
    if options.json:
        print(json.dumps(to_json(host, seen), indent=1))
    wrong = list(faults(seen))
    for fault in wrong:
        _tell(f"FAULT {fault}")
    return 1 if wrong else 0


def _check(page: Path) -> int:
    found = stale(page.read_text(), names_of_today())
    for line in found:
        _tell(f"{page.name}: {line}")
    if not found:
        print(f"{page.name} names every kernel, rule, fact, query and class of patch sites that there is")
    return 1 if found else 0


def _generated(host: Host, seen: tuple[Kernel, ...]) -> str:
    library = packaged_library()
    today = datetime.now(UTC).date().isoformat()
    return tables(host, seen, library.scripts, day=today, library=library.digest.hex()[:12])


def _tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
