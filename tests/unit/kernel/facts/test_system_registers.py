"""System registers: each that enters the kernel elsewhere, or finds other data, is named."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import pytest

from affiant.kernel.cpu_state import system_calls
from affiant.kernel.cpu_state.memory_types import memory_type_deviations
from affiant.kernel.cpu_state.per_cpu_base import per_cpu_base_deviations
from affiant.kernel.cpu_state.segments import ExpectedSegments
from affiant.kernel.cpu_state.system_calls import ExpectedEntries, expected_entries, system_call_deviations
from affiant.kernel.facts.registry import collect
from affiant.kernel.guest import Guest
from affiant.kernel.machine.cpu import DescriptorTable, SegmentRegister
from affiant.kernel.machine.device_stream import parse_device_stream
from affiant.kernel.machine.memory import MemoryFault
from affiant.kernel.machine.saved_cpu import SavedCpu, SavedCpus
from affiant.kernel.objects.program import KernelProgram
from affiant.model.errors import UnavailableError
from tests.unit.kernel.device_stream_builder import SystemRegisters, device_stream
from tests.unit.kernel.synthetic_guest import (
    DATA,
    DIRECT_MAP,
    KERNEL_PHYSICAL,
    LINK,
    MODULE_PHYSICAL,
    PROCESS_ROOT,
    SLIDE,
    SYMBOLS,
    SyntheticGuest,
    make_reference,
)

AREA, GDT_PHYSICAL = 0xFFFF_FE00_0000_1000, 0x1B0_0000
PER_CPU = 0xFF11_0000_0A00_0000  # where the same table may be written
MASK = DATA + 0x980
WAITING, PARKED = LINK + 0x7800, LINK + 0x7900
ENTRY = {
    "entry_SYSCALL_64": LINK + 0x6000,
    "entry_SYSCALL_compat": LINK + 0x6100,
    "entry_SYSENTER_compat": LINK + 0x6200,
    "entry_SYSCALL32_ignore": LINK + 0x6300,
    "syscall_init": LINK + 0x6400,
    "__entry_text_start": LINK + 0x7000,
    "__entry_text_end": LINK + 0x7100,
    "__cpu_online_mask": MASK,
    "cpu_init": WAITING,
    "native_play_dead": PARKED,
    "real_mode_header": MASK + 0x20,
    "real_mode_blob": DATA + 0x1000,
    "real_mode_blob_end": DATA + 0x3000,
}
STARTER = 0x9_8000  # where the code that starts CPUs lies, and in its last page their first table
FIRST_TABLE = STARTER + 0x1000
STACK = 0x2000
OTHER = 0xFFFF_FFFF_C012_3000
SEGMENTS = ExpectedSegments(
    constants=(), tss=0x2000, entry_stack_top=STACK, stacks=(), gdt_page=0, tss_page=0x2000
)


@pytest.fixture
def guest() -> SyntheticGuest:
    guest = SyntheticGuest(reference=make_reference(further_symbols=ENTRY))
    guest.map(AREA, GDT_PHYSICAL, 4096)
    guest.word(guest.physical(SYMBOLS["__per_cpu_offset"]), PER_CPU)
    guest.map(PER_CPU, GDT_PHYSICAL, 4096)
    guest.word(guest.physical(MASK), 0b11)
    return guest


@pytest.fixture
def form(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the made-up syscall_init hold what a real one does."""
    code = b"\xba" + (0x23_0010).to_bytes(4, "little") + b"\xb8" + (0x25_7FD5).to_bytes(4, "little")
    monkeypatch.setattr(system_calls, "_code", lambda program, name: code)


def entries(**changes: Any) -> ExpectedEntries:
    expected = ExpectedEntries(
        star=0x0023_0010_0000_0000,
        lstar=ENTRY["entry_SYSCALL_64"] + SLIDE,
        cstar=frozenset({0, ENTRY["entry_SYSCALL_compat"] + SLIDE}),
        syscall_mask=0x25_7FD5,
        sysenter_eip=ENTRY["entry_SYSENTER_compat"] + SLIDE,
        sysenter_stack=STACK,
    )
    return replace(expected, **changes)


