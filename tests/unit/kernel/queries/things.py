"""A guest whose kernel keeps `struct thing` in every structure that queries walk.

Each thing is told apart by its number, which says where it hangs: 10 and up on the list, 20 and up in
the hash table, 30 and up on the chain, 40 and up in the tree, 50 and up in the xarray, 60 in the IDR.
"""

from __future__ import annotations

import struct
from typing import Any

from affiant.assertions.query import parse_queries
from affiant.kernel.guest import Guest
from affiant.kernel.queries.answers import answer_queries
from tests.unit.kernel.btf_builder import BtfBuilder
from tests.unit.kernel.synthetic_guest import DATA, SyntheticGuest, kernel_types, make_reference

THING_SIZE = 0x100
LIST, NODE, TREE_NODE, NEXT, NUMBER, OWNER, TEXT, CALL, BITS, ARRAY, LABEL = (
    *(0x00, 0x10, 0x20, 0x40, 0x48, 0x50, 0x58, 0x68, 0x70, 0x88, 0x98),
)
_AT = DATA + 0xA000
THINGS: dict[str, int] = {
    "things": _AT,
    "thing_table": _AT + 0x100,
    "thing_chain": _AT + 0x200,
    "thing_tree": _AT + 0x300,
    "thing_array": _AT + 0x400,
    "thing_ids": _AT + 0x480,
    "thing_pointers": _AT + 0x500,
    "thing_inline": _AT + 0x600,
    "thing_text": _AT + 0x900,
    "thing_behind": _AT + 0xA00,
    "null_thing": _AT + 0xA40,
    "__cpu_possible_mask": _AT + 0xA80,
    "__per_cpu_offset": _AT + 0xB00,
    "percpu_pointer": _AT + 0xF00,
    "__init_begin": DATA + 0xF000,
    "freed": DATA + 0xF010,
    "__init_end": DATA + 0x1_0000,
    "__per_cpu_start": 0,
    "counter": 0x100,
    "__per_cpu_end": 0x1000,
}


def _types(btf: BtfBuilder) -> None:
    long, uint = btf.integer("unsigned long", 8), btf.integer("unsigned int", 4)
    int_, char = btf.integer("int", 4, signed=True), btf.integer("char", 1, signed=True)
    short, byte = btf.integer("unsigned short", 2), btf.integer("unsigned char", 1)
    flag, address = btf.integer("_Bool", 1, boolean=True), btf.pointer(0)
    list_head = btf.struct("list_head", 16, ("next", address, 0), ("prev", address, 8))
    btf.struct("hlist_head", 8, ("first", address, 0))
    node = btf.struct("hlist_node", 16, ("next", address, 0), ("pprev", address, 8))  # as the kernel's own
    tree_node = btf.struct(
        "rb_node", 24, ("color", long, 0), ("rb_right", address, 8), ("rb_left", address, 16)
    )
    root = btf.struct("rb_root", 8, ("rb_node", address, 0))
    btf.struct("rb_root_cached", 16, ("rb_root", root, 0), ("rb_leftmost", address, 8))
    xarray = btf.struct("xarray", 16, ("xa_lock", uint, 0), ("xa_flags", uint, 4), ("xa_head", address, 8))
    btf.struct("xa_node", 552, ("shift", byte, 0), ("slots", btf.array(address, 64), 40))
    btf.struct("idr", 24, ("idr_rt", xarray, 0), ("idr_base", uint, 16))
    btf.struct("cpumask", 16, ("bits", btf.array(long, 2), 0))
    owner = btf.struct("owner", 16, ("uid", uint, 0), ("name", btf.pointer(char), 8))
    either = btf.union("", 4, ("whole", uint, 0), ("half", short, 0))
    bits = btf.bit_struct("bits", 4, ("low", uint, 0, 3), ("middle", int_, 3, 10), ("high", uint, 13, 19))
    btf.struct(
        "thing",
        THING_SIZE,
        ("list", list_head, LIST),
        ("node", node, NODE),
        ("tree", tree_node, TREE_NODE),
        ("next", address, NEXT),
        ("number", uint, NUMBER),
        ("", either, NUMBER + 4),
        ("owner", btf.pointer(btf.typedef("owner_t", owner)), OWNER),
        ("text", btf.array(char, 16), TEXT),
        ("call", address, CALL),
        ("bits", bits, BITS),
        ("negative", int_, 0x78),
        ("flag", flag, 0x80),
        ("state", btf.enum("thing_state", 4, NEW=0, OLD=7), 0x84),
        ("array", btf.array(uint, 4), ARRAY),
        ("label", btf.pointer(char), LABEL),
        ("matrix", btf.array(btf.array(short, 3), 2), 0xA0),
    )
    btf.raw("counter", 14, uint, struct.pack("<I", 1))


_TYPES = kernel_types(_types)
_REFERENCE = make_reference(_TYPES, THINGS)


