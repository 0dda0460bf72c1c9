"""A real sandbox around a real image: what a program inside can reach."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest

from affiant.launcher.images.image import Image
from affiant.launcher.images.sandbox import NOBODY, Sandbox, sandbox_arguments, start_sandboxed
from affiant.launcher.process.children import Child
from affiant.model.errors import SetupError
from tests.unit.launcher.small_image import GIB, run_inside

# Runs inside and tells what it sees; what it looks for is set in front.
LOOK = """
import ctypes, errno, json, os, socket, sys

def trial(action):
    try:
        action()
    except OSError as error:
        return errno.errorcode[error.errno]
    return "done"

def opened():
    found = []
    for number in range(256):
        try:
            os.fstat(number)
        except OSError:
            continue
        found.append(number)
    return found

libc = ctypes.CDLL(None, use_errno=True)
descriptors = opened()
caps = (ctypes.c_uint32 * 6)()
header = (ctypes.c_uint32 * 2)(0x20080522, 0)
libc.capget(header, caps)

def connect():
    with socket.socket() as s:
        s.settimeout(2)
        s.connect((HOST, PORT))

print(json.dumps({
    "uid": os.getresuid(), "gid": os.getresgid(), "groups": os.getgroups(),
    "no_new_privs": libc.prctl(39, 0, 0, 0, 0),
    "capabilities": list(caps), "bounding": [c for c in range(41) if libc.prctl(23, c, 0, 0, 0) == 1],
    "descriptors": descriptors, "environment": dict(os.environ), "pid": os.getpid(),
    "root": sorted(os.listdir("/")), "dev": sorted(os.listdir("/dev")),
    "write_root": trial(lambda: open("/x", "w")), "write_tmp": trial(lambda: open("/tmp/x", "w")),
    "write_dev": trial(lambda: open("/dev/x", "w")),
    "write_image": trial(lambda: open(os.__file__, "r+")),
    "chmod": trial(lambda: os.chmod(os.__file__, 0o777)),
    "references": sorted(os.listdir("/references")),
    "write_references": trial(lambda: open("/references/x", "w")),
    "write_passports": trial(lambda: open("/passports/x", "w")),
    "host_file": os.path.exists(HOST_FILE), "proc": os.path.exists("/proc/self"),
    "network": trial(connect), "setuid": trial(lambda: os.setuid(0)),
    "mount": libc.mount(b"none", b"/tmp", b"tmpfs", 0, None),
    "kill": trial(lambda: os.kill(HOST_PID, 0)),
    "ram_write": trial(lambda: os.write(RAM, b"x")) if RAM in descriptors else None,
    "ram_read": os.pread(RAM, 3, 0).decode() if RAM in descriptors else None,
    "hostname": socket.gethostname(),
}))
"""


def look(image: Image, tmp_path: Path, *, ram: int = 250, port: int = 9, **more: Any) -> dict[str, Any]:
    host_file = tmp_path / "host-file"
    host_file.touch()
    values = {
        "HOST": "127.0.0.1",
        "PORT": port,
        "HOST_FILE": str(host_file),
        "HOST_PID": os.getpid(),
        "RAM": ram,
    }
    code = "\n".join(f"{name} = {value!r}" for name, value in values.items()) + LOOK
    returned, words = run_inside(image, code, tmp_path, **more)
    assert returned == 0, words
    found = json.loads(words)
    assert isinstance(found, dict)
    return found


def test_program_inside_reaches_what_it_was_given_and_no_more(
    small: tuple[Path, Image], tmp_path: Path
) -> None:
    references = tmp_path / "references"
    references.mkdir()
    (references / "reference.image").touch()
    ram_file = tmp_path / "ram"
    ram_file.write_bytes(b"RAM")
    ram = os.open(ram_file, os.O_RDONLY)
    not_given = os.open(ram_file, os.O_RDWR)
    os.set_inheritable(not_given, True)
    before = os.environ.get("AFFIANT_TEST_SECRET")
    os.environ["AFFIANT_TEST_SECRET"] = "secret"
    try:
        with socket.socket() as server:
            server.bind(("127.0.0.1", 0))
            server.listen()
            found = look(
                small[1],
                tmp_path,
                ram=ram,
                port=server.getsockname()[1],
                read_only=((references, "/references"),),
                descriptors=(ram,),
            )
    finally:
        os.close(ram)
        os.close(not_given)
        del os.environ["AFFIANT_TEST_SECRET"]
    assert before is None
    assert found["uid"] == [NOBODY] * 3
    assert found["gid"] == [NOBODY] * 3
    assert set(found["groups"]) <= {NOBODY}
    assert found["no_new_privs"] == 1
    assert found["capabilities"] == [0] * 6
    assert found["bounding"] == []
    assert found["descriptors"] == sorted({0, 1, 2, ram})
    assert set(found["environment"]) <= {"LANG", "PWD", "OPENBLAS_NUM_THREADS", "LC_CTYPE"}
    assert found["pid"] < 5
    assert found["root"] == sorted(
        ["bin", "dev", "env", "etc", "lib", "lib64", "passports", "python", "references", "tmp"]
    )
    assert found["dev"] == ["null", "urandom"]
    assert {
        found[f"write_{name}"] for name in ("root", "tmp", "dev", "image", "references", "passports")
    } <= {
        "EROFS",
        "EACCES",
    }
    assert found["chmod"] in ("EROFS", "EPERM")
    assert found["references"] == ["reference.image"]
    assert found["host_file"] is False
    assert found["proc"] is False
    assert found["network"] in ("ECONNREFUSED", "ENETUNREACH")
    assert found["setuid"] in ("EPERM", "EINVAL")
    assert found["mount"] == -1
    assert found["kill"] == "ESRCH"
    assert found["ram_read"] == "RAM"
    assert found["ram_write"] == "EBADF"
    assert found["hostname"] == "affiant"


def test_relays_sandbox_has_a_network_and_one_folder_to_write(
    small: tuple[Path, Image], tmp_path: Path
) -> None:
    with tempfile.TemporaryDirectory() as passports, socket.socket() as server:
        if os.geteuid() == 0:
            os.chown(passports, NOBODY, NOBODY)
        server.bind(("127.0.0.1", 0))
        server.listen()
        port = server.getsockname()[1]
        found = look(small[1], tmp_path, port=port, writable=((Path(passports), "/passports"),), network=True)
        assert [path.name for path in Path(passports).iterdir()] == ["x"]
    assert found["network"] == "done"
    assert found["write_passports"] == "done"
    assert found["write_root"] == "EROFS"
    assert found["capabilities"] == [0] * 6
    assert found["uid"] == [NOBODY] * 3


@pytest.mark.skipif(os.geteuid() != 0, reason="becomes another user to be an ordinary one")
def test_ordinary_user_gets_the_same_sandbox(small: tuple[Path, Image], tmp_path: Path) -> None:
    sandbox = Sandbox(small[1].folder, "x", (), memory_bytes=4 * GIB)
    arguments = sandbox_arguments(sandbox, privileged=False)
    values = {"HOST": "127.0.0.1", "PORT": 9, "HOST_FILE": "/etc/passwd", "HOST_PID": 1 << 21, "RAM": 250}
    code = "\n".join(f"{name} = {value!r}" for name, value in values.items()) + LOOK
    arguments[arguments.index("-m") :] = ["-c", "import sys; exec(sys.argv.pop(1))", code]
    done = subprocess.run(
        ["setpriv", "--reuid=1000", "--regid=1000", "--clear-groups", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        stdin=subprocess.DEVNULL,
    )
    if "user namespace" in done.stderr:
        pytest.skip(f"this host lets no ordinary user make namespaces: {done.stderr.strip()}")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["uid"] == [NOBODY] * 3
    assert found["no_new_privs"] == 1
    assert found["capabilities"] == [0] * 6
    assert found["write_root"] == "EROFS"
    assert found["host_file"] is False
    assert found["descriptors"] == [0, 1, 2]


def test_memory_and_files_are_bounded(small: tuple[Path, Image], tmp_path: Path) -> None:
    code = """
