"""Static calls: calls whose target the kernel changes in the code (include/linux/static_call.h).

A site, and the trampoline of its key, lead to the function that the key holds; to nothing if it holds
none. The key is data of the guest, so its function must be one that may be called there: the one that
was linked, one that returns zero, a function of this kernel of the same type, a function of a module whose
code is known (its type is not compared), or for BPF's dispatchers the code that BPF made. Any other
function outside of the kernel image is an objection that names it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, Self

import numpy as np
from numpy.typing import NDArray

from affiant.kernel.machine.memory import MemoryFault
from affiant.kernel.reference.sites import SiteClass
from affiant.kernel.site_content.branches import CALL, JUMP, NOP5, branches, five_bytes, targets
from affiant.kernel.site_content.fixed_integers import FixedIntegers
from affiant.kernel.site_content.function_types import FunctionTypes
from affiant.kernel.site_content.image import KernelImage
from affiant.kernel.site_content.joining import share
from affiant.kernel.site_content.rule import Objection, SiteSet, is_tail_of

__all__ = ["StaticCallTrampolines", "StaticCalls"]

_WIDTH: Final = 6
_RETURN: Final = bytes.fromhex("c3cccccccc")
_ZERO: Final = bytes.fromhex("2e2e2e31c0")  # xor5rax: in place of a call to __static_call_return0
_WARN: Final = bytes.fromhex("67480fb93a")  # in place of a call to __WARN_trap (7.x)
_TAIL: Final = 1
_FLAGS: Final = 3
_NOTHING: Final = np.uint64(0)
_UNCHANGED: Final = np.uint64(1)  # no function starts at address 1
_DISPATCHER: Final = re.compile(r"__SCK__bpf_dispatcher_\w+_call\+0x0")


class StaticCalls:
    """The rule for call sites; `StaticCallTrampolines` differs in where its keys are from."""

    kind = SiteClass.STATIC_CALL

    def __init__(self, image: KernelImage, sites: SiteSet) -> None:
        self.sites = sites
        self._image = image
        self._key, self._tail = self._entries(image, sites)
        self._linked = image.linked(sites.offset, _WIDTH)
        self._held = np.full(len(sites), _UNCHANGED, dtype=np.uint64)
        self._default = image.linked_words(self._key)
        self._know(image)

    @classmethod
    def joined(cls, image: KernelImage, sites: SiteSet, parts: Sequence[Self]) -> Self:
        """See `Joinable`: a key may hold a function of the kernel, or what was linked."""
        whole = cls.__new__(cls)
        whole.sites, whole._image = sites, image
        share(whole, parts, "_key", "_tail", "_linked", "_held", "_default")
        whole._know(image)
        return whole

    def _know(self, image: KernelImage) -> None:
        """Work out what does not depend on one site."""
        find = image.program.find
        self._zero, self._warn = find("__static_call_return0") or 0, find("__WARN_trap") or 0
        self._return = find("__static_call_return") or 0
        self._thunks = set(image.named(r"\w+_return_thunk").values())
        self._keys, self._of_key = np.unique(self._key, return_inverse=True)
        self._functions = FixedIntegers(image, self._keys, 8)
        # What the keys held, and where the sites led, when all was in order by the reference alone.
        self._agreed: tuple[NDArray[np.uint64], NDArray[np.uint64]] | None = None
        self._types = FunctionTypes(image)
        self._good: set[tuple[int, int]] = set()

    def take(self, indices: NDArray[np.int64], found: NDArray[np.uint8]) -> NDArray[np.bool_]:
        """See `Rule`: a call or a tail call of anything, or what stands for none."""
        held = np.zeros(len(indices), dtype=np.uint64)
        legal = np.zeros(len(indices), dtype=bool)
        tail, addresses = self._tail[indices], self.sites.address[indices]
        long = self.sites.length[indices] == _WIDTH
        leads, held_now = targets(addresses, found), five_bytes(found)
        for code, of_tail, what in (
            (NOP5, False, 0),
            (_ZERO, False, self._zero),
            (_WARN, False, self._warn),
            (_RETURN, True, 0),
        ):
            mask = held_now == np.uint64(int.from_bytes(code, "little"))
            mask &= (tail == of_tail) & ~long
            legal |= mask & bool(what or code in (NOP5, _RETURN))
            held[mask] = what
        for opcode, of_tail in ((CALL, False), (JUMP, True)):
            mask = (found[:, 0] == opcode) & (tail == of_tail) & ~long
            legal |= mask
            held[mask] = leads[mask]
        held[np.isin(held, list(self._thunks)) & tail] = _NOTHING
        conditional = long & (found[:, 0] == 0x0F) & (found[:, 1] == self._linked[indices, 1])
        legal |= conditional
        held[conditional] = targets(addresses, found, at=2)[conditional]
        unchanged = self._is_linked(indices, found)
        held[unchanged] = _UNCHANGED
        legal |= unchanged
        self._held[indices[legal]] = held[legal]
        return legal

    def as_linked(self) -> NDArray[np.bool_]:
        """See `Rule`."""
        return np.asarray(self._held == _UNCHANGED)

    def allowed(self, index: int) -> tuple[bytes, ...]:
        """See `Rule`: as linked, and what the key's function of now asks for."""
        length = int(self.sites.length[index])
        linked = self._linked[index, :length].tobytes()
        try:
            function = int(self._image.words(self._key[index : index + 1])[0])
        except MemoryFault:
            return (linked,)
        return tuple(dict.fromkeys((linked, *self._forms(index, function))))

    def may_become(self, index: int, tail: bytes) -> bool:
        """See `Rule`: the rest of a call of any function of the kernel, as its key may have changed since."""
        if is_tail_of(tail, (*self.allowed(index), NOP5, _ZERO, _WARN, _RETURN)):
            return True
        end = int(self.sites.address[index]) + 1 + len(tail)
        target = end + int.from_bytes(tail[-4:], "little", signed=True) & (1 << 64) - 1
        return bool(self._image.functions_at(np.array([target], dtype=np.uint64))[0])

    def review(self) -> Iterable[Objection]:
        """See `Rule`: yields sites that their key contradicts, and keys that hold what they must not."""
        keys, of_key = self._keys, self._of_key
        functions = self._functions.read()
        if self._agreed is not None and all(map(np.array_equal, self._agreed, (functions, self._held))):
            return
        self._agreed = None
        legal, vouched = self._legal_functions(keys, functions, of_key)
        expected = functions[of_key]
        counted = self._counted(expected)
        settled = (self._held == _UNCHANGED) | (self._held == expected) | (self._held == counted)
        settled |= (expected == _NOTHING) & (self._held == np.uint64(self._return)) & bool(self._return)
        odd = np.flatnonzero(~settled | ~legal[of_key]).tolist()
        for index in odd:
            yield self._objection(index, int(expected[index]), legal=bool(legal[of_key][index]))
        if not odd and not vouched:
            self._agreed = functions, self._held.copy()

    def _objection(self, index: int, function: int, *, legal: bool) -> Objection:
        describe = self._image.program.describe
        key = describe(int(self._key[index])).removesuffix("+0x0")
        if not legal:
            named = describe(function) or hex(function)
            where = "" if self._image.contains(function) else ", outside of the kernel image"
            return Objection(
                index,
                f"its key {key} holds {named}{where}, which is not a function that belongs there",
                allowed=self._forms(index, int(self._default[index])),
                culprit=0 if self._image.contains(function) else function,
            )
        held = int(self._held[index])
        leads = "nowhere" if held == 0 else describe(held) or hex(held)
        wanted = "nothing" if function == 0 else describe(function) or hex(function)
        return Objection(
            index,
            f"leads {leads if held == 0 else 'to ' + leads}, and its key {key} holds {wanted}",
            passing=held == 0 or bool(self._image.functions_at(np.array([held], dtype=np.uint64))[0]),
            allowed=self._forms(index, function),
            culprit=0 if held == 0 or self._image.contains(held) else held,
        )

    def _legal_functions(
        self, keys: NDArray[np.uint64], functions: NDArray[np.uint64], of_key: NDArray[np.int64]
    ) -> tuple[NDArray[np.bool_], bool]:
        """Return which functions may be there, and whether others were asked to vouch for some of them."""
        default = np.zeros(len(keys), dtype=np.uint64)
        default[of_key] = self._default
        legal = np.asarray((functions == default) | (functions == _NOTHING), dtype=np.bool_)
        legal |= (functions == np.uint64(self._zero)) & bool(self._zero)
        for index in np.flatnonzero(~legal & self._image.functions_at(functions)).tolist():
            pair = (int(default[index]), int(functions[index]))
            if pair not in self._good and self._types.alike(int(keys[index]), *pair):
                self._good.add(pair)
            legal[index] = pair in self._good
        left = np.flatnonzero(~legal & (functions > np.uint64(self._image.region.end)))
        # The dispatcher of a type of BPF programs is code made for those that are loaded.
        dispatching = np.array([self._dispatches(key) for key in keys[left].tolist()], dtype=bool)
        outside = self._image.outside
        generated = outside.generated_among(frozenset(functions[left[dispatching]].tolist()))
        modules = outside.functions_among(frozenset(functions[left].tolist()) - generated)
        for index, dispatches in zip(left.tolist(), dispatching.tolist(), strict=True):
            function = int(functions[index])
            legal[index] = (dispatches and function in generated) or function in modules
        return legal, bool(len(left))

    def _dispatches(self, key: int) -> bool:
        return _DISPATCHER.fullmatch(self._image.program.describe(key)) is not None

    def _counted(self, functions: NDArray[np.uint64]) -> NDArray[np.uint64]:
        """With call depth tracking, calls lead to the counter before the function."""
        return np.asarray(functions - np.uint64(self._types.counter_size))

    def _is_linked(self, indices: NDArray[np.int64], found: NDArray[np.uint8]) -> NDArray[np.bool_]:
        inside = np.arange(_WIDTH) < self.sites.length[indices][:, None]
        return np.asarray(~((found[:, :_WIDTH] != self._linked[indices]) & inside).any(axis=1))

    def _forms(self, index: int, function: int) -> tuple[bytes, ...]:
        address = self.sites.address[index : index + 1]
        to = np.array([function], dtype=np.uint64)
        if int(self.sites.length[index]) == _WIDTH:
            moved = branches(CALL, address + np.uint64(1), to)[0, 1:].tobytes()
            return (self._linked[index, :2].tobytes() + moved,)
        if self._tail[index]:
            return (_RETURN,) if function == 0 else (branches(JUMP, address, to)[0].tobytes(),)
        if function == 0:
            return (NOP5,)
        if function in (self._zero, self._warn):
            return (_ZERO if function == self._zero else _WARN,)
        return (branches(CALL, address, to)[0].tobytes(),)

    def _entries(self, image: KernelImage, sites: SiteSet) -> tuple[NDArray[np.uint64], NDArray[np.bool_]]:
        key = np.zeros(len(sites), dtype=np.uint64)
        for number in np.unique(sites.table).tolist():
            table, entries = image.reference.tables[number], image.reference.table_entries(number)
            mask = sites.table == number
            rows = sites.entry[mask].astype(np.uint64)
            places = np.uint64(table.address) + rows * np.uint64(entries.itemsize)
            fields: Mapping[str, Any] = entries.dtype.fields or {}
            distance = entries["key"][sites.entry[mask]].astype(np.int64).view(np.uint64)
            key[mask] = places + np.uint64(fields["key"][1]) + distance + np.uint64(image.slide)
        return key & ~np.uint64(_FLAGS), (key & np.uint64(_TAIL)).astype(bool)


class StaticCallTrampolines(StaticCalls):
    """The rule for `__SCT__name`, which jumps to what `__SCK__name` holds."""

    kind = SiteClass.STATIC_CALL_TRAMPOLINE

    def _entries(self, image: KernelImage, sites: SiteSet) -> tuple[NDArray[np.uint64], NDArray[np.bool_]]:
        key = np.zeros(len(sites), dtype=np.uint64)
        keys = image.static_call_keys()
        for index in range(len(sites)):
            for name in image.own_names_at(int(sites.address[index])):
                key[index] = keys.get(name.removeprefix("__SCT__"), int(key[index]))
        # A trampoline without a key is never patched: it holds what was linked, and so needs no key.
        if len(key) and not key.all():
            key[key == 0] = key.max() or sites.address[0]
        return key, np.ones(len(sites), dtype=bool)
