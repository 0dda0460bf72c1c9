"""Symbols of compiled programs: what traces and stack dumps know them by (kernel/bpf/core.c)."""

from __future__ import annotations

from affiant.kernel.bpf_programs.survey import Survey, Use

__all__ = ["survey_symbols"]


def survey_symbols(survey: Survey) -> None:
    """Note the code of each symbol of a program; only its code, because the symbol names nothing else."""
    for symbol in survey.lists.symbols.values():
        if symbol.program:
            survey.looked += 1
            survey.memory.budget.step()
            survey.uses.append(Use("symbol", symbol.name, code=symbol.start))
