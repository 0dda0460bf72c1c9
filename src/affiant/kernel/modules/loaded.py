"""Loaded modules, in several views, and the executable pages that no module or other owner explains.

What is claimed: each page that the kernel's page tables make executable above the kernel image belongs
to the text of a listed module or to another owner that the kernel names (`executable_pages`). What is
*not* claimed: that an owner is genuine, or that a module's text is what its file holds.

Loading and unloading leave pages without owner for a while: freed init text until a worker has waited for
RCU's grace period, module text between `list_del_rcu` and `vfree`. What is unowned or unlisted is therefore
*settling* until `Patience` has seen it last.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np

from affiant.kernel.machine.kept_ranges import KeptRanges
from affiant.kernel.machine.leaves import Leaves
from affiant.kernel.machine.memory import PAGE_SIZE, GuestMemory, MemoryFault
from affiant.kernel.machine.paging import KERNEL_HALF, AddressSpace
from affiant.kernel.objects.program import KernelProgram, StructCopy
from affiant.kernel.objects.slide import KERNEL_MAP
from affiant.kernel.page_tables.executable_pages import (
    LAST_CODE_ADDRESS,
    OwnedRange,
    UnownedRange,
    attribute,
    named_owners,
    page_runs,
    read_executable_pages,
)
from affiant.kernel.running_kernel import RunningKernel
from affiant.kernel.transient.init_freeing import is_freeing_init
from affiant.kernel.transient.patience import Patience
from affiant.kernel.walks.known_walks import walked
from affiant.kernel.walks.lists import Words, list_entries, tree_nodes
from affiant.model.errors import AffiantError, MalformedError, UnavailableError

__all__ = [
    "Module",
    "ModuleView",
    "Stranger",
    "listed_modules",
    "module_at",
    "module_owners",
    "read_modules",
    "still_unformed",
]

_MODULE = "struct module"
_MOST_MODULES = 8192
_LARGEST_TEXT = 1 << 30
_ATTEMPTS = 3
_UNFORMED_SECONDS: Final = 60.0  # that a module of thousands of relocations takes on a slow host
_END: Final = 1 << 64
_THUNK_ARRAYS: Final = (("its_page_array", "its_num_pages"), ("arch.its_pages.pages", "arch.its_pages.num"))
_MOST_THUNK_PAGES = 256
_STATES: Final = ("live", "coming", "going", "unformed")  # enum module_state


@dataclass(frozen=True, slots=True)
class Module:
    """One `struct module` as it was at one moment. Sizes in bytes; `text` is (start, end) pairs.

    `signature_ok` is None where the kernel does not record it. `thunks` are an array of addresses of pages
    and its length: what indirect target selection (6.15 and stable kernels) made for the module.
    """

    name: str
    address: int
    state: str
    base: int
    size: int
    text: tuple[tuple[int, int], ...]
    taints: int
    signature_ok: bool | None
    source_version: int
    thunks: tuple[int, int] = (0, 0)


@dataclass(frozen=True, slots=True)
class Stranger:
    """A module that the view `seen_in` shows and the list does not."""

    name: str
    seen_in: str
    address: int


@dataclass(frozen=True, slots=True)
class ModuleView:
    """Modules and executable pages at one moment.

    `views` counts the modules in each view (None: this kernel has no such view, or it could not be
    followed). `owners` counts executable pages by kind of owner. Only what has lasted is in `unlisted`
    and `unowned`; `settling_modules` and `settling` hold the rest.
    """

    listed: tuple[Module, ...]
    views: dict[str, int | None]
    unlisted: tuple[Stranger, ...]
    settling_modules: tuple[Stranger, ...]
    executable_pages: int
    owners: dict[str, int]
    unowned: tuple[UnownedRange, ...]
    settling: tuple[UnownedRange, ...]


def read_modules(
    memory: GuestMemory,
    space: AddressSpace,
    program: KernelProgram,
    patience: Patience,
    *,
    vcpus: int,
    now: float,
) -> ModuleView:
    """Look at the module list, the other views of it, and every executable page above the image.

    The list is read before and after everything else, so that what is loaded or unloaded meanwhile
    is known. Raises UnavailableError or MalformedError when the list or the page tables cannot be
    followed to their end.
    """
    before = listed_modules(program)
    kset, tree = _view(_from_kset, program), _view(_from_tree, program)
    pages = read_executable_pages(memory, space, program)
    owners = named_owners(program)
    after = listed_modules(program)

    known = {module.address: module for module in (*before, *after)}
    pages = attribute(pages, owners + module_owners(program, known.values()))
    unowned = pages.unowned()
    freeing = bool(unowned) and is_freeing_init(program, vcpus=vcpus)
    lasting_pages = patience.settled("pages", unowned, now, excused=freeing)

    views = {"kset": kset, "tree": tree}
    strangers = {
        (view, address): Stranger(_name(program, address), view, address)
        for view, addresses in views.items()
        for address in (addresses or set()) - known.keys()
    }
    # By where they are: what their memory says of their names may change from look to look.
    lasting = patience.settled("modules", set(strangers), now, unseen=lambda key: views[key[0]] is None)
    return ModuleView(
        listed=tuple(sorted(after, key=lambda module: module.name)),
        views={
            "list": len(after),
            "kset": None if kset is None else len(kset),
            "tree": None if tree is None else len(tree),
        },
        unlisted=_sorted(strangers[key] for key in lasting),
        settling_modules=_sorted(strangers[key] for key in strangers.keys() - lasting),
        executable_pages=len(pages.addresses),
        owners=pages.by_kind(),
        unowned=page_runs(lasting_pages),
        settling=page_runs(unowned - lasting_pages),
    )


def still_unformed(kernel: RunningKernel, now: float) -> frozenset[int]:
    """Return where modules are that say they are not linked yet; that is believed for a minute.

    Raises what `listed_modules` raises.
    """
    unformed = {module.address for module in listed_modules(kernel.program) if module.state == "unformed"}
    lasting = kernel.patience.settled("unformed modules", unformed, now, seconds=_UNFORMED_SECONDS)
    return frozenset(unformed - lasting)


def module_owners(program: KernelProgram, modules: Iterable[Module]) -> list[OwnedRange]:
    """Return the ranges that modules own: their text, and the pages of thunks that were made for them."""
    owned: list[OwnedRange] = []
    for module in modules:
        owned += [OwnedRange(*span, "module", module.name) for span in module.text]
        array, count = module.thunks
        for index in range(min(max(count, 0), _MOST_THUNK_PAGES)):
            try:
                start = program.word(array + 8 * index)
            except MemoryFault:
                break  # nobody's, then, until it has lasted
            owned.append(OwnedRange(start, start + PAGE_SIZE, "thunk", module.name))
    return owned


def _sorted(strangers: Iterable[Stranger]) -> tuple[Stranger, ...]:
    return tuple(sorted(strangers, key=lambda stranger: (stranger.address, stranger.seen_in)))


def listed_modules(program: KernelProgram) -> list[Module]:
    """Return the modules on the kernel's list, in its order.

    Raises MemoryFault or MalformedError when it cannot be followed to its end in three attempts.
    """
    known = program.walks.get(listed_modules)
    if isinstance(known, _KnownList) and known.still_holds(program):
        return list(known.modules)
    copies = _listed(program)
    modules = [program.parsed(copy, _module) for copy in copies]
    program.walks[listed_modules] = _KnownList.of(program, copies, modules)
    return modules


@dataclass(frozen=True, slots=True, eq=False)
class _KnownList:
    """Modules that were on the list, and all bytes that this follows from: the list's head, and theirs."""

    modules: tuple[Module, ...]
    around: tuple[int, int]
    leaves: Leaves
    held: KeptRanges

    @classmethod
    def of(cls, program: KernelProgram, copies: list[StructCopy], modules: list[Module]) -> _KnownList | None:
        """Return what is to be compared; None unless each copy leads to the next, and all are mapped."""
        head, link = program.address("modules"), program.offset(_MODULE, "list")
        nodes = [*((copy.address + link) % _END for copy in copies), head]
        if [int.from_bytes(copy.data[link : link + 8], "little") for copy in copies] != nodes[1:]:
            return None
        contents = [(head, nodes[0].to_bytes(8, "little")), *((copy.address, copy.data) for copy in copies)]
        pieces = [piece for address, content in contents for piece in _in_pages(address, content)]
        try:
            places = np.array([address for address, _ in pieces], dtype=np.uint64)
            inside = int(places.min()) >= KERNEL_MAP and int(places.max()) <= LAST_CODE_ADDRESS
            around = (KERNEL_MAP, LAST_CODE_ADDRESS) if inside else KERNEL_HALF
            leaves = program.space.leaves(*around)
            physical, mapped = leaves.locate(places)
            if not mapped.all():
                return None
            ranges = zip(physical.tolist(), (content for _, content in pieces), strict=True)
            return cls(tuple(modules), around, leaves, program.space.memory.keep(ranges))
        except (MemoryFault, MalformedError):
            return None

    def still_holds(self, program: KernelProgram) -> bool:
        """Tell whether the list leads to the same modules, and each holds what it held, to the byte."""
        try:
            leaves = program.space.leaves(*self.around)
        except MalformedError:
            return False
        return leaves is self.leaves and program.space.memory.still_holds(self.held)


