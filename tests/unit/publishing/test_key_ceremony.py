"""Keys: made, added, lost, revoked; whose signature counts when."""

from __future__ import annotations

import hashlib
import io
import shutil
import stat
from pathlib import Path

import pytest


def test_a_key_is_encrypted_and_its_owner_s_alone(desk, tmp_path):
    (tmp_path / "secret").write_text("correct horse\n")
    desk.done("new-key", "alice.pem", "--passphrase-file", "secret")
    pem = tmp_path / "alice.pem"
    assert b"ENCRYPTED" in pem.read_bytes()
    assert stat.S_IMODE(pem.stat().st_mode) == 0o600
    assert b"PUBLIC KEY" in (tmp_path / "alice.pub").read_bytes()


def test_a_passphrase_is_asked_for_twice(desk, monkeypatch, tmp_path):
    answers = iter(["correct horse", "correct hose"])
    monkeypatch.setattr("getpass.getpass", lambda _: next(answers))
    assert "differ" in desk.refused("new-key", "alice.pem")
    assert not (tmp_path / "alice.pem").exists()


def test_an_empty_passphrase_is_none(desk, monkeypatch):
    monkeypatch.setattr("getpass.getpass", lambda _: "")
    assert "a passphrase is needed" in desk.refused("new-key", "alice.pem")


@pytest.mark.filterwarnings("ignore::getpass.GetPassWarning")
def test_where_nobody_can_be_asked_it_is_said_what_to_do(desk, monkeypatch, tmp_path):
    """In a timer's job or a pipe there is neither a terminal nor an answer."""
    monkeypatch.setattr("sys.stdin", io.StringIO())
    with monkeypatch.context() as context:
        context.setattr("os.open", lambda *_: (_ for _ in ()).throw(OSError("no /dev/tty")))
        assert "hint: --passphrase-file FILE" in desk.refused("new-key", "bob.pem")
    assert not (tmp_path / "bob.pem").exists()
    desk.done("init")
    desk.done("new-key", "alice.pem", "--unsafe-no-passphrase")
    desk.done("add-key", "root", "alice.pub")
    assert "hint: --yes signs without asking" in desk.refused("sign", "alice.pem")


def test_a_role_without_keys_says_how_it_gets_one(desk):
    desk.done("init")
    assert "may sign: nobody yet (affiant rules add-key root FILE.pub)" in desk.done("status")


def test_a_wrong_passphrase_signs_nothing(desk, tmp_path):
    (tmp_path / "secret").write_text("right")
    (tmp_path / "guess").write_text("wrong")
    desk.done("init")
    desk.done("new-key", "alice.pem", "--passphrase-file", "secret")
    desk.done("add-key", "root", "alice.pub")
    assert "cannot be used" in desk.refused("sign", "alice.pem", "--yes", "--passphrase-file", "guess")
    desk.done("sign", "alice.pem", "--yes", "--passphrase-file", "secret")


def test_a_key_is_not_written_over(published, tmp_path):
    before = (tmp_path / "alice.pem").read_bytes()
    assert "already there" in published.refused("new-key", "alice.pem", "--unsafe-no-passphrase")
    (tmp_path / "alice.pub").unlink()
    assert "already there" in published.refused("new-key", "alice.pem", "--unsafe-no-passphrase")
    assert (tmp_path / "alice.pem").read_bytes() == before


def test_a_private_key_is_not_taken_for_a_public_one(published):
    assert "hint: give the public one: alice.pub" in published.refused("add-key", "root", "alice.pem")


def test_no_private_key_is_given_out_and_no_offline_key_is_in_the_folder(published):
    assert not any(b"PRIVATE" in content for content in published.given_out().values())
    private = {path.name for path in published.folder.path.rglob("*.pem")}
    assert private == {"snapshot.pem", "timestamp.pem"}
    assert stat.S_IMODE(published.folder.online.stat().st_mode) == 0o700


def test_a_key_that_withstands_quantum_computers_signs(published):
    published.done("new-key", "carol.pem", "--unsafe-no-passphrase", "--kind", "ml-dsa-65")
    published.done("add-key", "targets", "carol.pub")
    published.signed("alice", "bob")
    published.done("publish")
    published.refused("publish", "no_evil", "--audit", code=1)
    published.signed("alice", "carol")
    published.done("publish")
    assert published.monitor().update().bundle.version == 3


def test_a_stranger_s_key_has_nothing_to_sign(published):
    published.done("new-key", "mallory.pem", "--unsafe-no-passphrase")
    published.refused("publish", "no_evil", "--audit", code=1)
    assert "nothing for the key" in published.refused("sign", "mallory.pem", "--yes")


