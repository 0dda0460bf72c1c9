"""A truthful guest in a few megabytes: RAM, page tables, registers, a kernel and its reference image.

The kernel is made up, its structures have fewer members than real ones, but everything is where a
reader must look for it: text at its slide, an IDT, lists in a direct map, a module with a page of code.
"""

from __future__ import annotations

import random
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from affiant.kernel.guest import Guest
from affiant.kernel.machine.cpu import CpuState, parse_registers
from affiant.kernel.machine.memory import GuestMemory
from affiant.kernel.reference.image import Metadata, ReferenceImage
from affiant.kernel.reference.linked import LinkedKernel, Section
from affiant.kernel.reference.relocations import Relocations
from affiant.kernel.reference.sites import SITE, PatchTable, SiteClass, Sites
from affiant.kernel.reference.symbols import SymbolTable
from tests.unit.kernel.btf_builder import BtfBuilder

RAM_SIZE = 32 << 20
LINK = 0xFFFF_FFFF_8100_0000
SLIDE = 0x340_0000
KERNEL_PHYSICAL = 0x40_0000
TEXT_SIZE = 0x1_0000
RODATA, DATA, END = LINK + 0x20_0000, LINK + 0x40_0000, LINK + 0x60_0000
SYSCALL_TABLE = RODATA + 0x400
DATA_SIZE = 0x2_0000
DIRECT_MAP = 0xFF11_0000_0000_0000
MODULE_AREA = 0xFFFF_FFFF_C000_0000
IDT = 0xFFFF_FE00_0000_0000
TABLES_PHYSICAL = 0x10_0000
IDT_PHYSICAL = 0x1F_F000
HEAP_PHYSICAL = 0x100_0000
MODULE_PHYSICAL = 0x120_0000
PROCESS_ROOT = 0x130_0000
BANNER = "Linux version 6.1.0-synthetic (nobody@nowhere) #1 SMP"

# Functions, every 64 bytes of text; exception handlers among them, because the IDT names them.
HANDLERS = {
    0: "asm_exc_divide_error",
    3: "asm_exc_int3",
    6: "asm_exc_invalid_op",
    13: "asm_exc_general_protection",
    14: "asm_exc_page_fault",
}
SYSCALLS = [f"__x64_sys_{name}" for name in ("read", "write", "open", "close", "execve", "exit")]
SYMBOLS: dict[str, int] = (
    {"_text": LINK}
    | {name: LINK + 0x40 * (2 + index) for index, name in enumerate(HANDLERS.values())}
    | {name: LINK + 0x800 + 0x40 * index for index, name in enumerate(SYSCALLS)}
    | {"victim": LINK + 0x4000, "after_victim": LINK + 0x4100, "_etext": LINK + TEXT_SIZE}
    | {"__start_rodata": RODATA, "sys_call_table": SYSCALL_TABLE, "other_data": SYSCALL_TABLE + 0x100}
    | {"linux_banner": RODATA + 0x2000, "__start_ro_after_init": RODATA + 0x3000}
    | {"__end_ro_after_init": RODATA + 0x3800, "__end_rodata": RODATA + 0x4000}
    | {"modules": DATA, "module_kset": DATA + 0x100, "mod_tree": DATA + 0x200, "init_task": DATA + 0x400}
    | {"system_state": DATA + 0x900, "__per_cpu_offset": DATA + 0xA00}
    | {"efi": DATA + 0x800, "init_top_pgt": DATA + 0x8000, "_end": END}
)
SITES = {SiteClass.FTRACE: LINK + 0x4000, SiteClass.JUMP_LABEL: LINK + 0x4020}
TASK_SIZE, MODULE_SIZE = 0x100, 0x140


