"""Unified kernel images as files: the kernel in them, and what names the whole."""

from __future__ import annotations

import hashlib
import struct

import pytest

from affiant.kernel.reference.unified_image import read_unified_file
from affiant.model.errors import MalformedError
from tests.unit.kernel.reference.tiny_files import pe

SECTIONS = {".text": b"the stub", ".linux": b"a kernel" * 100, ".cmdline": b"ro quiet", ".initrd": b"archive"}


def test_the_kernel_is_what_was_put_in_without_its_padding() -> None:
    found = read_unified_file(pe(SECTIONS))
    assert found.kernel == hashlib.sha256(b"a kernel" * 100).digest()


def test_a_signature_changes_nothing_of_what_names_an_image() -> None:
    assert read_unified_file(pe(SECTIONS, certificates=b"signature")) == read_unified_file(pe(SECTIONS))


@pytest.mark.parametrize("name", SECTIONS)
def test_each_section_counts_for_what_names_the_image(name: str) -> None:
    """A command line or an initial RAM disk that was exchanged makes another image of the same kernel."""
    bent = read_unified_file(pe({**SECTIONS, name: SECTIONS[name] + b"!"}))
    assert bent.authenticode != read_unified_file(pe(SECTIONS)).authenticode
    assert (bent.kernel == read_unified_file(pe(SECTIONS)).kernel) == (name != ".linux")


def test_an_addon_has_no_kernel() -> None:
    assert read_unified_file(pe({".sbat": b"x", ".cmdline": b"quiet"})).kernel is None


def test_a_program_that_is_neither_is_refused() -> None:
    """A boot loader may start anything, and would be taken for an add-on that starts nothing."""
    with pytest.raises(MalformedError, match="another program"):
        read_unified_file(pe({".text": b"a boot loader", ".sbat": b"x"}))


def test_what_is_no_image_of_one_kernel_is_refused() -> None:
    two = bytearray(pe({".linux": b"one", ".linuz": b"two"}))
    at = two.index(b".linuz")
    two[at : at + 6] = b".linux"
    longer = bytearray(pe(SECTIONS))
    struct.pack_into("<I", longer, longer.index(b".linux") + 8, 4096)
    for data, said in (
        (bytes(two), "2 kernels"),
        (bytes(longer), "longer than what the file holds"),
        (b"", "not a PE file"),
        (pe(SECTIONS)[:-512], "reach beyond the file"),
    ):
        with pytest.raises(MalformedError, match=said):
            read_unified_file(data)
