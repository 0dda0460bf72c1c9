"""What only code in the guest can do: test modules (`lab.modules`) that it loads and unloads.

A module of nobody's package is a finding of its own, and so is told beside each of these.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Final

from lab.live_guest import LiveGuest
from lab.tamper.technique import Tamper, Technique
from lab.tamper.traced_entry import behind_entry, traced_entry

__all__ = ["LOADED_TECHNIQUES", "loaded"]

_CPU: Final = 1
"""The processor on which modules are loaded and unloaded: what they change of it stays on it."""

_WANTED, _HELD, _ENOUGH = (state.to_bytes(8, "little") for state in (1, 2, 3))
"""What is said to, and by, a module that holds its change: see `lab/modules/held.h`."""

_HELD_SECONDS: Final = 120.0

_TRACED: Final = "tcp4_seq_show"
"""The function that the modules trace and probe."""


@contextmanager
def loaded(live: LiveGuest, name: str) -> Iterator[str]:
    """Have a test module loaded meanwhile; yields its name in the guest."""
    run = live.lab.console.run
    run(f"taskset {1 << _CPU:x} insmod /lib/test-modules/{name}.ko")
    try:
        yield f"lab_{name}"
    finally:
        run(f"taskset {1 << _CPU:x} rmmod lab_{name}")


@contextmanager
def _held(live: LiveGuest, name: str) -> Iterator[None]:
    """Have a test module hold its change meanwhile: its CPU does nothing else, and its loading lasts."""
    run = live.lab.console.run
    run(f"dmesg -c > /dev/null; {{ taskset {1 << _CPU:x} insmod /lib/test-modules/{name}.ko & }}")
    told = run(f"until dmesg | grep {name}:.told; do sleep 0.1; done")
    match = re.search(rf"lab_{name}: told by ([0-9a-f]{{16}})", told)
    assert match is not None, told
    state = int(match[1], 16)
    try:
        live.write(state, _WANTED)
        _wait_for(live, state, _HELD)
        yield
    finally:
        live.write(state, _ENOUGH)
        run(f"wait; rmmod lab_{name}")


def _wait_for(live: LiveGuest, address: int, content: bytes) -> None:
    physical = live.guest.kernel_space.translate(address).physical
    deadline = time.monotonic() + _HELD_SECONDS
    while live.memory.read(physical, len(content)) != content:
        assert time.monotonic() < deadline, "the module does not make its change"
        time.sleep(0.01)


def _with(
    name: str,
    subject: str | Callable[[LiveGuest], str],
    meanwhile: Callable[[LiveGuest, str], AbstractContextManager[object]] = loaded,
) -> Tamper:
    """Have a test module loaded meanwhile, or hold its change, and expect a subject."""

    @contextmanager
    def tamper(live: LiveGuest) -> Iterator[str]:
        with meanwhile(live, name):
            yield subject if isinstance(subject, str) else subject(live)

    return tamper


def _changing(name: str, register: str) -> Tamper:
    """Load a test module that changes a register of its CPU."""
    return _with(name, f"{register} of CPU {_CPU}")


def _holding(name: str, register: str) -> Tamper:
    """Have a test module hold a change of a register of its CPU."""
    return _with(name, f"{register} of CPU {_CPU}", _held)


def _entry(live: LiveGuest) -> str:
    return f"{_TRACED}+{traced_entry(live, _TRACED):#x}"


def _behind_entry(live: LiveGuest) -> str:
    return f"{_TRACED}+{behind_entry(live, _TRACED):#x}"


_loaded = partial(Technique, "in the guest")
_text = partial(_loaded, rule="kernel_text_intact")
_processor = partial(_loaded, rule="processors_as_built")
_system_call = partial(_loaded, rule="system_calls_as_built")

LOADED_TECHNIQUES: Final = (
    _loaded(
        "stranger",
        rule="modules_as_packaged",
        about="A module of no package was loaded.",
        tamper=_with("stranger", "module lab_stranger"),
        attack="T1547.006",
    ),
    _text(
        "tracer",
        site="ftrace",
        about="A module has the function tracer call it.",
        tamper=_with("tracer", _entry),
    ),
    _text(
        "probe",
        site="kprobe",
        about="A module put a kprobe into a function.",
        tamper=_with("probe", _behind_entry),
    ),
    _text(
        "entry_probe",
        site="kprobe",
        about="A module put a kprobe on a function's entry.",
        tamper=_with("entry_probe", _entry),
    ),
    _text(
        "return_probe",
        site="kprobe",
        about="A module has a function's return lead through it.",
        tamper=_with("return_probe", _entry),
    ),
    _text(
        "tracepoint",
        site="static_call_trampoline",
        about="A module has a tracepoint of the kernel call it.",
        tamper=_with("tracepoint", "__SCT__tp_func_module_get+0x0"),
    ),
    _loaded(
        "ownerless_code",
        rule="modules_listed",
        about="A page of code belongs to nobody.",
        tamper=_with("executable", "1 executable pages at "),
        attack="T1620",
    ),
    _processor(
        "write_protection",
        about="CR0.WP of a processor was cleared.",
        tamper=_changing("write_protection", "CR0.WP"),
    ),
    _loaded(
        "write_protection_register",
        rule="write_protection_on",
        about="CR0.WP of a processor was cleared.",
        tamper=_changing("write_protection", "CR0.WP"),
    ),
    _processor(
        "execution_of_user_code",
        about="A processor may run code of user mode in the kernel (CR4.SMEP).",
        tamper=_holding("supervisor_protection", "CR4.SMEP"),
    ),
    _processor(
        "access_to_user_data",
        about="A processor may use data of user mode in the kernel (CR4.SMAP).",
        tamper=_holding("supervisor_protection", "CR4.SMAP"),
    ),
    _processor(
        "own_interrupts",
        about="A processor uses a copy of the interrupt table.",
        tamper=_changing("interrupts", "IDTR"),
    ),
    _processor(
        "breakpoint",
        about="A debug register watches kernel memory.",
        tamper=_changing("breakpoint", "DR3"),
    ),
    _system_call(
        "own_system_calls",
        about="System calls of a processor enter the kernel through a module.",
        tamper=_changing("system_calls", "LSTAR"),
        recorded=True,
    ),
    _system_call(
        "own_32_bit_system_calls",
        about="32-bit system calls (SYSCALL) of a processor lead to a module.",
        tamper=_changing("system_calls_32", "CSTAR"),
    ),
    _system_call(
        "own_sysenter",
        about="32-bit system calls (SYSENTER) of a processor lead to a module.",
        tamper=_changing("system_calls_32", "SYSENTER_EIP"),
    ),
    _system_call(
        "sysenter_stack",
        about="32-bit system calls (SYSENTER) of a processor enter on a module's stack.",
        tamper=_changing("sysenter_stack", "SYSENTER_ESP"),
    ),
    _system_call(
        "system_call_segments",
        about="System calls of a processor load other selectors.",
        tamper=_changing("system_call_segments", "STAR"),
    ),
    _system_call(
        "other_per_cpu_base",
        about="A processor runs the kernel with another GS base.",
        tamper=_holding("per_cpu_base", "GS base"),
    ),
    _system_call(
        "kept_flag",
        about="System calls of a processor keep a flag that the kernel wants cleared.",
        tamper=_changing("system_call_flags", "SYSCALL_MASK"),
        recorded=True,
    ),
    _system_call(
        "memory_types",
        about="A processor has a page attribute table of its own.",
        tamper=_changing("memory_types", "PAT"),
    ),
    _loaded(
        "hidden_hypervisor",
        rule="hypervisor_of_modules",
        about="A processor has virtualization switched on without KVM.",
        tamper=_changing("hypervisor", "EFER.SVME"),
        recorded=True,
    ),
)
