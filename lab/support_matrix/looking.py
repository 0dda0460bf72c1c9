"""Boots a guest with one kernel and looks at it as a monitor does, before and after modules are loaded."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any, Final

import numpy as np

from affiant.assertions.bundle import packaged_library
from affiant.assertions.engine import Engine
from affiant.kernel.facts.registry import FACTS
from affiant.kernel.reference import ReferenceImage, SiteClass, build_reference
from affiant.kernel.reference.module_files import module_files_beside
from affiant.model.errors import AffiantError, EvidenceError
from affiant.model.outcome import AssertionResult, Outcome
from affiant.tpm.event_log import parse_event_log
from affiant.vm.kernels import GuestKernel
from lab.guests import GuestPlan, LabGuest, load_modules, start_guest
from lab.live_guest import LiveGuest, open_live_guest
from lab.looking import WaitingClock, judge_one_moment
from lab.monitoring import watch_over
from lab.references import reference_file
from lab.support_matrix.answers import answer_of, worse
from lab.support_matrix.kernels import SupportedKernel
from lab.support_matrix.seen import Answer, Boot, Kernel, Live, Reference, Sites, Verdict

__all__ = ["look_at"]

_LOOKS_BEFORE, _LOOKS_AFTER = 2, 5
# What may pass within moments counts when it has lasted for five seconds, in four looks or more.
_SPACING: Final = 2.0
_GRAVITY: Final = (Outcome.HOLDS, Outcome.NOT_APPLICABLE, Outcome.INCONCLUSIVE, Outcome.VIOLATED)
_WRITE_PROTECT, _NO_EXECUTE = 1 << 16, 1 << 11
_CR4: Final = {"UMIP": 11, "SMEP": 20, "SMAP": 21, "PKE": 22, "CET": 23}
_MOST_FINDINGS: Final = 4
# What a guest, a package or QEMU may do wrong: told in the kernel's column, and the next kernel is looked at.
_FAILURES: Final = (AffiantError, TimeoutError, RuntimeError, OSError, subprocess.SubprocessError)

Tell = Callable[[str], None]


def look_at(supported: SupportedKernel, *, refresh: bool, tell: Tell) -> Kernel:
    """Boot a kernel and return what was seen of it; what fails is told in it, and nothing is raised for it.

    It is booted through Secure Boot with a TPM, and if it does not come up so, directly. `tell` is told
    of progress.
    """
    name, suite = supported.name, supported.suite
    failures: list[str] = []
    release = package = ""
    reference: Reference | None = None
    live: Live | None = None
    try:
        tell(f"{name}: asking {suite} for {supported.package}")
        kernel = supported.newest(refresh=refresh)
        release = kernel.release
        tell(f"{name}: building the reference image of {release}")
        image, reference = _built(kernel)
        package = "" if image.package is None else f"{image.package.name} {image.package.version}"
        with ExitStack() as stack:
            guest = _booted(stack, supported, failures, tell)
            live = _looked(guest, image, lambda told: tell(f"{name}: {told}"))
    except _FAILURES as error:
        failures.append(f"{type(error).__name__}: {error}")
        tell(f"{name}: FAILED: {failures[-1]}")
    return Kernel(name, suite, release, package, reference, live, tuple(failures))


def _built(kernel: GuestKernel) -> tuple[ReferenceImage, Reference]:
    """Build the image anew, whatever is kept, and say whether it is what is kept, or built once more."""
    began = time.monotonic()
    data = build_reference(
        kernel.reference_source,
        modules=kernel.modules_package,
        configuration=kernel.configuration_package,
    )
    seconds = time.monotonic() - began
    kept = reference_file(kernel)
    files = module_files_beside(kept)
    image = ReferenceImage.load(kept)
    return image, Reference(
        size=len(data),
        seconds=seconds,
        module_files_size=files.stat().st_size if files.is_file() else 0,
        same_again=kept.read_bytes() == data,
        symbols=len(image.symbols),
        types=len(image.types) if image.btf else 0,
        modules=len(image.modules),
        unknown_sections=image.metadata.unknown_sections,
        locks_down=image.metadata.locks_down,
        verifies_modules=image.metadata.verifies_modules,
    )


def _booted(stack: ExitStack, supported: SupportedKernel, failures: list[str], tell: Tell) -> LabGuest:
    for firmware in (True, False):
        plan = GuestPlan(
            suite=supported.suite, package=supported.package, firmware=firmware, tpm=firmware, in_turn=True
        )
        tell(f"{supported.name}: booting {'through Secure Boot' if firmware else 'directly'}")
        try:
            return stack.enter_context(start_guest(plan))
        except _FAILURES as error:
            failures.append(f"{'Secure Boot' if firmware else 'direct boot'}: {error}")
            tell(f"{supported.name}: {failures[-1]}")
    raise RuntimeError("the guest did not come up")


def _looked(guest: LabGuest, image: ReferenceImage, tell: Tell) -> Live:
    rules: dict[str, Verdict] = {}
    answers: dict[str, Answer] = {}
    facts: Mapping[str, Any] = {}
    loaded: tuple[str, ...] = ()
    with (
        open_live_guest(guest, image) as live,
        Engine(packaged_library()) as engine,
        watch_over(live, engine) as watch,
    ):
        for number in range(_LOOKS_BEFORE + _LOOKS_AFTER):
            if number == _LOOKS_BEFORE:
                before = _modules(guest)
                load_modules(guest)
                loaded = tuple(sorted(_modules(guest) - before))
                tell(f"modules loaded: {', '.join(loaded)}")
            look = watch.look(everything=True)
            facts = look.facts
            for result in look.results:
                rules[result.name] = _worse(rules.get(result.name), _verdict(result))
            for name, fact in facts.items():
                told = answer_of(fact)  # type: ignore[arg-type]  # every fact is a JSON object
                answers[name] = worse(answers[name], told) if name in answers else told
            quiet = all(result.outcome is Outcome.HOLDS for result in look.results)
            tell(f"look {number + 1}: {'every rule holds' if quiet else _not_holding(look.results)}")
            time.sleep(_SPACING)
        names = [script.name for script in engine.bundle.scripts]
        unconfirmed = _unconfirmed(judge_one_moment(live, engine, names, clock=WaitingClock()))
        tell("confirmed at one moment" if not unconfirmed else f"NOT confirmed: {'; '.join(unconfirmed)}")
        return Live(
            boot=_boot(guest, live, facts),
            facts={name: answers[name] for name in FACTS},
            queries={name: answers[name] for name in engine.bundle.queries},
            rules=rules,
            sites=_sites(live, facts["kernel_text"]),
            looks=_LOOKS_BEFORE + _LOOKS_AFTER,
            loaded=loaded,
            modules=len(_modules(guest)),
            unconfirmed=unconfirmed,
        )


def _verdict(result: AssertionResult) -> Verdict:
    findings = "; ".join(
        f"{finding.subject}: {finding.found} in place of {finding.expected}"
        for finding in result.findings[:_MOST_FINDINGS]
    )
    return Verdict(result.outcome, result.looked_at, result.reason or findings)


def _worse(one: Verdict | None, other: Verdict) -> Verdict:
    if one is None or _GRAVITY.index(one.outcome) <= _GRAVITY.index(other.outcome):
        return other
    return one


def _not_holding(results: tuple[AssertionResult, ...]) -> str:
    return "; ".join(
        f"{result.name} is {result.outcome.value}"
        for result in results
        if result.outcome is not Outcome.HOLDS
    )


def _unconfirmed(results: tuple[AssertionResult, ...]) -> tuple[str, ...]:
    return tuple(
        f"{result.name} is {result.outcome.value}: {_verdict(result).told}"
        for result in results
        if result.outcome not in (Outcome.HOLDS, Outcome.NOT_APPLICABLE)
    )


def _modules(guest: LabGuest) -> set[str]:
    return {line.split()[0] for line in guest.console.run("cat /proc/modules").splitlines() if line.strip()}


def _boot(guest: LabGuest, live: LiveGuest, facts: Mapping[str, Any]) -> Boot:
    run = guest.console.run
    lockdown = run("cat /sys/kernel/security/lockdown || true")
    secure = run("dmesg | grep -c 'Secure boot enabled' || true").strip()
    flaws = run("cd /sys/devices/system/cpu/vulnerabilities && grep . * || true; cd /")
    return Boot(
        firmware=guest.plan.firmware,
        secure_boot=secure not in ("", "0"),
        lockdown=lockdown.partition("[")[2].partition("]")[0] or "not told",
        event_log=_event_log(live) if guest.plan.firmware else "",
        paging_levels=live.guest.location.levels,
        vulnerabilities=dict(line.split(":", 1) for line in flaws.split("\n") if ":" in line),
        protections=_protections(facts["cpus"]),
        isolated_tables=bool(facts["page_rights"].get("roots", {}).get("user halves")),
    )


def _event_log(live: LiveGuest) -> str:
    """Return how the boot's event log was found in the guest's memory; empty if it was not."""
    for candidate in live.guest.event_logs():
        try:
            parse_event_log(candidate.data)
        except EvidenceError:
            continue
        return candidate.source
    return ""


def _protections(cpus: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the names of protections that every vCPU has on."""
    registers = cpus.get("cpus", ())
    if not registers:
        return ()
    on = [
        *(("WP", "cr0", _WRITE_PROTECT), ("NX", "efer", _NO_EXECUTE)),
        *((name, "cr4", 1 << bit) for name, bit in _CR4.items()),
    ]
    return tuple(name for name, key, mask in on if all(int(cpu[key], 16) & mask for cpu in registers))


def _sites(live: LiveGuest, text: Mapping[str, Any]) -> dict[str, Sites]:
    """Return every class there is, also those that this kernel has no site of."""
    counts = np.bincount(live.guest.text.sites["kind"], minlength=256)
    judged, changed = text.get("sites", {}), text.get("by_class", {})
    return {
        name: Sites(int(counts[int(kind)]), judged.get(name, 0), changed.get(name, 0))
        for kind in SiteClass
        for name in (kind.name.lower(),)
    }
