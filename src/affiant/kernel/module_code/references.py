"""The files of a kernel's modules, and modules linked for the place where the guest says they lie."""

from __future__ import annotations

from collections.abc import Mapping, Set
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from affiant.kernel.memory import MemoryFault
from affiant.kernel.module_code.places import ModuleKey, module_places
from affiant.kernel.module_code.verdict import ModuleCode
from affiant.kernel.module_image import PER_CPU, Area, LinkedModule, link_module, section_places
from affiant.kernel.module_sites import NamedImage, module_content
from affiant.kernel.modules import Module
from affiant.kernel.program import KernelProgram
from affiant.kernel.reference.module_files import ModuleFiles, module_files_beside
from affiant.kernel.reference.modules import ModuleEntry
from affiant.kernel.reference.relocatable import Relocatable, read_relocatable
from affiant.kernel.running_kernel import RunningKernel
from affiant.kernel.site_content.content import SiteContent
from affiant.kernel.text import CodeRegion
from affiant.model.errors import AffiantError, UnavailableError

__all__ = ["KnownModule", "ModuleReferences"]

# The loader sorts these in place (sort_extable(), unwind_module_init(), ftrace_process_locs()).
_SORTED: Final = ("__ex_table", ".orc_unwind", ".orc_unwind_ip", "__mcount_loc")
_TRAP: Final = 0xCC


@dataclass(slots=True, eq=False)
class KnownModule:
    """A module as it was linked for its place, with what was found of it when it was last judged.

    It was linked with symbols of `with_modules`; with all that there were, if it has symbols that nobody has.
    What is `due` is to be judged from its file again, whatever was found legal before.
    """

    linked: LinkedModule
    with_modules: frozenset[ModuleKey]
    code: tuple[CodeRegion, SiteContent] | None
    rodata: CodeRegion | None
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
        if self.code is not None:
            self.code[1].forget()


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
        self.image = NamedImage(
            kernel.memory,
            kernel.kernel_space,
            kernel.program,
            kernel.text,
            outside=kernel.outside,
        )

    def file(self, name: str) -> Relocatable | None:
        """Return a module's file, None if the reference does not name it."""
        if name not in self._parsed:
            entry: ModuleEntry | None = self.entries.get(name)
            if entry is None:
                return None
            self._parsed[name] = read_relocatable(self._files.read(entry))
        return self._parsed[name]

    def link(
        self, kernel: RunningKernel, module: Module, others: Mapping[ModuleKey, Module]
    ) -> KnownModule | None:
        """Return a module linked for its place, None if the reference does not name it.

        Raises AffiantError where the guest says what cannot be, or the file is broken.
        """
        file = self.file(module.name)
        if file is None:
            return None
        places = module_places(kernel.program, module)
        resolver = _Resolver(self, kernel.program, others)
        linked = link_module(file, places, resolver)
        code = None
        if "text" in linked.areas:  # a few modules are nothing but data
            _pad(kernel.program, linked.areas["text"])
            hooks = kernel.text_content.hooks
            code = module_content(kernel.memory, kernel.kernel_space, self.image, hooks, linked)
        asked = others.keys() if linked.unresolved else resolver.used
        return KnownModule(linked, frozenset(asked), code, _rodata(linked))


class _Resolver:
    """Finds symbols that a module takes from the kernel or from other modules."""

    def __init__(
        self, references: ModuleReferences, program: KernelProgram, others: Mapping[ModuleKey, Module]
    ) -> None:
        self._references, self._program, self._others = references, program, others
        self._exported: dict[str, tuple[int, ModuleKey]] | None = None
        self.used: set[ModuleKey] = set()
        """The modules that symbols were taken from."""

    def __call__(self, name: str) -> int | None:
        found = self._program.find(name)
        if found is not None:
            return found
        if self._exported is None:
            self._exported = {}
            for key, module in self._others.items():
                self._add(key, module, self._exported)
        if name not in self._exported:
            return None
        address, owner = self._exported[name]
        self.used.add(owner)
        return address

    def _add(self, key: ModuleKey, module: Module, exports: dict[str, tuple[int, ModuleKey]]) -> None:
        try:
            file = self._references.file(module.name)
            if file is None:
                return
            places = module_places(self._program, module)
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
                exports.setdefault(name, (bases[section] + int(symbols["value"][index]), key))


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
