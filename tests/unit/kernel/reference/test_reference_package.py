"""Packages that lie, and what the command line says of them."""

from __future__ import annotations

import contextlib
import io
import json
import lzma
import re
import tarfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from affiant.cli import main
from affiant.kernel.reference import build_reference
from affiant.kernel.reference import package as package_module
from affiant.kernel.reference.package import package_files, package_name
from affiant.model.errors import AffiantError, MalformedError
from tests.unit.kernel.reference import tiny_files, tiny_kernel
from tests.unit.kernel.reference.tiny_files import RELEASE
from tests.unit.kernel.reference.tiny_kernel import TinyKernel

ANY = re.compile(r".*", re.DOTALL)


def test_files_and_name_of_a_package() -> None:
    package = tiny_files.deb({"./a/b": b"one", "/c": b"two"})
    assert [(file.path, file.data) for file in package_files(package, ANY)] == [
        ("a/b", b"one"),
        ("c", b"two"),
    ]
    name = package_name(package)
    assert (name.name, name.version, name.architecture) == ("linux-image-tiny", "6.1-1", "amd64")


@pytest.mark.parametrize(
    "control",
    [
        "Version: 1\nArchitecture: amd64\n",
        "Package: UPPER\nVersion: 1\nArchitecture: amd64\n",
        "Package: a\nVersion: 1 2\nArchitecture: amd64\n",
        "Package: a\nVersion: 1\n",
        "nonsense",
    ],
)
def test_control_file_without_a_proper_name_is_refused(control: str) -> None:
    with pytest.raises(MalformedError):
        package_name(tiny_files.deb({}, control=control))


def test_links_and_devices_are_no_files() -> None:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.DIRTYPE):
            entry = tarfile.TarInfo("./boot/vmlinuz-1")
            entry.type, entry.linkname = kind, "/etc/passwd"
            archive.addfile(entry)
    package = tiny_files.deb({}).replace(lzma.compress(_empty_tar(), preset=0), b"")
    package = _with_data(package, out.getvalue())
    assert list(package_files(package, ANY)) == []


def test_truncated_package_is_refused() -> None:
    package = tiny_files.deb({"./a": bytes(range(256)) * 40}, compression="none")
    for length in (8, 30, 70, len(package) - 3000, len(package) - 1):
        with pytest.raises(MalformedError):
            list(package_files(package[:length], ANY))


def test_package_that_unpacks_to_too_much_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(package_module, "_MAX_UNPACKED", 1 << 20)
    package = tiny_files.deb({f"./{n}": bytes(400 << 10) for n in range(5)})
    with pytest.raises(MalformedError, match="more than is accepted"):
        list(package_files(package, ANY))


def test_package_of_too_many_files_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(package_module, "_MAX_MEMBERS", 3)
    with pytest.raises(MalformedError, match="more than 3 files"):
        list(package_files(tiny_files.deb({f"./{n}": b"" for n in range(5)}), ANY))


def test_file_that_is_too_large_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(package_module, "_MAX_FILE", 100)
    with pytest.raises(MalformedError, match="larger than"):
        list(package_files(tiny_files.deb({"./a": bytes(101)}), ANY))


