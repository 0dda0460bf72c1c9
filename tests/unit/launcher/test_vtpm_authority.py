"""Making TPMs: real swtpm_setup, an authority of ours."""

from __future__ import annotations

import shutil
import stat
from pathlib import Path

import pytest
from cryptography import x509

from affiant.launcher.vtpm.authority import (
    VtpmAuthority,
    manufacture,
    prepare_authority,
    read_endorsement_chain,
)
from affiant.model.errors import SetupError, UnavailableError


def test_chain_leads_to_the_root(authority: VtpmAuthority, manufactured: Path) -> None:
    leaf, issuer = map(x509.load_der_x509_certificate, read_endorsement_chain(manufactured))
    root = x509.load_pem_x509_certificate(authority.root_certificate.read_bytes())
    leaf.verify_directly_issued_by(issuer)
    issuer.verify_directly_issued_by(root)


def test_existing_tpm_stays_what_it_is(authority: VtpmAuthority, manufactured: Path) -> None:
    before = {path.name: path.read_bytes() for path in manufactured.iterdir()}
    manufacture(authority, manufactured, name="another")
    assert {path.name: path.read_bytes() for path in manufactured.iterdir()} == before


def test_authority_is_prepared_twice_without_a_change(authority: VtpmAuthority) -> None:
    before = {path.name: path.stat().st_mtime_ns for path in authority.folder.iterdir()}
    assert prepare_authority(authority.folder) == authority
    assert {path.name: path.stat().st_mtime_ns for path in authority.folder.iterdir()} == before


def test_authority_is_its_owners_alone(authority: VtpmAuthority, manufactured: Path) -> None:
    assert stat.S_IMODE(authority.folder.stat().st_mode) == 0o700
    assert stat.S_IMODE(manufactured.stat().st_mode) == 0o700


def test_failing_setup_is_told_and_leaves_nothing(tmp_path: Path, authority: VtpmAuthority) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(authority.folder, broken)
    (broken / "setup.conf").write_text("create_certs_tool = /bin/false\nactive_pcr_banks = sha256\n")
    with pytest.raises(UnavailableError, match="swtpm_setup could not make a TPM"):
        manufacture(VtpmAuthority(broken), tmp_path / "vms" / "tpm", name="test")
    assert list((tmp_path / "vms").iterdir()) == []


def test_folder_that_swtpm_cannot_spell_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match="space"):
        prepare_authority(tmp_path / "with space")


def test_missing_certificates_are_told(tmp_path: Path) -> None:
    with pytest.raises(UnavailableError, match="EK certificates"):
        read_endorsement_chain(tmp_path)
