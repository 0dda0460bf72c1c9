"""The names of today: what the page must have a row for."""

from __future__ import annotations

from affiant.assertions.bundle import packaged_library
from affiant.kernel.facts.registry import FACTS
from affiant.kernel.reference import SiteClass
from lab.support_matrix.kernels import KERNELS
from lab.support_matrix.page import Wanted

__all__ = ["names_of_today"]


def names_of_today() -> Wanted:
    """Return the names of the library's rules and queries, of all facts and classes, and of the kernels."""
    library = packaged_library()
    return Wanted(
        rules=frozenset(script.name for script in library.scripts),
        facts=frozenset(FACTS),
        queries=frozenset(library.queries),
        sites=frozenset(kind.name.lower() for kind in SiteClass),
        kernels=tuple(kernel.name for kernel in KERNELS),
    )
