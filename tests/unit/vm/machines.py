"""The state of a machine, as starting it would have written it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from affiant.vm.state import VmState


def state_of(name: str, folder: Path, **changes: object) -> VmState:
    """Return a state whose files are in `folder`, but for what `changes` name."""
    state = VmState(
        name=name,
        folder=folder,
        ram=folder / "ram",
        memory_bytes=1 << 30,
        below_4g_bytes=1 << 30,
        cpus=2,
        qmp=folder / "qmp.sock",
        console_socket=folder / "console.sock",
        console_log=folder / "console.log",
        passport_socket=folder / "relay/passport.sock",
        settings=folder / "settings.json",
        status=folder / "status.json",
        launcher_log=folder / "launcher.log",
        references=folder / "references",
        reference=None,
        kernel=Path("/boot/vmlinuz"),
        kernel_release="6.1",
        kernel_packages=(),
        tpm=False,
        secure_boot=False,
        firmware=False,
        acceleration="tcg",
    )
    return replace(state, **changes)  # type: ignore[arg-type]  # any field, by name
