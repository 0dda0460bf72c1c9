"""Where code made by the BPF compiler may call and jump to, told by the reference image.

Helpers are what a `struct bpf_func_proto` of the kernel names; functions of maps what a
`struct bpf_map_ops` holds; kernel functions open to programs (kfuncs) are listed in sets of BTF ids.
The verifier puts a few more in itself, all of BPF's own. Besides: the thunks that indirect branches and
returns go through.
"""

from __future__ import annotations

from functools import cached_property
from typing import Final

import numpy as np

from affiant.kernel.reference.sites import SiteClass
from affiant.kernel.site_content.image import KernelImage

__all__ = ["BpfCalls"]

_CLASSIC: Final = (
    r"bpf_skb_load_helper_(8|16|32)(_no_cache)?|bpf_internal_load_pointer_neg_helper"
    r"|bpf_skb_get_(pay_offset|nlattr|nlattr_nest)|__skb_get_(pay_offset|nlattr|nlattr_nest)"
    r"|(bpf_)?(get_raw_cpu_id|user_rnd_u32)"
)
_INDIRECT: Final = r"__x86_indirect_\w+"
_RETURNS: Final = r"__x86_return_thunk|\w+_return_thunk|clear_bhb_loop\w*"
_OWN: Final = r"_*bpf_\w+|__htab_\w+|\w+_map_\w+_elem"
_SETS: Final = r"__BTF_ID__set8__\w+"
_IDS: Final = r"__BTF_ID__func__\w+"
_MOST_IN_SET: Final = 4096
_PATCHED: Final = 5


class BpfCalls:
    """The addresses that BPF code may lead to in one running kernel."""

    def __init__(self, image: KernelImage) -> None:
        self._image = image

    @cached_property
    def classic(self) -> frozenset[int]:
        """What classic filters call; thunks of indirect branches, which lead anywhere, are not among it."""
        return frozenset(self._image.named(f"{_CLASSIC}|{_RETURNS}").values())

    @cached_property
    def programs(self) -> frozenset[int]:
        """What programs call."""
        named = frozenset(self._image.named(_OWN).values())
        thunks = frozenset(self._image.named(_INDIRECT).values()) | self._thunk_array
        return named | self._from_structures() | self._open_to_programs() | self.classic | thunks

    @cached_property
    def originals(self) -> frozenset[int]:
        """Where a trampoline continues the function that it wraps: behind the call at its entry."""
        sites = self._image.region.sites
        traced = sites["address"][sites["kind"] == int(SiteClass.FTRACE)]
        return frozenset((traced + np.uint64(_PATCHED)).tolist())

    @cached_property
    def _thunk_array(self) -> frozenset[int]:
        start = self._image.program.find("__x86_indirect_thunk_array")
        return frozenset() if start is None else frozenset(range(start, start + 16 * 32, 32))

    def _from_structures(self) -> frozenset[int]:
        program, reference = self._image.program, self._image.reference
        words: list[int] = []
        for pattern, kind in (
            (r"\w+_proto", "struct bpf_func_proto"),
            (r"\w+_map_ops", "struct bpf_map_ops"),
        ):
            if not program.has_type(kind):
                continue
            size = program.size(kind)
            for symbol in reference.symbols.matching(pattern):
                if symbol.size < size or self._image.contains(symbol.address + self._image.slide):
                    continue
                try:
                    content = reference.read(symbol.address, size // 8 * 8)
                except KeyError:
                    continue  # not stored: filled at boot
                words += np.frombuffer(content, dtype="<u8").tolist()
        return self._functions(words)

    def _open_to_programs(self) -> frozenset[int]:
        symbols = self._image.reference.symbols
        ids = symbols.matching(_IDS)
        places = [symbol.address for symbol in ids]
        names: set[str] = set()
        for start in symbols.matching(_SETS):
            try:
                count = int.from_bytes(self._image.reference.read(start.address, 4), "little")
            except KeyError:
                continue
            first = int(np.searchsorted(places, start.address))
            end = start.address + 8 + 8 * min(count, _MOST_IN_SET)
            for symbol in ids[first:]:
                if symbol.address >= end:
                    break
                names.add(symbol.name.removeprefix("__BTF_ID__func__").rpartition("__")[0])
        found = (symbols.unique(name) for name in names)
        return self._functions([symbol.address for symbol in found if symbol is not None])

    def _functions(self, linked: list[int]) -> frozenset[int]:
        """Return the running addresses of those words that lead to a function of the kernel."""
        running = np.array(linked, dtype=np.uint64) + np.uint64(self._image.slide)
        return frozenset(running[self._image.functions_at(running)].tolist()) if len(running) else frozenset()
