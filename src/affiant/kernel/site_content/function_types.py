"""Whether one function may stand in for another: by the parameters that their types in BTF tell."""

from __future__ import annotations

import re
from functools import cached_property
from typing import Final

import drgn

from affiant.kernel.site_content.image import KernelImage
from affiant.model.errors import AffiantError

__all__ = ["FunctionTypes"]

# A tracepoint's key is linked with its iterator, __traceiter_NAME, and holds a probe while there is one.
_TRACEPOINT_KEY: Final = "__SCK__tp_func_"
_PROBE: Final = re.compile(r"(trace_event_raw_event|perf_trace|__bpf_trace|probe|ftrace|trace)_\w+|\w+_probe")


class FunctionTypes:
    """Parameters of the kernel image's functions; what has no type information is told by name."""

    def __init__(self, image: KernelImage) -> None:
        self._image = image
        self._parameters: dict[int, tuple[str, ...] | None] = {}

    def alike(self, key: int, default: int, function: int) -> bool:
        """Tell whether a static call key that was linked with `default` (0: none) may hold `function`.

        Without `default` nothing tells the type that is called; any function of the kernel will do.
        Where type information lacks one of both, a tracepoint's key may hold what is named as a probe.
        """
        if default == 0:
            return True
        names = self._image.own_names_at(function)
        if set(names) & set(self._image.own_names_at(default)):
            return True  # a function of a header has a copy in each file that names it
        wanted, found = self._of(default), self._of(function)
        if wanted is not None and found is not None:
            return wanted == found
        tracepoint = any(name.startswith(_TRACEPOINT_KEY) for name in self._image.own_names_at(key))
        return tracepoint and any(_PROBE.fullmatch(name) for name in names)

    def differ(self, first: int, second: int) -> bool:
        """Tell whether type information gives two functions different parameters."""
        one, other = self._of(first), self._of(second)
        return one is not None and other is not None and one != other

    @cached_property
    def counter_size(self) -> int:
        """Bytes of the instruction that counts calls; 0 if this kernel has none."""
        symbols = self._image.reference.symbols
        start, end = symbols.unique("skl_call_thunk_template"), symbols.unique("skl_call_thunk_tail")
        return 0 if start is None or end is None else end.address - start.address

    def _of(self, address: int) -> tuple[str, ...] | None:
        if address not in self._parameters:
            self._parameters[address] = self._read(address)
        return self._parameters[address]

    def _read(self, address: int) -> tuple[str, ...] | None:
        for name in self._image.names_at(address):
            try:
                kind = self._image.program.types.function(name)
            except (AffiantError, LookupError, ValueError):
                continue
            if kind is not None and kind.kind == drgn.TypeKind.FUNCTION:
                return tuple(parameter.type.type_name() for parameter in kind.parameters)
        return None
