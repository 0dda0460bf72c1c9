"""Which files an image is made of: interpreter, standard library, packages, shared libraries, our code.

The layout inside is the same wherever the files come from (a distribution's Python, one built by
hand, an editable install of ours), so that the same software has the same digest:

    env/bin/python3.X            the interpreter, in a virtual environment with the packages, because
    env/lib/python3.X/site-packages/      each distribution's Python looks for those in its own places
    python/lib/python3.X/        the standard library, without tests, tools and what needs a screen
    lib/                         the loader and every shared library that any of the files needs
    bin/setpriv                  drops the last privileges inside the sandbox
    dev, tmp, references, ...    empty, for the sandbox to mount on
"""

from __future__ import annotations

import ast
import importlib.metadata
import importlib.util
import os
import re
import subprocess
import sys
import sysconfig
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from affiant.launcher.process.children import find_program
from affiant.model.errors import SetupError

__all__ = ["MONITOR", "PYTHON", "RELAY", "ImageRecipe", "Source", "collect_sources"]

_VERSION = f"python{sys.version_info.major}.{sys.version_info.minor}"

PYTHON = f"/env/bin/{_VERSION}"
"""The interpreter's path inside an image."""

_LIBRARY = f"python/{sys.platlibdir}/{_VERSION}"
_SITE = f"env/lib/{_VERSION}/site-packages"


@dataclass(frozen=True, slots=True)
class ImageRecipe:
    """What an image is for: the package of ours that runs in it, and the distributions that it needs."""

    name: str
    entry: str
    distributions: tuple[str, ...]
    mount_points: tuple[str, ...]


MONITOR = ImageRecipe(
    "monitor",
    "affiant.monitor",
    ("cryptography", "drgn", "iced-x86", "lz4", "numpy", "pyelftools", "starlark-pyo3", "tuf", "zstandard"),
    ("dev", "tmp", "references"),
)
RELAY = ImageRecipe("relay", "affiant.relay", ("cryptography", "httpx"), ("dev", "tmp", "etc", "passports"))

# Of the standard library: tests, what builds or installs software, what needs a terminal or a screen.
_LEFT_OUT = frozenset(
    (
        *("test", "tests", "idlelib", "tkinter", "turtledemo", "turtle.py", "ensurepip", "lib2to3"),
        *("distutils", "pydoc_data", "venv", "sqlite3", "dbm", "curses", "site-packages", "dist-packages"),
        *("__pycache__", "sitecustomize.py", "EXTERNALLY-MANAGED", "__phello__", "LICENSE.txt"),
    )
)
_LEFT_OUT_PATTERN = re.compile(
    r"config-.*|_test.*|_ctypes_test.*|_xx.*|xxlimited.*|_tkinter.*|_curses.*|_dbm.*|_gdbm.*|_sqlite3.*"
    r"|nis\..*|spwd\..*|ossaudiodev\..*"
)
_NOT_RUN = re.compile(
    r".*\.(pyc|pyi|pyx|pxd|h|hpp|c|cpp|a|o)"
)  # of packages: what a compiler or a reader needs
_LDD_LINE = re.compile(r"\s+(?:(?P<name>\S+) => )?(?P<path>/\S+|not found)(?: \(0x[0-9a-f]+\))?$")
_LDD_BATCH = 40


@dataclass(frozen=True, slots=True)
class Source:
    """One file of an image: `path` inside it, and the host's file that it is a copy of (or `content`)."""

    path: str
    origin: Path | None
    content: bytes = b""
    executable: bool = False


def collect_sources(recipe: ImageRecipe) -> list[Source]:
    """Return the files of an image, by path. Raises `SetupError` when something it needs is not installed."""
    interpreter = Path(sys.executable).resolve()
    sources = [
        Source(PYTHON.lstrip("/"), interpreter, executable=True),
        Source("env/pyvenv.cfg", None, b"home = /python/bin\ninclude-system-site-packages = false\n"),
        Source("bin/setpriv", Path(find_program("setpriv", package="util-linux")).resolve(), executable=True),
        *_standard_library(),
        *_distributions(recipe.distributions),
        *_own_modules(recipe.entry),
    ]
    sources += _shared_libraries(sources)
    by_path = {source.path: source for source in sources}
    return [by_path[path] for path in sorted(by_path)]


