"""The service's key files and the certificates made with them."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from affiant.model.errors import SetupError
from affiant.service.ca import create_authority, load_authority, root_path
from affiant.wire.certificates import load_root, verify_service_chain, verify_session_chain

NOW = 1_800_000_000
DAY = 24 * 3600


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "service"
    create_authority(path, issuer="test", now=NOW)
    return path


def test_the_chain_verifies_with_nothing_but_the_root(folder: Path) -> None:
    authority = load_authority(folder, now=NOW)
    root = load_root(root_path(folder).read_bytes())
    key = ec.generate_private_key(ec.SECP256R1()).public_key()
    chain = authority.issue_session_certificate(key, session_id=bytes(16), now=NOW, expires_at=NOW + 3540)
    session = verify_session_chain(chain, root=root, now=NOW + 5)
    assert session.key == key
    assert session.not_after == NOW + 3540
    signing = verify_service_chain([authority.signing.public_bytes(Encoding.DER)], root=root, now=NOW)
    assert signing == authority.signing_key.public_key()


def test_a_session_certificate_never_lives_longer_than_an_hour(folder: Path) -> None:
    authority = load_authority(folder, now=NOW)
    key = ec.generate_private_key(ec.SECP256R1()).public_key()
    with pytest.raises(ValueError, match="lasts"):
        authority.issue_session_certificate(key, session_id=bytes(16), now=NOW, expires_at=NOW + 3600)


def test_keys_are_for_the_service_alone(folder: Path) -> None:
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    for path in folder.glob("*.key"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    (folder / "signing.key").chmod(0o644)
    with pytest.raises(SetupError, match="others can read"):
        load_authority(folder, now=NOW)


def test_an_empty_folder_that_was_open_is_closed_before_keys_lie_in_it(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    create_authority(tmp_path, issuer="test", now=NOW)
    assert stat.S_IMODE(tmp_path.stat().st_mode) == 0o700
    load_authority(tmp_path, now=NOW)


def test_a_folder_with_other_things_in_it_is_left_open_and_refused(tmp_path: Path) -> None:
    """Its modes are somebody's decision; that keys must not lie there is ours."""
    tmp_path.chmod(0o755)
    (tmp_path / "note").touch()
    create_authority(tmp_path, issuer="test", now=NOW)
    assert stat.S_IMODE(tmp_path.stat().st_mode) == 0o755
    with pytest.raises(SetupError, match="others can read"):
        load_authority(tmp_path, now=NOW)


def test_a_second_init_changes_nothing(folder: Path) -> None:
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    create_authority(folder, issuer="another", now=NOW + DAY)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_a_folder_with_some_of_the_keys_is_refused(folder: Path) -> None:
    """Making the missing ones anew would silently change who the service is."""
    (folder / "sealing.key").unlink()
    with pytest.raises(SetupError, match="only some"):
        create_authority(folder, issuer="test", now=NOW)
    with pytest.raises(SetupError, match="cannot be used"):
        load_authority(folder, now=NOW)


def test_intermediates_are_renewed_in_time_with_the_same_keys(folder: Path) -> None:
    early = load_authority(folder, now=NOW)
    late = load_authority(folder, now=NOW + 340 * DAY)
    assert late.signing != early.signing
    assert late.signing.public_key() == early.signing.public_key()
    assert late.root == early.root
    verify_service_chain([late.signing.public_bytes(Encoding.DER)], root=late.root, now=NOW + 400 * DAY)


def test_without_the_roots_key_expired_certificates_are_told(folder: Path) -> None:
    (folder / "root.key").rename(folder.parent / "root.key")
    assert load_authority(folder, now=NOW + 340 * DAY).signing
    with pytest.raises(SetupError, match="have expired"):
        load_authority(folder, now=NOW + 366 * DAY)


def test_private_keys_do_not_show_in_a_repr(folder: Path) -> None:
    text = repr(load_authority(folder, now=NOW))
    assert "PrivateKey" not in text


def test_a_missing_folder_is_a_matter_of_setup(tmp_path: Path) -> None:
    with pytest.raises(SetupError) as caught:
        load_authority(tmp_path / "nowhere", now=NOW)
    assert "service init" in caught.value.hint
