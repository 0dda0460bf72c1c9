"""The patch sites of a loaded module, judged by the rules that judge the kernel's own.

A module brings the same tables as the kernel, in sections of its own. Here they are read from its linked
file and offered to the rules of `site_content` in the shape that they know.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from affiant.kernel.comparison.regions import CodeRegion
from affiant.kernel.kernel_image.overlaid_reference import OverlaidReference
from affiant.kernel.machine.memory import GuestMemory
from affiant.kernel.machine.paging import AddressSpace
from affiant.kernel.modules.image import LinkedModule
from affiant.kernel.objects.program import KernelProgram
from affiant.kernel.reference.image import ReferenceImage
from affiant.kernel.reference.linked import LinkedKernel, Section
from affiant.kernel.reference.patch_tables import find_sites
from affiant.kernel.reference.sites import PatchTable, Sites
from affiant.kernel.site_content.content import SiteContent
from affiant.kernel.site_content.ftrace_hooks import FtraceHooks
from affiant.kernel.site_content.image import KernelImage
from affiant.kernel.site_content.outside import Outside

__all__ = ["NamedImage", "functions_of", "module_content"]

# Tables that the kernel finds by symbols are sections in a module (include/asm-generic/vmlinux.lds.h).
_BOUNDED: Final[Mapping[str, tuple[str, str]]] = {
    "__jump_table": ("__start___jump_table", "__stop___jump_table"),
    ".static_call_sites": ("__start_static_call_sites", "__stop_static_call_sites"),
    "__mcount_loc": ("__start_mcount_loc", "__stop_mcount_loc"),
}
_KEY_FLAGS: Final = 3
_EXECUTE, _WRITE = 1 << 2, 1 << 0
_FUNCTION = 2  # STT_FUNC


class NamedImage(KernelImage):
    """The kernel's text in view for all its modules; remembers what it was asked for by name."""

    def __init__(
        self,
        memory: GuestMemory,
        space: AddressSpace,
        program: KernelProgram,
        region: CodeRegion,
        *,
        outside: Outside,
    ) -> None:
        super().__init__(memory, space, program, region, outside=outside)
        self._named: dict[str, dict[str, int]] = {}

    def named(self, pattern: str) -> dict[str, int]:
        """Return the running addresses of all text symbols whose name matches, by name."""
        if pattern not in self._named:
            self._named[pattern] = super().named(pattern)
        return self._named[pattern]


class _ModuleImage(KernelImage):
    """A module's text in view; functions are its own and the kernel's."""

    def __init__(
        self,
        memory: GuestMemory,
        space: AddressSpace,
        kernel: KernelImage,
        region: CodeRegion,
        *,
        reference: ReferenceImage,
        functions: NDArray[np.uint64],
        sections: tuple[Section, ...],
        symbols: Mapping[str, list[int]],
    ) -> None:
        super().__init__(memory, space, kernel.program, region, outside=kernel.outside, reference=reference)
        self._kernel = kernel
        self._own_functions = functions
        self._sections = sections
        self._symbols = symbols
        self._names: dict[int, list[str]] = {}
        for name, addresses in symbols.items():
            for address in addresses:
                self._names.setdefault(address, []).append(name)

    def named(self, pattern: str) -> dict[str, int]:
        """Return the kernel's text symbols whose name matches."""
        return self._kernel.named(pattern)

    def own_names_at(self, address: int) -> tuple[str, ...]:
        """Return the kernel's names of an address, and the module's."""
        return (*self.names_at(address), *self._names.get(address, ()))

    def static_call_keys(self) -> dict[str, int]:
        """Return the module's own keys, by name."""
        return {
            name.removeprefix("__SCK__"): addresses[0]
            for name, addresses in self._symbols.items()
            if name.startswith("__SCK__")
        }

    def functions_at(self, addresses: NDArray[np.uint64]) -> NDArray[np.bool_]:
        """Tell for each address whether a function of the module or of the kernel starts there."""
        return self._kernel.functions_at(addresses) | np.isin(addresses, self._own_functions)

    def linked_words(self, addresses: NDArray[np.uint64]) -> NDArray[np.uint64]:
        """Return the words that were linked at each address in the kernel, or in the module as relocated."""
        found = self._kernel.linked_words(addresses)
        for section in self._sections:
            offsets = (addresses - np.uint64(section.load_address)).view(np.int64)
            for index in np.flatnonzero((offsets >= 0) & (offsets <= len(section.data) - 8)).tolist():
                start = int(offsets[index])
                found[index] = int.from_bytes(section.data[start : start + 8], "little")
        return found


