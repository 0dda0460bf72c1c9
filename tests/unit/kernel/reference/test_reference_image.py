"""Loading reference images, whole ones and hostile ones."""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from affiant.kernel.reference import ReferenceImage, build_reference
from affiant.kernel.reference.container import MAGIC, Part, PartKind, decode_container, encode_container
from affiant.kernel.reference.sites import SITE
from affiant.kernel.reference.store import ReferenceStore
from affiant.model.errors import MalformedError, UnavailableError
from tests.unit.kernel.reference.tiny_kernel import TEXT, TinyKernel


@pytest.fixture(scope="module")
def image_bytes(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("kernel") / "package.deb"
    path.write_bytes(TinyKernel().package())
    return build_reference(path)


def sealed(body: bytes) -> bytes:
    """The bytes with a digest that matches them: what a forger would hand in."""
    return body + hashlib.sha256(body).digest()


def bent(image: bytes, name: str, change: Callable[[bytes], bytes]) -> bytes:
    """The image with the contents of one part changed, and everything around it made to fit."""
    parts = [
        Part(
            name=part.name,
            kind=part.kind,
            data=change(bytes(part.data)) if part.name == name else part.data,
            address=part.address,
            load_address=part.load_address,
            size=part.size,
            writable=part.writable,
            executable=part.executable,
        )
        for part in decode_container(image).parts
    ]
    return encode_container(parts)


def with_metadata(image: bytes, **values: Any) -> bytes:
    def change(data: bytes) -> bytes:
        return json.dumps({**json.loads(data), **values}, sort_keys=True, separators=(",", ":")).encode()

    return bent(image, "metadata", change)


def test_digest_is_that_of_the_file(image_bytes: bytes) -> None:
    assert ReferenceImage.load(image_bytes).digest == hashlib.sha256(image_bytes).digest()


def test_mapped_file_and_bytes_are_the_same_image(image_bytes: bytes, tmp_path: Path) -> None:
    path = tmp_path / "image"
    path.write_bytes(image_bytes)
    mapped, held = ReferenceImage.load(path), ReferenceImage.load(image_bytes)
    assert mapped.digest == held.digest
    assert np.array_equal(mapped.sites, held.sites)
    assert mapped.modules == held.modules
    assert mapped.section(".text")[1].readonly


def test_encoding_a_decoded_image_gives_it_back(image_bytes: bytes) -> None:
    assert encode_container(decode_container(image_bytes).parts) == image_bytes


def test_part_of_an_unknown_kind_is_skipped(image_bytes: bytes) -> None:
    parts = [*decode_container(image_bytes).parts, Part(name="later", kind=77, data=b"of a later version")]
    assert ReferenceImage.load(encode_container(parts)).release


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_flipped_bit_is_refused(image_bytes: bytes, data: st.DataObject) -> None:
    position = data.draw(st.integers(0, len(image_bytes) * 8 - 1))
    broken = bytearray(image_bytes)
    broken[position // 8] ^= 1 << position % 8
    with pytest.raises(MalformedError):
        ReferenceImage.load(bytes(broken))


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_truncated_or_extended_image_is_refused(image_bytes: bytes, data: st.DataObject) -> None:
    length = data.draw(st.integers(0, len(image_bytes) - 1))
    with pytest.raises(MalformedError):
        ReferenceImage.load(image_bytes[:length])
    with pytest.raises(MalformedError):
        ReferenceImage.load(image_bytes + bytes(data.draw(st.integers(1, 100))))


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_sealed_nonsense_ends_in_one_kind_of_error(image_bytes: bytes, data: st.DataObject) -> None:
    """Whoever makes a file can also make its digest: then the structure has to hold by itself."""
    body = bytearray(image_bytes[:-32])
    # Mostly headers, directory and metadata, where structure is.
    end = data.draw(st.sampled_from([24, 6000, 20000, len(body)]))
    for _ in range(data.draw(st.integers(1, 4))):
        body[data.draw(st.integers(0, min(end, len(body)) - 1))] = data.draw(st.integers(0, 255))
    try:
        image = ReferenceImage.load(sealed(bytes(body)))
        image.relocated_text(image.alignment if image.alignment < 1 << 30 else 0)
        for number in range(len(image.tables)):
            image.table_entries(number)
        for site in image.sites[:4]:
            image.symbols.at(int(site["address"]))
        assert len(image.modules) <= 2
        image.types.member("tiny", "e.d")
    except MalformedError:
        pass


@pytest.mark.parametrize(
    ("offset", "value", "why"),
    [
        (0, b"NOTHING", "not a reference image"),
        (15, b"\x02", "not a reference image of this version"),
        (16, struct.pack("<I", 5000), "contradicts"),
        (20, b"\x01", "contradicts"),
        (24, b"\x01", "contradicts"),
    ],
)
def test_bent_header_is_refused(image_bytes: bytes, offset: int, value: bytes, why: str) -> None:
    body = bytearray(image_bytes[:-32])
    body[offset : offset + len(value)] = value
    with pytest.raises(MalformedError, match=why):
        ReferenceImage.load(sealed(bytes(body)))


def test_bytes_that_belong_to_no_part_are_refused(image_bytes: bytes) -> None:
    container = decode_container(image_bytes)
    start = 32 + 112 * len(container.parts)
    assert start % 64, "the test needs padding behind the directory"
    body = bytearray(image_bytes[:-32])
    body[start] = 1
    with pytest.raises(MalformedError, match="belong to no part"):
        ReferenceImage.load(sealed(bytes(body)))


def test_parts_that_overlap_are_refused() -> None:
    body = bytearray(encode_container([Part("a", 2, b"x" * 64), Part("b", 2, b"y" * 64)])[:-32])
    second = 32 + 112 + 64 + 8 + 24
    body[second : second + 8] = struct.pack("<Q", 256)
    with pytest.raises(MalformedError, match="out of place"):
        decode_container(sealed(bytes(body)))


def test_two_parts_of_one_name_are_refused() -> None:
    with pytest.raises(MalformedError, match="one name"):
        decode_container(encode_container([Part("a", 2, b"x"), Part("a", 2, b"y")]))


@pytest.mark.parametrize(
    "missing", ["metadata", "sites", "symbols.name", "relocations.absolute64", ".text", ".rodata"]
)
def test_missing_part_is_refused(image_bytes: bytes, missing: str) -> None:
    parts = [part for part in decode_container(image_bytes).parts if part.name != missing]
    with pytest.raises(MalformedError):
        ReferenceImage.load(encode_container(parts))


def test_sections_in_another_order_are_refused(image_bytes: bytes) -> None:
    parts = list(decode_container(image_bytes).parts)
    parts.reverse()
    with pytest.raises(MalformedError, match="overlaps another"):
        ReferenceImage.load(encode_container(parts))


def test_section_of_two_sizes_is_refused() -> None:
    with pytest.raises(MalformedError, match="two sizes"):
        decode_container(encode_container([Part(".text", PartKind.SECTION, b"abc", size=4)]))


@pytest.mark.parametrize(
    ("part", "change", "why"),
    [
        ("symbols.size", lambda data: data[:-4], "differ in length"),
        ("symbols.address", lambda data: data[:16][::-1] + data[16:], "not in order"),
        ("symbols.name", lambda data: data.replace(b"\n", b" ", 1), "names are broken"),
        ("symbols.name", lambda data: b"\xff" + data[1:], "not ASCII"),
        ("symbols.type", lambda data: b"\x00" + data[1:], "not ASCII"),
        ("relocations.absolute64", lambda data: data[:-1], "truncated"),
        ("relocations.absolute64", lambda data: data[8:] + data[:8], "not in order"),
        ("sites", lambda data: data[:-1], "truncated"),
        ("sites", lambda data: data[SITE.itemsize :] + data[: SITE.itemsize], "not in order"),
        ("metadata", lambda data: data[:-1], "metadata is broken"),
        ("metadata", lambda data: data + b" ", "metadata is broken"),
        ("metadata", lambda data: b"[]", "metadata is broken"),
    ],
)
def test_bent_part_is_refused(
    image_bytes: bytes, part: str, change: Callable[[bytes], bytes], why: str
) -> None:
    with pytest.raises(MalformedError, match=why):
        ReferenceImage.load(bent(image_bytes, part, change))


@pytest.mark.parametrize(
    ("field", "value", "why"),
    [
        ("length", 0, "not in order"),
        ("kind", 99, "contradicts its table"),
        ("table", 1000, "belongs to no table"),
        ("entry", 1 << 30, "contradicts its table"),
        ("address", TEXT - 4, "not in code"),
    ],
)
def test_bent_site_is_refused(image_bytes: bytes, field: str, value: int, why: str) -> None:
    def change(data: bytes) -> bytes:
        sites = np.frombuffer(data, dtype=SITE).copy()
        sites[field][0] = value
        return sites.tobytes()

    with pytest.raises(MalformedError, match=why):
        ReferenceImage.load(bent(image_bytes, "sites", change))


def test_site_of_a_class_that_this_version_does_not_know_is_refused(image_bytes: bytes) -> None:
    """An older reader must not accept differences at places it knows nothing about."""
    tables = json.loads(bytes(_part(image_bytes, "metadata")))["tables"]
    tables[0]["kind"] = 250
    with pytest.raises(MalformedError, match="metadata is broken"):
        ReferenceImage.load(with_metadata(image_bytes, tables=tables))


@pytest.mark.parametrize(
    "values",
    [
        {"kernel_file_digest": "00"},
        {"kernel_file_digest": "AB" * 32},
        {"authenticode_digest": 5},
        {"build_id": "zz"},
        {"release": "6.1\n"},
        {"release": None},
        {"alignment": 3 << 40},
        {"alignment": True},
        {"alignment": 2097153},
        {"unknown_sections": "text"},
        {"package": {"name": "x"}},
        {"package": []},
        {"package": {"name": "a\nb", "version": "1", "architecture": "amd64"}},
        {"tables": 5},
        {"extra": 1},
    ],
)
def test_bent_metadata_is_refused(image_bytes: bytes, values: dict[str, Any]) -> None:
    with pytest.raises(MalformedError, match="metadata is broken"):
        ReferenceImage.load(with_metadata(image_bytes, **values))


@pytest.mark.parametrize(
    "place", [("address", TEXT - 64), ("count", 1 << 40), ("count", -1), ("address", 0.5)]
)
def test_table_outside_sections_is_refused(image_bytes: bytes, place: tuple[str, Any]) -> None:
    tables = json.loads(bytes(_part(image_bytes, "metadata")))["tables"]
    tables[0][place[0]] = place[1]
    with pytest.raises(MalformedError):
        ReferenceImage.load(with_metadata(image_bytes, tables=tables))


@pytest.mark.parametrize("index", [b"{}", b"[1]", b'[{"name":"x"}]', b"[" * 100_000, b"\xff"])
def test_bent_module_index_is_refused_when_asked_for(image_bytes: bytes, index: bytes) -> None:
    image = ReferenceImage.load(bent(image_bytes, "modules", lambda data: index))
    with pytest.raises(MalformedError):
        image.modules  # noqa: B018 - reading it is the test


def test_reading_outside_sections_is_told(image_bytes: bytes) -> None:
    image = ReferenceImage.load(image_bytes)
    with pytest.raises(KeyError):
        image.section(".nothing")
    with pytest.raises(KeyError):
        image.read(TEXT + 0x1FFF, 2)
    assert bytes(image.read(TEXT + 0x1FFF, 1)) == b"\x90"


def test_absent_and_empty_files_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(UnavailableError):
        ReferenceImage.load(tmp_path / "absent")
    (tmp_path / "empty").touch()
    with pytest.raises(MalformedError):
        ReferenceImage.load(tmp_path / "empty")


def test_store_finds_by_the_digest_of_the_kernel_file(image_bytes: bytes, tmp_path: Path) -> None:
    store = ReferenceStore(tmp_path / "references")
    assert store.paths() == ()
    image = ReferenceImage.load(image_bytes)
    assert store.find(image.kernel_file_digest) is None
    path = store.save(image_bytes)
    assert path.read_bytes() == image_bytes
    assert store.paths() == (path,)
    found = store.find(image.kernel_file_digest)
    assert found is not None and found.digest == image.digest
    assert store.find(bytes(32)) is None


def test_store_refuses_a_file_under_another_kernels_name(image_bytes: bytes, tmp_path: Path) -> None:
    store = ReferenceStore(tmp_path)
    store.path_for(bytes(32)).write_bytes(image_bytes)
    with pytest.raises(MalformedError, match="another kernel"):
        store.find(bytes(32))


def test_store_saves_nothing_but_reference_images(tmp_path: Path) -> None:
    store = ReferenceStore(tmp_path)
    with pytest.raises(MalformedError):
        store.save(MAGIC + b"nonsense")
    assert list(tmp_path.iterdir()) == []


def test_store_that_cannot_be_written_is_told(image_bytes: bytes, tmp_path: Path) -> None:
    (tmp_path / "references").touch()
    with pytest.raises(UnavailableError):
        ReferenceStore(tmp_path / "references").save(image_bytes)


def _part(image: bytes, name: str) -> memoryview:
    return next(memoryview(part.data) for part in decode_container(image).parts if part.name == name)
