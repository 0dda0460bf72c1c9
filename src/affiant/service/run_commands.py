"""`affiant service run`: answer monitors over HTTP."""

from __future__ import annotations

import argparse
import json
import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING

from affiant.service.command_line import now, settings_of

if TYPE_CHECKING:
    from argparse import _SubParsersAction

    from affiant.appraisal.policy import AppraisalPolicy

__all__ = ["register_run"]

_LAST_PORT = 65535
_LONGEST_ISSUER = 200


def register_run(
    commands: _SubParsersAction[argparse.ArgumentParser], common: argparse.ArgumentParser
) -> None:
    """Add `run`."""
    run = commands.add_parser(
        "run",
        parents=[common],
        help="answer monitors over HTTP",
        description="Answers monitors until SIGTERM. An empty folder is initialised first.",
    )
    run.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    run.add_argument(
        "--port", type=_port, default=8710, metavar="N", help="0 takes a free one (default: 8710)"
    )
    run.add_argument("--issuer", type=_issuer, default="affiant", metavar="NAME", help="default: %(default)s")
    run.add_argument(
        "--heartbeat", type=int, default=30, metavar="S", help="silence begins after S seconds (default: 30)"
    )
    run.add_argument(
        "--rules", type=Path, metavar="FOLDER", help="give out this rules repository (`affiant rules`)"
    )
    run.add_argument(
        "--require-published-rules",
        action="store_true",
        help="open sessions only for monitors that judge by its newest bundle",
    )
    run.add_argument(
        "--minimum-rules-version", type=int, default=1, metavar="N", help="oldest rules a monitor may use"
    )
    run.add_argument(
        "--minimum-security-version", type=int, default=1, metavar="N", help="oldest monitor to accept"
    )
    run.add_argument(
        "--policy", type=Path, metavar="FILE", help="what to accept, as `affiant policy init` writes it"
    )
    run.add_argument(
        "--unsafe-accept-any-monitor",
        action="store_true",
        help="UNSAFE, for developing monitors: let any program speak for a guest",
    )
    ready = run.add_mutually_exclusive_group()
    ready.add_argument("--ready-fd", type=int, metavar="N", help="write {url, pid} there once answering")
    ready.add_argument("--ready-file", type=Path, metavar="FILE", help="the same, into a file")
    run.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    from affiant.service.administration import initialise, open_context
    from affiant.service.attestation_service import AttestationService
    from affiant.service.http import build_app
    from affiant.service.log import log_to_stderr
    from affiant.service.server import listen, serve

    settings = settings_of(
        arguments,
        issuer=arguments.issuer,
        heartbeat_seconds=arguments.heartbeat,
        minimum_rules_version=arguments.minimum_rules_version,
        rules=arguments.rules,
        require_published_rules=arguments.require_published_rules,
        minimum_security_version=arguments.minimum_security_version,
        accept_any_monitor_image=arguments.unsafe_accept_any_monitor,
        policy=_policy(arguments.policy),
    )
    log_to_stderr()
    initialise(settings, now=now())
    if settings.accept_any_monitor_image or settings.policy.accept_any_monitor_image:
        logging.getLogger("affiant.service").warning("UNSAFE: any program may speak for a guest")
    service = AttestationService(open_context(settings, now=now()))
    listener = listen(arguments.host, arguments.port)
    host, port = listener.getsockname()[:2]
    url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
    word = json.dumps({"url": url, "pid": os.getpid()}) + "\n"

    def ready() -> None:
        if arguments.ready_fd is not None:
            with os.fdopen(arguments.ready_fd, "w") as file:
                file.write(word)
        elif arguments.ready_file is not None:
            # Renamed into place: who waits for the file finds all of it.
            temporary = arguments.ready_file.with_name(arguments.ready_file.name + ".new")
            temporary.write_text(word)
            temporary.replace(arguments.ready_file)
        else:
            print(url, flush=True)

    serve(build_app(service, limits=settings.limits), listener, limits=settings.limits, ready=ready)
    return 0


def _port(text: str) -> int:
    # The resolver takes 65536 for 0: the service would answer where nobody looks for it.
    if not text.isdecimal() or (port := int(text)) > _LAST_PORT:
        raise argparse.ArgumentTypeError(f"a port is a number from 0 to {_LAST_PORT}")
    return port


def _issuer(text: str) -> str:
    if not 1 <= len(text) <= _LONGEST_ISSUER or not text.isprintable():
        raise argparse.ArgumentTypeError(f"a name has 1 to {_LONGEST_ISSUER} printable characters")
    return text


def _policy(path: Path | None) -> AppraisalPolicy:
    from affiant.appraisal.policy import AppraisalPolicy
    from affiant.appraisal.policy_file import MAXIMUM_POLICY, parse_policy
    from affiant.model.errors import SetupError

    if path is None:
        return AppraisalPolicy()
    try:
        with path.open("rb") as file:
            return parse_policy(file.read(MAXIMUM_POLICY + 1)).policy
    except OSError as error:
        raise SetupError(f"policy: cannot read {path}: {error.strerror}") from None