def saved(guest: SyntheticGuest, **changes: Any) -> SavedCpu:
    """Return a healthy CPU of the guest, in the kernel, with `changes`."""
    system = SystemRegisters(
        lstar=ENTRY["entry_SYSCALL_64"] + SLIDE,
        cstar=ENTRY["entry_SYSCALL_compat"] + SLIDE,
        sysenter_eip=ENTRY["entry_SYSENTER_compat"] + SLIDE,
        sysenter_esp=AREA + STACK,
    )
    cpu = replace(guest.cpus[0], gdt=DescriptorTable(AREA, 127))
    gs = SegmentRegister(0, PER_CPU, 0, 0)
    kernel_stack = SegmentRegister(0x18, 0, 0xFFFF_FFFF, 0xCF9300)
    cpu = replace(cpu, segments=cpu.segments | {"GS": gs, "SS": kernel_stack})
    (healthy,) = parse_device_stream(device_stream([cpu], [system]), [cpu])
    return replace(healthy, **changes)


def in_user_mode(cpu: SavedCpu, *, gs: int, waiting: int) -> SavedCpu:
    stack = SegmentRegister(0x2B, 0, 0xFFFF_FFFF, 0xCFF300)
    segments = dict(cpu.segments) | {"GS": SegmentRegister(0, gs, 0, 0), "SS": stack}
    return replace(cpu, segments=segments, kernel_gs_base=waiting, instruction_pointer=0x40_1000)


def entered(guest: SyntheticGuest, cpu: SavedCpu, expected: ExpectedEntries | None = None) -> list[str]:
    program = guest.open().program
    return [one.subject for one in system_call_deviations(cpu, program, expected or entries())]


def based(guest: SyntheticGuest, cpu: SavedCpu) -> list[str]:
    seen = guest.open()
    found = per_cpu_base_deviations(cpu, seen.kernel_space, seen.program, SEGMENTS)
    return [one.subject for one in found]


def fact(guest: Guest, *cpus: SavedCpu, at: float = 0.0, now: float = 0.0) -> dict[str, Any]:
    seen = collect(guest.with_saved(SavedCpus(at, cpus)), ["system_registers"], now=now)
    return dict(seen["system_registers"].to_json())


def test_registers_as_built_are_quiet(guest: SyntheticGuest) -> None:
    assert entered(guest, saved(guest)) == []
    assert based(guest, saved(guest)) == []
    assert entered(guest, saved(guest, cstar=0)) == []  # Intel: never written


@pytest.mark.parametrize(
    ("register", "value", "subject"),
    [
        ("lstar", OTHER, "LSTAR of CPU 0"),
        ("lstar", ENTRY["entry_SYSCALL_64"] + SLIDE + 4, "LSTAR of CPU 0"),
        ("lstar", 0, "LSTAR of CPU 0"),
        ("cstar", OTHER, "CSTAR of CPU 0"),
        ("star", 0x0023_0008_0000_0000, "STAR of CPU 0"),
        ("syscall_mask", 0x25_7FD5 & ~0x200, "SYSCALL_MASK of CPU 0"),
        ("sysenter_eip", OTHER, "SYSENTER_EIP of CPU 0"),
        ("sysenter_esp", AREA, "SYSENTER_ESP of CPU 0"),
        ("sysenter_cs", 0x18, "SYSENTER_CS of CPU 0"),
    ],
)
def test_each_redirected_entry_is_named(
    guest: SyntheticGuest, register: str, value: int, subject: str
) -> None:
    assert entered(guest, saved(guest, **{register: value})) == [subject]


def test_the_finding_says_where_it_leads(guest: SyntheticGuest) -> None:
    program = guest.open().program
    (one,) = system_call_deviations(
        saved(guest, lstar=ENTRY["entry_SYSCALL_64"] + SLIDE + 4), program, entries()
    )
    assert one.expected.startswith("entry_SYSCALL_64+0x0 (0x")
    assert one.found.startswith("entry_SYSCALL_64+0x4 (0x")
    (one,) = system_call_deviations(saved(guest, lstar=OTHER), program, entries())
    assert one.found == f"outside the kernel image ({OTHER:#x})"


