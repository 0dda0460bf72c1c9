"""Kept fact records of any number of machines: found in a folder, opened, checked, put in order."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from affiant.launcher.fact_ring import SUFFIX
from affiant.model.errors import EvidenceError, ForgedError, MalformedError, SetupError
from affiant.model.fact_record import FactRecord
from affiant.wire.fact_record import (
    MAX_KEPT,
    SelfSignedFactRecord,
    open_kept,
    read_fact_record,
    verify_fact_record,
)

__all__ = ["KeptRecord", "Refusal", "gaps", "load_facts", "open_records"]


@dataclass(frozen=True, slots=True)
class KeptRecord:
    """A record in a file, without its facts: a week of them does not fit into memory, see `load_facts`.

    Unless `verified`, it is anybody's word, unchanged since it was said.
    """

    path: Path
    record: FactRecord
    verified: bool


@dataclass(frozen=True, slots=True)
class Refusal:
    """A file that is no record to judge, and why."""

    path: Path
    reason: str


def open_records(
    folder: Path, *, key: X25519PrivateKey | None, root: x509.Certificate | None
) -> tuple[list[KeptRecord], list[Refusal]]:
    """Return the records in all `*.facts` files below a folder, and the files that hold none.

    With `root`, a record that no monitor made that the service vouched for is refused; without, nothing is
    known of who made it. A record that lies there twice counts once. In order of machine and time.

    Raises `SetupError` if there is no such file there, and if one is sealed and no key was given.
    """
    paths = sorted(folder.rglob(f"*{SUFFIX}"))
    if not paths:
        raise SetupError(
            f"there are no kept facts in {folder}",
            hint="`affiant vm start --keep-facts N` keeps some, in facts/ of the machine's folder",
        )
    records: dict[bytes, KeptRecord] = {}
    refused = []
    for path in paths:
        try:
            kept = _open(path, key, root)
            records.setdefault(kept.record.digest, kept)
        except EvidenceError as error:
            refused.append(Refusal(path, str(error)))
        except OSError as error:
            refused.append(Refusal(path, f"it cannot be read: {error.strerror}"))
    ordered = sorted(records.values(), key=lambda kept: (kept.record.device, _moment(kept.record)))
    return ordered, refused


def load_facts(kept: KeptRecord, *, key: X25519PrivateKey | None) -> FactRecord:
    """Return a record with its facts. Raises `ForgedError` if the file is not the one that was opened."""
    record = _read(kept.path, key).said
    if record.digest != kept.record.digest:
        raise ForgedError(f"{kept.path} was changed meanwhile")
    return record


def gaps(records: Iterable[KeptRecord]) -> Iterator[tuple[FactRecord, FactRecord]]:
    """Yield each pair of neighbours in one chain between which records are missing, or that do not join.

    What was removed at either end of a chain does not show.
    """
    chains: dict[bytes, list[FactRecord]] = {}
    for kept in records:
        chains.setdefault(kept.record.device + kept.record.chain, []).append(kept.record)
    for chain in chains.values():
        for before, after in pairwise(sorted(chain, key=lambda record: record.sequence)):
            if after.sequence != before.sequence + 1 or after.previous != before.digest:
                yield before, after


def _open(path: Path, key: X25519PrivateKey | None, root: x509.Certificate | None) -> KeptRecord:
    read = _read(path, key)
    if root is not None:
        verify_fact_record(read, root=root)
    return KeptRecord(path, replace(read.said, facts={}, origins={}), verified=root is not None)


def _read(path: Path, key: X25519PrivateKey | None) -> SelfSignedFactRecord:
    with path.open("rb") as file:
        content = file.read(MAX_KEPT + 1)
    if len(content) > MAX_KEPT:
        raise MalformedError(f"kept record: more than {MAX_KEPT} bytes")
    return read_fact_record(open_kept(content, key=key))


def _moment(record: FactRecord) -> tuple[int, bytes, int]:
    return record.taken_at, record.chain, record.sequence
