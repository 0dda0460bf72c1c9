"""Looks at healthy guests under load, once a second, for a long time: nothing may seem wrong or be unseen.

    python -m lab.soak [--minutes 30] [--only NAME]...

Each kind of guest runs for the whole time, one after the other. Any result that is not `holds`, confirmed
at one moment as a monitor does it, is a failure, told with its reason.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final

from affiant.assertions.bundle import packaged_library
from affiant.assertions.engine import Engine
from affiant.kernel.reference import ReferenceImage
from affiant.model.errors import AffiantError
from affiant.model.outcome import AssertionResult, Outcome
from affiant.monitor.watch import KernelWatch
from affiant.vm.acceleration import Acceleration, detect_acceleration
from lab.bpf import PASSING_PROGRAMS, loaded_programs, passing_programs
from lab.debian import SERVER_PACKAGES, TRACING_PACKAGES
from lab.guests import GuestPlan, LabGuest, start_guest
from lab.live_guest import open_live_guest
from lab.monitoring import watch_over
from lab.references import reference_of

_TRACING: Final = "/sys/kernel/tracing"
_CPU: Final = "/sys/devices/system/cpu/cpu1/online"
_BPFTRACE: Final = (
    "kprobe:vfs_read { @read[comm] = count(); } kretprobe:vfs_read { @got = hist(retval); } "
    "kfunc:vfs_open { @opened = count(); } tracepoint:syscalls:sys_enter_openat { @asked = count(); } "
    "profile:hz:49 { @on[cpu] = count(); } interval:s:8 { exit(); }"
)
_MODULES: Final = ("dummy", "loop", "tun", "veth", "nft_chain_nat", "wireguard")
"""What a Debian loads and unloads, one after the other."""

_LARGE_MODULES: Final = ("xfs", "kvm", "btrfs")
"""The same, of hundreds of static calls: for each of them all processors are waited for, which takes minutes
where one thread runs them in turn."""

_ALIVE_EVERY: Final = 30.0
_MOST_TOLD: Final = 40
_ROUNDS: Final = "/tmp/soak."  # how often each loop came round, in bytes of a file
_COUNTED: Final = re.compile(r"^ *([0-9]+) /tmp/soak\.([0-9]+)\s*$", re.MULTILINE)
_TRIES: Final = 4


@dataclass(frozen=True, slots=True)
class Kind:
    """A guest, and the load that it bears."""

    name: str
    plan: GuestPlan


def _direct(**options: object) -> GuestPlan:
    return GuestPlan(firmware=False, tpm=False, **options)  # type: ignore[arg-type]


def _debian(packages: tuple[str, ...], **options: object) -> GuestPlan:
    return _direct(debian=True, debian_packages=packages, modules=_MODULES + _LARGE_MODULES, **options)


KINDS: Final = (
    Kind("bookworm-2", _direct(suite="bookworm", cpus=2)),
    Kind("bookworm-4-6G", _direct(suite="bookworm", cpus=4, memory_mib=6144)),
    Kind("trixie-2-6G", _direct(suite="trixie", cpus=2, memory_mib=6144)),
    Kind("trixie-4", _direct(suite="trixie", cpus=4)),
    Kind("sid-2", _direct(suite="sid", cpus=2)),
    Kind("sid-4-6G", _direct(suite="sid", cpus=4, memory_mib=6144)),
    Kind("bookworm-2-patching", _direct(suite="bookworm", cpus=2, in_turn=True)),
    Kind("trixie-4-patching", _direct(suite="trixie", cpus=4, in_turn=True)),
    Kind("sid-2-patching", _direct(suite="sid", cpus=2, in_turn=True)),
    Kind("debian-2-6G", _debian(SERVER_PACKAGES, cpus=2, memory_mib=6144)),
    Kind("debian-2-patching", _debian(SERVER_PACKAGES + TRACING_PACKAGES, cpus=2, in_turn=True)),
)


@dataclass(slots=True)
class Soaked:
    """What came of one guest."""

    seconds: list[float] = field(default_factory=list)  # that each look took
    suspected: Counter[str] = field(default_factory=Counter)  # that was looked at again at once
    stops: Counter[str] = field(default_factory=Counter)  # of the guest, by what for
    failures: Counter[str] = field(default_factory=Counter)
    rounds: dict[str, int] = field(default_factory=dict)  # of each loop of the load, by its first words
    host_load: float = 0.0  # runnable processes on this host, on average


def main(arguments: Sequence[str] | None = None) -> int:
    """Soak every kind of guest; 1 if any look found fault with one."""
    parser = argparse.ArgumentParser(prog="lab.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=30.0, help="for each kind of guest")
    parser.add_argument(
        "--only",
        action="append",
        default=[],
        metavar="NAME",
        help="the kind of this name, or those with this in theirs; several times for more",
    )
    options = parser.parse_args(arguments)
    try:
        kinds = chosen(options.only)
    except ValueError as error:
        parser.error(str(error))
    failed = 0
    for kind in kinds:
        soaked = soak(kind, seconds=60 * options.minutes)
        failed += bool(soaked.failures)
        print(_summary(kind, soaked), flush=True)
        for failure, count in soaked.failures.most_common(_MOST_TOLD):
            print(f"  {count:5} {failure}", flush=True)
    return 1 if failed else 0


def chosen(names: Sequence[str]) -> list[Kind]:
    """Return the kinds of these names, each in full or a part that several may have; all for no name.

    Raises ValueError when a name is no kind's.
    """
    found: set[str] = set() if names else {kind.name for kind in KINDS}
    for name in names:
        exact = {kind.name for kind in KINDS if kind.name == name}
        alike = exact or {kind.name for kind in KINDS if name in kind.name}
        if not alike:
            raise ValueError(f"no guest is called {name!r}: {', '.join(kind.name for kind in KINDS)}")
        found |= alike
    return [kind for kind in KINDS if kind.name in found]


def soak(kind: Kind, *, seconds: float) -> Soaked:
    """Look at one guest once a second while it works; it must live, and be healthy in every look."""
    soaked = Soaked()
    try:
        with (
            start_guest(kind.plan) as guest,
            open_live_guest(guest, reference := reference_of(guest.kernel)) as live,
            Engine(packaged_library()) as engine,
            watch_over(live, engine, stops=soaked.stops) as watch,
            _loaded(guest, reference),
        ):
            _look_on(guest, watch, soaked, seconds=seconds)
    except (AffiantError, TimeoutError, RuntimeError, OSError) as error:
        soaked.failures[f"the guest does not answer: {error}"] += 1
    return soaked


def _look_on(guest: LabGuest, watch: KernelWatch, soaked: Soaked, *, seconds: float) -> None:
    end = asked = time.monotonic()
    end += seconds
    while (began := time.monotonic()) < end:
        look = watch.look()
        soaked.seconds.append(time.monotonic() - began)
        soaked.suspected.update(look.suspected)
        soaked.host_load += (os.getloadavg()[0] - soaked.host_load) / len(soaked.seconds)
        for result in look.results:
            if result.outcome is not Outcome.HOLDS:
                told = _told(result)
                if told not in soaked.failures:
                    print(f"  look {len(soaked.seconds)}: {told}", flush=True)
                soaked.failures[told] += 1
        if began - asked > _ALIVE_EVERY:
            guest.console.run("true", timeout=120)
            asked = began
        time.sleep(max(0.0, began + 1.0 - time.monotonic()))
    soaked.rounds = _rounds(guest)
    for loop, rounds in soaked.rounds.items():
        if not rounds:
            soaked.failures[f"a part of the load never did its work: {loop}"] += 1


def _rounds(guest: LabGuest) -> dict[str, int]:
    """Return how often each loop of the load came round: one that failed each time was no load."""
    loops = list(_loops(guest))
    files = " ".join(f"{_ROUNDS}{number}" for number in range(len(loops)))
    counts = f"for file in {files}; do [ -e $file ] || : > $file; done; wc -c {files}"
    told: dict[str, str] = {}
    for _ in range(_TRIES):
        # What the kernel has to say comes in between, on any line.
        listed = _COUNTED.findall(guest.console.run(counts, timeout=120))
        told |= {loop: size for size, loop in listed}
        if len(told) == len(loops):
            break
    return {loop[:40]: int(told.get(str(number), 0)) for number, loop in enumerate(loops)}


def _summary(kind: Kind, soaked: Soaked) -> str:
    ordered = sorted(soaked.seconds) or [0.0]
    suspected = ", ".join(f"{name} {count}" for name, count in soaked.suspected.most_common())
    return (
        f"{kind.name}: {len(soaked.seconds)} looks, half of them within {ordered[len(ordered) // 2]:.2f} s, "
        f"the slowest {ordered[-1]:.2f} s; host load {soaked.host_load:.1f}; "
        f"{soaked.failures.total()} failures; stopped {dict(soaked.stops)}; "
        f"looked at twice: {suspected or 'nothing'}; rounds of the load: {[*soaked.rounds.values()]}"
    )


def _told(result: AssertionResult) -> str:
    findings = "; ".join(
        f"{finding.subject}: {finding.found} in place of {finding.expected} {finding.owner}"
        for finding in result.findings[:4]
    )
    return f"{result.name} {result.outcome.value}: {result.reason or findings}"


@contextmanager
def _loaded(guest: LabGuest, reference: ReferenceImage) -> Iterator[None]:
    """Put a guest to work in every way that it can bear; it stops at the end."""
    run = guest.console.run
    with loaded_programs(guest, reference) as programs:
        assert programs["loaded"] == 0
        assert passing_programs(guest)["loaded"] == 0
        for command in _setting_up():
            run(command, timeout=300)
        for number, loop in enumerate(_loops(guest)):
            counted = f"{loop} && printf . >> {_ROUNDS}{number}"
            run(f"(while [ ! -e /tmp/halt ]; do {counted}; done) > /dev/null 2>&1 & true", timeout=120)
        try:
            yield
        finally:
            run("touch /tmp/halt", timeout=120)


def _setting_up() -> Iterator[str]:
    """Have tracing and probes in use from the beginning."""
    yield f"cd {_TRACING}; echo 'p:one vfs_open' > kprobe_events; echo 'r:two vfs_read' >> kprobe_events"
    yield f"cd {_TRACING}; for f in events/kprobes/*/enable; do echo 1 > $f; done"
    yield f"cd {_TRACING}; echo 'tcp_* vfs_*' > set_ftrace_filter; echo function > current_tracer"
    yield f"cd {_TRACING}; echo 1 > events/sched/sched_switch/enable; cd /"


def _loops(guest: LabGuest) -> Iterator[str]:
    """Yield what goes on and on; a round counts if its last command does what it should."""
    plan = guest.plan
    yield "ls / & true & wait"
    yield "ls /proc | head -1; sleep 1"
    if plan.debian:
        yield in_and_out(_MODULES)
        if not plan.in_turn:
            yield in_and_out(_LARGE_MODULES)
        yield "sleep 5; systemctl restart ssh auditd"
    else:
        yield "load modules 1; sleep 20; load stop; load status | grep -q 'modules [1-9]'"
    fill = "/dev/shm/fill" if plan.debian else "/tmp/fill"
    yield f"dd if=/dev/zero of={fill} bs=1M count={plan.memory_mib // 3}; rm {fill}"
    if not plan.in_turn:
        # Where one thread runs all processors, one that starts may keep the others waiting for minutes.
        yield f"echo 0 > {_CPU}; sleep 3; echo 1 > {_CPU}; sleep 4"
    if plan.in_turn or plan.cpus == 1 or detect_acceleration() is Acceleration.KVM:
        yield from _patching(plan)


def in_and_out(modules: tuple[str, ...]) -> str:
    """Return a command that loads and unloads one module after the other; it fails where one does not."""
    steps = 'modprobe $m && grep -q "^$m " /proc/modules && sleep 1 && modprobe -r -w 9000 $m'
    gone = '! grep -q "^$m " /proc/modules'
    return f"(for m in {' '.join(modules)}; do {steps} && {gone} || exit 1; done)"


def _patching(plan: GuestPlan) -> Iterator[str]:
    """Have the kernel patch itself all the time, as tracers and their users make it.

    An emulated guest whose vCPUs have a thread each would die of that; see `lab.plain.run_plain`.
    """
    yield f"for v in 1 0; do echo $v > {_TRACING}/events/sched/enable; sleep 1; done"
    yield "for v in 1 0; do echo $v > /proc/sys/kernel/sched_schedstats; sleep 1; done"
    yield f"for t in nop function_graph nop function; do echo $t > {_TRACING}/current_tracer; sleep 2; done"
    probe = f"{_TRACING}/events/more/three/enable"
    added = f"echo 'p:more/three do_sys_openat2' >> {_TRACING}/kprobe_events; echo 1 > {probe}; sleep 2"
    yield f"{added}; echo 0 > {probe}; echo '-:more/three' >> {_TRACING}/kprobe_events; sleep 1"
    if plan.debian:
        yield "sleep 1; perf record -q -a -g -o /dev/null -e cpu-clock -e sched:sched_switch sleep 3"
        yield "sleep 5; perf trace -a -o /dev/null sleep 3"
        yield f"sleep 3; bpftrace -e '{_BPFTRACE}'"
    else:
        yield PASSING_PROGRAMS


if __name__ == "__main__":
    sys.exit(main())
