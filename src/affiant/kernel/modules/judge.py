"""Who judges modules: all at once where nothing is odd, and each by itself where something is."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Set
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import islice
from typing import Final

import numpy as np
from numpy.typing import NDArray

from affiant.kernel.comparison.regions import CodeRegion
from affiant.kernel.machine.memory import PAGE_SIZE
from affiant.kernel.modules.comparison import compare_module
from affiant.kernel.modules.digests import CodeDigests
from affiant.kernel.modules.joined import JoinedModules
from affiant.kernel.modules.left_text import left_text
from affiant.kernel.modules.loaded import Module, listed_modules
from affiant.kernel.modules.places import ModuleKey, module_key
from affiant.kernel.modules.references import KnownModule, ModuleReferences
from affiant.kernel.modules.sites import functions_of
from affiant.kernel.modules.verdict import AS_PACKAGED, ModuleCode, told
from affiant.kernel.running_kernel import RunningKernel
from affiant.kernel.site_content.content import SiteContent
from affiant.model.errors import AffiantError, UnavailableError

__all__ = ["ModuleJudge"]

_MOST_KEPT: Final = 256 << 20
"""Bytes of the files of modules that are kept as they were linked, which takes three times as much."""
_MOST_MET: Final = 512
_INIT_TEXT: Final = ".init.text"


class ModuleJudge:
    """Remembers the modules of one kernel as they were linked, and what was found legal in them."""

    def __init__(self, kernel: RunningKernel) -> None:
        """Raises UnavailableError if the reference came without module files."""
        self._references = ModuleReferences(kernel)
        self.known: dict[ModuleKey, KnownModule] = {}
        """Modules as they were linked when they were met, and what was found of them."""
        self._joined: JoinedModules | None = None
        self._asked: set[ModuleKey] = set()
        self._digests = CodeDigests()
        self._kept = 0
        self._beginnings: dict[str, _Beginning | None] = {}

    @property
    def references(self) -> int:
        """How many modules the reference names."""
        return len(self._references.entries)

    def begin(self) -> None:
        """Begin a look: what may be done in one, whatever the guest lists, may be done again."""
        self._digests.begin()
        self._references.begin()

    def whole(
        self, kernel: RunningKernel, listed: Mapping[ModuleKey, Module], moving: Set[ModuleKey]
    ) -> dict[ModuleKey, ModuleCode]:
        """Return what is found now of those modules that are as packaged beyond doubt; see `JoinedModules`.

        Those that are `moving` are left out. Of a module that was not compared before, or that was linked
        with others than are there now, nothing is known beyond doubt.
        """
        members = {
            key: known
            for key in listed
            if key not in moving
            and (known := self.known.get(key)) is not None
            and known.result is not None
            and known.init is None  # which is there for moments only
            and known.stands(key, listed.keys())
        }
        if self._joined is None or not self._joined.has_just(members):
            self._joined = JoinedModules(self._references.image, members) if members else None
        try:
            found = self._joined.whole(kernel) if self._joined is not None else {}
        except AffiantError:
            return {}  # what is wrong is told of each module
        return {key: _as_listed(code, listed[key]) for key, code in found.items()}

    def compare(
        self, kernel: RunningKernel, key: ModuleKey, listed: Mapping[ModuleKey, Module]
    ) -> ModuleCode:
        """Compare one of the listed modules with its file, and tell all that is wrong with it.

        Raises nothing that the guest could cause.
        """
        module, known = listed[key], self.known.get(key)
        try:
            if known is None or not known.stands(key, listed.keys()):
                self._drop(key)
                known = self._references.link(kernel, key, listed)
                if known is None:
                    digest, reason = self._digests.of(kernel.kernel_space, module)
                    return told(module, "unknown", digest=digest, reason=reason)
                self._keep(key, known)
            return compare_module(kernel, module, known)
        except AffiantError as error:
            return told(module, "unread", reason=str(error))

    def vouched(self, kernel: RunningKernel, addresses: Set[int]) -> frozenset[int]:
        """Return those addresses where a function starts, of a listed module with the code of its package.

        Each of these modules is compared now, once. Raises AffiantError if the list of modules cannot be
        followed.
        """
        listed = {module_key(module): module for module in listed_modules(kernel.program)}
        ordered = np.array(sorted(addresses), dtype=np.uint64)
        vouched: set[int] = set()
        for key, module in listed.items():
            inside = np.concatenate([_within(ordered, span) for span in module.text] or [ordered[:0]])
            if not len(inside):
                continue
            if key in self._asked:
                vouched |= set(inside.tolist())  # it traces itself: its own verdict is on its way
            elif self._is_as_packaged(kernel, key, listed):
                vouched |= set(np.intersect1d(inside, functions_of(self.known[key].linked)).tolist())
        return frozenset(vouched)

    def left_among(self, kernel: RunningKernel, pages: Set[int]) -> frozenset[int]:
        """Return those pages that hold text of modules, as packaged, that come or go; see `left_text`."""
        return left_text(kernel, self, pages, listed_modules(kernel.program))

    def knows(self, name: str) -> bool:
        """Tell whether a package has a module of that name."""
        return name in self._references.entries

    def met(self, names: Iterable[str]) -> None:
        """Remember the modules that were met last: what their init has may be there when they are gone."""
        for name in names:
            if name not in self._beginnings:
                with suppress(AffiantError):  # perhaps in the next look
                    self._beginnings[name] = self._beginning_of(name)
            else:
                self._beginnings[name] = self._beginnings.pop(name)
        for name in list(islice(self._beginnings, max(0, len(self._beginnings) - _MOST_MET))):
            del self._beginnings[name]

    def begin_like(self, page: NDArray[np.uint8], *, at_least: float) -> list[str]:
        """Return the modules that were met lately whose init begins much like a page, the likest first."""
        alike = {
            name: beginning.share(page)
            for name, beginning in self._beginnings.items()
            if beginning is not None
        }
        found = [name for name, share in alike.items() if share >= at_least]
        return sorted(found, key=lambda name: -alike[name])

    def init_text(
        self, kernel: RunningKernel, name: str, start: int, listed: Mapping[ModuleKey, Module]
    ) -> tuple[CodeRegion, SiteContent] | None:
        """Return the text of a module's init as it must stand at `start`; see `ModuleReferences`."""
        return self._references.init_text(kernel, name, start, listed)

    def _beginning_of(self, name: str) -> _Beginning | None:
        file = self._references.file(name)
        section = None if file is None else file.section(_INIT_TEXT)
        if file is None or section is None or not section.size:
            return None
        code = np.frombuffer(section.data[:PAGE_SIZE], dtype=np.uint8).copy()
        fixed = np.ones(len(code), dtype=bool)
        places = file.relocations.get(section.index)
        if places is not None:
            touched = (places["offset"].astype(np.int64)[:, None] + np.arange(-1, 4)).reshape(-1)
            fixed[touched[(touched >= 0) & (touched < len(code))]] = False  # with the opcode before
        return _Beginning(code, fixed) if fixed.any() else None

    def _is_as_packaged(
        self, kernel: RunningKernel, key: ModuleKey, listed: Mapping[ModuleKey, Module]
    ) -> bool:
        self._asked.add(key)
        try:
            known = self.known.get(key)
            whole = known is not None and known.stands(key, listed.keys()) and self._holds(kernel, known)
            return whole or self.compare(kernel, key, listed).verdict == AS_PACKAGED
        finally:
            self._asked.discard(key)

    def forget(self) -> None:
        """Have every module be compared with its file anew: nothing that was found of them counts."""
        for known in self.known.values():
            known.forget()

    def forget_others(self, keys: Set[ModuleKey]) -> None:
        """Drop what belongs to modules that are gone."""
        for key in self.known.keys() - keys:
            self._drop(key)
        self._references.forget_others({str(key[0]) for key in keys})

    def _keep(self, key: ModuleKey, known: KnownModule) -> None:
        """Keep a module as it was linked. Raises UnavailableError if too many are kept for one more.

        A guest may list one module thousands of times, each at another place.
        """
        size = self._references.size(str(key[0]))
        if self._kept + size > _MOST_KEPT:
            raise UnavailableError("more modules are listed than are kept as they were linked")
        self._kept += size
        self.known[key] = known

    def _drop(self, key: ModuleKey) -> None:
        if self.known.pop(key, None) is not None:
            self._kept -= self._references.size(str(key[0]))

    def _holds(self, kernel: RunningKernel, known: KnownModule) -> bool:
        return self._joined is not None and self._joined.holds(kernel, known)


@dataclass(frozen=True, slots=True, eq=False)
class _Beginning:
    """The first page of what a module has for init, in its file, and the bytes that loading leaves alone."""

    code: NDArray[np.uint8]
    fixed: NDArray[np.bool_]

    def share(self, page: NDArray[np.uint8]) -> float:
        same = self.code == page[: len(self.code)]
        return float(np.count_nonzero(same & self.fixed) / np.count_nonzero(self.fixed))


def _as_listed(code: ModuleCode, module: Module) -> ModuleCode:
    """Return what was found with the marks that the kernel has on the module now."""
    if (code.taints, code.signature_ok) == (module.taints, module.signature_ok):
        return code
    return replace(code, taints=module.taints, signature_ok=module.signature_ok)


def _within(ordered: NDArray[np.uint64], span: tuple[int, int]) -> NDArray[np.uint64]:
    first, end = np.searchsorted(ordered, np.array(span, dtype=np.uint64)).tolist()
    return ordered[first:end]