def kernel_types(further: Callable[[BtfBuilder], None] | None = None) -> bytes:
    """Return BTF with the structures that readers ask for, shortened; `further` adds what a test needs."""
    btf = BtfBuilder()
    long, uint = btf.integer("unsigned long", 8), btf.integer("unsigned int", 4)
    int_, char = btf.integer("int", 4, signed=True), btf.integer("char", 1, signed=True)
    flag = btf.integer("_Bool", 1, boolean=True)
    address = btf.pointer(0)
    list_head = btf.struct("list_head", 16, ("next", address, 0), ("prev", address, 8))
    rb_node = btf.struct(
        "rb_node", 24, ("color", long, 0), ("rb_right", address, 8), ("rb_left", address, 16)
    )
    rb_root = btf.struct("rb_root", 8, ("rb_node", address, 0))
    latch_root = btf.struct("latch_tree_root", 24, ("seq", long, 0), ("tree", btf.array(rb_root, 2), 8))
    btf.struct("mod_tree_root", 40, ("root", latch_root, 0), ("addr_min", long, 24))
    latch_node = btf.struct("latch_tree_node", 48, ("node", btf.array(rb_node, 2), 0))
    tree_node = btf.struct("mod_tree_node", 56, ("mod", address, 0), ("node", latch_node, 8))
    layout = btf.struct(
        "module_layout",
        72,
        ("base", address, 0),
        ("size", uint, 8),
        ("text_size", uint, 12),
        ("mtn", tree_node, 16),
    )
    kobject = btf.struct("kobject", 32, ("entry", list_head, 8))
    module_kobject = btf.struct("module_kobject", 40, ("kobj", kobject, 0), ("mod", address, 32))
    btf.struct("kset", 32, ("list", list_head, 0))
    state = btf.enum("module_state", 4, MODULE_STATE_LIVE=0, MODULE_STATE_COMING=1, MODULE_STATE_GOING=2)
    btf.struct(
        "module",
        MODULE_SIZE,
        ("state", state, 0),
        ("list", list_head, 8),
        ("name", btf.array(char, 56), 24),
        ("mkobj", module_kobject, 80),
        ("srcversion", address, 120),
        ("sig_ok", flag, 128),
        ("taints", long, 136),
        ("core_layout", layout, 144),
        ("init_layout", layout, 216),
        ("tracepoints_ptrs", address, 288),
        ("num_tracepoints", uint, 296),
    )
    hlist_node = btf.struct("hlist_node", 16, ("next", address, 0), ("pprev", address, 8))
    kuid = btf.struct("", 4, ("val", uint, 0))
    btf.struct("cred", 16, ("uid", btf.typedef("kuid_t", kuid), 4))
    btf.struct(
        "task_struct",
        TASK_SIZE,
        ("flags", uint, 0x10),
        ("tasks", list_head, 0x20),
        ("mm", address, 0x38),
        ("pid", int_, 0x40),
        ("real_cred", address, 0x48),
        ("comm", btf.array(char, 16), 0x50),
        ("pid_links", btf.array(hlist_node, 4), 0x60),
        ("files", address, 0xA8),
    )
    btf.struct("mm_struct", 16, ("pgd", address, 8))
    memory_map = btf.struct(
        "efi_memory_map", 24, ("map", long, 0), ("nr_map", uint, 8), ("desc_size", long, 16)
    )
    btf.struct("efi", 64, ("tpm_log", long, 0), ("tpm_final_log", long, 8), ("memmap", memory_map, 16))
    members = ("phys_addr", "virt_addr", "num_pages", "attribute")
    descriptor = btf.struct(
        "", 40, ("type", uint, 0), *((name, long, 8 * (index + 1)) for index, name in enumerate(members))
    )
    btf.typedef("efi_memory_desc_t", descriptor)
    if further is not None:
        further(btf)
    return btf.build()


