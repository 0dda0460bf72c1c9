"""The files of a kernel's modules, and modules linked for the place where the guest says they lie."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Set
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from affiant.kernel.comparison.regions import CodeRegion
from affiant.kernel.machine.memory import MemoryFault
from affiant.kernel.modules.image import PER_CPU, Area, LinkedModule, link_module, section_places
from affiant.kernel.modules.loaded import Module
from affiant.kernel.modules.places import ModuleKey, init_places, module_places
from affiant.kernel.modules.sites import NamedImage, module_content
from affiant.kernel.modules.verdict import ModuleCode
from affiant.kernel.objects.program import KernelProgram
from affiant.kernel.reference.module_files import ModuleFiles, module_files_beside
from affiant.kernel.reference.modules import ModuleEntry
from affiant.kernel.reference.relocatable import Relocatable, read_relocatable
from affiant.kernel.running_kernel import RunningKernel
from affiant.kernel.site_content.content import SiteContent
from affiant.model.errors import AffiantError, UnavailableError

__all__ = ["KnownModule", "ModuleReferences"]

# The loader sorts these in place (sort_extable(), unwind_module_init(), ftrace_process_locs()).
_SORTED: Final = ("__ex_table", ".orc_unwind", ".orc_unwind_ip", "__mcount_loc")
_TRAP: Final = 0xCC
_MOST_WORK: Final = 256 << 20
"""Bytes of module files that one look reads or links, in some seconds: several times what a machine loads."""


@dataclass(slots=True, eq=False)
class KnownModule:
    """A module as it was linked for its place, with what was found of it when it was last judged.

    It was linked with symbols of `with_modules`; with all that there were, if it has symbols that nobody has.
    What is `due` is to be judged from its file again, whatever was found legal before. `init` is the text of
    its init, for as long as it is there.
    """

    linked: LinkedModule
    with_modules: frozenset[ModuleKey]
    code: tuple[CodeRegion, SiteContent] | None
    rodata: CodeRegion | None
    init: tuple[CodeRegion, SiteContent] | None = None
    result: ModuleCode | None = None
    due: bool = False

    def stands(self, key: ModuleKey, listed: Set[ModuleKey]) -> bool:
        """Tell whether it would be linked alike today, among the modules that are listed."""
        if self.linked.unresolved:
            return self.with_modules == listed - {key}
        return self.with_modules <= listed

    def forget(self) -> None:
        """Let nothing count that was found of it so far."""
        self.due = True
        for part in (self.code, self.init):
            if part is not None:
                part[1].forget()


class ModuleReferences:
    """Module files of one kernel; read as modules are met."""

    def __init__(self, kernel: RunningKernel) -> None:
        """Raises UnavailableError if the reference came without module files."""
        path = kernel.reference.path
        if path is None:
            raise UnavailableError("the reference image came without a file, and so without module files")
        self._files = ModuleFiles(module_files_beside(path))
        self.entries = {entry.name: entry for entry in kernel.reference.modules}
        self._parsed: dict[str, Relocatable] = {}
        self._sizes: dict[str, int] = {}
        self._exports: _Exports | None = None
        self._left = _MOST_WORK
        self.image = NamedImage(
            kernel.memory,
            kernel.kernel_space,
            kernel.program,
            kernel.text,
            outside=kernel.outside,
        )

    def begin(self) -> None:
        """Begin a look: so much may be read and linked in it."""
        self._left = _MOST_WORK

    def forget_others(self, names: Set[str]) -> None:
        """Drop the files of modules that are not loaded any more."""
        for name in self._parsed.keys() - names:
            del self._parsed[name]

    def file(self, name: str) -> Relocatable | None:
        """Return a module's file, None if the reference does not name it.

        Raises AffiantError where it is broken, or the look has read and linked enough.
        """
        if name not in self._parsed:
            entry: ModuleEntry | None = self.entries.get(name)
            if entry is None:
                return None
            if self._left <= 0:
                self._work(1)
            data = self._files.read(entry)
            self._sizes[name] = len(data)
            self._left -= len(data)
            self._parsed[name] = read_relocatable(data)
        return self._parsed[name]

    def size(self, name: str) -> int:
        """Return how long a module's file is, which was read before."""
        return self._sizes[name]

    def _work(self, size: int) -> None:
        if size > self._left:
            raise _TooMuchError("more modules are new than one look links; the next goes on")
        self._left -= size

    def exports(self, program: KernelProgram, listed: Mapping[ModuleKey, Module]) -> _Exports:
        """Return what all listed modules export, worked out once for a list."""
        if self._exports is None or self._exports.keys != tuple(listed):
            self._exports = _Exports(self, program, listed)
        return self._exports

    def link(
        self, kernel: RunningKernel, key: ModuleKey, listed: Mapping[ModuleKey, Module]
    ) -> KnownModule | None:
        """Return a listed module linked for its place, None if the reference does not name it.

        Raises AffiantError where the guest says what cannot be, the file is broken, or the look has linked
        enough.
        """
        module = listed[key]
        file = self.file(module.name)
        if file is None:
            return None
        self._work(self._sizes[module.name])
        places = module_places(kernel.program, module)
        resolver = _Resolver(self, kernel.program, key, listed)
        linked = link_module(file, places, resolver)
        code = self._text(kernel, linked, "text")  # a few modules are nothing but data
        init = None if "init_text" in places.freed else self._text(kernel, linked, "init_text")
        asked = listed.keys() - {key} if linked.unresolved else resolver.used
        return KnownModule(linked, frozenset(asked), code, _rodata(linked), init)

    def init_text(
        self, kernel: RunningKernel, name: str, start: int, listed: Mapping[ModuleKey, Module]
    ) -> tuple[CodeRegion, SiteContent] | None:
        """Return the text of a module's init as it must stand at `start`, None if the module has none.

        What it refers to lies where the module is that is listed by that name. If none is, or what serves
        init alone has no place, nobody knows the bytes that refer there. Raises what `link` raises.
        """
        file = self.file(name)
        if file is None:
            return None
        self._work(self._sizes[name])
        key = next((key for key, module in listed.items() if module.name == name), ())
        places = init_places(kernel.program, listed.get(key), start)
        linked = link_module(file, places, _Resolver(self, kernel.program, key, listed))
        return self._text(kernel, linked, "init_text")

    def _text(
        self, kernel: RunningKernel, linked: LinkedModule, area: str
    ) -> tuple[CodeRegion, SiteContent] | None:
        if area not in linked.areas:
            return None
        _pad(kernel.program, linked.areas[area])
        hooks = kernel.text_content.hooks
        return module_content(kernel.memory, kernel.kernel_space, self.image, hooks, linked, text=area)


