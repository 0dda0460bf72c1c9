"""One entry of the corpus: evidence, the lie in words, and the verdict that a verifier must give.

The files are JSON; README.md beside this file says what each field means.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from difflib import SequenceMatcher
from itertools import accumulate
from pathlib import Path
from typing import Any

from affiant.model.errors import MalformedError
from affiant.tpm.event_log import parse_event_log

__all__ = ["CASES", "Case", "Evidence", "Splice", "base_log", "load_cases", "splices"]

FOLDER = Path(__file__).parent
CASES = FOLDER / "cases"
_LOGS = FOLDER.parent / "vectors" / "boot"

Splice = tuple[int, int, str]  # offset in the base log, octets that go, octets that come (hex)


def base_log(name: str) -> bytes:
    """A recorded log that forgeries are made from."""
    return (_LOGS / f"{name}.bin").read_bytes()


@dataclass(frozen=True)
class Evidence:
    """What a verifier is shown; octets are hex."""

    attestation_key: str
    attest: str
    signature: str
    pcrs: dict[str, str]
    base_log: str
    log_splices: list[Splice]

    def log(self) -> bytes:
        """The log: the base with its splices, the last one first."""
        octets = base_log(self.base_log)
        for offset, gone, come in reversed(self.log_splices):
            octets = octets[:offset] + bytes.fromhex(come) + octets[offset + gone :]
        return octets


@dataclass(frozen=True)
class Case:
    """`verdict` is either a refusal or what a verifier concludes (see README.md)."""

    name: str
    lie: str
    evidence: Evidence
    verdict: dict[str, Any]
    nonce: str
    bank: str = "sha256"
    last_seen: dict[str, int] | None = None
    notes: str = field(default="")

    def write(self, folder: Path) -> None:
        """Write the case as JSON."""
        text = json.dumps(asdict(self), indent=1, ensure_ascii=True) + "\n"
        (folder / f"{self.name}.json").write_text(text)

    @classmethod
    def read(cls, path: Path) -> Case:
        """Read a case back."""
        value = json.loads(path.read_text())
        return cls(**value | {"evidence": Evidence(**value["evidence"])})


def load_cases() -> list[Case]:
    """All cases of the corpus, by name."""
    return [Case.read(path) for path in sorted(CASES.glob("*.json"))]


def splices(base: bytes, changed: bytes) -> list[Splice]:
    """What turns `base` into `changed`, event by event, so that a person can see what was bent."""
    ours, theirs = _pieces(base), _pieces(changed)
    starts = [0, *accumulate(map(len, ours))]
    found: list[Splice] = []
    for kind, i, j, k, m in SequenceMatcher(None, ours, theirs, autojunk=False).get_opcodes():
        if kind == "replace" and j - i == m - k:
            for place, (old, new) in enumerate(zip(ours[i:j], theirs[k:m], strict=True)):
                found += _splice(starts[i + place], old, new)
        elif kind != "equal":
            found += _splice(starts[i], b"".join(ours[i:j]), b"".join(theirs[k:m]))
    return found


def _splice(offset: int, old: bytes, new: bytes) -> list[Splice]:
    if old == new:
        return []
    head = 0
    while head < min(len(old), len(new)) and old[head] == new[head]:
        head += 1
    tail = 0
    while tail < min(len(old), len(new)) - head and old[-1 - tail] == new[-1 - tail]:
        tail += 1
    gone = len(old) - head - tail
    return [(offset + head, gone, new[head : len(new) - tail].hex())]


def _pieces(log: bytes) -> list[bytes]:
    """The encoded events of a log; what cannot be read is the last piece."""
    try:
        events = parse_event_log(log, padded=True).events
    except MalformedError:
        return [log]
    head = 32 + len(events[0].data)
    sizes = [head] + [
        16 + sum(2 + len(digest) for digest in event.digests.values()) + len(event.data)
        for event in events[1:]
    ]
    pieces, offset = [], 0
    for size in sizes:
        pieces.append(log[offset : offset + size])
        offset += size
    return [*pieces, log[offset:]] if offset < len(log) else pieces