def make_reference(
    types: bytes | None = None,
    further_symbols: Mapping[str, int] | None = None,
    modules: bytes = b"[]",
    stored: Mapping[int, bytes] | None = None,
) -> ReferenceImage:
    """Return the reference image of the made-up kernel, with types and symbols that a test adds.

    `modules` is an index of modules. `stored` says what read-only data and data hold, by link address.
    """
    symbols = SYMBOLS | dict(further_symbols or {})
    text = bytearray(random.Random(7).randbytes(TEXT_SIZE))
    rodata = bytearray(random.Random(8).randbytes(0x4000))
    table = b"".join(SYMBOLS[name].to_bytes(8, "little") for name in SYSCALLS).ljust(0x100, b"\0")
    rodata[SYSCALL_TABLE - RODATA : SYSCALL_TABLE - RODATA + 0x100] = table
    rodata[0x2000 : 0x2000 + len(BANNER) + 2] = BANNER.encode() + b"\n\0"
    data = bytearray(DATA_SIZE)
    for address, content in (stored or {}).items():
        held, start = (data, DATA) if address >= DATA else (rodata, RODATA)
        held[address - start : address - start + len(content)] = content
    pointers = [SYSCALL_TABLE + 8 * index for index in range(len(SYSCALLS))]
    words = [LINK + 0x1000, LINK + 0x5003]
    for word in words:
        struct.pack_into("<I", text, word - LINK, SYMBOLS["victim"] & 0xFFFF_FFFF)
    names = sorted(symbols, key=lambda name: symbols[name])
    addresses = [symbols[name] for name in names]
    distances = [after - before for before, after in zip(addresses, [*addresses[1:], END], strict=True)]
    sizes = [min(distance, 0xFFFF_FFFF) for distance in distances]
    tables = tuple(PatchTable(kind.name, kind, "", 0, 1) for kind in SITES)
    sites = np.zeros(len(SITES), dtype=SITE)
    for index, (kind, address) in enumerate(SITES.items()):
        sites[index] = (address, 0, index, 5, int(kind))
    sections = (
        _section(".text", LINK, bytes(text), executable=True),
        _section(".rodata", RODATA, bytes(rodata)),
        _section(".data", DATA, bytes(data), writable=True),
        _section(".BTF", END, types or kernel_types()),
    )
    return ReferenceImage(
        digest=bytes(32),
        metadata=Metadata("6.1.0-synthetic", BANNER, "00" * 32, None, "ab" * 20, 0x20_0000, None, tables, ()),
        kernel=LinkedKernel(sections),
        symbols=SymbolTable(
            np.array(addresses, dtype=np.uint64), np.array(sizes, dtype=np.uint32), b"T" * len(names), names
        ),
        sites=Sites(tables, sites),
        relocations=Relocations(
            absolute64=np.array(pointers, dtype=np.uint64),
            absolute32=np.array(words, dtype=np.uint64),
            inverse32=np.array([], dtype=np.uint64),
        ),
        data={"modules": memoryview(modules)},
    )


def _section(
    name: str, address: int, data: bytes, *, executable: bool = False, writable: bool = False
) -> Section:
    return Section(name, address, address, len(data), writable, executable, memoryview(data))


def registers(
    *,
    cr0: int = 0x8005_0033,
    cr3: int,
    cr4: int = 0x0000_1020,
    efer: int = 0xD01,
    idt: int = IDT,
    rip: int = 0,
) -> str:
    """Return a listing as QEMU prints it for one vCPU."""
    general = "\n".join(f"R{n}={'0' * 16}" for n in ("AX", "BX"))
    segments = "\n".join(
        f"{n} =0010 {0:016x} ffffffff 00af9b00" for n in ("ES", "CS", "SS", "DS", "FS", "GS")
    )
    return f"""CPU#0
{general}
RIP={rip:016x} RFL=00000246 [---Z-P-] CPL=0 II=0 A20=1 SMM=0 HLT=1
{segments}
LDT=0000 {0:016x} 00000000 00008200
TR =0040 {0xFFFFFE0000003000:016x} 00004087 00008900
GDT=     {0xFFFFFE0000001000:016x} 0000007f
IDT=     {idt:016x} 00000fff
CR0={cr0:08x} CR2={0:016x} CR3={cr3:016x} CR4={cr4:08x}
DR0={0:016x} DR1={0:016x} DR2={0:016x} DR3={0:016x}
DR6=00000000ffff0ff0 DR7=0000000000000400
EFER={efer:016x}
"""


