"""Queries: what a rule wants to know of kernel objects that no built-in fact covers.

A query names symbols, types and members; the reference image says where they are. It holds no
address and no code, and every walk that it asks for is bounded.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

__all__ = ["Form", "Path", "Query", "Reading", "Structure", "ValueQuery", "WalkQuery"]


class Form(enum.Enum):
    """How a value is told: all of them are JSON, and none of them loses a bit."""

    NUMBER = "number"  # integers, enumerators, bit fields, booleans
    ADDRESS = "address"  # 0x...: what a pointer holds, or where anything else lies
    TEXT = "text"  # bytes up to the first NUL, at most `size` of them; a pointer is followed
    BYTES = "bytes"  # exactly `size` bytes, as hex
    PLACE = "place"  # whose that address is: the kernel's (with its symbol), a module's, or nobody's


class Structure(enum.Enum):
    """What is walked."""

    LIST = "list"  # struct list_head, or an array of them
    HLIST = "hlist"  # struct hlist_head, or an array of them: a hash table
    CHAIN = "chain"  # a pointer to an element that points to the next, as notifier chains do
    RBTREE = "rbtree"  # struct rb_root, rb_root_cached
    XARRAY = "xarray"  # struct xarray, idr: elements are pointers
    ARRAY = "array"  # elements one after another
    POINTERS = "pointers"  # an array of pointers to elements
    PER_CPU = "per_cpu"  # the instance of each processor


@dataclass(frozen=True, slots=True)
class Path:
    """From a symbol (`root`) or an element (`root` "") to a member.

    A text step is a member's name, and follows a pointer where it stands on one; a number indexes an
    array or a pointer, and picks the processor where the symbol is a per-CPU variable. `type` is the
    symbol's C type where the script states it: the type information of most kernels names the
    types of per-CPU variables only.
    """

    root: str
    steps: tuple[str | int, ...]
    type: str = ""


@dataclass(frozen=True, slots=True)
class Reading:
    """One value: where it is and how it is told. `size` is in bytes, 0 where the type decides.

    A kernel that has no such symbol or member makes the question meaningless; one that is `optional`
    is answered as absent instead.
    """

    path: Path
    form: Form
    size: int
    optional: bool = False


@dataclass(frozen=True, slots=True)
class ValueQuery:
    """A single value of the kernel."""

    name: str
    reading: Reading


@dataclass(frozen=True, slots=True)
class WalkQuery:
    """Some values of each element of a structure, of which at most `most` are visited.

    `element` is the C type of an element, `link` the member by which it hangs in a LIST, HLIST, CHAIN
    or RBTREE (None for the others). Each of `fields` is a name and a reading relative to the element.
    `optional` is as for a `Reading`.
    """

    name: str
    structure: Structure
    start: Path
    element: str
    link: Path | None
    fields: tuple[tuple[str, Reading], ...]
    most: int
    optional: bool = False


Query = ValueQuery | WalkQuery
