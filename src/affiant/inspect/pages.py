"""The pages of `affiant inspect`: facts as tables for people."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from rich.console import Console

    from affiant.inspect.look import Look

__all__ = ["PAGES", "Page", "render"]

Row = tuple[str, ...]
Tables = Iterator[tuple[str, Row, Sequence[Row]]]
_MOST_ROWS = 20


@dataclass(frozen=True, slots=True)
class Page:
    """A page: the facts it needs, and what it shows of them."""

    summary: str
    facts: tuple[str, ...]
    tables: Callable[[Mapping[str, Any]], Tables]


def render(look: Look, page: str, console: Console) -> None:
    """Print one page. Colours only where the console is a terminal."""
    from rich.markup import escape
    from rich.table import Table

    if look.reason:
        console.print(
            f"[yellow]no kernel to look at:[/yellow] {escape(look.reason)}", highlight=False, soft_wrap=True
        )
    facts = {name: fact.to_json() for name, fact in look.facts.items()}
    shown = PAGES["cpus"] if look.reason else PAGES[page]
    for title, columns, rows in shown.tables(facts):
        table = Table(title=title, title_justify="left", show_header=bool(columns), header_style="bold")
        for column in columns or ("", ""):
            table.add_column(column, overflow="fold")
        for row in rows:
            table.add_row(*(escape(_printable(cell)) for cell in row))
        console.print(table)


def _printable(text: str) -> str:
    """Names come from the guest: an escape sequence among them must not reach the terminal."""
    return "".join(letter if letter.isprintable() else f"\\x{ord(letter):02x}" for letter in text)


def _overview(facts: Mapping[str, Any]) -> Tables:
    identity, text, rodata = facts["kernel_identity"], facts["kernel_text"], facts["kernel_rodata"]
    modules, syscalls, tasks = facts["modules"], facts["syscall_table"], facts["tasks"]
    rows: list[Row] = []
    rows += _rows(
        identity,
        "kernel",
        lambda fact: [
            ("kernel", fact["release"]),
            ("build id", fact["build_id"]),
            ("reference image", fact["reference"]),
            (
                "banner",
                "as in the reference" if fact["banner_matches"] else f"differs: {fact['banner_found']}",
            ),
            ("KASLR slide", f"{fact['slide']} (found by {fact['anchor']})"),
            ("physical base", fact["physical_base"]),
        ],
    )
    rows += _rows(text, "text", lambda fact: [("text", _comparison(fact))])
    rows += _rows(rodata, "read-only data", lambda fact: [("read-only data", _comparison(fact))])
    rows += _rows(
        syscalls,
        "system calls",
        lambda fact: [("system calls", f"{fact['entries']} entries, {_total(fact, 'wrong')} wrong")],
    )
    rows += _rows(
        modules,
        "modules",
        lambda fact: [
            ("modules", f"{len(fact['listed'])} listed, {_total(fact, 'unlisted')} unlisted"),
            ("executable pages", f"{fact['executable_pages']}, {_unowned(fact)} without owner"),
        ],
    )
    rows += _rows(
        tasks, "tasks", lambda fact: [("tasks", f"{fact['count']}, {fact['kernel_threads']} kernel threads")]
    )
    rows += _rows(facts["cpus"], "vCPUs", lambda fact: [("vCPUs", str(fact["count"]))])
    yield "", (), rows


def _text(facts: Mapping[str, Any]) -> Tables:
    for name, title in (("kernel_text", "text"), ("kernel_rodata", "read-only data")):
        fact = facts[name]
        yield title, (), _rows(fact, title, lambda fact: [("compared", _comparison(fact))])
        if "unavailable" in fact:
            continue
        if fact["by_class"]:
            classes = [(kind, f"{count:,}") for kind, count in sorted(fact["by_class"].items())]
            yield "differing bytes by class of patch site", ("class", "bytes"), classes
        if fact["unexplained"]:
            rows = [
                (run["symbol"] or run["address"], run["expected"], run["found"])
                for run in fact["unexplained"]
            ]
            yield f"unexplained in {title}", ("place", "expected", "found"), rows[:_MOST_ROWS]
        if fact["displaced"]:
            rows = [(run["address"], run["physical"], str(run["pages"])) for run in fact["displaced"]]
            yield f"{title} mapped elsewhere", ("address", "physical", "pages"), rows[:_MOST_ROWS]


def _syscalls(facts: Mapping[str, Any]) -> Tables:
    fact = facts["syscall_table"]
    if "unavailable" in fact:
        yield "", (), _rows(fact, "system calls", lambda _: [])
        return
    rows = [(table["name"], table["dispatch"], str(table["entries"])) for table in fact["tables"]]
    yield "system call tables", ("table", "dispatch by", "entries"), rows
    if fact["wrong"]:
        wrong = [
            (f"{entry['table']}[{entry['index']}]", entry["symbol"], entry["found_symbol"] or entry["found"])
            for entry in fact["wrong"]
        ]
        yield "wrong entries", ("entry", "expected", "found"), wrong[:_MOST_ROWS]


def _modules(facts: Mapping[str, Any]) -> Tables:
    fact = facts["modules"]
    if "unavailable" in fact:
        yield "", (), _rows(fact, "modules", lambda _: [])
        return
    rows = [
        (module["name"], module["state"], module["base"], f"{module['size']:,}", _signature(module["sig_ok"]))
        for module in fact["listed"]
    ]
    yield "modules", ("name", "state", "base", "bytes", "signature"), rows
    owners = [(kind, str(count)) for kind, count in sorted(fact["owners"].items())]
    yield "executable pages above the kernel image", ("owner", "pages"), owners
    strangers = [("lasting", "module", entry["name"], entry["address"]) for entry in fact["unlisted"]]
    strangers += [("new", "module", entry["name"], entry["address"]) for entry in fact["settling_modules"]]
    strangers += [("lasting", "code", f"{run['pages']} pages", run["address"]) for run in fact["unowned"]]
    strangers += [("new", "code", f"{run['pages']} pages", run["address"]) for run in fact["settling"]]
    if strangers:
        yield "not on the list, or without owner", ("", "what", "", "address"), strangers[:_MOST_ROWS]


def _executable(facts: Mapping[str, Any]) -> Tables:
    fact = facts["executable_pages"]
    if "unavailable" in fact:
        yield "", (), _rows(fact, "executable pages", lambda _: [])
        return
    rows = [("no code", str(fact["traps"]), "", "")]
    rows += [(f"module {name}", str(pages), "", "") for name, pages in sorted(fact["modules"].items())]
    rows += [
        (kind, str(owner["pages"]), str(owner["pieces"]), ", ".join(owner["trust"]))
        for kind, owner in fact["owners"].items()
        if owner["pieces"]
    ]
    rows += [(kind, "", "", f"not known: {reason}") for kind, reason in fact["unread"].items()]
    yield "executable pages above the kernel image", ("owner", "pages", "judged", "on trust"), rows
    found = [("lasting", fault) for fault in fact["findings"]]
    found += [("new", fault) for fault in fact["settling"]]
    if found:
        told = [
            (since, fault["address"], fault["reason"], "; ".join(fault["instructions"]))
            for since, fault in found
        ]
        yield "what its owner must not have", ("", "address", "why", "code"), told[:_MOST_ROWS]


def _bpf(facts: Mapping[str, Any]) -> Tables:
    fact = facts["bpf_programs"]
    if "unavailable" in fact:
        yield "", (), _rows(fact, "BPF programs", lambda _: [])
        return
    rows = [
        (
            str(program["id"]),
            program["name"],
            " ".join(filter(None, (program["type"], program["attach_type"], program["attach_to"]))),
            program["tag"],
            "?" if program["uid"] is None else str(program["uid"]),
            "not decoded yet" if program["calls"] is None else ", ".join(program["calls"]),
            ", ".join(program["effects"]),
            _uses(program["uses"]),
        )
        for program in fact["programs"]
    ]
    columns = ("id", "name", "type", "tag", "uid", "calls", "can do", "used by")
    yield f"BPF programs on the kernel's list: {fact['count']}, links: {fact['links']}", columns, rows
    looked = [(kind, str(count)) for kind, count in fact["looked"].items()]
    looked += [(kind, f"not known: {reason}") for kind, reason in fact["unread"].items()]
    yield "places looked through", ("kind", "places"), looked
    found = [("lasting", entry) for entry in fact["unlisted"]] + [
        ("new", entry) for entry in fact["settling"]
    ]
    if found:
        told = [
            (since, entry["what"], entry["name"], entry["address"], _uses(entry["uses"]))
            for since, entry in found
        ]
        yield "on no list", ("", "what", "name", "address", "used by"), told[:_MOST_ROWS]


def _uses(uses: Sequence[Mapping[str, Any]]) -> str:
    return "; ".join(
        f"{use['what']}: {use['where']}{f' (and {more} more)' if (more := use['count'] - 1) else ''}"
        for use in uses
        if use["what"] != "symbol"
    )


def _tracing(facts: Mapping[str, Any]) -> Tables:
    fact = facts["trace_callbacks"]
    if "unavailable" in fact:
        yield "", (), _rows(fact, "tracing", lambda _: [])
        return
    names = ("tracepoints", "pointers", "contexts", "events")
    yield "tracepoints and perf events", (), [(name, f"{fact[name]:,}") for name in names]
    rows = [
        (
            call["via"],
            call["where"],
            call["symbol"] or call["function"],
            call["kind"],
            call["owner"],
            str(call["count"]),
        )
        for call in fact["callbacks"]
    ]
    yield "functions called", ("via", "where", "function", "kind", "module", "times"), rows
    if fact["changed"]:
        changed = [(each["place"], each["expected"], each["found"]) for each in fact["changed"]]
        yield "not as it was linked", ("place", "expected", "found"), changed[:_MOST_ROWS]


def _tasks(facts: Mapping[str, Any]) -> Tables:
    fact = facts["tasks"]
    rows = _rows(
        fact,
        "tasks",
        lambda fact: [
            (str(task["pid"]), str(task["uid"]), "kernel" if task["kernel_thread"] else "", task["name"])
            for task in fact["listed"]
        ],
    )
    yield "tasks", () if "unavailable" in fact else ("pid", "uid", "", "name"), rows


def _cpus(facts: Mapping[str, Any]) -> Tables:
    for cpu in facts["cpus"]["cpus"]:
        yield (
            f"vCPU {cpu['index']}",
            (),
            [(name, str(value)) for name, value in cpu.items() if name != "index"],
        )
    if "system_registers" in facts:  # not of a guest whose kernel was not recognised
        yield from _system_registers(facts["system_registers"])


def _system_registers(fact: Mapping[str, Any]) -> Tables:
    if "unavailable" in fact:
        yield "", (), _rows(fact, "system registers", lambda _: [])
        return
    for cpu in fact["registers"]:
        rows = [(name, "not told" if value is None else str(value)) for name, value in cpu.items()]
        yield f"vCPU {cpu['cpu']}, as saved", (), [("saved", f"{fact['age_ms']} ms ago"), *rows[1:]]
    rows = [(subject, f"not known: {reason}") for subject, reason in fact["unread"].items()]
    rows += [(f"{name}, compared", str(count)) for name, count in fact["checked"].items()]
    yield "system registers", (), rows
    if fact["deviations"]:
        found = [
            (str(each["cpu"]), each["subject"], each["expected"], each["found"])
            for each in fact["deviations"]
        ]
        yield "not as it was built", ("vCPU", "what", "expected", "found"), found[:_MOST_ROWS]


def _rows(fact: Mapping[str, Any], name: str, make: Callable[[Mapping[str, Any]], list[Row]]) -> list[Row]:
    return [(name, f"not available: {fact['unavailable']}")] if "unavailable" in fact else make(fact)


def _comparison(fact: Mapping[str, Any]) -> str:
    explained = fact["differing_bytes"] - fact["unexplained_bytes"]
    unread = f", {fact['unread_bytes']:,} not readable" if fact["unread_bytes"] else ""
    return (
        f"{fact['compared_bytes']:,} bytes, {max(explained, 0):,} changed at patch sites, "
        f"{fact['unexplained_bytes']:,} unexplained{unread}"
    )


def _total(fact: Mapping[str, Any], name: str) -> int:
    return len(fact[name]) + int(fact[f"{name}_left_out"])


def _unowned(fact: Mapping[str, Any]) -> int:
    return sum(int(run["pages"]) for name in ("unowned", "settling") for run in fact[name])


def _signature(checked: bool | None) -> str:
    return {True: "valid", False: "missing or unknown", None: "not recorded"}[checked]


PAGES: Final[Mapping[str, Page]] = {
    "overview": Page(
        "kernel, text, modules, tasks at a glance",
        ("kernel_identity", "kernel_text", "kernel_rodata", "syscall_table", "modules", "tasks", "cpus"),
        _overview,
    ),
    "text": Page("text and read-only data by class of patch site", ("kernel_text", "kernel_rodata"), _text),
    "syscalls": Page("system call tables", ("syscall_table",), _syscalls),
    "modules": Page("modules and owners of executable pages", ("modules",), _modules),
    "executable": Page("executable pages, and what they hold", ("executable_pages",), _executable),
    "bpf": Page("BPF programs: what they call, where they are entered", ("bpf_programs",), _bpf),
    "tracing": Page("functions that tracepoints and perf events call", ("trace_callbacks",), _tracing),
    "tasks": Page("tasks on the kernel's list", ("tasks",), _tasks),
    "cpus": Page("registers of each vCPU", ("cpus", "system_registers"), _cpus),
}
