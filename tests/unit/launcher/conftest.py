from __future__ import annotations

import hashlib
import shutil
import socket
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from affiant.launcher.images import image as image_module
from affiant.launcher.images.image import Image, prepare_image
from affiant.launcher.process.children import Child
from affiant.launcher.vtpm.authority import VtpmAuthority, manufacture, prepare_authority
from affiant.launcher.vtpm.gateway import Execute, Gateway
from affiant.launcher.vtpm.swtpm import SwtpmConnection, start_swtpm
from tests.unit.launcher.fake_qemu import FakeQemu, read_pcr
from tests.unit.launcher.small_image import SMALL

RECORD = b"launch record of the tests" * 100


def launched_pcr17(record: bytes) -> bytes:
    return hashlib.sha256(bytes(32) + hashlib.sha256(record).digest()).digest()


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> VtpmAuthority:
    for program in ("swtpm", "swtpm_setup", "swtpm_localca", "setpriv"):
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed (packages swtpm, swtpm-tools, util-linux)")
    return prepare_authority(tmp_path_factory.mktemp("vtpm-ca"))


@pytest.fixture(scope="session")
def manufactured(authority: VtpmAuthority, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The state of a TPM with EKs and certificates, made once; tests work on copies."""
    state = tmp_path_factory.mktemp("manufactured") / "tpm"
    manufacture(authority, state, name="test")
    return state


@dataclass
class Bench:
    """A gateway over a real swtpm, with a fake QEMU in front of it."""

    folder: Path
    authority: VtpmAuthority
    child: Child
    tpm: SwtpmConnection
    gateway: Gateway
    listener: socket.socket
    thread: threading.Thread
    qemu: FakeQemu

    def pcr17(self) -> bytes:
        with self.gateway.secure_world() as execute:
            return execute(read_pcr(17))[-32:]


def launch(execute: Execute, hash_sequence: object) -> None:
    assert callable(hash_sequence)
    hash_sequence(RECORD)
    assert execute(read_pcr(17))[-32:] == launched_pcr17(RECORD)


@pytest.fixture
def bench(tmp_path: Path, authority: VtpmAuthority, manufactured: Path) -> Iterator[Bench]:
    state = tmp_path / "state"
    shutil.copytree(manufactured, state)
    child, tpm = start_swtpm(state, log=tmp_path / "swtpm.log")
    gateway = Gateway(tpm, launch=launch)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(str(tmp_path / "tpm.sock"))
    listener.listen(1)
    thread = threading.Thread(target=gateway.serve, args=(listener,), daemon=True)
    thread.start()
    qemu = FakeQemu(tmp_path / "tpm.sock")
    try:
        yield Bench(tmp_path, authority, child, tpm, gateway, listener, thread, qemu)
    finally:
        qemu.close()
        gateway.close()
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        tpm.close()
        child.stop()
        thread.join(60)
        assert not thread.is_alive()


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Image]]:
    for program in ("bwrap", "setpriv", "prlimit", "ldd"):
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed (packages bubblewrap, util-linux, libc-bin)")
    # Not below pytest's own folder, which other users cannot enter.
    with tempfile.TemporaryDirectory(prefix="affiant-images-") as folder:
        Path(folder).chmod(0o755)
        image = prepare_image(SMALL, Path(folder))
        yield Path(folder), image
        image_module._remove(Path(folder))
        Path(folder).mkdir()
