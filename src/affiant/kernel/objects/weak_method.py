"""Bound methods that are handed out without keeping their object alive.

What a look at a kernel needs is tens of megabytes. Held in a circle it would stay until Python's
collector of cycles comes by, which in a process that opens one guest after the other is late.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ParamSpec, TypeVar
from weakref import WeakMethod

__all__ = ["weak_method"]

_Arguments = ParamSpec("_Arguments")
_Result = TypeVar("_Result")


def weak_method(method: Callable[_Arguments, _Result]) -> Callable[_Arguments, _Result]:
    """Return a bound method as a function that raises ValueError once the method's object is gone."""
    weak = WeakMethod(method)
    name = method.__qualname__

    def call(*arguments: _Arguments.args, **keywords: _Arguments.kwargs) -> _Result:
        bound = weak()
        if bound is None:
            raise ValueError(f"{name} was asked for something after its object was gone: keep that one")
        return bound(*arguments, **keywords)

    return call
