"""What the kernel says of one program: type, name, tag, who loaded it, where it may be attached."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from affiant.kernel.machine.memory import PAGE_SIZE, MemoryFault
from affiant.kernel.objects.program import KernelProgram
from affiant.kernel.page_content.bpf_lists import BpfProgram

__all__ = ["ProgramDetails", "is_of_kernel", "program_details"]

_PROGRAM: Final = "struct bpf_prog"
_AUX: Final = "struct bpf_prog_aux"
_USER: Final = "struct user_struct"
_LONGEST_NAME: Final = 128
_CGROUP_SKB: Final = "cgroup_skb"


@dataclass(frozen=True, slots=True)
class ProgramDetails:
    """One `struct bpf_prog`: all of it is the guest's own word, but for what its functions hold.

    `id` is 0 for a program that no user loaded. `attach_type` is how it may be attached, "" where its type
    has one way; `attach_to` the function that it was loaded for. `uid` loaded it; None where that cannot be
    read.
    """

    address: int
    id: int
    kind: str
    attach_type: str
    attach_to: str
    name: str
    tag: str
    uid: int | None
    functions: tuple[BpfProgram, ...]


def program_details(
    program: KernelProgram, address: int, functions: Iterable[BpfProgram] = ()
) -> ProgramDetails:
    """Read the `struct bpf_prog` at an address; its functions are known. Raises MemoryFault if it is none."""
    whole = program.copy(_PROGRAM, address)
    auxiliary = program.copy(_AUX, whole.integer("aux"))
    number = whole.integer("type")
    kinds = program.enumerators("enum bpf_prog_type")
    kind = kinds.get(number, str(number)).removeprefix("BPF_PROG_TYPE_").lower()
    attach = whole.integer("expected_attach_type")
    # Zero is a way to attach for one type alone, and what the others have that need none.
    told = program.enumerators("enum bpf_attach_type").get(attach, str(attach))
    uid: int | None = None
    with contextlib.suppress(MemoryFault):
        uid = program.copy(_USER, auxiliary.integer("user")).integer("uid.val")
    tag = program.member(_PROGRAM, "tag")
    return ProgramDetails(
        address=address,
        id=auxiliary.integer("id"),
        kind=kind,
        attach_type=told.removeprefix("BPF_").lower() if attach or kind == _CGROUP_SKB else "",
        attach_to=_text(program, auxiliary.integer("attach_func_name")),
        name=auxiliary.text("name"),
        tag=whole.data[tag.offset : tag.offset + tag.size].hex(),
        uid=uid,
        functions=tuple(functions),
    )


def is_of_kernel(program: KernelProgram, address: int) -> bool:
    """Tell whether a program stands for a function of the kernel that runs those of a cgroup's LSM hook.

    kernel/bpf/cgroup.c, `bpf_lsm_find_cgroup_shim()`: it is no user's and on no list, and has no code.
    """
    name = program.describe(program.copy(_PROGRAM, address).integer("bpf_func"))
    return name.startswith("__cgroup_bpf_run_lsm_")


def _text(program: KernelProgram, address: int) -> str:
    """Return a name in kernel memory, "" if there is none."""
    if not address:
        return ""
    size = min(_LONGEST_NAME, PAGE_SIZE - address % PAGE_SIZE)
    try:
        raw = program.read(address, size)
    except MemoryFault:
        return ""
    return raw.split(b"\0", 1)[0].decode("utf-8", "backslashreplace")
