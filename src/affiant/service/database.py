"""Opening the service's database and checking that it is ours."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy import create_engine, event, insert, inspect, select, update
from sqlalchemy.engine import Connection, Engine, make_url
from sqlalchemy.exc import ArgumentError, SQLAlchemyError
from sqlalchemy.schema import CreateColumn

from affiant.model.errors import SetupError, UnavailableError
from affiant.service import tables

__all__ = ["open_database", "transaction"]

_BUSY_SECONDS = 10


def open_database(url: str, *, create: bool = False) -> Engine:
    """Return an engine for the database at `url`, whose schema is the one this code was made for.

    With `create`, tables and columns that are missing are made. Raises SetupError for an address that cannot
    be used or a database of another schema version, UnavailableError when it does not answer.
    """
    try:
        parsed = make_url(url)
        if parsed.get_backend_name() == "sqlite":
            engine = create_engine(parsed, connect_args={"timeout": _BUSY_SECONDS})
            event.listen(engine, "connect", _keep_sqlite_honest)
            event.listen(engine, "begin", _begin_immediately)
        else:
            engine = create_engine(parsed, pool_pre_ping=True)
    except (ArgumentError, ImportError) as error:
        raise SetupError(
            f"database address {url!r}: {error}", hint="for example sqlite:////path/service.db"
        ) from error
    try:
        if create:
            _create(engine)
        with engine.connect() as connection:
            version = connection.execute(select(tables.schema.c.version)).scalar()
    except SQLAlchemyError as error:
        raise UnavailableError(
            f"the service's database does not answer: {_reason(error)}",
            hint="run `affiant service init` first, or check the database's address",
        ) from error
    if version != tables.SCHEMA_VERSION:
        older = isinstance(version, int) and version < tables.SCHEMA_VERSION
        raise SetupError(
            f"the database has schema version {version}, this program needs {tables.SCHEMA_VERSION}",
            hint="`affiant service init` brings it up to date, as the service does when it starts"
            if older
            else "use the version of Affiant that made it, or a new service folder",
        )
    return engine


@contextmanager
def transaction(engine: Engine) -> Iterator[Connection]:
    """Commit what the context does, or nothing of it; UnavailableError when the database fails."""
    try:
        with engine.begin() as connection:
            yield connection
    except SQLAlchemyError as error:
        raise UnavailableError(f"the service's database failed: {_reason(error)}") from error


def _create(engine: Engine) -> None:
    tables.metadata.create_all(engine)
    with engine.begin() as connection:
        version = connection.execute(select(tables.schema.c.version)).scalar()
        if version is None:
            connection.execute(insert(tables.schema).values(version=tables.SCHEMA_VERSION))
        elif version in (1, 2):
            if version == 1:
                _add_rules_of_sessions(connection)
            # What schema 3 adds is a table, which is there by now.
            connection.execute(update(tables.schema).values(version=3))


def _add_rules_of_sessions(connection: Connection) -> None:
    """Bring a database of schema 1 to schema 2: sessions tell by which rules their machines are judged."""
    there = {column["name"] for column in inspect(connection).get_columns("sessions")}
    for column in tables.sessions.columns:
        if column.name not in there:
            definition = CreateColumn(column).compile(dialect=connection.dialect)
            connection.exec_driver_sql(f"ALTER TABLE sessions ADD COLUMN {definition}")


def _reason(error: SQLAlchemyError) -> str:
    cause = getattr(error, "orig", None) or error
    return str(cause).splitlines()[0]


def _keep_sqlite_honest(connection: Any, _record: object) -> None:
    """SQLite checks foreign keys, and lets readers work beside one writer, only when told to."""
    connection.isolation_level = None  # transactions begin below, not behind the driver's back
    cursor = connection.cursor()
    cursor.execute("PRAGMA foreign_keys=ON")
    cursor.execute("PRAGMA journal_mode=WAL")
    cursor.execute("PRAGMA synchronous=FULL")  # a used nonce must stay used after a power cut
    cursor.close()


def _begin_immediately(connection: Connection) -> None:
    """Take the writer's place at once: one who reads first and writes later could lose it in between."""
    connection.exec_driver_sql("BEGIN IMMEDIATE")
