"""The whole chain, told once: boot, attest, verify, tamper, refuse, restore, remember.

Each step is what an operator would do by hand; `Step.command` shows how. Nothing is assumed: each
step states what must be so, and the demo fails where it is not.
"""

from __future__ import annotations

import secrets
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from affiant import __version__
from affiant.demo.local_service import LocalService, running_service, running_service_process
from affiant.demo.tampering import HOOKED, tampered
from affiant.folders import cache_folder, home_folder, images_folder, references_folder, vtpm_authority_folder
from affiant.launcher.images.image import Image, prepare_image
from affiant.launcher.images.image_files import MONITOR
from affiant.launcher.record import SECURITY_VERSION
from affiant.launcher.vtpm.authority import found_authority
from affiant.model.errors import AffiantError, SetupError, UnavailableError
from affiant.model.level import SecurityLevel
from affiant.model.outcome import Outcome
from affiant.relying_party.decide import Decision, Policy, decide
from affiant.relying_party.verify import VerifiedPassport, verify_passport
from affiant.vm.interruption import hold_signals
from affiant.vm.kernels import debian_kernel
from affiant.vm.packages import PackageCache
from affiant.vm.ready import wait_for_guest
from affiant.vm.references import ensure_reference
from affiant.vm.report import ask_for_passport
from affiant.vm.start import VmRequest, start_machine
from affiant.vm.state import VmState, list_machines
from affiant.vm.stop import remove_machine

__all__ = ["DemoError", "DemoSettings", "Shown", "Step", "Teller", "run_demo"]

_BOOT_SECONDS = 240.0
_AUDIENCE = "demo relying party"
_POLICY = Policy(
    min_level=SecurityLevel.ISOLATED,
    required=frozenset({"kernel_text_intact", "syscall_table_intact", "modules_listed"}),
)


class DemoError(AffiantError):
    """A link of the chain did not behave as it must."""


@dataclass(frozen=True, slots=True)
class DemoSettings:
    """`name` of the machine; with `keep` it and its service stay."""

    name: str = "demo"
    keep: bool = False

    @property
    def service_folder(self) -> Path:
        """Where the demo's service keeps its keys and database."""
        return home_folder() / f"{self.name}-service"


@dataclass(frozen=True, slots=True)
class Step:
    """One finished link: `proved` says what now holds, `command` how to do it by hand."""

    title: str
    proved: str
    seconds: float
    command: str = ""


@dataclass(frozen=True, slots=True)
class Shown:
    """A passport as the relying party saw it: bytes, the nonce it answers, and the decision."""

    label: str
    nonce: bytes
    passport: bytes
    verified: VerifiedPassport
    decision: Decision


@dataclass(slots=True)
class Teller:
    """Tells how the demo goes; the door decides how that looks."""

    begin: Callable[[str], None]
    note: Callable[[str], None]
    end: Callable[[Step], None]
    show: Callable[[Shown], None]
    steps: list[Step] = field(default_factory=list)
    passports: list[Shown] = field(default_factory=list)

    @contextmanager
    def step(self, title: str, *, command: str = "") -> Iterator[Callable[[str], None]]:
        """Time a step; the block calls what it is given with the sentence that now holds."""
        proved: list[str] = []
        self.begin(title)
        started = time.monotonic()
        yield proved.append
        step = Step(title, " ".join(proved), time.monotonic() - started, command)
        self.steps.append(step)
        self.end(step)


def run_demo(settings: DemoSettings, teller: Teller) -> VmState:
    """Run the demo and return the machine's state (gone by then, unless it is kept).

    Raises `DemoError` when a link does not hold, `SetupError` while a demo of this name is running, and
    what its parts raise when the machine lacks something. Whatever happens, nothing is left behind,
    unless all went well and `keep` is set.
    """
    _require_ended(settings)
    with ExitStack() as ending:
        _prepare_guest(teller)
        service = ending.enter_context(_service(settings, teller))
        accepted = _tell_what_to_trust(service, teller)
        state = ending.enter_context(_machine(settings, service, accepted, teller))
        with teller.step(
            "the guest boots through Secure Boot", command=f"affiant vm console {state.name}"
        ) as proved:
            wait_for_guest(state, timeout=_BOOT_SECONDS)
            proved("firmware, shim, GRUB and the signed kernel ran; the TPM holds their digests")
        _see_it_healthy(state, service, teller)
        _see_it_refused(state, service, teller)
    return state


def _require_ended(settings: DemoSettings) -> None:
    """Leave alone what a demo before this one was told to keep. Raises `SetupError` while it runs."""
    machine_runs = settings.name in list_machines() and VmState.load(settings.name).running
    service = running_service_process(settings.service_folder)
    if machine_runs or service:
        end = [f"affiant vm stop {settings.name}"] * machine_runs + [f"kill {service}"] * bool(service)
        raise SetupError(
            f"a demo named {settings.name!r} is running", hint=f"{'; '.join(end)}; or choose another --name"
        )


def _prepare_guest(teller: Teller) -> None:
    with teller.step("fetch Debian's signed kernel") as proved:
        kernel = debian_kernel(PackageCache(cache_folder()))
        proved(f"kernel {kernel.release}, from the package that apt verified")
    with teller.step("reference image of that kernel", command="affiant reference build PACKAGE") as proved:
        path = ensure_reference(kernel, references_folder(), progress=teller.note)
        proved(f"text, symbols, types and patch sites in {path.stat().st_size >> 20} MiB")