def test_sysenter_that_faults_is_harmless(guest: SyntheticGuest) -> None:
    """Without 32-bit system calls the kernel leaves a null selector there."""
    assert entered(guest, saved(guest, sysenter_cs=0, sysenter_eip=OTHER, sysenter_esp=1)) == []


def test_fred_is_told_as_not_looked_at(guest: SyntheticGuest) -> None:
    with pytest.raises(UnavailableError, match="FRED"):
        entered(guest, saved(guest, cr4=1 << 32))


@pytest.mark.usefixtures("form")
def test_expectations_come_from_the_reference(guest: SyntheticGuest) -> None:
    expected = expected_entries(guest.open().program, SEGMENTS)
    ignored = ENTRY["entry_SYSCALL32_ignore"] + SLIDE
    assert expected == entries(cstar=entries().cstar | {ignored})


def test_an_unknown_form_of_syscall_init_is_no_expectation(guest: SyntheticGuest) -> None:
    with pytest.raises(UnavailableError, match="unknown form"):
        expected_entries(guest.open().program, SEGMENTS)
    with pytest.raises(UnavailableError, match="stack"):
        expected_entries(guest.open().program, None)


def test_a_function_that_the_reference_does_not_store_is_no_expectation(guest: SyntheticGuest) -> None:
    program = guest.open().program
    elsewhere = make_reference(further_symbols=ENTRY | {"syscall_init": DATA + 0x10_0000})
    bent = SimpleNamespace(reference=elsewhere, find=program.find, address=program.address)
    with pytest.raises(UnavailableError, match="does not store"):
        expected_entries(cast(KernelProgram, bent), SEGMENTS)


def test_user_mode_waits_with_the_kernels_base(guest: SyntheticGuest) -> None:
    assert based(guest, in_user_mode(saved(guest), gs=0x7F00_0000_0000, waiting=PER_CPU)) == []
    wrong = in_user_mode(saved(guest), gs=PER_CPU, waiting=OTHER)
    assert based(guest, wrong) == ["KERNEL_GS_BASE of CPU 0"]


def test_kernel_mode_runs_with_the_kernels_base(guest: SyntheticGuest) -> None:
    elsewhere = dict(saved(guest).segments) | {"GS": SegmentRegister(0, OTHER, 0, 0)}
    assert based(guest, saved(guest, segments=elsewhere)) == ["GS base of CPU 0"]
    assert based(guest, saved(guest, segments=elsewhere, kernel_gs_base=PER_CPU)) == ["GS base of CPU 0"]
    entry = ENTRY["__entry_text_start"] + SLIDE + 8
    swapping = saved(guest, segments=elsewhere, kernel_gs_base=PER_CPU, instruction_pointer=entry)
    assert based(guest, swapping) == []
    nowhere = saved(guest, segments=elsewhere, kernel_gs_base=1, instruction_pointer=entry)
    assert based(guest, nowhere) == ["GS base of CPU 0"]


def test_an_unmapped_descriptor_table_is_unreadable_not_healthy(guest: SyntheticGuest) -> None:
    with pytest.raises(MemoryFault):
        based(guest, saved(guest, gdt=DescriptorTable(0xFFFF_9999_0000_0000, 127)))


def test_memory_types_are_known_and_the_same_everywhere(guest: SyntheticGuest) -> None:
    first, second = saved(guest), saved(guest, index=1)
    assert list(memory_type_deviations([first, second])) == []
    for pat in (0x0007_0406_0007_0406, 0x0606_0606_0606_0606):
        (one,) = memory_type_deviations([first, replace(second, pat=pat)])
        assert one.subject == "PAT of CPU 1"
    assert len(list(memory_type_deviations([replace(first, pat=1), replace(second, pat=1)]))) == 2


