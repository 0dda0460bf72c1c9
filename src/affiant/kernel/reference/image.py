"""A reference image: what the kernel of one kernel file must look like in memory."""

from __future__ import annotations

import mmap
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from affiant.kernel.reference.btf import BtfIndex
from affiant.kernel.reference.container import Container, Part, PartKind, decode_container
from affiant.kernel.reference.linked import LinkedKernel, Section
from affiant.kernel.reference.metadata import Metadata, decode_metadata
from affiant.kernel.reference.modules import ModuleEntry, decode_modules
from affiant.kernel.reference.package import PackageName
from affiant.kernel.reference.relocations import Relocations, relocate
from affiant.kernel.reference.sites import LAYOUTS, SITE, PatchTable, Sites, check_executable
from affiant.kernel.reference.symbols import SymbolTable
from affiant.model.errors import MalformedError, UnavailableError

__all__ = ["ReferenceImage"]

_MAX_SLIDE = 1 << 30


class ReferenceImage:
    """A loaded reference image. All addresses are link addresses: the kernel without a KASLR slide.

    Made by `load`. It keeps the bytes it was made from (a mapping of the file, mostly) and reads
    sections, types and modules only when asked for. Use from several threads is safe: nothing changes
    after loading but caches.
    """

    def __init__(
        self,
        *,
        digest: bytes,
        metadata: Metadata,
        kernel: LinkedKernel,
        symbols: SymbolTable,
        sites: Sites,
        relocations: Relocations,
        data: Mapping[str, memoryview],
    ) -> None:
        self.path: Path | None = None
        """The file that it was loaded from; None if it was loaded from bytes."""
        self.digest = digest
        self.metadata = metadata
        self.symbols = symbols
        self.relocations = relocations
        self._kernel = kernel
        self._sites = sites
        self._data = data

    @classmethod
    def load(cls, data: bytes | memoryview | mmap.mmap | Path) -> ReferenceImage:
        """Return the reference image in a file or in bytes.

        Guaranteed: what `decode_container` guarantees; sections ascend and don't overlap; symbols,
        relocations and sites are in order; each site lies in an executable section and belongs to an
        entry of a table of its class; digests and texts have their form. Not guaranteed: that it
        describes a real kernel. Only a digest from someone you trust does that.

        A mapped file must not be changed while it is used: what was checked may then differ from what
        is read. Raises `MalformedError` for a broken image, `UnavailableError` if there is no such file.
        """
        container = decode_container(memoryview(_map(data) if isinstance(data, Path) else data))
        parts = {part.name: memoryview(part.data) for part in container.parts if part.kind == PartKind.DATA}
        kernel = _kernel(container)
        metadata = decode_metadata(_required(parts, "metadata"))
        image = cls(
            digest=container.digest,
            metadata=metadata,
            kernel=kernel,
            symbols=SymbolTable.decode(parts),
            sites=_sites(metadata, _required(parts, "sites"), kernel),
            relocations=Relocations(
                absolute64=_addresses(_required(parts, "relocations.absolute64")),
                absolute32=_addresses(_required(parts, "relocations.absolute32")),
                inverse32=_addresses(_required(parts, "relocations.inverse32")),
            ),
            data=parts,
        )
        image.path = data if isinstance(data, Path) else None
        return image

    @property
    def release(self) -> str:
        """The kernel's release, as `uname -r` tells it."""
        return self.metadata.release

    @property
    def banner(self) -> str:
        """The kernel's `linux_banner`, without its final newline."""
        return self.metadata.banner

    @property
    def build_id(self) -> bytes:
        """The GNU build id, 20 bytes mostly; empty if the kernel has none."""
        return bytes.fromhex(self.metadata.build_id)

    @property
    def kernel_file_digest(self) -> bytes:
        """SHA-256 of the kernel file."""
        return bytes.fromhex(self.metadata.kernel_file_digest)

    @property
    def authenticode_digest(self) -> bytes | None:
        """SHA-256 of the kernel file as a PE image; None if it is none."""
        digest = self.metadata.authenticode_digest
        return None if digest is None else bytes.fromhex(digest)

    @property
    def package(self) -> PackageName | None:
        """The package that the kernel came in, if it came in one."""
        return self.metadata.package

    @property
    def alignment(self) -> int:
        """A KASLR slide is a multiple of this many bytes."""
        return self.metadata.alignment

    @property
    def sections(self) -> tuple[Section, ...]:
        """The kernel's sections in ascending order of load address."""
        return self._kernel.sections

    def section(self, name: str) -> tuple[int, memoryview]:
        """Return the load address and linked bytes of a section (`.text`, `.rodata`, `.data`, ...).

        The bytes are empty for a section of zeros. Raises `KeyError` if the kernel has none of that name.
        """
        found = self._kernel.find(name)
        if found is None:
            raise KeyError(name)
        return found.load_address, found.data

    def read(self, address: int, size: int) -> memoryview:
        """Return linked bytes at a load address; raises `KeyError` if no section stores all of them."""
        try:
            return self._kernel.read(address, size)
        except MalformedError:
            raise KeyError(f"{address:#x}") from None

    @property
    def sites(self) -> NDArray[np.void]:
        """All patch sites in ascending order of address, dtype `affiant.kernel.reference.sites.SITE`."""
        return self._sites.sites

    @property
    def tables(self) -> tuple[PatchTable, ...]:
        """The patch tables; `sites["table"]` is an index into them."""
        return self._sites.tables

    def table_entries(self, number: int) -> NDArray[np.void]:
        """Return the raw entries of a patch table as linked, in the fields that its layout names.

        Empty for a table without bytes of its own (its sites come from symbols).
        """
        table = self._sites.tables[number]
        if not table.layout:
            return np.empty(0, dtype=LAYOUTS["relative"])
        layout = LAYOUTS[table.layout]
        return np.frombuffer(self._kernel.read(table.address, table.count * layout.itemsize), dtype=layout)

    def sites_between(self, start: int, end: int) -> NDArray[np.void]:
        """Return the sites whose address is in [start, end)."""
        bounds = np.array([start, end], dtype=np.uint64)
        first, last = np.searchsorted(self.sites["address"], bounds)
        return self.sites[first:last]

    @property
    def btf(self) -> memoryview:
        """The kernel's raw type information; empty if it was built without."""
        found = self._kernel.find(".BTF")
        return memoryview(b"") if found is None else found.data

    @cached_property
    def types(self) -> BtfIndex:
        """The type information indexed by name; raises `MalformedError` if there is none."""
        return BtfIndex(self.btf)

    @cached_property
    def modules(self) -> tuple[ModuleEntry, ...]:
        """The modules of the kernel's package, sorted by path; empty if built without a package."""
        return decode_modules(self._data.get("modules", memoryview(b"[]")))

    def relocated_section(self, name: str, slide: int) -> NDArray[np.uint8]:
        """Return a fresh copy of a section's bytes as they are loaded with a KASLR slide.

        Raises `ValueError` for a slide that no kernel could have: not a multiple of the alignment, or
        not within [0, 1 GiB); `KeyError` for an unknown section.
        """
        if not 0 <= slide < _MAX_SLIDE or slide % self.alignment:
            raise ValueError(f"{slide:#x} is no KASLR slide")
        address, linked = self.section(name)
        data = np.frombuffer(linked, dtype=np.uint8).copy()
        relocate(data, address, slide, self.relocations)
        return data

    def relocated_text(self, slide: int) -> NDArray[np.uint8]:
        """Return `.text` as it is loaded with a KASLR slide, before the kernel patches itself."""
        return self.relocated_section(".text", slide)