@contextmanager
def _service(settings: DemoSettings, teller: Teller) -> Iterator[LocalService]:
    with ExitStack() as ending:
        with teller.step("start the attestation service", command="affiant service run") as proved:
            shutil.rmtree(settings.service_folder, ignore_errors=True)
            if not settings.keep:
                ending.callback(_forget_service, settings)
            service = ending.enter_context(running_service(settings.service_folder, keep=settings.keep))
            proved(f"its own CA, SQLite, {service.url}")
        yield service


def _tell_what_to_trust(service: LocalService, teller: Teller) -> Image:
    """Tell the service of this host's TPMs, kernels and monitor; return the monitor's image."""
    with teller.step(
        "tell it what to trust", command="affiant service trust-ek, reference add, monitor accept"
    ) as proved:
        authority = found_authority(vtpm_authority_folder())
        image = prepare_image(MONITOR, images_folder())
        service.tell("trust-ek", str(authority.root_certificate))
        for reference in sorted(references_folder().glob("*.reference")):
            service.tell("reference", "add", str(reference))
        service.tell(
            *("monitor", "accept", image.digest.hex()),
            *("--version", __version__, "--svn", str(SECURITY_VERSION)),
        )
        proved(f"the vTPM CA, the kernel, and the monitor image {image.digest.hex()[:16]}...")
    return image


@contextmanager
def _machine(
    settings: DemoSettings, service: LocalService, accepted: Image, teller: Teller
) -> Iterator[VmState]:
    command = f"affiant vm start {settings.name} --service {service.url} --service-root {service.root}"
    try:
        with teller.step("start the guest under the launcher", command=command) as proved:
            request = VmRequest(settings.name, service=service.url, service_root=service.root)
            state = start_machine(request, progress=teller.note)
            _require_image(accepted, state)
            proved("TPM with certified EK, gateway, D-RTM launch of the sandboxed monitor into PCR 17")
        yield state
    except BaseException:
        _remove(settings)
        raise
    if not settings.keep:
        _remove(settings)


def _require_image(accepted: Image, state: VmState) -> None:
    """Refuse to go on with a monitor that the service was not told of: the demo could only fail later."""
    launched = state.read_status().get("image")
    if launched != accepted.digest.hex():
        raise DemoError(
            "the installation changed meanwhile: the monitor that was launched is not the one that the "
            f"service accepts ({launched}, {accepted.digest.hex()})",
            hint="run the demo again, and change nothing while it runs",
        )


def _remove(settings: DemoSettings) -> None:
    with hold_signals():  # who presses Ctrl-C twice means the demo, not its cleaning up
        try:
            remove_machine(settings.name)
        except UnavailableError:
            raise
        except AffiantError:
            pass  # it was never made


def _forget_service(settings: DemoSettings) -> None:
    with hold_signals():
        shutil.rmtree(settings.service_folder, ignore_errors=True)


def _see_it_healthy(state: VmState, service: LocalService, teller: Teller) -> None:
    with teller.step(
        "ask the monitor for a passport", command=f"affiant report --vm {state.name} --nonce HEX -o F"
    ) as proved:
        nonce, passport = _ask(state)
        proved("enrolled by credential activation, quoted, appraised; the live kernel measured")
    command = f"affiant verify F --root {service.root} --nonce HEX"
    with teller.step("verify it offline", command=command) as proved:
        shown = _verify("healthy", state, service, nonce, passport, teller)
        level = shown.verified.session.level
        proved(f"level {level.value} ({level.title}); every assertion holds")
    teller.show(shown)
    _require(shown.decision.accepted, "a healthy guest was refused", shown)


def _see_it_refused(state: VmState, service: LocalService, teller: Teller) -> None:
    with tampered(state):
        with teller.step("tamper with the live kernel") as proved:
            nonce, passport = _ask(state)
            proved(f"a hook in {HOOKED}, one system call redirected; a new passport")
        with teller.step("verify that one") as proved:
            shown = _verify("tampered", state, service, nonce, passport, teller)
            proved(f"refused: {len(shown.decision.findings)} findings")
        teller.show(shown)
        violated = {each.assertion for each in shown.verified.runtime.violations if each.standing}
        seen = {"kernel_text_intact", "syscall_table_intact"} <= violated
        _require(seen and not shown.decision.accepted, "the tampering was not seen", shown)
    with teller.step("put the bytes back, ask once more") as proved:
        shown = _verify("repaired", state, service, *_ask(state), teller)
        proved("everything holds again, and the reports still tell of the violation")
    teller.show(shown)
    runtime = shown.verified.runtime
    repaired = all(each.outcome is Outcome.HOLDS for each in runtime.assertions)
    told = runtime.violations and not any(each.standing for each in runtime.violations)
    _require(bool(repaired and told and not shown.decision.accepted), "the violation was forgotten", shown)


def _ask(state: VmState) -> tuple[bytes, bytes]:
    nonce = secrets.token_bytes(32)
    return nonce, ask_for_passport(state.passport_socket, nonce=nonce, audience=_AUDIENCE, wait=60.0)


def _verify(
    label: str, state: VmState, service: LocalService, nonce: bytes, passport: bytes, teller: Teller
) -> Shown:
    verified = verify_passport(
        passport,
        root=service.root.read_bytes(),
        expected_nonce=nonce,
        now=int(time.time()),
        expected_audience=_AUDIENCE,
        expected_device=None,
    )
    shown = Shown(label, nonce, passport, verified, decide(verified, policy=_POLICY))
    teller.passports.append(shown)
    if label == "healthy":
        (state.folder / "passport.cbor").write_bytes(passport)
    return shown


def _require(holds: bool, otherwise: str, shown: Shown) -> None:
    if not holds:
        reasons = "; ".join(f"{each.subject}: {each.found}" for each in shown.decision.findings[:4])
        raise DemoError(f"{otherwise} ({reasons or 'nothing was found'})", hint="run with --keep and look")