def _in_pages(address: int, content: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield what of some bytes lies in each page, with where it begins."""
    while content:
        here = PAGE_SIZE - address % PAGE_SIZE
        yield address, content[:here]
        address, content = address + here, content[here:]


def module_at(program: KernelProgram, address: int) -> Module:
    """Return what memory at an address is as a `struct module`; raises MemoryFault if there is no memory."""
    return program.parsed(program.copy(_MODULE, address), _module)


def _listed(program: KernelProgram) -> list[StructCopy]:
    offset = program.offset(_MODULE, "list")
    head = program.address("modules")
    copies = _listed_as_before(program, head, offset)
    if copies is not None:
        return copies
    for attempt in range(_ATTEMPTS):
        try:
            addresses = list_entries(program, head, offset=offset, maximum=_MOST_MODULES)
            # A hostile list leads to addresses so low that what holds them would begin below 0: those wrap.
            copies = [program.copy(_MODULE, address % _END) for address in addresses]
            program.lists[head] = tuple(copy.address for copy in copies)
            return copies
        except (MemoryFault, MalformedError):
            if attempt + 1 == _ATTEMPTS:
                raise
    raise AssertionError("unreachable")  # pragma: no cover


def _listed_as_before(program: KernelProgram, head: int, offset: int) -> list[StructCopy] | None:
    """Copy the modules that were on the list when it was last walked; None unless each leads to the next.

    Then to walk it again would find the same, one after the other.
    """
    addresses = program.lists.get(head)
    size = program.size(_MODULE)
    if not addresses or size > PAGE_SIZE:
        return None
    try:
        following = [program.word(head)]
        starts = np.array(addresses, dtype=np.uint64)
        leaves = program.space.leaves(KERNEL_MAP, LAST_CODE_ADDRESS)
        first, there = leaves.locate(starts)
        last, whole = leaves.locate(starts + np.uint64(size - 1))
        whole &= there & (last - first == np.uint64(size - 1))
        memory = program.space.memory
        copies = [
            StructCopy(program, _MODULE, address, memory.read(physical, size))
            if together
            else program.copy(_MODULE, address)
            for address, physical, together in zip(addresses, first.tolist(), whole.tolist(), strict=True)
        ]
    except (MemoryFault, MalformedError):
        return None
    following += [int.from_bytes(copy.data[offset : offset + 8], "little") for copy in copies]
    return copies if following == [*(address + offset for address in addresses), head] else None


def _module(copy: StructCopy) -> Module:
    state = copy.integer("state")
    base, size, text = _layout(copy)
    return Module(
        name=copy.text("name"),
        address=copy.address,
        state=_STATES[state] if 0 <= state < len(_STATES) else f"unknown ({state})",
        base=base,
        size=size,
        text=text,
        taints=copy.integer("taints"),
        signature_ok=bool(copy.integer("sig_ok")) if "sig_ok" in copy else None,
        source_version=copy.integer("srcversion") if "srcversion" in copy else 0,
        thunks=_thunks(copy),
    )


def _thunks(copy: StructCopy) -> tuple[int, int]:
    for array, count in _THUNK_ARRAYS:
        if array in copy:
            return copy.integer(array), copy.integer(count)
    return 0, 0


def _layout(copy: StructCopy) -> tuple[int, int, tuple[tuple[int, int], ...]]:
    """Return (base, size, text ranges): `mem[]` since 6.4 (commit ac3b43283923), before `core_layout`."""
    text: list[tuple[int, int]] = []
    if "mem" in copy:
        program = copy.program
        for kind in ("MOD_TEXT", "MOD_INIT_TEXT"):
            index = program.constant(kind)
            _add_range(text, copy.integer(f"mem[{index}].base"), copy.integer(f"mem[{index}].size"))
        count = program.constant("MOD_MEM_NUM_TYPES")
        size = sum(copy.integer(f"mem[{index}].size") for index in range(count))
        return copy.integer(f"mem[{program.constant('MOD_TEXT')}].base"), size, tuple(text)
    for layout in ("core_layout", "init_layout"):
        _add_range(text, copy.integer(f"{layout}.base"), copy.integer(f"{layout}.text_size"))
    return copy.integer("core_layout.base"), copy.integer("core_layout.size"), tuple(text)


def _add_range(ranges: list[tuple[int, int]], base: int, size: int) -> None:
    # A module's text is at most as large as the module area; a larger claim owns nothing.
    if base and 0 < size <= _LARGEST_TEXT and KERNEL_MAP <= base <= LAST_CODE_ADDRESS:
        ranges.append((base, base + size))


def _view(walk: Callable[[KernelProgram, Words], set[int]], program: KernelProgram) -> set[int] | None:
    for _ in range(_ATTEMPTS):
        try:
            return walked(program, walk)
        except (MemoryFault, MalformedError):
            continue  # it changed while it was walked
        except UnavailableError:
            break  # this kernel has no such view
    return None


def _from_kset(program: KernelProgram, words: Words) -> set[int]:
    kobject = "struct module_kobject"
    kset = words.word(program.address("module_kset"))
    head = kset + program.offset("struct kset", "list")
    offset = program.offset(kobject, "kobj") + program.offset("struct kobject", "entry")
    module = program.offset(kobject, "mod")
    kobjects = list_entries(words, head, offset=offset, maximum=_MOST_MODULES)
    # Built-in modules have a directory in /sys/module and no struct module.
    return {words.word(address + module) for address in kobjects} - {0}


def _from_tree(program: KernelProgram, words: Words) -> set[int]:
    node_type = "struct mod_tree_node"
    roots = program.address("mod_tree") + program.offset("struct mod_tree_root", "root.tree")
    # A latch tree has two copies of each node; copy 0 hangs below tree[0].
    inner = program.offset(node_type, "node") + program.offset("struct latch_tree_node", "node")
    root = words.word(roots + program.offset("struct rb_root", "rb_node"))
    module = program.offset(node_type, "mod") - inner
    nodes = tree_nodes(program, root, maximum=8 * _MOST_MODULES, words=words)
    return {words.word(node + module) for node in nodes} - {0}


def _name(program: KernelProgram, address: int) -> str:
    try:
        return program.copy(_MODULE, address).text("name")
    except AffiantError:
        return ""
