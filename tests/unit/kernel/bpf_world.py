"""A made-up guest with BPF programs: what a truthful kernel keeps of them, for tests to bend."""

from __future__ import annotations

from collections.abc import Iterator

from affiant.kernel.facts.registry import collect
from affiant.kernel.guest import Guest
from tests.unit.kernel.btf_builder import BtfBuilder
from tests.unit.kernel.synthetic_guest import (
    DATA,
    DIRECT_MAP,
    LINK,
    MODULE_AREA,
    RODATA,
    SLIDE,
    SyntheticGuest,
    kernel_types,
    make_reference,
)

SLOTS = 8
NODE = 8 + 8 * SLOTS
PACK = MODULE_AREA + 0x20_0000
CODE = PACK + 8
CODE_PHYSICAL = 0x150_0000
TRAMPOLINE = PACK + 0x100
HELPER = LINK + 0xB000
HEADS = {
    name: DATA + 0x1000 + 0x10 * index
    for index, name in enumerate(
        ("pack_list", "bpf_kallsyms", "prog_idr", "link_idr", "map_idr", "trampoline_table", "ftrace_events")
    )
}
# The table of trampolines has 1024 heads, so it comes last; cgroups have a root of their own.
HEADS |= {"trampoline_table": DATA + 0x1_0000, "cgrp_dfl_root": DATA + 0x2000, "bpf_probe_write_user": HELPER}
HEADS |= {
    "page_offset_base": DATA + 0x3100,
    "bpf_prog_fops": RODATA + 0x3000,
    "bpf_link_fops": RODATA + 0x3100,
}
HEADS |= {"event_sched": DATA + 0x3000, "__cgroup_bpf_run_lsm_current": LINK + 0xE000}
HEADS |= {"net_namespace_list": DATA + 0x3200, "init_net": DATA + 0x3300, "nr_node_ids": DATA + 0x3400}
ENTRY, EXIT = bytes.fromhex("0f1f440000554889e5"), bytes.fromhex("c9c3")
PROGRAM, AUX, LINK_SIZE, CGROUP, TRAMPOLINE_SIZE = 64, 256, 64, 128, 96


