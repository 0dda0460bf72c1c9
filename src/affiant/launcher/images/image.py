"""The monitor's image: a folder with every file that the monitor can see, measured at each launch.

The digest in the launch record covers the Python interpreter, the standard library, all shared
libraries with their loader, the packages that the monitor uses, Affiant's own code, and the bytecode
made of all that. It is computed from what is about to be mounted, each time.

It does not cover the host's kernel, bubblewrap and this launcher, which do the measuring and the
starting; nor the CPU and its microcode; nor the reference images, which a report names by digest. Who
is root on the host can change the folder between measuring and mounting: such a host is trusted.

Images are made once and kept in a cache: `images/DIGEST/`, files shared between images as hard links
to `objects/`, and `made/` that remembers which installation gave which image.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from affiant.launcher.images import bytecode, image_files
from affiant.launcher.images.image_files import ImageRecipe, Source, collect_sources
from affiant.launcher.images.manifest import Manifest, measure_folder
from affiant.model.errors import UnavailableError

__all__ = ["Image", "prepare_image"]

_log = logging.getLogger(__name__)

_BYTECODE = "affiant bytecode 1"  # raised when `bytecode` compiles in another way
_KEPT_IMAGES = 3
_FILE, _PROGRAM, _FOLDER = 0o444, 0o555, 0o555
_COMPILE_SECONDS = 300


@dataclass(frozen=True, slots=True)
class Image:
    """A measured image. `hold` is a descriptor: while it is open, the image stays in the cache."""

    folder: Path
    manifest: Manifest
    hold: int

    @property
    def digest(self) -> bytes:
        """SHA-256 over the manifest (32 bytes)."""
        return self.manifest.digest


def prepare_image(recipe: ImageRecipe, cache: Path) -> Image:
    """Make the image of this installation, unless the cache has it, and measure it.

    Raises `SetupError` when something that belongs into it is not installed, `UnavailableError` when
    the cache cannot be used.
    """
    cache = cache.absolute()
    try:
        for name in ("images", "objects", "made"):
            (cache / name).mkdir(mode=0o755, parents=True, exist_ok=True)
        with _locked(cache / ".lock"):
            return _recall(recipe, cache) or _renew(recipe, cache)
    except (OSError, subprocess.SubprocessError) as error:
        raise UnavailableError(f"the image cache {cache} cannot be used: {error}") from error


def _recall(recipe: ImageRecipe, cache: Path) -> Image | None:
    """Return the image made before, when no file of the installation has changed and the image is whole."""
    try:
        memory = json.loads(_memory(recipe, cache).read_text())
        if any(_stamp(Path(path)) != stamp for path, stamp in memory["stamps"].items()):
            return None
        folder = cache / "images" / memory["image"]
        hold = _hold(folder)
    except (OSError, ValueError, KeyError):
        return None
    manifest = measure_folder(folder)
    if manifest.digest.hex() == folder.name:
        os.utime(folder)
        return Image(folder, manifest, hold)
    os.close(hold)
    _log.warning("the image %s is not what it was: it is made anew", folder.name)
    shutil.rmtree(cache / "objects")  # one of them changed, and hard links share the change
    (cache / "objects").mkdir(mode=0o755)
    _remove(folder)
    return None


def _renew(recipe: ImageRecipe, cache: Path) -> Image:
    sources = collect_sources(recipe)
    origins = {source.origin for source in sources if source.origin}
    # A folder's time tells of files that came or went.
    stamps = {str(path): _stamp(path) for path in origins | {origin.parent for origin in origins}}
    folder, manifest = _make(recipe, sources, cache)
    _memory(recipe, cache).write_text(json.dumps({"image": folder.name, "stamps": stamps}))
    image = Image(folder, manifest, _hold(folder))
    _prune(cache)
    return image


def _memory(recipe: ImageRecipe, cache: Path) -> Path:
    key = hashlib.sha256(f"{recipe!r}\n{sys.version}\n{sys.executable}\n".encode())
    for maker in (image_files, bytecode):  # what decides which files there are, and how
        key.update(Path(str(maker.__file__)).read_bytes())
    return cache / "made" / f"{recipe.name}-{key.hexdigest()[:16]}.json"


def _stamp(path: Path) -> list[int]:
    """Return what changes whenever a file is replaced or written: a key of memory, not a proof."""
    status = path.stat()
    return [status.st_size, status.st_mtime_ns, status.st_ino]


def _make(recipe: ImageRecipe, sources: list[Source], cache: Path) -> tuple[Path, Manifest]:
    building = Path(tempfile.mkdtemp(dir=cache / "images", prefix=".building-"))
    try:
        objects = _Objects(cache / "objects")
        digests: dict[str, str] = {}
        for source in sources:
            content = source.origin.read_bytes() if source.origin else source.content
            digests[source.path] = objects.place(
                content, building / source.path, executable=source.executable
            )
        _place_bytecode(sources, digests, objects, building)
        for name in recipe.mount_points:
            (building / name).mkdir()
        (building / "lib64").symlink_to("lib")  # where programs of this architecture look for their loader
        for path, _, _ in os.walk(building):
            Path(path).chmod(_FOLDER)
        manifest = measure_folder(building)
        _check(manifest, digests, cache)
        folder = cache / "images" / manifest.digest.hex()
        if folder.exists():  # another installation of the same software
            _remove(building)
        else:
            building.rename(folder)
    except BaseException:
        _remove(building)
        raise
    return folder, manifest


def _check(manifest: Manifest, digests: dict[str, str], cache: Path) -> None:
    """Refuse an image that is not made of what was read: an object in the cache is damaged."""
    measured = {entry.path: entry.content for entry in manifest.entries}
    if wrong := [path for path, digest in digests.items() if measured.get(path) != digest]:
        raise UnavailableError(f"the image cache is damaged: {wrong[0]}", hint=f"remove {cache}")


def _place_bytecode(
    sources: list[Source], digests: dict[str, str], objects: _Objects, building: Path
) -> None:
    """Add a `__pycache__` beside each Python file; what was compiled before is taken from the objects."""
    todo: list[tuple[str, str, str]] = []
    places: list[tuple[Path, Path]] = []
    for source in sources:
        if not source.path.endswith(".py"):
            continue
        key = hashlib.sha256(
            f"{_BYTECODE}\0{sys.version}\0{source.path}\0{digests[source.path]}".encode()
        ).hexdigest()
        compiled = objects.folder / f"pyc-{key}"
        stem = building / source.path
        target = stem.parent / "__pycache__" / f"{stem.stem}.{sys.implementation.cache_tag}.pyc"
        places.append((compiled, target))
        if not compiled.exists():
            todo.append((str(stem), f"{compiled}.new", f"/{source.path}"))
    _compile(todo)
    for _, new, _ in todo:
        if Path(new).exists():
            Path(new).chmod(_FILE)
            Path(new).rename(new.removesuffix(".new"))
    for compiled, target in places:
        if compiled.exists():
            target.parent.mkdir(exist_ok=True)
            target.hardlink_to(compiled)


def _compile(todo: list[tuple[str, str, str]]) -> None:
    """Compile in processes of their own, whose hashes are not randomized, so that the result is the same."""
    workers = min(os.cpu_count() or 1, 4, len(todo))
    lists = [todo[at::workers] for at in range(workers)]
    processes = [
        subprocess.Popen(
            [sys.executable, "-W", "ignore", "-m", "affiant.launcher.images.bytecode"],
            stdin=subprocess.PIPE,
            text=True,
            env={
                "PYTHONHASHSEED": "0",
                "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
                "PATH": os.defpath,
            },
            cwd="/",
        )
        for _ in lists
    ]
    for process, lines in zip(processes, lists, strict=True):
        assert process.stdin is not None  # noqa: S101  it was asked for; the type does not know
        with process.stdin:
            process.stdin.writelines(json.dumps(line) + "\n" for line in lines)
    for process in processes:
        if process.wait(_COMPILE_SECONDS):
            raise UnavailableError("the image's Python files cannot be compiled")


class _Objects:
    """Files by content, each once; images hold hard links to them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def place(self, content: bytes, target: Path, *, executable: bool) -> str:
        """Make `target` hold `content`; return its SHA-256 (hex)."""
        digest = hashlib.sha256(content).hexdigest()
        stored = self.folder / f"{digest}-{'program' if executable else 'file'}"
        if not stored.exists():
            new = stored.with_suffix(".new")
            new.write_bytes(content)
            new.chmod(_PROGRAM if executable else _FILE)
            new.rename(stored)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.hardlink_to(stored)
        return digest

    def forget_unused(self) -> None:
        """Remove what no image links to."""
        for path in self.folder.iterdir():
            if path.stat().st_nlink == 1:
                path.unlink()


def _prune(cache: Path) -> None:
    """Remove images that nobody holds, beyond the latest few, and what an interrupted making left."""
    images = sorted((cache / "images").iterdir(), key=lambda path: path.stat().st_mtime, reverse=True)
    complete = [path for path in images if not path.name.startswith(".")]
    unused = [path for path in images if path.name.startswith(".")] + complete[_KEPT_IMAGES:]
    for folder in unused:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _remove(folder)
        except BlockingIOError:
            pass  # a launcher runs from it
        finally:
            os.close(descriptor)
    if unused:
        _Objects(cache / "objects").forget_unused()


def _remove(folder: Path) -> None:
    for path, _, _ in os.walk(folder):
        Path(path).chmod(0o755)
    shutil.rmtree(folder)


def _hold(folder: Path) -> int:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    fcntl.flock(descriptor, fcntl.LOCK_SH)
    return descriptor


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
