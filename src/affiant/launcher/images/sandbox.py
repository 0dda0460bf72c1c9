"""The sandbox around the monitor (and, with a network, around the relay), by bubblewrap.

What a program inside can reach: the files of its image, read-only; the folders that are bound for
it; `/dev/null` and `/dev/urandom`; the descriptors that it is given. What it has not: a network
(own empty namespace) unless asked for; a view of other processes (own process namespace, no
`/proc`, so that a descriptor opened for reading cannot be opened again for writing either);
capabilities, or a way to gain privileges; the environment of its starter; a life beyond that of the
launcher.

Where the launcher is root, bubblewrap sets all this up with root's rights and hands over to
`setpriv` out of the image, which becomes nobody (65534) for good: root's files stay out of reach
by their owner too. Elsewhere a user namespace does the same with the launcher's own user.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from affiant.launcher.images.image_files import PYTHON
from affiant.launcher.process.children import Child, find_program, start_child
from affiant.model.errors import SetupError

__all__ = ["NOBODY", "Sandbox", "sandbox_arguments", "start_sandboxed"]

NOBODY = 65534
"""User and group inside the sandbox."""

_NAME_SERVICE = ("/etc/resolv.conf", "/etc/hosts", "/etc/nsswitch.conf")
_OPEN_FILES = 256


@dataclass(frozen=True, slots=True)
class Sandbox:
    """What one program may see. `image` is the folder that becomes its root.

    `module` is run by the image's Python (`python -I -m module arguments...`). `read_only` and
    `writable` bind a folder of the host (left) to an empty folder of the image (right, absolute).
    `descriptors` are inherited with their numbers. `memory_bytes` bounds its address space.
    """

    image: Path
    module: str
    arguments: tuple[str, ...]
    memory_bytes: int
    read_only: tuple[tuple[Path, str], ...] = ()
    writable: tuple[tuple[Path, str], ...] = ()
    descriptors: tuple[int, ...] = ()
    network: bool = False


def start_sandboxed(name: str, sandbox: Sandbox, *, log: Path) -> Child:
    """Start the program in its sandbox; its words go to `log`. From the main thread only.

    Raises `SetupError` when bubblewrap is not installed, `UnavailableError` when it cannot be started.
    """
    arguments = sandbox_arguments(sandbox, privileged=os.geteuid() == 0)
    return start_child(
        name,
        arguments,
        log=log,
        pass_fds=sandbox.descriptors,
        environment={"PATH": os.defpath},
        several=True,
    )


def sandbox_arguments(sandbox: Sandbox, *, privileged: bool) -> list[str]:
    """Return the whole command line, to be started in a new session.

    `privileged`: for root; else for a user with user namespaces.
    """
    for source, target in (*sandbox.read_only, *sandbox.writable):
        if not source.is_dir() or not target.startswith("/"):
            raise SetupError(f"{source} cannot be shown to the sandbox as {target}: it is no folder")
    command = [PYTHON, "-I", "-B", "-m", sandbox.module, *sandbox.arguments]
    return [
        *_limits(sandbox),
        *_bubblewrap(sandbox, privileged=privileged),
        "--",
        *_become(privileged),
        *command,
    ]


def _limits(sandbox: Sandbox) -> list[str]:
    prlimit = find_program("prlimit", package="util-linux")
    # No core dumps: they would hold the session key.
    return [prlimit, "--core=0", f"--nofile={_OPEN_FILES}", f"--as={sandbox.memory_bytes}", "--"]


def _bubblewrap(sandbox: Sandbox, *, privileged: bool) -> list[str]:
    # No session of its own inside: whoever starts it makes one (`start_child`), and has all of it in one
    # process group. Until bubblewrap has everything ready, what it forked does not die with its parent.
    arguments = [
        find_program("bwrap", package="bubblewrap"),
        "--die-with-parent",
        "--clearenv",
    ]
    # numpy's linear algebra, of which nothing is used, would start a thread for each processor.
    arguments += ["--setenv", "LANG", "C.UTF-8", "--setenv", "OPENBLAS_NUM_THREADS", "1"]
    arguments += ["--unshare-ipc", "--unshare-pid", "--unshare-uts"]
    arguments += ["--unshare-cgroup-try", "--hostname", "affiant", "--cap-drop", "ALL"]
    if not sandbox.network:
        arguments += ["--unshare-net"]
    if privileged:
        for capability in ("CAP_SETUID", "CAP_SETGID", "CAP_SETPCAP"):  # for setpriv, which gives them up
            arguments += ["--cap-add", capability]
    else:
        arguments += ["--unshare-user", "--uid", str(NOBODY), "--gid", str(NOBODY)]
    arguments += ["--ro-bind", str(sandbox.image), "/", "--tmpfs", "/dev"]
    for device in ("/dev/null", "/dev/urandom"):
        arguments += ["--dev-bind", device, device]
    arguments += ["--remount-ro", "/dev"]
    for source, target in sandbox.read_only:
        arguments += ["--ro-bind", str(source), target]
    for source, target in sandbox.writable:
        arguments += ["--bind", str(source), target]
    if sandbox.network:
        arguments += ["--tmpfs", "/etc"]
        for path in _NAME_SERVICE:
            arguments += ["--ro-bind-try", path, path]
        arguments += ["--remount-ro", "/etc"]
    return [*arguments, "--chdir", "/"]


def _become(privileged: bool) -> list[str]:
    if not privileged:
        return []
    return [
        "/bin/setpriv",
        *(f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", "--no-new-privs"),
        *("--bounding-set=-all", "--inh-caps=-all", "--ambient-caps=-all"),
        "--",
    ]