class _TooMuchError(UnavailableError):
    """One look has read and linked as much as it may."""


_MOST_OF_ONE_NAME: Final = 2


class _Exports:
    """The symbols that listed modules export: where each lies, and whose it is."""

    def __init__(
        self, references: ModuleReferences, program: KernelProgram, listed: Mapping[ModuleKey, Module]
    ) -> None:
        """Raises UnavailableError if the look has read enough."""
        self.keys = tuple(listed)
        self._references, self._program = references, program
        self._by_name: dict[str, list[tuple[int, ModuleKey]]] = {}
        named: Counter[str] = Counter()
        for key, module in listed.items():
            # Of modules of one name, a second one counts for what the first imports, and no other.
            named[module.name] += 1
            if named[module.name] <= _MOST_OF_ONE_NAME:
                self._add(key, module)

    def find(self, name: str, importer: ModuleKey) -> tuple[int, ModuleKey] | None:
        """Return where another module than the importer has a symbol, and which; None if none has it."""
        return next((found for found in self._by_name.get(name, ()) if found[1] != importer), None)

    def _add(self, key: ModuleKey, module: Module) -> None:
        try:
            file = self._references.file(module.name)
            if file is None:
                return
            places = module_places(self._program, module)
        except _TooMuchError:
            raise
        except AffiantError:
            return  # it is told by itself; whoever depends on it has symbols that nobody knows
        bases = {index: place for index, (_, place) in section_places(file, places).items()}
        per_cpu = file.section(PER_CPU)
        if per_cpu is not None and places.per_cpu:
            bases[per_cpu.index] = places.per_cpu
        symbols = file.symbols
        exported = {name.removeprefix("__ksymtab_") for name in file.names if name.startswith("__ksymtab_")}
        for index in np.flatnonzero((symbols["section"] > 0) & (symbols["section"] < 0xFF00)).tolist():
            name, section = file.names[index], int(symbols["section"][index])
            if name in exported and section in bases:
                place = bases[section] + int(symbols["value"][index])
                self._by_name.setdefault(name, []).append((place, key))


class _Resolver:
    """Finds symbols that a module takes from the kernel or from other modules."""

    def __init__(
        self,
        references: ModuleReferences,
        program: KernelProgram,
        key: ModuleKey,
        listed: Mapping[ModuleKey, Module],
    ) -> None:
        self._references, self._program, self._key, self._listed = references, program, key, listed
        self.used: set[ModuleKey] = set()
        """The modules that symbols were taken from."""

    def __call__(self, name: str) -> int | None:
        found = self._program.find(name)
        if found is not None:
            return found
        exported = self._references.exports(self._program, self._listed).find(name, self._key)
        if exported is None:
            return None
        self.used.add(exported[1])
        return exported[0]


def _rodata(linked: LinkedModule) -> CodeRegion | None:
    area = linked.areas.get("rodata")
    if area is None:
        return None
    skipped = area.unknown.copy()
    for section in linked.file.sections:
        if section.name in _SORTED and section.index in linked.sections:
            start = linked.sections[section.index] - area.start
            if 0 <= start <= len(skipped):
                skipped[start : start + section.size] = True
    nothing = np.zeros(len(area.expected), dtype=np.uint8)
    sites: NDArray[np.void] = np.empty(0, dtype=[("kind", "u1")])
    return CodeRegion("module rodata", area.start, area.expected, nothing, sites, skipped)


def _pad(program: KernelProgram, area: Area) -> None:
    """Fill what no section takes as this kernel does: with zeros, or (since 6.13) with INT3, all of it."""
    try:
        last = program.read(area.start + len(area.expected) - 1, 1)
    except MemoryFault:
        return
    if last[0] == _TRAP:
        area.expected[area.padding] = _TRAP
