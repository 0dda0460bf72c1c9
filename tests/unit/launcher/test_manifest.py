"""The manifest: every byte, mode, name and link of a folder decides the digest."""

from __future__ import annotations

import hashlib
import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from affiant.launcher.images.manifest import measure_folder
from affiant.model.errors import SetupError, UnavailableError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "image"
    (root / "lib").mkdir(parents=True)
    (root / "lib" / "a.so").write_bytes(b"a" * 5000)
    (root / "lib" / "b.so").write_bytes(b"b")
    (root / "empty").mkdir()
    (root / "lib64").symlink_to("lib")
    for path in (root, root / "lib", root / "empty"):
        path.chmod(0o755)
    for path in (root / "lib").iterdir():
        path.chmod(0o644)
    return root


def test_digest_follows_its_description(folder: Path) -> None:
    """Computed here by hand from the format in the module's docstring."""
    lines = [
        "affiant image manifest 1",
        "folder 0755 empty",
        "folder 0755 lib",
        f"file 0644 5000 {hashlib.sha256(b'a' * 5000).hexdigest()} lib/a.so",
        f"file 0644 1 {hashlib.sha256(b'b').hexdigest()} lib/b.so",
        "link 3 lib lib64",
    ]
    manifest = measure_folder(folder)
    assert manifest.digest == hashlib.sha256("".join(line + "\n" for line in lines).encode()).digest()
    assert (manifest.files, manifest.size) == (2, 5001)


def flip_a_byte(root: Path) -> None:
    path = root / "lib" / "a.so"
    data = bytearray(path.read_bytes())
    data[2500] ^= 1
    path.write_bytes(data)


def swap_files(root: Path) -> None:
    a, b = root / "lib" / "a.so", root / "lib" / "b.so"
    first, second = a.read_bytes(), b.read_bytes()
    a.write_bytes(second)
    b.write_bytes(first)


def redirect_link(root: Path) -> None:
    (root / "lib64").unlink()
    (root / "lib64").symlink_to("empty")


CHANGES: list[Callable[[Path], object]] = [
    flip_a_byte,
    swap_files,
    redirect_link,
    lambda root: (root / "lib" / "a.so").chmod(0o755),
    lambda root: (root / "empty").chmod(0o777),
    lambda root: (root / "lib" / "c.so").touch(),
    lambda root: (root / "lib" / "b.so").unlink(),
    lambda root: (root / "lib" / "b.so").rename(root / "lib" / "c.so"),
    lambda root: (root / "new").mkdir(),
    lambda root: (root / "empty").rmdir(),
]


@pytest.mark.parametrize("change", CHANGES)
def test_every_change_changes_the_digest(folder: Path, change: Callable[[Path], object]) -> None:
    before = measure_folder(folder).digest
    assert measure_folder(folder).digest == before
    change(folder)
    assert measure_folder(folder).digest != before


def test_times_and_order_of_making_do_not_count(folder: Path) -> None:
    before = measure_folder(folder).digest
    os.utime(folder / "lib" / "a.so", (1, 1))
    content = (folder / "lib" / "b.so").read_bytes()
    (folder / "lib" / "b.so").unlink()
    (folder / "lib" / "b.so").write_bytes(content)
    (folder / "lib" / "b.so").chmod(0o644)
    assert measure_folder(folder).digest == before


def test_set_user_id_is_refused(folder: Path) -> None:
    (folder / "lib" / "a.so").chmod(0o4755)
    with pytest.raises(SetupError, match="plain files"):
        measure_folder(folder)


def test_socket_is_refused(folder: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(folder / "s"))
        with pytest.raises(SetupError, match="plain files"):
            measure_folder(folder)


@pytest.mark.parametrize("name", ["a\nfile 0644 0 0 x", "tab\t", "\udcff"])
def test_name_that_could_forge_a_line_is_refused(folder: Path, name: str) -> None:
    (folder / name).touch()
    with pytest.raises(SetupError, match="named"):
        measure_folder(folder)


def test_missing_folder_is_told(tmp_path: Path) -> None:
    with pytest.raises(UnavailableError):
        measure_folder(tmp_path / "none")
