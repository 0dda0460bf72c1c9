"""No file imports, by however many others, what imports it; imports for types alone count as well."""

from __future__ import annotations

import graphlib

import grimp
import pytest


def circle(imports: dict[str, set[str]]) -> list[str]:
    """Return the files of a circle of imports, each imported by the one before it; none if there is none."""
    try:
        graphlib.TopologicalSorter(imports).prepare()
    except graphlib.CycleError as error:
        found: list[str] = error.args[1]
        return found
    return []


@pytest.mark.parametrize("package", ["affiant", "lab"])
def test_nothing_imports_in_a_circle(package: str) -> None:
    """Such files can only be understood, tested and moved together."""
    graph = grimp.build_graph(package, exclude_type_checking_imports=False, cache_dir=None)
    imports = {name: graph.find_modules_directly_imported_by(name) for name in graph.modules}
    assert len(imports) > 20
    assert circle(imports) == []


def test_a_circle_is_told() -> None:
    assert set(circle({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}})) == {"a", "b", "c"}
