"""What a worker process gives up before it reads the first script: all but memory, its socket and its end."""

from __future__ import annotations

import ctypes
import os
import resource
import sys
from typing import Any

from affiant.assertions.worker_process.endings import PANIC

__all__ = ["confine", "system_call_filter"]

# Numbers of x86-64, from the kernel's syscall_64.tbl; what the allocator, the interpreter's
# signals and the socket need. Everything else answers EPERM.
_AUDIT_ARCH_X86_64 = 0xC000003E
_X32_BIT = 0x40000000
_ALLOWED_SYSCALLS = (
    0,  # read
    1,  # write
    11,  # munmap
    12,  # brk
    13,  # rt_sigaction
    14,  # rt_sigprocmask
    15,  # rt_sigreturn
    24,  # sched_yield
    25,  # mremap
    28,  # madvise
    38,  # setitimer
    39,  # getpid: raise() and abort() ask for it
    60,  # exit
    98,  # getrusage
    131,  # sigaltstack
    186,  # gettid
    202,  # futex
    228,  # clock_gettime, where the vDSO does not answer it
    231,  # exit_group
    234,  # tgkill: abort()
    318,  # getrandom: seeds of hash tables
)
_MMAP, _MPROTECT = 9, 10
_PROT_EXEC = 4
_PR_SET_DUMPABLE, _PR_SET_SECCOMP, _PR_SET_NO_NEW_PRIVS = 4, 22, 38
_SECCOMP_MODE_FILTER = 2
_RET_KILL_PROCESS, _RET_ERRNO_EPERM, _RET_ALLOW = 0x80000000, 0x00050001, 0x7FFF0000
_LOAD_WORD, _JUMP_EQUAL, _JUMP_AT_LEAST, _JUMP_ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06


class _Instruction(ctypes.Structure):
    """struct sock_filter."""

    _fields_ = (
        ("code", ctypes.c_uint16),
        ("if_true", ctypes.c_uint8),
        ("if_false", ctypes.c_uint8),
        ("k", ctypes.c_uint32),
    )


class _Program(ctypes.Structure):
    """struct sock_fprog."""

    _fields_ = (("length", ctypes.c_uint16), ("filter", ctypes.POINTER(_Instruction)))


def system_call_filter() -> list[tuple[int, int, int, int]]:
    """Return the seccomp filter; offsets are those of struct seccomp_data (number 0, arch 4, args 16)."""
    program = [
        (_LOAD_WORD, 0, 0, 4),
        (_JUMP_EQUAL, 1, 0, _AUDIT_ARCH_X86_64),
        (_RETURN, 0, 0, _RET_KILL_PROCESS),
        (_LOAD_WORD, 0, 0, 0),
        (_JUMP_AT_LEAST, 0, 1, _X32_BIT),
        (_RETURN, 0, 0, _RET_KILL_PROCESS),
    ]
    for number in _ALLOWED_SYSCALLS:
        program += [(_JUMP_EQUAL, 0, 1, number), (_RETURN, 0, 0, _RET_ALLOW)]
    program += [
        # Memory may be had, code may not: mmap and mprotect pass without PROT_EXEC (third argument).
        (_JUMP_EQUAL, 1, 0, _MMAP),
        (_JUMP_EQUAL, 0, 3, _MPROTECT),
        (_LOAD_WORD, 0, 0, 16 + 2 * 8),
        (_JUMP_ANY_BIT, 1, 0, _PROT_EXEC),
        (_RETURN, 0, 0, _RET_ALLOW),
        (_RETURN, 0, 0, _RET_ERRNO_EPERM),
    ]
    return program


def confine(limits: dict[str, Any]) -> None:
    """Give up everything that evaluating scripts does not need; ends the process if that fails."""
    if os.uname().machine != "x86_64" or ctypes.sizeof(ctypes.c_void_p) != 8:
        sys.exit("the worker's system call filter is written for x86-64 alone")
    os.closerange(1, resource.getrlimit(resource.RLIMIT_NOFILE)[0])
    memory = limits["memory_bytes"]
    life = limits["life_cpu_seconds"] + 60  # room for the round in which that is passed
    for which, value in (
        (resource.RLIMIT_AS, memory),
        (resource.RLIMIT_CPU, life),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_NPROC, 0),
        (resource.RLIMIT_NOFILE, 0),
    ):
        resource.setrlimit(which, (value, value))
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl.argtypes = [ctypes.c_int] + [ctypes.c_ulong] * 4
    filter_ = system_call_filter()
    instructions = (_Instruction * len(filter_))(*(_Instruction(*fields) for fields in filter_))
    program = _Program(len(filter_), instructions)
    for arguments in (
        (_PR_SET_DUMPABLE, 0, 0, 0, 0),
        (_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0),
        (_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.addressof(program), 0, 0),
    ):
        if libc.prctl(*arguments) != 0:
            os._exit(PANIC)
