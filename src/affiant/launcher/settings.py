"""What a launcher is told about its guest; a JSON file without secrets, written by `affiant.vm`."""

from __future__ import annotations

import json
import types
import typing
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from affiant.model.errors import SetupError
from affiant.wire.rules_path import DEFAULT_FLEET, FLEET

__all__ = ["LAUNCHER_QMP", "MOST_KEPT_FACTS", "TPM_SOCKET", "LauncherSettings"]

TPM_SOCKET = "{tpm_socket}"
"""In QEMU's arguments: stands for the socket of the gateway (`-chardev socket,id=tpm,path=...`)."""

LAUNCHER_QMP = "{launcher_qmp}"
"""In QEMU's arguments: stands for the launcher's own QMP socket (`server=on,wait=off`)."""

MOST_KEPT_FACTS = 100_000
"""How many fact records a launcher keeps at most; each has up to 1 MiB, most have 64 KiB or less."""

_LIMIT = 1 << 20
_MIB = 1 << 20
_SOCKET_PATH_LIMIT = 107  # unix(7)


@dataclass(frozen=True, slots=True)
class LauncherSettings:
    """One guest. All paths are absolute.

    `qemu` is QEMU's whole argument list, with the placeholders above in it. `ram` does not exist yet:
    the launcher makes it, `memory_bytes` long, and removes it; `below_4g_bytes` of it lie below 4 GiB.
    `state_folder` exists; the launcher writes `launcher.pid`, `status.json` and logs there, and keeps
    the TPM in `tpm/`. `vtpm_authority` is the folder of the CA for EK certificates, `image_cache`
    that of measured images. `passport_socket` is where the relay answers, in a folder of its own.

    `service` (URL) and `service_root` (PEM file) come together; without them there is no monitor, no
    relay and no D-RTM launch: the guest runs, and nothing is sworn about it. `debug` makes the monitor
    debuggable, which its reports say.

    `rules_root` is the root file under which the monitor takes published rules; without one it judges by
    the library in its image alone. `rules` is where the relay fetches them (None: from the service),
    `fleet` for which fleet, and every `rules_interval_ms` they are asked for.
    `keep_facts` is how many fact records are kept in `facts/` (0: none), one every
    `keep_facts_seconds` and one more at each first sight of a violation; they are sealed to the public
    key in the PEM file `facts_key`, if there is one.
    """

    name: str
    state_folder: Path
    qemu: tuple[str, ...]
    ram: Path
    memory_bytes: int
    below_4g_bytes: int
    vtpm_authority: Path
    image_cache: Path
    references: Path
    passport_socket: Path
    tpm: bool = True
    service: str | None = None
    service_root: Path | None = None
    debug: bool = False
    rules_root: Path | None = None
    rules: str | None = None
    fleet: str = DEFAULT_FLEET
    rules_interval_ms: int = 5_000
    keep_facts: int = 0
    keep_facts_seconds: int = 600
    facts_key: Path | None = None

    def __post_init__(self) -> None:
        for name, path in self._paths():
            if not path.is_absolute():
                raise SetupError(f"launcher settings: {name} is not an absolute path: {path}")
        if not self.name or len(self.name) > 64:
            raise SetupError("launcher settings: a name has 1 to 64 characters")
        if not 0 < self.below_4g_bytes <= self.memory_bytes or self.memory_bytes % _MIB:
            raise SetupError("launcher settings: the memory sizes do not fit each other")
        if (self.service is None) != (self.service_root is None):
            raise SetupError("launcher settings: a service needs both its address and its root certificate")
        if self.rules_root is None and self.rules:
            raise SetupError("launcher settings: published rules need a root file to be verified by")
        if not 1_000 <= self.rules_interval_ms <= 3_600_000:
            raise SetupError(
                "launcher settings: rules are asked for every second at most, and each hour at least"
            )
        if not FLEET.fullmatch(self.fleet):
            raise SetupError(
                f"launcher settings: {self.fleet!r} is no name for a fleet",
                hint="use 1 to 63 of a-z, 0-9 and -, beginning with a letter or digit",
            )
        if not 0 <= self.keep_facts <= MOST_KEPT_FACTS or not 1 <= self.keep_facts_seconds <= 86_400:
            raise SetupError(
                f"launcher settings: 0 to {MOST_KEPT_FACTS} fact records are kept, every 1 to 86400 seconds"
            )
        if self.keep_facts and self.service is None:
            raise SetupError(
                "facts are kept by a monitor, which needs a service", hint="--service URL --service-root PEM"
            )
        if self.facts_key is not None and not self.keep_facts:
            raise SetupError("a key for facts is of no use where none are kept", hint="--keep-facts N")
        if not self.qemu or self._mentions(TPM_SOCKET) != self.tpm or not self._mentions(LAUNCHER_QMP):
            raise SetupError(
                f"launcher settings: qemu must hold {LAUNCHER_QMP}, and {TPM_SOCKET} just if tpm is true"
            )
        if self.passport_socket.parent == self.state_folder:
            raise SetupError("launcher settings: the passport socket needs a folder of its own")
        for path in (self.launcher_qmp, self.tpm_socket, self.cpus_socket, self.passport_socket):
            if len(str(path).encode()) > _SOCKET_PATH_LIMIT:
                raise SetupError(
                    f"the socket path {path} is longer than {_SOCKET_PATH_LIMIT} bytes",
                    hint="set AFFIANT_HOME to a shorter folder",
                )

    @property
    def private_folder(self) -> Path:
        """Where the launcher's sockets are, readable by the launcher's user alone."""
        return self.state_folder / "launcher"

    @property
    def launcher_qmp(self) -> Path:
        """The launcher's own QMP socket."""
        return self.private_folder / "qmp.sock"

    @property
    def tpm_socket(self) -> Path:
        """Where QEMU finds the gateway."""
        return self.private_folder / "tpm.sock"

    @property
    def cpus_socket(self) -> Path:
        """Where the machine's owner gets what QEMU saves of the vCPUs."""
        return self.private_folder / "cpus.sock"

    @property
    def facts_folder(self) -> Path:
        """Folder of kept fact records."""
        return self.state_folder / "facts"

    @property
    def tpm_state(self) -> Path:
        """Folder of the TPM's state."""
        return self.state_folder / "tpm"

    def qemu_arguments(self) -> list[str]:
        """Return QEMU's arguments with the socket paths in place."""
        places = {TPM_SOCKET: str(self.tpm_socket), LAUNCHER_QMP: str(self.launcher_qmp)}
        arguments = list(self.qemu)
        for placeholder, path in places.items():
            arguments = [argument.replace(placeholder, path.replace(",", ",,")) for argument in arguments]
        return arguments

    def to_json(self) -> str:
        """Write the settings as `from_json` reads them."""
        plain = {
            name: str(value) if isinstance(value, Path) else value for name, value in asdict(self).items()
        }
        return json.dumps(plain, indent=1)

    @classmethod
    def load(cls, path: Path) -> LauncherSettings:
        """Read a settings file. Raises `SetupError` when it cannot be read or is no such file."""
        try:
            with path.open(encoding="utf-8") as file:
                return cls.from_json(file.read(_LIMIT))
        except (OSError, UnicodeDecodeError) as error:
            raise SetupError(f"the launcher's settings cannot be read: {error}") from error

    @classmethod
    def from_json(cls, text: str) -> LauncherSettings:
        """Read settings; unknown, missing or mistyped fields raise `SetupError`."""
        try:
            document = json.loads(text)
        except ValueError as error:
            raise SetupError(f"launcher settings: not JSON: {error}") from error
        if not isinstance(document, dict):
            raise SetupError("launcher settings: not a JSON object")
        types_of_fields = typing.get_type_hints(cls)
        if unknown := sorted(set(document) - set(types_of_fields)):
            raise SetupError(f"launcher settings: unknown field {unknown[0]}")
        try:
            return cls(
                **{name: _read(name, value, types_of_fields[name]) for name, value in document.items()}
            )
        except TypeError as error:
            raise SetupError(f"launcher settings: {error}") from error

    def _paths(self) -> list[tuple[str, Path]]:
        return [(f.name, value) for f in fields(self) if isinstance(value := getattr(self, f.name), Path)]

    def _mentions(self, placeholder: str) -> bool:
        return any(placeholder in argument for argument in self.qemu)


def _read(name: str, value: Any, expected: Any) -> Any:
    if isinstance(expected, types.UnionType):
        return None if value is None else _read(name, value, typing.get_args(expected)[0])
    if expected is Path and isinstance(value, str):
        return Path(value)
    if (
        expected == tuple[str, ...]
        and isinstance(value, list)
        and all(isinstance(part, str) for part in value)
    ):
        return tuple(value)
    if type(value) is not expected:
        raise TypeError(f"{name} has the wrong type")
    return value
