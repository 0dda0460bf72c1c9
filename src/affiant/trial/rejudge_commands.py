"""`affiant assertions rejudge` and `facts-key`: rules written today, judged on what was kept before."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from argparse import _SubParsersAction

    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

    from affiant.model.fact_record import FactRecord
    from affiant.trial.kept import KeptRecord, Refusal
    from affiant.trial.rejudge import MachineHistory

__all__ = ["register"]

_LARGEST_FILE = 1 << 16
_MOST_TOLD = 10


def register(actions: _SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add both to `affiant assertions`."""
    judge = actions.add_parser(
        "rejudge",
        help="judge kept facts by a rule: was any machine hit by this before?",
        description="Judges every record in a folder by one rule, and tells when which machine violated it. "
        "1 if one did, 3 if that cannot be said of all of them.",
    )
    judge.add_argument("rule", metavar="RULE", help="a .star file or a rule of the library")
    where = judge.add_mutually_exclusive_group(required=True)
    where.add_argument("--facts", type=Path, metavar="DIR", help="a folder with *.facts files, below it too")
    where.add_argument("--vm", metavar="NAME", help="a machine on this host: its facts, by its root")
    judge.add_argument("--key", type=Path, metavar="FILE", help="the private key that they are sealed to")
    judge.add_argument(
        "--root", type=Path, metavar="PEM", help="the service's root: believe only monitors it vouched for"
    )
    judge.add_argument("--json", action="store_true", help="for programs")
    judge.set_defaults(run=_rejudge)

    key = actions.add_parser(
        "facts-key",
        help="make a key that kept facts are sealed to",
        description="Writes a private X25519 key to FILE, which opens kept facts, and its public half to "
        "FILE.pub, for `affiant vm start --facts-key`.",
    )
    key.add_argument("file", metavar="FILE", type=Path)
    key.set_defaults(run=_make_key)


def _make_key(arguments: argparse.Namespace) -> int:
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

    from affiant.new_file import write_new_file
    from affiant.wire.facts_key import private_pem, public_pem

    key = X25519PrivateKey.generate()
    public = arguments.file.with_name(arguments.file.name + ".pub")
    write_new_file(arguments.file, private_pem(key), mode=0o600)
    write_new_file(public, public_pem(key.public_key()), mode=0o644)
    print(f"wrote {arguments.file} (private: keep it where no monitored host is) and {public}")
    return 0


def _rejudge(arguments: argparse.Namespace) -> int:
    from affiant.assertions.engine import Engine
    from affiant.kernel.facts.registry import FACTS
    from affiant.model.errors import SetupError
    from affiant.model.outcome import Outcome
    from affiant.trial.bundles import bundle_of
    from affiant.trial.kept import gaps, load_facts, open_records
    from affiant.trial.rejudge import rejudge

    bundle = bundle_of([arguments.rule])
    folder, root = _place(arguments)
    key = _read_key(arguments.key)
    records, refused = open_records(folder, key=key, root=_read_root(root))
    if not records:
        raise SetupError(
            f"none of the {len(refused)} records in {folder} can be judged: {refused[0].reason}",
            hint="another --key or --root?",
        )
    versions = {name: definition.version for name, definition in FACTS.items()}
    with Engine(bundle) as engine:
        histories = rejudge(engine, records, load=partial(load_facts, key=key), versions=versions)
    missing = list(gaps(records))
    told = _told(bundle.scripts[0].name, histories, records, refused, missing)
    if arguments.json:
        print(json.dumps(told, indent=2))
    else:
        print("\n".join(_lines(told)))
    outcomes = {outcome for history in histories for outcome in history.outcomes}
    if Outcome.VIOLATED in outcomes:
        return 1
    return 3 if Outcome.INCONCLUSIVE in outcomes or refused or missing else 0


def _place(arguments: argparse.Namespace) -> tuple[Path, Path | None]:
    """Return the folder of records and the root to verify them by."""
    if arguments.vm is None:
        return arguments.facts, arguments.root

    from affiant.vm.state import VmState

    state = VmState.load(arguments.vm)
    return state.facts, arguments.root or state.service_root


def _read_key(path: Path | None) -> X25519PrivateKey | None:
    from affiant.wire.facts_key import load_private_key

    return None if path is None else load_private_key(_read(path))


def _read_root(path: Path | None) -> x509.Certificate | None:
    from affiant.wire.certificates import load_root

    return None if path is None else load_root(_read(path))


def _read(path: Path) -> bytes:
    from affiant.model.errors import SetupError

    try:
        with path.open("rb") as file:
            return file.read(_LARGEST_FILE)
    except OSError as error:
        raise SetupError(f"{path} cannot be read: {error.strerror}") from None


def _told(
    rule: str,
    histories: Sequence[MachineHistory],
    records: Sequence[KeptRecord],
    refused: Iterable[Refusal],
    missing: Iterable[tuple[FactRecord, FactRecord]],
) -> dict[str, Any]:
    return {
        "rule": rule,
        "verified": all(kept.verified for kept in records),
        "machines": [
            {
                "machine": history.device.hex(),
                "from": _time(history.first),
                "to": _time(history.last),
                "records": {outcome.value: count for outcome, count in history.outcomes.items()},
                "reasons": dict(history.reasons),
                "violations": [
                    {
                        "last_good": None if episode.last_good is None else _time(episode.last_good),
                        "first_seen": _time(episode.first),
                        "last_seen": _time(episode.last),
                        "records": episode.records,
                        "findings": [
                            {"subject": f.subject, "expected": f.expected, "found": f.found, "owner": f.owner}
                            for f in episode.findings
                        ],
                    }
                    for episode in history.episodes
                ],
            }
            for history in histories
        ],
        "gaps": [
            {
                "machine": before.device.hex(),
                "from": _time(before.taken_at),
                "to": _time(after.taken_at),
                "missing": max(0, after.sequence - before.sequence - 1),
            }
            for before, after in missing
        ],
        "refused": [{"file": str(refusal.path), "reason": refusal.reason} for refusal in refused],
    }


def _lines(told: dict[str, Any]) -> Iterable[str]:
    for machine in told["machines"]:
        counts = ", ".join(f"{count} {outcome}" for outcome, count in machine["records"].items())
        yield f"{told['rule']}, machine {machine['machine']}, {machine['from']} to {machine['to']}: {counts}"
        for violation in machine["violations"]:
            good = violation["last_good"]
            yield (
                f"  violated from {violation['first_seen']} to {violation['last_seen']} "
                f"({'it held at ' + good if good else 'it was not seen to hold before'})"
            )
            for finding in violation["findings"][:_MOST_TOLD]:
                yield f"    {finding['subject']}: expected {finding['expected']}, found {finding['found']}"
            if (more := len(violation["findings"]) - _MOST_TOLD) > 0:
                yield f"    and {more} more"
        for reason, count in machine["reasons"].items():
            yield f"  {count} without an answer: {reason}"
    for gap in told["gaps"]:
        yield (
            f"  records are missing ({gap['missing']}) or changed between {gap['from']} and {gap['to']}, "
            f"machine {gap['machine']}"
        )
    for refusal in told["refused"]:
        yield f"  refused {refusal['file']}: {refusal['reason']}"
    if not told["verified"]:
        yield "  nobody vouches for these records: --root PEM checks who made them"


def _time(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
