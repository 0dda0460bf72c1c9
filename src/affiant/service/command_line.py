"""What every command of `affiant service` does with its line: settings, the database, the clock."""

from __future__ import annotations

import argparse
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sqlalchemy.engine import Engine

    from affiant.service.settings import ServiceSettings

__all__ = ["now", "settings_of", "storage"]


def settings_of(arguments: argparse.Namespace, **values: object) -> ServiceSettings:
    """Return the settings that a command line names, with `values` beside them."""
    from affiant.folders import service_folder
    from affiant.service.settings import ServiceSettings

    folder = arguments.folder or service_folder()
    return ServiceSettings(folder=folder, database=arguments.database, **values)  # type: ignore[arg-type]  # by name


def storage(arguments: argparse.Namespace) -> Engine:
    """Open the database that a command line names."""
    from affiant.service.administration import open_storage

    return open_storage(settings_of(arguments))


def now() -> int:
    """Return the time, in whole seconds since the epoch."""
    return int(time.time())
