"""BPF programs of several kinds, loaded in a guest that has no tools of its own for it."""

from __future__ import annotations

import base64
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from affiant.kernel.objects.program import KernelProgram
from affiant.kernel.reference import ReferenceImage
from affiant.kernel.reference.btf import BtfKind
from lab.guests import LabGuest

__all__ = ["PASSING_PROGRAMS", "loaded_programs", "passing_programs", "replaced_operations"]

_LOADER: Final = "/tmp/bpf_load"
_PASSING: Final = f"{_LOADER}.passing"

PASSING_PROGRAMS: Final = (
    f"{_LOADER} > {_PASSING} & "
    f"for tenth in $(seq 300); do grep -qs loaded {_PASSING} && break; sleep 0.1; done; "
    "sleep 2; kill $!; wait $!; sleep 1"
)
"""A shell command for a guest with loaded programs: more come, and go. These leave tracing alone."""

_SOURCE: Final = Path(__file__).parent / "guest_programs/bpf_load.c"
_FLAGS: Final = [
    *("-O1", "-static", "-nostdlib", "-ffreestanding", "-fno-stack-protector", "-fno-pic", "-no-pie"),
    *("-fcf-protection=none", "-Wl,--build-id=none", "-Wl,-z,noseparate-code", "-s"),
]
_TRACED: Final = "vfs_open"
_CGROUPS: Final = "/tmp/cgroups"
_OPERATIONS: Final = "tcp_congestion_ops"
_VALUE: Final = f"bpf_struct_ops_{_OPERATIONS}"
_REPLACED: Final = ("ssthresh", "cong_avoid", "undo_cwnd")
_LINE: Final = 900  # what a serial console takes at once


@contextmanager
def loaded_programs(
    guest: LabGuest, reference: ReferenceImage, *, writer: bool = False
) -> Iterator[dict[str, int]]:
    """Load programs and hold them meanwhile; yields what the kernel answered for each kind.

    A kind with a question mark is one that the kernel need not know. With `writer`, there is one that may
    write to the memory of processes.
    """
    run = guest.console.run
    _install(guest)
    traced = reference.types.find(_TRACED, BtfKind.FUNC)
    assert traced is not None, f"the kernel's types do not name {_TRACED}"
    run(f"mkdir -p {_CGROUPS}; mount -t cgroup2 none {_CGROUPS}")
    more = " writer" if writer else ""
    run(f"{_LOADER} {traced.id} {_CGROUPS}{more} > /tmp/bpf_load.out 2>&1 & loader=$!")
    answers = _loaded(guest)
    try:
        yield answers
    finally:
        # What programs leave behind goes when nobody can be in it any more.
        run(f"kill $loader; wait $loader; umount {_CGROUPS}; rm -f /tmp/bpf_load*; sleep 3")


@contextmanager
def replaced_operations(guest: LabGuest, program: KernelProgram) -> Iterator[dict[str, int]]:
    """Have programs replace three operations of the kernel meanwhile; yields what the kernel answered."""
    run = guest.console.run
    _install(guest)
    value = program.reference.types.find(_VALUE, BtfKind.STRUCT)
    operations = program.reference.types.find(_OPERATIONS, BtfKind.STRUCT)
    assert value is not None and operations is not None, "the kernel's operations cannot be replaced"
    of_value, kind = f"struct {_VALUE}", f"struct {_OPERATIONS}"
    members = [member.name for member in program.drgn.type(kind).members]
    numbers = [value.id, program.size(of_value), operations.id, program.offset(of_value, "data")]
    numbers.append(program.offset(kind, "name"))
    for name in _REPLACED:
        numbers += [program.offset(kind, name), members.index(name)]
    run(f"{_LOADER} {' '.join(map(str, numbers))} > /tmp/bpf_load.out 2>&1 & loader=$!")
    answers = _loaded(guest)
    try:
        yield answers
    finally:
        run("touch /tmp/bpf_load.end; wait $loader; rm -f /tmp/bpf_load*; sleep 3")


def passing_programs(guest: LabGuest) -> dict[str, int]:
    """Run `PASSING_PROGRAMS` once; return what the kernel answered: a loop in the background tells nobody."""
    guest.console.run(f"rm -f {_PASSING}; {PASSING_PROGRAMS}")
    return _answers(guest.console.run(f"cat {_PASSING}"))


def _install(guest: LabGuest) -> None:
    run = guest.console.run
    packed = base64.b64encode(_compiled()).decode()
    run("rm -f /tmp/bpf_load.b64 /tmp/bpf_load.out")
    for start in range(0, len(packed), _LINE):
        run(f"echo {packed[start : start + _LINE]} >> /tmp/bpf_load.b64")
    run(f"base64 -d /tmp/bpf_load.b64 > {_LOADER}; chmod +x {_LOADER}")


def _loaded(guest: LabGuest) -> dict[str, int]:
    guest.console.run("while ! grep -q loaded /tmp/bpf_load.out; do sleep 0.1; done")
    return _answers(guest.console.run("cat /tmp/bpf_load.out"))


def _answers(told: str) -> dict[str, int]:
    parts = (line.rpartition(" ") for line in told.splitlines() if line)
    return {name: int(result) for name, _, result in parts}


def _compiled() -> bytes:
    with tempfile.TemporaryDirectory(prefix="affiant-bpf-") as folder:
        program = Path(folder) / "bpf_load"
        subprocess.run(["gcc", *_FLAGS, "-o", str(program), str(_SOURCE)], check=True)
        return program.read_bytes()