def _standard_library() -> Iterator[Source]:
    root = Path(sysconfig.get_path("stdlib"))
    for path in _files_below(root):
        yield Source(f"{_LIBRARY}/{path.relative_to(root)}", path.resolve())


def _files_below(root: Path) -> Iterator[Path]:
    for folder, folders, names in os.walk(root):
        folders[:] = sorted(name for name in folders if _is_wanted(name))
        for name in sorted(names):
            if _is_wanted(name):
                yield Path(folder, name)


def _is_wanted(name: str) -> bool:
    return name not in _LEFT_OUT and not _LEFT_OUT_PATTERN.fullmatch(name) and not _NOT_RUN.fullmatch(name)


def _distributions(names: Iterable[str]) -> Iterator[Source]:
    pending, seen = sorted(names), set()
    while pending:
        name = pending.pop(0)
        if (key := _normal(name)) in seen:
            continue
        seen.add(key)
        try:
            distribution = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            if key in map(_normal, names):
                raise SetupError(
                    f"the Python package {name!r} is not installed", hint="pip install 'affiant[monitor]'"
                ) from None
            continue  # a requirement of other platforms or versions
        pending += [required for required in map(_required_name, distribution.requires or ()) if required]
        for file in distribution.files or ():
            parts = file.parts
            if ".." in parts or {"tests", "__pycache__"} & set(parts) or _NOT_RUN.fullmatch(parts[-1]):
                continue
            if parts[0].endswith(".dist-info") and parts[-1] not in ("METADATA", "entry_points.txt"):
                continue
            yield Source(f"{_SITE}/{file.as_posix()}", Path(str(distribution.locate_file(file))).resolve())


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _required_name(requirement: str) -> str:
    specification, _, marker = requirement.partition(";")
    if "extra" in marker:
        return ""
    match = re.match(r"[A-Za-z0-9._-]+", specification)
    return match[0] if match else ""


def _own_modules(entry: str) -> Iterator[Source]:
    """Yield whole packages of ours that `entry` reaches through imports, without doors' command lines."""
    root = Path(importlib.util.find_spec("affiant").submodule_search_locations[0])  # type: ignore[union-attr,index]
    yield Source(f"{_SITE}/affiant/__init__.py", root / "__init__.py")
    pending, seen = [entry.split(".")[1]], set()
    while pending:
        if (package := pending.pop()) in seen:
            continue
        seen.add(package)
        if not (root / package).is_dir():
            raise SetupError(f"affiant.{package} is not installed")
        for path in sorted((root / package).rglob("*")):
            relative = path.relative_to(root)
            if not path.is_file() or "__pycache__" in relative.parts or relative.name == "commands.py":
                continue
            yield Source(f"{_SITE}/affiant/{relative.as_posix()}", path)
            if path.suffix == ".py":
                pending += sorted(_imported_packages(path))


def _imported_packages(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_bytes(), str(path))):
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            modules = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        found |= {module.split(".")[1] for module in modules if module.startswith("affiant.")}
    return found - {"__version__"}


def _shared_libraries(sources: list[Source]) -> list[Source]:
    """Return the loader and every library that the files need and that is not among them, for `lib/`."""
    elves = [source.origin for source in sources if source.origin and _is_elf(source.origin)]
    inside = set(elves)
    found: dict[str, Path] = {}
    for at in range(0, len(elves), _LDD_BATCH):
        for name, path in _needed(elves[at : at + _LDD_BATCH]):
            if path.resolve() in inside:
                continue  # beside the file that needs it, and found by its relative run path
            if found.setdefault(name, path.resolve()) != path.resolve():
                raise SetupError(f"two libraries are called {name}: {found[name]} and {path}")
    return [Source(f"lib/{name}", path, executable=True) for name, path in found.items()]


def _is_elf(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(4) == b"\x7fELF"


def _needed(paths: list[Path]) -> Iterator[tuple[str, Path]]:
    # ldd lets the loader itself resolve names, so that the image gets what the host would use.
    done = subprocess.run(
        [find_program("ldd", package="libc-bin"), *map(str, paths)],
        capture_output=True,
        text=True,
        check=False,
        env={"PATH": os.defpath, "LC_ALL": "C"},
    )
    for line in done.stdout.splitlines():
        if match := _LDD_LINE.match(line):
            if match["path"] == "not found":
                raise SetupError(f"the shared library {match['name']} is not installed")
            yield match["name"] or Path(match["path"]).name, Path(match["path"])
