"""A service and attested guests for tests: the real processes, asked as relying parties ask them."""

from __future__ import annotations

import json
import re
import secrets
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from affiant import __version__
from affiant.assertions.bundle import packaged_library
from affiant.folders import images_folder, references_folder, vtpm_authority_folder
from affiant.launcher.images.image import prepare_image
from affiant.launcher.images.image_files import MONITOR
from affiant.launcher.record import SECURITY_VERSION
from affiant.launcher.vtpm.authority import found_authority
from affiant.model.errors import UnavailableError
from affiant.model.level import SecurityLevel
from affiant.model.outcome import Mode
from affiant.relying_party.decide import Decision, Policy, decide
from affiant.relying_party.verify import VerifiedPassport, verify_passport
from affiant.service.ca import root_path
from affiant.vm.report import ask_for_passport
from affiant.vm.start import VmRequest, start_machine
from affiant.vm.state import VmState
from affiant.vm.stop import remove_machine

AFFIANT = [sys.executable, "-m", "affiant.cli"]
AUDIENCE = "a test"
BOOT_SECONDS = 300.0
ENFORCED = frozenset(script.name for script in packaged_library().scripts if script.mode is Mode.ENFORCE)


@dataclass
class Service:
    """An attestation service in a process of its own, which tests may kill and start again."""

    folder: Path
    port: int = 0
    options: tuple[str, ...] = ()
    process: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def root(self) -> Path:
        return root_path(self.folder)

    def start(self) -> None:
        """Start it where it was before, or on a free port; return once it answers."""
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        ready = self.folder / "ready.json"
        ready.unlink(missing_ok=True)
        command = [*AFFIANT, "service", "run", "--folder", str(self.folder), "--port", str(self.port)]
        command += self.options
        with (self.folder / "service.log").open("ab") as log:
            self.process = subprocess.Popen(
                [*command, "--ready-file", str(ready)], stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        process = self.process
        until(lambda: ready.exists() or process.poll() is not None, seconds=120)
        assert process.poll() is None, (self.folder / "service.log").read_text()
        self.port = int(json.loads(ready.read_text())["url"].rpartition(":")[2])

    def stop(self) -> None:
        if self.process is not None:
            self.process.terminate()
            self.process.wait(30)
            self.process = None

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait(30)
        self.process = None

    def tell(self, *words: str) -> None:
        subprocess.run([*AFFIANT, "service", *words, "--folder", str(self.folder)], check=True)

    def trust_this_host(self) -> None:
        """Accept the TPMs that this host makes, and the monitor of this installation."""
        digest = prepare_image(MONITOR, images_folder()).digest.hex()
        self.tell("trust-ek", str(found_authority(vtpm_authority_folder()).root_certificate))
        self.tell("monitor", "accept", digest, "--version", __version__, "--svn", str(SECURITY_VERSION))

    def know_references(self) -> None:
        """Register every kernel whose reference image is on this host."""
        for reference in sorted(references_folder().glob("*.reference")):
            self.tell("reference", "add", str(reference))


@contextmanager
def running_service(folder: Path, *options: str) -> Iterator[Service]:
    """Run a service (`affiant service run` with `options`) that trusts this host until the block ends."""
    service = Service(folder, options=options)
    try:
        service.start()
        service.trust_this_host()
        yield service
    finally:
        service.stop()


@dataclass(frozen=True)
class Asked:
    """A passport as it came, and what it proved."""

    nonce: bytes
    passport: bytes
    verified: VerifiedPassport

    @property
    def session(self) -> bytes:
        return self.verified.session.session_id

    @property
    def level(self) -> SecurityLevel:
        return self.verified.session.level

    @property
    def shortfalls(self) -> dict[str, str]:
        """Claims that are not met for the next level, with the reasons."""
        following = self.level + 1
        return {
            each.claim: each.explanation
            for each in self.verified.session.shortfalls
            if each.level == following
        }

    def decide(self, *, min_level: SecurityLevel = SecurityLevel.ENFORCED_CODE) -> Decision:
        return decide(self.verified, policy=Policy(min_level=min_level, required=ENFORCED))


@dataclass(frozen=True)
class AttestedGuest:
    """A guest under the launcher, known to a service."""

    service: Service
    state: VmState

    def ask(self, *, wait: float = 180.0) -> Asked:
        """Ask over a new nonce and verify the answer under the service's root, as any relying party."""
        nonce = secrets.token_bytes(32)
        passport = ask_for_passport(self.state.passport_socket, nonce=nonce, audience=AUDIENCE, wait=wait)
        verified = verify_passport(
            passport,
            root=self.service.root.read_bytes(),
            expected_nonce=nonce,
            now=int(time.time()),
            expected_audience=AUDIENCE,
            expected_device=None,
        )
        return Asked(nonce, passport, verified)

    def ask_until(self, fits: Callable[[Asked], bool], *, seconds: float = 180.0) -> Asked:
        """Ask again and again until an answer fits; fails with the last one, or the last refusal."""
        deadline = time.monotonic() + seconds
        last: object = None
        while time.monotonic() < deadline:
            try:
                last = asked = self.ask(wait=0)
            except UnavailableError as error:
                last = error
            else:
                if fits(asked):
                    return asked
            time.sleep(0.2)
        raise AssertionError(f"not within {seconds:.0f} s; last: {last}\n{self.logs()}")

    def refusal(self, pattern: str, *, seconds: float = 120.0) -> str:
        """Ask until the refusal to make a passport matches; fails with the last answer."""
        deadline = time.monotonic() + seconds
        last: object = None
        while time.monotonic() < deadline:
            try:
                last = self.ask(wait=0)
            except UnavailableError as error:
                last = error
                if re.search(pattern, str(error)):
                    return str(error)
            time.sleep(0.2)
        raise AssertionError(f"not within {seconds:.0f} s; last: {last}\n{self.logs()}")

    def status(self) -> dict[str, Any]:
        return self.state.read_status()

    def logs(self) -> str:
        """The end of what the guest's processes wrote, for a failing test."""
        logs = (
            self.state.launcher_log,
            *(self.state.folder / f"{name}.log" for name in ("monitor", "relay")),
        )
        return "".join(f"--- {path.name}\n{path.read_text()[-2000:]}" for path in logs if path.exists())


@contextmanager
def attested_guest(service: Service, request: VmRequest) -> Iterator[AttestedGuest]:
    """Start a guest for `service`; its firmware has just begun. It is removed when the block ends."""
    try:
        yield AttestedGuest(service, start_machine(request))
    finally:
        remove_machine(request.name)


def request_for(service: Service, name: str, **changes: Any) -> VmRequest:
    """A guest of 512 MiB with Secure Boot and a TPM, unless `changes` say otherwise."""
    wanted = {"memory_bytes": 512 << 20, "service": service.url, "service_root": service.root}
    return VmRequest(name, **(wanted | changes))


def until(
    condition: Callable[[], object], *, seconds: float, otherwise: Callable[[], str] = lambda: ""
) -> None:
    """Wait for a condition; fail with what `otherwise` says."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, otherwise() or "the condition never came true"
        time.sleep(0.05)
