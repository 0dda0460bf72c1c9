"""Real guests for tests. Every test in this folder is marked `vm`; nothing of a guest may stay behind."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from affiant.vm.ready import wait_for_guest
from lab.console import Console
from lab.guests import GuestPlan, LabGuest, start_guest
from lab.live_guest import LiveGuest, open_live_guest
from lab.references import reference_of
from lab.tamper.technique import SUITES
from tests.lab.attested import (
    BOOT_SECONDS,
    AttestedGuest,
    Service,
    attested_guest,
    request_for,
    running_service,
)
from tests.lab.processes import adopt_orphans, none_but

_MARK = "AFFIANT_TEST_SESSION"
_PROGRAMS = ("qemu-system-x86_64", "swtpm", "mcopy", "dpkg-deb", "apt-get")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    missing = [program for program in _PROGRAMS if shutil.which(program) is None]
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.vm)
            if missing:
                item.add_marker(pytest.mark.skip(reason=f"not installed: {', '.join(missing)}"))


def _marked_processes(mark: str) -> dict[int, str]:
    """Return processes other than this one that inherited the session's mark: pid -> command line."""
    found = {}
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit() or int(folder.name) == os.getpid():
            continue
        try:
            if f"{_MARK}={mark}".encode() in (folder / "environ").read_bytes().split(b"\0"):
                found[int(folder.name)] = (
                    (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()[:200]
                )
        except OSError:
            continue  # gone, or not ours
    return found


@pytest.fixture(scope="session", autouse=True)
def leave_nothing_behind() -> Iterator[None]:
    """Fail the session when a process, a RAM file or a socket of a guest outlives its tests."""
    mark = uuid.uuid4().hex
    os.environ[_MARK] = mark
    adopt_orphans()
    ram_before = set(Path("/dev/shm").glob("affiant-*"))
    yield
    del os.environ[_MARK]
    # A sandbox has an environment of its own, without the mark; it descends from us all the same.
    assert not (left := none_but({})), f"processes left behind: {left}"
    assert not (left := _marked_processes(mark)), f"processes left behind: {left}"
    ram_left = {path for path in Path("/dev/shm").glob("affiant-*") if path not in ram_before}
    # Another session on this host may own guests too: only files that nobody has open are left over.
    ram_left = {path for path in ram_left if not _is_open(path) and path.exists()}
    assert not ram_left, f"RAM files left behind: {ram_left}"


def _is_open(path: Path) -> bool:
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # gone meanwhile
            if any(_leads_to(descriptor, path) for descriptor in (process / "fd").iterdir()):
                return True
    return False


def _leads_to(descriptor: Path, path: Path) -> bool:
    try:
        return descriptor.readlink() == path
    except OSError:
        return False  # closed meanwhile


@pytest.fixture(scope="session")
def home() -> Iterator[Path]:
    """An AFFIANT_HOME of its own, with a short path because sockets lie in it; no socket may stay."""
    folder = Path(tempfile.mkdtemp(prefix="affiant-", dir="/tmp"))
    before = os.environ.get("AFFIANT_HOME")
    os.environ["AFFIANT_HOME"] = str(folder)
    yield folder
    if before is None:
        del os.environ["AFFIANT_HOME"]
    else:
        os.environ["AFFIANT_HOME"] = before
    sockets = [path for path in folder.rglob("*") if path.is_socket()]
    shutil.rmtree(folder)
    assert not sockets, f"sockets left behind: {sockets}"


@pytest.fixture(scope="session")
def direct_guest() -> Iterator[LabGuest]:
    """A guest with Debian's kernel booted directly: up in seconds, no TPM, nothing measured. Shared."""
    with start_guest(GuestPlan(firmware=False, tpm=False)) as guest:
        yield guest


@pytest.fixture(scope="session")
def secure_boot_guest() -> Iterator[LabGuest]:
    """A guest booted through shim and GRUB under Secure Boot, with swtpm, without a launcher. Shared."""
    with start_guest(GuestPlan()) as guest:
        yield guest


@pytest.fixture(scope="session")
def guest(direct_guest: LabGuest) -> LabGuest:
    """The quickest guest: for tests that only need a live kernel."""
    return direct_guest


@pytest.fixture(scope="session", params=SUITES)
def supported(request: pytest.FixtureRequest) -> Iterator[LiveGuest]:
    """A live guest with each supported kernel in turn, booted directly, no module loaded. Shared.

    It is made to patch its code often, and so its vCPUs run in turn where they are emulated.
    """
    plan = GuestPlan(suite=request.param, firmware=False, tpm=False, test_modules=True, in_turn=True)
    with (
        start_guest(plan) as guest,
        open_live_guest(guest, reference_of(guest.kernel)) as live,
    ):
        yield live


@pytest.fixture(scope="session")
def service(home: Path) -> Iterator[Service]:
    """An attestation service that trusts this host; it knows the kernels it is told of. Shared."""
    with running_service(home / "service") as service:
        yield service


@pytest.fixture(scope="session")
def attested(service: Service) -> Iterator[AttestedGuest]:
    """A guest booted through Secure Boot under the launcher, its kernel known to the service. Shared.

    Whoever uses it leaves it running, healthy and untampered, with whatever session it has then.
    """
    with attested_guest(service, request_for(service, "attested")) as guest:
        service.know_references()
        wait_for_guest(guest.state, timeout=BOOT_SECONDS)
        yield guest


@pytest.fixture
def console(attested: AttestedGuest) -> Iterator[Console]:
    """The shared attested guest's shell."""
    with Console(attested.state.console_socket) as console:
        console.type("\n")
        console.wait("guest# ", timeout=120)
        console.silence_kernel()
        yield console
