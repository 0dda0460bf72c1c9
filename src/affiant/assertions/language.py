"""The Starlark that comes with the package: what scripts load, and what folds their answers."""

from __future__ import annotations

import importlib.resources
from typing import Final

__all__ = ["FOLD", "LANGUAGE"]


def _packaged(name: str) -> str:
    return importlib.resources.files("affiant.assertions").joinpath(name).read_text("utf-8")


LANGUAGE: Final = _packaged("language.star")
"""Source of the module `affiant`, the only one that a script can load."""

FOLD: Final = _packaged("fold.star")
"""Source of the function that folds observations; scripts cannot load it."""
