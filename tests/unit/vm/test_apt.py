"""Deriving a suite's sources from a machine's, without its host's network."""

from __future__ import annotations

from pathlib import Path

import pytest

from affiant.model.errors import SetupError, UnavailableError
from affiant.vm.apt import Apt, Source, derive_sources, read_sources

_DEB822 = """\
Types: deb deb-src
# a comment in the middle
URIs: http://mirror.example/debian
Suites: bookworm bookworm-updates
Components: main
  contrib
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg

Types: deb
URIs: http://mirror.example/security
Suites: bookworm-security
Components: main

Types: deb
Enabled: no
URIs: http://disabled.example/
Suites: bookworm
Components: main

Types: deb-src
URIs: http://source.example/
Suites: bookworm
Components: main

Types: deb
URIs: http://inline-key.example/
Suites: bookworm
Components: main
Signed-By:
 -----BEGIN PGP PUBLIC KEY BLOCK-----
 .
 abc
 -----END PGP PUBLIC KEY BLOCK-----
"""

_KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"


def test_deb822_sources_are_read() -> None:
    assert read_sources(_DEB822, deb822=True) == [
        Source("http://mirror.example/debian", "bookworm", ("main", "contrib"), _KEYRING),
        Source("http://mirror.example/debian", "bookworm-updates", ("main", "contrib"), _KEYRING),
        Source("http://mirror.example/security", "bookworm-security", ("main",), ""),
    ]


def test_one_line_sources_are_read() -> None:
    text = (
        "# deb http://off.example/ bookworm main\n"
        "deb [arch=amd64 signed-by=/k.gpg] http://a.example/debian bookworm main contrib # why\n"
        "deb-src http://a.example/debian bookworm main\n"
        "deb http://b.example/debian bookworm-updates main\n"
    )
    assert read_sources(text, deb822=False) == [
        Source("http://a.example/debian", "bookworm", ("main", "contrib"), "/k.gpg"),
        Source("http://b.example/debian", "bookworm-updates", ("main",), ""),
    ]


def test_another_suite_keeps_mirror_and_key() -> None:
    derived = derive_sources(read_sources(_DEB822, deb822=True), machine="bookworm", suite="trixie")
    assert [source.line() for source in derived] == [
        f"deb [arch=amd64 signed-by={_KEYRING}] http://mirror.example/debian trixie main",
        f"deb [arch=amd64 signed-by={_KEYRING}] http://mirror.example/debian trixie-updates main",
        "deb [arch=amd64] http://mirror.example/security trixie-security main",
    ]


def test_a_rolling_suite_has_no_pockets() -> None:
    derived = derive_sources(read_sources(_DEB822, deb822=True), machine="bookworm", suite="sid")
    assert [source.suite for source in derived] == ["sid"]


@pytest.mark.parametrize("suite", ["nodistro", "bookworm-backports", "bookworm-proposed-updates", "trixie"])
def test_foreign_sources_are_left_out(suite: str) -> None:
    """Third-party packages never become part of a guest's boot chain by a likeness of names."""
    source = Source("http://x.example/", suite, ("main",))
    assert derive_sources([source], machine="bookworm", suite="sid") == []


@pytest.mark.parametrize("suite", ["", "../x", "Trixie", "a" * 60, "x y"])
def test_a_suite_must_be_a_name(suite: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not the name of a Debian suite"):
        Apt(tmp_path, suite)


def test_no_matching_source_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sources = tmp_path / "only.list"
    sources.write_text("deb http://x.example/ bookworm contrib\n")
    monkeypatch.setenv("AFFIANT_APT_SOURCES", str(sources))
    with pytest.raises(SetupError, match="no apt source") as caught:
        Apt(tmp_path / "apt", "trixie").update()
    assert "AFFIANT_APT_SOURCES" in caught.value.hint


def test_a_silent_mirror_is_told_with_advice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An unreachable mirror is the world's failure, not the person's, and the hint says what to check."""
    folder = tmp_path / "empty-mirror"
    folder.mkdir()
    sources = tmp_path / "only.list"
    sources.write_text(f"deb file:{folder} bookworm main\n")
    monkeypatch.setenv("AFFIANT_APT_SOURCES", str(sources))
    apt = tmp_path / "apt"
    with pytest.raises(UnavailableError, match=r"apt-get update .*bookworm.*E:") as caught:
        Apt(apt, "bookworm").update()
    assert "network" in caught.value.hint
    assert not (apt / "updated").exists()
