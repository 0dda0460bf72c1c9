"""What the database must hold against several requests and processes at once."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from sqlalchemy.dialects import postgresql
from sqlalchemy.exc import IntegrityError
from sqlalchemy.schema import CreateTable

from affiant.appraisal.enrolled_key import BootCounters
from affiant.model.errors import ForgedError, SetupError, UnavailableError
from affiant.service import tables
from affiant.service.challenge_store import (
    Purpose,
    forget_expired_challenges,
    remember_challenge,
    use_challenge,
)
from affiant.service.database import open_database, transaction
from affiant.service.device_store import find_enrolled_key, note_boot_counters
from affiant.service.session_store import all_sessions, forget_old_sessions
from affiant.service.trust_store import all_references
from tests.simulator import START, World, make_world

DIGEST = bytes(range(32))


@pytest.fixture
def url(tmp_path: Path) -> str:
    address = f"sqlite:///{tmp_path}/service.db"
    engine = open_database(address, create=True)
    with transaction(engine) as connection:
        remember_challenge(connection, digest=DIGEST, message=b"m", nonce=DIGEST, expires_at=START + 60)
    engine.dispose()
    return address


@pytest.fixture
def world(tmp_path: Path) -> World:
    return make_world(tmp_path / "world")


def test_a_challenge_is_spent_once_however_many_try(url: str) -> None:
    """Eight workers with databases of their own, as eight processes would have: one wins."""

    def spend(_: int) -> bool:
        engine = open_database(url)
        try:
            with transaction(engine) as connection:
                use_challenge(connection, DIGEST, purpose=Purpose.SESSION, now=START)
        except ForgedError:
            return False
        finally:
            engine.dispose()
        return True

    with ThreadPoolExecutor(8) as pool:
        assert sorted(pool.map(spend, range(8))) == [False] * 7 + [True]


def test_a_challenge_is_good_for_one_enrolment_and_one_session(url: str) -> None:
    engine = open_database(url)
    for purpose in Purpose:
        with transaction(engine) as connection:
            assert use_challenge(connection, DIGEST, purpose=purpose, now=START) == b"m"
        with pytest.raises(ForgedError), transaction(engine) as connection:
            use_challenge(connection, DIGEST, purpose=purpose, now=START)


@pytest.mark.parametrize(("digest", "now"), [(bytes(32), START), (DIGEST, START + 60)])
def test_a_challenge_of_others_or_of_the_past_is_refused(url: str, digest: bytes, now: int) -> None:
    with pytest.raises(ForgedError), transaction(open_database(url)) as connection:
        use_challenge(connection, digest, purpose=Purpose.SESSION, now=now)


def test_expired_challenges_are_forgotten_and_others_kept(url: str) -> None:
    engine = open_database(url)
    with transaction(engine) as connection:
        assert forget_expired_challenges(connection, before=START + 60) == 0
        assert forget_expired_challenges(connection, before=START + 61) == 1


def test_counters_never_go_back(world: World) -> None:
    machine = world.machine()
    assert machine.tpm is not None
    device = machine.attest().report.device
    engine = world.service.context.engine
    for counters in (BootCounters(9, 0, 5), BootCounters(8, 9, 9), BootCounters(9, 0, 4)):
        with transaction(engine) as connection:
            note_boot_counters(connection, device, counters, now=START)
    with transaction(engine) as connection:
        enrolled = find_enrolled_key(connection, machine.tpm.ak_name)
    assert enrolled is not None
    assert enrolled.last_seen == BootCounters(9, 0, 5)


def test_old_sessions_are_forgotten_with_their_heartbeats(world: World) -> None:
    session = world.machine().attest()
    session.heartbeat()
    later = session.report.expires_at + world.service.settings.retention_seconds + 1
    world.service.api.challenge(b"", now=later)
    with transaction(world.service.context.engine) as connection:
        assert all_sessions(connection) == ()
        assert forget_old_sessions(connection, before=later) == 0


def test_a_failed_transaction_leaves_nothing_behind(url: str) -> None:
    engine = open_database(url)
    with pytest.raises(UnavailableError), transaction(engine) as connection:
        remember_challenge(connection, digest=bytes(32), message=b"", nonce=bytes(32), expires_at=1)
        remember_challenge(connection, digest=bytes(32), message=b"", nonce=bytes(32), expires_at=1)
    with transaction(engine) as connection:
        assert forget_expired_challenges(connection, before=2) == 0


def test_an_error_of_the_database_is_told_as_unavailable(url: str) -> None:
    with pytest.raises(UnavailableError) as caught, transaction(open_database(url)):
        raise IntegrityError("INSERT", {}, Exception("unique"))
    assert "unique" in str(caught.value)


def test_a_missing_database_is_not_made_in_passing(tmp_path: Path) -> None:
    with pytest.raises((UnavailableError, SetupError)):
        open_database(f"sqlite:///{tmp_path}/nothing.db")


def test_a_database_of_the_first_schema_is_brought_up_to_date(world: World) -> None:
    """As `affiant service run` does it; sessions that are there stay, and other commands wait for it."""
    session = world.machine().attest()
    engine = world.service.context.engine
    added = ("rules_name", "rules_version", "rules_age_ms", "rules_expired", "rules_trouble")
    with engine.begin() as connection:
        for name in added:
            connection.exec_driver_sql(f"ALTER TABLE sessions DROP COLUMN {name}")
        connection.exec_driver_sql("DROP TABLE unified_images")
        connection.exec_driver_sql("UPDATE affiant_schema SET version = 1")
    with pytest.raises(SetupError, match="schema version 1"):
        open_database(str(engine.url))
    engine.dispose()
    open_database(str(engine.url), create=True).dispose()
    session.heartbeat()
    with transaction(engine) as connection:
        (row,) = all_sessions(connection)
    assert (row.session_id, row.rules_name, row.rules_version) == (session.report.session_id, "base", 1)


def test_a_database_of_the_second_schema_gets_the_table_of_images(world: World) -> None:
    engine = world.service.context.engine
    with engine.begin() as connection:
        connection.exec_driver_sql("DROP TABLE unified_images")
        connection.exec_driver_sql("UPDATE affiant_schema SET version = 2")
    with pytest.raises(SetupError, match="schema version 2") as refusal:
        open_database(str(engine.url))
    assert "`affiant service init` brings it up to date" in refusal.value.hint
    open_database(str(engine.url), create=True).dispose()
    with transaction(engine) as connection:
        (value,) = all_references(connection)
    assert (value.unified_images, value.addons) == (frozenset(), frozenset())


def test_the_tables_can_be_made_in_postgresql() -> None:
    """No type or clause is particular to SQLite."""
    statements = [
        str(CreateTable(t).compile(dialect=postgresql.dialect())) for t in tables.metadata.sorted_tables
    ]
    assert len(statements) == 11
    assert all("BLOB" not in statement for statement in statements)