@pytest.mark.usefixtures("form")
def test_the_fact_counts_what_was_compared_and_tells_its_age(guest: SyntheticGuest) -> None:
    opened = guest.open()
    opened.cpu_expectations.segments = SEGMENTS
    opened.cpu_expectations.entries = entries()
    seen = fact(opened, saved(guest), saved(guest, index=1, lstar=OTHER), at=10.0, now=12.5)
    assert seen["checked"] == {"system calls": 14, "per-CPU data": 2, "memory types": 2}
    assert seen["age_ms"] == 2500
    assert [one["subject"] for one in seen["deviations"]] == ["LSTAR of CPU 1"]
    assert seen["registers"][1]["lstar"] == hex(OTHER)


INTERRUPTS_OFF = 0x2


def starting(guest: SyntheticGuest, **changes: Any) -> SavedCpu:
    """Return a CPU that is being brought up: on its own table, on its way through the kernel."""
    return saved(
        guest,
        **{
            "lstar": 0,
            "gdt": DescriptorTable(PER_CPU, 127),
            "sysenter_esp": PER_CPU + STACK,
            "flags": INTERRUPTS_OFF,
            "halted": False,
            "cr3": guest.root,
            "instruction_pointer": SYMBOLS["victim"] + SLIDE,
        }
        | changes,
    )


def expecting(guest: SyntheticGuest) -> Guest:
    opened = guest.open()
    opened.cpu_expectations.entries = entries()
    opened.cpu_expectations.segments = SEGMENTS
    return opened


def test_a_cpu_that_sets_itself_up_is_excused_however_seldom_it_gets_on(guest: SyntheticGuest) -> None:
    """Its registers are not written yet; nobody has any use for them meanwhile."""
    opened, cpu = expecting(guest), starting(guest)
    for moment in (0.0, 1.0, 2.0, 60.0, 119.0):
        seen = fact(opened, cpu, at=moment, now=199.0)
        assert (seen["starting"], seen["deviations"]) == ([0], [])
    seen = fact(opened, cpu, at=120.0, now=199.0)
    assert [one["subject"] for one in seen["deviations"]] == ["LSTAR of CPU 0"]


def test_a_cpu_that_waits_for_the_one_that_starts_it_is_excused_for_as_long_as_it_waits(
    guest: SyntheticGuest,
) -> None:
    """Whoever asked for it gave up; the kernel leaves it where it is until it is asked for again."""
    opened, waiting = expecting(guest), starting(guest, instruction_pointer=WAITING + SLIDE + 0x20)
    for moment in range(0, 1000, 50):
        seen = fact(opened, waiting, at=float(moment), now=1000.0)
        assert (seen["starting"], seen["deviations"]) == ([0], [])


def test_a_cpu_gains_no_time_by_waiting_now_and_then(guest: SyntheticGuest) -> None:
    opened, cpu = expecting(guest), starting(guest)
    waiting = replace(cpu, instruction_pointer=WAITING + SLIDE + 0x20)
    excused = [
        fact(opened, waiting if number % 2 else cpu, at=25.0 * number, now=1000.0)["starting"] == [0]
        for number in range(16)
    ]
    assert excused == [True] * 10 + [False] * 6


def test_a_cpu_that_waited_long_has_as_much_time_as_any(guest: SyntheticGuest) -> None:
    opened, cpu = expecting(guest), starting(guest)
    waiting = replace(cpu, instruction_pointer=WAITING + SLIDE + 0x20)
    looks = [*((cpu, at) for at in range(4)), *((waiting, at) for at in range(4, 2000, 100)), (cpu, 1910)]
    for each, at in looks:
        assert fact(opened, each, at=float(at), now=3000.0)["starting"] == [0]


def test_a_cpu_that_is_set_up_and_not_on_line_yet_is_excused(guest: SyntheticGuest) -> None:
    guest.word(guest.physical(MASK), 0b10)
    cpu = starting(guest, gdt=DescriptorTable(AREA, 127), sysenter_esp=AREA + STACK)
    assert fact(expecting(guest), cpu)["starting"] == [0]
    guest.word(guest.physical(MASK), 0b11)
    assert fact(expecting(guest), cpu)["starting"] == []


