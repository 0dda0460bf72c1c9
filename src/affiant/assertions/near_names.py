"""What a person may have meant by a name that is none."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = ["near_names"]

_MOST_NEAR = 3
_MOST_TOLD = 8


def near_names(name: str, known: Iterable[str]) -> str:
    """Return a hint: the known names that are like `name`, else the first few of all."""
    names = list(known)
    if near := difflib.get_close_matches(name, names, n=_MOST_NEAR):
        return f"did you mean {' or '.join(near)}?"
    more = len(names) - _MOST_TOLD
    return "known: " + (", ".join(names[:_MOST_TOLD]) or "none") + (f" and {more} more" if more > 0 else "")
