"""`affiant service`: run an attestation service, and tell it what to trust."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from affiant.service.command_line import now, settings_of, storage
from affiant.service.fleet_commands import register_fleet
from affiant.service.run_commands import register_run
from affiant.service.trust_commands import register_trust

if TYPE_CHECKING:
    from argparse import _SubParsersAction

__all__ = ["register"]


def register(subcommands: _SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `service` with its commands."""
    service = subcommands.add_parser("service", help="the attestation service and what it trusts")
    commands = service.add_subparsers(required=True, metavar="COMMAND")
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument(
        "--folder", type=Path, metavar="FOLDER", help="keys and database (default: $AFFIANT_HOME/service)"
    )
    common.add_argument(
        "--database", default="", metavar="URL", help="SQLAlchemy address (default: SQLite in the folder)"
    )

    init = commands.add_parser("init", parents=[common], help="make keys, certificates and tables")
    init.add_argument("--issuer", default="affiant", metavar="NAME", help="default: %(default)s")
    init.set_defaults(run=_init)
    register_run(commands, common)
    root = commands.add_parser("root", parents=[common], help="print the root certificate's path")
    root.set_defaults(run=_root)
    register_trust(commands, common)
    register_fleet(commands, common)


def _init(arguments: argparse.Namespace) -> int:
    from affiant.service.administration import initialise

    print(initialise(settings_of(arguments, issuer=arguments.issuer), now=now()))
    return 0


def _root(arguments: argparse.Namespace) -> int:
    from affiant.service.ca import root_path

    storage(arguments).dispose()
    print(root_path(settings_of(arguments).folder))
    return 0
