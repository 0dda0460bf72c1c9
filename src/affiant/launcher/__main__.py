"""`python -m affiant.launcher SETTINGS.json`: one guest, in the foreground, until it ends."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from affiant.launcher.launch import run_launcher
from affiant.launcher.settings import LauncherSettings
from affiant.model.errors import AffiantError, UnavailableError

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Return 0 when the guest has ended or we were told to stop, 2 for unusable settings, 3 for failures."""
    parser = argparse.ArgumentParser(prog="affiant-launcher", description=__doc__)
    parser.add_argument("settings", type=Path, metavar="SETTINGS.json")
    arguments = parser.parse_args(argv)
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr
    )
    logging.getLogger("qemu.qmp").setLevel(logging.ERROR)
    try:
        return run_launcher(LauncherSettings.load(arguments.settings))
    except AffiantError as error:
        sys.stderr.write(f"error: {error}\n" + (f"hint: {error.hint}\n" if error.hint else ""))
        return 3 if isinstance(error, UnavailableError) else 2


if __name__ == "__main__":
    sys.exit(main())