@pytest.mark.parametrize(
    "doing",
    [
        {"flags": INTERRUPTS_OFF | 1 << 9},
        {"halted": True},
        {"cr3": PROCESS_ROOT},
        {"instruction_pointer": OTHER},
        {"instruction_pointer": PARKED + SLIDE + 4},
    ],
    ids=["takes interrupts", "halted", "on a process's tables", "outside of the kernel", "parked"],
)
@pytest.mark.parametrize("excuse", ["off line", "on its own table"])
def test_neither_mask_nor_table_excuses_a_cpu_that_does_anything_else(
    guest: SyntheticGuest, excuse: str, doing: dict[str, Any]
) -> None:
    guest.word(guest.physical(MASK), 0b10 if excuse == "off line" else 0b11)
    table = AREA if excuse == "off line" else PER_CPU
    cpu = starting(guest, gdt=DescriptorTable(table, 127), sysenter_esp=table + STACK, **doing)
    seen = fact(expecting(guest), cpu)
    assert seen["starting"] == []
    assert [one["subject"] for one in seen["deviations"]] == ["LSTAR of CPU 0"]


@pytest.mark.parametrize(
    ("linear", "physical", "excused"),
    [
        (WAITING + SLIDE, KERNEL_PHYSICAL + WAITING - LINK, True),
        (WAITING + SLIDE, MODULE_PHYSICAL + 0x800, False),
        (STARTER + 0x40, STARTER + 0x40, True),
        (STARTER + 0x40, MODULE_PHYSICAL + 0x40, False),
        (STARTER + 0x40, None, False),
    ],
    ids=["kernel", "other code for the kernel's", "starter", "other code for the starter's", "nothing"],
)
def test_what_a_cpu_runs_is_told_by_the_tables_that_it_is_on_not_by_its_address(
    guest: SyntheticGuest, linear: int, physical: int | None, excused: bool
) -> None:
    """Its first tables lie in memory that whoever writes kernel memory may write, too."""
    guest.word(guest.physical(ENTRY["real_mode_header"]), DIRECT_MAP + STARTER)
    if physical is not None:
        page = 4096
        guest.map(linear // page * page, physical // page * page, page, executable=True, root=FIRST_TABLE)
    cpu = starting(guest, cr3=FIRST_TABLE, instruction_pointer=linear)
    seen = fact(expecting(guest), cpu)
    assert seen["starting"] == ([0] if excused else [])
    assert [one["subject"] for one in seen["deviations"]] == ([] if excused else ["LSTAR of CPU 0"])


def test_a_cpu_in_user_mode_is_never_excused(guest: SyntheticGuest) -> None:
    cpu = in_user_mode(starting(guest), gs=0, waiting=PER_CPU)
    seen = fact(expecting(guest), replace(cpu, instruction_pointer=SYMBOLS["victim"] + SLIDE))
    assert (seen["starting"], len(seen["deviations"])) == ([], 1)


def test_a_cpu_that_is_on_line_is_compared_at_once(guest: SyntheticGuest) -> None:
    opened = guest.open()
    opened.cpu_expectations.entries = entries()
    seen = fact(opened, saved(guest, lstar=0))
    assert [one["subject"] for one in seen["deviations"]] == ["LSTAR of CPU 0"]


def test_cpus_that_run_no_kernel_code_are_not_compared(guest: SyntheticGuest) -> None:
    opened = guest.open()
    opened.cpu_expectations.entries = entries()
    seen = fact(opened, saved(guest, efer=0, lstar=OTHER))
    assert (seen["running"], seen["deviations"]) == (0, [])


def test_without_saved_registers_the_fact_is_unavailable(guest: SyntheticGuest) -> None:
    for given, reason in ((None, "nobody had QEMU save"), (SavedCpus(0.0, (), "no stream"), "no stream")):
        seen = collect(guest.open().with_saved(given), ["system_registers"], now=0)
        assert reason in seen["system_registers"].to_json()["unavailable"]