def test_archive_member_that_reaches_beyond_the_package_is_refused() -> None:
    package = bytearray(tiny_files.deb({"./a": b"x"}))
    package[8 + 48 : 8 + 58] = b"99999999  "
    with pytest.raises(MalformedError, match="truncated"):
        list(package_files(bytes(package), ANY))


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_bent_package_ends_in_one_kind_of_error(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    package = bytearray(tiny_files.deb({"./boot/vmlinuz-1": b"x" * 2000}, compression="none"))
    for _ in range(data.draw(st.integers(1, 4))):
        package[data.draw(st.integers(8, len(package) - 1))] = data.draw(st.integers(0, 255))
    try:
        for file in package_files(bytes(package), ANY):
            assert len(file.data) <= len(package)
    except MalformedError:
        pass


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_bent_kernel_ends_in_an_error_for_people(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    kernel = bytearray(_KERNEL)
    for _ in range(data.draw(st.integers(1, 4))):
        kernel[data.draw(st.integers(0, len(kernel) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.getbasetemp() / "bent-kernel"
    path.write_bytes(bytes(kernel))
    with contextlib.suppress(AffiantError):
        assert build_reference(path)


_KERNEL = TinyKernel().vmlinux()


def test_build_show_and_list(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("AFFIANT_HOME", str(tmp_path / "home"))
    package = tmp_path / "linux-image.deb"
    package.write_bytes(TinyKernel().package())
    assert main(["reference", "list"]) == 0
    assert "no reference images yet" in capsys.readouterr().out
    assert main(["reference", "build", str(package), "--json"]) == 0
    built = json.loads(capsys.readouterr().out)
    assert Path(built["path"]).parent == tmp_path / "home" / "references"
    assert Path(built["path"]).stem == built["kernel_file_digest"]
    assert main(["reference", "show", built["path"], "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["release"] == RELEASE and shown["digest"] == built["digest"]
    assert shown["sites_by_class"]["jump-label"] == 2
    assert main(["reference", "show", built["path"]]) == 0
    assert ".rodata" in capsys.readouterr().out
    assert main(["reference", "list"]) == 0
    assert built["path"] in capsys.readouterr().out


def test_output_goes_where_it_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kernel, out = tmp_path / "vmlinuz", tmp_path / "here" / "image"
    kernel.write_bytes(TinyKernel().bzimage())
    assert main(["reference", "build", str(kernel), "-o", str(out)]) == 0
    assert str(out) in capsys.readouterr().out
    assert main(["reference", "show", str(out)]) == 0


@pytest.mark.parametrize(("content", "code"), [(b"text", 2), (b"!<arch>\n", 2), (b"\x7fELF", 2), (None, 2)])
def test_unusable_input_is_one_line_and_exit_code_two(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes | None, code: int
) -> None:
    path = tmp_path / "input"
    if content is not None:
        path.write_bytes(content)
    assert main(["reference", "build", str(path), "-o", str(tmp_path / "out")]) == code
    errors = capsys.readouterr().err
    assert errors.startswith("error: ") and errors.count("error:") == 1
    assert not (tmp_path / "out").exists()


def test_broken_image_in_the_store_does_not_hide_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("AFFIANT_HOME", str(tmp_path))
    kernel = tmp_path / "vmlinuz"
    kernel.write_bytes(TinyKernel().bzimage())
    assert main(["reference", "build", str(kernel)]) == 0
    (tmp_path / "references" / "0000.reference").write_bytes(b"broken")
    capsys.readouterr()
    assert main(["reference", "list", "--json"]) == 2
    shown = capsys.readouterr()
    assert [row["release"] for row in json.loads(shown.out)] == [RELEASE]
    assert "0000.reference" in shown.err


def test_unknown_sections_are_told_when_built(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kernel = TinyKernel()
    new = tiny_files.Section(".new_sites", tiny_kernel.INIT + 0x8000, bytes(8), 2)
    path = tmp_path / "vmlinux"
    path.write_bytes(tiny_files.elf([*kernel.sections(), new]) + kernel.tail())
    assert main(["reference", "build", str(path), "-o", str(tmp_path / "out")]) == 0
    assert ".new_sites" in capsys.readouterr().err


def _empty_tar() -> bytes:
    out = io.BytesIO()
    tarfile.open(fileobj=out, mode="w").close()
    return out.getvalue()


def _with_data(package: bytes, tar: bytes) -> bytes:
    """The package with other contents: its data member is the last one."""
    start = package.index(b"data.tar")
    header = b"data.tar".ljust(48) + str(len(tar)).encode().ljust(10) + b"`\n"
    return package[:start] + header + tar