import resource
assert resource.getrlimit(resource.RLIMIT_CORE) == (0, 0)
assert resource.getrlimit(resource.RLIMIT_NOFILE) == (256, 256)
try:
    bytearray(6 << 30)
except MemoryError:
    print("bounded")
"""
    assert run_inside(small[1], code, tmp_path) == (0, "bounded\n")


def test_packages_and_our_modules_work_inside(small: tuple[Path, Image], tmp_path: Path) -> None:
    code = """
import hashlib, sys
import lz4.block
import affiant.model.errors
assert lz4.block.decompress(lz4.block.compress(b"x" * 100)) == b"x" * 100
assert affiant.model.errors.__cached__.startswith("/env/"), affiant.model.errors.__cached__
assert sys.flags.isolated and "/env" in sys.prefix
try:
    import affiant.launcher
except ModuleNotFoundError:
    print(hashlib.sha256(b"").hexdigest()[:8])
"""
    assert run_inside(small[1], code, tmp_path) == (0, "e3b0c442\n")


def test_sandbox_ends_with_its_launcher(small: tuple[Path, Image], tmp_path: Path) -> None:
    """SIGKILL for the launcher is the end of what it started."""
    reading, writing = os.pipe()
    starter = f"""
import os, sys, time
from pathlib import Path
from affiant.launcher.process.children import start_child
from affiant.launcher.images.sandbox import Sandbox, sandbox_arguments
sandbox = Sandbox(Path({str(small[1].folder)!r}), "x", (), memory_bytes={4 * GIB}, descriptors=({writing},))
arguments = sandbox_arguments(sandbox, privileged=os.geteuid() == 0)
arguments[arguments.index("-m"):] = ["-c", "import os, time; os.write({writing}, b'up'); time.sleep(100)"]
start_child("sleeper", arguments, log=Path({str(tmp_path / "log")!r}), pass_fds=({writing},))
time.sleep(100)
"""
    launcher = subprocess.Popen([sys.executable, "-c", starter], pass_fds=(writing,))
    os.close(writing)
    try:
        assert os.read(reading, 2) == b"up", (tmp_path / "log").read_text()
        launcher.kill()
        launcher.wait()
        os.set_blocking(reading, False)
        deadline = time.monotonic() + 60
        ended = b"still running"
        while ended and time.monotonic() < deadline:
            try:
                ended = os.read(reading, 1)  # end of file once the last holder is gone
            except BlockingIOError:
                time.sleep(0.02)
        assert ended == b""
    finally:
        launcher.kill()
        launcher.wait()
        os.close(reading)


def test_started_sandbox_is_stopped_and_its_words_are_kept(small: tuple[Path, Image], tmp_path: Path) -> None:
    log = tmp_path / "log"
    sandbox = Sandbox(small[1].folder, "affiant.nothing", (), memory_bytes=4 * GIB)
    child: Child = start_sandboxed("test", sandbox, log=log)
    child.process.wait(60)
    assert "No module named affiant.nothing" in child.last_words()
    child.stop()
    assert child.exit_code() == 1


def processes_with(word: str) -> list[str]:
    """Command lines of processes that have `word` in theirs."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            found.append((process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace"))
    return [line for line in found if word in line]