@dataclass
class SyntheticGuest:
    """RAM that tests may bend; `cpus` is what vCPUs show."""

    reference: ReferenceImage = field(default_factory=make_reference)
    ram: bytearray = field(default_factory=lambda: bytearray(RAM_SIZE))
    levels: int = 5
    slide: int = SLIDE
    cpus: list[CpuState] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._next_table = TABLES_PHYSICAL
        self._next_object = HEAP_PHYSICAL
        self.root = self.physical(SYMBOLS["init_top_pgt"])
        self.word(self.physical(SYMBOLS["system_state"]), 3)
        self._load_kernel()
        self._map_everything()
        self._fill_idt()
        memory, self.process_memory = self.allocate(16)
        self.word(memory + 8, DIRECT_MAP + PROCESS_ROOT)
        self.tasks = [
            self.add_task(pid, name, uid) for pid, name, uid in ((1, "init", 0), (2, "shell", 1000))
        ]
        self.modules = [self.add_module("first", MODULE_AREA, MODULE_PHYSICAL)]
        self.ram[PROCESS_ROOT : PROCESS_ROOT + 4096] = self.ram[self.root : self.root + 4096]
        self.cpus = [self.cpu(PROCESS_ROOT)]

    @property
    def memory(self) -> GuestMemory:
        return GuestMemory(self.ram, below_4g_bytes=RAM_SIZE)

    def open(self) -> Guest:
        return Guest.open(self.memory, self.reference, self.cpus)

    def cpu(self, root: int, **changes: int) -> CpuState:
        cr4 = 0x1020 if self.levels == 5 else 0x20
        return parse_registers(registers(cr3=root, cr4=cr4, rip=LINK + self.slide, **changes))

    def physical(self, linked: int) -> int:
        """Where an address of the linked kernel lies in RAM."""
        return linked - LINK + KERNEL_PHYSICAL

    def running(self, name: str) -> int:
        return SYMBOLS[name] + self.slide

    def poke(self, physical: int, data: bytes) -> bytes:
        """Write to RAM and return what was there."""
        before = bytes(self.ram[physical : physical + len(data)])
        self.ram[physical : physical + len(data)] = data
        return before

    def word(self, physical: int, value: int) -> bytes:
        return self.poke(physical, value.to_bytes(8, "little"))

    def map(
        self,
        address: int,
        physical: int,
        size: int,
        *,
        writable: bool = False,
        executable: bool = False,
        root: int = 0,
    ) -> None:
        """Map one page of `size` bytes in the kernel's tables."""
        table, leaf_level = root or self.root, {4096: 1, 1 << 21: 2, 1 << 30: 3}[size]
        for level in range(self.levels, leaf_level, -1):
            place = table + 8 * (address >> 12 + 9 * (level - 1) & 511)
            entry = int.from_bytes(self.ram[place : place + 8], "little")
            if not entry & 1:
                entry = self._new_table() | 0x3
                self.word(place, entry)
            table = entry & 0x000F_FFFF_FFFF_F000
        flags = 1 | writable << 1 | (not executable) << 63 | (leaf_level > 1) << 7
        self.word(table + 8 * (address >> 12 + 9 * (leaf_level - 1) & 511), physical | flags)

    def allocate(self, size: int) -> tuple[int, int]:
        """Return (physical, virtual) of a fresh object in the direct map."""
        physical = self._next_object
        self._next_object += (size + 63) // 64 * 64
        return physical, DIRECT_MAP + physical

    def link(self, head: int, node: int) -> None:
        """Append the list_head at virtual `node` to the list at virtual `head`."""
        first = head_physical = self.resolve(head)
        last = int.from_bytes(self.ram[first + 8 : first + 16], "little")
        self.word(self.resolve(last), node)
        self.poke(self.resolve(node), head.to_bytes(8, "little") + last.to_bytes(8, "little"))
        self.word(head_physical + 8, node)

    def resolve(self, address: int) -> int:
        """Return the physical address of an object in the direct map or the kernel image."""
        if address >= LINK:
            return self.physical(address - self.slide)
        return address - DIRECT_MAP

    def add_task(self, pid: int, name: str, uid: int) -> int:
        cred, cred_address = self.allocate(16)
        self.poke(cred + 4, uid.to_bytes(4, "little"))
        task, address = self.allocate(TASK_SIZE)
        self.poke(task + 0x40, pid.to_bytes(4, "little"))
        self.word(task + 0x48, cred_address)
        self.word(task + 0x38, self.process_memory)
        self.poke(task + 0x50, name.encode())
        self.link(self.running("init_task") + 0x20, address + 0x20)
        return task

    def add_module(self, name: str, base: int, physical: int, *, state: int = 0) -> int:
        """Load a module of one page of code; returns the physical address of its struct."""
        self.poke(physical, random.Random(name).randbytes(4096))
        self.map(base, physical, 4096, executable=True)
        module, address = self.allocate(MODULE_SIZE)
        self.poke(module, state.to_bytes(4, "little"))
        self.poke(module + 24, name.encode())
        self.poke(module + 128, b"\1")
        self.poke(module + 144, struct.pack("<QII", base, 8192, 4096))
        self.link(self.running("modules"), address + 8)
        self.word(module + 112, address)  # mkobj.mod
        self.link(self.kset_list, address + 88)
        return module

    def _load_kernel(self) -> None:
        for name, address in ((".text", LINK), (".rodata", RODATA)):
            self.poke(self.physical(address), self.reference.relocated_section(name, self.slide).tobytes())
        # The kernel has patched its sites, and filled what it protects after boot.
        self.poke(self.physical(SITES[SiteClass.FTRACE]), bytes.fromhex("0f1f440000"))
        self.poke(self.physical(SYMBOLS["__start_ro_after_init"]), b"\x55" * 0x100)
        for name, offset in (("modules", 0), ("init_task", 0x20)):
            head = self.running(name) + offset
            self.poke(self.resolve(head), 2 * head.to_bytes(8, "little"))
        kset, address = self.allocate(32)
        self.kset_list = address
        self.poke(kset, 2 * address.to_bytes(8, "little"))
        self.word(self.physical(SYMBOLS["module_kset"]), address)

    def _map_everything(self) -> None:
        for linked, writable, executable in (
            (LINK, False, True),
            (RODATA, False, False),
            (DATA, True, False),
        ):
            self.map(
                linked + self.slide, self.physical(linked), 1 << 21, writable=writable, executable=executable
            )
        for physical in range(0, RAM_SIZE, 1 << 21):
            self.map(DIRECT_MAP + physical, physical, 1 << 21, writable=True)
        self.map(IDT, IDT_PHYSICAL, 4096)

    def _fill_idt(self) -> None:
        for vector in range(256):
            name = HANDLERS.get(vector, "victim")
            handler = self.running(name)
            gate = struct.pack(
                "<HHHHII", handler & 0xFFFF, 0x10, 0x8E00, handler >> 16 & 0xFFFF, handler >> 32, 0
            )
            self.poke(IDT_PHYSICAL + 16 * vector, gate)

    def _new_table(self) -> int:
        table = self._next_table
        self._next_table += 4096
        assert table < IDT_PHYSICAL
        return table


def other_kernel() -> ReferenceImage:
    """Return a reference with the same symbols and another text."""
    reference = make_reference()
    sections = tuple(
        replace(section, data=memoryview(random.Random(99).randbytes(section.size)))
        if section.name == ".text"
        else section
        for section in reference.sections
    )
    return ReferenceImage(
        digest=b"\1" * 32,
        metadata=replace(reference.metadata, release="6.1.0-other"),
        kernel=LinkedKernel(sections),
        symbols=reference.symbols,
        sites=Sites(reference.tables, reference.sites),
        relocations=reference.relocations,
        data={},
    )
