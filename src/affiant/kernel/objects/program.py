"""Kernel objects: the one place that knows drgn.

The program reads guest memory through the kernel's own page tables (`init_top_pgt`, placed by a
location that was confirmed against text), with the reference's types and symbols. Nothing that
names, types or places an object comes from guest memory.

`KernelProgram.copy` is how readers look at structures: one read of the whole structure, then only
the copy is parsed, so that a running guest can't change a value between two looks. `drgn` gives
the full program to whoever needs more.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, TypeVar, cast
from weakref import ref

import drgn

from affiant.kernel.machine.memory import GuestMemory, MemoryFault, SegmentReader
from affiant.kernel.machine.paging import AddressSpace
from affiant.kernel.objects.btf_types import BtfTypes
from affiant.kernel.objects.slide import KERNEL_MAP, KernelLocation
from affiant.kernel.objects.weak_method import weak_method
from affiant.model.errors import MalformedError, UnavailableError

if TYPE_CHECKING:
    from affiant.kernel.reference.image import ReferenceImage

__all__ = ["KernelProgram", "StructCopy"]

# BTF before Linux 6.13 has no types for ordinary variables; these are the kernel's own declarations.
_VARIABLES: Final = {
    "__per_cpu_offset": "unsigned long [8192]",
    "bpf_kallsyms": "struct list_head",
    "efi": "struct efi",
    "ftrace_ops_trampoline_list": "struct list_head",
    "init_mm": "struct mm_struct",
    "init_nsproxy": "struct nsproxy",
    "init_pid_ns": "struct pid_namespace",
    "init_task": "struct task_struct",
    "init_uts_ns": "struct uts_namespace",
    "mod_tree": "struct mod_tree_root",
    "module_kset": "struct kset *",
    "modules": "struct list_head",
    "pack_list": "struct list_head",
    "page_offset_base": "unsigned long",
    "vmalloc_base": "unsigned long",
    "vmemmap_base": "unsigned long",
}
_LARGEST_COPY = 1 << 16
_ALL = (1 << 64) - 1
_MOST_PARSED = 4096
_Parsed = TypeVar("_Parsed")
_PART = re.compile(r"(\w+)((?:\[\d+\])*)")


@dataclass(frozen=True, slots=True)
class _Member:
    offset: int
    size: int
    signed: bool
    bit_shift: int
    bit_width: int


@dataclass(slots=True)
class _Layout:
    type: drgn.Type
    size: int
    members: dict[str, _Member | None] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class StructCopy:
    """A structure as it was at one moment; hostile in content, exact in layout."""

    program: KernelProgram
    type_name: str
    address: int
    data: bytes

    def __contains__(self, path: str) -> bool:
        return self.program.has(self.type_name, path)

    def integer(self, path: str) -> int:
        """Return an integer, enumeration or pointer member; bit fields included."""
        member = self.program.member(self.type_name, path)
        value = int.from_bytes(self.data[member.offset : member.offset + member.size], "little")
        width = 8 * member.size
        if member.bit_width:
            value, width = value >> member.bit_shift & (1 << member.bit_width) - 1, member.bit_width
        return value - (1 << width) if member.signed and value >> (width - 1) else value

    def text(self, path: str) -> str:
        """Return a character array up to its first zero (or whole), never longer than the array."""
        member = self.program.member(self.type_name, path)
        raw = self.data[member.offset : member.offset + member.size].split(b"\0", 1)[0]
        return raw.decode("utf-8", "backslashreplace")

    def at(self, path: str) -> int:
        """Return the guest address of a member."""
        return self.address + self.program.member(self.type_name, path).offset


class KernelProgram:
    """One running kernel: symbols, types and memory.

    Every method raises MemoryFault when guest pointers lead nowhere, UnavailableError when this
    kernel has no such symbol, type or member, and nothing of drgn's own.

    `drgn` reads memory and finds symbols and types for as long as this object lives, and does not keep
    it alive. So tens of megabytes go with the last who uses them, although drgn holds a program in a
    circle with the types that were made for it.
    """

    def __init__(self, memory: GuestMemory, reference: ReferenceImage, location: KernelLocation) -> None:
        self.location = location
        self.reference = reference
        self._layouts: dict[str, _Layout] = {}
        self._enumerators: dict[str, dict[int, str]] = {}
        self._parsed: dict[tuple[object, int], tuple[bytes, object]] = {}
        self.space = AddressSpace(memory, location.root, location.levels)
        """The kernel's own page tables."""
        self.walks: dict[object, object] = {}
        """Walks that were done: what `known_walks` remembers of each."""
        self.isolates = False
        """Whether the kernel was ever seen with page tables of their own for user mode."""
        self.lists: dict[int, tuple[int, ...]] = {}
        """Lists as they were last walked, by their heads: of use only to who sees that they are so still."""
        self.drgn = drgn.Program(drgn.Platform(drgn.Architecture.X86_64))
        root = self.address("init_top_pgt")
        with _our_errors():
            self.drgn.set_linux_kernel_custom(_vmcoreinfo(reference.release, location, root), is_live=True)
            self._readers = [SegmentReader(memory, segment) for segment in memory.segments]
            for segment, reader in zip(memory.segments, self._readers, strict=True):
                self.drgn.add_memory_segment(segment.address, segment.size, _weak(reader), physical=True)
            self.types = BtfTypes(self.drgn, reference.btf)
            find_type, find_symbols = weak_method(self.types.find_type), weak_method(self._find_symbols)
            self.drgn.register_type_finder("reference", find_type, enable_index=0)
            self.drgn.register_symbol_finder("reference", find_symbols, enable_index=0)
            self.drgn.register_object_finder("reference", weak_method(self._find_object), enable_index=0)

    def address(self, symbol: str) -> int:
        """Return where a symbol of the kernel image is in this guest."""
        found = self.reference.symbols.unique(symbol)
        if found is None:
            raise UnavailableError(f"the kernel has no single symbol {symbol}")
        return self.running(found.address)

    def find(self, symbol: str) -> int | None:
        """Return where a symbol is in this guest, None if the kernel does not have it."""
        found = self.reference.symbols.unique(symbol)
        return None if found is None else self.running(found.address)

    def running(self, linked: int) -> int:
        """Return the running address of a link address; per-CPU and absolute values do not move."""
        return linked + self.location.slide if linked >= KERNEL_MAP else linked

    def describe(self, address: int) -> str:
        """Return `symbol+0x12` for an address inside the kernel image, "" elsewhere."""
        linked = address - self.location.slide
        found = self.reference.symbols.at(linked) if linked >= KERNEL_MAP else None
        return f"{found[0].name}+{found[1]:#x}" if found else ""

    def read(self, address: int, size: int) -> bytes:
        """Return a copy of virtual memory; bounded to 64 KiB."""
        if not 0 <= size <= _LARGEST_COPY:
            raise MalformedError(f"a guest structure of {size} bytes")
        try:
            return bytes(self.drgn.read(address & _ALL, size))
        except (drgn.FaultError, OverflowError) as error:
            raise MemoryFault(str(error)) from error

    def word(self, address: int) -> int:
        """Return the 64-bit word at a virtual address."""
        try:
            return int(self.drgn.read_u64(address & _ALL))
        except (drgn.FaultError, OverflowError) as error:
            raise MemoryFault(str(error)) from error

    def copy(self, type_name: str, address: int) -> StructCopy:
        """Copy a whole structure out of the guest in one read."""
        return StructCopy(self, type_name, address, self.read(address, self._layout(type_name).size))

    def parsed(self, copy: StructCopy, parse: Callable[[StructCopy], _Parsed]) -> _Parsed:
        """Return what `parse` makes of a copy; if it holds what it held before, what was made of it then.

        `parse` must read the copy alone, for then the same bytes mean the same. A structure that does not
        change is so compared in place of being taken apart.
        """
        key = (parse, copy.address)
        before = self._parsed.get(key)
        if before is not None and before[0] == copy.data:
            return cast(_Parsed, before[1])
        if len(self._parsed) >= _MOST_PARSED:
            self._parsed.clear()
        made = parse(copy)
        self._parsed[key] = (copy.data, made)
        return made

    def size(self, type_name: str) -> int:
        """Return the size of a type in bytes."""
        return self._layout(type_name).size

    def has_type(self, type_name: str) -> bool:
        """Tell whether this kernel has the type."""
        try:
            self._layout(type_name)
        except UnavailableError:
            return False
        return True

    def has(self, type_name: str, path: str) -> bool:
        """Tell whether a type has a member: `list.next`, `mem[0].base`."""
        return self._member(type_name, path) is not None

    def offset(self, type_name: str, path: str) -> int:
        """Return the offset of a member in bytes."""
        return self.member(type_name, path).offset

    def member(self, type_name: str, path: str) -> _Member:
        """Return where a member lies inside its type."""
        found = self._member(type_name, path)
        if found is None:
            raise UnavailableError(f"{type_name} has no member {path} in this kernel")
        return found

    def constant(self, name: str) -> int:
        """Return the value of an enumerator."""
        with _our_errors():
            return int(self.drgn.constant(name))

    def enumerators(self, type_name: str) -> dict[int, str]:
        """Return the names of an enumeration's values; of two names for one value the first."""
        if type_name not in self._enumerators:
            found: dict[int, str] = {}
            with _our_errors():
                for each in self.drgn.type(type_name).enumerators or ():
                    found.setdefault(int(each.value), each.name)
            self._enumerators[type_name] = found
        return self._enumerators[type_name]

    def _layout(self, type_name: str) -> _Layout:
        layout = self._layouts.get(type_name)
        if layout is None:
            with _our_errors():
                kind = self.drgn.type(type_name)
                layout = self._layouts[type_name] = _Layout(kind, drgn.sizeof(kind))
        return layout

    def _member(self, type_name: str, path: str) -> _Member | None:
        layout = self._layout(type_name)
        if path not in layout.members:
            layout.members[path] = self._resolve(layout.type, path)
        return layout.members[path]

    def _resolve(self, kind: drgn.Type, path: str) -> _Member | None:
        # An object at address zero is never read: its members' addresses are their offsets.
        place = drgn.Object(self.drgn, kind, address=0)
        for part in path.split("."):
            match = _PART.fullmatch(part)
            if match is None:
                raise ValueError(f"{path!r} is not a member path")
            try:
                place = place.member_(match[1])
            except LookupError:
                return None
            for index in re.findall(r"\d+", match[2]):
                place = place[int(index)]
        bits = place.bit_field_size_ or 0
        offset = place.address_ or 0
        try:
            size = drgn.sizeof(place.type_) if not bits else (place.bit_offset_ or 0) + bits + 7 >> 3
        except TypeError:  # a flexible array member has a place but no size
            size = 0
        return _Member(offset, size, _signed(place.type_), place.bit_offset_ or 0, bits)

    def _find_object(
        self, program: drgn.Program, name: str, flags: drgn.FindObjectFlags, filename: str | None
    ) -> drgn.Object | None:
        if filename:
            return None
        if flags & drgn.FindObjectFlags.CONSTANT:
            constant = self.types.enumerator(name)
            if constant is not None:
                return constant
        address = self.find(name)
        if address is None:
            return None
        kind: drgn.Type | str | None = None
        if flags & drgn.FindObjectFlags.FUNCTION:
            kind = self.types.function(name)
        if kind is None and flags & drgn.FindObjectFlags.VARIABLE:
            kind = self.types.variable(name) or _VARIABLES.get(name)
        return None if kind is None else drgn.Object(program, kind, address=address)

    def _find_symbols(
        self, _program: drgn.Program, name: str | None, address: int | None, _one: bool
    ) -> list[drgn.Symbol]:
        if name is not None:
            start = self.find(name)
            if start is None or address not in (None, start):
                return []
            return [_symbol(name, start, 0)]
        if address is None:
            return []  # listing 80,000 symbols is never what a reader of ours wants
        found = self.reference.symbols.at(address - self.location.slide)
        return [] if found is None else [_symbol(found[0].name, address - found[1], found[0].size)]


