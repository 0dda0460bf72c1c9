"""Symbol tables in read-only data: every layout is found, and what contradicts itself is refused."""

from __future__ import annotations

import contextlib
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from affiant.kernel.reference.kallsyms import decode_kallsyms
from affiant.model.errors import MalformedError
from tests.unit.kernel.reference import tiny_kernel
from tests.unit.kernel.reference.tiny_kernel import RODATA, TEXT, TinyKernel


def _rodata(kernel: TinyKernel) -> bytearray:
    return bytearray(kernel.rodata())


@pytest.mark.parametrize("layout", tiny_kernel.LAYOUTS)
def test_symbols_without_text_where_it_must_be_are_refused(layout: str) -> None:
    rodata = _rodata(TinyKernel(layout=layout, percpu=False))
    with pytest.raises(MalformedError, match="not found"):
        decode_kallsyms(bytes(rodata), address=RODATA, text=TEXT + 0x1000)


def test_marker_that_contradicts_the_names_is_refused() -> None:
    kernel = TinyKernel()
    rodata = bytes(_rodata(kernel))
    table = rodata.index(b"tok000\0function_\0")
    marker = struct.unpack_from("<I", rodata, table - 4)[0] or struct.unpack_from("<I", rodata, table - 8)[0]
    assert marker
    bent = rodata.replace(struct.pack("<II", 0, marker), struct.pack("<II", 0, marker + 1))
    assert bent != rodata
    with pytest.raises(MalformedError, match="not found"):
        decode_kallsyms(bent, address=RODATA, text=TEXT)


def test_two_symbol_tables_are_refused() -> None:
    """Which one is the kernel's cannot be told, so neither is believed."""
    kernel = TinyKernel(percpu=False)
    rodata = bytes(_rodata(kernel))
    doubled = rodata + bytes(-len(rodata) % 8) + rodata
    with pytest.raises(MalformedError, match="two readings"):
        decode_kallsyms(doubled, address=RODATA, text=TEXT)


def test_addresses_that_do_not_ascend_are_refused() -> None:
    kernel = TinyKernel(percpu=False)
    blob = tiny_kernel.kallsyms(sorted(kernel.symbols, key=lambda s: -s[0]), "6.4", RODATA, percpu=False)
    with pytest.raises(MalformedError, match="not found"):
        decode_kallsyms(blob, address=RODATA, text=TEXT)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_bent_symbol_table_gives_an_error_or_bounded_symbols(data: st.DataObject) -> None:
    rodata = bytes(tiny_kernel.kallsyms(sorted(TinyKernel().symbols), "6.4", RODATA, percpu=True))
    bent = bytearray(rodata)
    for _ in range(data.draw(st.integers(1, 3))):
        bent[data.draw(st.integers(0, len(bent) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(MalformedError):
        assert len(decode_kallsyms(bytes(bent), address=RODATA, text=TEXT)) < len(rodata)


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=4096))
def test_noise_has_no_symbols(noise: bytes) -> None:
    with pytest.raises(MalformedError):
        decode_kallsyms(noise, address=RODATA, text=TEXT)
