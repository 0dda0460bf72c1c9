"""`affiant verify`: is this machine healthy, by its passport and nothing else?

Exit codes: 0 accepted; 1 refused, by the policy or because the passport answers another question;
2 unusable input: damaged, truncated or oversized passport, or wrong usage.
"""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from argparse import _SubParsersAction

__all__ = ["register"]


def register(subcommands: _SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `verify`."""
    parser = subcommands.add_parser(
        "verify",
        help="verify a machine's passport offline and decide",
        description="Verify a passport offline and decide whether the machine may be trusted.",
        epilog="exit code: 0 accepted, 1 refused, 2 unusable passport or usage",
    )
    parser.add_argument(
        "passport", metavar="PASSPORT", help="file, binary or base64url; - reads standard input"
    )
    parser.add_argument(
        "--root", required=True, metavar="FILE", help="the service's root certificate (PEM or DER)"
    )
    parser.add_argument(
        "--nonce",
        required=True,
        type=_nonce,
        metavar="HEX",
        help="the 32 bytes that the passport was asked with",
    )
    parser.add_argument("--audience", metavar="NAME", help="whom the passport must be made for")
    parser.add_argument("--device", type=_hex, metavar="HEX", help="the device that it must be of")
    parser.add_argument(
        "--min-level",
        type=int,
        choices=range(6),
        default=3,
        metavar="N",
        help="lowest security level to accept, 0 to 5 (default: 3, isolated)",
    )
    parser.add_argument(
        "--require",
        action="append",
        default=[],
        metavar="NAME",
        help="an assertion that must hold, also in audit mode (repeatable)",
    )
    parser.add_argument(
        "--max-age",
        type=_seconds,
        default=120,
        metavar="S",
        help="oldest look to accept, in seconds (default: 120)",
    )
    parser.add_argument(
        "--min-rules-version", type=int, default=0, metavar="N", help="oldest version of the rules to accept"
    )
    parser.add_argument("--rules", metavar="NAME", help="the fleet that the rules must be for")
    parser.add_argument(
        "--max-rules-age",
        type=_seconds,
        metavar="S",
        help="refuse rules that were not confirmed as the newest within S seconds (default: tell it only)",
    )
    parser.add_argument(
        "--tolerate-withdrawn",
        action="store_true",
        help="accept earlier violations of rules that were withdrawn since",
    )
    parser.add_argument(
        "--now", type=_moment, metavar="ISO", help="verify as of this time (default: now; UTC)"
    )
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    import json
    import time
    import warnings

    from affiant.model.level import SecurityLevel
    from affiant.relying_party.decide import Policy, decide
    from affiant.relying_party.page import as_json, as_lines, printable
    from affiant.relying_party.verify import NotForUsError, verify_passport
    from affiant.wire.certificates import load_root

    # What a library has to say of odd certificates in the passport is no concern of the reader's:
    # the passport is refused or not, in one line.
    warnings.simplefilter("ignore")
    root = load_root(_read(arguments.root, 1 << 16, "root certificate"))
    try:
        verified = verify_passport(
            _read_passport(arguments.passport),
            root=root,
            expected_nonce=arguments.nonce,
            now=int(time.time()) if arguments.now is None else arguments.now,
            expected_audience=arguments.audience,
            expected_device=arguments.device,
        )
    except NotForUsError as refusal:
        if arguments.json:
            print(json.dumps({"accepted": False, "refused": str(refusal)}, indent=2))
        else:
            print(f"REFUSED\n  {printable(str(refusal))}")
        return 1
    policy = Policy(
        min_level=SecurityLevel(arguments.min_level),
        required=frozenset(arguments.require),
        max_age_s=arguments.max_age,
        min_rules_version=arguments.min_rules_version,
        rules_name=arguments.rules,
        max_rules_age_s=arguments.max_rules_age,
        tolerate_withdrawn=arguments.tolerate_withdrawn,
    )
    decision = decide(verified, policy=policy)
    if arguments.json:
        print(json.dumps(as_json(verified, decision), indent=2))
    else:
        print("\n".join(as_lines(verified, decision)))
    return 0 if decision.accepted else 1


def _read_passport(path: str) -> bytes:
    from affiant.model.errors import MalformedError
    from affiant.wire.passport import MAX_PASSPORT, decode_passport_text

    data = _read(path, 2 * MAX_PASSPORT, "passport")
    if not data:
        raise MalformedError("passport: it is empty")
    # A collection begins with the head of a map, which no base64url text contains.
    if data[0] >= 0x80:
        return data
    try:
        text = data.decode("ascii").strip()
    except UnicodeDecodeError:
        raise MalformedError("passport: neither a CBOR collection nor base64url text") from None
    return decode_passport_text(text)


def _read(path: str, limit: int, name: str) -> bytes:
    from pathlib import Path

    from affiant.model.errors import MalformedError, SetupError

    try:
        if path == "-":
            data = sys.stdin.buffer.read(limit + 1)
        else:
            with Path(path).open("rb") as file:
                data = file.read(limit + 1)
    except OSError as error:
        raise SetupError(f"{name}: cannot read {path}: {error.strerror}") from None
    if len(data) > limit:
        raise MalformedError(f"{name}: more than {limit} bytes")
    return data


def _hex(text: str) -> bytes:
    try:
        return bytes.fromhex(text)
    except ValueError:
        raise argparse.ArgumentTypeError("not hexadecimal") from None


def _nonce(text: str) -> bytes:
    nonce = _hex(text)
    if len(nonce) != 32:
        raise argparse.ArgumentTypeError(f"{len(nonce)} bytes instead of 32")
    return nonce


def _seconds(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError("not a number of seconds above 0")
    return int(text)


def _moment(text: str) -> int:
    from datetime import UTC, datetime

    try:
        moment = datetime.fromisoformat(text)
        return int((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp())
    except (ValueError, OverflowError):
        raise argparse.ArgumentTypeError(
            "not a time in ISO 8601 form, such as 2026-11-23T10:00:00Z"
        ) from None
