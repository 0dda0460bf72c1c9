"""Where the guest says that a module lies: its key, and the areas of its memory."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from affiant.kernel.executable_pages import LAST_CODE_ADDRESS
from affiant.kernel.module_image import ModulePlaces
from affiant.kernel.modules import Module
from affiant.kernel.program import KernelProgram, StructCopy
from affiant.kernel.slide import KERNEL_MAP
from affiant.model.errors import MalformedError

__all__ = ["ModuleKey", "module_key", "module_places"]

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
    return ModulePlaces(bases, copy.integer("percpu") if "percpu" in copy else 0, contiguous, freed)


def _bases(copy: StructCopy) -> dict[str, int]:
    if "mem" not in copy:  # until 6.3 (commit ac3b43283923)
        return {"text": copy.integer("core_layout.base"), "init_text": copy.integer("init_layout.base")}
    program = copy.program
    return {area: copy.integer(f"mem[{program.constant(kind)}].base") for area, kind in _AREAS.items()}
