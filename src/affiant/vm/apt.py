"""An apt configuration of our own for one Debian suite, beside the machine's.

The machine's sources are read, Debian's own are kept, and the suite's name is replaced; mirrors,
proxies and keyrings stay as the machine's administrator chose them. Lists and status lie in the
cache folder, so nothing of the machine's package state is read or changed, and no privileges are
needed. apt verifies every download against the suite's signed lists.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

from affiant.model.errors import SetupError, UnavailableError

__all__ = ["Apt", "Source", "derive_sources", "machine_suite", "read_sources"]

_LISTS_MAX_AGE = 24 * 3600  # seconds; older lists name packages that mirrors no longer hold
_ROLLING_SUITES = ("sid", "unstable", "testing")  # these have no -updates and -security beside them
_SUITE = re.compile(r"[a-z][a-z0-9-]{1,40}")
_ADVICE = "check the network and this machine's apt sources (`apt-get update` must work)"
_OTHER_SOURCES = "set AFFIANT_APT_SOURCES to a file with Debian sources (see docs/install.md)"


@dataclass(frozen=True, slots=True)
class Source:
    """One binary package source: a base address, a suite, and the key that signs it ('' if apt's own)."""

    uri: str
    suite: str
    components: tuple[str, ...]
    signed_by: str = ""

    def line(self) -> str:
        """Return the source as one line of apt's sources.list(5)."""
        options = f"[arch=amd64 signed-by={self.signed_by}]" if self.signed_by else "[arch=amd64]"
        return f"deb {options} {self.uri} {self.suite} {' '.join(self.components)}"


def read_sources(text: str, *, deb822: bool) -> list[Source]:
    """Return the binary package sources in a sources.list(5) file, one-line or deb822 style.

    Disabled entries, source packages, and entries with an inline key are left out.
    """
    return _read_deb822(text) if deb822 else _read_lines(text)


def _read_lines(text: str) -> list[Source]:
    sources = []
    for line in text.splitlines():
        match = re.match(r"\s*deb\s+(?:\[([^\]]*)\]\s+)?(\S+)\s+(\S+)\s+([^#]+)", line)
        if match:
            options = dict(part.partition("=")[::2] for part in (match[1] or "").split())
            sources.append(Source(match[2], match[3], tuple(match[4].split()), options.get("signed-by", "")))
    return sources


def _read_deb822(text: str) -> list[Source]:
    sources = []
    without_comments = "\n".join(line for line in text.splitlines() if not line.startswith("#"))
    for stanza in re.split(r"\n\s*\n", without_comments):
        fields = {}
        for match in re.finditer(r"^([A-Za-z-]+):[ \t]*(.*(?:\n[ \t].*)*)", stanza, re.MULTILINE):
            fields[match[1].lower()] = " ".join(match[2].split())
        if "deb" not in fields.get("types", "").split() or fields.get("enabled", "yes") == "no":
            continue
        signed_by = fields.get("signed-by", "")
        if signed_by and not signed_by.startswith("/"):
            continue
        sources += [
            Source(uri, suite, tuple(fields.get("components", "").split()), signed_by)
            for uri in fields.get("uris", "").split()
            for suite in fields.get("suites", "").split()
        ]
    return sources


def derive_sources(sources: list[Source], *, machine: str, suite: str) -> list[Source]:
    """Return the sources of another `suite`, from those that name the suite of this `machine`.

    An entry counts when its suite is the machine's, or the machine's with -updates or -security,
    and it has the component `main`, the only one that is used.
    """
    derived = []
    for source in sources:
        base, dash, pocket = source.suite.partition("-")
        if base != machine or pocket not in ("", "updates", "security") or "main" not in source.components:
            continue
        if dash and suite in _ROLLING_SUITES:
            continue
        derived.append(Source(source.uri, suite + dash + pocket, ("main",), source.signed_by))
    return list(dict.fromkeys(derived))


def machine_suite() -> str:
    """Return the code name of this machine's Debian release, such as `bookworm`.

    Raises SetupError where /etc/os-release tells of another distribution.
    """
    try:
        lines = Path("/etc/os-release").read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise SetupError(f"cannot tell this machine's distribution: {error}") from error
    fields = dict(shlex.split(line)[0].partition("=")[::2] for line in lines if "=" in line)
    if fields.get("ID") != "debian" or not (name := fields.get("VERSION_CODENAME")):
        system = fields.get("PRETTY_NAME", "an unknown system")
        raise SetupError(f"guest packages come from Debian, and this is {system}", hint=_OTHER_SOURCES)
    return name


def _configured_sources() -> tuple[list[Source], str]:
    """Return the sources to derive from, and the suite that they are written for."""
    if named := os.environ.get("AFFIANT_APT_SOURCES"):
        path = Path(named)
        try:
            sources = read_sources(path.read_text(encoding="utf-8"), deb822=path.suffix == ".sources")
        except OSError as error:
            raise SetupError(f"cannot read AFFIANT_APT_SOURCES: {error}") from error
        if not sources:
            raise SetupError(f"{named} has no binary package source")
        return sources, sources[0].suite.partition("-")[0]
    machine = machine_suite()
    folder = Path("/etc/apt")
    sources = []
    for path in sorted([*folder.glob("sources.list"), *folder.glob("sources.list.d/*")]):
        if path.suffix in (".list", ".sources"):
            sources += read_sources(path.read_text(encoding="utf-8"), deb822=path.suffix == ".sources")
    return sources, machine


class Apt:
    """apt for one suite, with lists in a `folder` of its own. Not safe for two users at once: lock it."""

    def __init__(self, folder: Path, suite: str) -> None:
        if not _SUITE.fullmatch(suite):
            raise ValueError(f"not the name of a Debian suite: {suite!r}")
        self.suite = suite
        self._folder = folder
        self._configuration = folder / "apt.conf"
        self._stamp = folder / "updated"

    def update(self, *, refresh: bool = False) -> None:
        """Fetch the suite's lists if they are missing, older than a day, or `refresh` is asked for.

        Raises UnavailableError when the mirror does not answer and SetupError when the machine's
        apt sources are not Debian's.
        """
        if not refresh and self._configuration.exists() and self._fresh():
            return
        sources, machine = _configured_sources()
        derived = derive_sources(sources, machine=machine, suite=self.suite)
        if not derived:
            raise SetupError(
                f"no apt source of this machine serves Debian's {machine!r}, to derive {self.suite!r} from",
                hint=_OTHER_SOURCES,
            )
        self._write_configuration(derived)
        self.run("apt-get", "update", "--error-on=any", "-qq")
        self._stamp.touch()

    def _fresh(self) -> bool:
        try:
            return time.time() - self._stamp.stat().st_mtime < _LISTS_MAX_AGE
        except FileNotFoundError:
            return False

    def _write_configuration(self, sources: list[Source]) -> None:
        for name in ("lists/partial", "cache/archives/partial", "preferences.d"):
            (self._folder / name).mkdir(parents=True, exist_ok=True)
        (self._folder / "status").touch()
        (self._folder / "sources.list").write_text(
            "".join(s.line() + "\n" for s in sources), encoding="utf-8"
        )
        settings = {
            "APT::Architecture": "amd64",
            "APT::Architectures": "amd64",
            "APT::Default-Release": "",
            "Acquire::Languages": "none",
            "Dir::Cache": f"{self._folder}/cache",
            "Dir::Etc::Preferences": "/dev/null",
            "Dir::Etc::PreferencesParts": f"{self._folder}/preferences.d",
            "Dir::Etc::SourceList": f"{self._folder}/sources.list",
            "Dir::Etc::SourceParts": "/dev/null",
            "Dir::State": str(self._folder),
            "Dir::State::Lists": f"{self._folder}/lists",
            "Dir::State::Status": f"{self._folder}/status",
            # The machine's hooks after an update are about its own packages (and want root).
            "APT::Update::Post-Invoke": None,
            "APT::Update::Post-Invoke-Success": None,
        }
        lines = [f"#clear {k};" if v is None else f'{k} "{v}";' for k, v in settings.items()]
        # apt drops to a user of its own for downloads; where that one cannot enter a private cache
        # folder it says so and carries on, which is noise here: signatures protect the content.
        lines.append('APT::Sandbox::User "root";')
        self._configuration.write_text("\n".join(lines) + "\n", encoding="utf-8")

    def run(self, *arguments: str, folder: Path | None = None) -> str:
        """Run one apt program in `folder` under this configuration and return what it wrote.

        Raises UnavailableError with apt's own first complaint when it fails.
        """
        environment = {**os.environ, "APT_CONFIG": str(self._configuration), "LC_ALL": "C"}
        try:
            done = subprocess.run(
                arguments,
                cwd=folder or self._folder,
                env=environment,
                capture_output=True,
                text=True,
                timeout=600,
                check=False,
            )
        except FileNotFoundError as error:
            raise SetupError(f"{arguments[0]} is not installed", hint="see docs/install.md") from error
        except subprocess.TimeoutExpired as error:
            raise UnavailableError(f"{' '.join(arguments)} did not finish in time", hint=_ADVICE) from error
        if done.returncode != 0:
            complaints = [line for line in done.stderr.splitlines() if line.startswith(("E:", "W:"))]
            first = complaints[0] if complaints else f"exit code {done.returncode}"
            raise UnavailableError(f"{' '.join(arguments[:3])} ({self.suite}): {first}", hint=_ADVICE)
        return done.stdout

    def show(self, name: str) -> dict[str, str]:
        """Return the control fields of the newest version of a package, keys in lower case.

        Raises SetupError when the suite has no such package.
        """
        try:
            text = self.run("apt-cache", "show", "--no-all-versions", name)
        except UnavailableError as error:
            raise SetupError(f"Debian {self.suite} has no package {name!r}") from error
        fields: dict[str, str] = {}
        for match in re.finditer(
            r"^([A-Za-z0-9-]+):[ \t]*(.*)", text.split("\n\n", maxsplit=1)[0], re.MULTILINE
        ):
            fields[match[1].lower()] = match[2].strip()
        if "version" not in fields:
            raise SetupError(f"Debian {self.suite} has no package {name!r}")
        return fields
