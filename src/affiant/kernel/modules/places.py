"""Where the guest says that a module lies: its key, and the areas of its memory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from itertools import takewhile
from typing import TYPE_CHECKING, Final

import numpy as np

from affiant.kernel.modules.image import LATER_READ_ONLY, ModulePlaces
from affiant.kernel.modules.loaded import Module
from affiant.kernel.objects.program import KernelProgram, StructCopy
from affiant.kernel.objects.slide import KERNEL_MAP
from affiant.kernel.page_tables.executable_pages import LAST_CODE_ADDRESS
from affiant.model.errors import MalformedError

if TYPE_CHECKING:
    from affiant.kernel.reference.image import ReferenceImage

__all__ = ["ModuleKey", "init_places", "module_key", "module_places"]

_MODULE = "struct module"
_AREAS: Final[Mapping[str, str]] = {
    "text": "MOD_TEXT",
    "rodata": "MOD_RODATA",
    "ro_after_init": "MOD_RO_AFTER_INIT",
    "data": "MOD_DATA",
    "init_text": "MOD_INIT_TEXT",
    "init_rodata": "MOD_INIT_RODATA",
    "init_data": "MOD_INIT_DATA",
}
_LONGEST_LIST: Final = 256
_LONGEST_NAME: Final = 64
_OUT_OF_THE_WAY: Final = 1 << 24  # where init areas are laid out once they are freed

ModuleKey = tuple[object, ...]
"""What tells a module from another one, and from itself at another place or in another state."""


def module_key(module: Module) -> ModuleKey:
    """Return the key of a module."""
    return (module.name, module.address, module.base, module.text, module.size, module.state == "live")


def module_places(program: KernelProgram, module: Module) -> ModulePlaces:
    """Read where the areas of a module begin. Raises MalformedError for a place where no module can be."""
    copy = program.copy(_MODULE, module.address)
    bases = _bases(copy)
    for name, base in bases.items():
        if base and not KERNEL_MAP <= base <= LAST_CODE_ADDRESS:
            raise MalformedError(f"the module's {name} is said to lie at {base:#x}, where no module is")
    # Only what serves init is freed. Of the rest, what has no place has no bytes: its file has none of it.
    freed = frozenset(name for name, base in bases.items() if not base and name.startswith("init_"))
    contiguous = "mem" not in copy
    if contiguous and "init_text" in freed:
        freed = frozenset({"init_text", "init_rodata", "init_ro_after_init", "init_data"})
    away = bases["text"] + _OUT_OF_THE_WAY
    if away > LAST_CODE_ADDRESS:
        away = bases["text"] - 2 * _OUT_OF_THE_WAY
    bases = {
        name: base or away + number * _OUT_OF_THE_WAY // 16
        for number, (name, base) in enumerate(bases.items())
    }
    per_cpu = copy.integer("percpu") if "percpu" in copy else 0
    return ModulePlaces(bases, per_cpu, contiguous, freed, _later_read_only(program.reference))


def init_places(program: KernelProgram, module: Module | None, start: int) -> ModulePlaces:
    """Return the places of a module whose init has its text at `start`; with None, of one that is gone.

    What has no place any more is laid out where it does not matter, and counts as freed. Raises what
    `module_places` raises.
    """
    if module is not None:
        places = module_places(program, module)
        bases, freed = dict(places.bases), places.freed
    else:
        contiguous = not program.has(_MODULE, "mem")
        away = start - _OUT_OF_THE_WAY if start - _OUT_OF_THE_WAY > KERNEL_MAP else start + _OUT_OF_THE_WAY
        areas = ("text", "init_text") if contiguous else tuple(_AREAS)
        bases = {area: away + number * _OUT_OF_THE_WAY // 16 for number, area in enumerate(areas)}
        freed = frozenset((*_AREAS, "init_ro_after_init"))
        places = ModulePlaces(bases, 0, contiguous, freed, _later_read_only(program.reference))
    # Where all areas of init follow each other, the place of its text is that of all.
    known = {area for area in freed if area.startswith("init_")} if places.contiguous else {"init_text"}
    return replace(places, bases=bases | {"init_text": start}, freed=freed - known)


def _later_read_only(reference: ReferenceImage) -> frozenset[str]:
    """Return the sections that the kernel makes read-only after init (module_mark_ro_after_init()).

    The kernel's own list of their names tells, where it is a symbol: it is in 7.2, which has
    `.static_call_sites` on it, and not in 6.1 and 6.12, which do not.
    """
    names = reference.symbols.unique("ro_after_init")
    if names is None:
        return LATER_READ_ONLY
    size = min(names.size, _LONGEST_LIST) // 8 * 8
    try:
        listed = np.frombuffer(reference.read(names.address, size), dtype="<u8").tolist()
        found = [bytes(reference.read(place, _LONGEST_NAME)) for place in takewhile(bool, listed)]
    except KeyError:
        return LATER_READ_ONLY
    return frozenset(name.split(b"\0", 1)[0].decode("ascii", "replace") for name in found)


def _bases(copy: StructCopy) -> dict[str, int]:
    if "mem" not in copy:  # until 6.3 (commit ac3b43283923)
        return {"text": copy.integer("core_layout.base"), "init_text": copy.integer("init_layout.base")}
    program = copy.program
    return {area: copy.integer(f"mem[{program.constant(kind)}].base") for area, kind in _AREAS.items()}
