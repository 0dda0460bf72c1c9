"""Reference images: what a kernel must look like in memory, known without asking the guest.

A reference image is built offline from the kernel file that a distribution ships: linked code and data,
relocations, every place where the kernel patches itself, symbols and types. Measured boot says which
kernel file a guest booted; its digest selects the reference; live memory is then compared with it.

Promised: same package, same bytes, so that a digest of a reference means the same everywhere. Symbols
and types come from here and never from guest memory. Hostile files end in `MalformedError`, within bounds.
Not promised: that a package is genuine (the package manager says that), and what exactly may stand at a
patch site (whoever compares decides that, with the table entries that are kept).
"""

from affiant.kernel.reference.btf import BtfIndex, BtfKind, BtfMember, BtfType
from affiant.kernel.reference.build import Progress, build_reference
from affiant.kernel.reference.image import ReferenceImage
from affiant.kernel.reference.linked import KERNEL_MAP, Section
from affiant.kernel.reference.metadata import Metadata
from affiant.kernel.reference.modules import ModuleEntry
from affiant.kernel.reference.package import PackageName
from affiant.kernel.reference.relocations import Relocations
from affiant.kernel.reference.sites import SITE, PatchTable, SiteClass
from affiant.kernel.reference.symbols import Symbol, SymbolTable

__all__ = [
    "KERNEL_MAP",
    "SITE",
    "BtfIndex",
    "BtfKind",
    "BtfMember",
    "BtfType",
    "Metadata",
    "ModuleEntry",
    "PackageName",
    "PatchTable",
    "Progress",
    "ReferenceImage",
    "Relocations",
    "Section",
    "SiteClass",
    "Symbol",
    "SymbolTable",
    "build_reference",
]
