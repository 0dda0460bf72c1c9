"""A real image: what is in it, and when it is made or measured anew."""

from __future__ import annotations

import os
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from affiant.launcher.images import image as image_module
from affiant.launcher.images.image import Image, prepare_image
from affiant.launcher.images.image_files import MONITOR, RELAY, ImageRecipe, collect_sources
from affiant.launcher.images.manifest import measure_folder
from affiant.model.errors import SetupError, UnavailableError
from tests.unit.launcher.small_image import SMALL, run_inside


def test_cached_image_is_measured_again_not_made_again(small: tuple[Path, Image]) -> None:
    cache, image = small
    inode = (image.folder / "bin" / "setpriv").stat().st_ino
    again = prepare_image(SMALL, cache)
    assert again.folder == image.folder
    assert again.manifest == image.manifest
    assert (again.folder / "bin" / "setpriv").stat().st_ino == inode
    os.close(again.hold)


@pytest.mark.slow
def test_same_software_has_the_same_digest_and_damage_is_mended(
    small: tuple[Path, Image], tmp_path: Path
) -> None:
    """Made from nothing in another cache; then a byte of it changes, which the next measuring notices."""
    cache = tmp_path / "cache"
    image = prepare_image(SMALL, cache)
    assert image.manifest == small[1].manifest
    victim = next(image.folder.rglob("argparse.py"))
    victim.chmod(0o644)
    with victim.open("r+b") as file:
        file.seek(100)
        file.write(b"EVIL")
    victim.chmod(0o444)
    assert measure_folder(image.folder).digest != image.digest
    again = prepare_image(SMALL, cache)
    assert again.digest == image.digest
    assert b"EVIL" not in next(again.folder.rglob("argparse.py")).read_bytes()[:200]


def test_new_file_of_an_installation_gives_a_new_image(
    small: tuple[Path, Image], monkeypatch: pytest.MonkeyPatch
) -> None:
    cache, image = small
    original = image_module.collect_sources

    def changed(recipe: ImageRecipe) -> list[Any]:
        return [
            replace(source, origin=None, content=b"changed")
            if source.path.endswith("model/level.py")
            else source
            for source in original(recipe)
        ]

    monkeypatch.setattr(image_module, "collect_sources", changed)
    monkeypatch.setattr(image_module, "_recall", lambda recipe, cache: None)
    assert prepare_image(SMALL, cache).digest != image.digest


def test_image_is_read_only_and_nothing_is_left_over(small: tuple[Path, Image]) -> None:
    _, image = small
    for entry in image.manifest.entries:
        assert entry.kind == "link" or not entry.mode & 0o222, entry.path
    paths = [entry.path for entry in image.manifest.entries]
    assert not [path for path in paths if f"{sys.version_info.minor}/test/" in path or "ensurepip" in path]
    assert not [path for path in paths if "/tests/" in path]
    assert not [path for path in paths if path.startswith("env/") and "/pip/" in path]


def test_unusable_cache_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UnavailableError, match="image cache"):
        prepare_image(SMALL, tmp_path / "file")


def test_missing_package_is_told() -> None:
    with pytest.raises(SetupError, match="no-such-package"):
        collect_sources(replace(SMALL, distributions=("no-such-package",)))


def test_monitor_and_relay_hold_what_they_need_and_nothing_of_each_other() -> None:
    monitor = {source.path for source in collect_sources(MONITOR)}
    relay = {source.path for source in collect_sources(RELAY)}
    assert any("affiant/monitor/__main__.py" in path for path in monitor)
    assert any(path.endswith(".star") for path in monitor)
    assert any("site-packages/drgn/" in path for path in monitor)
    assert any("affiant/relay/__main__.py" in path for path in relay)
    for foreign in (
        "site-packages/httpx/",
        "affiant/relay/",
        "affiant/service/",
        "affiant/launcher/",
        "affiant/vm/",
    ):
        assert not [path for path in monitor if foreign in path]
    for foreign in ("site-packages/drgn/", "affiant/monitor/", "affiant/service/", "affiant/launcher/"):
        assert not [path for path in relay if foreign in path]


@pytest.mark.slow
def test_everything_the_monitor_imports_is_in_its_image(tmp_path: Path) -> None:
    """The whole image, made for real: the monitor's and the relay's programs start in it."""
    with tempfile.TemporaryDirectory(prefix="affiant-images-") as cache:
        Path(cache).chmod(0o755)
        for recipe in (MONITOR, RELAY):
            image = prepare_image(recipe, Path(cache))
            module = f"{recipe.entry}.__main__"
            late = (
                "import drgn.helpers.linux, numpy.linalg; "
                "from securesystemslib.signer import CryptoSigner; "
                "from tuf.api.metadata import Metadata, Root; "
                "signer = CryptoSigner.generate_ed25519(); "
                "root = Root(); root.add_key(signer.public_key, 'root'); metadata = Metadata(root); "
                "metadata.sign(signer); read = Metadata.from_bytes(metadata.to_bytes()); "
                "root.verify_delegate('root', read.signed_bytes, read.signatures)"
                if recipe is MONITOR
                else "import anyio._backends._asyncio"
            )
            code = f"import {module}; {late}; print('imported')"
            assert run_inside(image, code, tmp_path) == (0, "imported\n")
        started = time.process_time()
        prepare_image(MONITOR, Path(cache))
        assert time.process_time() - started < 5  # 0.5 s of processor time
        image_module._remove(Path(cache))
        Path(cache).mkdir()
