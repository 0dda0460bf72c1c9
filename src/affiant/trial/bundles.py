"""The rules that a person names: files, rules of the library, or the library."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from affiant.assertions.authoring import load
from affiant.assertions.bundle import Bundle, make_bundle, packaged_library
from affiant.assertions.near_names import near_names
from affiant.model.errors import SetupError

__all__ = ["bundle_of"]


def bundle_of(rules: Sequence[str]) -> Bundle:
    """Return a bundle of the rules named: files, or rules of the library; the library without any.

    Raises `SetupError` for a rule that the library does not have, and what `load` raises.
    """
    library = packaged_library() if not all(rule.endswith(".star") for rule in rules) or not rules else None
    if not rules and library is not None:
        return library
    sources: dict[str, str] = {}
    for rule in rules:
        if rule.endswith(".star"):
            script, _ = load(Path(rule))
        else:
            known = {script.name: script for script in library.scripts} if library is not None else {}
            if rule not in known:
                raise SetupError(
                    f"the library has no property {rule!r}", hint=near_names(rule, sorted(known))
                )
            script = known[rule]
        sources[script.name] = script.source
    return make_bundle("trial", 1, sources)
