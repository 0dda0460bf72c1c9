"""`python -m affiant.relay`: the relay of one guest, started by the launcher."""

from __future__ import annotations

import argparse
import asyncio
import logging
import socket
import sys
from collections.abc import Sequence
from pathlib import Path

from affiant.model.errors import AffiantError
from affiant.relay.courier import RelaySettings, run_relay

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run until the monitor ends: 0 then, 2 for a monitor or settings that cannot be served."""
    parser = argparse.ArgumentParser(prog="affiant-relay", description=__doc__)
    parser.add_argument(
        "--courier-fd", type=int, required=True, help="the relay's end of the courier channel"
    )
    parser.add_argument("--service", required=True, metavar="URL", help="the attestation service")
    parser.add_argument("--socket", type=Path, required=True, help="where to answer questions for passports")
    parser.add_argument("--rules", metavar="URL", help="the rules repository (default: the service's)")
    parser.add_argument("--tls-ca", metavar="PEM", help="CAs for https, instead of the system's")
    arguments = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s relay %(levelname)s %(message)s")
    # httpx tells each request at this level; what matters is told here.
    logging.getLogger("httpx").setLevel(logging.WARNING)
    settings = RelaySettings(arguments.service, arguments.socket, arguments.tls_ca, arguments.rules)
    try:
        with socket.socket(fileno=arguments.courier_fd) as channel:
            asyncio.run(run_relay(channel, settings))
    except (AffiantError, OSError) as error:
        logging.getLogger("affiant.relay").error("%s", error)  # noqa: TRY400  expected, so one line
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