@pytest.mark.parametrize("delay", [0.0, 0.01, 0.02, 0.03, 0.05, 0.1, 0.5])
def test_stopped_sandbox_does_nothing_any_more(
    small: tuple[Path, Image], tmp_path: Path, delay: float
) -> None:
    marker = f"sleeper-{secrets.token_hex(8)}"
    sleep = f"import time; {marker!r}; time.sleep(100)"
    sandbox = Sandbox(small[1].folder, "timeit", ("-n", "1", "-r", "1", sleep), memory_bytes=4 * GIB)
    child = start_sandboxed("sleeper", sandbox, log=tmp_path / "log")
    deadline = time.monotonic() + 60
    while not processes_with(marker):  # there is no command line to be read while a program is started
        assert time.monotonic() < deadline, child.last_words()
    time.sleep(delay)
    assert child.exit_code() is None, child.last_words()
    child.stop()
    # The first process in its namespace may be at its end still, SIGKILL upon it; the program is gone.
    assert [line for line in processes_with(marker) if "bwrap" not in line] == []
    deadline = time.monotonic() + 60
    while (left := processes_with(marker)) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert left == []
    child.stop()  # which is harmless a second time


def test_folder_that_is_none_is_refused(small: tuple[Path, Image], tmp_path: Path) -> None:
    with pytest.raises(SetupError, match="no folder"):
        sandbox_arguments(
            Sandbox(
                small[1].folder, "x", (), memory_bytes=GIB, read_only=((tmp_path / "none", "/references"),)
            ),
            privileged=True,
        )
