"""The tables: what was seen of each kernel, in columns, with what needs a reason told below."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Final

from affiant.assertions.script import Script
from affiant.model.outcome import Outcome
from lab.support_matrix.groups import grouped
from lab.support_matrix.page import FACTS, KERNELS, QUERIES, RULES, SITES
from lab.support_matrix.seen import Answer, Host, Kernel, Live, Reading, Reference, Sites, Verdict

__all__ = ["tables"]

_NONE: Final = "none"
_UNSEEN: Final = "not seen"
_UNAFFECTED: Final = "Not affected"
_UNKNOWN: Final = "not known to it"
_CONFIGURED: Final = {True: "yes", False: "no", None: "not told by its package"}
_FLAWS: Final = "Mitigations"
_LEGEND: Final = """\
- **holds**: in every look; in parentheses, how many things were looked at in the last one.
- **not applicable**, **inconclusive**, **violated**: in at least one look; the reason stands below the table.
- **read**: in every look; in parentheses, how much of it. **in part**: but for what stands below the table.
- **failed**: it could not be read, for the reason below the table.
- **not seen**: the guest did not come so far, for the reason below the table of kernels."""
_SITES_ARE: Final = """\
Places in `.text` where the kernel patches itself, by class, as the reference image lists them; how many were
judged by themselves, where it is not all of them (the others lie within these, or at the same places, and are
judged with them); and how many bytes in them were not as linked: all of them explained where
`kernel_text_intact` holds."""
_FLAWS_ARE: Final = """\
What each kernel says of itself, with the processor that it was given. Whether a kernel makes such code of
itself as is there, `kernel_text_intact` judges at the patch sites; not whether it fits these words."""


def tables(
    host: Host, kernels: Sequence[Kernel], scripts: Sequence[Script], *, day: str, library: str
) -> str:
    """Return the generated part: all tables, with notes below each and a legend at the end of the first."""
    names = [kernel.name for kernel in kernels]
    parts = [
        f"## {KERNELS}",
        _introduction(host, kernels, day=day, library=library),
        _table("", names, _kernel_rows(kernels)),
        *_notes(_kernel_notes(kernel) for kernel in kernels),
        "### Legend",
        _LEGEND,
        f"## {RULES}",
    ]
    for title, members in grouped(scripts).items():
        rows = [(_rule_title(script), _cells(kernels, _rule_cell(script.name))) for script in members]
        parts += [f"### {title}", _table("rule, version", names, rows)]
        parts += _notes(_rule_notes(kernel, members) for kernel in kernels)
    for section, kind, answers in (
        (FACTS, "fact", lambda live: live.facts),
        (QUERIES, "query", lambda live: live.queries),
    ):
        parts += [f"## {section}", _table(kind, names, _answer_rows(kernels, answers))]
        parts += _notes(_answer_notes(kernel, answers) for kernel in kernels)
    parts += [
        f"## {SITES}",
        _SITES_ARE,
        _table("class", names, _site_rows(kernels)),
        f"## {_FLAWS}",
        _FLAWS_ARE,
        _table("flaw", names, _flaw_rows(kernels)),
        _unaffected(kernels),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _introduction(host: Host, kernels: Sequence[Kernel], *, day: str, library: str) -> str:
    live = [kernel.live for kernel in kernels if kernel.live]
    looks = max((each.looks for each in live), default=0)
    rules = max((len(each.rules) for each in live), default=0)
    return "\n".join(
        [
            f"Run on {day} with the packages of that day, by the library {library} of {rules} rules.",
            f"Host: {host.system}; QEMU {host.qemu}, {host.acceleration}; OVMF {host.firmware}; "
            f"swtpm {host.swtpm}; Python {host.python}.",
            "Guests: two virtual processors, 1 GiB, busybox, a TPM. Nothing tampered with them.",
            f"A monitor's own watch looked {looks} times; the worst of these looks is told. After the first "
            "ones, modules were",
            "loaded; at the end every rule judged one moment of the guest.",
        ]
    )


_Row = tuple[str, Sequence[str]]


def _table(title: str, columns: Sequence[str], rows: Iterable[_Row]) -> str:
    lines = [f"| {' | '.join([title, *columns])} |", "|---|" + "---|" * len(columns)]
    lines += [f"| {' | '.join(map(_cell, [first, *cells]))} |" for first, cells in rows]
    return "\n".join(lines)


def _cell(text: str) -> str:
    """What guests and packages said must not end a cell or a row."""
    return " ".join(text.replace("|", "\\|").split()) or "-"


def _cells(kernels: Sequence[Kernel], tell: Callable[[Live], str]) -> list[str]:
    return [_UNSEEN if kernel.live is None else tell(kernel.live) for kernel in kernels]


def _kernel_rows(kernels: Sequence[Kernel]) -> Iterator[_Row]:
    def of_reference(tell: Callable[[Reference], str]) -> list[str]:
        return [_UNSEEN if kernel.reference is None else tell(kernel.reference) for kernel in kernels]

    def of_guest(tell: Callable[[Live], str]) -> list[str]:
        return _cells(kernels, tell)

    yield "Debian suite", [kernel.suite for kernel in kernels]
    yield "package", [kernel.package or _UNSEEN for kernel in kernels]
    yield "release", [kernel.release or _UNSEEN for kernel in kernels]
    yield (
        "reference image",
        of_reference(lambda seen: f"{seen.size / 1e6:.1f} MB, built in {seen.seconds:.0f} s"),
    )
    yield "built again", of_reference(lambda seen: "the same bytes" if seen.same_again else "**other bytes**")
    yield "symbols (kallsyms)", of_reference(lambda seen: f"{seen.symbols:,}" if seen.symbols else _NONE)
    yield "types (BTF)", of_reference(lambda seen: f"{seen.types:,}" if seen.types else _NONE)
    yield (
        "modules known",
        of_reference(lambda seen: f"{seen.modules:,}, {seen.module_files_size / 1e6:.1f} MB of files"),
    )
    yield (
        "sections unknown to the builder",
        of_reference(lambda seen: ", ".join(seen.unknown_sections) or _NONE),
    )
    yield "known to lock down under Secure Boot", of_reference(lambda seen: _CONFIGURED[seen.locks_down])
    yield "known to verify modules then", of_reference(lambda seen: _CONFIGURED[seen.verifies_modules])
    yield "boot", of_guest(_boot)
    yield "lockdown", of_guest(lambda live: live.boot.lockdown)
    yield (
        "event log of the boot, in memory",
        of_guest(lambda live: f"found by {live.boot.event_log}" if live.boot.event_log else _NONE),
    )
    yield "levels of page tables", of_guest(lambda live: str(live.boot.paging_levels))
    yield "protections on in all processors", of_guest(lambda live: ", ".join(live.boot.protections) or _NONE)
    yield "page table isolation", of_guest(lambda live: "on" if live.boot.isolated_tables else "off")
    yield (
        "modules loaded between looks",
        of_guest(lambda live: f"{', '.join(live.loaded) or _NONE}; {live.modules} in all"),
    )
    yield "confirmed afterwards", of_guest(lambda live: "**no**" if live.unconfirmed else "yes")


def _boot(live: Live) -> str:
    if not live.boot.firmware:
        return "direct"
    return "Secure Boot" if live.boot.secure_boot else "firmware, **Secure Boot not told of**"


def _rule_title(script: Script) -> str:
    return f"[`{script.name}`](assertions/{script.name}.md), {script.version}"


def _rule_cell(name: str) -> Callable[[Live], str]:
    def tell(live: Live) -> str:
        verdict = live.rules.get(name)
        return _UNSEEN if verdict is None else _verdict(verdict)

    return tell


def _verdict(verdict: Verdict) -> str:
    if verdict.outcome is Outcome.HOLDS:
        return f"holds ({verdict.looked_at:,})"
    word = str(verdict.outcome.value)
    return word if verdict.outcome is Outcome.NOT_APPLICABLE else f"**{word}**"


def _answer_rows(
    kernels: Sequence[Kernel], answers: Callable[[Live], Mapping[str, Answer]]
) -> Iterator[_Row]:
    names = dict.fromkeys(name for kernel in kernels if kernel.live for name in answers(kernel.live))
    for name in names:

        def tell(live: Live, name: str = name) -> str:
            answer = answers(live).get(name)
            return _UNSEEN if answer is None else _answer(answer)

        yield f"`{name}`", _cells(kernels, tell)


def _answer(answer: Answer) -> str:
    word = f"**{answer.reading.value}**" if answer.reading is Reading.FAILED else answer.reading.value
    return f"{word} ({answer.amount})" if answer.amount else word


def _site_rows(kernels: Sequence[Kernel]) -> Iterator[_Row]:
    names = dict.fromkeys(name for kernel in kernels if kernel.live for name in kernel.live.sites)
    for name in names:

        def tell(live: Live, name: str = name) -> str:
            return _sites(live.sites.get(name))

        yield f"`{name}`", _cells(kernels, tell)


def _sites(sites: Sites | None) -> str:
    if sites is None or not sites.count:
        return _NONE
    told = f"{sites.count:,}"
    if sites.judged != sites.count:
        told += f", {sites.judged:,} judged"
    return f"{told}; {sites.changed_bytes:,} bytes" if sites.changed_bytes else told


def _flaw_rows(kernels: Sequence[Kernel]) -> Iterator[_Row]:
    """Yield what some kernel says more of than that it is not affected."""
    for name in _flaws(kernels):
        told = {kernel.live.boot.vulnerabilities.get(name) for kernel in kernels if kernel.live}
        if told - {None, _UNAFFECTED}:
            yield name, _cells(kernels, _flaw_cell(name))


def _flaw_cell(name: str) -> Callable[[Live], str]:
    return lambda live: live.boot.vulnerabilities.get(name, _UNKNOWN)


def _unaffected(kernels: Sequence[Kernel]) -> str:
    told = {name for name, _ in _flaw_rows(kernels)}
    rest = [name for name in _flaws(kernels) if name not in told]
    return f"Not affected, where they know of it: {', '.join(rest)}." if rest else ""


def _flaws(kernels: Sequence[Kernel]) -> list[str]:
    return sorted({name for kernel in kernels if kernel.live for name in kernel.live.boot.vulnerabilities})


_Note = tuple[str, str]


def _kernel_notes(kernel: Kernel) -> tuple[str, list[_Note]]:
    unconfirmed = () if kernel.live is None else kernel.live.unconfirmed
    return kernel.name, [
        *(("", failure) for failure in kernel.failures),
        *(("", f"not confirmed, {told}") for told in unconfirmed),
    ]


def _rule_notes(kernel: Kernel, members: Sequence[Script]) -> tuple[str, list[_Note]]:
    verdicts = {} if kernel.live is None else kernel.live.rules
    return kernel.name, [
        (script.name, f"{verdict.outcome.value}: {verdict.told}")
        for script in members
        if (verdict := verdicts.get(script.name)) and verdict.outcome is not Outcome.HOLDS
    ]


def _answer_notes(kernel: Kernel, answers: Callable[[Live], Mapping[str, Answer]]) -> tuple[str, list[_Note]]:
    told = {} if kernel.live is None else answers(kernel.live)
    return kernel.name, [
        (name, f"{answer.reading.value}: {answer.reason}") for name, answer in told.items() if answer.reason
    ]


def _notes(told: Iterable[tuple[str, list[_Note]]]) -> Iterator[str]:
    """Yield one list of notes; what is the same of several kernels is told once."""
    kernels: dict[_Note, list[str]] = {}
    for kernel, notes in told:
        for note in notes:
            kernels.setdefault(note, []).append(kernel)
    lines = [
        f"- {f'`{subject}`, ' if subject else ''}{', '.join(names)}: {_cell(text)}"
        for (subject, text), names in kernels.items()
    ]
    if lines:
        yield "\n".join(lines)
