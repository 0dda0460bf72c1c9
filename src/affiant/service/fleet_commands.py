"""`affiant service devices` and `sessions`: which machines there are, and how they fare."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from affiant.service.command_line import now, storage

if TYPE_CHECKING:
    from argparse import _SubParsersAction

__all__ = ["register_fleet"]


def register_fleet(
    commands: _SubParsersAction[argparse.ArgumentParser], common: argparse.ArgumentParser
) -> None:
    """Add `devices` and `sessions`."""
    for name, run, words in (
        ("devices", _devices, "enrolled machines"),
        ("sessions", _sessions, "sessions given out, and whether they still speak"),
    ):
        listing = commands.add_parser(name, parents=[common], help=words)
        listing.add_argument("--json", action="store_true", help="as JSON")
        listing.set_defaults(run=run)


def _devices(arguments: argparse.Namespace) -> int:
    from affiant.service.database import transaction
    from affiant.service.device_store import all_devices
    from affiant.service.rows import show_rows

    with transaction(storage(arguments)) as connection:
        found = all_devices(connection)
    rows = [
        {
            "device": row.device.hex(),
            "endorsement_key": row.ek_fingerprint.hex(),
            "attestation_keys": row.attestation_keys,
            "enrolled_at": row.enrolled_at,
            "last_seen": row.last_seen,
        }
        for row in found
    ]
    return show_rows(rows, as_json=arguments.json)


def _sessions(arguments: argparse.Namespace) -> int:
    from affiant.service.database import transaction
    from affiant.service.rows import show_rows
    from affiant.service.session_store import SessionState, all_sessions

    with transaction(storage(arguments)) as connection:
        found = all_sessions(connection)
    seconds = now()
    rows = [
        {
            "session": row.session_id.hex(),
            "device": row.device.hex(),
            "level": row.level,
            "state": row.state(now=seconds).value,
            "reports": row.last_sequence,
            "violations": row.violations,
            "rules": "" if row.rules_version is None else f"{row.rules_name} {row.rules_version}",
            "rules_age_ms": row.rules_age_ms,
            "rules_expired": row.rules_expired,
            "rules_trouble": row.rules_trouble or "",
            "issued_at": row.issued_at,
            "expires_at": row.expires_at,
            "last_seen": row.last_seen,
            "ended_because": row.ended_because,
        }
        for row in found
    ]
    if not arguments.json:
        rows = [
            {
                **row,
                "seen": f"{seconds - each.last_seen} s ago",
                # The state says it already, of every session of a machine but the last.
                "ended_because": ""
                if row["state"] == SessionState.SUPERSEDED.value
                else row["ended_because"],
            }
            for row, each in zip(rows, found, strict=True)
        ]
    columns = ["session", "device", "level", "state", "violations", "rules", "seen"]
    return show_rows(
        rows, as_json=arguments.json, columns=columns, reasons=("ended_because", "rules_trouble")
    )
