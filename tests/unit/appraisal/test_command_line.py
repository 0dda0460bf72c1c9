"""Kernel command lines as the kernel and its early code would read them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from affiant.appraisal.command_line import find_parameters, parameters
from affiant.appraisal.policy import AppraisalPolicy

DEFAULT = AppraisalPolicy()
DENIED = (*DEFAULT.debugging_parameters, *DEFAULT.weakening_parameters)


@pytest.mark.parametrize(
    "line",
    [
        "/vmlinuz root=/dev/vda1 ro quiet console=ttyS0,115200 panic=-1",
        "BOOT_IMAGE=/boot/vmlinuz-6.1.0 root=UUID=1 ro net.ifnames=0 mitigations=auto",
        "lockdown=integrity module.sig_enforce=1 rodata=on kaslr",
        "nokaslrx xnokaslr kernel.nokaslr",
        "",
    ],
)
def test_ordinary_lines_have_nothing_denied(line: str) -> None:
    assert find_parameters(line, DENIED) == ()


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("ro nokaslr quiet", "nokaslr"),
        ("ro kgdboc=ttyS0,115200", "kgdboc=ttyS0,115200"),
        ("ro kgdbwait", "kgdbwait"),
        ("kgdboc.kgdboc=ttyS0", "kgdboc.kgdboc=ttyS0"),
        ("module.sig-enforce=0", "module.sig_enforce=0"),
        ('module.sig_enforce="0"', "module.sig_enforce=0"),
        ('"module.sig_enforce=0"', "module.sig_enforce=0"),
        ("lockdown=none", "lockdown=none"),
        ("initcall-blacklist=a,b", "initcall_blacklist=a,b"),
        ("clearcpuid=smep,smap", "clearcpuid=smep,smap"),
        ("bootconfig", "bootconfig"),
        ("ro -- nokaslr", "nokaslr"),
        ('dyndbg="file x nokaslr +p"', "nokaslr"),
        ("ro\tnokaslr\nquiet", "nokaslr"),
    ],
)
def test_what_any_reading_would_see_is_found(line: str, found: str) -> None:
    """KASLR's early code looks for words inside quotes and behind `--`; so do we."""
    assert found in find_parameters(line, DENIED)


def test_a_value_pattern_denies_that_value_alone() -> None:
    assert find_parameters("rodata=on rodata=full", ("rodata=off",)) == ()
    assert find_parameters("rodata=off", ("rodata=off",)) == ("rodata=off",)
    assert find_parameters("rodata", ("rodata=off",)) == ()
    assert find_parameters("x=a,b", ("x=b",)) == ("x=a,b",)


@given(
    st.text(max_size=200), st.sampled_from(["nokaslr", "kgdbwait", "lockdown=none"]), st.text(max_size=200)
)
def test_a_word_on_its_own_is_found_whatever_stands_around_it(before: str, word: str, after: str) -> None:
    assert word in find_parameters(f"{before} {word} {after}", DENIED)


@given(st.text(max_size=500))
def test_any_text_is_read_without_an_error(line: str) -> None:
    assert all(parameters(line))
