"""Compiles the test modules for one kernel, without its headers: layouts come from its BTF.

A header package fits one compiler and one kernel; the BTF in a reference image is there for every kernel
that can be compared at all. Needs gcc.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from pathlib import Path
from typing import Final

from affiant.kernel.reference import ReferenceImage
from affiant.kernel.reference.btf import BtfKind

__all__ = ["SOURCES", "build_modules"]

_FOLDER: Final = Path(__file__).parent
_FLAGS: Final = (
    *("-std=gnu11", "-O2", "-Wall", "-Werror", "-ffreestanding", "-fno-common", "-fno-strict-aliasing"),
    *("-mcmodel=kernel", "-mno-red-zone", "-mgeneral-regs-only", "-fno-pic", "-fcf-protection=none"),
    *("-fno-stack-protector", "-fno-asynchronous-unwind-tables", "-fno-jump-tables"),
)
_WANTED: Final = re.compile(
    r"\b(?:FIELD\(\w+, (\w+), (\w+),|OFFSET_([a-z0-9_]+?)__(\w+)|OBJECT\(\w+, (\w+)\)|SIZE_(\w+)"
    r"|BEHIND_ENTRY_(\w+))"
)

SOURCES: Final = tuple(sorted(path.stem for path in _FOLDER.glob("*.c")))
"""The names of all test modules; each begins its source with what it does."""


def build_modules(reference: ReferenceImage) -> dict[str, bytes]:
    """Return the test modules for a kernel: name -> .ko file, unsigned and without symbol versions.

    A guest loads them if it may load any module by force (CONFIG_MODULE_FORCE_LOAD, no lockdown).
    """
    with tempfile.TemporaryDirectory(prefix="affiant-modules-") as folder:
        built = {}
        for name in SOURCES:
            target = Path(folder) / f"{name}.ko"
            command = ["gcc", *_FLAGS, *_definitions(name, reference), "-c", "-o", str(target)]
            done = subprocess.run(
                [*command, str(_FOLDER / f"{name}.c")], check=False, capture_output=True, text=True
            )
            if done.returncode:
                raise RuntimeError(
                    f"{name}.c does not compile for {reference.release}: {done.stderr[-1500:]}"
                )
            built[name] = target.read_bytes()
    return built


def _definitions(name: str, reference: ReferenceImage) -> list[str]:
    """Return -D options for what a source and the headers say they need of the kernel."""
    text = "".join(path.read_text() for path in (_FOLDER / f"{name}.c", *sorted(_FOLDER.glob("*.h"))))
    defined = {"NAME": f'"lab_{name}"', "VERMAGIC": f'"{reference.modules[0].vermagic.strip()} "'}
    for field_type, member, offset_type, offset_member, object_type, size_type, function in _WANTED.findall(
        text
    ):
        if member or offset_member:
            kind, path = field_type or offset_type, member or offset_member
            found = reference.types.member(kind, path.replace("__", "."))
            if found is not None:
                defined[f"OFFSET_{kind}__{path}"] = str(found.offset)
        elif function:
            defined[f"BEHIND_ENTRY_{function}"] = str(_behind_entry(reference, function))
        else:
            found_type = reference.types.find(object_type or size_type, BtfKind.STRUCT)
            if found_type is not None:
                defined[f"SIZE_{object_type or size_type}"] = str(found_type.target)
    return [f"-D{key}={value}" for key, value in sorted(defined.items())]


def _behind_entry(reference: ReferenceImage, function: str) -> int:
    """Return how many bytes a function's landing pad and tracing call take."""
    symbol = reference.symbols.unique(function)
    assert symbol is not None, f"the kernel has no single function {function}"
    sites = reference.sites_between(symbol.address, symbol.address + 16)
    return max((int(site["address"] + site["length"]) - symbol.address for site in sites), default=0)