def _symbol(name: str, address: int, size: int) -> drgn.Symbol:
    return drgn.Symbol(name, address, size, drgn.SymbolBinding.GLOBAL, drgn.SymbolKind.UNKNOWN)


def _signed(kind: drgn.Type) -> bool:
    while kind.kind == drgn.TypeKind.TYPEDEF:
        kind = kind.type
    if kind.kind == drgn.TypeKind.ENUM and kind.type is not None:
        kind = kind.type
    return kind.kind == drgn.TypeKind.INT and bool(kind.is_signed)


def _weak(reader: SegmentReader) -> Callable[[int, int, int, bool], memoryview]:
    """Return what drgn reads a segment of RAM through, which does not keep the segment open.

    It is called six times for each value that lies behind five levels of page tables. drgn splits a read
    where the segment ends.
    """
    weak = ref(reader)

    def read(_address: int, count: int, offset: int, _physical: bool) -> memoryview:
        segment = weak()
        if segment is None:
            raise ValueError("this program's memory is gone: keep the KernelProgram while drgn is used")
        return segment.read(offset, count)

    return read


def _vmcoreinfo(release: str, location: KernelLocation, root: int) -> bytes:
    """Make what drgn wants to know of a kernel (Documentation/admin-guide/kdump/vmcoreinfo.rst)."""
    lines = (
        f"OSRELEASE={release}",
        "PAGESIZE=4096",
        f"SYMBOL(swapper_pg_dir)={root:x}",
        f"KERNELOFFSET={location.slide:x}",
        f"NUMBER(phys_base)={location.physical_base & (1 << 64) - 1}",
        f"NUMBER(pgtable_l5_enabled)={int(location.levels == 5)}",
        "",
    )
    return "\n".join(lines).encode()


@contextmanager
def _our_errors() -> Iterator[None]:
    try:
        yield
    except (drgn.FaultError, OverflowError) as error:
        raise MemoryFault(str(error)) from error
    except (LookupError, drgn.ObjectAbsentError) as error:
        raise UnavailableError(f"this kernel lacks {error}") from error
    except (drgn.OutOfBoundsError, drgn.BadDataError) as error:
        raise MalformedError(str(error)) from error
