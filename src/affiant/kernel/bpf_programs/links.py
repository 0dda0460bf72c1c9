"""The list of links, and programs that hang on each (kernel/bpf/syscall.c, `link_idr`)."""

from __future__ import annotations

from typing import Final

from affiant.kernel.bpf_programs.survey import Survey
from affiant.kernel.walks.idr import idr_elements
from affiant.model.query import Path

__all__ = ["listed_links", "survey_links"]

_LINK: Final = "struct bpf_link"
_LINKS: Final = Path("link_idr", (), "struct idr")
_MOST_LINKS: Final = 1 << 16


def listed_links(survey: Survey) -> dict[int, int]:
    """Return the id of each link on the list, by its address; a kernel without links has none.

    Raises what walks raise.
    """
    program = survey.program
    if program.find("link_idr") is None:
        return {}
    elements = idr_elements(program, survey.memory, _LINKS, _LINK, most=_MOST_LINKS)
    return {address: number for number, address in elements}


def survey_links(survey: Survey) -> None:
    """Note the program of each link; a link of several has none of its own."""
    found = listed_links(survey)
    survey.looked = len(found)
    kinds = survey.program.enumerators("enum bpf_link_type") if found else {}
    for address, index in found.items():
        number = survey.integer(_LINK, address, "type")
        kind = kinds.get(number, str(number)).removeprefix("BPF_LINK_TYPE_").lower()
        survey.note(f"{kind} link", f"link {index}", survey.integer(_LINK, address, "prog"))
