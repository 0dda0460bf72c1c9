"""Opening a service folder for its commands: authority, database and settings together."""

from __future__ import annotations

from pathlib import Path

from sqlalchemy.engine import Engine

from affiant.model.errors import SetupError
from affiant.service.ca import create_authority, load_authority, root_path
from affiant.service.context import ServiceContext
from affiant.service.database import open_database
from affiant.service.published_rules import PublishedRules
from affiant.service.settings import ServiceSettings

__all__ = ["initialise", "open_context", "open_storage"]


def initialise(settings: ServiceSettings, *, now: int) -> Path:
    """Make keys, certificates and tables where they are missing; return the root certificate's path."""
    create_authority(settings.folder, issuer=settings.issuer, now=now)
    open_database(settings.database_url, create=True).dispose()
    return root_path(settings.folder)


def open_storage(settings: ServiceSettings) -> Engine:
    """Return the database of a folder that was initialised. Raises SetupError otherwise."""
    if not root_path(settings.folder).exists():
        raise SetupError(
            f"{settings.folder} is no service folder",
            hint=f"affiant service init --folder {settings.folder}",
        )
    return open_database(settings.database_url)


def open_context(settings: ServiceSettings, *, now: int) -> ServiceContext:
    """Return everything that a running service needs. Raises SetupError or UnavailableError."""
    engine = open_storage(settings)
    rules = None if settings.rules is None else PublishedRules(settings.rules)
    return ServiceContext(load_authority(settings.folder, now=now), engine, settings, rules)