@pytest.mark.parametrize("role", ["root", "targets"])
def test_a_lost_key_is_replaced_and_then_signs_nothing(published, role):
    """Monitors that started from the first root follow; what the lost key signs reaches none of them."""
    monitor = published.monitor()
    monitor.update()
    published.done("new-key", "carol.pem", "--unsafe-no-passphrase")
    published.done("add-key", role, "carol.pub")
    published.done("remove-key", role, "bob")
    # The former root counts its own keys, bob's among them; for targets the others are enough.
    published.signed("alice", "carol", *(("bob",) if role == "root" else ()))
    assert published.run("publish") == (0 if role == "root" else 1)
    if role == "targets":
        assert "root has 1 of 2 signatures by the keys of root 1; may sign: bob" in published.out
        published.signed("bob")
        published.done("publish")
    monitor.update()
    assert monitor.trusted.root_version == 2
    published.refused("publish", "no_evil", "--audit", code=1)
    if role == "targets":
        assert "nothing for the key" in published.refused("sign", "bob.pem", "--yes")
    published.signed("alice", "carol" if role == "targets" else "bob")
    published.done("publish")
    assert monitor.update().bundle.version == 3


def test_a_lost_root_key_is_revoked_by_those_who_are_left(published):
    """Two of three: the third is lost for good, and is not needed."""
    published.done("new-key", "carol.pem", "--unsafe-no-passphrase")
    published.done("add-key", "root", "carol.pub")
    published.signed("alice", "bob", "carol")
    published.done("publish")
    monitor = published.monitor()
    published.done("remove-key", "root", "carol")
    published.signed("alice", "bob")
    published.done("publish")
    monitor.update()
    assert monitor.trusted.root_version == 3
    published.done("renew", "root")
    assert "nothing for the key" in published.refused("sign", "carol.pem", "--yes")


def test_the_last_keys_of_a_threshold_are_not_removed(published):
    said = published.refused("remove-key", "root", "bob")
    assert "root would have 1 keys and need 2 signatures" in said
    published.done("remove-key", "root", "bob", "--threshold", "1")


@pytest.mark.parametrize("threshold", ["0", "3"])
def test_a_threshold_that_means_nothing_is_refused(published, threshold):
    published.done("new-key", "carol.pem", "--unsafe-no-passphrase")
    published.done("add-key", "root", "carol.pub", "--threshold", "3")
    published.done("discard")
    assert "error" in published.refused("remove-key", "root", "alice", "--threshold", threshold)


def test_a_key_that_is_not_known_cannot_be_removed(published):
    assert "Known: alice" in published.refused("remove-key", "targets", "zoe")


def test_a_key_is_not_added_twice(published):
    assert "already" in published.refused("add-key", "targets", "alice.pub")


def test_new_rules_do_not_wait_for_a_new_root(published):
    """In the middle of a key ceremony an attack is seen: rules go out under the root that is out."""
    published.done("new-key", "carol.pem", "--unsafe-no-passphrase")
    published.done("add-key", "root", "carol.pub")
    published.refused("publish", "no_evil", "--audit", code=1)
    published.signed("alice")
    bob = published.folder.draft / "root.json"
    waiting = bob.read_bytes()
    published.signed("bob")
    bob.write_bytes(waiting)  # bob has signed the targets alone
    assert published.run("publish") == 1
    assert "published: targets" in published.out
    monitor = published.monitor()
    assert monitor.update().bundle.version == 3
    assert monitor.trusted.root_version == 1


def test_a_root_that_would_orphan_the_targets_is_not_given_out(published):
    """The targets that are out were signed by the key that goes: they must be signed first."""
    published.done("new-key", "carol.pem", "--unsafe-no-passphrase")
    published.done("add-key", "targets", "carol.pub")
    published.done("remove-key", "targets", "bob")
    (published.folder.draft / "targets.json").unlink()
    published.signed("alice", "bob")
    said = published.refused("publish")
    assert "under the new root the targets lack signatures" in said
    assert "hint: affiant rules renew targets" in said
    published.done("renew", "targets")
    published.signed("alice", "carol")
    published.done("publish")
    published.monitor().update()


def test_online_keys_are_replaced_in_one_step(published, tmp_path):
    """Whoever stole them can freeze nothing any more, and the host does not keep the old ones."""
    monitor = published.monitor()
    monitor.update()
    stolen = shutil.copytree(published.folder.online, tmp_path / "stolen")
    published.done("rotate-online")
    published.signed("alice", "bob")
    published.done("publish")
    monitor.update()
    now_there = {path.name: path.read_bytes() for path in published.folder.online.iterdir()}
    assert set(now_there) == {"snapshot.pem", "timestamp.pem"}
    assert not any((stolen / name).read_bytes() == content for name, content in now_there.items())
    for path in stolen.iterdir():
        shutil.copy(path, published.folder.online / path.name)
    assert "rotate-online" in published.refused("refresh")


def test_a_host_without_its_online_key_says_how_to_make_another(published):
    (published.folder.online / "timestamp.pem").unlink()
    assert "hint: bring it back" in published.refused("refresh")


def test_an_expired_root_is_renewed_before_anything_else(published):
    published.time += 400 * 86_400
    assert published.run("status") == 1
    published.refused("refresh")
    published.done("renew", "root")
    published.done("renew", "targets")
    published.signed("alice", "bob")
    published.done("publish")
    late = published.monitor()
    assert late.update().bundle.version == 2
    assert late.trusted.root_version == 2


def test_the_root_to_pin_is_told_with_its_digest(published):
    path, digest = published.done("root").splitlines()
    assert path.endswith("public/metadata/1.root.json")
    assert hashlib.sha256(Path(path).read_bytes()).hexdigest() == digest
