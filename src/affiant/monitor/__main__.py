"""The monitor's process, as the launcher starts it: descriptors and settings, nothing else.

Usage: python -m affiant.monitor --ram-fd N --copies-fd N --launcher-fd N --courier-fd N --settings JSON
"""

from __future__ import annotations

import argparse
import hashlib
import logging
import socket
import sys
from pathlib import Path

from affiant.assertions.bundle import packaged_library
from affiant.assertions.engine import Engine
from affiant.kernel.machine.memory import GuestMemory
from affiant.model.errors import AffiantError, EvidenceError, ForgedError
from affiant.monitor.courier_client import CourierClient
from affiant.monitor.fact_keeper import FactKeeper
from affiant.monitor.hardening import harden
from affiant.monitor.launcher_client import LauncherClient
from affiant.monitor.loop import Monitor
from affiant.monitor.rules import MonitorRules
from affiant.monitor.rules_checks import RulesChecks
from affiant.monitor.session import SessionMaker
from affiant.monitor.settings import MonitorSettings
from affiant.monitor.watch import KernelWatch
from affiant.rules.trusted import TrustedRules
from affiant.wire.certificates import load_root
from affiant.wire.launch_record import decode_launch_record
from affiant.wire.launcher_requests import Record

__all__ = ["main"]


def main() -> int:
    """Serve until the launcher or the relay closes its channel."""
    harden()
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    arguments = _parser().parse_args()
    try:
        _serve(arguments)
    except AffiantError as error:
        logging.getLogger("affiant.monitor").error("%s", error)  # noqa: TRY400  the trace says nothing to a person
        return 3
    return 0


def _serve(arguments: argparse.Namespace) -> None:
    settings = MonitorSettings.from_json(arguments.settings)
    launcher = LauncherClient(socket.socket(fileno=arguments.launcher_fd))
    courier = CourierClient(socket.socket(fileno=arguments.courier_fd))
    _check_roots(settings, launcher)
    root = load_root(settings.service_root)
    memory = GuestMemory.open(
        arguments.ram_fd,
        memory_bytes=settings.memory_bytes,
        below_4g_bytes=settings.below_4g_bytes,
        copies=arguments.copies_fd,
    )
    with memory, Engine(packaged_library()) as engine:
        watch = KernelWatch(
            memory=memory, launcher=launcher, references=Path(settings.references), engine=engine
        )
        rules = _rules(settings, engine, courier)
        Monitor(
            settings=settings,
            launcher=launcher,
            courier=courier,
            watch=watch,
            rules=rules,
            sessions=SessionMaker(launcher=launcher, courier=courier, boot=watch, root=root),
            root=root,
            keeper=_keeper(settings, launcher, engine),
        ).run()


def _rules(settings: MonitorSettings, engine: Engine, courier: CourierClient) -> MonitorRules:
    """Return the rules to judge by; a pinned root that is none leaves the packaged library, and is told."""
    if settings.rules_root is None:
        return MonitorRules(engine)
    try:
        trusted = TrustedRules(
            settings.rules_root,
            expected_digest=hashlib.sha256(settings.rules_root).digest(),
            first=engine.bundle,
        )
    except EvidenceError as error:
        return MonitorRules(engine, trouble=str(error))
    checks = RulesChecks(trusted, courier, fleet=settings.fleet)
    return MonitorRules(engine, checks, interval_ms=settings.rules_interval_ms)


def _keeper(settings: MonitorSettings, launcher: LauncherClient, engine: Engine) -> FactKeeper | None:
    if not settings.keep_facts_ms:
        return None
    recipient = settings.facts_key or None
    return FactKeeper(launcher, engine.bundle, every_ms=settings.keep_facts_ms, recipient=recipient)


def _check_roots(settings: MonitorSettings, launcher: LauncherClient) -> None:
    """Accept the roots of service and rules, and the fleet, only if PCR 17 vouches for them."""
    record = decode_launch_record(launcher.ask(Record()))
    if record.service_root != hashlib.sha256(settings.service_root).digest():
        raise ForgedError("the service root in the settings is not the one in the launch record")
    pinned = None if settings.rules_root is None else hashlib.sha256(settings.rules_root).digest()
    if record.rules_root != pinned:
        raise ForgedError("the rules root in the settings is not the one in the launch record")
    if record.rules_root is not None and record.fleet != settings.fleet:
        raise ForgedError("the fleet in the settings is not the one in the launch record")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="affiant.monitor", description=__doc__)
    for name in ("--ram-fd", "--copies-fd", "--launcher-fd", "--courier-fd"):
        parser.add_argument(name, type=int, required=True)
    parser.add_argument("--settings", required=True)
    return parser


if __name__ == "__main__":
    sys.exit(main())