def bpf_types(btf: BtfBuilder) -> None:
    """Add the structures of BPF, shortened."""
    long, uint = btf.integer("bpf_long", 8), btf.integer("bpf_uint", 4)
    char, flag = btf.integer("bpf_char", 1), btf.integer("bpf_flag", 1, boolean=True)
    pointer = btf.pointer(0)
    link = btf.struct("bpf_list", 16, ("next", pointer, 0), ("prev", pointer, 8))
    hnode = btf.struct("bpf_hnode", 16, ("next", pointer, 0), ("pprev", pointer, 8))
    btf.struct("xa_node", NODE, ("shift", char, 0), ("slots", btf.array(pointer, SLOTS), 8))
    array = btf.struct("xarray", 8, ("xa_head", pointer, 0))
    btf.struct("idr", 16, ("idr_rt", array, 0), ("idr_base", uint, 8))
    bits = ("list", link, 0), ("ptr", pointer, 16), ("bitmap", btf.array(long, 0), 24)
    btf.struct("bpf_prog_pack", 24, *bits)
    symbol = ("start", long, 0), ("end", long, 8), ("name", btf.array(char, 16), 16)
    ksym = btf.struct("bpf_ksym", 64, *symbol, ("lnode", link, 32), ("prog", flag, 48))
    kinds = btf.enum("bpf_prog_type", 4, BPF_PROG_TYPE_UNSPEC=0, BPF_PROG_TYPE_XDP=6)
    ways = btf.enum("bpf_attach_type", 4, BPF_CGROUP_INET_INGRESS=0, BPF_XDP=37)
    links = btf.enum("bpf_link_type", 4, BPF_LINK_TYPE_UNSPEC=0, BPF_LINK_TYPE_XDP=6)
    btf.enum("cgroup_bpf_attach_type", 4, CGROUP_DEVICE=0, CGROUP_SYSCTL=1)
    btf.enum("bpf_tramp_prog_type", 4, BPF_TRAMP_FENTRY=0, BPF_TRAMP_FEXIT=1, BPF_TRAMP_MODIFY_RETURN=2)
    maps = btf.enum("bpf_map_type", 4, BPF_MAP_TYPE_UNSPEC=0, BPF_MAP_TYPE_PROG_ARRAY=3)
    uid = btf.struct("bpf_kuid", 4, ("val", uint, 0))
    btf.struct("user_struct", 8, ("uid", uid, 0))
    names = ("name", btf.array(char, 16), 16), ("attach_func_name", pointer, 48), ("user", pointer, 56)
    table = ("num_exentries", uint, 32), ("extable", pointer, 40), ("id", uint, 64), ("ksym", ksym, 128)
    counts = ("func_cnt", uint, 0), ("real_func_cnt", uint, 4)
    btf.struct("bpf_prog_aux", AUX, *counts, ("func", pointer, 8), *names, *table)
    code = ("jited", flag, 0), ("jited_len", uint, 4), ("bpf_func", pointer, 8), ("aux", pointer, 16)
    told = ("type", kinds, 24), ("expected_attach_type", ways, 28), ("tag", btf.array(char, 8), 32)
    btf.struct("bpf_prog", PROGRAM, *code, *told)
    held = btf.struct("bpf_link", 32, ("id", uint, 0), ("type", links, 4), ("prog", pointer, 8))
    btf.struct("bpf_tramp_link", LINK_SIZE, ("link", held, 0), ("tramp_hlist", hnode, 32))
    function = btf.struct("bpf_tramp_func", 8, ("addr", pointer, 0))
    hooks = ("progs_hlist", btf.array(pointer, 3), 32), ("extension_prog", pointer, 24)
    image = ("cur_image", pointer, 80)
    btf.struct("bpf_trampoline", TRAMPOLINE_SIZE, ("hlist", hnode, 0), ("func", function, 16), *hooks, image)
    btf.struct("bpf_tramp_image", 8, ("image", pointer, 0))
    item = btf.struct("bpf_prog_array_item", 16, ("prog", pointer, 0))
    btf.struct("bpf_prog_array", 16, ("items", btf.array(item, 0), 16))
    btf.struct("trace_event_call", 24, ("list", link, 0), ("prog_array", pointer, 16))
    btf.struct("bpf_map", 16, ("map_type", maps, 0), ("max_entries", uint, 4))
    btf.struct("bpf_array", 16, ("ptrs", btf.array(pointer, 0), 16))
    btf.enum("", 4, CSS_NO_REF=1, CSS_ONLINE=2)
    members = ("sibling", link, 0), ("children", link, 16), ("flags", uint, 32)
    btf.struct("files_struct", 8, ("fdt", pointer, 0))
    btf.struct("fdtable", 16, ("max_fds", uint, 0), ("fd", pointer, 8))
    btf.struct("file", 32, ("f_op", pointer, 8), ("private_data", pointer, 16))
    state = btf.struct("cgroup_subsys_state", 48, *members)
    btf.struct("kernfs_node", 16, ("parent", pointer, 0), ("name", pointer, 8))
    effective = btf.struct("cgroup_bpf", 16, ("effective", btf.array(pointer, 2), 0))
    group = btf.struct("cgroup", CGROUP, ("self", state, 0), ("kn", pointer, 48), ("bpf", effective, 56))
    btf.struct("cgroup_root", CGROUP, ("cgrp", group, 0))
    btf.struct("net", 32, ("list", link, 0), ("dev_base_head", link, 16))
    entity = btf.struct("bpf_xdp_entity", 16, ("prog", pointer, 0), ("link", pointer, 8))
    parts = ("name", btf.array(char, 16), 16), ("xdp_state", btf.array(entity, 1), 32)
    btf.struct("net_device", 48, ("dev_list", link, 0), *parts)


