"""Programs that functions of the kernel call: by the trampolines' own code, and by what they were made of.

kernel/bpf/trampoline.c. A trampoline (fentry, fexit, modify_return, LSM, struct_ops) is read instruction by
instruction: what it calls is what runs, whatever the tables say. The tables (`struct bpf_trampoline`) name
the function and the links.
"""

from __future__ import annotations

from typing import Final

from affiant.kernel.bpf_programs.survey import Survey, Use
from affiant.kernel.page_content.bpf_code import read_code
from affiant.kernel.page_content.bpf_generated import entered_at, generated_code, is_dispatcher, is_in_use
from affiant.kernel.page_content.bpf_lists import BpfSymbol, read_bpf_symbols
from affiant.kernel.page_content.bpf_trampolines import trampolines
from affiant.kernel.page_content.view import View
from affiant.model.errors import MalformedError, UnavailableError

__all__ = ["survey_trampoline_code", "survey_trampolines"]

_TRAMPOLINE: Final = "struct bpf_trampoline"
_LINK: Final = "struct bpf_tramp_link"
_NODE: Final = "struct bpf_tramp_node"
_MOST_LINKS: Final = 1024
_MOST_CODE: Final = 1 << 20  # bytes; a second of work
_KINDS: Final = {
    "BPF_TRAMP_FENTRY": "fentry",
    "BPF_TRAMP_FEXIT": "fexit",
    "BPF_TRAMP_MODIFY_RETURN": "modify_return",
}


def survey_trampoline_code(survey: Survey) -> None:
    """Note the code of programs that trampolines call, and dispatchers.

    What a trampoline had before may outlive its programs by minutes; others may have their memory by then.
    Where listed code is not read to its end, what it calls behind that is not known: a gap, if it lasts.
    """
    view, left = View(survey.kernel), _MOST_CODE
    torn: dict[BpfSymbol, str] = {}
    called = survey.kernel.text_content.wrapping()
    for symbol in survey.lists.symbols.values():
        if symbol.program or not is_in_use(survey.lists, symbol, called):
            continue
        survey.looked += 1
        left -= symbol.end - symbol.start
        if left < 0:
            raise UnavailableError("more code of trampolines than one look reads")
        entered = entered_at(survey.program, symbol)
        for code in generated_code(symbol, view.read(symbol.start, symbol.end)):
            survey.memory.budget.step()
            if code.start == entered:
                report = read_code(code.memory, code.size, code.start, code.form, exact=False)
                if report.wrong is not None:
                    torn[symbol] = report.wrong[1]
                for target, _ in report.leaves:
                    _note_code(survey, symbol, target)
    # What is not on the list any more was freed while it was read.
    listed = read_bpf_symbols(survey.program, survey.memory.budget.step) if torn else {}
    for symbol, reason in torn.items():
        if listed.get(symbol.start) == symbol:
            survey.gaps[symbol.start, symbol.name] = f"the code of {symbol.name} {reason}"


def _note_code(survey: Survey, symbol: BpfSymbol, target: int) -> None:
    # What lies outside of packs is no program: the rule for executable pages says whether it may be there.
    # A trampoline outlives its programs until nobody can be in it; there is INT3 by then.
    inside = survey.lists.pack_at(target) is not None and not survey.lists.is_free(target)
    if inside and not symbol.start <= target < symbol.end:
        what = "dispatcher" if is_dispatcher(symbol) else "trampoline"
        survey.uses.append(Use(what, symbol.name, code=target))


def survey_trampolines(survey: Survey) -> None:
    """Note the programs that the tables of trampolines name, by the function that each wraps."""
    program = survey.program
    every = trampolines(program)
    if every is None:
        return
    kinds = {program.constant(name): kind for name, kind in _KINDS.items()}
    for trampoline in every:
        survey.looked += 1
        survey.memory.budget.step()
        _trampoline(survey, trampoline, kinds)


def _trampoline(survey: Survey, trampoline: int, kinds: dict[int, str]) -> None:
    program = survey.program
    address = survey.integer(_TRAMPOLINE, trampoline, "func.addr")
    where = program.describe(address).removesuffix("+0x0") or hex(address)
    survey.note("extension", where, survey.integer(_TRAMPOLINE, trampoline, "extension_prog"))
    first = program.offset(_TRAMPOLINE, "progs_hlist")
    for number, kind in kinds.items():
        for node in _nodes(survey, survey.memory.word(trampoline + first + 8 * number), maximum=_MOST_LINKS):
            survey.note_link(kind, where, _link_of(survey, node))


def _link_of(survey: Survey, node: int) -> int:
    """Return the link that hangs on a trampoline by a node: its own part, or one that names it since 7.x."""
    program = survey.program
    if program.has_type(_NODE):
        return survey.integer(_NODE, node - program.offset(_NODE, "tramp_hlist"), "link")
    return node - program.offset(_LINK, "tramp_hlist") + program.offset(_LINK, "link")


def _nodes(survey: Survey, first: int, *, maximum: int) -> list[int]:
    found: dict[int, None] = {}
    node = first
    while node:
        if node in found or len(found) >= maximum:
            raise MalformedError("a list of BPF trampolines runs in a circle, or has no end")
        survey.memory.budget.step()
        found[node] = None
        node = survey.memory.word(node)
    return list(found)
