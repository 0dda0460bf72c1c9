"""What was seen of each kernel, as values: made by looking, told by the page and as JSON."""

from __future__ import annotations

import enum
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from affiant.model.outcome import Outcome

__all__ = [
    "Answer",
    "Boot",
    "Host",
    "Kernel",
    "Live",
    "Reading",
    "Reference",
    "Sites",
    "Verdict",
    "faults",
    "to_json",
]

_FAULTY = (Outcome.VIOLATED, Outcome.INCONCLUSIVE)


class Reading(enum.Enum):
    """How it went to read a fact, or the answer to a rule's query."""

    READ = "read"
    PART = "in part"
    NOT_APPLICABLE = "not applicable"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Answer:
    """A fact or the answer to a query; `amount` says how much of it there was, "" where that means nothing.

    `reason` is one sentence wherever it is not plainly read.
    """

    reading: Reading
    amount: str = ""
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a rule said of a healthy guest; `told` is its reason, or what it found."""

    outcome: Outcome
    looked_at: int
    told: str = ""


@dataclass(frozen=True, slots=True)
class Reference:
    """A reference image, and how it was made. Sizes in bytes.

    `same_again`: whether building it a second time made the same bytes. `unknown_sections` may list patch
    sites that nobody looks at. `locks_down`, `verifies_modules`: what its package's configuration says that
    the kernel does under Secure Boot; None where the package has none.
    """

    size: int
    seconds: float
    module_files_size: int
    same_again: bool
    symbols: int
    types: int
    modules: int
    unknown_sections: tuple[str, ...]
    locks_down: bool | None
    verifies_modules: bool | None


@dataclass(frozen=True, slots=True)
class Boot:
    """How a guest came up, in its own words and as its memory shows."""

    firmware: bool
    secure_boot: bool
    lockdown: str
    event_log: str
    paging_levels: int
    vulnerabilities: Mapping[str, str]
    protections: tuple[str, ...]
    isolated_tables: bool


@dataclass(frozen=True, slots=True)
class Sites:
    """The patch sites of one class in the kernel's text, how many were judged, and bytes not as linked."""

    count: int
    judged: int
    changed_bytes: int


@dataclass(frozen=True, slots=True)
class Live:
    """What looks at a running guest came to; of several looks the worst is told.

    `loaded` are the modules that were loaded between the looks. `unconfirmed` says what was not in order
    afterwards, at one moment; empty if everything was.
    """

    boot: Boot
    facts: Mapping[str, Answer]
    queries: Mapping[str, Answer]
    rules: Mapping[str, Verdict]
    sites: Mapping[str, Sites]
    looks: int
    loaded: tuple[str, ...]
    modules: int
    unconfirmed: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Kernel:
    """All that was seen of one kernel. `failures` are what went wrong on the way, in order."""

    name: str
    suite: str
    release: str = ""
    package: str = ""
    reference: Reference | None = None
    live: Live | None = None
    failures: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Host:
    """What the guests ran on; versions as the programs and the package manager tell them."""

    system: str
    qemu: str
    firmware: str
    swtpm: str
    acceleration: str
    python: str


def faults(kernels: tuple[Kernel, ...]) -> Iterator[str]:
    """Tell everything that is not as it shall be: one line each.

    What is not applicable is none, nor is a fact that was read in part: the rules that read it judge that.
    """
    for kernel in kernels:
        for failure in kernel.failures:
            yield f"{kernel.name}: {failure}"
        if kernel.reference is not None and not kernel.reference.same_again:
            yield f"{kernel.name}: building the reference image again made other bytes"
        if kernel.live is None:
            continue
        for name, verdict in kernel.live.rules.items():
            if verdict.outcome in _FAULTY:
                yield f"{kernel.name}: {name} is {verdict.outcome.value}: {verdict.told}"
        for name, answer in (*kernel.live.facts.items(), *kernel.live.queries.items()):
            if answer.reading is Reading.FAILED:
                yield f"{kernel.name}: {name} could not be read: {answer.reason}"
        for told in kernel.live.unconfirmed:
            yield f"{kernel.name}: after modules were loaded: {told}"


def to_json(host: Host, kernels: tuple[Kernel, ...]) -> dict[str, Any]:
    """Return everything as JSON: the values field by field, outcomes and readings by their words."""
    plain: dict[str, Any] = _plain({"host": asdict(host), "kernels": [asdict(kernel) for kernel in kernels]})
    return {**plain, "faults": list(faults(kernels))}


def _plain(value: Any) -> Any:
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, Mapping):
        return {name: _plain(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return value