class BpfWorld:
    """A guest with a pack and a program in it, which is on every list.

    It hangs on a link, by it on a trampoline of `victim`, on a trace event, in a control group and in a map.
    The shell holds it, and the link, by descriptors.
    """

    def __init__(self) -> None:
        self.guest = SyntheticGuest(
            reference=make_reference(types=kernel_types(bpf_types), further_symbols=HEADS)
        )
        self.objects: list[tuple[int, int]] = []
        for name in ("pack_list", "bpf_kallsyms", "ftrace_events"):
            head = HEADS[name] + SLIDE
            self.guest.poke(self.guest.resolve(head), 2 * head.to_bytes(8, "little"))
        self.word(HEADS["page_offset_base"] + SLIDE, DIRECT_MAP)
        self.code = ENTRY + self._call(CODE + len(ENTRY), HELPER + SLIDE) + EXIT
        self.word(HEADS["nr_node_ids"] + SLIDE, 1)
        self._load_program()
        self._attach()
        self._connect()

    def _load_program(self) -> None:
        guest = self.guest
        guest.map(PACK, CODE_PHYSICAL, 4096, executable=True)
        guest.poke(CODE_PHYSICAL, (64).to_bytes(4, "little") + b"\xcc" * 4092)
        guest.poke(CODE_PHYSICAL + 8, self.code)
        pack = self.add(24 + (0x20_0000 // 64 // 8), {16: PACK, 24: 0b10001})
        user = self.add(8, {0: 1000})
        name = self.add(16, {0: int.from_bytes(b"victim", "little")})
        words = {16: int.from_bytes(b"watcher", "little"), 48: name, 56: user, 64: 7}
        symbol = {128: CODE, 136: CODE + len(self.code), 144: int.from_bytes(b"bpf_prog", "little"), 176: 1}
        self.aux = self.add(AUX, words | symbol)
        kind = {24: 6 | 37 << 32, 32: 0x1122_3344_5566_7788}
        self.program = self.add(PROGRAM, {0: 1 | len(self.code) << 32, 8: CODE, 16: self.aux, **kind})
        leaf = self.add(NODE, {8: self.program})
        self.root = self.add(NODE, {0: 3, 8: leaf | 2})
        guest.link(HEADS["pack_list"] + SLIDE, pack)
        guest.link(HEADS["bpf_kallsyms"] + SLIDE, self.aux + 128 + 32)
        self.slot = guest.resolve(leaf + 8)
        guest.word(guest.resolve(HEADS["prog_idr"] + SLIDE), self.root | 2)

    def _attach(self) -> None:
        guest = self.guest
        self.link = self.add(LINK_SIZE, {0: 3 | 6 << 32, 8: self.program})
        table = self.add(NODE, {8 + 8 * 3: self.link})
        self.link_slot = guest.resolve(table + 8 + 8 * 3)
        guest.word(guest.resolve(HEADS["link_idr"] + SLIDE), table | 2)
        self.map = self.add(16 + 16, {0: 3 | 2 << 32, 16 + 8: self.program})
        guest.word(guest.resolve(HEADS["map_idr"] + SLIDE), self.add(NODE, {8: self.map}) | 2)
        self.trampoline = self.add(TRAMPOLINE_SIZE, {16: guest.running("victim"), 32: self.link + 32})
        guest.word(guest.resolve(HEADS["trampoline_table"] + SLIDE) + 8 * 5, self.trampoline)
        self.array = self.add(16 + 32, {16: self.program})
        event = HEADS["event_sched"] + SLIDE
        self.word(event + 16, self.array)
        guest.link(HEADS["ftrace_events"] + SLIDE, event)
        self.hold(self.guest.tasks[1])
        root = HEADS["cgrp_dfl_root"] + SLIDE
        top, name = self.add(16, {}), self.add(16, {0: int.from_bytes(b"sshd", "little")})
        node = self.add(16, {0: top, 8: name})
        self.group = self.add(CGROUP, {48: node, 56: self.array})
        for each in (root, self.group):
            self.word(each + 32, 2)
            head = each + 16
            guest.poke(guest.resolve(head), 2 * head.to_bytes(8, "little"))
        guest.link(root + 16, self.group)

    def _connect(self) -> None:
        """Make the first network namespace, with its loopback device, through which no program goes."""
        namespaces, first = (HEADS[name] + SLIDE for name in ("net_namespace_list", "init_net"))
        for head in (namespaces, first + 16):
            self.guest.poke(self.guest.resolve(head), 2 * head.to_bytes(8, "little"))
        self.guest.link(namespaces, first)
        self.device = self.add(48, {16: int.from_bytes(b"lo", "little")})
        self.guest.link(first + 16, self.device)

    def hold(self, task: int) -> None:
        """Let a task hold the program, and its link, by descriptors."""
        self.files = [
            self.add(32, {8: HEADS[operations] + SLIDE, 16: held})
            for operations, held in (("bpf_prog_fops", self.program), ("bpf_link_fops", self.link))
        ]
        pointers = self.add(64, {0: self.add(32, {}), 24: self.files[0], 32: self.files[1]})
        self.descriptors = self.add(16, {0: 8, 8: pointers})
        self.guest.word(task + 0xA8, self.add(8, {0: self.descriptors}))

    def add(self, size: int, words: dict[int, int]) -> int:
        """Put an object into the guest, and return its address."""
        physical, address = self.guest.allocate(size)
        for offset, value in words.items():
            self.guest.word(physical + offset, value)
        self.objects.append((physical, size))
        return address

    def word(self, address: int, value: int) -> None:
        """Write a word of an object."""
        self.guest.word(self.guest.resolve(address), value)

    def open(self) -> Guest:
        return self.guest.open()

    def generate(self, target: int, *, current: bool = True) -> None:
        """Have code of the trampoline call an address: the code that it has now, or what it had before."""
        code = b"\x55\x48\x89\xe5" + self._call(TRAMPOLINE + 4, target) + EXIT
        self.guest.poke(CODE_PHYSICAL + TRAMPOLINE - PACK, code.ljust(64, b"\xcc"))
        if current:
            self.word(self.trampoline + 80, self.add(8, {0: TRAMPOLINE}))
        name = {16: int.from_bytes(b"bpf_tram", "little"), 24: int.from_bytes(b"poline_", "little")}
        symbol = self.add(64, {0: TRAMPOLINE, 8: TRAMPOLINE + 64, **name})
        self.guest.link(HEADS["bpf_kallsyms"] + SLIDE, symbol + 32)

    def looks(self, guest: Guest | None = None) -> Iterator[dict[str, object]]:
        """Yield the fact of one look after the other, ten seconds apart."""
        seen = guest or self.open()
        for number in range(64):
            yield collect(seen, ["bpf_programs"], now=10.0 * number)["bpf_programs"].to_json()

    @staticmethod
    def _call(place: int, target: int) -> bytes:
        return b"\xe8" + (target - place - 5).to_bytes(4, "little", signed=True)
