"""Debian's own kernels, where their packages are in the cache (`affiant vm start` fetches them)."""

from __future__ import annotations

import os
import re
import time
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from affiant.kernel.reference import ReferenceImage, SiteClass, build_reference
from affiant.kernel.reference.package import package_files, read_bounded

pytestmark = pytest.mark.slow

SERIES = ("6.1", "6.12", "7")


@dataclass(frozen=True)
class Built:
    """`data` and `seconds` of one build; `kernel_file` as the package holds it."""

    data: bytes
    seconds: float
    kernel_file: bytes


@cache
def built(series: str) -> Built:
    """Build the newest cached cloud kernel of a series once for this run; skip if there is none."""
    pattern = re.compile(rf"linux-(image|binary)-({re.escape(series)}\.[0-9][^_]*-cloud-amd64)_.+\.deb")
    # The image package is empty where the kernel is packaged apart, since 7.x.
    found = [path for path in _cached() if pattern.fullmatch(path.name) and path.stat().st_size > 1 << 20]
    if not found:
        pytest.skip(f"no package of a {series} cloud kernel in the cache (set AFFIANT_CACHE)")
    package = found[-1]
    match = pattern.fullmatch(package.name)
    assert match
    modules = configuration = None
    if match[1] == "binary":
        # The version stands behind the first underscore: others of this release may be in the cache.
        version = package.name.partition("_")[2]
        parts = {path.name: path for path in _cached()}
        modules = parts.get(f"linux-modules-{match[2]}_{version}")
        configuration = parts.get(f"linux-base-{match[2]}_{version}")
    start = time.process_time()
    data = build_reference(package, modules=modules, configuration=configuration)
    seconds = time.process_time() - start
    kernel = re.compile(r"boot/vmlinuz-.+|usr/lib/modules/[^/]+/vmlinuz")
    files = list(package_files(read_bounded(package), kernel))
    return Built(data=data, seconds=seconds, kernel_file=files[0].data)


def _cached() -> list[Path]:
    named = os.environ.get("AFFIANT_CACHE")
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "affiant"
    return sorted((Path(named) if named else base).glob("packages/*.deb"))


@pytest.fixture(params=SERIES)
def series(request: pytest.FixtureRequest) -> str:
    value: str = request.param
    return value


def test_kernel_names_itself(series: str) -> None:
    image = ReferenceImage.load(built(series).data)
    assert image.release.startswith(f"{series}.") and image.release.endswith("-cloud-amd64")
    assert image.banner.startswith(f"Linux version {image.release} (debian-kernel@lists.debian.org)")
    assert len(image.build_id) == 20
    assert image.metadata.unknown_sections == ()


def test_kernel_is_known_to_lock_down_and_to_verify_modules(series: str) -> None:
    """Without this, no machine with it comes to level 4."""
    metadata = ReferenceImage.load(built(series).data).metadata
    assert (metadata.locks_down, metadata.verifies_modules) == (True, True)


def test_authenticode_digest_is_the_one_that_debian_signed(series: str) -> None:
    """The PKCS #7 signature at the end of the file holds the digest that was signed."""
    image = ReferenceImage.load(built(series).data)
    assert image.authenticode_digest is not None
    assert image.authenticode_digest in built(series).kernel_file[-65536:]


def test_symbols_agree_with_the_sections(series: str) -> None:
    image = ReferenceImage.load(built(series).data)
    for name, section in (("_text", ".text"), ("__start_rodata", ".rodata"), ("_sdata", ".data")):
        symbol = image.symbols.unique(name)
        assert symbol is not None and symbol.address == image.section(section)[0]
    assert len(image.symbols) > 80_000
    table = image.symbols.unique("sys_call_table")
    assert table is not None
    entries = np.frombuffer(image.read(table.address, 8 * 440), dtype="<u8")
    names = {found[0].name for entry in entries if (found := image.symbols.at(int(entry))) and found[1] == 0}
    assert {"__x64_sys_read", "__x64_sys_openat2"} <= names


def test_every_class_of_patch_site_is_there(series: str) -> None:
    image = ReferenceImage.load(built(series).data)
    kinds = {SiteClass(int(kind)) for kind in np.unique(image.sites["kind"])}
    newer = {
        SiteClass.CALL,
        SiteClass.CALL_PADDING,
        SiteClass.ENDBR,
        SiteClass.RUNTIME_SHIFT,
        SiteClass.RUNTIME_POINTER,
    }
    older = {SiteClass.PARAVIRT}
    common = set(SiteClass) - newer - older
    assert kinds == common | (older if series == "6.1" else newer)


def test_sites_do_not_cover_the_text(series: str) -> None:
    """Places that may differ are a small part, 7 % to 14 %; else comparing text would prove little."""
    image = ReferenceImage.load(built(series).data)
    address, text = image.section(".text")
    sites = image.sites_between(address, address + len(text))
    assert int(sites["length"].astype(np.int64).sum()) < len(text) // 6


def test_types_know_the_task(series: str) -> None:
    image = ReferenceImage.load(built(series).data)
    for path in ("pid", "comm", "real_cred", "se.vruntime"):
        member = image.types.member("task_struct", path)
        assert member is not None and member.bit_offset % 8 == 0
    comm = image.types.member("task_struct", "comm")
    assert comm is not None and image.types.size(comm.type_id) == 16


def test_modules_are_indexed(series: str) -> None:
    image = ReferenceImage.load(built(series).data)
    by_name = {module.name: module for module in image.modules}
    assert len(by_name) == len(image.modules) > 900
    module = by_name["virtio_net"]
    assert (
        module.signed
        and module.vermagic.startswith(image.release)
        and 0 < module.text_size <= module.code_size
    )


def test_relocated_pointers_point_into_the_moved_kernel(series: str) -> None:
    image = ReferenceImage.load(built(series).data)
    slide = 0x12 * image.alignment
    address, _ = image.section(".rodata")
    moved = image.relocated_section(".rodata", slide)
    table = image.symbols.unique("sys_call_table")
    read = image.symbols.unique("__x64_sys_read")
    assert table is not None and read is not None
    offset = table.address - address
    assert int(moved[offset : offset + 8].view("<u8")[0]) == read.address + slide


def test_same_package_gives_the_same_digest() -> None:
    for path in [path for path in _cached() if path.name.startswith("linux-image-6.1.")][-1:]:
        again = build_reference(path)
        assert ReferenceImage.load(again).digest == ReferenceImage.load(built("6.1").data).digest
        return
    pytest.skip("no package of a 6.1 cloud kernel in the cache (set AFFIANT_CACHE)")


def test_build_and_load_are_quick(series: str) -> None:
    """Processor time; limits are three times what shared cores need, so that a slow machine passes."""
    assert built(series).seconds < 45
    start = time.process_time()
    image = ReferenceImage.load(built(series).data)
    assert time.process_time() - start < 1.0
    start = time.process_time()
    image.relocated_text(image.alignment)
    assert time.process_time() - start < 1.0
    assert len(built(series).data) < 80 << 20