def _map(path: Path) -> mmap.mmap:
    try:
        with path.open("rb") as file:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except OSError as error:
        raise UnavailableError(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:  # an empty file cannot be mapped
        raise MalformedError(f"{path} is empty") from error


def _required(parts: Mapping[str, memoryview], name: str) -> memoryview:
    if name not in parts:
        raise MalformedError(f"the reference image has no part {name}")
    return parts[name]


def _kernel(container: Container) -> LinkedKernel:
    sections = [_section(part) for part in container.parts if part.kind == PartKind.SECTION]
    end = 0
    for section in sections:
        if section.load_address < end:
            raise MalformedError(f"section {section.name} of the reference image overlaps another")
        end = section.load_address + section.size
    kernel = LinkedKernel(sections=tuple(sections))
    kernel.section(".text")
    kernel.section(".rodata")
    return kernel


def _section(part: Part) -> Section:
    return Section(
        name=part.name,
        address=part.address,
        load_address=part.load_address,
        size=part.size,
        writable=part.writable,
        executable=part.executable,
        data=memoryview(part.data),
    )


def _addresses(data: memoryview) -> NDArray[np.uint64]:
    if len(data) % 8:
        raise MalformedError("the reference image's relocations are truncated")
    addresses = np.frombuffer(data, dtype="<u8")
    if np.any(addresses[1:] <= addresses[:-1]):
        raise MalformedError("the reference image's relocations are not in order")
    return addresses


def _sites(metadata: Metadata, data: memoryview, kernel: LinkedKernel) -> Sites:
    if len(data) % SITE.itemsize:
        raise MalformedError("the reference image's sites are truncated")
    sites = np.frombuffer(data, dtype=SITE)
    tables = metadata.tables
    for table in tables:
        size = table.count * LAYOUTS[table.layout].itemsize if table.layout else 0
        if table.layout and len(kernel.read(table.address, size)) != size:
            raise MalformedError(f"patch table {table.name} lies in no section")
    if len(sites):
        if int(sites["table"].max()) >= len(tables):
            raise MalformedError("a site of the reference image belongs to no table")
        kinds = np.array([int(table.kind) for table in tables], dtype=np.uint8)[sites["table"]]
        counts = np.array([table.count for table in tables], dtype=np.uint64)[sites["table"]]
        if np.any(kinds != sites["kind"]) or np.any(sites["entry"] >= counts):
            raise MalformedError("a site of the reference image contradicts its table")
    if np.any(sites["address"][1:] < sites["address"][:-1]) or np.any(sites["length"] == 0):
        raise MalformedError("the reference image's sites are not in order")
    check_executable(sites, kernel)
    return Sites(tables=tables, sites=sites)
