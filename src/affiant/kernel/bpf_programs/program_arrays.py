"""Maps of programs, which tail calls jump through (kernel/bpf/arraymap.c)."""

from __future__ import annotations

from typing import Final

from affiant.kernel.bpf_programs.survey import Survey
from affiant.kernel.walks.idr import idr_elements
from affiant.model.errors import MalformedError
from affiant.model.query import Path

__all__ = ["survey_program_arrays"]

_MAP: Final = "struct bpf_map"
_ARRAY: Final = "struct bpf_array"
_MAPS: Final = Path("map_idr", (), "struct idr")
_MOST_MAPS: Final = 1 << 16
_MOST_SLOTS: Final = 1 << 18  # of all maps together; 2 MiB


def survey_program_arrays(survey: Survey) -> None:
    """Note each program in a map of programs on the list of maps."""
    program = survey.program
    if program.find("map_idr") is None:
        return
    wanted = program.constant("BPF_MAP_TYPE_PROG_ARRAY")
    slots = 0
    for index, address in idr_elements(program, survey.memory, _MAPS, _MAP, most=_MOST_MAPS):
        if survey.integer(_MAP, address, "map_type") != wanted:
            continue
        count = survey.integer(_MAP, address, "max_entries")
        slots += count
        if slots > _MOST_SLOTS:
            raise MalformedError(f"maps of programs have more than {_MOST_SLOTS} places")
        survey.looked += count
        first = address + program.offset(_ARRAY, "ptrs")
        words = memoryview(survey.memory.read(first, 8 * count)).cast("Q")
        for place, held in enumerate(words):
            survey.note("tail call", f"map {index}, place {place}", held)