def module_content(
    memory: GuestMemory,
    space: AddressSpace,
    kernel: NamedImage,
    hooks: FtraceHooks,
    module: LinkedModule,
    *,
    text: str = "text",
) -> tuple[CodeRegion, SiteContent]:
    """Return a module's text as it must stand, or that of its init, and the judge of its patch sites.

    Raises MalformedError if the module's tables are broken.
    """
    program, slide = kernel.program, kernel.slide
    area = module.areas[text]
    sections = tuple(_with_keys(section, kernel) for section in _sections(module))
    symbols = _symbols(module)
    sites = find_sites(LinkedKernel(sections), symbols)
    inside = (sites.sites["address"] >= np.uint64(area.start)) & (
        sites.sites["address"] + sites.sites["length"] <= np.uint64(area.start + len(area.expected))
    )
    own = sites.sites[inside].copy()
    kinds = np.zeros(len(area.expected), dtype=np.uint8)
    for site in own[np.argsort(-own["length"].astype(np.int64), kind="stable")]:
        start = int(site["address"]) - area.start
        kinds[start : start + int(site["length"])] = site["kind"]
    region = CodeRegion("module text", area.start, area.expected, kinds, own, area.unknown)
    tables = tuple(
        PatchTable(table.name, table.kind, table.layout, max(0, table.address - slide), table.count)
        for table in sites.tables
    )
    moved = tuple(
        Section(
            part.name,
            part.address - slide,
            part.load_address - slide,
            part.size,
            part.writable,
            part.executable,
            part.data,
        )
        for part in sections
    )
    image = _ModuleImage(
        memory,
        space,
        kernel,
        region,
        reference=OverlaidReference(program.reference, moved, Sites(tables, sites.sites)),
        functions=functions_of(module),
        sections=sections,
        symbols=symbols,
    )
    return region, SiteContent(memory, space, program, region, image=image, hooks=hooks)


def _sections(module: LinkedModule) -> tuple[Section, ...]:
    """Return the laid out sections with their linked bytes, in order of address."""
    found: list[Section] = []
    for index, place in sorted(module.sections.items(), key=lambda item: item[1]):
        section = module.file.sections[index]
        for area in module.areas.values():
            offset = place - area.start
            if section.size and offset >= 0 and offset + section.size <= len(area.expected):
                data = memoryview(area.expected[offset : offset + section.size].tobytes())
                flags = section.flags
                found.append(
                    Section(
                        section.name,
                        place,
                        place,
                        section.size,
                        bool(flags & _WRITE),
                        bool(flags & _EXECUTE),
                        data,
                    )
                )
                break
    return tuple(found)


def _with_keys(section: Section, kernel: KernelImage) -> Section:
    """Let static call sites name keys where the module names trampolines (static_call_add_module()).

    Keys that modules may not change are not exported to them; the kernel finds them by the trampoline.
    """
    if section.name != ".static_call_sites" or len(section.data) % 8:
        return section
    entries = np.frombuffer(section.data, dtype="<i4").copy()
    for number in range(1, len(entries), 2):
        place = section.load_address + 4 * number
        target = place + int(entries[number])
        for name in kernel.names_at(target & ~_KEY_FLAGS):
            key = kernel.program.find("__SCK__" + name.removeprefix("__SCT__"))
            if name.startswith("__SCT__") and key is not None:
                entries[number] = (key | target & _KEY_FLAGS) - place
    return replace(section, data=memoryview(entries.tobytes()))


def _symbols(module: LinkedModule) -> dict[str, list[int]]:
    """Return the addresses of the module's own symbols, with those around its tables."""
    named: dict[str, list[int]] = {}
    values = module.file.symbols
    for index in np.flatnonzero((values["section"] > 0) & (values["section"] < 0xFF00)).tolist():
        section = int(values["section"][index])
        if section in module.sections:
            address = module.sections[section] + int(values["value"][index])
            named.setdefault(module.file.names[index], []).append(address)
    for name, bounds in _BOUNDED.items():
        found = module.section(name)
        if found is not None and len(found[1]):
            named[bounds[0]], named[bounds[1]] = [found[0]], [found[0] + len(found[1])]
    return named


def functions_of(module: LinkedModule) -> NDArray[np.uint64]:
    """Return where the module's functions start, ascending."""
    symbols = module.file.symbols
    chosen = symbols[
        (symbols["info"] & 0xF == _FUNCTION) & (symbols["section"] > 0) & (symbols["section"] < 0xFF00)
    ]
    places = [
        module.sections[int(symbol["section"])] + int(symbol["value"])
        for symbol in chosen
        if int(symbol["section"]) in module.sections
    ]
    return np.array(sorted(places), dtype=np.uint64)