class ThingGuest(SyntheticGuest):
    """The guest, with everything in its place; what tests bend is in `made`, by number."""

    def __init__(self) -> None:
        super().__init__(reference=_REFERENCE)
        self.made: dict[int, int] = {}
        owner, self.owner = self.allocate(16)
        label, label_address = self.allocate(16)
        self.poke(label, b"the owner\0")
        self.poke(owner, struct.pack("<IIQ", 1000, 0, label_address))
        self._hang()
        self._per_cpu()

    def place(self, symbol: str) -> int:
        """Where a thing's symbol is in RAM."""
        return self.physical(THINGS[symbol])

    def address(self, symbol: str) -> int:
        return THINGS[symbol] + self.slide

    def thing(self, number: int) -> int:
        """Make a thing and return its address; `made` has where it is in RAM."""
        physical, address = self.allocate(THING_SIZE)
        self.made[number] = physical
        self.fill(physical, number)
        return address

    def fill(self, physical: int, number: int) -> None:
        self.poke(physical + NUMBER, struct.pack("<IIQ", number, 0x1234_5678, self.owner))
        self.poke(physical + TEXT, f"thing {number}".encode())
        self.word(physical + CALL, self.running("victim") + 4)
        self.poke(physical + BITS, (5 | (-2 & 0x3FF) << 3 | 9 << 13).to_bytes(4, "little"))
        self.poke(physical + 0x78, struct.pack("<i4xB3xI", -number, 1, 7))
        self.poke(physical + ARRAY, struct.pack("<4I", 1, 2, 3, 4))
        self.poke(physical + 0xA0, struct.pack("<6H", *range(6)))

    def _hang(self) -> None:
        self.poke(self.place("things"), 2 * self.address("things").to_bytes(8, "little"))
        for number in (10, 11, 12):
            self.link(self.address("things"), self.thing(number) + LIST)
        for bucket, numbers in ((0, (20, 21)), (3, (22,))):
            place = self.place("thing_table") + 8 * bucket
            for number in numbers:
                address = self.thing(number)
                self.word(place, address + NODE)
                place = self.made[number] + NODE
        place = self.place("thing_chain")
        for number in (30, 31, 32):
            self.word(place, self.thing(number))
            place = self.made[number] + NEXT
        left, middle, right = (self.thing(number) + TREE_NODE for number in (40, 41, 42))
        self.word(self.place("thing_tree"), middle)
        self.poke(self.made[41] + TREE_NODE, struct.pack("<QQQ", 0, right, left))
        for symbol, first in (("thing_array", 50), ("thing_ids", 60)):
            self._xarray(self.place(symbol), [self.thing(first), self.thing(first + 1)])
        self.poke(self.place("thing_ids") + 16, b"\x05")
        self.word(self.place("thing_pointers") + 8, self.thing(70))
        for index in range(2):
            self.fill(self.place("thing_inline") + THING_SIZE * index, 80 + index)
        self.poke(self.place("thing_text"), b"/sbin/modprobe\0rest")
        self.word(self.place("thing_behind"), self.thing(90))

    def _xarray(self, place: int, things: list[int]) -> None:
        """Put the first at index 3 and the second at 64 * 2 + 1, and a value entry that is no pointer."""
        inner, inner_address = self.allocate(552)
        low, low_address = self.allocate(552)
        top, top_address = self.allocate(552)
        self.made[-place] = top
        self.word(low + 40 + 8 * 3, things[0])
        self.word(inner + 40 + 8 * 1, things[1])
        self.word(inner + 40 + 8 * 2, 99 << 1 | 1)
        self.poke(top, b"\x06")
        self.word(top + 40, low_address + 2)
        self.word(top + 40 + 8 * 2, inner_address + 2)
        self.word(place + 8, top_address + 2)

    def _per_cpu(self) -> None:
        self.poke(self.place("__cpu_possible_mask"), b"\3")
        for cpu in range(2):
            area, address = self.allocate(0x200)
            self.word(self.place("__per_cpu_offset") + 8 * cpu, address)
            self.poke(area + 0x100, struct.pack("<I", 700 + cpu))
            self.poke(area + 0x180, struct.pack("<I", 800 + cpu))
        self.word(self.place("percpu_pointer"), 0x180)


def ask(guest: SyntheticGuest | Guest, declared: dict[str, Any], **options: Any) -> dict[str, Any]:
    """Return the answer to one query, as a script reads it."""
    seen = guest if isinstance(guest, Guest) else guest.open()
    (query,) = parse_queries({"q": declared})
    return answer_queries(seen, {"q": query}, **options)["q"].to_json()


def walk(structure: str, at: str, **changes: Any) -> dict[str, Any]:
    """Return a query for the number of each thing."""
    kinds = {
        "list": {"type": "struct list_head", "by": "list"},
        "hlist": {"type": "struct hlist_head [4]", "by": "node"},
        "chain": {"type": "struct thing *", "by": "next"},
        "rbtree": {"type": "struct rb_root_cached", "by": "tree"},
        "xarray": {"type": "struct idr" if at == "thing_ids" else "struct xarray"},
        "array": {"type": "struct thing [2]"},
        "pointers": {"type": "struct thing * [4]"},
        "per_cpu": {"of": "unsigned int", "each": {"number": {"path": "."}}},
    }
    return (
        {
            "walk": structure,
            "at": at,
            "of": "struct thing",
            "most": 100,
            "each": {"number": {"path": "number"}},
        }
        | kinds[structure]
        | changes
    )


def numbers(answer: dict[str, Any]) -> list[int]:
    """Return the numbers of the things in an answer."""
    return [element["number"] for element in answer["elements"]]
