"""The support matrix: what was seen is told as it was, and a page that is not of today is found out."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from affiant.assertions.bundle import packaged_library
from affiant.kernel.facts.registry import FACTS
from affiant.kernel.reference import SiteClass
from affiant.model.errors import UnavailableError
from affiant.model.outcome import Outcome
from affiant.vm.kernels import GuestKernel
from lab.support_matrix.__main__ import main
from lab.support_matrix.answers import answer_of, worse
from lab.support_matrix.groups import grouped
from lab.support_matrix.kernels import KERNELS, SupportedKernel
from lab.support_matrix.looking import look_at
from lab.support_matrix.names import names_of_today
from lab.support_matrix.page import BEGIN, END, put, stale
from lab.support_matrix.seen import (
    Answer,
    Boot,
    Host,
    Kernel,
    Live,
    Reading,
    Reference,
    Sites,
    Verdict,
    faults,
    to_json,
)
from lab.support_matrix.tables import tables

SCRIPTS = packaged_library().scripts
QUERIES = packaged_library().queries
HOST = Host("a system", "7.2", "2022.11", "0.7.1", "emulated (TCG)", "3.11.2")
BOOT = Boot(
    firmware=True,
    secure_boot=True,
    lockdown="integrity",
    event_log="efi.tpm_log",
    paging_levels=5,
    vulnerabilities={"mds": "Not affected", "spectre_v2": "Mitigation: Retpolines"},
    protections=("WP", "NX"),
    isolated_tables=False,
)
LIVE = Live(
    boot=BOOT,
    facts={name: Answer(Reading.READ, "12") for name in FACTS},
    queries={name: Answer(Reading.READ, "3") for name in QUERIES},
    rules={script.name: Verdict(Outcome.HOLDS, 1234) for script in SCRIPTS},
    sites={kind.name.lower(): Sites(1000, 1000, 0) for kind in SiteClass},
    looks=7,
    loaded=("dummy", "nls_ascii"),
    modules=8,
    unconfirmed=(),
)
REFERENCE = Reference(
    size=31_400_000,
    seconds=9.0,
    module_files_size=50_000_000,
    same_again=True,
    symbols=87347,
    types=95246,
    modules=1121,
    unknown_sections=(),
    locks_down=True,
    verifies_modules=None,
)
NAMES = tuple(kernel.name for kernel in KERNELS)


def kernel(name: str = NAMES[0], **changes: Any) -> Kernel:
    return Kernel(name, "bookworm", "6.1.0", "linux-image-6.1.0 6.1.0-1", REFERENCE, replace(LIVE, **changes))


def with_rule(name: str, verdict: Verdict) -> dict[str, Verdict]:
    return {**LIVE.rules, name: verdict}


def told(*kernels: Kernel) -> str:
    return tables(HOST, kernels, SCRIPTS, day="2026-01-02", library="abc")


def rows(text: str) -> dict[str, list[str]]:
    """Return the cells of every row by its first one."""
    split = [line.strip("|").split(" | ") for line in text.splitlines() if line.startswith("| ")]
    return {first.strip(): [cell.strip() for cell in cells] for first, *cells in split}


def page(*kernels: Kernel) -> str:
    return put(f"# By hand\n\n{BEGIN}\nold\n{END}\n\nAlso by hand.\n", told(*kernels))


WHOLE = page(*(kernel(name) for name in NAMES))


def test_a_healthy_kernel_is_told_rule_by_rule_and_fact_by_fact() -> None:
    cells = rows(told(kernel("one"), kernel("two")))
    for script in SCRIPTS:
        title = f"[`{script.name}`](assertions/{script.name}.md), {script.version}"
        assert cells[title] == ["holds (1,234)"] * 2
    for name in FACTS:
        assert cells[f"`{name}`"] == ["read (12)"] * 2
    assert cells["package"] == ["linux-image-6.1.0 6.1.0-1"] * 2
    assert cells["reference image"] == ["31.4 MB, built in 9 s"] * 2
    assert cells["levels of page tables"] == ["5"] * 2
    assert cells["boot"] == ["Secure Boot"] * 2
    assert cells["known to lock down under Secure Boot"] == ["yes"] * 2
    assert cells["known to verify modules then"] == ["not told by its package"] * 2
    assert cells["confirmed afterwards"] == ["yes"] * 2
    assert cells["spectre_v2"] == ["Mitigation: Retpolines"] * 2
    assert "mds" not in cells
    text = told(kernel("one"))
    assert "QEMU 7.2, emulated (TCG); OVMF 2022.11; swtpm 0.7.1; Python 3.11.2" in text
    assert "library abc" in text
    assert "Not affected, where they know of it: mds." in text


@pytest.mark.parametrize("outcome", [Outcome.VIOLATED, Outcome.INCONCLUSIVE])
def test_what_does_not_hold_stands_out_with_its_reason_and_is_a_fault(outcome: Outcome) -> None:
    bad = kernel(rules=with_rule("tasks_listed", Verdict(outcome, 3, "because")))
    text = told(kernel("other"), bad)
    (cells,) = (cells for first, cells in rows(text).items() if "`tasks_listed`" in first)
    assert cells == ["holds (1,234)", f"**{outcome.value}**"]
    assert f"- `tasks_listed`, {bad.name}: {outcome.value}: because" in text.splitlines()
    assert list(faults((bad,))) == [f"{bad.name}: tasks_listed is {outcome.value}: because"]


def test_what_is_not_applicable_has_its_reason_and_is_no_fault() -> None:
    verdict = Verdict(Outcome.NOT_APPLICABLE, 0, "two symbols have that name")
    kernels = tuple(kernel(name, rules=with_rule("tasks_listed", verdict)) for name in ("one", "two"))
    assert "- `tasks_listed`, one, two: not applicable: two symbols have that name" in told(*kernels)
    assert not list(faults(kernels))


def test_a_fact_that_was_not_read_is_a_fault_and_one_that_was_read_in_part_is_told() -> None:
    part, failed = Answer(Reading.PART, "12", "gates: no GDT"), Answer(Reading.FAILED, reason="no files")
    seen = kernel(facts={**LIVE.facts, "cpu_state": part, "module_code": failed})
    text = told(seen)
    assert rows(text)["`cpu_state`"] == ["in part (12)"]
    assert rows(text)["`module_code`"] == ["**failed**"]
    assert f"- `cpu_state`, {seen.name}: in part: gates: no GDT" in text
    assert f"- `module_code`, {seen.name}: failed: no files" in text
    assert list(faults((seen,))) == [f"{seen.name}: module_code could not be read: no files"]


def test_a_kernel_that_did_not_boot_keeps_its_column() -> None:
    dead = Kernel("dead", "sid", "7.2", "linux 7.2", REFERENCE, failures=("direct boot: no shell | none",))
    cells = rows(told(kernel("one"), dead))
    assert cells["symbols (kallsyms)"] == ["87,347"] * 2
    assert cells["boot"] == ["Secure Boot", "not seen"]
    assert cells["`tasks`"] == ["read (12)", "not seen"]
    assert "- dead: direct boot: no shell \\| none" in told(kernel("one"), dead)
    assert list(faults((dead,))) == ["dead: direct boot: no shell | none"]


def test_classes_of_patch_sites_are_counted_and_none_is_said() -> None:
    sites = {**LIVE.sites, "paravirt": Sites(0, 0, 0), "return": Sites(2000, 1500, 10)}
    cells = rows(told(kernel(sites=sites)))
    assert cells["`paravirt`"] == ["none"]
    assert cells["`return`"] == ["2,000, 1,500 judged; 10 bytes"]
    assert cells["`alternative`"] == ["1,000"]


def test_a_kernel_without_types_or_symbols_is_told_so() -> None:
    bare = replace(kernel(), reference=replace(REFERENCE, types=0, symbols=0, unknown_sections=(".new",)))
    cells = rows(told(bare))
    assert (cells["types (BTF)"], cells["symbols (kallsyms)"]) == (["none"], ["none"])
    assert cells["sections unknown to the builder"] == [".new"]


def test_images_that_differ_and_looks_that_nothing_confirms_are_faults() -> None:
    other = replace(kernel(unconfirmed=("x is violated: y",)), reference=replace(REFERENCE, same_again=False))
    assert list(faults((other,))) == [
        f"{other.name}: building the reference image again made other bytes",
        f"{other.name}: after modules were loaded: x is violated: y",
    ]
    cells = rows(told(other))
    assert (cells["built again"], cells["confirmed afterwards"]) == (["**other bytes**"], ["**no**"])
    assert f"- {other.name}: not confirmed, x is violated: y" in told(other)


def test_what_a_guest_said_cannot_break_the_table() -> None:
    boot = replace(BOOT, vulnerabilities={"odd": "a | b\nc"})
    assert "| odd | a \\| b c |" in told(kernel(boot=boot)).splitlines()


def test_what_was_written_by_hand_stays() -> None:
    again = put(WHOLE, "new")
    assert again == f"# By hand\n\n{BEGIN}\n\nnew\n\n{END}\n\nAlso by hand.\n"


@pytest.mark.parametrize(
    "text", ["", BEGIN, END, f"{END}\n{BEGIN}", f"{BEGIN}{BEGIN}{END}", f"{BEGIN}{END}{END}"]
)
def test_a_page_without_both_marks_once_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="mark"):
        put(text, "new")


def test_a_page_of_today_is_not_stale() -> None:
    assert stale(WHOLE, names_of_today()) == ()


def test_a_rule_a_fact_a_query_or_a_class_that_the_page_lacks_is_told() -> None:
    wanted = names_of_today()
    more = replace(
        wanted,
        rules=wanted.rules | {"a_rule"},
        facts=wanted.facts | {"a_fact"},
        queries=wanted.queries | {"a_rule.query"},
        sites=wanted.sites | {"a_class"},
    )
    assert stale(WHOLE, more) == (
        "the class of patch sites a_class is missing",
        "the fact a_fact is missing",
        "the query a_rule.query is missing",
        "the rule a_rule is missing",
    )


def test_a_rule_that_is_gone_and_a_new_kernel_are_told() -> None:
    wanted = names_of_today()
    less = replace(wanted, rules=wanted.rules - {"tasks_listed"}, kernels=(*wanted.kernels, "8.0"))
    kernels, rule = stale(WHOLE, less)
    assert rule == "the rule tasks_listed is there no more"
    assert kernels.startswith("the kernels are ")


def test_a_name_counts_only_in_its_own_table() -> None:
    """Notes, links and other tables name rules and facts as well."""
    lines = [line for line in WHOLE.splitlines() if not line.startswith("| [`tasks_listed`]")]
    lines.insert(lines.index("## Facts"), "- `tasks_listed`, 6.1 cloud: not applicable")
    lines.append("| [`tasks_listed`](assertions/tasks_listed.md) | by hand |")
    assert stale("\n".join(lines), names_of_today()) == ("the rule tasks_listed is missing",)


def test_check_tells_a_stale_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "page.md"
    path.write_text(WHOLE)
    assert main(["--check", str(path)]) == 0
    path.write_text(WHOLE.replace("| `tasks` |", "| `chores` |"))
    assert main(["--check", str(path)]) == 1
    said = capsys.readouterr().err
    assert "page.md: the fact tasks is missing" in said
    assert "page.md: the fact chores is there no more" in said


def test_every_rule_has_a_group_of_its_own_kind() -> None:
    groups = grouped(SCRIPTS)
    assert sorted(script.name for members in groups.values() for script in members) == sorted(
        script.name for script in SCRIPTS
    )
    assert "Others" not in groups


def test_what_nobody_grouped_is_shown_all_the_same() -> None:
    stranger = replace(SCRIPTS[0], name="stranger", facts=("astrology",), queries=())
    assert grouped([stranger]) == {"Others": [stranger]}


def test_an_answer_is_read_absent_or_failed() -> None:
    assert answer_of({"elements": [{}, {}]}) == Answer(Reading.READ, "2")
    assert answer_of({"value": 0}) == Answer(Reading.READ)
    assert answer_of({"compared_bytes": 14687986}) == Answer(Reading.READ, "14,687,986 bytes")
    assert answer_of({"absent": "no such symbol"}) == Answer(Reading.NOT_APPLICABLE, "", "no such symbol")
    assert answer_of({"unavailable": "no files"}) == Answer(Reading.FAILED, "", "no files")


@pytest.mark.parametrize(
    ("blind", "reason"),
    [
        ({"booting": True}, "the kernel says that it still boots"),
        ({"unread": {"gates": "no GDT"}}, "gates: no GDT"),
        ({"unjudged": ["jump labels: no keys"]}, "jump labels: no keys"),
        ({"unchecked_classes": ["return"]}, "patch sites of class return are not judged"),
        ({"unread_bytes": 4096}, "4096 bytes were not there to be read"),
        ({"unread_tables": 2}, "2 page tables lie outside of RAM"),
        ({"ids_unseen": "no IDR"}, "processes by their ids: no IDR"),
        ({"views": {"list": 8, "tree": None}}, "no view of modules by tree"),
        ({"tables": [{"name": "sys_call_table", "unread": 3}]}, "3 entries of sys_call_table"),
        (
            {"modules": [{"name": "x", "verdict": "unread", "reason": "swapped"}]},
            "module x is unread: swapped",
        ),
        ({"findings_left_out": 5}, "findings: 5 entries left out"),
    ],
)
def test_a_part_that_was_not_read_is_told(blind: dict[str, Any], reason: str) -> None:
    answer = answer_of(blind)
    assert (answer.reading, answer.reason) == (Reading.PART, reason)


def test_of_several_looks_the_worst_is_told() -> None:
    read, part, failed = Answer(Reading.READ, "2"), Answer(Reading.PART, "", "x"), Answer(Reading.FAILED)
    assert worse(part, read) == part
    assert worse(read, part) == part
    assert worse(part, failed) == failed
    assert worse(Answer(Reading.READ, "1"), read) == read


def test_all_of_it_is_json() -> None:
    seen = kernel(rules=with_rule("tasks_listed", Verdict(Outcome.VIOLATED, 3, "because")))
    plain = json.loads(json.dumps(to_json(HOST, (seen,))))
    assert plain["host"]["qemu"] == "7.2"
    assert plain["kernels"][0]["live"]["rules"]["tasks_listed"]["outcome"] == "violated"
    assert plain["kernels"][0]["live"]["facts"]["tasks"]["reading"] == "read"
    assert plain["faults"] == [f"{seen.name}: tasks_listed is violated: because"]


def test_a_kernel_that_cannot_be_had_is_told_and_not_raised() -> None:
    class Unreachable(SupportedKernel):
        def newest(self, *, refresh: bool) -> GuestKernel:
            raise UnavailableError("no mirror answers")

    progress: list[str] = []
    seen = look_at(Unreachable("8.0 cloud", "forky"), refresh=True, tell=progress.append)
    assert (seen.name, seen.live, seen.reference) == ("8.0 cloud", None, None)
    assert seen.failures == ("UnavailableError: no mirror answers",)
    assert progress[-1] == "8.0 cloud: FAILED: UnavailableError: no mirror answers"
