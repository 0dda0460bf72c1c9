"""The package cache, over a mirror made in the test: real apt and dpkg, no network."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
from pathlib import Path

import pytest

from affiant.model.errors import SetupError, UnavailableError
from affiant.vm import apt as apt_module
from affiant.vm.kernels import debian_kernel, kernel_from_file
from affiant.vm.packages import PackageCache

pytestmark = pytest.mark.skipif(
    shutil.which("dpkg-deb") is None or shutil.which("apt-get") is None, reason="needs apt and dpkg"
)


def _build(mirror: Path, name: str, files: dict[str, bytes], depends: str = "") -> Path:
    root = mirror / "build" / name
    for path, data in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(data)
    (root / "DEBIAN").mkdir(parents=True)
    control = f"Package: {name}\nVersion: 1.0-1\nArchitecture: amd64\nMaintainer: T <t@example.org>\n"
    control += f"Depends: {depends}\n" if depends else ""
    (root / "DEBIAN/control").write_text(control + "Description: made by a test\n")
    deb = mirror / f"{name}_1.0-1_amd64.deb"
    subprocess.run(["dpkg-deb", "-Zgzip", "--build", root, deb], check=True, capture_output=True)
    return deb


def _index(mirror: Path) -> None:
    """Write the list of packages that apt reads, as a flat repository has it."""
    stanzas = []
    for deb in sorted(mirror.glob("*.deb")):
        control = subprocess.run(["dpkg-deb", "-f", deb], check=True, capture_output=True, text=True).stdout
        digest = subprocess.run(
            ["sha256sum", deb], check=True, capture_output=True, text=True
        ).stdout.split()[0]
        stanzas.append(f"{control}Filename: {deb.name}\nSize: {deb.stat().st_size}\nSHA256: {digest}\n")
    folder = mirror / "dists/bookworm/main/binary-amd64"
    folder.mkdir(parents=True, exist_ok=True)
    packages = "\n".join(stanzas)
    (folder / "Packages").write_text(packages)
    digest = hashlib.sha256(packages.encode()).hexdigest()
    (mirror / "dists/bookworm/Release").write_text(
        "Suite: bookworm\nCodename: bookworm\nComponents: main\nArchitectures: amd64\nSHA256:\n"
        f" {digest} {len(packages)} main/binary-amd64/Packages\n"
    )


@pytest.fixture
def mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "mirror"
    folder.mkdir()
    image = "linux-image-9.9.0-1-cloud-amd64"
    modules = "lib/modules/9.9.0-1-cloud-amd64/kernel/drivers/net"
    _build(folder, "linux-image-cloud-amd64", {}, depends=f"{image} (= 1.0-1)")
    _build(
        folder,
        image,
        {
            "boot/vmlinuz-9.9.0-1-cloud-amd64": b"kernel",
            f"{modules}/first-one.ko": b"\0depends=second\0name=first_one\0",
            f"{modules}/second.ko": b"\0depends=\0name=second\0",
        },
    )
    _index(folder)
    sources = tmp_path / "test.list"
    # A mirror in a folder has no signature; real sources have, and apt insists on it.
    sources.write_text(f"deb [trusted=yes] file:{folder} bookworm main\n")
    monkeypatch.setenv("AFFIANT_APT_SOURCES", str(sources))
    monkeypatch.setattr(
        apt_module.Source, "line", lambda source: f"deb [trusted=yes] {source.uri} {source.suite} main"
    )
    return folder


def test_a_meta_package_becomes_its_kernel(mirror: Path, tmp_path: Path) -> None:
    cache = PackageCache(tmp_path / "cache")
    kernel = debian_kernel(cache, suite="bookworm")
    assert kernel.release == "9.9.0-1-cloud-amd64"
    assert kernel.vmlinuz.read_bytes() == b"kernel"
    assert kernel.packages[0].name == "linux-image-9.9.0-1-cloud-amd64_1.0-1_amd64.deb"
    assert kernel.reference_source == kernel.packages[0]
    assert (kernel.modules_package, kernel.configuration_package) == (None, None)


def test_a_kernel_that_is_packaged_in_parts_is_put_together(mirror: Path, tmp_path: Path) -> None:
    """As Debian does since 7.x: the image package is empty."""
    release = "9.10.0-cloud-amd64"
    folder = f"usr/lib/modules/{release}"
    _build(mirror, "linux-image-next-amd64", {}, depends=f"linux-image-{release} (= 1.0-1)")
    _build(mirror, f"linux-image-{release}", {})
    _build(mirror, f"linux-binary-{release}", {f"{folder}/vmlinuz": b"kernel"})
    _build(mirror, f"linux-modules-{release}", {f"{folder}/kernel/one.ko": b"\0depends=\0name=one\0"})
    _build(mirror, f"linux-base-{release}", {f"{folder}/config": b"CONFIG_X86_64=y\n"})
    _index(mirror)
    kernel = debian_kernel(PackageCache(tmp_path / "cache"), "linux-image-next-amd64", suite="bookworm")
    assert (kernel.release, kernel.vmlinuz.read_bytes()) == (release, b"kernel")
    assert [name for name, _ in kernel.module_chain("one")] == ["one"]
    parts = (kernel.reference_source, kernel.modules_package, kernel.configuration_package)
    assert [part and part.name.split("-")[1] for part in parts] == ["binary", "modules", "base"]


def test_modules_come_after_what_they_need(mirror: Path, tmp_path: Path) -> None:
    kernel = debian_kernel(PackageCache(tmp_path / "cache"), suite="bookworm")
    assert [name for name, _ in kernel.module_chain("first_one", "absent")] == ["second", "first_one"]


def test_a_cached_package_needs_no_mirror(mirror: Path, tmp_path: Path) -> None:
    cache = PackageCache(tmp_path / "cache")
    first = cache.fetch("linux-image-cloud-amd64", suite="bookworm")
    shutil.rmtree(mirror)
    assert cache.fetch("linux-image-cloud-amd64", suite="bookworm") == first


def test_a_changed_file_in_the_cache_is_fetched_again(mirror: Path, tmp_path: Path) -> None:
    """The digest recorded when the package was fetched is checked at each use."""
    cache = PackageCache(tmp_path / "cache")
    package = cache.fetch("linux-image-cloud-amd64", suite="bookworm")
    good = package.path.read_bytes()
    package.path.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    again = cache.fetch("linux-image-cloud-amd64", suite="bookworm")
    assert again == package
    assert again.path.read_bytes() == good


def test_a_package_changed_after_the_check_is_not_unpacked(mirror: Path, tmp_path: Path) -> None:
    cache = PackageCache(tmp_path / "cache")
    package = cache.fetch("linux-image-cloud-amd64", suite="bookworm")
    package.path.write_bytes(b"something else")
    with pytest.raises(SetupError, match="changed"):
        cache.unpack(package.path, sha256=package.sha256)


def test_a_mirror_with_other_bytes_than_its_list_is_refused(mirror: Path, tmp_path: Path) -> None:
    deb = mirror / "linux-image-9.9.0-1-cloud-amd64_1.0-1_amd64.deb"
    data = deb.read_bytes()
    deb.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    cache = PackageCache(tmp_path / "cache")
    with pytest.raises(UnavailableError):
        cache.fetch("linux-image-cloud-amd64", suite="bookworm")
    assert not list((tmp_path / "cache").glob("packages/*.deb"))


def test_an_unknown_package_is_told(mirror: Path, tmp_path: Path) -> None:
    with pytest.raises(SetupError, match="has no package 'no-such-thing'"):
        PackageCache(tmp_path / "cache").fetch("no-such-thing", suite="bookworm")


@pytest.mark.parametrize("name", ["", "-o", "a b", "../x", "x=1", "Upper"])
def test_a_package_name_is_never_an_option(name: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not the name"):
        PackageCache(tmp_path).fetch(name, suite="bookworm")


def test_what_is_no_package_is_not_unpacked(tmp_path: Path) -> None:
    path = tmp_path / "broken.deb"
    path.write_bytes(b"!<arch>\nnot really")
    with pytest.raises(SetupError, match="no usable Debian package"):
        PackageCache(tmp_path / "cache").unpack(path)
    assert not list((tmp_path / "cache/unpacked").iterdir())


def test_a_kernel_file_is_told_by_its_header(tmp_path: Path) -> None:
    image = tmp_path / "vmlinuz-1.2.3"
    image.write_bytes(bytes(0x202) + b"HdrS" + bytes(100))
    kernel = kernel_from_file(image, PackageCache(tmp_path / "cache"))
    assert (kernel.release, kernel.modules, kernel.reference_source) == ("1.2.3", None, image)
    image.write_bytes(b"\x7fELF" + bytes(1000))
    with pytest.raises(SetupError, match="neither"):
        kernel_from_file(image, PackageCache(tmp_path / "cache"))
